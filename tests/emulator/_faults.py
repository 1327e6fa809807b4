"""What the emulator raises, and how code addresses become file and line."""

from __future__ import annotations

import re
import shutil
import subprocess
from functools import cache
from pathlib import Path

from ._build import HERE


class EmulatorFault(RuntimeError):
    """A kernel did what a GPU kernel must not do. `kind` is the word by which the runtime knows it."""

    kind = "fault"


class DataRace(EmulatorFault):
    """Two threads touch the same memory, one of them writes, and no barrier orders them."""

    kind = "race"


class UninitialisedRead(EmulatorFault):
    """Memory is read that nobody has written."""

    kind = "uninitialised"


class OutOfBounds(EmulatorFault):
    """Memory is touched that does not belong to the launch, or is read-only."""

    kind = "bounds"


class Misaligned(EmulatorFault):
    """An access is not aligned to its size."""

    kind = "alignment"


class Deadlock(EmulatorFault):
    """No thread can go on."""

    kind = "deadlock"


class BadSynchronisation(EmulatorFault):
    """Threads meet in different barriers, or with masks that do not fit."""

    kind = "synchronisation"


class AsyncCopyFault(EmulatorFault):
    """An asynchronous copy is used before it is waited for, or never waited for."""

    kind = "copy"


class Trap(EmulatorFault):
    """The kernel called __trap."""

    kind = "trap"


class UndefinedBehaviour(EmulatorFault):
    """UndefinedBehaviorSanitizer's findings."""

    kind = "undefined"


class AddressFault(EmulatorFault):
    """AddressSanitizer's findings."""

    kind = "address"


class LaunchRefused(EmulatorFault):
    """The launch itself is wrong: argument types, or sizes that no GPU accepts."""

    kind = "launch"


FAULTS = {fault.kind: fault for fault in EmulatorFault.__subclasses__()}


def make_fault(report: str, library: Path, heading: str) -> EmulatorFault:
    """Return the exception of a runtime's report, "kind", newline, text."""
    kind, _, text = report.partition("\n")
    text = text.partition("Shadow bytes around")[0]  # of AddressSanitizer's reports, the part that says something
    text = re.sub(
        rf"(?:<code |\({re.escape(str(library))}\+0x)([0-9a-f]+)[>)]", lambda m: source_line(library, m[1]), text
    )
    return FAULTS[kind](f"{heading}\n{text}")


@cache
def source_line(library: Path, offset: str) -> str:
    """Return "file:line (function)" of the kernel's code at an offset, outside of headers that are not the kernel's."""
    tool = shutil.which("addr2line")
    if tool is None:
        return f"at {library}+0x{offset} (addr2line is missing)"
    command = [tool, "-i", "-f", "-C", "-e", str(library), offset]
    lines = subprocess.run(command, capture_output=True, text=True, check=False).stdout.splitlines()
    frames = list(zip(lines[::2], lines[1::2], strict=False))
    foreign = (str(HERE / "device"), "/cuda_fp16.h", "/cuda_bf16.h")
    own = [f for f in frames if not any(name in f[1] for name in foreign)] or frames
    if not own:
        return f"at {library}+0x{offset}"
    function, place = own[0]
    return f"at {place.split(' (')[0]} in {function.split('(')[0]}"
