"""The operator on device arrays: allocate, plan, launch, in the order the equations say.

The functions mirror those of :mod:`gspn2_cupy.reference`. Every array is a ``cupy.ndarray`` of one device (a ``numpy.ndarray``
under the emulator), already validated.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from gspn2_cupy import _launch, _plan
from gspn2_cupy._arrays import DataType, data_type
from gspn2_cupy.reference import HORIZONTAL, LineScanGrads

Array = Any


@contextmanager
def _on_device(array: Array) -> Iterator[_launch.Launcher]:
    """Make the arrays' device current and give its launcher."""
    launcher = _launch.override()
    if launcher is not None:
        yield launcher
        return
    with array.device:
        yield _launch.cupy_launcher(array.device.id)


def _layout(array: Array) -> _plan.Layout:
    kind = _type(array)
    strides = tuple(stride // kind.itemsize for stride in array.strides)
    return _plan.Layout(array.shape, strides, kind.c_name, kind.itemsize)


def _maybe_layout(array: Array | None) -> _plan.Layout | None:
    return None if array is None else _layout(array)


def _type(array: Array) -> DataType:
    kind = data_type(array.dtype)
    assert kind is not None  # validated
    return kind


def _state_line(launcher: _launch.Launcher, x: Array, direction: str) -> Array:
    """Allocate h_last or dh0: one line per channel, in the state's type."""
    batch, channels, height, width = x.shape
    return launcher.empty(
        (batch, channels, height if direction in HORIZONTAL else width), _type(x).state.numpy_dtype
    )


def _hand_through(line: Array, given: Array | None) -> None:
    """A scan of no lines hands on the line it was given, or zeros."""
    line[...] = 0 if given is None else given


def _scan(
    launcher: _launch.Launcher,
    x: Array,
    weight: Array,
    lam: Array | None,
    h0: Array | None,
    h: Array,
    h_last: Array | None,
    direction: str,
    chunk: int | None,
) -> None:
    """Run one direction into ``h`` and ``h_last``."""
    if x.size == 0:
        if h_last is not None and h_last.size:
            _hand_through(h_last, h0)
        return
    plan = _plan.line_scan_forward(
        direction,
        chunk,
        _layout(x),
        _layout(weight),
        _maybe_layout(lam),
        _maybe_layout(h0),
        _layout(h),
        _maybe_layout(h_last),
    )
    lines = launcher.empty((plan.workspace,), _type(x).state.numpy_dtype)
    _launch.run(launcher, plan, x, weight, lam, h0, h, h_last, lines)


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
    with _on_device(x) as launcher:
        h = launcher.empty(x.shape, x.dtype) if out is None else out
        h_last = _state_line(launcher, x, direction) if return_last else None
        _scan(launcher, x, weight, lam, h0, h, h_last, direction, chunk)
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
    with _on_device(x) as launcher:
        state = _type(x).state.numpy_dtype
        dx = launcher.empty(x.shape, x.dtype) if "x" in wanted else None
        dlam = launcher.empty(x.shape, x.dtype) if "lam" in wanted and lam is not None else None
        dweight = launcher.empty(weight.shape, x.dtype) if "weight" in wanted else None
        dh0 = _state_line(launcher, x, direction) if "h0" in wanted and h0 is not None else None
        grads = LineScanGrads(dx, dweight, dlam, dh0)
        if x.size == 0:
            if dweight is not None:
                dweight[...] = 0  # a group may have pixels even where no channel does
            if dh0 is not None:
                _hand_through(dh0, dh_last)
            return grads
        if all(gradient is None for gradient in grads):
            return grads

        g = launcher.empty(x.shape, state)
        plan = _plan.line_scan_adjoint(
            direction, chunk, _layout(dh), _layout(weight), _maybe_layout(dh_last), _layout(g), _maybe_layout(dh0)
        )
        lines = launcher.empty((plan.workspace,), state)
        _launch.run(launcher, plan, dh, weight, dh_last, g, dh0, lines)

        if dweight is None:
            h = None
        elif h is None:
            h = launcher.empty(x.shape, state)
            _scan(launcher, x, weight, lam, h0, h, None, direction, chunk)
        if dx is not None or dlam is not None or dweight is not None:
            plan = _plan.line_scan_gradients(
                direction,
                chunk,
                weight.shape[1],
                *map(_maybe_layout, (g, x, lam, h, h0, dx, dlam, dweight)),
            )
            _launch.run(launcher, plan, g, x, lam, h, h0, dx, dlam, dweight)
    return grads
