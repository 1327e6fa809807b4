"""What changed between two results files beyond the spread that was measured."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from benchmarks.report import microseconds

LEAST = 0.02  # a smaller change is not named, however small the spread


@dataclass(frozen=True)
class Change:
    """One case in both files."""

    id: str
    before: dict[str, Any]  # timings
    after: dict[str, Any]

    @property
    def ratio(self) -> float:
        """Time after over time before."""
        return float(self.after["median"] / self.before["median"])

    @property
    def judged(self) -> bool:
        """Whether both were timed more than once: of a single time no spread is known."""
        return self.before.get("samples", 2) > 1 and self.after.get("samples", 2) > 1

    @property
    def apart(self) -> bool:
        """Whether the ranges from 10th to 90th percentile do not meet, and the medians differ enough to matter."""
        if not self.judged:
            return False
        meet = self.before["p10"] <= self.after["p90"] and self.after["p10"] <= self.before["p90"]
        return not meet and abs(self.ratio - 1) > LEAST

    @property
    def slower(self) -> bool:
        """Whether it takes longer than before, beyond the spread."""
        return self.apart and self.ratio > 1


@dataclass(frozen=True)
class Comparison:
    """All cases in both files, those in one only or failed, and whether the machines differ."""

    changes: tuple[Change, ...]
    lost: tuple[str, ...]  # measured before, and not after
    new: tuple[str, ...]
    failed: tuple[str, ...]  # after, and not before
    machines: tuple[str, str]

    @property
    def beyond(self) -> list[Change]:
        """Changes beyond the spread, the largest slowdown first."""
        return sorted((change for change in self.changes if change.apart), key=lambda change: -change.ratio)


def timings(content: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return every timing of a file by name."""
    found = {record["id"]: record["time"] for record in content["cases"] if record["status"] == "ok"}
    for record in (*content.get("host", ()), *content.get("reference", ())):
        if "median" in record:
            found[record["name"]] = record
    return found


def _failed(content: dict[str, Any]) -> list[str]:
    return [record["id"] for record in content["cases"] if record["status"] == "failed"]


def compare(before: dict[str, Any], after: dict[str, Any]) -> Comparison:
    """Compare two results files."""
    old, new = timings(before), timings(after)
    return Comparison(
        tuple(Change(name, old[name], new[name]) for name in old if name in new),
        tuple(name for name in old if name not in new),
        tuple(name for name in new if name not in old),
        tuple(name for name in _failed(after) if name not in _failed(before)),
        (before["machine"]["device"], after["machine"]["device"]),
    )


def tell(comparison: Comparison) -> str:
    """Return the comparison as text."""
    lines = []
    if comparison.machines[0] != comparison.machines[1]:
        lines.append(f"Different machines, so times do not compare: {' and '.join(comparison.machines)}.")
    for change in comparison.beyond:
        word = "slower" if change.slower else "faster"
        both = " → ".join(microseconds(timing["median"]) for timing in (change.before, change.after))
        lines.append(f"{word} by {abs(change.ratio - 1):.1%}: {change.id}: {both}")
    single = sum(not change.judged for change in comparison.changes)
    same = len(comparison.changes) - len(comparison.beyond) - single
    lines.append(f"{len(comparison.changes)} compared, {same} of them the same within the spread.")
    if single:
        lines.append(f"{single} of them were timed only once, and are not judged")
    lines += [f"failed: {name}" for name in comparison.failed]
    lines += [f"no longer measured: {name}" for name in comparison.lost if name not in comparison.failed]
    if comparison.new:
        lines.append(f"{len(comparison.new)} measured for the first time")
    return "\n".join(lines)
