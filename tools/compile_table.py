"""Compile the kernel specialisations that the planner chooses, without a GPU, and print what each one needs.

    python -m tools.compile_table [--architectures 80 90] [--kernels line_scan_forward …]

Which there are tells tools/specialisations.py. Each is compiled by NVRTC with the options that CuPy would pass. The
command fails if a kernel breaks a rule of `failures`. tests/test_compile.py holds a sample to them in every test run.

`--random` makes that many random calls besides, and those of `python -m gspn2_cupy check`, and says how many of their
kernels were not in the list.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass

from gspn2_cupy import _launch
from tools import nvrtc
from tools.specialisations import (
    GPUS,
    KIB,
    Specialisation,
    all_specialisations,
    checked_specialisations,
    random_specialisations,
    specialisations,
)

WITHOUT_SPILLS = (80, 90)  # architectures on which nothing may leave the registers
SECONDS = 2.0  # a user waits for each compilation once

# --- what each one needs ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Row:
    """A compiled specialisation."""

    architecture: int
    made: Specialisation
    compiled: nvrtc.Compiled

    @property
    def shared_bytes(self) -> int:
        """Static and dynamic shared memory of a block."""
        return self.compiled.static_shared_bytes + self.made.shared_bytes

    def cells(self) -> tuple[str, ...]:
        """Return the row as text."""
        c = self.compiled
        numbers = (c.registers, c.spilled_bytes, c.local_bytes, self.shared_bytes, c.instructions)
        return (f"sm_{self.architecture}", *map(str, numbers), f"{c.seconds:.2f}", str(self.made.spec))


HEADINGS = ("GPU", "registers", "spilled B", "local B", "shared B", "instructions", "seconds", "kernel")


def compiled(architecture: int, made: Specialisation, seconds: float = SECONDS) -> Row:
    """Compile a specialisation; where that seems to take too long, again: other programs may have made it slow."""
    text, options = _launch.compiler_input(made.spec)
    for _ in range(3):
        result = nvrtc.compile_kernel(text, options, made.spec.entry, architecture)
        if result.seconds <= seconds:
            break
    return Row(architecture, made, result)


def resident_blocks(row: Row) -> int:
    """Return how many blocks a multiprocessor holds at once, as CUDA's occupancy calculator counts them."""
    limits, most = GPUS[row.architecture]
    warps = -(-max(row.made.threads) // 32)
    registers_per_warp = -(-row.compiled.registers * 32 // 256) * 256
    warps_by_registers = 65536 // 4 // registers_per_warp * 4  # four partitions with a quarter of the registers each
    reserved = 0 if row.architecture < 80 else KIB  # of each block's shared memory, for CUDA itself
    by_shared = limits.shared_bytes_per_multiprocessor // max(row.shared_bytes + reserved, 1)
    by_threads = limits.max_threads_per_multiprocessor // (32 * warps)
    return min(most, by_shared, warps_by_registers // warps, by_threads)


def failures(row: Row, seconds: float = SECONDS) -> list[str]:
    """Return the rules that a compiled specialisation breaks."""
    limits, _ = GPUS[row.architecture]
    needed = int(dict(row.made.spec.defines).get("BLOCKS", 1))  # blocks that the plan wants on a multiprocessor at once
    found = []
    if row.architecture in WITHOUT_SPILLS and row.compiled.spilled_bytes:
        found.append(f"spills {row.compiled.spilled_bytes} bytes")
    if row.architecture in WITHOUT_SPILLS and row.compiled.local_bytes:
        found.append(f"uses {row.compiled.local_bytes} bytes of local memory per thread")
    if row.shared_bytes > limits.shared_bytes_per_block:
        found.append(
            f"takes {row.shared_bytes} bytes of shared memory; a block may have {limits.shared_bytes_per_block}"
        )
    resident = resident_blocks(row)
    if resident < needed:
        found.append(f"fits {resident} times on a multiprocessor; the plan assumes {needed}")
    if row.made.cooperative_blocks > resident * limits.multiprocessors:
        fit = resident * limits.multiprocessors
        found.append(f"launches {row.made.cooperative_blocks} blocks that must all run at once, of which {fit} fit")
    if row.compiled.seconds > seconds:
        found.append(f"takes {row.compiled.seconds:.1f} s to compile")
    return found


# --- the table --------------------------------------------------------------------------------------------------------


def sample(architecture: int, most: int) -> list[Specialisation]:
    """Return so many specialisations: one of each kernel, those shortest of registers (a rough count), and others."""
    made = list(specialisations(architecture))
    if len(made) <= most:
        return made
    chosen = set({each.spec.entry: k for k, each in enumerate(made)}.values())
    tightest = sorted(set(range(len(made))) - chosen, key=lambda k: -_pressure(made[k]))
    chosen.update(tightest[: max(0, most - len(chosen)) // 2])
    others, wanted = sorted(set(range(len(made))) - chosen), max(0, most - len(chosen))
    chosen.update(others[k * len(others) // wanted] for k in range(wanted))
    return [made[k] for k in sorted(chosen)]


def _pressure(made: Specialisation) -> float:
    """Return what a thread keeps in registers, over what it may have."""
    defines = dict(made.spec.defines)
    allowed = 65536 / (max(made.threads) * int(defines.get("BLOCKS", 1)))
    if made.spec.entry != "line_scan_tiles":
        return 48 / allowed
    sizes = {name: 4 if defines[name] == "float" else 2 for name in ("SCALAR", "WEIGHT", "RESULT")}
    lines = int(defines["ROWS"]) * int(defines["GROUP"])
    read = lines * (3 * sizes["WEIGHT"] + (1 + int(defines["HAS_LAM"])) * sizes["SCALAR"]) / 4
    written = lines * sizes["RESULT"] / 4
    addresses = 16 if defines["OFFSET"] == "long long" else 0
    return (48 + read * (1 + int(defines["AHEAD"])) + written + addresses) / allowed


def table(rows: Sequence[Row]) -> str:
    """Return rows as text in columns."""
    lines = [HEADINGS, *(row.cells() for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(
            [line[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(line[1:-1], widths[1:-1], strict=True)), line[-1]]
        )
        for line in lines
    )


def main() -> int:
    """Print the table and what is wrong in it; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--architectures", type=int, nargs="*", choices=GPUS, default=list(GPUS))
    parser.add_argument("--kernels", nargs="*", help="only these, by name")
    parser.add_argument(
        "--random",
        type=int,
        default=0,
        metavar="CALLS",
        help="and what so many random calls, and those of check, launch",
    )
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    options = parser.parse_args()
    jobs = []
    with ProcessPoolExecutor(options.processes) as pool:
        every = list(pool.map(all_specialisations, options.architectures))
    for architecture, listed in zip(options.architectures, every, strict=True):
        specs = {made.spec for made in listed}
        others = []
        if options.random:
            called = (*random_specialisations(architecture, options.random), *checked_specialisations(architecture))
            others = list({made.spec: made for made in called if made.spec not in specs}.values())
        print(f"sm_{architecture}: {len(listed)} listed, {len(others)} more from other calls", file=sys.stderr)
        found = [*listed, *others]
        jobs += [(architecture, m) for m in found if not options.kernels or m.spec.entry in options.kernels]
    if not jobs:
        parser.error(f"no kernel of these is launched: {' '.join(options.kernels)}")
    print(f"{len(jobs)} specialisations, NVRTC {nvrtc.version()}", file=sys.stderr)
    with ProcessPoolExecutor(options.processes) as pool:
        rows = list(pool.map(compiled, *zip(*jobs, strict=True), chunksize=4))
    print(table(rows))
    wrong = [f"sm_{row.architecture} {row.made.spec} {why}" for row in rows for why in failures(row)]
    warned = [row for row in rows if row.compiled.warnings]
    seconds = sum(row.compiled.seconds for row in rows)
    print(f"\n{len(rows)} kernels, {seconds:.0f} s of compiling, {len(warned)} with warnings, {len(wrong)} failures")
    if warned:
        print(f"{warned[0].made.spec} is compiled with warnings:\n{warned[0].compiled.warnings}")
    print("\n".join(wrong))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
