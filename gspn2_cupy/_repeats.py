"""Calls of `line_scan` like one before: that one was checked and planned, so these only allocate and launch.

A key holds all that checks and planner look at. What may differ between two calls of one key is looked at every time:
the memory of ``out``, and the alignment of a new array. Calls on CuPy arrays take half as long so; NumPy arrays come
here on the emulator.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from gspn2_cupy import _checks, _device, _launch, _steps
from gspn2_cupy._arrays import DataType
from gspn2_cupy._plan import LaunchPlan

Array = Any
Results = tuple[Array, Array | None]  # h and h_last

KEPT = 4096
CHUNKS = (type(None), int)
_known: dict[Any, tuple[LaunchPlan, DataType]] = {}  # the plan, and the state's type


def key_of(
    x: Any, weight: Any, lam: Any, h0: Any, out: Any, direction: Any, chunk: Any, return_last: Any
) -> Any | None:
    """Return what checks and planner look at in a call; None where it is not one to be remembered."""
    if type(direction) is not str or type(chunk) not in CHUNKS or type(return_last) is not bool:  # 1.0 == True == 1
        return None
    launcher = _launch.override()
    limits = None if launcher is None else launcher.limits
    try:
        return limits, direction, chunk, return_last, *map(_signature, (x, weight, lam, h0, out))
    except LookupError:
        return None


def line_scan(
    key: Any, x: Any, weight: Any, lam: Any, h0: Any, out: Any, direction: Any, chunk: Any, return_last: Any
) -> Results | None:
    """Make a call like one before; None, with nothing done, if there was none."""
    known = _known.get(key)
    if known is None:
        return None
    plan, state = known
    if out is not None:
        _checks.out_memory(out, {"x": x, "weight": weight, "lam": lam, "h0": h0})
    with _device.OnDevice(x) as launcher:
        h = launcher.empty(x.shape, x.dtype) if out is None else out
        h_last = _device.state_line(launcher, x, direction) if return_last else None
        if out is None and _steps.alignment(h) != 16:  # by an allocator of the user's
            _steps.scan(launcher, x, weight, lam, h0, h, h_last, direction, chunk)
        else:
            workspace = _steps.scan_workspace(launcher, plan, state)
            _launch.run(launcher, plan, x, weight, lam, h0, h, h_last, *workspace)
    return h, h_last


def remember(
    key: Any,
    x: Any,
    weight: Any,
    lam: Any,
    h0: Any,
    out: Any,
    direction: Any,
    chunk: Any,
    return_last: Any,
    results: Results,
) -> None:
    """Take note of a call that has run on a device."""
    h, h_last = results
    if key is None or x.size == 0 or (out is None and _steps.alignment(h) != 16):
        return
    with _device.OnDevice(x) as launcher:
        plan = _steps.scan_plan(launcher, direction, chunk, x, weight, lam, h0, h, h_last)
    if len(_known) >= KEPT:
        _known.clear()
    _known[key] = plan, _steps.type_of(x).state


def _signature(array: Any) -> Any:
    if array is None:
        return None
    cls = type(array)
    if cls is np.ndarray:
        return cls, _steps.signature(array)
    if cls.__module__ != "cupy":  # a library that results have to be given back to
        raise LookupError
    return cls, _steps.signature(array), array.data.device_id
