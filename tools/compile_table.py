"""Compile the kernel specialisations that the planner chooses, without a GPU, and print what each one needs.

    python -m tools.compile_table [--architectures 80 90] [--kernels line_scan_forward …]

The specialisations are not listed anywhere. They are collected by making the calls themselves, on arrays without
memory, for many shapes and all options, on each GPU of GPUS, through a launcher that only writes down what it is asked
to launch. To them come all that the planner of forward scans can choose there: those of the kernel for small slices in
every way it can deal slices out, and those of the tile kernel for every width, number of slices and sharing of weights
at which it was seen to choose another. Each is compiled by NVRTC with the options that CuPy would pass. The command
fails if a kernel breaks a rule of `failures`. tests/test_compile.py holds a sample to them in every test run.

`--random` makes that many random calls besides, and says how many of their kernels were not in the list.
"""

from __future__ import annotations

import argparse
import itertools
import math
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

import numpy as np

import gspn2_cupy
from gspn2_cupy import ALL_DIRECTIONS, _arrays, _checks, _device, _launch, _plan_forward, _plan_slices, _warmup
from gspn2_cupy._plan import DeviceLimits, ForwardScan, KernelSpec, LaunchPlan, Layout
from gspn2_cupy.reference import HORIZONTAL
from tools import nvrtc

KIB = 1024
# A GPU of each architecture: what a device says of itself, and how many blocks a multiprocessor holds at most.
GPUS = {
    75: (DeviceLimits("T4", (7, 5), 40, 64 * KIB, 64 * KIB, 1024, 4 * KIB**2), 16),
    80: (DeviceLimits("A100", (8, 0), 108, 163 * KIB, 164 * KIB, 2048, 40 * KIB**2), 32),
    86: (DeviceLimits("RTX 3090", (8, 6), 82, 99 * KIB, 100 * KIB, 1536, 6 * KIB**2), 16),
    89: (DeviceLimits("RTX 4090", (8, 9), 128, 99 * KIB, 100 * KIB, 1536, 72 * KIB**2), 24),
    90: (DeviceLimits("H100", (9, 0), 132, 227 * KIB, 228 * KIB, 2048, 50 * KIB**2), 32),
    100: (DeviceLimits("B200", (10, 0), 148, 227 * KIB, 228 * KIB, 2048, 126 * KIB**2), 32),
    120: (DeviceLimits("RTX 5090", (12, 0), 170, 99 * KIB, 100 * KIB, 1536, 96 * KIB**2), 24),
}
# Multiprocessors of a smaller GPU of the same architecture, for which other shapes are chosen.
SMALLER = {75: 14, 80: 56, 86: 28, 89: 58, 90: 78, 100: 74, 120: 36}
WITHOUT_SPILLS = (80, 90)  # architectures on which nothing may leave the registers
SECONDS = 2.0  # a user waits for each compilation once

# --- which specialisations there are ----------------------------------------------------------------------------------

DTYPES = ("float32", "bfloat16", "float16", "float64")
# (B, C, G): one image or many, a matrix per channel, per group and for all channels.
SHARINGS = (
    (1, 1, 1),
    (1, 8, 1),
    (16, 8, 8),
    (4, 8, 4),
    (2, 6, 2),
    (32, 96, 1),
    (32, 96, 96),
    (4, 64, 16),
    (32, 1152, 1),
)
# Widths of a line and numbers of slices, times 1, 2 and 4 channels of a group: between them no plan was seen to change.
ACROSS = (*range(1, 34), *range(34, 130, 2), 65, 127, 129, *range(132, 260, 4), 131, 134, 255, 257)
ACROSS += (*range(264, 1100, 8), *range(261, 1100, 32), *range(262, 1100, 32), *range(268, 1100, 32))
ACROSS += (*range(1100, 2300, 24), 1537, 2047, 2050, 4096, 8192, 13905, 14002, 16384)
ACROSS += (17009, 17010, 24001, 32768, 33001)
SLICES = (*range(1, 9), *(int(1.3**n) for n in range(8, 33)))
SIDES = (1, 7, 14, 16, 28, 32, 56, 64, 96, 127, 128, 256, 512, 1024, 2048, 4096, 16384)
OBLONG = ((64, 512), (512, 64), (16, 4096), (4096, 16), (33, 140), (14400, 14400), (7200, 7200))
OBLONG += ((65, 136), (129, 136), (333, 336), (1001, 1008), (2047, 2048))  # an odd number of rows
# (B, C, H, W) and G on which all functions are called, with all options.
EVERYTHING = (((2, 4, 5, 6), 2), ((16, 8, 64, 64), 1), ((2, 8, 1024, 1024), 8))


@dataclass
class Specialisation:
    """A kernel with its definitions, and the launches that it is asked for on one GPU."""

    spec: KernelSpec
    threads: set[int] = field(default_factory=set)  # per block
    shared_bytes: int = 0  # the most that a launch takes dynamically
    cooperative_blocks: int = 0  # the largest grid whose blocks must all run at once


class Recorder:
    """A launcher that writes down what it is asked to launch."""

    def __init__(self, limits: DeviceLimits):
        self.limits = limits
        self.seen: dict[KernelSpec, Specialisation] = {}

    def compile(self, spec: KernelSpec) -> Any:
        """Return a kernel whose launches are written down."""

        def launch(grid: Any, block: Any, shared_bytes: int, args: Any, cooperative: bool = False) -> None:
            seen = self.seen.setdefault(spec, Specialisation(spec))
            seen.threads.add(block[0] * block[1] * block[2])
            seen.shared_bytes = max(seen.shared_bytes, shared_bytes)
            if cooperative:
                seen.cooperative_blocks = max(seen.cooperative_blocks, grid[0] * grid[1] * grid[2])

        return launch

    def empty(self, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
        """Return an array without memory."""
        return array(shape, dtype)

    zeros = empty


def array(shape: tuple[int, ...], dtype: Any, layout: str = "contiguous") -> np.ndarray:
    """Return an array without memory; its address is a multiple of 256 unless its layout is "misaligned"."""
    dtype = np.dtype(dtype)
    memory = np.zeros(512, np.uint8)
    start = -memory.ctypes.data % 256 + (dtype.itemsize if layout == "misaligned" else 0)
    steps = {"contiguous": 1, "misaligned": 1, "stepped": 3, "unaligned rows": 1}
    strides, step = [], steps[layout] * dtype.itemsize
    for axis in range(len(shape) - 1, -1, -1):
        strides.insert(0, step)
        step *= shape[axis]
        if axis == len(shape) - 1 and layout == "unaligned rows":
            step += dtype.itemsize
    one = memory[start : start + dtype.itemsize].view(dtype)
    return np.lib.stride_tricks.as_strided(one, shape, strides)


@cache
def specialisations(architecture: int, sides: tuple[int, ...] = SIDES) -> tuple[Specialisation, ...]:
    """Return what calls launch on the GPU of an architecture, over all data types, options and many shapes."""
    seen: dict[KernelSpec, Specialisation] = {}
    limits, _ = GPUS[architecture]
    for multiprocessors in (limits.multiprocessors, SMALLER[architecture]):
        recorder = Recorder(replace(limits, multiprocessors=multiprocessors))
        with _launch.use(recorder):
            for name in DTYPES:
                if multiprocessors == limits.multiprocessors:
                    _make_calls(kind_of(name), sides)
                else:
                    for call in _scans(kind_of(name), sides):
                        _scan(*call)
        seen = recorder.seen | seen  # of the larger GPU where both have it
    return _in_order(seen)


def all_specialisations(architecture: int) -> tuple[Specialisation, ...]:
    """Return what calls launch on the GPU of an architecture, and all that its forward scans can."""
    seen = {made.spec: made for made in specialisations(architecture)}
    limits, _ = GPUS[architecture]
    sizes = {"float": 4, "double": 8, "__half": 2, "__nv_bfloat16": 2}
    names = {
        tuple(dict(spec.defines)[name] for name in ("SCALAR", "WEIGHT", "RESULT"))
        for spec in seen
        if spec.entry == "line_scan_forward"
    }
    for types in sorted(names):
        x, weight, h = ((name, sizes[name]) for name in types)
        plans = itertools.chain(_all_of_slices(limits, x, weight, h), _all_of_tiles(limits, x, weight, h))
        for plan in plans:
            made = seen.setdefault(plan.spec, Specialisation(plan.spec))
            made.threads.add(plan.block[0])
            made.shared_bytes = max(made.shared_bytes, plan.shared_bytes)
            if plan.cooperative:
                made.cooperative_blocks = max(made.cooperative_blocks, plan.grid[0])
    return _in_order(seen)


Type = tuple[str, int]  # its name in C, and its size


def _forward_scan(
    shape: tuple[int, ...], groups: int, has_lam: bool, direction: str, x: Type, weight: Type, h: Type
) -> ForwardScan:
    """Describe a forward scan of arrays without gaps."""

    def layout(shape: tuple[int, ...], kind: Type) -> Layout:
        strides = tuple(math.prod(shape[axis + 1 :]) for axis in range(len(shape)))
        return Layout(shape, strides, *kind)

    image = layout(shape, x)
    taps = layout((shape[0], groups, 3, *shape[2:]), weight)
    return ForwardScan(direction, None, image, taps, image if has_lam else None, None, layout(shape, h), None)


def _all_of_slices(limits: DeviceLimits, x: Type, weight: Type, h: Type) -> Iterator[LaunchPlan]:
    """Plan the kernel for small slices in every way: lines in vectors and not, the last lane full and not."""
    for rows, missing, lines, groups in itertools.product((1, 2, 4), (0, 1), (16, 7), (1, 4)):
        across = 4 * rows - missing
        for has_lam, direction in itertools.product((True, False), ALL_DIRECTIONS):
            size = (across, lines) if direction in HORIZONTAL else (lines, across)
            scan = _forward_scan((1, 4, *size), groups, has_lam, direction, x, weight, h)
            for warps in _plan_forward.WARPS if groups == 1 else (1,):
                for carried in _plan_forward.carried_channels(scan, rows):
                    plan = _plan_slices.slices_plan(limits, _plan_slices.Slices(rows, carried, warps, 1), scan)
                    if plan is not None:
                        yield plan


def _all_of_tiles(limits: DeviceLimits, x: Type, weight: Type, h: Type) -> Iterator[LaunchPlan]:
    """Plan the tile kernel over its range: a plan depends on width, number of slices, sharing, λ and offsets."""
    if x[1] == 8:
        return
    for direction in ("left_to_right", "top_to_bottom"):
        along, vector = direction in HORIZONTAL, 16 // x[1]
        for across in ACROSS:
            if not along and across % vector:
                continue
            lengths = (
                (64, 1024, None) if across <= _plan_forward.LANES else (64, None)
            )  # None: more elements than an int counts
            for slices, per_group, has_lam, length in itertools.product(SLICES, (1, 2, 4), (True, False), lengths):
                lines = length or 2**31 // (slices * per_group * across) // 8 * 8 + 16
                size = (across, lines) if along else (lines, across)
                shape = (slices, per_group, *size)
                scan = _forward_scan(shape, 1, has_lam, direction, x, weight, h)
                plan = _plan_forward.line_scan_forward.__wrapped__(limits, scan)
                if plan.spec.entry == "line_scan_tiles":
                    yield plan
                    if along:  # backwards everything else is the same; upwards the kernel too
                        defines = tuple((n, "1" if n == "REVERSED" else value) for n, value in plan.spec.defines)
                        yield replace(plan, spec=replace(plan.spec, defines=defines))


def random_specialisations(architecture: int, count: int) -> tuple[Specialisation, ...]:
    """Return what random scans and units launch on the GPU of an architecture."""
    recorder, random = Recorder(GPUS[architecture][0]), np.random.default_rng(architecture)
    with _launch.use(recorder):
        for _ in range(count):
            kind, direction = kind_of(random.choice(DTYPES)), str(random.choice(ALL_DIRECTIONS))
            groups, per_group = (int(2 ** random.uniform(0, 6)) for _ in range(2))
            sides = [int(2 ** random.uniform(0, 15 if random.random() < 0.1 else 12)) for _ in range(2)]
            vectors = random.random() < 0.5  # rows of whole vectors of 16 bytes
            height, width = ((side + 7) // 8 * 8 for side in sides) if vectors else sides
            shape = (int(2 ** random.uniform(0, 5)), groups * per_group, height, width)
            lam, chunk = bool(random.random() < 0.5), random.choice([None, 1, 8, 24])
            if random.random() < 0.7:
                _scan(kind, shape, groups, lam, direction, chunk, "contiguous")
            else:
                _propagate(kind, shape, groups, lam, direction, random.choice([None, "sigmoid"]))
    return _in_order(recorder.seen)


def _in_order(seen: Mapping[KernelSpec, Specialisation]) -> tuple[Specialisation, ...]:
    return tuple(sorted(seen.values(), key=lambda made: (made.spec.source, str(made.spec))))


def kind_of(name: str) -> _arrays.DataType:
    """Return a data type by its name."""
    kind = _arrays.data_type(str(name))
    if kind is None:
        raise ValueError(f"no data type {name}")
    return kind


def _sizes(sides: tuple[int, ...]) -> tuple[tuple[int, int], ...]:
    return (*((side, side) for side in sides), *OBLONG)


def _make_calls(kind: _arrays.DataType, sides: tuple[int, ...]) -> None:
    """Make the calls whose kernels are looked at, in one data type."""
    for (shape, groups), normalize in itertools.product(EVERYTHING, (None, "sigmoid", "softmax")):
        for given, directions in itertools.product((True, False), (ALL_DIRECTIONS, ALL_DIRECTIONS[:1])):
            options = {"groups": groups, "directions": directions, "lam": given, "u": given, "chunk": None}
            options |= {"normalize": normalize, "backward": True, "progress": False}
            _warmup._make_calls(_checks.warmup(shape, kind.numpy_dtype, **options))
    for call in _scans(kind, sides):
        _scan(*call)
    if kind.itemsize == 2:  # in the others a scan inside a unit is a scan like any other
        for call in itertools.product(SHARINGS[1:3], _sizes(sides), (True, False), ALL_DIRECTIONS, (None, "sigmoid")):
            (batch, channels, groups), size, lam, direction, normalize = call
            _propagate(kind, (batch, channels, *size), groups, lam, direction, normalize)
    for channels, proxies in ((8, 2), (1152, 64)):
        _compact_unit(kind, channels, proxies)


def _scans(kind: _arrays.DataType, sides: tuple[int, ...]) -> Iterator[tuple]:
    for (batch, channels, groups), size, lam, direction in itertools.product(
        SHARINGS, _sizes(sides), (True, False), ALL_DIRECTIONS
    ):
        yield kind, (batch, channels, *size), groups, lam, direction, None, "contiguous"
    for size, layout, chunk, direction in itertools.product(
        ((16, 16), (128, 128), (33, 140), (1024, 1024)),
        ("misaligned", "stepped", "unaligned rows"),
        (None, 8, 5),
        ALL_DIRECTIONS,
    ):
        yield kind, (2, 8, *size), 2, True, direction, chunk, layout
    for direction in ALL_DIRECTIONS:  # more elements than an int counts
        yield kind, (16, 512, 1024, 1024), 1, True, direction, None, "contiguous"


def _scan(
    kind: _arrays.DataType,
    shape: tuple[int, ...],
    groups: int,
    has_lam: bool,
    direction: str,
    chunk: int | None,
    layout: str,
) -> None:
    """Call the line scan and its backward."""
    batch, _, height, width = shape
    x = array(shape, kind.numpy_dtype, layout)
    weight = array((batch, groups, 3, height, width), kind.numpy_dtype, layout)
    lam = x if has_lam else None
    _device.line_scan(x, weight, lam, direction=direction, chunk=chunk)
    _device.line_scan_backward(x, x, weight, lam, direction=direction, chunk=chunk)


def _propagate(
    kind: _arrays.DataType,
    shape: tuple[int, ...],
    groups: int,
    has_lam: bool,
    direction: str,
    normalize: str | None,
) -> None:
    """Call the unit in one direction: hidden lines, and weights from logits, are of the state's type."""
    batch, channels, height, width = shape
    x = array(shape, kind.numpy_dtype)
    weight = array((batch, 1, groups, 3, height, width), kind.numpy_dtype)
    lam = array((batch, 1, channels, height, width), kind.numpy_dtype) if has_lam else None
    _device.propagate(x, weight, lam, directions=(direction,), normalize=normalize)


def _compact_unit(kind: _arrays.DataType, channels: int, proxies: int) -> None:
    """Call the compact unit and its backward."""
    x = array((2, channels, 14, 14), kind.numpy_dtype)
    parameters = gspn2_cupy.compact_parameters(channels, proxies, dtype=kind.numpy_dtype)
    gspn2_cupy.compact_propagate(x, parameters)
    gspn2_cupy.compact_propagate_backward(x, x, parameters)


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


def compiled(architecture: int, made: Specialisation) -> Row:
    """Compile a specialisation."""
    text, options = _launch.compiler_input(made.spec)
    return Row(architecture, made, nvrtc.compile_kernel(text, options, made.spec.entry, architecture))


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


def failures(row: Row) -> list[str]:
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
    if row.compiled.seconds > SECONDS:
        found.append(f"takes {row.compiled.seconds:.1f} s to compile")
    return found


# --- the table --------------------------------------------------------------------------------------------------------


def sample(architecture: int, most: int) -> list[Specialisation]:
    """Return at most so many specialisations: those that are shortest of registers, by a rough count, and others."""
    made = list(specialisations(architecture))
    if len(made) <= most:
        return made
    tightest = sorted(range(len(made)), key=lambda k: -_pressure(made[k]))[: most // 2]
    others = [k for k in range(len(made)) if k not in tightest]
    wanted = most - len(tightest)
    return [made[k] for k in sorted([*tightest, *(others[k * len(others) // wanted] for k in range(wanted))])]


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
    parser.add_argument("--random", type=int, default=0, metavar="CALLS", help="and what so many random calls launch")
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    options = parser.parse_args()
    jobs = []
    with ProcessPoolExecutor(options.processes) as pool:
        every = list(pool.map(all_specialisations, options.architectures))
    for architecture, listed in zip(options.architectures, every, strict=True):
        specs = {made.spec for made in listed}
        others = [made for made in random_specialisations(architecture, options.random) if made.spec not in specs]
        print(f"sm_{architecture}: {len(listed)} listed, {len(others)} more from random calls", file=sys.stderr)
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
