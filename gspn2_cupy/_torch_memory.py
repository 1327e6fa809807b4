"""Array functions on tensors: on PyTorch's stream, in PyTorch's memory.

On CUDA tensors CuPy works on PyTorch's current stream and takes its memory from PyTorch: each allocation is a tensor,
and results are handed on as such. So memory is freed and reused in the order of the streams as PyTorch knows them, and
``Tensor.record_stream`` holds for results as for any other tensor.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from weakref import WeakValueDictionary

import torch
from torch import Tensor

from gspn2_cupy._adapters import on_stream
from gspn2_cupy._streams import torch_stream


class _Memory:
    """Gives CuPy memory that belongs to tensors, and finds the tensor that a result lies in."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._tensors: WeakValueDictionary[int, Tensor] = WeakValueDictionary()

    def allocate(self, size: int) -> Any:
        """Allocate as ``cupy.cuda.alloc`` does."""
        import cupy

        tensor = torch.empty(size, dtype=torch.uint8, device=self._device)
        address = tensor.data_ptr()
        if size:
            self._tensors[address] = tensor
        return cupy.cuda.MemoryPointer(cupy.cuda.UnownedMemory(address, size, tensor, self._device.index), 0)

    def own(self, result: Tensor) -> Tensor:
        """Return the result as a tensor of PyTorch's own memory, no longer of CuPy's through DLPack."""
        if result.numel() == 0:
            return torch.empty_like(result)
        storage = self._tensors[result.data_ptr()].untyped_storage()
        return result.new_empty(0).set_(storage, 0, result.shape, result.stride())


@contextmanager
def _cuda(device: torch.device) -> Iterator[_Memory]:
    """Let CuPy work on PyTorch's current stream of a device, with memory of PyTorch."""
    memory = _Memory(device)
    with torch.cuda.device(device), on_stream(device.index, torch_stream(device.index)):
        try:
            import cupy
        except ImportError:  # the array function says so
            yield memory
            return
        with cupy.cuda.using_allocator(memory.allocate):
            yield memory


def call(function: Callable[..., Any], leader: Tensor, /, **arguments: Any) -> list[Tensor]:
    """Call an array function on tensors, ``leader`` among them; return the results that are there."""
    arguments = {name: value.detach() if isinstance(value, Tensor) else value for name, value in arguments.items()}
    if not leader.is_cuda:
        return [result.contiguous() for result in _results(function(**arguments))]
    with _cuda(leader.device) as memory:
        return [memory.own(result) for result in _results(function(**arguments))]


def _results(results: Any) -> list[Tensor]:
    return [result for result in (results if isinstance(results, tuple) else (results,)) if result is not None]
