"""``python -m gspn2_cupy check``: whether all is computed rightly on this machine's GPU.

Every kernel is compiled and run against the NumPy reference, first in each shape that the planner can choose here, then
in all data types and directions, with λ and without, as far as the time goes; then what a program does with it:
streams, graphs, threads, a second device, repeats. ``--bench`` adds a few speeds against copies of as many bytes.
"""

from __future__ import annotations

import argparse
import os
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import gspn2_cupy
from gspn2_cupy import _check_bench, _launch
from gspn2_cupy._arrays import bfloat16
from gspn2_cupy._check_behaviours import BEHAVIOURS, NotHereError
from gspn2_cupy._check_cases import ALLOWED, Case, errors
from gspn2_cupy._check_choice import Launch, Planned, candidates, choose
from gspn2_cupy._info import _version as version

Array = Any

SECONDS = 104  # for the cases; what follows took up to 14 more
HANG = 100  # seconds that nothing here needs


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of the command."""
    parser.description = (
        "Compile and run on the GPU every kernel in every shape that can be chosen there, for arrays of less than 2^31 "
        "elements, and compare with the NumPy reference; then go on with other data types, directions and options, as "
        "far as the time goes; then try streams, graphs, threads and repeats. Takes up to two minutes. Run again it "
        "gets further, as kernels stay compiled. Exit code 0: all that ran is right; 1: something is wrong, or no "
        "time was left for any comparison; 2: there is no GPU."
    )
    parser.add_argument(
        "--seconds", type=float, default=SECONDS, metavar="N", help=f"for the comparisons (default: {SECONDS})"
    )
    parser.add_argument("--bench", action="store_true", help="then measure a few calls against copies, for a minute")


def run(arguments: argparse.Namespace) -> int:
    """Check and print a table."""
    reason = why_no_gpu()
    if reason is not None:
        print(f"python -m gspn2_cupy check: no GPU to check: {reason}", file=sys.stderr)
        return 2
    import cupy

    start = time.monotonic()
    device = cupy.cuda.Device().id
    launcher = _launch.cupy_launcher(device)
    limits = launcher.limits
    capability = ".".join(map(str, limits.compute_capability))
    driver = version(cupy.cuda.runtime.driverGetVersion())
    print(f"gspn2_cupy {gspn2_cupy.__version__} on {limits.name}, compute capability {capability},", end=" ")
    print(f"CUDA driver {driver}, CuPy {cupy.__version__}")

    dtypes = available_dtypes()
    report = Report()
    # More than eight threads compile no faster: 69 ms a kernel on a host of 16 cores, and 84 with 15 of them.
    pool = ThreadPoolExecutor(max(1, min(8, (os.cpu_count() or 2) - 1)))
    try:
        kernels = Kernels(launcher, pool)
        planned = choose(limits, candidates(limits, dtypes))
        made = check_cases(planned, kernels, report, start + arguments.seconds, cupy.asarray, cupy.asnumpy)
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
    check_behaviours(cupy, report)
    print(report.table())
    seconds = time.monotonic() - start
    print(f"\n{made} kernels, {report.of_all()} cases, {seconds:.0f} s: {report.verdict()}")
    if arguments.bench and report.passed:  # no speed of what is wrong
        _check_bench.run(cupy)
    return 0 if report.passed else 1


def why_no_gpu() -> str | None:
    """Return why there is no GPU to use, or None."""
    try:
        import cupy
    except ImportError as error:
        return (
            "CuPy is not installed" if error.name == "cupy" else f"CuPy does not start: {' '.join(str(error).split())}"
        )
    try:
        return None if cupy.cuda.runtime.getDeviceCount() > 0 else "CUDA sees no device"
    except cupy.cuda.runtime.CUDARuntimeError as error:
        return f"CUDA does not start: {error}"


def available_dtypes() -> list[str]:
    """Return the data types, without bfloat16 where ml_dtypes is missing."""
    try:
        bfloat16()
    except ImportError:
        print("bfloat16 is left out: ml_dtypes is not installed", file=sys.stderr)
        return ["float32", "float16", "float64"]
    return ["float32", "bfloat16", "float16", "float64"]


# --- the report -------------------------------------------------------------------------------------------------------


@dataclass
class Row:
    """What is known of one line of the table."""

    cases: int = 0
    worst: float = 0.0  # error over the error allowed
    result: str = "ok"


@dataclass
class Report:
    """Collects what was found."""

    rows: dict[tuple[str, str], Row] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)
    left_out: int = 0
    total: int | None = 0  # cases that there are; None: some were not looked for
    in_all_shapes: bool = True  # each kernel has run in every shape that it can have
    lost: bool = False  # the device answers no more

    @property
    def cases(self) -> int:
        """How many cases have run."""
        return sum(row.cases for row in self.rows.values())

    def of_all(self) -> str:
        """Return how many cases have run, and of how many, if that is known."""
        return f"{self.cases}" if self.total is None else f"{self.cases} of {self.total}"

    @property
    def passed(self) -> bool:
        """Whether something has run, and nothing failed."""
        return self.cases > 0 and not self.failures

    def add(self, case: Case, shares: dict[str, float]) -> None:
        """Take down a case's errors."""
        row = self.rows.setdefault((case.operation, case.dtype), Row())
        row.cases += 1
        row.worst = max([row.worst, *shares.values()])
        wrong = {name: share for name, share in shares.items() if not share <= 1}
        if wrong:
            allowed = ", ".join(f"{name} {share:.3g} times the error allowed" for name, share in wrong.items())
            self.fail((case.operation, case.dtype), f"{case}: {allowed}")

    def fail(self, key: tuple[str, str], message: str) -> None:
        """Take down a failure."""
        self.rows.setdefault(key, Row()).result = "FAILED"
        self.failures.append(message)

    def table(self) -> str:
        """Return the table, and what failed below it."""
        lines = [f"\n{'check':<34}{'type':<10}{'cases':>6}{'worst error':>13}{'allowed':>9}  result"]
        for (name, dtype), row in self.rows.items():
            figures = f"{'':>6}{'':>13}{'':>9}"
            if dtype:
                allowed = ALLOWED[dtype]
                figures = f"{row.cases:>6}{row.worst * allowed:>13.1e}{allowed:>9.0e}"
            lines.append(f"{name:<34}{dtype:<10}{figures}  {row.result}")
        if self.left_out or self.total is None:
            lines.append(f"{self.left_out or 'some'} more cases {self._why_left_out()}")
        lines += [f"FAILED: {failure}" for failure in self.failures[:10]]
        if len(self.failures) > 10:
            lines.append(f"… and {len(self.failures) - 10} more")
        return "\n".join(lines)

    def _why_left_out(self) -> str:
        if self.lost:
            return "were not run: the device answers no more"
        what = (
            ": each kernel has run in all its shapes, but not with all types and options" if self.in_all_shapes else ""
        )
        return f"did not fit into the time{what}; run it again, kernels stay compiled, or with more --seconds"

    def verdict(self) -> str:
        """Return how it went, in a few words."""
        if self.failures:
            return f"{len(self.failures)} FAILED"
        if not self.cases:
            return "NOT CHECKED"
        return "all of these ok" if self.left_out or self.total is None else "all ok"


class Progress:
    """A bar on standard error; where that is no terminal, a line now and then."""

    WIDTH = 30
    LINES = 100  # cases between two of them

    def __init__(self) -> None:
        self._tty = sys.stderr.isatty()

    def show(self, done: int, found: int, text: str) -> None:
        """Say how many of the cases found so far are done, and what comes now."""
        if self._tty:
            filled = self.WIDTH * done // found
            bar = "#" * filled + "." * (self.WIDTH - filled)
            print(f"\r[{bar}] {done}/{found} {text[:70]:<70}", end="", file=sys.stderr, flush=True)
        elif done % self.LINES == 0:
            print(f"{done}/{found} {text}", file=sys.stderr, flush=True)

    def end(self) -> None:
        """Clear the bar."""
        if self._tty:
            print(f"\r{'':<{self.WIDTH + 90}}\r", end="", file=sys.stderr, flush=True)


# --- against the reference --------------------------------------------------------------------------------------------


class Kernels:
    """Compiles kernels, each once: ahead of their launches if there is a pool."""

    def __init__(self, launcher: Any, pool: Executor | None = None) -> None:
        self._launcher, self._pool = launcher, pool
        self._device = None if pool is None else _current_device()
        self._compiled: dict[Launch, Future[Any] | _Now] = {}

    @property
    def on_device(self) -> bool:
        """Whether they are for a CUDA device."""
        return self._pool is not None

    def prepare(self, launches: Mapping[Launch, int]) -> None:
        """See to it that kernels will be compiled; with each the bytes of shared memory that it is asked for."""
        for launch, shared_bytes in launches.items():
            if launch not in self._compiled:
                compile_it = partial(_prepare, self._launcher, self._device, *launch, shared_bytes)
                self._compiled[launch] = self._pool.submit(compile_it) if self._pool else _Now(compile_it)

    def ready(self, launches: Iterable[Launch]) -> bool:
        """Tell whether they are."""
        return all(self._compiled[launch].done() for launch in launches)

    def wait(self, launch: Launch) -> None:
        """Return when it is, or raise what came of it."""
        self._compiled[launch].result()


@dataclass
class _Now:
    """Stands for what is done when it is asked for."""

    result: Callable[[], Any]

    def done(self) -> bool:
        return True


def check_cases(
    planned: Iterable[Planned],
    kernels: Kernels,
    report: Report,
    deadline: float,
    to_device: Callable[[Array], Array],
    to_host: Callable[[Array], Array],
) -> int:
    """Run cases until the deadline, while kernels are compiled and cases found; return how many kernels ran."""
    progress, launched = Progress(), set[Launch]()
    number, all_found, found, waiting = 0, False, iter(planned), deque[Planned]()
    while not (all_found and not waiting) and time.monotonic() <= deadline and not report.lost:
        if not waiting or not (all_found or kernels.ready(waiting[0].launches)):
            each = next(found, None)
            if each is None:
                all_found = True
            else:
                kernels.prepare(each.launches)
                waiting.append(each)
            continue
        progress.show(number, number + len(waiting), str(waiting[0].case))
        each = waiting.popleft()
        try:
            with watched(str(each.case)):
                for launch in each.launches:
                    kernels.wait(launch)
                    launched.add(launch)
                report.add(each.case, errors(each.case, number, to_device, to_host))
        except Exception as error:  # whatever it is, it is what the user wants to know
            key = (each.case.operation, each.case.dtype)
            report.fail(key, f"{each.case}: {type(error).__name__}: {_one_line(error)}")
            report.lost = kernels.on_device and not _answers()
        number += 1
    report.left_out = len(waiting)
    report.total = number + len(waiting) if all_found else None
    report.in_all_shapes = all_found and not any(each.first for each in waiting)
    progress.end()
    return len(launched)


@contextmanager
def watched(what: str) -> Iterator[None]:
    """End the process, with exit code 1, if it hangs inside: no call returns then, and no error comes."""
    timer = threading.Timer(HANG, _give_up, (what,))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _give_up(what: str) -> None:
    print(f"\nFAILED: {what}: no end after {HANG} s; the device hangs, or something else keeps it busy", flush=True)
    os._exit(1)


def _current_device() -> int:
    import cupy

    return int(cupy.cuda.Device().id)


def _device(index: int) -> Any:
    import cupy

    return cupy.cuda.Device(index)


def _prepare(launcher: Any, device: int | None, spec: Any, cooperative: bool, shared_bytes: int) -> None:
    """Compile a kernel, in any thread."""
    with nullcontext() if device is None else _device(device):
        launcher.compile(spec).prepare(shared_bytes, cooperative)


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return text if len(text) < 300 else f"{text[:300]} …"


def _answers() -> bool:
    """Tell whether the device still works after an error."""
    import cupy

    try:
        cupy.cuda.Device().synchronize()
    except cupy.cuda.runtime.CUDARuntimeError:
        return False
    return True


# --- what programs do -------------------------------------------------------------------------------------------------


def check_behaviours(cupy: Any, report: Report) -> None:
    """Run the checks that compare calls with each other."""
    for name, check in BEHAVIOURS.items():
        key = (name, "")
        report.rows[key] = Row()
        if report.lost:
            report.rows[key].result = "not run: the device answers no more"
            continue
        try:
            with watched(name):
                check(cupy)
        except NotHereError as reason:
            report.rows[key].result = f"not checked: {reason}"
        except Exception as error:
            report.fail(key, f"{name}: {type(error).__name__}: {_one_line(error)}")
            report.lost = not _answers()
