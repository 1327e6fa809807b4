"""Memory that streams of two libraries use.

Freed memory is reused by what is queued next on its own stream, in every library, while other streams may still be busy
with it. Against that, where CuPy's stream is not the caller's:

- Results lent to PyTorch come back to CuPy through a `_Loan`, which lets CuPy's stream wait for PyTorch's.
- JAX shows no stream of its computations. So its results are copied into memory of its own, CuPy's stream waits for the
  copy, and inputs are kept until CuPy's stream is done with them (`retain`), as for every library but PyTorch. They
  are let go by the next call.
- Results given to other libraries through DLPack are memory of CuPy's pool that nothing guards further: who drops one
  while a stream of its own still reads it must synchronise first.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from typing import Any

Array = Any  # cupy.ndarray

_stranded: list[Any] = []  # kept for good: a graph was being captured that may use it at every replay


def current_stream(device: int) -> int:
    """Return CuPy's current stream on a device."""
    import cupy

    return int(cupy.cuda.get_current_stream(device).ptr)


def torch_stream(device: int) -> int:
    """Return PyTorch's current stream on a device."""
    torch = sys.modules["torch"]
    raw = getattr(torch._C, "_cuda_getCurrentRawStream", None)  # as PyTorch's own compiled code asks, for 0.2 of 9 µs
    return int(raw(device) if raw else torch.cuda.current_stream(device).cuda_stream)


def same_stream(one: int, other: int) -> bool:
    """Tell whether two streams of a device are one: 0 and 1 both name CUDA's legacy default stream."""
    return (one or 1) == (other or 1)


class _Loan:
    """Memory of CuPy's, lent to another library's stream: as it comes back, CuPy's stream waits for that one."""

    def __init__(self, cupy: Any, array: Array, lender: Any, borrower: int) -> None:
        self._cupy, self._array, self._lender, self._borrower = cupy, array, lender, borrower

    def __del__(self, is_finalizing: Callable[[], bool] = sys.is_finalizing) -> None:
        if is_finalizing():
            return
        runtime = self._cupy.cuda.runtime
        with self._array.device:
            if _captures(runtime, self._lender.ptr) or _captures(runtime, self._borrower):
                _stranded.append(self._array)
                return
            event = self._cupy.cuda.Event(disable_timing=True)
            runtime.eventRecord(event.ptr, self._borrower)
            runtime.streamWaitEvent(self._lender.ptr, event.ptr)


def _captures(runtime: Any, stream: int) -> bool:
    """Tell whether a stream is part of a graph's capture, or CUDA refuses to say because one is under way."""
    try:
        return bool(runtime.streamIsCapturing(stream))
    except runtime.CUDARuntimeError:
        return True


def lend(array: Array, borrower: int) -> Array:
    """Return an array for another library to use on its current stream and to free."""
    import cupy

    lender = cupy.cuda.get_current_stream(array.data.device_id)
    if array.size == 0 or same_stream(lender.ptr, borrower):
        return array
    loan = _Loan(cupy, array, lender, borrower)
    memory = cupy.cuda.UnownedMemory(array.data.ptr, array.nbytes, loan, array.data.device_id)
    return cupy.ndarray(array.shape, array.dtype, cupy.cuda.MemoryPointer(memory, 0), strides=array.strides)


_retained: list[tuple[Any, Any]] = []  # (an event, what is kept until it has happened)
_retaining = threading.Lock()


def retain(owner: Any, device: int) -> None:
    """Keep what a call holds until CuPy's current stream is done with all that is queued; the host doesn't wait."""
    import cupy

    with cupy.cuda.Device(device):
        if _captures(cupy.cuda.runtime, cupy.cuda.get_current_stream().ptr):
            _stranded.append(owner)
            return
        event = cupy.cuda.Event(disable_timing=True)
        event.record()
        _keep(event, owner)  # in here, as JAX may leave the device current of an array that it frees


def _keep(event: Any, owner: Any) -> None:
    """Keep an owner until an event has happened, and let go those whose event has."""
    done: list[tuple[Any, Any]] = []  # until the return, without the lock: to let go may run code of any library
    with _retaining:
        before = [*_retained, (event, owner)]
        _retained.clear()
        for entry in before:
            (done if entry[0].done else _retained).append(entry)
