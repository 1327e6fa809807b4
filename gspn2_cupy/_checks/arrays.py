"""The arrays of calls, and the `Call` that they and the options make.

What follows from libraries, shapes, data types and devices alone is checked once for each combination and remembered
(``_remembered``); the memory of ``out`` is looked at every time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from types import SimpleNamespace
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from gspn2_cupy import _launch
from gspn2_cupy._arrays import (
    DATA_TYPES,
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
from gspn2_cupy._checks.options import must, type_name
from gspn2_cupy._compact_parameters import shapes
from gspn2_cupy._streams import retain
from gspn2_cupy.reference import HORIZONTAL

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


# --- arrays -----------------------------------------------------------------------------------------------------------


class Signature(NamedTuple):
    """What is known of an array without looking at its memory."""

    library: Library
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    device: Device


def _remembered(check: Callable[..., DataType]) -> Callable[..., DataType]:
    """Let a check run once for each combination of signatures, given as plain tuples, which are faster to make."""

    @lru_cache(maxsize=1024)
    def remembered(*options: Any, **signatures: Any) -> DataType:
        return check(*options, **{name: Signature(*signature) for name, signature in signatures.items()})

    return remembered


class Given:
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
                raise TypeError(must(name, f"be an array of {kinds}", type_name(value)))
            adopted = library.adopt(value)
            if isinstance(adopted, Refusal):
                raise adopted.error(must(name, adopted.expected, adopted.received))
            array, device = adopted
            arrays[name] = array
            signatures[name] = (library, array.shape, array.dtype, device)
        self.given, self.arrays, self.signatures = given, arrays, signatures

    def call(self, dtype: DataType, **options: Any) -> Call:
        """Make the call, once its arrays' data type is known."""
        given_out = self.given.get("out")
        if given_out is not None:
            out_memory(self.arrays["out"], self.arrays)
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


Shape: TypeAlias = Sequence[int | str]  # a letter stands for any extent, a first "..." for any leading axes


def text_of(shape: Shape) -> str:
    return f"({', '.join(map(str, shape))}{',' * (len(shape) == 1)})"


def _fits(shape: tuple[int, ...], expected: Shape) -> bool:
    if expected[0] == "...":
        expected = expected[1:]
        shape = shape[-len(expected) :]
    return len(shape) == len(expected) and all(
        isinstance(wanted, str) or extent == wanted for extent, wanted in zip(shape, expected, strict=True)
    )


@dataclass(frozen=True)
class Leader:
    """The array that the others of its call are compared with."""

    name: str
    signature: Signature
    dtype: DataType

    def check(
        self,
        name: str,
        array: Signature | None,
        shape: Shape,
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
            raise TypeError(must(name, expected, f"one of {array.library.name}"))
        if array.device != (device := self.signature.device):
            raise ValueError(must(name, f"lie on {_place(device)} like {self.name}", _place(array.device)))
        dtype = self.dtype.state if state else self.dtype
        if array.dtype != dtype.numpy_dtype:
            reason = f", the state's type of {self.dtype.name}" if state else f" like {self.name}"
            raise TypeError(must(name, f"be {dtype.name}{reason}", array.dtype))
        if not fits or not _fits(array.shape, shape):
            raise ValueError(must(name, f"have shape {text_of(shape)}{note}", text_of(array.shape)))


def _place(device: Device) -> str:
    return "the CPU" if device[0] == "cpu" else f"{device[0]}:{device[1]}"


def leading(name: str, array: Signature, shape: Shape, note: str = "") -> Leader:
    dtype = data_type(array.dtype)
    if dtype is None:
        raise TypeError(must(name, f"be {DATA_TYPES}", array.dtype))
    if not _fits(array.shape, shape):
        raise ValueError(must(name, f"have shape {text_of(shape)}{note}", text_of(array.shape)))
    return Leader(name, array, dtype)


def divides(groups: int, channels: int) -> bool:
    """Tell whether the channels fall into the groups: no channels fall into any number of groups, also into none."""
    return channels % groups == 0 if groups else channels == 0


def _check_weight(leader: Leader, weight: Signature, lead: tuple[int, ...], note: str = "") -> None:
    _, channels, height, width = leader.signature.shape
    groups = weight.shape[-4] if len(weight.shape) > 3 else 0
    shape: Shape = (*lead, "G", 3, height, width)
    leader.check("weight", weight, shape, f"{note} with G dividing C={channels}", fits=divides(groups, channels))


def _check_out_library(out: Signature | None) -> None:
    if out is not None and not out.library.mutable:
        raise TypeError(must("out", "be of a library with mutable arrays", f"one of {out.library.name}"))


def out_memory(out: Array, arrays: dict[str, Array]) -> None:
    if isinstance(out, np.ndarray) and not out.flags.writeable:
        raise ValueError(must("out", "be writable", "a read-only array"))
    if overlaps_itself(out):
        raise ValueError(must("out", "hold each element in a place of its own", f"strides {text_of(out.strides)}"))
    for name, array in arrays.items():
        if name != "out" and array is not None and overlap(out, array):
            raise ValueError(must("out", "not overlap an input", f"memory shared with {name}"))


@_remembered
def logits_arrays(*, logits: Signature, dweight: Signature | None = None) -> DataType:
    leader = leading("logits", logits, ("...", 3, "H", "W"))
    leader.check("dweight", dweight, logits.shape)
    return leader.dtype


@_remembered
def scan_arrays(
    direction: str,
    *,
    x: Signature,
    weight: Signature,
    lam: Signature | None = None,
    h0: Signature | None = None,
    out: Signature | None = None,
    dh: Signature | None = None,
    h: Signature | None = None,
    dh_last: Signature | None = None,
) -> DataType:
    leader = leading("x", x, ("B", "C", "H", "W"))
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
def unit_arrays(
    count: int,
    *,
    x: Signature,
    weight: Signature,
    lam: Signature | None = None,
    u: Signature | None = None,
    merge: Signature | None = None,
    out: Signature | None = None,
    dy: Signature | None = None,
    states: Signature | None = None,
) -> DataType:
    leader = leading("x", x, ("B", "C", "H", "W"))
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
def affinity_arrays(
    count: int,
    *,
    weight: Signature,
    lam: Signature | None = None,
    u: Signature | None = None,
    merge: Signature | None = None,
) -> DataType:
    note = f" for D={count} directions"
    leader = leading("weight", weight, ("B", count, "G", 3, "H", "W"), note)
    batch, _, groups, _, height, width = weight.shape
    channels: int | str = "C"
    for name, array in (("lam", lam), ("u", u)):
        if array is not None:
            each: Shape = (batch, count, channels, height, width)
            fits = len(array.shape) == 5 and divides(groups, array.shape[2])
            leader.check(name, array, each, f"{note} with G={groups} dividing C", fits=fits)
            channels = array.shape[2]
    leader.check("merge", merge, (count,), note)
    return leader.dtype


@_remembered
def compact_arrays(count: int, *, x: Signature, dy: Signature | None = None, **parameters: Signature) -> DataType:
    """Check the arrays of the compact unit; parameters go by their names in messages, ``parameters.reduce_weight``."""
    leader = leading("x", x, ("B", "C", "H", "W"))
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
        fits=divides(groups, proxies),
    )
    expected = shapes(channels, proxies, groups, count)
    for (name, array), shape in zip(parameters.items(), expected, strict=True):
        leader.check(name, array, shape, note)
    return leader.dtype
