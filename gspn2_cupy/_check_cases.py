"""What ``python -m gspn2_cupy check`` computes, and how it is judged.

A case is one call and its backward, on random arrays, against the NumPy reference in float64. Which cases there are is
found by asking the planner: a case is kept if it launches a kernel that none before it launched; some are kept anyway.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

import gspn2_cupy
from gspn2_cupy import _device, _launch, reference
from gspn2_cupy._arrays import data_type
from gspn2_cupy._plan import ForwardScan, KernelSpec, Layout
from gspn2_cupy._plan_forward import line_scan_forward
from gspn2_cupy._warmup import array_without_memory
from gspn2_cupy.reference import ALL_DIRECTIONS, HORIZONTAL

Array = Any
Slices = tuple[int, int, int]  # (B, C, G)
Size = tuple[int, int]  # lines, and pixels in one of them

# Relative L2 error that the contract allows, against the reference in float64.
ALLOWED = {"float64": 1e-12, "float32": 5e-6, "float16": 6e-4, "bfloat16": 4e-3}
SMALLEST = 1e-3  # a result smaller than this, in the mean, is judged as if it were of this size: inputs are of size 1

LINE_SCAN, WEIGHTS, UNIT = "line scan", "weights from logits", "several directions"
PROJECTION = "projection"  # of the compact unit, whose other kernels are those of several directions
OUTPUTS = 10  # channels that a projection makes: more than a thread of its kernel does
DRIFT = 3.0  # added to the logits of one side
HIDDEN = {LINE_SCAN: "h", UNIT: "states"}  # the result that a backward may be given
MOST_ELEMENTS = 2_400_000  # of an image of a case: the reference needs about a second


@dataclass(frozen=True)
class Case:
    """A call and its backward."""

    operation: str
    dtype: str
    shape: tuple[int, int, int, int]  # (B, C, H, W)
    groups: int
    directions: tuple[str, ...]
    lam: bool = False
    u: bool = False
    merge: bool = False
    state: bool = False  # h0, and dh_last; for several directions: saved states
    normalize: str | None = None
    chunk: int | None = None
    saved: bool = False  # the backward is given the rounded hidden lines; otherwise it recomputes them

    def __str__(self) -> str:
        options = [name for name in ("lam", "u", "merge", "state", "saved") if getattr(self, name)]
        options += [f"{name}={value}" for name in ("normalize", "chunk") if (value := getattr(self, name)) is not None]
        where = ", ".join(self.directions)
        return f"{self.operation} {self.dtype} {self.shape} G={self.groups} {where} {' '.join(options)}".rstrip()


# --- arrays -----------------------------------------------------------------------------------------------------------


def make_arrays(case: Case, make: Callable[..., Array]) -> dict[str, Array]:
    """Make the arrays of a case by ``make(kind, shape)``: kinds are "signal", "state" and "weight"."""
    batch, channels, height, width = case.shape
    images, several = case.shape, case.operation == UNIT
    if several:
        images = (batch, len(case.directions), channels, height, width)  # type: ignore[assignment]
    if case.operation == PROJECTION:
        shapes = {"x": images, "weight": (OUTPUTS, channels), "bias": (OUTPUTS,), "dy": (batch, OUTPUTS, height, width)}
        return {name: make("signal", shape) for name, shape in shapes.items()}
    weight = (*images[: -3 if several else 1], case.groups, 3, height, width)
    if case.operation == WEIGHTS:
        return {"logits": make("signal", weight), "dweight": make("signal", weight)}
    arrays = {"x": make("signal", case.shape)}
    arrays["weight"] = make("weight" if case.normalize is None else "signal", weight)
    if case.lam:
        arrays["lam"] = make("signal", images)
    if several:
        if case.u:
            arrays["u"] = make("signal", images)
        if case.merge:
            arrays["merge"] = make("signal", (len(case.directions),))
        return arrays | {"dy": make("signal", case.shape)}
    arrays["dh"] = make("signal", case.shape)
    if case.state:
        line = (batch, channels, height if case.directions[0] in HORIZONTAL else width)
        arrays |= {"h0": make("state", line), "dh_last": make("state", line)}
    return arrays


def random_arrays(case: Case, seed: int) -> dict[str, Array]:
    """Return NumPy arrays of size 1; the weights' rows sum to 1, and weights that must not be used are 7.

    Weights carry nine tenths of a line one way across in the first half of the scan and the other way in the second, so
    that what is wrong far out in a halo comes in large enough to be seen. Even ones damp it to nothing in 32 lines.
    """
    rng = np.random.default_rng(seed)
    kind = data_type(case.dtype)
    assert kind is not None

    def rows(direction: str, shape: tuple[int, ...]) -> Array:
        logits = rng.uniform(-1, 1, shape)
        lines = np.moveaxis(logits, -1 if direction in HORIZONTAL else -2, 0)  # (lines, B, G, 3, pixels)
        half = len(lines) // 2
        lines[:half, :, :, 0] += DRIFT
        lines[half:, :, :, 2] += DRIFT
        weight = reference.normalize_weights(logits, direction=direction, method="softmax")
        return np.where(weight == 0, 7, weight)

    def make(which: str, shape: tuple[int, ...]) -> Array:
        if which == "weight" and case.operation == UNIT:
            parts = [rows(direction, (shape[0], *shape[2:])) for direction in case.directions]
            return np.stack(parts, axis=1).astype(kind.numpy_dtype)
        if which == "weight":
            return rows(case.directions[0], shape).astype(kind.numpy_dtype)
        values = rng.uniform(0.25, 1.5, shape) * rng.choice((-1.0, 1.0), shape)
        return values.astype((kind.state if which == "state" else kind).numpy_dtype)

    return make_arrays(case, make)


# --- running ----------------------------------------------------------------------------------------------------------


def _options(case: Case) -> dict[str, Any]:
    if case.operation == WEIGHTS:
        return {"direction": case.directions[0], "method": case.normalize}
    if case.operation == LINE_SCAN:
        return {"direction": case.directions[0], "chunk": case.chunk}
    return {"directions": case.directions, "normalize": case.normalize, "chunk": case.chunk}


def call(module: Any, case: Case, arrays: dict[str, Array], saved: Array | None = None) -> dict[str, Array]:
    """Run a case by the functions of a module and return its results by name.

    ``saved`` are the hidden lines that the backward of a case with saved ones is given, if not the forward's own.
    """
    if case.operation == PROJECTION:
        return _project(reference if module is reference else _device, **arrays)
    options = _options(case)
    if case.operation == WEIGHTS:
        logits, dweight = arrays["logits"], arrays["dweight"]
        return {
            "weight": module.normalize_weights(logits, **options),
            "dlogits": module.normalize_weights_backward(dweight, logits, **options),
        }
    inputs = {name: arrays[name] for name in ("x", "weight", "lam", "u", "merge", "h0") if name in arrays}
    if case.operation == LINE_SCAN:
        h, h_last = module.line_scan(**inputs, **options, return_last=True)
        results = {"h": h, "h_last": h_last}
        upstream = {name: arrays[name] for name in ("dh", "dh_last") if name in arrays}
        given = {"h": h if saved is None else saved} if case.saved else {}
        grads = module.line_scan_backward(**upstream, **inputs, **given, **options)
    else:
        y, states = module.propagate(**inputs, **options, return_states=True)
        results = {"y": y, "states": states}
        given = {"states": states if saved is None else saved} if case.saved else {}
        grads = module.propagate_backward(arrays["dy"], **inputs, **given, **options)
    gradients = zip(grads._fields, grads, strict=True)
    return results | {f"d{name}": gradient for name, gradient in gradients if gradient is not None}


def _project(backend: Any, x: Array, weight: Array, bias: Array, dy: Array) -> dict[str, Array]:
    """Run a projection, its transposed as part of a sum, and the gradients of its parameters."""
    dweight, dbias = backend.project_gradients(dy, x)
    dx = backend.project_back([(dy, weight)] * 3, before=x)
    return {"y": backend.project(x, weight, bias), "dx": dx, "dweight": dweight, "dbias": dbias}


def errors(
    case: Case, seed: int, to_device: Callable[[Array], Array], to_host: Callable[[Array], Array]
) -> dict[str, float]:
    """Run a case on a device and by the reference in float64: each result's error, as a share of what is allowed."""
    arrays = random_arrays(case, seed)
    exact = {name: array.astype(np.float64) for name, array in arrays.items()}
    on_device = {name: to_device(array) for name, array in arrays.items()}
    actual = call(gspn2_cupy, case, on_device)
    saved = to_host(actual[HIDDEN[case.operation]]).astype(np.float64) if case.saved else None
    truth = call(reference, case, exact, saved)
    shares = {}
    for name, result in actual.items():
        shares[name] = share_of_allowed(to_host(result), truth[name], _terms(name, exact, truth))
    return shares


def _terms(name: str, exact: dict[str, Array], truth: dict[str, Array]) -> Array | None:
    """Return what a result is made from, if it may be much smaller by chance and has the error of that; or None."""
    if name == "dmerge":  # a sum that cancels
        u = np.abs(exact["u"]) if "u" in exact else 1
        return (np.abs(exact["dy"])[:, None] * u * np.abs(truth["states"])).sum(axis=(0, 2, 3, 4))
    if name == "h_last":  # one line, made from all of them
        return _of_mean_size(truth[name].shape, truth["h"])
    if name == "dh0":  # likewise, of the lines of the gradient, of which dx is λ times
        return _of_mean_size(truth[name].shape, truth["dx"] / exact.get("lam", 1))
    return None


def _of_mean_size(shape: tuple[int, ...], array: Array) -> Array:
    return np.full(shape, math.sqrt(np.mean(np.square(array))) if array.size else 0)


def share_of_allowed(actual: Array, truth: Array, terms: Array | None = None) -> float:
    """Return a result's relative L2 error over the one allowed; infinite if it isn't finite or of another shape."""
    if actual.shape != truth.shape or not np.isfinite(actual.astype(np.float64)).all():
        return float("inf")
    size = max(_norm(truth if terms is None else terms), SMALLEST * math.sqrt(truth.size))
    return _norm(actual.astype(np.float64) - truth) / (ALLOWED[actual.dtype.name] * size) if truth.size else 0.0


def _norm(array: Array) -> float:
    return math.sqrt(float(np.sum(np.square(array))))


# --- the choice of cases ----------------------------------------------------------------------------------------------

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


@dataclass
class Planned:
    """A case and what it launches."""

    case: Case
    launches: dict[Launch, int] = field(repr=False)
    first: bool = True  # it is to run in any case, or launches a shape of a kernel that none before it did


TURNS = 7  # no divisor or multiple of the numbers of types and directions that cases come in
# definitions that the shape of a kernel does not depend on; STATE tells float64 apart, whose kernels are shaped anew
NOT_SHAPE = frozenset(
    ("SCALAR", "INPUT", "BEFORE", "WEIGHT", "RESULT", "HIDDEN", "SUM", "HAS_LAM", "REVERSED", "METHOD")
)


def choose(limits: Any, candidates: Iterable[tuple[bool, Case]]) -> list[Planned]:
    """Keep the cases that launch something new, and those marked: first one of each shape of a kernel, then the rest.

    The rest come in turns, so that of those that find no time no kernel, type or direction is left out altogether.
    """
    first, then = [], []
    known: set[Launch] = set()
    shapes: set[Any] = set()
    for marked, case in candidates:
        launched = launches(limits, case)
        of_case = {shape_of(*launch) for launch in launched}
        if marked or not shapes.issuperset(of_case):
            first.append(Planned(case, launched))
        elif not known.issuperset(launched):
            then.append(Planned(case, launched, first=False))
        known.update(launched)
        shapes |= of_case
    return first + [planned for start in range(TURNS) for planned in then[start::TURNS]]


def shape_of(spec: KernelSpec, cooperative: bool) -> Any:
    """Return a launch without what its kernel's shape does not depend on."""
    return spec.entry, tuple(each for each in spec.defines if each[0] not in NOT_SHAPE), cooperative


# (lines, pixels in a line), odd: no vectors of 16 bytes; the plain kernels take them, or those for small slices
ODD = ((1, 7), (7, 1), (33, 33), (7, 127), (3, 1025), (40, 301))


ACROSS: tuple[int, ...] = (
    8,
    16,
    32,
    40,
    56,
    60,
    64,
    66,
    68,
    72,
    96,
    98,
    104,
    128,
    129,
    136,
    164,
    200,
    232,
    256,
    262,
    264,
    296,
    328,
    384,
)
ACROSS += (
    390,
    392,
    512,
    518,
    520,
    584,
    632,
    646,
    648,
    768,
    774,
    776,
    902,
    904,
    1024,
    1030,
    1176,
    1296,
    1464,
    1536,
    2048,
)
ACROSS += (4096, 12000, 13905, 14002, 16384, 17009, 17010, 24001, 28000, 32768)


@dataclass(frozen=True)
class Sweep:
    """The images among which shapes of the tile kernel and of the one for small slices are looked for."""

    # (B, C, G)
    slices: tuple[Slices, ...] = ((1, 1, 1), (1, 2, 1), (1, 4, 1), (2, 12, 6), (1, 48, 1), (3, 24, 24))
    # images of 1, 2 and 4 channels for each multiprocessor
    shares: tuple[float, ...] = (0.06, 0.13, 0.23, 0.3, 0.4, 0.44, 0.5, 1.1, 3.2)
    lines: int = 24
    # pixels in a line: for each shape that was seen to be chosen on some GPU, a width at which it is
    across: tuple[int, ...] = ACROSS
    narrow: tuple[int, ...] = (2, 3, 5, 6, 33, 50, 64)  # and long
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
    sorts = [(LINE_SCAN, of_size) for of_size in by_size.values()]
    sorts += [(UNIT, by_size[size]) for size in by_size if size == 2]  # weights and h in the state's type
    known: set[Any] = set()
    for slices, size in sweep.sizes(limits.multiprocessors):
        if math.prod(slices[:2]) * math.prod(size) > MOST_ELEMENTS:
            continue
        for (operation, of_size), axis, lam in itertools.product(sorts, AXES, (True, False)):
            shapes = _shapes(limits, of_size[0], operation, slices, size, axis[0], lam)
            found = {(operation, of_size[0], lam, shape) for shape in shapes}
            if known.issuperset(found):
                continue
            known |= found
            number = next(count)
            turn = number % len(of_size)
            for dtype in (*of_size[turn:], *of_size[:turn]):
                if operation == UNIT:
                    image = _image(slices, size, axis[0])
                    yield False, Case(UNIT, dtype, image, slices[2], axis, lam=lam, normalize="sigmoid")
                else:
                    for direction in axis:
                        yield False, _scan(number, dtype, slices, size, direction, lam)


def _shapes(
    limits: Any, dtype: str, operation: str, slices: Slices, size: Size, direction: str, lam: bool
) -> Iterator[Any]:
    """Yield types and shape of what forward scans launch: alone, for a backward that recomputes h, or in a unit."""
    kind = data_type(dtype)
    assert kind is not None
    image = _image(slices, size, direction)
    x, state = (kind.c_name, kind.itemsize), (kind.state.c_name, kind.state.itemsize)
    for weight, h in dict.fromkeys([(state, state)] if operation == UNIT else [(x, x), (x, state)]):
        plan = line_scan_forward(limits, forward_scan(image, slices[2], direction, lam, x, weight, h))
        yield weight, h, shape_of(plan.spec, plan.cooperative)


def _image(slices: Slices, size: Size, direction: str) -> tuple[int, int, int, int]:
    lines, across = size
    return (*slices[:2], *((across, lines) if direction in HORIZONTAL else (lines, across)))


Type = tuple[str, int]  # its name in C, and its size


def forward_scan(
    shape: tuple[int, ...], groups: int, direction: str, lam: bool, x: Type, weight: Type, h: Type
) -> ForwardScan:
    """Describe a forward scan of arrays without gaps."""

    def layout(shape: tuple[int, ...], kind: Type) -> Layout:
        strides = tuple(math.prod(shape[axis + 1 :]) for axis in range(len(shape)))
        return Layout(shape, strides, *kind)

    image, taps = layout(shape, x), layout((shape[0], groups, 3, *shape[2:]), weight)
    return ForwardScan(direction, None, image, taps, image if lam else None, None, layout(shape, h), None)


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
