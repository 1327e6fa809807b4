"""What a mutant is."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Mutant:
    """One mistake; each `old` text must occur exactly once in the file."""

    file: str
    name: str
    edits: tuple[tuple[str, str], ...]  # (old, new)
    harmless: str = ""  # why no test can catch it

    def lost_in(self, text: str) -> str:
        """Say which edit does not find its place, if one does not."""
        for old, _ in self.edits:
            if text.count(old) != 1:
                return f"{self.file}: {self.name}: found {text.count(old)} times, not once:\n{old}"
        return ""

    def applied(self, text: str) -> str:
        """Return a file's text with the mistake in it."""
        places = sorted(((text.index(old), old, new) for old, new in self.edits), reverse=True)
        for start, old, new in places:
            text = text[:start] + new + text[start + len(old) :]
        return text


def mutants(file: str, *mistakes: tuple) -> list[Mutant]:
    """Make mutants from (name, old, new), (name, ((old, new), …)) and the same with a reason why it is harmless."""
    made = []
    for name, *rest in mistakes:
        edits, rest = (rest[0], rest[1:]) if isinstance(rest[0], tuple) else (((rest[0], rest[1]),), rest[2:])
        made.append(Mutant(file, name, edits, *rest))
    return made
