"""Turns the arguments of a public function into a checked `Call`; the one place that raises on user input.

Every message says ``<argument> must <what it must be>; got <what was received>``. TypeError: a wrong kind of argument
or data type. ValueError: a wrong shape, direction, chunk, device, group or option. ImportError: a package that the
arrays need is missing.

Calls repeat, so what follows from libraries, shapes, data types and devices alone is checked once for each combination
and remembered (``_remembered``); options and the memory of ``out`` are looked at every time.
"""

from __future__ import annotations

import operator
import reprlib
import sys
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from types import SimpleNamespace
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from gspn2_cupy import _launch
from gspn2_cupy._arrays import (
    DATA_TYPES,
    NOT_BFLOAT16,
    Array,
    DataType,
    Device,
    Library,
    Refusal,
    data_type,
    library_of,
    overlap,
    overlaps_itself,
)
from gspn2_cupy._compact_parameters import CompactParameters, shapes
from gspn2_cupy._streams import retain
from gspn2_cupy.reference import ALL_DIRECTIONS, HORIZONTAL

METHODS = ("sigmoid", "softmax")
OPTIONAL_ARRAYS = frozenset({"lam", "u", "merge", "h0", "dh_last", "h", "states", "out"})


class Call(SimpleNamespace):
    """A checked call: its arguments by their names, arrays adopted and options normalised.

    Arrays are ``numpy.ndarray`` or ``cupy.ndarray``, or None where absent; ``directions`` is a tuple of str, ``chunk``
    an int or None, ``needs`` a frozenset that names only inputs that are there. Besides, for all but warmup:

    ========  =====================================================================================
    dtype     `DataType` of the arrays; the state lines have ``dtype.state``
    device    ``("cpu", 0)`` or ``("cuda", index)``
    restore   method: a result of the backend -> what the caller gets
    ========  =====================================================================================
    """

    dtype: DataType
    device: Device
    _library: Library
    _like: Any  # an array as the caller gave it
    _given_out: Any = None
    _retained: bool = False
    out: Array = None

    @property
    def on_device(self) -> bool:
        """Whether the kernels run the call; otherwise the NumPy reference does."""
        return self.device[0] == "cuda" or _launch.override() is not None

    def restore(self, array: Array) -> Any:
        """Give a result back in the caller's library and device, and ``out`` as the object that was given."""
        if array is None:
            return None
        if self._library.retains and self.device[0] == "cuda" and not self._retained:
            retain(self, self.device[1])
            self._retained = True
        if array is self.out:
            self._library.restore(array, self._like)  # makes the caller's stream wait for ours
            return self._given_out
        return self._library.restore(self._library.lend(array), self._like)


# --- messages ---------------------------------------------------------------------------------------------------------


def _must(name: str, expected: str, received: object) -> str:
    """Say what is wrong with an argument."""
    return f"{name} must {expected}; got {received}"


def _quoted(names: Iterable[str]) -> str:
    return ", ".join(f'"{name}"' for name in names)


def _shown(value: object) -> str:
    """Show an option on one line: a plain value as it is, anything else by its type."""
    if isinstance(value, str):
        return f'"{value}"'
    if value is None or isinstance(value, (bool, int, float, tuple, list, set, frozenset)):
        return reprlib.repr(value)
    return _type_name(value)


def _type_name(value: object) -> str:
    if value is None:
        return "None"
    cls = type(value)
    return cls.__name__ if cls.__module__ == "builtins" else f"{cls.__module__}.{cls.__name__}"


# --- options ----------------------------------------------------------------------------------------------------------


def _one_of(name: str, value: Any, allowed: tuple[str, ...], alternative: str = "") -> str:
    """Check an option that is one of a few names."""
    if isinstance(value, str) and value in allowed:
        return allowed[allowed.index(value)]
    error = ValueError if isinstance(value, str) else TypeError
    raise error(_must(name, f"be {alternative}one of {_quoted(allowed)}", _shown(value)))


def _direction(value: Any) -> str:
    return _one_of("direction", value, ALL_DIRECTIONS)


def _directions(value: Any) -> tuple[str, ...]:
    if value is ALL_DIRECTIONS:
        return tuple(value)
    if isinstance(value, str) or not isinstance(value, Sequence):
        expected = f"be a tuple or list of names among {_quoted(ALL_DIRECTIONS)}"
        raise TypeError(_must("directions", expected, _shown(value)))
    directions = tuple([_one_of(f"directions[{d}]", each, ALL_DIRECTIONS) for d, each in enumerate(value)])
    if not directions or len(set(directions)) < len(directions):
        raise ValueError(_must("directions", "hold one to four directions, each at most once", _shown(value)))
    return directions


def _normalize(value: Any) -> str | None:
    return None if value is None else _one_of("normalize", value, METHODS, "None or ")


def _whole(name: str, value: Any, least: int, alternative: str = "") -> int:
    """Check a whole number."""
    expected = f"be {alternative}an integer of at least {least}"
    try:
        number = operator.index(value)
    except TypeError:
        number = None
    if number is None or isinstance(value, (bool, np.bool_)):
        raise TypeError(_must(name, expected, _shown(value)))
    if number < least:
        raise ValueError(_must(name, expected, number))
    return number


def _chunk(value: Any) -> int | None:
    if value is None:
        return None
    return min(_whole("chunk", value, 1, "None or "), sys.maxsize)  # no image reaches it, and 64 bits hold it


def _flag(name: str, value: Any) -> bool:
    if isinstance(value, (bool, np.bool_)):
        return bool(value)
    raise TypeError(_must(name, "be True or False", _shown(value)))


_OPTIONS: dict[str, Callable[[Any], Any]] = {
    "direction": _direction,
    "directions": _directions,
    "method": lambda value: _one_of("method", value, METHODS),
    "normalize": _normalize,
    "chunk": _chunk,
    "items_each_chunk": lambda value: _whole("items_each_chunk", value, 1),
    "return_last": lambda value: _flag("return_last", value),
    "save_states": lambda value: _flag("save_states", value),
}


def options(**given: Any) -> list[Any]:
    """Check options apart from a call, for the adapters, and return them in their order."""
    return [_OPTIONS[name](value) for name, value in given.items()]


def _needs(value: Any, inputs: dict[str, Array]) -> frozenset[str]:
    """Check which gradients are wanted, and leave out those of inputs that are not there."""
    if value is None:
        return frozenset([name for name, array in inputs.items() if array is not None])
    expected = f"be None or a tuple, list or set of names among {_quoted(inputs)}"
    if isinstance(value, str) or not isinstance(value, Collection):
        raise TypeError(_must("needs", expected, _shown(value)))
    for name in value:
        if not isinstance(name, str) or name not in inputs:
            raise ValueError(_must("needs", expected, _shown(value)))
    return frozenset([str(name) for name in value if inputs[name] is not None])


# --- arrays -----------------------------------------------------------------------------------------------------------


class _Signature(NamedTuple):
    """What is known of an array without looking at its memory."""

    library: Library
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    device: Device


def _remembered(check: Callable[..., DataType]) -> Callable[..., DataType]:
    """Let a check run once for each combination of signatures, given as plain tuples, which are faster to make."""

    @lru_cache(maxsize=1024)
    def remembered(*options: Any, **signatures: Any) -> DataType:
        return check(*options, **{name: _Signature(*signature) for name, signature in signatures.items()})

    return remembered


class _Given:
    """The arrays of a call as they were given, adopted, and by their signatures; the one that leads comes first."""

    def __init__(self, **given: Any) -> None:
        arrays: dict[str, Array] = {}
        signatures: dict[str, Any] = {}
        for name, value in given.items():
            if value is None and name in OPTIONAL_ARRAYS:
                arrays[name] = None
                continue
            library = library_of(type(value))
            if library is None:
                kinds = "NumPy, CuPy, PyTorch, JAX or another library with __dlpack__"
                raise TypeError(_must(name, f"be an array of {kinds}", _type_name(value)))
            adopted = library.adopt(value)
            if isinstance(adopted, Refusal):
                raise adopted.error(_must(name, adopted.expected, adopted.received))
            array, device = adopted
            arrays[name] = array
            signatures[name] = (library, array.shape, array.dtype, device)
        self.given, self.arrays, self.signatures = given, arrays, signatures

    def call(self, dtype: DataType, **options: Any) -> Call:
        """Make the call, once its arrays' data type is known."""
        given_out = self.given.get("out")
        if given_out is not None:
            _check_out_memory(self.arrays["out"], self.arrays)
        leader, like = next(iter(self.given.items()))
        library, _, _, device = self.signatures[leader]
        return Call(
            **self.arrays,
            **options,
            dtype=dtype,
            device=device,
            _library=library,
            _like=like,
            _given_out=given_out,
        )


_Shape: TypeAlias = Sequence[int | str]  # a letter stands for any extent, a first "..." for any leading axes


def _text(shape: _Shape) -> str:
    return f"({', '.join(map(str, shape))}{',' * (len(shape) == 1)})"


def _fits(shape: tuple[int, ...], expected: _Shape) -> bool:
    if expected[0] == "...":
        expected = expected[1:]
        shape = shape[-len(expected) :]
    return len(shape) == len(expected) and all(
        isinstance(wanted, str) or extent == wanted for extent, wanted in zip(shape, expected, strict=True)
    )


@dataclass(frozen=True)
class _Leader:
    """The array that the others of its call are compared with."""

    name: str
    signature: _Signature
    dtype: DataType

    def check(
        self,
        name: str,
        array: _Signature | None,
        shape: _Shape,
        note: str = "",
        *,
        fits: bool = True,
        state: bool = False,
    ) -> None:
        """Check another array, one with the state's type if ``state``; ``note`` says what its shape depends on."""
        if array is None:
            return
        if array.library is not (library := self.signature.library):
            expected = f"be an array of {library.name} like {self.name}"
            raise TypeError(_must(name, expected, f"one of {array.library.name}"))
        if array.device != (device := self.signature.device):
            raise ValueError(_must(name, f"lie on {_place(device)} like {self.name}", _place(array.device)))
        dtype = self.dtype.state if state else self.dtype
        if array.dtype != dtype.numpy_dtype:
            reason = f", the state's type of {self.dtype.name}" if state else f" like {self.name}"
            raise TypeError(_must(name, f"be {dtype.name}{reason}", array.dtype))
        if not fits or not _fits(array.shape, shape):
            raise ValueError(_must(name, f"have shape {_text(shape)}{note}", _text(array.shape)))


def _place(device: Device) -> str:
    return "the CPU" if device[0] == "cpu" else f"{device[0]}:{device[1]}"


def _leader(name: str, array: _Signature, shape: _Shape, note: str = "") -> _Leader:
    dtype = data_type(array.dtype)
    if dtype is None:
        raise TypeError(_must(name, f"be {DATA_TYPES}", array.dtype))
    if not _fits(array.shape, shape):
        raise ValueError(_must(name, f"have shape {_text(shape)}{note}", _text(array.shape)))
    return _Leader(name, array, dtype)


def _divides(groups: int, channels: int) -> bool:
    """Tell whether the channels fall into the groups: no channels fall into any number of groups, also into none."""
    return channels % groups == 0 if groups else channels == 0


def _check_weight(leader: _Leader, weight: _Signature, lead: tuple[int, ...], note: str = "") -> None:
    _, channels, height, width = leader.signature.shape
    groups = weight.shape[-4] if len(weight.shape) > 3 else 0
    shape: _Shape = (*lead, "G", 3, height, width)
    leader.check("weight", weight, shape, f"{note} with G dividing C={channels}", fits=_divides(groups, channels))


def _check_out_library(out: _Signature | None) -> None:
    if out is not None and not out.library.mutable:
        raise TypeError(_must("out", "be of a library with mutable arrays", f"one of {out.library.name}"))


def _check_out_memory(out: Array, arrays: dict[str, Array]) -> None:
    if isinstance(out, np.ndarray) and not out.flags.writeable:
        raise ValueError(_must("out", "be writable", "a read-only array"))
    if overlaps_itself(out):
        raise ValueError(_must("out", "hold each element in a place of its own", f"strides {_text(out.strides)}"))
    for name, array in arrays.items():
        if name != "out" and array is not None and overlap(out, array):
            raise ValueError(_must("out", "not overlap an input", f"memory shared with {name}"))


@_remembered
def _logits_arrays(*, logits: _Signature, dweight: _Signature | None = None) -> DataType:
    leader = _leader("logits", logits, ("...", 3, "H", "W"))
    leader.check("dweight", dweight, logits.shape)
    return leader.dtype


@_remembered
def _scan_arrays(
    direction: str,
    *,
    x: _Signature,
    weight: _Signature,
    lam: _Signature | None = None,
    h0: _Signature | None = None,
    out: _Signature | None = None,
    dh: _Signature | None = None,
    h: _Signature | None = None,
    dh_last: _Signature | None = None,
) -> DataType:
    leader = _leader("x", x, ("B", "C", "H", "W"))
    batch, channels, height, width = x.shape
    _check_weight(leader, weight, (batch,))
    leader.check("lam", lam, x.shape)
    line = (batch, channels, height if direction in HORIZONTAL else width)
    note = f' for direction "{direction}"'
    leader.check("h0", h0, line, note, state=True)
    _check_out_library(out)
    leader.check("out", out, x.shape)
    leader.check("dh", dh, x.shape)
    leader.check("h", h, x.shape)
    leader.check("dh_last", dh_last, line, note, state=True)
    return leader.dtype


@_remembered
def _unit_arrays(
    count: int,
    *,
    x: _Signature,
    weight: _Signature,
    lam: _Signature | None = None,
    u: _Signature | None = None,
    merge: _Signature | None = None,
    out: _Signature | None = None,
    dy: _Signature | None = None,
    states: _Signature | None = None,
) -> DataType:
    leader = _leader("x", x, ("B", "C", "H", "W"))
    batch, channels, height, width = x.shape
    each = (batch, count, channels, height, width)
    note = f" for D={count} directions"
    _check_weight(leader, weight, (batch, count), note)
    leader.check("lam", lam, each, note)
    leader.check("u", u, each, note)
    leader.check("merge", merge, (count,), note)
    _check_out_library(out)
    leader.check("out", out, x.shape)
    leader.check("dy", dy, x.shape)
    leader.check("states", states, each, note)
    return leader.dtype


@_remembered
def _affinity_arrays(
    count: int,
    *,
    weight: _Signature,
    lam: _Signature | None = None,
    u: _Signature | None = None,
    merge: _Signature | None = None,
) -> DataType:
    note = f" for D={count} directions"
    leader = _leader("weight", weight, ("B", count, "G", 3, "H", "W"), note)
    batch, _, groups, _, height, width = weight.shape
    channels: int | str = "C"
    for name, array in (("lam", lam), ("u", u)):
        if array is not None:
            each: _Shape = (batch, count, channels, height, width)
            fits = len(array.shape) == 5 and _divides(groups, array.shape[2])
            leader.check(name, array, each, f"{note} with G={groups} dividing C", fits=fits)
            channels = array.shape[2]
    leader.check("merge", merge, (count,), note)
    return leader.dtype


@_remembered
def _compact_arrays(count: int, *, x: _Signature, dy: _Signature | None = None, **parameters: _Signature) -> DataType:
    """Check the arrays of the compact unit; parameters go by their names in messages, ``parameters.reduce_weight``."""
    leader = _leader("x", x, ("B", "C", "H", "W"))
    leader.check("dy", dy, x.shape)
    channels = x.shape[1]
    reduce, logits = parameters["parameters.reduce_weight"], parameters["parameters.logits_weight"]
    leader.check("parameters.reduce_weight", reduce, ("P", channels), " with a column for each channel of x")
    proxies = reduce.shape[0]
    note = f" for P={proxies} proxy channels and D={count} directions"
    groups = logits.shape[1] if len(logits.shape) == 4 else 0
    leader.check(
        "parameters.logits_weight",
        logits,
        (count, "G", 3, proxies),
        f"{note} with G dividing P",
        fits=_divides(groups, proxies),
    )
    expected = shapes(channels, proxies, groups, count)
    for (name, array), shape in zip(parameters.items(), expected, strict=True):
        leader.check(name, array, shape, note)
    return leader.dtype


# --- the public functions ---------------------------------------------------------------------------------------------


def normalize_weights(logits: Any, *, direction: Any, method: Any) -> Call:
    """Check a call of :func:`gspn2_cupy.normalize_weights`."""
    given = _Given(logits=logits)
    return given.call(
        _logits_arrays(**given.signatures),
        direction=_direction(direction),
        method=_one_of("method", method, METHODS),
    )


def normalize_weights_backward(dweight: Any, logits: Any, *, direction: Any, method: Any) -> Call:
    """Check a call of :func:`gspn2_cupy.normalize_weights_backward`."""
    given = _Given(logits=logits, dweight=dweight)
    return given.call(
        _logits_arrays(**given.signatures),
        direction=_direction(direction),
        method=_one_of("method", method, METHODS),
    )


def line_scan(
    x: Any, weight: Any, lam: Any, *, direction: Any, chunk: Any, h0: Any, out: Any, return_last: Any
) -> Call:
    """Check a call of :func:`gspn2_cupy.line_scan`."""
    given = _Given(x=x, weight=weight, lam=lam, h0=h0, out=out)
    direction = _direction(direction)
    return given.call(
        _scan_arrays(direction, **given.signatures),
        direction=direction,
        chunk=_chunk(chunk),
        return_last=_flag("return_last", return_last),
    )


def line_scan_backward(
    dh: Any, x: Any, weight: Any, lam: Any, h: Any, *, direction: Any, chunk: Any, h0: Any, dh_last: Any, needs: Any
) -> Call:
    """Check a call of :func:`gspn2_cupy.line_scan_backward`."""
    given = _Given(x=x, weight=weight, lam=lam, h0=h0, dh=dh, h=h, dh_last=dh_last)
    direction = _direction(direction)
    return given.call(
        _scan_arrays(direction, **given.signatures),
        direction=direction,
        chunk=_chunk(chunk),
        needs=_needs(needs, {"x": x, "weight": weight, "lam": lam, "h0": h0}),
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
    given = _Given(x=x, weight=weight, lam=lam, u=u, merge=merge, out=out)
    directions = _directions(directions)
    return given.call(
        _unit_arrays(len(directions), **given.signatures),
        directions=directions,
        normalize=_normalize(normalize),
        chunk=_chunk(chunk),
        return_states=_flag("return_states", return_states),
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
    given = _Given(x=x, weight=weight, lam=lam, u=u, merge=merge, dy=dy, states=states)
    directions = _directions(directions)
    return given.call(
        _unit_arrays(len(directions), **given.signatures),
        directions=directions,
        normalize=_normalize(normalize),
        chunk=_chunk(chunk),
        needs=_needs(needs, {"x": x, "weight": weight, "lam": lam, "u": u, "merge": merge}),
    )


def affinity_matrix(weight: Any, lam: Any, u: Any, *, directions: Any, merge: Any, chunk: Any) -> Call:
    """Check a call of :func:`gspn2_cupy.affinity_matrix`."""
    given = _Given(weight=weight, lam=lam, u=u, merge=merge)
    directions = _directions(directions)
    return given.call(_affinity_arrays(len(directions), **given.signatures), directions=directions, chunk=_chunk(chunk))


def _compact_call(
    parameters: Any, arrays: dict[str, Any], *, directions: Any, normalize: Any, chunk: Any, **options: Any
) -> Call:
    """Check a call of the compact unit, whose ``parameters`` hold most of its arrays."""
    named = _named_parameters(parameters)
    given = _Given(**arrays, **named)
    directions = _directions(directions)
    dtype = _compact_arrays(len(directions), **given.signatures)
    return given.call(
        dtype,
        parameters=CompactParameters(*(given.arrays.pop(name) for name in named)),
        directions=directions,
        normalize=_one_of("normalize", normalize, METHODS),
        chunk=_chunk(chunk),
        **options,
    )


def _named_parameters(parameters: Any) -> dict[str, Any]:
    """Return the compact unit's parameters by the names that messages give them."""
    if not isinstance(parameters, CompactParameters):
        raise TypeError(_must("parameters", "be gspn2_cupy.CompactParameters", _type_name(parameters)))
    return {f"parameters.{name}": array for name, array in parameters._asdict().items()}


def compact_propagate(x: Any, parameters: Any, **options: Any) -> Call:
    """Check a call of :func:`gspn2_cupy.compact_propagate`."""
    return _compact_call(parameters, {"x": x}, **options)


def compact_propagate_backward(dy: Any, x: Any, parameters: Any, *, needs: Any, **options: Any) -> Call:
    """Check a call of :func:`gspn2_cupy.compact_propagate_backward`."""
    needs = _needs(needs, {"x": x, "parameters": parameters})
    return _compact_call(parameters, {"x": x, "dy": dy}, needs=needs, **options)


def compact_options(
    channels: Any, proxy_channels: Any, *, groups: Any, directions: Any, chunk: Any = None, normalize: Any = METHODS[0]
) -> SimpleNamespace:
    """Check what a compact unit is made with, by :func:`gspn2_cupy.compact_parameters` or as a layer."""
    proxies, count = _whole("proxy_channels", proxy_channels, 1), _whole("groups", groups, 1)
    if not _divides(count, proxies):
        raise ValueError(_must("groups", f"divide proxy_channels={proxies}", count))
    return SimpleNamespace(
        channels=_whole("channels", channels, 1),
        proxy_channels=proxies,
        groups=count,
        directions=_directions(directions),
        chunk=_chunk(chunk),
        normalize=_one_of("normalize", normalize, METHODS),
    )


def adopted_parameters(parameters: Any, expected: CompactParameters) -> CompactParameters:
    """Check parameters against the shapes of a layer, and return them adopted."""
    given = _Given(**_named_parameters(parameters))
    (lead, signature), *others = given.signatures.items()
    leader = _leader(lead, _Signature(*signature), expected[0])
    for (name, signature), shape in zip(others, expected[1:], strict=True):
        leader.check(name, _Signature(*signature), shape)
    return CompactParameters(*given.arrays.values())


def compact_parameters(dtype: Any, seed: Any) -> tuple[np.dtype[Any], int]:
    """Check the other arguments of :func:`gspn2_cupy.compact_parameters`."""
    return _named_type(dtype).numpy_dtype, _whole("seed", seed, 0)


def _named_type(dtype: Any) -> DataType:
    """Check a data type given by itself or by its name."""
    try:
        known = data_type(dtype)
    except ImportError:
        raise ImportError(_must("dtype", NOT_BFLOAT16, "bfloat16")) from None
    if known is None:
        raise TypeError(_must("dtype", f"be {DATA_TYPES}", _shown(dtype)))
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
        raise TypeError(_must("shape", "be a tuple or list (B, C, H, W)", _shown(shape)))
    if len(shape) != 4:
        raise ValueError(_must("shape", "be four extents (B, C, H, W)", _text(shape)))
    extents = tuple(_whole(f"shape[{axis}]", extent, 0) for axis, extent in enumerate(shape))
    known = _named_type(dtype)
    groups = _whole("groups", groups, 0)
    if not _divides(groups, extents[1]):
        raise ValueError(_must("groups", f"divide C={extents[1]}", groups))
    return Call(
        shape=extents,
        dtype=known,
        groups=groups,
        directions=_directions(directions),
        lam=_flag("lam", lam),
        u=_flag("u", u),
        normalize=_normalize(normalize),
        chunk=_chunk(chunk),
        backward=_flag("backward", backward),
        progress=_flag("progress", progress),
    )
