"""Copies of a launch's arrays in the emulator's memory: exact in size and alignment, and byte by byte in state.

Arrays that overlap share a copy, as they share memory. An array may be a strided view: its copy spans all bytes from
the lowest to the highest that the view touches, and the holes between its elements are not accessible.
"""

from __future__ import annotations

import ctypes
import weakref
from dataclasses import dataclass, field

import numpy as np
from numpy.lib.array_utils import byte_bounds

# State of a byte, as in runtime/memory.hpp.
ACCESSIBLE, INITIALISED, WRITABLE = 1, 2, 4
POISON = 0xFF  # as the bits of a floating-point number: NaN
PAGE = 4096
ALIGNMENT = 256  # an array keeps its address modulo this, which is what CUDA's own allocations have


@dataclass
class Group:
    """Arrays whose spans overlap, and their common copy."""

    start: int  # address in the caller's memory
    stop: int
    members: list[int] = field(default_factory=list)
    offset: int = 0  # in the arena
    state: np.ndarray = field(default_factory=lambda: np.zeros(0, np.uint8))
    label: bytes = b""
    granule: int = 4


class Allocations:
    """Which bytes of the arrays from `empty` have been written by a kernel."""

    def __init__(self):
        self._written: dict[int, tuple[weakref.ref, np.ndarray]] = {}

    def empty(self, shape, dtype) -> np.ndarray:
        array = np.empty(shape, dtype)
        array.reshape(-1).view(np.uint8).fill(POISON)
        if array.nbytes:
            start = array.ctypes.data
            gone = weakref.ref(array, lambda _: self._written.pop(start, None))
            self._written[start] = (gone, np.zeros(array.nbytes, np.uint8))
        return array

    def overlapping(self, start: int, stop: int):
        """Yield (first address, written flags) of every allocation in a span, cut to the span."""
        for first, (array, written) in self._written.items():
            low, high = max(first, start), min(first + written.size, stop)
            if low < high:
                note_what_python_wrote(array(), written)
                yield low, written[low - first : high - first]


def note_what_python_wrote(array: np.ndarray, written: np.ndarray) -> None:
    """Count elements as written that are not all poison any more."""
    elements = array.reshape(-1).view(np.uint8).reshape(-1, array.itemsize)
    written.reshape(elements.shape)[(elements != POISON).any(axis=1)] = 1


class Staging:
    """The arrays of one launch, copied in; `copy_out` brings the results back."""

    def __init__(self, arrays: dict[int, np.ndarray], writable: set[int], arena: int, allocations: Allocations):
        self.arrays, self.writable, self.allocations = arrays, writable, allocations
        self.groups = group_by_memory(arrays)
        self.pointers: dict[int, int] = {}
        self.copies: dict[int, np.ndarray] = {}
        end = PAGE
        for group in self.groups:
            group.offset = -(-end // PAGE) * PAGE + PAGE + group.start % ALIGNMENT
            end = group.offset + (group.stop - group.start)
            self._fill(group, arena)

    def _fill(self, group: Group, arena: int) -> None:
        size = group.stop - group.start
        address = arena + group.offset
        memory = np.frombuffer((ctypes.c_uint8 * size).from_address(address), np.uint8) if size else group.state
        memory.fill(POISON)
        group.state = np.zeros(size, np.uint8)
        names = ", ".join(str(i) for i in group.members)
        group.label = f"argument{'s' * (len(group.members) > 1)} {names}".encode()
        group.granule = min(4, *(self.arrays[i].itemsize for i in group.members))
        for i in group.members:
            array = self.arrays[i]
            first = array.ctypes.data - group.start
            self.pointers[i] = address + first
            if not array.size:
                continue
            self.copies[i] = view_like(array, memory, first)
            self.copies[i][...] = array
            bytes_of = as_bytes(array)
            touched = view_like(bytes_of, group.state, first)
            touched |= ACCESSIBLE | INITIALISED | (WRITABLE if i in self.writable else 0)
        for low, written in self.allocations.overlapping(group.start, group.stop):
            part = slice(low - group.start, low - group.start + written.size)
            group.state[part][written == 0] &= ~np.uint8(INITIALISED)

    def copy_out(self) -> None:
        for i in self.writable & self.copies.keys():
            self.arrays[i][...] = self.copies[i]
        for group in self.groups:
            for low, written in self.allocations.overlapping(group.start, group.stop):
                part = slice(low - group.start, low - group.start + written.size)
                written |= group.state[part] & INITIALISED


def group_by_memory(arrays: dict[int, np.ndarray]) -> list[Group]:
    groups: list[Group] = []
    for start, stop, i in sorted((*byte_bounds(a), i) for i, a in arrays.items() if a.size):
        if groups and start < groups[-1].stop:
            groups[-1].stop = max(groups[-1].stop, stop)
        else:
            groups.append(Group(start, stop))
        groups[-1].members.append(i)
    return groups + [Group(a.ctypes.data, a.ctypes.data, [i]) for i, a in arrays.items() if not a.size]


def as_bytes(array: np.ndarray) -> np.ndarray:
    """Return the array's bytes, with one more axis: of its own shape and strides, whatever these are."""
    return np.lib.stride_tricks.as_strided(
        np.zeros(1, np.uint8), (*array.shape, array.itemsize), (*array.strides, 1), writeable=False
    )


def view_like(array: np.ndarray, memory: np.ndarray, first: int) -> np.ndarray:
    """Return a view of `memory` with the array's type, shape and strides, its first element at byte `first`."""
    return np.ndarray(array.shape, array.dtype, buffer=memory, offset=first, strides=array.strides)
