"""The operator in NumPy, forward and backward: the truth that the CUDA kernels are tested against.

The functions have the names, signatures and results of :mod:`gspn2_cupy`, take NumPy arrays of float32, float16,
bfloat16 (through ml_dtypes) or float64, and validate nothing. They loop over lines only; batch, channel and the cross
axis are vectorised. Everything is computed in the state's type (float32; float64 for float64) and rounded once, on the
way out, so on inputs upcast to float64 they give the truth.

One direction is handled by looking at the image as lines: ``_lines`` returns a view of shape (..., T, I) in which T
runs along the scan, in scan order, and I across it. Nothing is copied, so what is written into such a view lands in the
image.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

ALL_DIRECTIONS = ("left_to_right", "right_to_left", "top_to_bottom", "bottom_to_top")
HORIZONTAL = ("left_to_right", "right_to_left")
REVERSED = ("right_to_left", "bottom_to_top")

LOWEST_LOGIT = -40.0  # the "sigmoid" normalisation takes lower logits for this one, so that its sums never vanish


class LineScanGrads(NamedTuple):
    """Gradients of :func:`gspn2_cupy.line_scan`; None for those not asked for and for inputs that were None."""

    x: Any
    weight: Any
    lam: Any
    h0: Any


class PropagateGrads(NamedTuple):
    """Gradients of :func:`gspn2_cupy.propagate`; None for those not asked for and for inputs that were None."""

    x: Any
    weight: Any
    lam: Any
    u: Any
    merge: Any


# --- layout -----------------------------------------------------------------------------------------------------------


def _state_type(dtype: np.dtype[Any]) -> type[np.floating[Any]]:
    """Return the type the recurrence is carried in."""
    return np.float64 if dtype == np.float64 else np.float32


def _lines(image: Array, direction: str) -> Array:
    """View an image (..., H, W) as lines (..., T, I) in scan order."""
    lines = np.swapaxes(image, -1, -2) if direction in HORIZONTAL else image
    return lines[..., ::-1, :] if direction in REVERSED else lines


def _restarts(line: int, chunk: int | None) -> bool:
    """Tell whether a line starts a chunk, other than the first line of the scan."""
    return chunk is not None and line > 0 and line % chunk == 0


# --- one direction, in the state's type -------------------------------------------------------------------------------


def _advance(weight: Array, previous: Array) -> Array:
    """Compute A·h for one line: weight (B, G, 3, I), previous (B, G, C/G, I)."""
    weight = weight[:, :, :, None]
    line = weight[:, :, 1] * previous
    line[..., 1:] += weight[:, :, 0, :, 1:] * previous[..., :-1]
    line[..., :-1] += weight[:, :, 2, :, :-1] * previous[..., 1:]
    return line


def _advance_transposed(weight: Array, gradient: Array) -> Array:
    """Compute Aᵀ·g for one line: each row hands its gradient back to the neighbours it was made from."""
    weight = weight[:, :, :, None]
    line = weight[:, :, 1] * gradient
    line[..., :-1] += weight[:, :, 0, :, 1:] * gradient[..., 1:]
    line[..., 1:] += weight[:, :, 2, :, :-1] * gradient[..., :-1]
    return line


def _grouped(lines: Array, groups: int) -> Array:
    """View (B, C, ...) as (B, G, C/G, ...)."""
    batch, channels = lines.shape[:2]
    return lines.reshape(batch, groups, channels // max(groups, 1), *lines.shape[2:])


def _scan(
    x: Array, weight: Array, lam: Array | None, h0: Array | None, direction: str, chunk: int | None, out: Array
) -> Array:
    """Run h[t] = A[t]·h[t-1] + λ[t]·x[t] into ``out`` (B, C, H, W) and return the last line, unrounded."""
    state = _state_type(x.dtype)
    x_lines, out_lines, weights = _lines(x, direction), _lines(out, direction), _lines(weight, direction)
    lam_lines = None if lam is None else _lines(lam, direction)
    batch, channels, length, width = x_lines.shape
    groups = weight.shape[1]
    last = None if h0 is None else h0
    for t in range(length):
        line = x_lines[:, :, t].astype(state)
        if lam_lines is not None:
            line *= lam_lines[:, :, t].astype(state)
        if last is not None and not _restarts(t, chunk):
            previous = _grouped(last, groups)
            line += _advance(weights[:, :, :, t].astype(state), previous).reshape(line.shape)
        out_lines[:, :, t] = line
        last = line
    return np.zeros((batch, channels, width), state) if last is None else last.astype(state)


def _adjoint_scan(
    dh: Array, weight: Array, dh_last: Array | None, direction: str, chunk: int | None
) -> tuple[Array, Array]:
    """Run g[t] = dh[t] + A[t+1]ᵀ·g[t+1] backwards; return g (B, C, H, W) and A[0]ᵀ·g[0], the gradient of h0."""
    state = _state_type(dh.dtype)
    g = np.empty(dh.shape, state)
    dh_lines, g_lines, weights = _lines(dh, direction), _lines(g, direction), _lines(weight, direction)
    batch, channels, length, width = dh_lines.shape
    groups = weight.shape[1]
    carry = np.zeros((batch, channels, width), state) if dh_last is None else dh_last
    for t in range(length - 1, -1, -1):
        line = dh_lines[:, :, t].astype(state) + carry
        g_lines[:, :, t] = line
        if _restarts(t, chunk):
            carry = np.zeros_like(line)
        else:
            carry = _advance_transposed(weights[:, :, :, t].astype(state), _grouped(line, groups)).reshape(line.shape)
    return g, carry.astype(state)


def _weight_gradient(g: Array, h: Array, h0: Array | None, groups: int, direction: str, chunk: int | None) -> Array:
    """Sum g[t,i]·h[t-1,i+k-1] over the channels of each group, one after the other: (B, G, 3, H, W)."""
    state = _state_type(g.dtype)
    batch, _, height, width = g.shape
    dweight = np.zeros((batch, groups, 3, height, width), state)
    g_lines, h_lines, out = _lines(g, direction), _lines(h, direction), _lines(dweight, direction)
    previous = np.zeros(g_lines.shape, state)
    previous[:, :, 1:] = h_lines[:, :, :-1]
    if h0 is not None:
        previous[:, :, :1] = h0[:, :, None]
    if chunk is not None:
        previous[:, :, chunk::chunk] = 0
    g_lines, previous = _grouped(g_lines, groups), _grouped(previous, groups)
    for c in range(g_lines.shape[2]):
        gradient, line = g_lines[:, :, c], previous[:, :, c]
        out[:, :, 0, :, 1:] += gradient[..., 1:] * line[..., :-1]
        out[:, :, 1] += gradient * line
        out[:, :, 2, :, :-1] += gradient[..., :-1] * line[..., 1:]
    without_previous = [0] if h0 is None else []
    if chunk is not None:
        without_previous += range(chunk, out.shape[-2], chunk)
    if out.shape[-2]:
        out[..., without_previous, :] = 0
    return dweight


# --- stable weights ---------------------------------------------------------------------------------------------------


def _inside(logits: Array, direction: str) -> npt.NDArray[np.bool_]:
    """Mask (3, H, W): whether neighbour k of a pixel is in the image."""
    inside = np.ones(logits.shape[-3:], bool)
    lines = _lines(inside, direction)
    lines[0, :, :1] = False
    lines[2, :, -1:] = False
    return inside


def _numerators(logits: Array, inside: npt.NDArray[np.bool_], method: str) -> Array:
    """Compute σ(z) or exp(z − max z), 0 for neighbours outside."""
    if method == "sigmoid":
        return np.where(inside, 1 / (1 + np.exp(-np.maximum(logits, LOWEST_LOGIT))), 0).astype(logits.dtype)
    logits = np.where(inside, logits, -np.inf)
    exponentials: Array = np.exp(logits - logits.max(axis=-3, keepdims=True)).astype(logits.dtype)
    return exponentials


def _normalize(logits: Array, direction: str, method: str) -> Array:
    """Normalise logits (..., 3, H, W), in the state's type."""
    inside = _inside(logits, direction)
    numerators = _numerators(logits, inside, method)
    return np.where(inside, numerators / numerators.sum(axis=-3, keepdims=True), 0)


def _normalize_backward(dweight: Array, logits: Array, direction: str, method: str) -> Array:
    """Gradient of the logits, in the state's type."""
    inside = _inside(logits, direction)
    weight = _normalize(logits, direction, method)
    dweight = np.where(inside, dweight, 0)
    dlogits = weight * (dweight - (weight * dweight).sum(axis=-3, keepdims=True))
    if method == "sigmoid":
        decay = np.exp(-np.maximum(logits, LOWEST_LOGIT))
        dlogits = np.where(logits < LOWEST_LOGIT, 0, dlogits * (decay / (1 + decay)))
    return np.where(inside, dlogits, 0)


# --- the public functions ---------------------------------------------------------------------------------------------


@np.errstate(all="ignore")
def normalize_weights(logits: Array, *, direction: str, method: str = "sigmoid") -> Array:
    """See :func:`gspn2_cupy.normalize_weights`."""
    state = _state_type(logits.dtype)
    return _normalize(logits.astype(state, copy=False), direction, method).astype(logits.dtype, copy=False)


@np.errstate(all="ignore")
def normalize_weights_backward(dweight: Array, logits: Array, *, direction: str, method: str = "sigmoid") -> Array:
    """See :func:`gspn2_cupy.normalize_weights_backward`."""
    state = _state_type(logits.dtype)
    dlogits = _normalize_backward(
        dweight.astype(state, copy=False), logits.astype(state, copy=False), direction, method
    )
    return dlogits.astype(logits.dtype, copy=False)


@np.errstate(all="ignore")
def line_scan(
    x: Array,
    weight: Array,
    lam: Array | None = None,
    *,
    direction: str,
    chunk: int | None = None,
    h0: Array | None = None,
    out: Array | None = None,
    return_last: bool = False,
) -> Array | tuple[Array, Array]:
    """See :func:`gspn2_cupy.line_scan`."""
    h = np.empty(x.shape, x.dtype) if out is None else out
    h_last = _scan(x, weight, lam, h0, direction, chunk, h)
    return (h, h_last) if return_last else h


@np.errstate(all="ignore")
def line_scan_backward(
    dh: Array,
    x: Array,
    weight: Array,
    lam: Array | None = None,
    h: Array | None = None,
    *,
    direction: str,
    chunk: int | None = None,
    h0: Array | None = None,
    dh_last: Array | None = None,
    needs: Collection[str] | None = None,
) -> LineScanGrads:
    """See :func:`gspn2_cupy.line_scan_backward`."""
    state = _state_type(x.dtype)
    wanted = set(LineScanGrads._fields if needs is None else needs)
    g, dh0 = _adjoint_scan(dh, weight, dh_last, direction, chunk)
    dx = dweight = dlam = None
    if "x" in wanted:
        dx = (g if lam is None else lam.astype(state, copy=False) * g).astype(x.dtype)
    if "lam" in wanted and lam is not None:
        dlam = (x.astype(state, copy=False) * g).astype(x.dtype)
    if "weight" in wanted:
        if h is None:
            h = np.empty(x.shape, state)
            _scan(x, weight, lam, h0, direction, chunk, h)
        dweight = _weight_gradient(g, h, h0, weight.shape[1], direction, chunk).astype(x.dtype)
    return LineScanGrads(dx, dweight, dlam, dh0 if "h0" in wanted and h0 is not None else None)


@np.errstate(all="ignore")
def propagate(
    x: Array,
    weight: Array,
    lam: Array | None = None,
    u: Array | None = None,
    *,
    directions: Sequence[str] = ALL_DIRECTIONS,
    merge: Array | None = None,
    normalize: str | None = None,
    chunk: int | None = None,
    out: Array | None = None,
    return_states: bool = False,
) -> Array | tuple[Array, Array]:
    """See :func:`gspn2_cupy.propagate`."""
    state = _state_type(x.dtype)
    y = np.zeros(x.shape, state)
    h = np.empty(x.shape, state)
    states = np.empty((x.shape[0], len(directions), *x.shape[1:]), x.dtype) if return_states else None
    for d, direction in enumerate(directions):
        _scan(*_direction_inputs(x, weight, lam, d, direction, normalize), None, direction, chunk, h)
        if states is not None:
            states[:, d] = h
        y += _scaled(h, None if u is None else u[:, d], None if merge is None else merge[d])
    result = np.empty(x.shape, x.dtype) if out is None else out
    result[...] = y
    return result if states is None else (result, states)


@np.errstate(all="ignore")
def propagate_backward(
    dy: Array,
    x: Array,
    weight: Array,
    lam: Array | None = None,
    u: Array | None = None,
    *,
    directions: Sequence[str] = ALL_DIRECTIONS,
    merge: Array | None = None,
    normalize: str | None = None,
    chunk: int | None = None,
    states: Array | None = None,
    needs: Collection[str] | None = None,
) -> PropagateGrads:
    """See :func:`gspn2_cupy.propagate_backward`."""
    state = _state_type(x.dtype)
    wanted = set(PropagateGrads._fields if needs is None else needs)
    dx = np.zeros(x.shape, state) if "x" in wanted else None
    dweight = np.empty(weight.shape, x.dtype) if "weight" in wanted else None
    dlam = np.empty(lam.shape, x.dtype) if "lam" in wanted and lam is not None else None
    du = np.empty(u.shape, x.dtype) if "u" in wanted and u is not None else None
    dmerge = np.empty(merge.shape, x.dtype) if "merge" in wanted and merge is not None else None
    dy = dy.astype(state, copy=False)
    for d, direction in enumerate(directions):
        x_state, w, lam_d = _direction_inputs(x, weight, lam, d, direction, normalize)
        u_d = None if u is None else u[:, d]
        merge_d = None if merge is None else merge[d]
        if dweight is not None or du is not None or dmerge is not None:
            h = np.empty(x.shape, state)
            if states is not None:
                h[...] = states[:, d]
            else:
                _scan(x_state, w, lam_d, None, direction, chunk, h)
        if du is not None:
            du[:, d] = _scaled(dy * h, None, merge_d)
        if dmerge is not None:
            dmerge[d] = _scaled(dy * h, u_d, None).sum(dtype=np.float64)
        if dx is None and dweight is None and dlam is None:
            continue
        g, _ = _adjoint_scan(_scaled(dy, u_d, merge_d), w, None, direction, chunk)
        if dx is not None:
            dx += g if lam_d is None else lam_d.astype(state, copy=False) * g
        if dlam is not None:
            dlam[:, d] = x_state * g
        if dweight is not None:
            dw = _weight_gradient(g, h, None, w.shape[1], direction, chunk)
            if normalize is not None:
                dw = _normalize_backward(dw, weight[:, d].astype(state, copy=False), direction, normalize)
            dweight[:, d] = dw
    return PropagateGrads(None if dx is None else dx.astype(x.dtype), dweight, dlam, du, dmerge)


def _direction_inputs(
    x: Array, weight: Array, lam: Array | None, d: int, direction: str, normalize: str | None
) -> tuple[Array, Array, Array | None]:
    """Return x, weight and λ of one direction in the state's type, logits normalised."""
    state = _state_type(x.dtype)
    w = weight[:, d].astype(state, copy=False)
    if normalize is not None:
        w = _normalize(w, direction, normalize)
    return x.astype(state, copy=False), w, None if lam is None else lam[:, d].astype(state, copy=False)


def _scaled(a: Array, u: Array | None, merge: Any) -> Array:
    """Compute m·(u ⊙ a) in the type of ``a``; None stands for 1."""
    if u is not None:
        a = u.astype(a.dtype, copy=False) * a
    return a if merge is None else a.dtype.type(merge) * a


def affinity_matrix(
    weight: Array,
    lam: Array | None = None,
    u: Array | None = None,
    *,
    directions: Sequence[str] = ALL_DIRECTIONS,
    merge: Array | None = None,
    chunk: int | None = None,
) -> Array:
    """See :func:`gspn2_cupy.affinity_matrix`."""
    return impulse_responses(np, propagate, weight, lam, u, directions=directions, merge=merge, chunk=chunk)


def impulse_responses(
    xp: Any, propagate: Any, weight: Array, lam: Array | None, u: Array | None, **options: Any
) -> Array:
    """Build A (B, C, H·W, H·W) column by column: a batch of images with a one at each pixel goes through ``propagate``.

    ``xp`` is the array module of the inputs, and ``propagate`` the function of the backend they run on.
    """
    batch, _, groups, _, height, width = weight.shape
    channels = groups if lam is None and u is None else (lam if lam is not None else u).shape[2]  # type: ignore[union-attr]
    pixels = height * width
    matrix: Array = xp.empty((batch, channels, pixels, pixels), weight.dtype)
    impulses = xp.eye(pixels).astype(weight.dtype).reshape(pixels, 1, height, width)
    impulses = xp.broadcast_to(impulses, (pixels, channels, height, width))

    def repeated(array: Array | None, b: int) -> Array | None:
        return None if array is None else xp.broadcast_to(array[b], (pixels, *array.shape[1:]))

    for b in range(batch):
        y = propagate(impulses, repeated(weight, b), repeated(lam, b), repeated(u, b), **options)
        matrix[b] = y.reshape(pixels, channels, pixels).transpose(1, 2, 0)
    return matrix


# --- projections of the compact unit ----------------------------------------------------------------------------------


def _pixels(array: Array) -> Array:
    """View (B, …, H, W) as matrices (B, channels, pixels), in the state's type."""
    batch, *channels, height, width = array.shape
    matrices: Array = array.reshape(batch, math.prod(channels), height * width)
    return matrices.astype(_state_type(array.dtype), copy=False)


def _matrix(weight: Array) -> Array:
    """View the weights (…, I) of a projection as a matrix (O, I), in the state's type."""
    matrix: Array = weight.reshape(math.prod(weight.shape[:-1]), weight.shape[-1])
    return matrix.astype(_state_type(weight.dtype), copy=False)


@np.errstate(all="ignore")
def project(x: Array, weight: Array, bias: Array) -> Array:
    """Compute y[b,…] = bias[…] + Σ_i weight[…,i]·x[b,i] at each pixel.

    ``x`` is (B, I, H, W), ``weight`` (…, I), ``bias`` (…), and the result (B, …, H, W).
    """
    y = _matrix(weight) @ _pixels(x) + _matrix(bias[..., None])
    return y.reshape(x.shape[0], *bias.shape, *x.shape[2:]).astype(x.dtype, copy=False)


@np.errstate(all="ignore")
def project_back(terms: Sequence[tuple[Array, Array]], before: Array | None = None) -> Array:
    """Sum the gradients of the one image that several projections took: ``terms`` are pairs (dy, weight).

    ``before`` (B, I, H, W) is added to them. The sum is rounded once.
    """
    dy, weight = terms[0]
    shape = (dy.shape[0], weight.shape[-1], *dy.shape[-2:])
    dx = np.zeros(shape, _state_type(dy.dtype)) if before is None else before.astype(_state_type(dy.dtype))
    for dy, weight in terms:
        dx += (_matrix(weight).T @ _pixels(dy)).reshape(shape)
    return dx.astype(dy.dtype, copy=False)


@np.errstate(all="ignore")
def project_gradients(dy: Array, x: Array) -> tuple[Array, Array]:
    """Compute dweight (…, I) = Σ dy·x and dbias (…) = Σ dy, over the pixels of all images."""
    gradients = _pixels(dy)
    dweight = (gradients @ _pixels(x).swapaxes(-1, -2)).sum(axis=0)
    dbias = gradients.sum(axis=(0, 2))
    outputs = dy.shape[1:-2]
    return (
        dweight.reshape(*outputs, x.shape[1]).astype(x.dtype, copy=False),
        dbias.reshape(outputs).astype(x.dtype, copy=False),
    )
