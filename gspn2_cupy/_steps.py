"""The steps that calls on device arrays are made of: each plans one kernel, allocates its workspace and launches it.

Every array is a ``cupy.ndarray`` of one device (a ``numpy.ndarray`` under the emulator). A step writes into arrays that
its caller has allocated; None stands for an array that is not there.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from gspn2_cupy import _launch, _plan, _plan_gradients, _plan_pixels, _plan_projection, _plan_scan
from gspn2_cupy._arrays import DataType, address, data_type

Array = Any


def type_of(array: Array) -> DataType:
    """Return an array's data type."""
    kind = data_type(array.dtype)
    assert kind is not None  # validated
    return kind


def layout(array: Array) -> _plan.Layout:
    """Return what a plan knows of an array."""
    kind = type_of(array)
    strides = tuple(stride // kind.itemsize for stride in array.strides)
    return _plan.Layout(array.shape, strides, kind.c_name, kind.itemsize, alignment(array))


def alignment(array: Array) -> int:
    """Return the bytes, 16 at the most, that an array's address is a multiple of."""
    return math.gcd(address(array), 16)


def optional_layout(array: Array | None) -> _plan.Layout | None:
    """Return what a plan knows of an array that need not be there."""
    return None if array is None else layout(array)


PLANS_KEPT = 4096  # the only place where plans are kept, but for whole calls in _repeats.py
_plans: dict[Any, Any] = {}


def planned(planner: Callable[..., Any], options: tuple[Any, ...], *arrays: Array | None) -> Any:
    """Return what a planner answers to options and arrays, from the second time on without asking it."""
    key = (planner, options, *map(signature, arrays))
    plan = _plans.get(key, _plans)
    if plan is _plans:  # not there; None is an answer, too
        plan = planner(*options, *map(optional_layout, arrays))
        if len(_plans) >= PLANS_KEPT:
            _plans.clear()
        _plans[key] = plan
    return plan


def signature(array: Array | None) -> Any:
    """Return what tells the plans of arrays apart, in a tenth of the time that layouts take to make and compare."""
    return None if array is None else (array.shape, array.strides, array.dtype, address(array) & 15)


def hand_through(line: Array, given: Array | None) -> None:
    """A scan of no lines hands on the line it was given, or zeros."""
    line[...] = 0 if given is None else given


def scan_workspace(launcher: _launch.Launcher, plan: _plan.LaunchPlan, state: DataType) -> tuple[Array | None, ...]:
    """Return what a scan's kernel takes behind its arrays."""
    if plan.spec.entry == "line_scan_slices":
        return ()
    if plan.spec.entry == "line_scan_tiles":
        return (launcher.zeros((plan.workspace,), np.uint64) if plan.workspace else None,)
    return (launcher.empty((plan.workspace,), state.numpy_dtype),)


# --- the line scan ----------------------------------------------------------------------------------------------------


def scan(
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
            hand_through(h_last, h0)
        return
    arrays = (x, weight, lam, h0, h, h_last)
    plan = scan_plan(launcher, direction, chunk, *arrays)
    _launch.run(launcher, plan, *arrays, *scan_workspace(launcher, plan, type_of(x).state))


def scan_plan(launcher: _launch.Launcher, direction: str, chunk: int | None, *arrays: Array | None) -> _plan.LaunchPlan:
    """Plan one direction of x, weight, λ, h0, h and h_last."""
    plan: _plan.LaunchPlan = planned(_plan_line_scan, (launcher.limits, direction, chunk, False), *arrays)
    return plan


def _plan_line_scan(
    limits: _plan.DeviceLimits, direction: str, chunk: int | None, adjoint: bool, *layouts: Any
) -> _plan.LaunchPlan:
    return _plan_scan.line_scan(limits, replace(_plan.LineScan(direction, chunk, *layouts), adjoint=adjoint))


def merging_scan(
    launcher: _launch.Launcher,
    x: Array,
    weight: Array,
    lam: Array | None,
    u: Array | None,
    factor: Array | None,
    before: Array | None,
    total: Array,
    direction: str,
    chunk: int | None,
) -> bool:
    """Compute ``total`` = before + factor·(u ⊙ h) with h of one direction, in one pass; False if that takes two."""
    arrays = (x, weight, lam, u, before, total)
    plan = planned(_plan_merging_scan, (launcher.limits, direction, chunk), *arrays)
    if plan is None:
        return False
    merged = (before, u, factor)
    _launch.run(launcher, plan, x, weight, lam, None, total, None, *scan_workspace(launcher, plan, type_of(x)), *merged)
    return True


def _plan_merging_scan(
    limits: _plan.DeviceLimits,
    direction: str,
    chunk: int | None,
    x: _plan.Layout,
    weight: _plan.Layout,
    lam: _plan.Layout | None,
    u: _plan.Layout | None,
    before: _plan.Layout | None,
    total: _plan.Layout,
) -> _plan.LaunchPlan | None:
    scan = _plan.LineScan(direction, chunk, x, weight, lam, None, total, None, merging=True, u=u, before=before)
    return _plan_scan.merging_line_scan(limits, scan)


def adjoint(
    launcher: _launch.Launcher,
    dh: Array,
    weight: Array,
    u: Array | None,
    dh_last: Array | None,
    g: Array,
    dh0: Array | None,
    direction: str,
    chunk: int | None,
) -> bool:
    """Run one direction backwards, of u ⊙ dh, into ``g`` and ``dh0``; False if it can't do so from ``u``."""
    arrays: tuple[Array | None, ...] = (dh, weight, u, dh_last, g, dh0)  # u takes the place of λ
    plan = planned(_plan_line_scan, (launcher.limits, _plan.OPPOSITE[direction], chunk, True), *arrays)
    if plan.spec.entry == "line_scan_adjoint":  # the plain kernel, which multiplies by nothing
        if u is not None:
            return False
        arrays = (dh, weight, dh_last, g, dh0)
    _launch.run(launcher, plan, *arrays, *scan_workspace(launcher, plan, type_of(g)))
    return True


def gradients(
    launcher: _launch.Launcher,
    g: Array,
    x: Array,
    lam: Array | None,
    h: Array | None,
    h0: Array | None,
    before: Array | None,
    dx: Array | None,
    dlam: Array | None,
    dweight: Array | None,
    groups: int,
    direction: str,
    chunk: int | None,
) -> None:
    """Compute those of ``dx`` (``before`` added), ``dlam`` and ``dweight`` that are there."""
    arrays = (g, x, lam, h, h0, before, dx, dlam, dweight)
    plan = planned(_plan_gradients.line_scan_gradients, (direction, chunk, groups), *arrays)
    _launch.run(launcher, plan, *arrays)


# --- stable weights ---------------------------------------------------------------------------------------------------


def normalize(launcher: _launch.Launcher, logits: Array, weight: Array, direction: str, method: str) -> None:
    """Compute ``weight`` (B, G, 3, H, W)."""
    plan = planned(_plan_pixels.normalize, (direction, method), logits, weight)
    _launch.run(launcher, plan, logits, weight)


def normalize_backward(
    launcher: _launch.Launcher, dweight: Array, logits: Array, dlogits: Array, direction: str, method: str
) -> None:
    """Compute ``dlogits`` (B, G, 3, H, W)."""
    plan = planned(_plan_pixels.normalize_backward, (direction, method), dweight, logits, dlogits)
    _launch.run(launcher, plan, dweight, logits, dlogits)


# --- merge ------------------------------------------------------------------------------------------------------------


def merge(
    launcher: _launch.Launcher,
    kind: DataType,
    h: Array,
    u: Array | None,
    factor: Array | None,
    before: Array | None,
    total: Array,
    states: Array | None = None,
) -> None:
    """Compute ``total`` = before + factor·(u ⊙ h), and keep ``h`` in ``states``."""
    plan = planned(_plan_pixels.merge, (kind.c_name,), h, u, before, total, states)
    _launch.run(launcher, plan, h, u, factor, before, total, states)


def merge_gradient(launcher: _launch.Launcher, dy: Array, u: Array | None, h: Array, dfactor: Array) -> None:
    """Compute ``dfactor`` = Σ dy ⊙ u ⊙ h."""
    first, second = planned(_plan_pixels.merge_gradient, (), dy, u, h)
    partials = launcher.empty((first.workspace,), np.float64)
    _launch.run(launcher, first, dy, u, h, partials)
    _launch.run(launcher, second, partials, dfactor)


# --- projections ------------------------------------------------------------------------------------------------------


def project(
    launcher: _launch.Launcher, x: Array, weight: Array, bias: Array | None, before: Array | None, total: Array
) -> None:
    """Compute ``total`` (B, O, H, W) = before + bias + weight·x, the last at each pixel over the channels of ``x``."""
    arrays = (x, weight, bias, before, total)
    plan = planned(_plan_projection.projection, (), *arrays)
    _launch.run(launcher, plan, *arrays)


def project_gradient(launcher: _launch.Launcher, g: Array, x: Array, dweight: Array, dbias: Array) -> None:
    """Compute ``dweight`` (O, I) and ``dbias`` (O,), both contiguous."""
    first, second = planned(_plan_projection.projection_gradient, (), g, x)
    partials = launcher.empty((first.workspace,), np.float64)
    _launch.run(launcher, first, g, x, partials)
    _launch.run(launcher, second, partials, dweight, dbias)
