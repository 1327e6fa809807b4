"""Which kernel specialisations the planner chooses on a GPU of each architecture, found without a GPU.

They are not written down anywhere. They are collected by making the calls themselves, on arrays without memory, for
many shapes and all options, through a launcher that only writes down what it is asked to launch. To them come all that
the planner of scans can choose: those of the kernel for small slices in every way it can deal slices out, and
those of the tile kernel for every width, number of slices and sharing of weights at which it was seen to choose
another.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any, NamedTuple

import numpy as np

import gspn2_cupy
from gspn2_cupy import (
    ALL_DIRECTIONS,
    _arrays,
    _checks,
    _device,
    _launch,
    _plan,
    _plan_scan,
    _plan_slices,
    _shapes_slices,
    _warmup,
)
from gspn2_cupy._check_choice import Type, candidates, forward_scan, run_without_memory
from gspn2_cupy._plan import DeviceLimits, KernelSpec, LaunchPlan, LineScan
from gspn2_cupy.reference import HORIZONTAL

KIB = 1024
# A GPU of each architecture: what a device says of itself, and how many blocks a multiprocessor holds at most.
GPUS = {
    75: (DeviceLimits("T4", (7, 5), 40, 64 * KIB, 64 * KIB, 1024, 4 * KIB**2, 320_000_000_000), 16),
    80: (DeviceLimits("A100", (8, 0), 108, 163 * KIB, 164 * KIB, 2048, 40 * KIB**2, 2_039_000_000_000), 32),
    86: (DeviceLimits("RTX 3090", (8, 6), 82, 99 * KIB, 100 * KIB, 1536, 6 * KIB**2, 936_000_000_000), 16),
    89: (DeviceLimits("RTX 4090", (8, 9), 128, 99 * KIB, 100 * KIB, 1536, 72 * KIB**2, 1_008_000_000_000), 24),
    90: (DeviceLimits("H100", (9, 0), 132, 227 * KIB, 228 * KIB, 2048, 50 * KIB**2, 3_352_000_000_000), 32),
    100: (DeviceLimits("B200", (10, 0), 148, 227 * KIB, 228 * KIB, 2048, 126 * KIB**2, 8_000_000_000_000), 32),
    120: (DeviceLimits("RTX 5090", (12, 0), 170, 99 * KIB, 100 * KIB, 1536, 96 * KIB**2, 1_792_000_000_000), 24),
}
# Multiprocessors of a smaller GPU of the same architecture, for which other shapes are chosen.
SMALLER = {75: 14, 80: 56, 86: 28, 89: 58, 90: 78, 100: 74, 120: 36}

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
ACROSS += (12000, 17009, 17010, 20000, 24000, 24001, 28000, 32768, 33001)
SLICES = (*range(1, 9), *(int(1.3**n) for n in range(8, 33)))
# The same for rows that are no whole vectors: fewer shapes are chosen there, each with copies of 2, 4 and 8 bytes.
BROKEN = (65, 66, 68, 97, 126, 129, 131, 132, 190, 253, 257, 260, 300, 333, 380, 449, 452, 513, 514, 516, 600, 649, 700)
BROKEN += (777, 900, 905, 1002, 1023, 1028, 1300, 1500, 2047, 2050, 3001, 4098, 8193, 14001, 16385)
BROKEN_LENGTHS, BROKEN_SLICES = (1001, 1002, 1004), (1, 3, 9, 17, 33, 66, 140, 500)
SIDES = (1, 7, 14, 16, 28, 32, 56, 64, 96, 127, 128, 256, 512, 1024, 2048, 4096, 16384)
OBLONG = ((64, 512), (512, 64), (16, 4096), (4096, 16), (33, 140), (14400, 14400), (7200, 7200))
OBLONG += ((65, 136), (129, 136), (333, 336), (1001, 1008), (2047, 2048))  # an odd number of rows
SIZES = (*((side, side) for side in SIDES), *OBLONG)
# (B, C, H, W) and G on which all functions are called, with all options.
EVERYTHING = (((2, 4, 5, 6), 2), ((1, 3, 5, 7), 1), ((16, 8, 64, 64), 1), ((2, 8, 1024, 1024), 8))


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
def specialisations(architecture: int) -> tuple[Specialisation, ...]:
    """Return what calls launch on the GPU of an architecture, over all data types, options and many shapes."""
    seen: dict[KernelSpec, Specialisation] = {}
    limits, _ = GPUS[architecture]
    for multiprocessors in (limits.multiprocessors, SMALLER[architecture]):
        recorder = Recorder(replace(limits, multiprocessors=multiprocessors))
        with _launch.use(recorder):
            for name in DTYPES:
                if multiprocessors == limits.multiprocessors:
                    _make_calls(kind_of(name))
                else:
                    for call in _scans(kind_of(name)):
                        _scan(*call)
        seen = recorder.seen | seen  # of the larger GPU where both have it
    return _in_order(seen)


def all_specialisations(architecture: int) -> tuple[Specialisation, ...]:
    """Return what calls launch on the GPU of an architecture, and all that its scans can."""
    seen = {made.spec: made for made in specialisations(architecture)}
    limits, _ = GPUS[architecture]
    for types in _types():
        plain = _plan.plain_line_scan(_scan_of((1, 4, 7, 9), 1, "left_to_right", not types.adjoint, types))
        for plan in itertools.chain(
            [] if types.merging else [plain], _all_of_slices(limits, types), _all_of_tiles(limits, types)
        ):
            made = seen.setdefault(plan.spec, Specialisation(plan.spec))
            made.threads.add(plan.block[0])
            made.shared_bytes = max(made.shared_bytes, plan.shared_bytes)
            if plan.cooperative:
                made.cooperative_blocks = max(made.cooperative_blocks, plan.grid[0])
    return _in_order(seen)


class Types(NamedTuple):
    """Types of the arrays of a scan, and whether it is an adjoint or merges, by u or not."""

    x: Type
    weight: Type
    h: Type
    adjoint: bool = False
    merging: bool = False
    u: bool = False


def _types() -> Iterator[Types]:
    """Yield those that a scan may have: weights and h may be of the state's type; g of an adjoint is, and dh may be."""
    for name in DTYPES:
        kind = kind_of(name)
        x, state = ((each.c_name, each.itemsize) for each in (kind, kind.state))
        pairs = dict.fromkeys(((x, x), (x, state), (state, x), (state, state)))
        for weight, h in pairs:
            yield Types(x, weight, h)
            yield from (Types(x, weight, h, merging=True, u=u) for u in (False, True))
        for dh, weight in pairs:
            yield Types(dh, weight, state, adjoint=True)


def _scan_of(shape: tuple[int, ...], groups: int, direction: str, has_lam: bool, types: Types) -> LineScan:
    scan = replace(forward_scan(shape, groups, direction, has_lam, *types[:3]), adjoint=types.adjoint)
    if types.merging:
        state = max(types.x, ("float", 4), key=lambda kind: kind[1])
        before = forward_scan(shape, groups, direction, False, state, types.weight, state).h
        scan = replace(scan, merging=True, u=scan.x if types.u else None, before=before)
    return scan


def _all_of_slices(limits: DeviceLimits, types: Types) -> Iterator[LaunchPlan]:
    """Plan the kernel for small slices in every way: one to four rows in a lane, one to eight lines read at once."""
    for across, lines, groups in itertools.product((8, 7, 20, 19, 40, 39, 100, 99), (16, 12, 14, 7), (1, 4)):
        for has_lam, direction in itertools.product((True, False), ALL_DIRECTIONS):
            size = (across, lines) if direction in HORIZONTAL else (lines, across)
            scan = _scan_of((1, 4, *size), groups, direction, has_lam, types)
            carried, rows = _shapes_slices.carried_channels(scan), _shapes_slices.rows_of_lane(scan)
            in_rounds = _shapes_slices.warps_in_rounds(scan) if carried == 1 else ()
            dealt = [(rows, carried, warps, 1) for warps in (_shapes_slices.WARPS if groups == 1 else (1,))]
            dealt += [(rows, carried, warps, 2) for warps in in_rounds]
            dealt += [(rows, 2, 4, 1), (rows, 2, 2, 2)] if _shapes_slices.pairs_along(scan) else []
            dealt += [(2, 2, 4, 2)] if carried == 2 and not scan.merging else []
            for *of_lane, warps, rounds in dealt:
                plan = _plan_slices.slices_plan(limits, _plan_slices.Slices(*of_lane, warps, 1, rounds), scan)
                if plan is not None:
                    yield plan


def _all_of_tiles(limits: DeviceLimits, types: Types) -> Iterator[LaunchPlan]:
    """Plan the tile kernel over its range: a plan depends on width, number of slices, sharing, λ and offsets."""
    if types.x[1] == 8:
        return
    for direction in ("left_to_right", "top_to_bottom"):
        along, vector = direction in HORIZONTAL, 16 // min(types.x[1], types.weight[1])
        sizes = []  # widths, lengths, slices
        for across in ACROSS:
            # None: as many elements as an int cannot count; narrow slices are small or long
            lengths = (64, 1024, None) if across <= 64 else (64, None)
            if along or across % vector == 0:
                sizes.append((across, lengths, SLICES))
        sizes += [(across, (*BROKEN_LENGTHS, None) if along else (64, None), BROKEN_SLICES) for across in BROKEN]
        for across, lengths, numbers in sizes:
            for slices, per_group, has_lam, length in itertools.product(numbers, (1, 2, 4), (True, False), lengths):
                lines = length or 2**31 // (slices * per_group * across) // 8 * 8 + 16
                size = (across, lines) if along else (lines, across)
                shape = (slices, per_group, *size)
                scan = _scan_of(shape, 1, direction, has_lam, types)
                plan = (_plan_scan.merging_line_scan if types.merging else _plan_scan.line_scan)(limits, scan)
                if plan is not None and plan.spec.entry == "line_scan_tiles":
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
                directions = tuple(random.permutation(ALL_DIRECTIONS)[: random.integers(1, 5)].tolist())
                normalize, more = random.choice([None, "sigmoid"]), bool(random.random() < 0.5)
                _propagate(kind, shape, groups, lam, directions, normalize, more)
    return _in_order(recorder.seen)


def checked_specialisations(architecture: int) -> tuple[Specialisation, ...]:
    """Return what the cases of `python -m gspn2_cupy check` launch on the GPU of an architecture."""
    recorder = Recorder(GPUS[architecture][0])
    for _, case in candidates(recorder.limits, DTYPES):
        run_without_memory(recorder, case)
    return _in_order(recorder.seen)


def _in_order(seen: Mapping[KernelSpec, Specialisation]) -> tuple[Specialisation, ...]:
    return tuple(sorted(seen.values(), key=lambda made: (made.spec.source, str(made.spec))))


def kind_of(name: str) -> _arrays.DataType:
    """Return a data type by its name."""
    kind = _arrays.data_type(str(name))
    if kind is None:
        raise ValueError(f"no data type {name}")
    return kind


def _make_calls(kind: _arrays.DataType) -> None:
    """Make the calls whose kernels are looked at, in one data type."""
    for (shape, groups), normalize in itertools.product(EVERYTHING, (None, "sigmoid", "softmax")):
        for given, directions in itertools.product((True, False), (ALL_DIRECTIONS, ALL_DIRECTIONS[:1])):
            options = {"groups": groups, "directions": directions, "lam": given, "u": given, "chunk": None}
            options |= {"normalize": normalize, "backward": True, "progress": False}
            _warmup._make_calls(_checks.warmup(shape, kind.numpy_dtype, **options))
    for call in _scans(kind):
        _scan(*call)
    if kind.itemsize == 2:  # in the others a scan inside a unit is a scan like any other
        for call in itertools.product(SHARINGS[1:3], SIZES, (True, False), ALL_DIRECTIONS, (None, "sigmoid")):
            (batch, channels, groups), size, lam, direction, normalize = call
            _propagate(kind, (batch, channels, *size), groups, lam, (direction,), normalize)
    for channels, proxies in ((8, 2), (1152, 64)):
        _compact_unit(kind, channels, proxies)


def _scans(kind: _arrays.DataType) -> Iterator[tuple]:
    for (batch, channels, groups), size, lam, direction in itertools.product(
        SHARINGS, SIZES, (True, False), ALL_DIRECTIONS
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
    directions: tuple[str, ...],
    normalize: str | None,
    more: bool = False,
) -> None:
    """Call the unit, maybe with u and merge: hidden lines, and weights from logits, are of the state's type."""
    (batch, channels, height, width), count = shape, len(directions)
    x = array(shape, kind.numpy_dtype)
    weight = array((batch, count, groups, 3, height, width), kind.numpy_dtype)
    image = array((batch, count, channels, height, width), kind.numpy_dtype)
    merge = array((count,), kind.numpy_dtype) if more else None
    lam, u = image if has_lam else None, image if more else None
    _device.propagate(x, weight, lam, u, merge=merge, directions=directions, normalize=normalize)


def _compact_unit(kind: _arrays.DataType, channels: int, proxies: int) -> None:
    """Call the compact unit and its backward."""
    x = array((2, channels, 14, 14), kind.numpy_dtype)
    parameters = gspn2_cupy.compact_parameters(channels, proxies, dtype=kind.numpy_dtype)
    gspn2_cupy.compact_propagate(x, parameters)
    gspn2_cupy.compact_propagate_backward(x, x, parameters)
