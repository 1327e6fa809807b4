"""What the adapters for PyTorch and JAX share: running CuPy on a stream of theirs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any


class _Foreign:
    """A stream of another library, by the CUDA stream protocol."""

    def __init__(self, pointer: int) -> None:
        self._pointer = pointer

    def __cuda_stream__(self) -> tuple[int, int]:
        return 0, self._pointer


@cache
def _stream(device: int, pointer: int) -> Any:
    """Wrap a stream of the current device, for ever: so no destructor of CuPy's touches a stream not its own."""
    import cupy

    return cupy.cuda.Stream.from_external(_Foreign(pointer))


@contextmanager
def on_stream(device: int, pointer: int) -> Iterator[None]:
    """Make a device and another library's stream on it CuPy's current ones.

    Without CuPy nothing happens: the array functions then say what is missing.
    """
    try:
        import cupy
    except ImportError:
        yield
        return
    with cupy.cuda.Device(device), _stream(device, pointer):
        yield
