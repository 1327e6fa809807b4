"""Break the kernels on purpose, one mistake at a time, and see that the tests notice.

    python -m tools.mutate [--only WORD …] [--processes 2] [--report docs/mutation_report.md] [--resume FILE]

A mutant is a copy of the checkout in which one place under cuda/ is wrong: tools/mutants. The tests that its file's
SELECTIONS name run on it through the emulator (all with "emul" in their names); where they all pass, WIDER ones follow.
It is caught when a test fails.
The command fails if fewer than 95 % are caught, if a mutant survives without an explanation, or if one no longer finds
its place in the sources. With --resume outcomes are kept in a file, and those of the same sources are not tried again.
"""

from __future__ import annotations

import argparse
import datetime
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue

from tools.mutants import ALL, Mutant

ROOT = Path(__file__).resolve().parents[1]
COPIED = ("cuda", "gspn2_cupy", "tests", "tools", "pyproject.toml")
SECONDS = 900  # a mutant that takes longer hangs
LEAST = 0.95

FORWARD = ("tests/test_plain.py", "tests/test_line_scan.py", "tests/test_pieces.py")
BACKWARD = ("tests/test_plain.py", "tests/test_line_scan_backward.py", "tests/test_pieces.py")
GRADIENTS = ("tests/test_gradients.py", "tests/test_line_scan_backward.py", "tests/test_propagate.py")
MERGING = ("tests/test_merging.py",)
TILES = ("tests/test_tiles.py", *MERGING, "tests/test_aligned_images.py", "tests/test_pieces.py")
SLICES = ("tests/test_slices.py", *MERGING, "tests/test_line_scan.py", "tests/test_pieces.py")
WEIGHTS, UNIT = ("tests/test_normalize.py",), ("tests/test_propagate.py",)
COMPACT = ("tests/test_compact.py",)
EVERY = (
    "tests/test_line_scan.py",
    "tests/test_plain.py",
    "tests/test_line_scan_backward.py",
    *WEIGHTS,
    *UNIT,
    *COMPACT,
)
SELECTIONS = {
    "geometry.cuh": EVERY,
    "state.cuh": EVERY,
    "scan_tile.cuh": (*FORWARD, "tests/test_line_scan_backward.py"),
    "line_scan_forward.cu": FORWARD,
    "line_scan_adjoint.cu": BACKWARD,
    "line_scan_gradients.cu": GRADIENTS,
    "merge.cu": UNIT,
    "merge_term.cuh": (*UNIT, *MERGING),
    "merge_gradient.cu": UNIT,
    "projection.cu": COMPACT,
    "projection_gradient.cu": COMPACT,
    "stable_weights.cuh": WEIGHTS,
    "normalize.cu": WEIGHTS,
    "normalize_backward.cu": WEIGHTS,
    "pack.cuh": ("tests/test_slices.py", *UNIT, *TILES),
    "scan_lane.cuh": ("tests/test_slices.py", *TILES),
    "tile_ring.cuh": TILES,
    "tile_scan.cuh": TILES,
    "line_scan_tiles.cu": TILES,
    "line_scan_slices.cu": SLICES,
}
FAILED = re.compile(r"^(?:FAILED|ERROR) \S*?(\w+)\.py::(\w+).*?(?: - (.*))?$", re.MULTILINE)
WIDER = ("tests/test_properties.py", "tests/test_large_line.py", "tests/test_affinity.py", "tests/test_line_scan.py")


@dataclass(frozen=True)
class Outcome:
    """What the tests made of a mutant."""

    caught: bool
    how: str  # the test that failed and its error; empty for a survivor


class DoesNotBuildError(RuntimeError):
    """A mutant that g++ refuses proves nothing."""


# --- one mutant -------------------------------------------------------------------------------------------------------


class Workshop:
    """A copy of the checkout in which mutants are made, one after the other."""

    def __init__(self, snapshot: Path, folder: Path):
        self.folder, self.cache = folder, folder / "emulator-cache"
        self.sources = snapshot / "cuda"
        shutil.copytree(snapshot, folder)
        self.cache.mkdir()

    def run(self, tests: Sequence[str]) -> Outcome:
        """Run the emulated tests of some files, those first that caught an earlier mistake: likely this one's too."""
        command = [sys.executable, "-m", "pytest", "-x", "--failed-first", "-q", "-k", "emul", *tests]
        environment = {**os.environ, "GSPN2_EMULATOR_CACHE": str(self.cache), "COLUMNS": "400"}  # whole error lines
        try:
            done = subprocess.run(
                command, cwd=self.folder, env=environment, capture_output=True, text=True, timeout=SECONDS
            )
        except subprocess.TimeoutExpired:
            return Outcome(True, f"hangs: no end after {SECONDS} s")
        if "KernelBuildError" in done.stdout:
            raise DoesNotBuildError(done.stdout[-4000:])
        if done.returncode == 0:
            return Outcome(False, "")
        if done.returncode < 0:
            return Outcome(True, f"crashes by signal {-done.returncode}")
        if done.returncode != 1 or not FAILED.search(done.stdout):  # no test has failed: pytest itself has
            raise RuntimeError(f"pytest ends with {done.returncode}\n{done.stdout[-4000:]}{done.stderr[-2000:]}")
        return Outcome(True, first_failure(done.stdout))

    def try_out(self, mutant: Mutant) -> Outcome:
        """Make a mutant, test it, and undo it."""
        path = self.folder / "cuda" / mutant.file
        path.write_text(mutant.applied((self.sources / mutant.file).read_text()))
        try:
            outcome = self.run(SELECTIONS[mutant.file])
            if not outcome.caught and not mutant.harmless:
                outcome = self.run([name for name in WIDER if name not in SELECTIONS[mutant.file]])
            return outcome
        finally:
            shutil.copy(self.sources / mutant.file, path)
            for built in self.cache.glob("*.so"):
                if not built.name.startswith("runtime-"):
                    built.unlink()


def first_failure(output: str) -> str:
    """Return the test and the error of pytest's first FAILED line."""
    found = FAILED.search(output)
    assert found is not None
    error = re.match(r"[\w.]*?(\w+)(?=:|$)", found[3] or "")
    return f"`{found[2]}`" + (f": {error[1]}" if error else "")


# --- all of them ------------------------------------------------------------------------------------------------------


def take_snapshot(target: Path) -> None:
    """Copy what the tests need, as it is now."""
    target.mkdir()
    for name in COPIED:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, target / name, ignore=shutil.ignore_patterns("__pycache__", ".*_cache"))
        else:
            shutil.copy(ROOT / name, target)


def commit() -> str:
    """Name the state of the checkout."""
    head = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True)
    changed = subprocess.run(["git", "status", "--short", "--", *COPIED], cwd=ROOT, capture_output=True, text=True)
    return (head.stdout.strip() or "unknown") + (" with uncommitted changes" if changed.stdout.strip() else "")


class Memory:
    """The outcomes of earlier runs on the same sources, a line each in a file."""

    def __init__(self, path: Path | None, snapshot: Path):
        self.path, self.known = path, {}
        digest = hashlib.sha256()
        for file in sorted(
            p for name in ("cuda", "gspn2_cupy", "tests") for p in snapshot.glob(f"{name}/**/*.*") if p.is_file()
        ):
            digest.update(str(file.relative_to(snapshot)).encode() + file.read_bytes())
        self.sources = digest.hexdigest()
        if path is not None and path.exists():
            for line in path.read_text().splitlines():
                key, caught, how = json.loads(line)
                self.known[key] = Outcome(caught, how)

    def key(self, mutant: Mutant) -> str:
        """Return what an outcome depends on."""
        return hashlib.sha256(repr((self.sources, mutant.file, mutant.edits)).encode()).hexdigest()

    def keep(self, mutant: Mutant, outcome: Outcome) -> None:
        """Write an outcome down."""
        if self.path is not None:
            with self.path.open("a") as file:
                file.write(json.dumps([self.key(mutant), outcome.caught, outcome.how]) + "\n")


def examine(chosen: Sequence[Mutant], processes: int, resume: Path | None = None) -> dict[Mutant, Outcome]:
    """Try all mutants out, after the unbroken sources have passed."""
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        snapshot = Path(folder, "snapshot")
        take_snapshot(snapshot)
        lost = [why for mutant in chosen if (why := mutant.lost_in((snapshot / "cuda" / mutant.file).read_text()))]
        if lost:
            raise SystemExit("The sources have changed; tools/mutants must follow:\n" + "\n".join(lost))
        memory = Memory(resume, snapshot)
        workshops: SimpleQueue[Workshop] = SimpleQueue()
        for k in range(processes):
            workshops.put(Workshop(snapshot, Path(folder, f"workshop-{k}")))

        def with_workshop(task):
            workshop = workshops.get()
            try:
                return task(workshop)
            finally:
                workshops.put(workshop)

        def check(tests: str) -> None:
            outcome = with_workshop(lambda workshop: workshop.run([tests]))
            if outcome.caught:
                raise SystemExit(f"The tests must pass on the unbroken sources; {tests}: {outcome.how}")

        def test(mutant: Mutant) -> Outcome:
            outcome = memory.known.get(memory.key(mutant))
            if outcome is None:
                try:
                    outcome = with_workshop(lambda workshop: workshop.try_out(mutant))
                except DoesNotBuildError as error:
                    raise SystemExit(f"{mutant.file}: {mutant.name} does not build\n{error}") from None
                memory.keep(mutant, outcome)
            told = f"caught    {outcome.how}" if outcome.caught else "SURVIVED"
            print(f"{mutant.file:24} {mutant.name:60} {told}", flush=True)
            return outcome

        with ThreadPoolExecutor(processes) as pool:
            new = [mutant for mutant in chosen if memory.key(mutant) not in memory.known]
            list(pool.map(check, sorted({name for mutant in new for name in (*SELECTIONS[mutant.file], *WIDER)})))
            return dict(zip(chosen, pool.map(test, chosen), strict=True))


def report(outcomes: dict[Mutant, Outcome], command: str) -> str:
    """Return the outcomes as a page."""
    caught = sum(outcome.caught for outcome in outcomes.values())
    lines = [
        "# Mutation report",
        "",
        f"`{command}` at commit {commit()}, {datetime.date.today().isoformat()}: "
        f"{caught} of {len(outcomes)} mutants caught ({caught / len(outcomes):.1%}).",
        "",
        "Each mutant is one mistake made on purpose in a file under `cuda/` (`tools/mutants`). It is caught when a",
        "test of the operator, run through the emulator with its fault detector on, fails. The error tells how: an",
        "exception of the detector, or `AssertionError` for a wrong result. The PTX in `primitives.cuh` is not run by",
        "the emulator and so not mutated.",
        "",
        "| file | mutants | caught |",
        "|---|---|---|",
    ]
    for file in SELECTIONS:
        of_file = [outcome.caught for mutant, outcome in outcomes.items() if mutant.file == file]
        if of_file:
            lines.append(f"| `{file}` | {len(of_file)} | {sum(of_file)} |")
    survivors = [mutant for mutant, outcome in outcomes.items() if not outcome.caught]
    lines += ["", "## Survivors", ""]
    lines += [f"- `{m.file}`, {m.name}: {m.harmless or '**not explained**'}" for m in survivors] or ["None."]
    lines += ["", "## Caught", "", "| file | mistake | first test that fails |", "|---|---|---|"]
    lines += [f"| `{m.file}` | {m.name} | {outcome.how} |" for m, outcome in outcomes.items() if outcome.caught]
    return "\n".join(lines) + "\n"


def main() -> int:
    """Try the mutants out, write the report, and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="*", help="only mutants whose file or name holds one of these words")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--report", type=Path, help="write the outcomes there")
    parser.add_argument("--resume", type=Path, help="keep outcomes there, and do not try those again")
    options = parser.parse_args()
    command = "python -m tools.mutate" + (f" --only {' '.join(options.only)}" if options.only else "")
    chosen = [m for m in ALL if not options.only or any(word in f"{m.file} {m.name}" for word in options.only)]
    outcomes = examine(chosen, options.processes, options.resume)
    if options.report:
        options.report.write_text(report(outcomes, command))
    caught = sum(outcome.caught for outcome in outcomes.values())
    open_questions = [m for m, outcome in outcomes.items() if outcome.caught == bool(m.harmless)]
    print(f"\n{caught} of {len(outcomes)} caught")
    for mutant in open_questions:
        what = "is explained as harmless, and caught" if mutant.harmless else "survives without an explanation"
        print(f"{mutant.file}: {mutant.name} {what}")
    return 1 if open_questions or caught < LEAST * len(outcomes) else 0


if __name__ == "__main__":
    sys.exit(main())
