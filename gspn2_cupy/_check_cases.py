"""What ``python -m gspn2_cupy check`` computes, and how it is judged.

A case is one call and its backward, on random arrays, against the NumPy reference in float64. Which there are:
:mod:`gspn2_cupy._check_choice`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

import gspn2_cupy
from gspn2_cupy import _device, reference
from gspn2_cupy._arrays import data_type
from gspn2_cupy.reference import HORIZONTAL

Array = Any

# Relative L2 error that the contract allows, against the reference in float64.
ALLOWED = {"float64": 1e-12, "float32": 5e-6, "float16": 6e-4, "bfloat16": 4e-3}
SMALLEST = 1e-3  # a result smaller than this, in the mean, is judged as if it were of this size: inputs are of size 1

LINE_SCAN, WEIGHTS, UNIT = "line scan", "weights from logits", "several directions"
PROJECTION = "projection"  # of the compact unit, whose other kernels are those of several directions
OUTPUTS = 10  # channels that a projection makes: more than a thread of its kernel does
DRIFT = 3.0  # added to the logits of one side
HIDDEN = {LINE_SCAN: "h", UNIT: "states"}  # the result that a backward may be given


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
        results, given = {}, {}
        if case.saved or module is reference:  # otherwise each direction is merged as it is scanned
            results["y"], results["states"] = module.propagate(**inputs, **options, return_states=True)
        else:
            results["y"] = module.propagate(**inputs, **options)
        if case.saved:
            given = {"states": results["states"] if saved is None else saved}
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
