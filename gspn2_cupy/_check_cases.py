"""What ``python -m gspn2_cupy check`` computes, and how it is judged.

A case is one call and its backward, on random arrays, against the NumPy reference in float64. Which cases there are is
found by asking the planner: a case is kept if it launches a kernel that none before it launched.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

import gspn2_cupy
from gspn2_cupy import _device, _launch, reference
from gspn2_cupy._arrays import data_type
from gspn2_cupy._plan import KernelSpec
from gspn2_cupy._warmup import array_without_memory
from gspn2_cupy.reference import ALL_DIRECTIONS, HORIZONTAL

Array = Any

# Relative L2 error that the contract allows, against the reference in float64.
ALLOWED = {"float64": 1e-12, "float32": 5e-6, "float16": 6e-4, "bfloat16": 4e-3}
SMALLEST = 1e-3  # a result smaller than this, in the mean, is judged as if it were of this size: inputs are of size 1

LINE_SCAN, WEIGHTS, UNIT = "line scan", "weights from logits", "several directions"
PROJECTION = "projection"  # of the compact unit, whose other kernels are those of several directions
OUTPUTS = 10  # channels that a projection makes: more than a thread of its kernel does
DRIFT = 3.0  # added to the logits of one side
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

    def __str__(self) -> str:
        options = [name for name in ("lam", "u", "merge", "state") if getattr(self, name)]
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
    """Run a case by the functions of a module and return its results by name; ``saved``: what the backward is given."""
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
        given = {} if saved is None else {"h": saved}
        grads = module.line_scan_backward(**upstream, **inputs, **given, **options)
    else:
        y, states = module.propagate(**inputs, **options, return_states=True)
        results = {"y": y, "states": states}
        given = {} if saved is None else {"states": saved}
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
    saved = None
    if seed % 2:  # the backward is given the rounded hidden lines; otherwise it recomputes them
        hidden = {LINE_SCAN: "h", UNIT: "states"}.get(case.operation)
        if hidden is not None:
            saved = to_host(call(gspn2_cupy, case, on_device)[hidden])
    actual = call(gspn2_cupy, case, on_device, None if saved is None else to_device(saved))
    truth = call(reference, case, exact, None if saved is None else saved.astype(np.float64))
    shares = {}
    for name, result in actual.items():
        terms = None
        if name == "dmerge":  # a sum that cancels
            u = np.abs(exact["u"]) if case.u else 1
            terms = (np.abs(exact["dy"])[:, None] * u * np.abs(truth["states"])).sum(axis=(0, 2, 3, 4))
        shares[name] = share_of_allowed(to_host(result), truth[name], terms)
    return shares


def share_of_allowed(actual: Array, truth: Array, terms: Array | None = None) -> float:
    """Return a result's relative L2 error over the one allowed; infinite if it isn't finite or of another shape."""
    if actual.shape != truth.shape or not np.isfinite(actual.astype(np.float64)).all():
        return float("inf")
    size = max(_norm(truth if terms is None else terms), SMALLEST * math.sqrt(truth.size))
    return _norm(actual.astype(np.float64) - truth) / (ALLOWED[actual.dtype.name] * size) if truth.size else 0.0


def _norm(array: Array) -> float:
    return math.sqrt(float(np.sum(np.square(array))))


# --- the choice of cases ----------------------------------------------------------------------------------------------


class Recorder:
    """A launcher that launches nothing and remembers what it was asked for."""

    def __init__(self, limits: Any) -> None:
        self.limits = limits
        self.launches: dict[tuple[KernelSpec, int, bool], None] = {}

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
        self.recorder.launches[self.spec, shared_bytes, cooperative] = None

    def __call__(self, grid: Any, block: Any, shared_bytes: int, args: Any, cooperative: bool = False) -> None:
        self.prepare(shared_bytes, cooperative)


def launches(limits: Any, case: Case) -> list[tuple[KernelSpec, int, bool]]:
    """Return what a case launches: kernel, bytes of shared memory, and whether all blocks must be resident."""
    kind = data_type(case.dtype)
    assert kind is not None

    def make(which: str, shape: tuple[int, ...]) -> Array:
        return array_without_memory(shape, (kind.state if which == "state" else kind).numpy_dtype)

    recorder = Recorder(limits)
    arrays = make_arrays(case, make)
    with _launch.use(recorder):
        results = call(gspn2_cupy, case, arrays)
        saved = results.get("h", results.get("states"))
        if saved is not None:
            call(gspn2_cupy, case, arrays, saved)
    return list(recorder.launches)


@dataclass
class Planned:
    """A case and what it launches."""

    case: Case
    launches: list[tuple[KernelSpec, int, bool]] = field(repr=False)


def choose(limits: Any, candidates: Iterable[tuple[bool, Case]]) -> list[Planned]:
    """Keep the cases that launch something new, and those marked; first one of each geometry, then each type of it."""
    first, then = [], []
    specs: set[tuple[KernelSpec, int, bool]] = set()
    geometries: set[Any] = set()
    for marked, case in candidates:
        planned = Planned(case, launches(limits, case))
        shapes = {_geometry(*launch) for launch in planned.launches}
        new = not specs.issuperset(planned.launches)
        if marked or not geometries.issuperset(shapes):
            first.append(planned)
        elif new:
            then.append(planned)
        specs.update(planned.launches)
        geometries |= shapes
    return first + then


TYPES = frozenset(("SCALAR", "INPUT", "BEFORE", "WEIGHT", "RESULT", "HIDDEN", "SUM", "HAS_LAM", "REVERSED", "METHOD"))


def _geometry(spec: KernelSpec, shared_bytes: int, cooperative: bool) -> Any:
    """Return a launch without the data types and switches of its kernel."""
    return spec.entry, tuple(each for each in spec.defines if each[0] not in TYPES), cooperative


# (lines, pixels in a line), odd: what only the plain kernels take
ODD = ((1, 7), (7, 1), (33, 33), (7, 127), (3, 1025), (40, 301))
# pixels in a line, and (B, C, G): the tile kernels' shapes follow from the two
ACROSS = (8, 16, 32, 40, 56, 64, 96, 128, 200, 256, 384, 512, 768, 1024, 1536, 2048, 4096)
SLICES = ((1, 1, 1), (1, 4, 1), (2, 12, 6), (1, 48, 1), (3, 24, 24), (2, 80, 2), (4, 160, 1))
LINES = 24


def candidates(
    dtypes: Sequence[str],
    odd: Sequence[tuple[int, int]] = ODD,
    across: Sequence[int] = ACROSS,
    slices: Sequence[tuple[int, int, int]] = SLICES,
    lines: int = LINES,
) -> Iterator[tuple[bool, Case]]:
    """Yield cases, marked True if they are to run in any case; options and types rotate from one to the next."""
    for dtype in dtypes:
        yield True, Case(PROJECTION, dtype, (2, 70, 5, 15), 1, ())  # more inputs than its kernel stages at a time
    count = itertools.count()
    for size, direction, dtype in itertools.product(odd, ALL_DIRECTIONS, dtypes):
        yield (
            dtype == dtypes[0] or size in odd[2:4],
            _scan(next(count), dtype, (2, 4, 2), size, direction),
        )
    for each, wide, direction in itertools.product(slices, across, ALL_DIRECTIONS):
        if each[0] * each[1] * wide * lines > MOST_ELEMENTS:
            continue
        number = next(count)
        order = [dtypes[(number + shift) % len(dtypes)] for shift in range(len(dtypes))]
        for dtype, lam in itertools.product(order, (True, False)):
            yield False, _scan(number, dtype, each, (lines, wide), direction, lam)
    height, width = (33, 40) if len(odd) > 2 else (5, 8)
    for dtype, number in itertools.product(dtypes, range(6)):
        shape = (2, 4, height, width - 3 * (number % 2))
        method = (None, "sigmoid", "softmax")[number % 3]
        directions = (ALL_DIRECTIONS, ALL_DIRECTIONS[::-1], (ALL_DIRECTIONS[number % 4],))[number // 2]
        flags = {"lam": number != 1, "u": number in (0, 2, 3), "merge": number in (0, 1, 4)}
        chunk = (None, 7)[number // 3]
        yield True, Case(UNIT, dtype, shape, (1, 4, 2)[number % 3], directions, **flags, normalize=method, chunk=chunk)
        if number < 4:
            method = ("sigmoid", "softmax")[number % 2]
            yield True, Case(WEIGHTS, dtype, shape, 2, (ALL_DIRECTIONS[number],), normalize=method)


def _scan(
    number: int,
    dtype: str,
    channels: tuple[int, int, int],
    size: tuple[int, int],
    direction: str,
    lam: bool | None = None,
) -> Case:
    lines, across = size
    height, width = (across, lines) if direction in HORIZONTAL else (lines, across)
    return Case(
        LINE_SCAN,
        dtype,
        (*channels[:2], height, width),
        channels[2],
        (direction,),
        lam=number % 3 > 0 if lam is None else lam,
        state=number % 2 == 0,
        chunk=(None, 7, None, 16, None)[number % 5],
    )
