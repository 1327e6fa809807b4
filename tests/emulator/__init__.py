"""Runs the library's CUDA sources on the CPU, under a fault detector: docs/emulator.md.

`emulated` is the front door, `Emulator` the launcher itself.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from gspn2_cupy import _launch
from gspn2_cupy._plan import KernelSpec

from ._build import HERE, EmulatorUnavailableError, KernelBuildError, run, toolchain
from ._faults import (
    AddressFault,
    AsyncCopyFault,
    BadSynchronisation,
    DataRace,
    Deadlock,
    EmulatorFault,
    LaunchRefused,
    Misaligned,
    OutOfBounds,
    Trap,
    UndefinedBehaviour,
    UninitialisedRead,
)
from ._launcher import LIMITS, SCHEDULES, Emulator, with_limits

__all__ = [
    "LIMITS",
    "SCHEDULES",
    "AddressFault",
    "AsyncCopyFault",
    "BadSynchronisation",
    "DataRace",
    "Deadlock",
    "Emulator",
    "EmulatorFault",
    "EmulatorUnavailableError",
    "KernelBuildError",
    "KernelSpec",
    "LaunchRefused",
    "Misaligned",
    "OutOfBounds",
    "Trap",
    "UndefinedBehaviour",
    "UninitialisedRead",
    "emulated",
    "require",
    "run_sanitized",
    "why_unavailable",
]


@contextmanager
def emulated(*, limits=None, **options) -> Iterator[Emulator]:
    """Let public functions of gspn2_cupy run NumPy arrays through the CUDA sources.

    seed: of the schedule; a fault's text names it, and the same seed gives the same run.
    schedule: "thread" (in thread order), "reverse", "random", or "priority" (random priorities per warp).
    detect: check every memory access for races, uninitialised bytes, bounds and alignment.
    sanitize: use the build with AddressSanitizer and UndefinedBehaviorSanitizer instead; see `run_sanitized`.
    preempt: with `detect`, the chance that a thread is suspended before a memory access.
    async_copies: when the bytes of an asynchronous copy move: "wait", "issue", or "random".
    limits: a dict of `DeviceLimits` fields to replace, so that other plans are chosen.
    """
    device = Emulator(limits=with_limits(limits), **options)
    with _launch.use(device):
        yield device


def why_unavailable() -> str | None:
    """Return what is missing for the emulator to run here, or None."""
    try:
        toolchain()
    except EmulatorUnavailableError as error:
        return str(error)
    return None


def require() -> None:
    """Skip the test that runs, with the reason, if the emulator cannot run here; in CI, fail it."""
    import pytest

    reason = why_unavailable()
    if reason and os.environ.get("CI"):
        pytest.fail(reason)
    if reason:
        pytest.skip(reason)


def run_sanitized(arguments: list[str], **options) -> subprocess.CompletedProcess[str]:
    """Run Python on `arguments`, such as ["-m", "pytest", …], in a process where `emulated(sanitize=True)` works."""
    libasan = run([toolchain().compiler, "-print-file-name=libasan.so"]).strip()
    settings = (
        "detect_leaks=0:halt_on_error=0:allocator_may_return_null=1:handle_segv=0:handle_sigbus=0:handle_sigfpe=0"
    )
    paths = [str(HERE.parent), str(HERE.parents[1]), os.environ.get("PYTHONPATH", "")]
    environment = {
        **os.environ,
        "LD_PRELOAD": libasan,
        "ASAN_OPTIONS": settings,
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
    }
    return subprocess.run(
        [sys.executable, *arguments], env=environment, capture_output=True, text=True, check=False, **options
    )
