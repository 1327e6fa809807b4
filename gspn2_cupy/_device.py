"""The operator on device arrays: allocate, plan, launch, in the order the equations say.

The functions mirror those of :mod:`gspn2_cupy.reference`. Every array is a ``cupy.ndarray`` of one device (a
``numpy.ndarray`` under the emulator), already validated. Several directions run one after the other in the same
workspace, which therefore does not grow with their number.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Collection, Iterator, Sequence
from typing import Any

from gspn2_cupy import _launch, _steps
from gspn2_cupy.reference import ALL_DIRECTIONS, HORIZONTAL, LineScanGrads, PropagateGrads, impulse_responses

Array = Any


class OnDevice:  # a class, because a generator's context takes a microsecond and a half longer
    """Make the arrays' device current and give its launcher."""

    def __init__(self, array: Array):
        self._launcher = _launch.override()
        self._device: Any = None if self._launcher else array.device

    def __enter__(self) -> _launch.Launcher:
        if self._launcher is not None:
            return self._launcher
        self._device.__enter__()
        return _launch.cupy_launcher(self._device.id)

    def __exit__(self, *raised: Any) -> None:
        if self._device is not None:
            self._device.__exit__(*raised)


def _state(x: Array) -> Any:
    """Return the data type of the recurrence."""
    return _steps.type_of(x).state.numpy_dtype


def _weights(
    launcher: _launch.Launcher, weight: Array, d: int, direction: str, normalize: str | None, workspace: Array | None
) -> Array:
    """Return the weights of direction ``d``: the caller's own, or logits normalised into the workspace."""
    if normalize is None:
        return weight[:, d]
    _steps.normalize(launcher, weight[:, d], workspace, direction, normalize)
    return workspace


def _of(array: Array | None, d: int) -> Array | None:
    """Return the part (B, …) of an array (B, D, …) that belongs to direction ``d``."""
    return None if array is None else array[:, d]


def _factor(merge: Array | None, d: int) -> Array | None:
    """Return the merge weight of direction ``d``, an array of one element."""
    return None if merge is None else merge[d : d + 1]


# --- stable weights ---------------------------------------------------------------------------------------------------


def _in_images(*arrays: Array) -> Iterator[tuple[Array, ...]]:
    """View arrays (…, 3, H, W) of one shape as (B, G, 3, H, W): at once, or in parts where strides ask for it."""
    leading, rest = arrays[0].shape[:-3], arrays[0].shape[-3:]
    if len(leading) > 2 and not all(array.flags.c_contiguous for array in arrays):
        for part in range(leading[0]):
            yield from _in_images(*(array[part] for array in arrays))
        return
    shape = (math.prod(leading[:-1]), *(leading[-1:] or (1,)), *rest)
    yield tuple(array.reshape(shape) for array in arrays)


def normalize_weights(logits: Array, *, direction: str, method: str = "sigmoid") -> Array:
    """See :func:`gspn2_cupy.normalize_weights`."""
    with OnDevice(logits) as launcher:
        weight = launcher.empty(logits.shape, logits.dtype)
        if weight.size:
            for z, w in _in_images(logits, weight):
                _steps.normalize(launcher, z, w, direction, method)
    return weight


def normalize_weights_backward(dweight: Array, logits: Array, *, direction: str, method: str = "sigmoid") -> Array:
    """See :func:`gspn2_cupy.normalize_weights_backward`."""
    with OnDevice(logits) as launcher:
        dlogits = launcher.empty(logits.shape, logits.dtype)
        if dlogits.size:
            for dw, z, dz in _in_images(dweight, logits, dlogits):
                _steps.normalize_backward(launcher, dw, z, dz, direction, method)
    return dlogits


# --- one direction ----------------------------------------------------------------------------------------------------


def state_line(launcher: _launch.Launcher, x: Array, direction: str) -> Array:
    """Allocate h_last or dh0: one line per channel, in the state's type."""
    batch, channels, height, width = x.shape
    return launcher.empty((batch, channels, height if direction in HORIZONTAL else width), _state(x))


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
    with OnDevice(x) as launcher:
        h = launcher.empty(x.shape, x.dtype) if out is None else out
        h_last = state_line(launcher, x, direction) if return_last else None
        _steps.scan(launcher, x, weight, lam, h0, h, h_last, direction, chunk)
    return (h, h_last) if return_last else h


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
    wanted = set(LineScanGrads._fields if needs is None else needs)
    with OnDevice(x) as launcher:
        state = _state(x)
        dx = launcher.empty(x.shape, x.dtype) if "x" in wanted else None
        dlam = launcher.empty(x.shape, x.dtype) if "lam" in wanted and lam is not None else None
        dweight = launcher.empty(weight.shape, x.dtype) if "weight" in wanted else None
        dh0 = state_line(launcher, x, direction) if "h0" in wanted and h0 is not None else None
        grads = LineScanGrads(dx, dweight, dlam, dh0)
        if x.size == 0:
            if dweight is not None:
                dweight[...] = 0  # a group may have pixels even where no channel does
            if dh0 is not None:
                _steps.hand_through(dh0, dh_last)
            return grads
        if all(gradient is None for gradient in grads):
            return grads

        g = launcher.empty(x.shape, state)
        _steps.adjoint(launcher, dh, weight, None, dh_last, g, dh0, direction, chunk)
        if dweight is None:
            h = None
        elif h is None:
            h = launcher.empty(x.shape, state)
            _steps.scan(launcher, x, weight, lam, h0, h, None, direction, chunk)
        if dx is not None or dlam is not None or dweight is not None:
            _steps.gradients(launcher, g, x, lam, h, h0, None, dx, dlam, dweight, weight.shape[1], direction, chunk)
    return grads


# --- several directions -----------------------------------------------------------------------------------------------


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
    """See :func:`gspn2_cupy.propagate`.

    Workspace, in the state's type: an image (B, C, H, W) for the sum of several directions in a 16-bit type; another
    for the hidden lines of a direction where they are not merged as they are scanned (states in a 16-bit type, and
    scans that the tuned kernels can't merge); and with ``normalize`` the weights of a direction.
    """
    kind = _steps.type_of(x)
    state = kind.state.numpy_dtype
    with OnDevice(x) as launcher:
        y = launcher.empty(x.shape, x.dtype) if out is None else out
        states = launcher.empty((x.shape[0], len(directions), *x.shape[1:]), x.dtype) if return_states else None
        result = y if states is None else (y, states)
        if x.size == 0:
            return result

        one, rounds = len(directions) == 1, x.dtype != state
        plain = u is None and merge is None and states is None  # then the first direction's lines are the sum so far
        stays = states is not None and not rounds  # then hidden lines stay where they are scanned into

        def workspace(shape: tuple[int, ...], needed: bool) -> Array | None:
            return launcher.empty(shape, state) if needed else None

        hidden = None
        total = workspace(x.shape, not one) if rounds else y
        weights = workspace(weight[:, 0].shape, normalize is not None)
        for d, direction in enumerate(directions):
            w, lam_d, u_d = _weights(launcher, weight, d, direction, normalize, weights), _of(lam, d), _of(u, d)
            before, term = (total if d > 0 else None), (y if d == len(directions) - 1 else total)
            if plain and d == 0:
                _steps.scan(launcher, x, w, lam_d, None, term, None, direction, chunk)
                continue
            factor = _factor(merge, d)
            merged = (x, w, lam_d, u_d, factor, before, term)
            if states is None and _steps.merging_scan(launcher, *merged, direction, chunk):
                continue
            if hidden is None:
                hidden = workspace(x.shape, not stays)
            h, kept = (_of(states, d), None) if stays else (hidden, _of(states, d))
            _steps.scan(launcher, x, w, lam_d, None, h, None, direction, chunk)
            _steps.merge(launcher, kind, h, u_d, factor, before, term, kept)
    return result


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
    """See :func:`gspn2_cupy.propagate_backward`.

    Workspace, in the state's type: an image (B, C, H, W) for g of a direction, one for its dh and then its h (not
    needed with ``states``, unless ``merge`` is given or the adjoint can't take ``u``), another for the sum of dx in a
    16-bit type, and with ``normalize`` an array for the weights of a direction and then their gradient.
    """
    kind = _steps.type_of(x)
    state = kind.state.numpy_dtype
    wanted = set(PropagateGrads._fields if needs is None else needs)
    with OnDevice(x) as launcher:

        def gradient(name: str, array: Array | None) -> Array | None:
            return launcher.empty(array.shape, x.dtype) if array is not None and name in wanted else None

        dx, dweight, dlam = gradient("x", x), gradient("weight", weight), gradient("lam", lam)
        du, dmerge = gradient("u", u), gradient("merge", merge)
        grads = PropagateGrads(dx, dweight, dlam, du, dmerge)
        if x.size == 0:
            for sum_of_nothing in (dweight, dmerge):
                if sum_of_nothing is not None:
                    sum_of_nothing[...] = 0
            return grads

        one, rounds, groups = len(directions) == 1, x.dtype != state, weight.shape[2]
        needs_g = dx is not None or dweight is not None or dlam is not None
        needs_h = dweight is not None or du is not None or dmerge is not None
        recomputes = needs_h and states is None
        needs_weights = needs_g or recomputes

        def workspace(shape: tuple[int, ...], needed: bool) -> Array | None:
            return launcher.empty(shape, state) if needed else None

        g = workspace(x.shape, needs_g)
        image = workspace(x.shape, recomputes)
        total = workspace(x.shape, dx is not None and not one) if rounds else dx
        weights = workspace(weight[:, 0].shape, normalize is not None and needs_weights)
        for d, direction in enumerate(directions):
            lam_d, u_d, factor = _of(lam, d), _of(u, d), _factor(merge, d)
            if needs_weights:
                w = _weights(launcher, weight, d, direction, normalize, weights)
            if needs_g and not (
                merge is None and _steps.adjoint(launcher, dy, w, u_d, None, g, None, direction, chunk)
            ):
                image = workspace(x.shape, True) if image is None else image
                _steps.merge(launcher, kind, dy, u_d, factor, None, image)
                _steps.adjoint(launcher, image, w, None, None, g, None, direction, chunk)
            h = image if recomputes else _of(states, d)
            if recomputes:
                _steps.scan(launcher, x, w, lam_d, None, h, None, direction, chunk)
            if du is not None:
                _steps.merge(launcher, kind, h, dy, factor, None, du[:, d])
            if dmerge is not None:
                _steps.merge_gradient(launcher, dy, u_d, h, dmerge[d : d + 1])
            if needs_g:
                before, term = total if d > 0 else None, dx if d == len(directions) - 1 else total
                dw = weights if dweight is not None and normalize is not None else _of(dweight, d)
                lines = None if dweight is None else h
                arrays = (g, x, lam_d, lines, None, before, term, _of(dlam, d), dw)
                _steps.gradients(launcher, *arrays, groups, direction, chunk)
            if dweight is not None and normalize is not None:
                _steps.normalize_backward(launcher, weights, weight[:, d], dweight[:, d], direction, normalize)
    return grads


def affinity_matrix(
    weight: Array,
    lam: Array | None = None,
    u: Array | None = None,
    *,
    directions: Sequence[str] = ALL_DIRECTIONS,
    merge: Array | None = None,
    chunk: int | None = None,
) -> Array:
    """See :func:`gspn2_cupy.affinity_matrix`.

    One call of :func:`propagate` for each image of the batch, on a batch of H·W impulses. Weights, λ and u are repeated
    for them by a stride of zero, not copied. What the call takes as an image is here as large as one image's matrix.
    """
    module = sys.modules[type(weight).__module__.partition(".")[0]]  # CuPy; NumPy under the emulator
    with OnDevice(weight):
        return impulse_responses(module, propagate, weight, lam, u, directions=directions, merge=merge, chunk=chunk)


# --- projections of the compact unit ----------------------------------------------------------------------------------


def _images(array: Array) -> Array:
    """View (B, …, H, W) as (B, channels, H, W)."""
    shape = array.shape
    return array.reshape(shape[0], math.prod(shape[1:-2]), *shape[-2:])


def _matrix(weight: Array) -> Array:
    """View the weights (…, I) of a projection as (O, I)."""
    return weight.reshape(math.prod(weight.shape[:-1]), weight.shape[-1])


def project(x: Array, weight: Array, bias: Array) -> Array:
    """See :func:`gspn2_cupy.reference.project`."""
    with OnDevice(x) as launcher:
        y = launcher.empty((x.shape[0], *bias.shape, *x.shape[2:]), x.dtype)
        if y.size:
            _steps.project(launcher, x, _matrix(weight), bias.reshape(bias.size), None, _images(y))
    return y


def project_back(terms: Sequence[tuple[Array, Array]], before: Array | None = None) -> Array:
    """See :func:`gspn2_cupy.reference.project_back`; a sum of several in a 16-bit type needs an image of workspace."""
    gradient, weight = terms[0]
    with OnDevice(gradient) as launcher:
        shape = (gradient.shape[0], weight.shape[-1], *gradient.shape[-2:])
        dx = launcher.empty(shape, gradient.dtype)
        if dx.size == 0:
            return dx
        total = dx if len(terms) == 1 or dx.dtype == _state(dx) else launcher.empty(shape, _state(dx))
        for k, (gradient, weight) in enumerate(terms):
            term = dx if k == len(terms) - 1 else total
            _steps.project(launcher, _images(gradient), _matrix(weight).T, None, total if k > 0 else before, term)
    return dx


def project_gradients(dy: Array, x: Array) -> tuple[Array, Array]:
    """See :func:`gspn2_cupy.reference.project_gradients`."""
    with OnDevice(x) as launcher:
        outputs = dy.shape[1:-2]
        dweight, dbias = launcher.empty((*outputs, x.shape[1]), x.dtype), launcher.empty(outputs, x.dtype)
        if dbias.size:
            if dy.size:
                _steps.project_gradient(launcher, _images(dy), x, dweight, dbias)
            else:
                dweight[...] = dbias[...] = 0
    return dweight, dbias
