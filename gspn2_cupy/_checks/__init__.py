"""Turns the arguments of a public function into a checked `Call`; the one place that raises on user input.

Every message says ``<argument> must <what it must be>; got <what was received>``. TypeError: a wrong kind of argument
or data type. ValueError: a wrong shape, direction, chunk, device, group or option. ImportError: a package that the
arrays need is missing.

Each public function has one of its name here. What they are made of: :mod:`gspn2_cupy._checks.options` and
:mod:`gspn2_cupy._checks.arrays`.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np

from gspn2_cupy._arrays import DATA_TYPES, NOT_BFLOAT16, DataType, data_type
from gspn2_cupy._checks.arrays import (
    OPTIONAL_ARRAYS,
    Call,
    Given,
    Signature,
    affinity_arrays,
    compact_arrays,
    divides,
    leading,
    logits_arrays,
    out_memory,
    scan_arrays,
    text_of,
    unit_arrays,
)
from gspn2_cupy._checks.options import (
    METHODS,
    chunk_length,
    flag,
    must,
    needed,
    normalization,
    one_direction,
    one_of,
    options,
    several_directions,
    shown,
    type_name,
    whole_number,
)
from gspn2_cupy._compact_parameters import CompactParameters

__all__ = [
    "OPTIONAL_ARRAYS",
    "Call",
    "adopted_parameters",
    "affinity_matrix",
    "compact_options",
    "compact_parameters",
    "compact_propagate",
    "compact_propagate_backward",
    "line_scan",
    "line_scan_backward",
    "normalize_weights",
    "normalize_weights_backward",
    "options",
    "out_memory",
    "propagate",
    "propagate_backward",
    "warmup",
]


def normalize_weights(logits: Any, *, direction: Any, method: Any) -> Call:
    """Check a call of :func:`gspn2_cupy.normalize_weights`."""
    given = Given(logits=logits)
    return given.call(
        logits_arrays(**given.signatures),
        direction=one_direction(direction),
        method=one_of("method", method, METHODS),
    )


def normalize_weights_backward(dweight: Any, logits: Any, *, direction: Any, method: Any) -> Call:
    """Check a call of :func:`gspn2_cupy.normalize_weights_backward`."""
    given = Given(logits=logits, dweight=dweight)
    return given.call(
        logits_arrays(**given.signatures),
        direction=one_direction(direction),
        method=one_of("method", method, METHODS),
    )


def line_scan(
    x: Any, weight: Any, lam: Any, *, direction: Any, chunk: Any, h0: Any, out: Any, return_last: Any
) -> Call:
    """Check a call of :func:`gspn2_cupy.line_scan`."""
    given = Given(x=x, weight=weight, lam=lam, h0=h0, out=out)
    direction = one_direction(direction)
    return given.call(
        scan_arrays(direction, **given.signatures),
        direction=direction,
        chunk=chunk_length(chunk),
        return_last=flag("return_last", return_last),
    )


def line_scan_backward(
    dh: Any, x: Any, weight: Any, lam: Any, h: Any, *, direction: Any, chunk: Any, h0: Any, dh_last: Any, needs: Any
) -> Call:
    """Check a call of :func:`gspn2_cupy.line_scan_backward`."""
    given = Given(x=x, weight=weight, lam=lam, h0=h0, dh=dh, h=h, dh_last=dh_last)
    direction = one_direction(direction)
    return given.call(
        scan_arrays(direction, **given.signatures),
        direction=direction,
        chunk=chunk_length(chunk),
        needs=needed(needs, {"x": x, "weight": weight, "lam": lam, "h0": h0}),
    )


def propagate(
    x: Any,
    weight: Any,
    lam: Any,
    u: Any,
    *,
    directions: Any,
    merge: Any,
    normalize: Any,
    chunk: Any,
    out: Any,
    return_states: Any,
) -> Call:
    """Check a call of :func:`gspn2_cupy.propagate`."""
    given = Given(x=x, weight=weight, lam=lam, u=u, merge=merge, out=out)
    directions = several_directions(directions)
    return given.call(
        unit_arrays(len(directions), **given.signatures),
        directions=directions,
        normalize=normalization(normalize),
        chunk=chunk_length(chunk),
        return_states=flag("return_states", return_states),
    )


def propagate_backward(
    dy: Any,
    x: Any,
    weight: Any,
    lam: Any,
    u: Any,
    *,
    directions: Any,
    merge: Any,
    normalize: Any,
    chunk: Any,
    states: Any,
    needs: Any,
) -> Call:
    """Check a call of :func:`gspn2_cupy.propagate_backward`."""
    given = Given(x=x, weight=weight, lam=lam, u=u, merge=merge, dy=dy, states=states)
    directions = several_directions(directions)
    return given.call(
        unit_arrays(len(directions), **given.signatures),
        directions=directions,
        normalize=normalization(normalize),
        chunk=chunk_length(chunk),
        needs=needed(needs, {"x": x, "weight": weight, "lam": lam, "u": u, "merge": merge}),
    )


def affinity_matrix(weight: Any, lam: Any, u: Any, *, directions: Any, merge: Any, chunk: Any) -> Call:
    """Check a call of :func:`gspn2_cupy.affinity_matrix`."""
    given = Given(weight=weight, lam=lam, u=u, merge=merge)
    directions = several_directions(directions)
    return given.call(
        affinity_arrays(len(directions), **given.signatures), directions=directions, chunk=chunk_length(chunk)
    )


def _compact_call(
    parameters: Any, arrays: dict[str, Any], *, directions: Any, normalize: Any, chunk: Any, **options: Any
) -> Call:
    """Check a call of the compact unit, whose ``parameters`` hold most of its arrays."""
    named = _named_parameters(parameters)
    given = Given(**arrays, **named)
    directions = several_directions(directions)
    dtype = compact_arrays(len(directions), **given.signatures)
    return given.call(
        dtype,
        parameters=CompactParameters(*(given.arrays.pop(name) for name in named)),
        directions=directions,
        normalize=one_of("normalize", normalize, METHODS),
        chunk=chunk_length(chunk),
        **options,
    )


def _named_parameters(parameters: Any) -> dict[str, Any]:
    """Return the compact unit's parameters by the names that messages give them."""
    if not isinstance(parameters, CompactParameters):
        raise TypeError(must("parameters", "be gspn2_cupy.CompactParameters", type_name(parameters)))
    return {f"parameters.{name}": array for name, array in parameters._asdict().items()}


def compact_propagate(x: Any, parameters: Any, **options: Any) -> Call:
    """Check a call of :func:`gspn2_cupy.compact_propagate`."""
    return _compact_call(parameters, {"x": x}, **options)


def compact_propagate_backward(dy: Any, x: Any, parameters: Any, *, needs: Any, **options: Any) -> Call:
    """Check a call of :func:`gspn2_cupy.compact_propagate_backward`."""
    needs = needed(needs, {"x": x, "parameters": parameters})
    return _compact_call(parameters, {"x": x, "dy": dy}, needs=needs, **options)


def compact_options(
    channels: Any, proxy_channels: Any, *, groups: Any, directions: Any, chunk: Any = None, normalize: Any = METHODS[0]
) -> SimpleNamespace:
    """Check what a compact unit is made with, by :func:`gspn2_cupy.compact_parameters` or as a layer."""
    proxies, count = whole_number("proxy_channels", proxy_channels, 1), whole_number("groups", groups, 1)
    if not divides(count, proxies):
        raise ValueError(must("groups", f"divide proxy_channels={proxies}", count))
    return SimpleNamespace(
        channels=whole_number("channels", channels, 1),
        proxy_channels=proxies,
        groups=count,
        directions=several_directions(directions),
        chunk=chunk_length(chunk),
        normalize=one_of("normalize", normalize, METHODS),
    )


def adopted_parameters(parameters: Any, expected: CompactParameters) -> CompactParameters:
    """Check parameters against the shapes of a layer, and return them adopted."""
    given = Given(**_named_parameters(parameters))
    (lead, signature), *others = given.signatures.items()
    leader = leading(lead, Signature(*signature), expected[0])
    for (name, signature), shape in zip(others, expected[1:], strict=True):
        leader.check(name, Signature(*signature), shape)
    return CompactParameters(*given.arrays.values())


def compact_parameters(dtype: Any, seed: Any) -> tuple[np.dtype[Any], int]:
    """Check the other arguments of :func:`gspn2_cupy.compact_parameters`."""
    return _named_type(dtype).numpy_dtype, whole_number("seed", seed, 0)


def _named_type(dtype: Any) -> DataType:
    """Check a data type given by itself or by its name."""
    try:
        known = data_type(dtype)
    except ImportError:
        raise ImportError(must("dtype", NOT_BFLOAT16, "bfloat16")) from None
    if known is None:
        raise TypeError(must("dtype", f"be {DATA_TYPES}", shown(dtype)))
    return known


def warmup(
    shape: Any,
    dtype: Any,
    *,
    groups: Any,
    directions: Any,
    lam: Any,
    u: Any,
    normalize: Any,
    chunk: Any,
    backward: Any,
    progress: Any,
) -> Call:
    """Check a call of :func:`gspn2_cupy.warmup`, which takes no arrays."""
    if isinstance(shape, str) or not isinstance(shape, Sequence):
        raise TypeError(must("shape", "be a tuple or list (B, C, H, W)", shown(shape)))
    if len(shape) != 4:
        raise ValueError(must("shape", "be four extents (B, C, H, W)", text_of(shape)))
    extents = tuple(whole_number(f"shape[{axis}]", extent, 0) for axis, extent in enumerate(shape))
    known = _named_type(dtype)
    groups = whole_number("groups", groups, 0)
    if not divides(groups, extents[1]):
        raise ValueError(must("groups", f"divide C={extents[1]}", groups))
    return Call(
        shape=extents,
        dtype=known,
        groups=groups,
        directions=several_directions(directions),
        lam=flag("lam", lam),
        u=flag("u", u),
        normalize=normalization(normalize),
        chunk=chunk_length(chunk),
        backward=flag("backward", backward),
        progress=flag("progress", progress),
    )
