"""Which cases ``python -m gspn2_cupy check`` has.

They are found by asking the planner: a case is kept if it launches a kernel that none before it launched; some are kept
anyway.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

import gspn2_cupy
from gspn2_cupy import _launch
from gspn2_cupy._arrays import data_type
from gspn2_cupy._check_cases import LINE_SCAN, PROJECTION, UNIT, WEIGHTS, Case, call, make_arrays
from gspn2_cupy._plan import OPPOSITE, KernelSpec, Layout, LineScan
from gspn2_cupy._plan_scan import line_scan, merging_line_scan
from gspn2_cupy._warmup import array_without_memory
from gspn2_cupy.reference import ALL_DIRECTIONS, HORIZONTAL

Array = Any
Slices = tuple[int, int, int]  # (B, C, G)
Size = tuple[int, int]  # lines, and pixels in one of them
MOST_ELEMENTS = 2_400_000  # of an image of a case: the reference needs about a second

# --- what a case launches ---------------------------------------------------------------------------------------------

Launch = tuple[KernelSpec, bool]  # a kernel, and whether all its blocks must be resident


class Recorder:
    """A launcher that launches nothing and remembers what it was asked for."""

    def __init__(self, limits: Any) -> None:
        self.limits = limits
        self.launches: dict[Launch, int] = {}  # with the most bytes of shared memory asked for

    def compile(self, spec: KernelSpec) -> Any:
        """Return what stands for the kernel."""
        return _Recorded(self, spec)

    def empty(self, shape: tuple[int, ...], dtype: Any) -> Array:
        """Return an array that nothing will be written to."""
        return array_without_memory(shape, dtype)

    zeros = empty


@dataclass
class _Recorded:
    recorder: Recorder
    spec: KernelSpec

    def prepare(self, shared_bytes: int, cooperative: bool = False) -> None:
        launches, launch = self.recorder.launches, (self.spec, cooperative)
        launches[launch] = max(shared_bytes, launches.get(launch, 0))

    def __call__(self, grid: Any, block: Any, shared_bytes: int, args: Any, cooperative: bool = False) -> None:
        self.prepare(shared_bytes, cooperative)


def launches(limits: Any, case: Case) -> dict[Launch, int]:
    """Return what a case launches, with the bytes of shared memory."""
    recorder = Recorder(limits)
    run_without_memory(recorder, case)
    return recorder.launches


def run_without_memory(launcher: Any, case: Case) -> None:
    """Run a case on arrays without memory, by a launcher that launches nothing."""
    kind = data_type(case.dtype)
    assert kind is not None

    def make(which: str, shape: tuple[int, ...]) -> Array:
        return array_without_memory(shape, (kind.state if which == "state" else kind).numpy_dtype)

    with _launch.use(launcher):
        call(gspn2_cupy, case, make_arrays(case, make))


# --- the choice -------------------------------------------------------------------------------------------------------


@dataclass
class Planned:
    """A case and what it launches."""

    case: Case
    launches: dict[Launch, int] = field(repr=False)
    first: bool = True  # it is to run in any case, or launches a shape of a kernel that none before it did


TURNS = 7  # no divisor or multiple of the numbers of types and directions that cases come in
# definitions that the shape of a kernel does not depend on; STATE tells float64 apart, whose kernels are shaped anew
NOT_SHAPE = frozenset(
    (
        "SCALAR",
        "INPUT",
        "BEFORE",
        "WEIGHT",
        "RESULT",
        "HIDDEN",
        "SUM",
        "HAS_LAM",
        "REVERSED",
        "METHOD",
        "PIECE",
        "RAGGED",
    )
)


def choose(limits: Any, candidates: Iterable[tuple[bool, Case]]) -> Iterator[Planned]:
    """Keep the cases that launch something new, and those marked: first one of each shape of a kernel, then the rest.

    The first come as they are found. The rest come in turns, so that of those that find no time no kernel, type or
    direction is left out altogether.
    """
    then = []
    known: set[Launch] = set()
    shapes: set[Any] = set()
    for marked, case in candidates:
        launched = launches(limits, case)
        of_case = {shape_of(*launch) for launch in launched}
        if marked or not shapes.issuperset(of_case):
            yield Planned(case, launched)
        elif not known.issuperset(launched):
            then.append(Planned(case, launched, first=False))
        known.update(launched)
        shapes |= of_case
    for start in range(TURNS):
        yield from then[start::TURNS]


# what tells the shapes of scans that merge apart, which are those of other scans but for what leaves at their end
MERGING_SHAPE = frozenset(("STATE", "ALONG", "ADJOINT", "MERGING", "HAS_U", "ROWS", "OUTER", "CHANNELS", "SHARED"))


def shape_of(spec: KernelSpec, cooperative: bool) -> Any:
    """Return a launch without what its kernel's shape does not depend on."""
    merging = ("MERGING", "1") in spec.defines
    kept = (each for each in spec.defines if (each[0] in MERGING_SHAPE if merging else each[0] not in NOT_SHAPE))
    return spec.entry, tuple(kept), cooperative


# --- the candidates ---------------------------------------------------------------------------------------------------

# (lines, pixels in a line): no rows of whole vectors of 16 bytes, so that less is copied at a time
ODD = ((1, 7), (7, 1), (33, 33), (7, 127), (3, 1025), (40, 301), (100, 300), (50, 1102), (21, 2051))

# pixels in a line: for each shape that was seen to be chosen on some GPU, a width at which it is
WIDTHS = """
    8 16 32 40 56 60 64 66 68 72 96 98 104 128 129 136 164 200 232 256 262 264 296 328 384 390 392 512 518 520 584
    632 646 648 768 774 776 902 904 1024 1030 1176 1296 1464 1536 2048 4096 12000 13905 14002 16384 17009 17010
    24001 28000 32768
"""
ACROSS = sorted(map(int, WIDTHS.split()), key=lambda width: width % 8 > 0)  # first those of whole vectors in all types


@dataclass(frozen=True)
class Sweep:
    """The images among which shapes of the tile kernel and of the one for small slices are looked for."""

    # (B, C, G)
    slices: tuple[Slices, ...] = ((1, 1, 1), (1, 2, 1), (1, 4, 1), (2, 12, 6), (1, 48, 1), (3, 24, 24))
    # images of 1, 2 and 4 channels for each multiprocessor
    shares: tuple[float, ...] = (0.06, 0.13, 0.23, 0.3, 0.4, 0.44, 0.5, 1.1, 3.2)
    lines: int = 24
    broken: tuple[int, ...] = (1, 2)
    across: tuple[int, ...] = tuple(ACROSS)
    narrow: tuple[int, ...] = (2, 3, 5, 6, 33, 50, 64)  # and long
    narrow_broken: tuple[int, ...] = (41, 70, 91, 122)  # likewise, of broken vectors: too long for whole slices
    many_lines: int = 1200
    small: tuple[int, ...] = (7, 12, 19, 20, 39, 40, 65, 68)  # and few lines, one to eight of which are read at once
    few_lines: tuple[int, ...] = (7, 6, 12, 8)
    in_rounds: tuple[int, ...] = (16, 48)  # slices for each multiprocessor

    def sizes(self, multiprocessors: int) -> Iterator[tuple[Slices, Size]]:
        """Yield (B, C, G) and (lines, pixels in a line)."""
        few = tuple((1, channels, 1) for channels in (1, 2, 4))
        numbers = [max(1, int(share * multiprocessors)) for share in self.shares]
        shared = tuple((number, channels, 1) for number in numbers for channels in (1, 2, 4))
        small = [2, *(count * multiprocessors for count in self.in_rounds)]
        several = tuple((1, number, groups) for number in small for groups in (1, number))
        yield from itertools.product((*self.slices, *shared), itertools.product((self.lines,), self.across))
        for broken in self.broken:  # rows of no whole vectors, for which other shapes are chosen
            across = [size - broken for size in self.across if size > 64]
            yield from itertools.product((*self.slices, *shared), itertools.product((self.lines + broken,), across))
            long = itertools.product((self.many_lines + broken,), self.narrow_broken)
            yield from itertools.product((*self.slices, *shared), long)
        yield from itertools.product(few, itertools.product((self.many_lines,), self.narrow))
        yield from itertools.product((few[0], *several), itertools.product(self.few_lines, self.small))


def candidates(
    limits: Any,
    dtypes: Sequence[str],
    odd: Sequence[Size] = ODD,
    unit: Size = (33, 40),
    sweep: Sweep = Sweep(),
) -> Iterator[tuple[bool, Case]]:
    """Yield cases, marked True if they are to run in any case; options and types rotate from one to the next."""
    for dtype in dtypes:
        yield True, Case(PROJECTION, dtype, (2, 70, 5, 15), 1, ())  # more inputs than its kernel stages at a time
    count = itertools.count()
    for size, direction, dtype in itertools.product(odd, ALL_DIRECTIONS, dtypes):
        case = _scan(next(count), dtype, (2, 4, 2), size, direction)
        yield dtype == dtypes[0], case
        yield False, replace(case, saved=True)
    for dtype in dtypes:
        for number, case in enumerate(_units(dtype, *unit)):
            yield True, replace(case, saved=number % 2 == 0)
            yield False, replace(case, saved=number % 2 == 1)
        for number, direction in enumerate(ALL_DIRECTIONS):
            method = ("sigmoid", "softmax")[number % 2]
            yield True, Case(WEIGHTS, dtype, (2, 4, *unit), 2, (direction,), normalize=method)
    yield from _swept(limits, dtypes, sweep, count)


def _units(dtype: str, height: int, width: int) -> Iterator[Case]:
    """Yield calls of several directions, in which every option occurs and is left out; an odd number of pixels, too."""
    even, odd = (2, 4, height, width), (1, 3, height, width - 3)
    ahead, back = ALL_DIRECTIONS, ALL_DIRECTIONS[::-1]
    yield Case(UNIT, dtype, even, 1, ahead, lam=True, u=True, merge=True)
    yield Case(UNIT, dtype, odd, 3, ahead, merge=True, normalize="sigmoid")
    yield Case(UNIT, dtype, even, 2, back, lam=True, u=True, normalize="softmax")
    yield Case(UNIT, dtype, odd, 1, back, lam=True, u=True, chunk=7)
    yield Case(UNIT, dtype, even, 4, ahead[:1], lam=True, merge=True, normalize="sigmoid", chunk=7)
    yield Case(UNIT, dtype, odd, 1, ahead[1:2], lam=True, normalize="softmax", chunk=7)


def _swept(limits: Any, dtypes: Sequence[str], sweep: Sweep, count: Iterator[int]) -> Iterator[tuple[bool, Case]]:
    """Yield cases of all types and directions for each image in which the planner chooses a shape of a kernel anew."""
    by_size: dict[int, list[str]] = {}
    for dtype in dtypes:
        by_size.setdefault(data_type(dtype).itemsize, []).append(dtype)  # type: ignore[union-attr]
    known: set[Any] = set()

    def new(case: Case) -> bool:
        found = {
            (case.operation, case.u, case.merge, case.normalize, case.lam, shape) for shape in _shapes(limits, case)
        }
        before = len(known)
        known.update(found)
        return len(known) > before

    for slices, size in sweep.sizes(limits.multiprocessors):
        if math.prod(slices[:2]) * math.prod(size) > MOST_ELEMENTS:
            continue
        for axis, lam in itertools.product(AXES, (True, False)):
            scan = Case(LINE_SCAN, dtypes[0], _image(slices, size, axis[0]), slices[2], axis, lam=lam)
            changed = [itemsize for itemsize, of_size in by_size.items() if new(replace(scan, dtype=of_size[0]))]
            for itemsize, of_size in by_size.items() if changed else ():
                number = next(count)
                turn = number % len(of_size)
                in_turn = (*of_size[turn:], *of_size[:turn])
                if itemsize in changed:
                    for dtype, direction in itertools.product(in_turn, axis):
                        yield False, _scan(number, dtype, slices, size, direction, lam)
                # the shapes of units, in which types are mixed, change where those of one of them do
                for options in UNITS[itemsize]:
                    unit = replace(scan, operation=UNIT, dtype=of_size[0], **options)
                    if new(unit):
                        for dtype in in_turn:
                            yield False, replace(unit, dtype=dtype)


# Options of units whose scans are shaped anew. Weights from logits are of the state's type, another one in 16 bits.
MERGES: tuple[dict[str, Any], ...] = ({"merge": True}, {"u": True})
UNITS = {2: (*MERGES, {"normalize": "sigmoid"}, {"normalize": "sigmoid", "u": True}), 4: MERGES, 8: MERGES}


def _shapes(limits: Any, case: Case) -> Iterator[Any]:
    """Yield types and shape of what a case's scans launch that those of fewer options don't.

    In a backward that recomputes h, and in a unit where it is not merged, it is of the state's type. So are weights
    from logits and, with merge, dh; of a scan alone, too, here: where its shape changes, units are looked at.
    """
    kind = data_type(case.dtype)
    assert kind is not None
    x, state = (kind.c_name, kind.itemsize), (kind.state.c_name, kind.state.itemsize)
    weight, gradients = state if case.normalize else x, [state if case.merge else x]
    described = (case.shape, case.groups, case.directions[0], case.lam, x, weight)
    scans = []
    if case.operation == UNIT:
        scans.append(merging_scan(*described, x, case.u, state))
        if case.normalize and not case.u:
            scans.append(forward_scan(*described, state))
    else:
        gradients = list(dict.fromkeys((x, state)))
        scans += [forward_scan(*described, h) for h in gradients]
    if case.lam:  # of which an adjoint knows nothing
        direction = OPPOSITE[case.directions[0]]
        scans += [adjoint_scan(*described[:2], direction, dh, weight, state, case.u) for dh in gradients]
    for scan in scans:
        plan = (merging_line_scan if scan.merging else line_scan)(limits, scan)
        if plan is not None:
            pieces = [each for each in plan.spec.defines if each[0] in ("PIECE", "RAGGED")]
            yield scan.weight.c_name, scan.h.c_name, shape_of(plan.spec, plan.cooperative), *pieces


def _image(slices: Slices, size: Size, direction: str) -> tuple[int, int, int, int]:
    lines, across = size
    return (*slices[:2], *((across, lines) if direction in HORIZONTAL else (lines, across)))


Type = tuple[str, int]  # its name in C, and its size


def forward_scan(
    shape: tuple[int, ...], groups: int, direction: str, lam: bool, x: Type, weight: Type, h: Type
) -> LineScan:
    """Describe a forward scan of arrays without gaps."""
    image, taps = _layout(shape, x), _layout((shape[0], groups, 3, *shape[2:]), weight)
    return LineScan(direction, None, image, taps, image if lam else None, None, _layout(shape, h), None)


def merging_scan(
    shape: tuple[int, ...],
    groups: int,
    direction: str,
    lam: bool,
    x: Type,
    weight: Type,
    total: Type,
    u: bool,
    state: Type,
) -> LineScan:
    """Describe a scan of arrays without gaps that adds to a sum."""
    scan = forward_scan(shape, groups, direction, lam, x, weight, total)
    return replace(scan, merging=True, u=scan.x if u else None, before=_layout(shape, state))


def adjoint_scan(
    shape: tuple[int, ...], groups: int, direction: str, dh: Type, weight: Type, g: Type, u: bool = False
) -> LineScan:
    """Describe an adjoint of arrays without gaps, which visits lines in a direction."""
    return replace(forward_scan(shape, groups, direction, u, dh, weight, g), adjoint=True)


@lru_cache(64)
def _layout(shape: tuple[int, ...], kind: Type) -> Layout:
    strides = tuple(math.prod(shape[axis + 1 :]) for axis in range(len(shape)))
    return Layout(shape, strides, *kind)


AXES = (ALL_DIRECTIONS[:2], ALL_DIRECTIONS[2:])


def _scan(
    number: int,
    dtype: str,
    slices: Slices,
    size: Size,
    direction: str,
    lam: bool | None = None,
) -> Case:
    return Case(
        LINE_SCAN,
        dtype,
        _image(slices, size, direction),
        slices[2],
        (direction,),
        lam=number % 3 > 0 if lam is None else lam,
        state=number % 2 == 0,
        chunk=(None, 7, None, 16, None)[number % 5],
    )
