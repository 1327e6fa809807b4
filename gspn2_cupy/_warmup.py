"""Compiles ahead of use what calls will launch.

The calls themselves are made, on arrays without memory, through a launcher that compiles each kernel but never launches
it. So a warm-up can't drift from what calls do.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from gspn2_cupy import _device, _launch
from gspn2_cupy._checks import Call
from gspn2_cupy._plan import KernelSpec

INSTALL = 'pip install "gspn2_cupy[cuda13]", or cuda12'


def array_without_memory(shape: tuple[int, ...], dtype: Any) -> Any:
    """Return an array for launches that never happen: true in shape, strides and data type; writing to it raises."""
    one = np.empty(1, dtype)
    strides = [one.itemsize * math.prod(shape[axis + 1 :]) for axis in range(len(shape))]
    return np.lib.stride_tricks.as_strided(one, shape, strides, writeable=False)


class CompilingLauncher:
    """Compiles, through a device's launcher, what it is asked to launch, and launches nothing."""

    def __init__(self, launcher: _launch.Launcher, progress: bool):
        self.limits = launcher.limits
        self._launcher = launcher
        self._progress = progress
        self._kernels: dict[KernelSpec, CompilingKernel] = {}

    def compile(self, spec: KernelSpec) -> CompilingKernel:
        """Return a kernel that is compiled when it is called."""
        return self._kernels.setdefault(spec, CompilingKernel(self._launcher, spec, self._progress))

    def empty(self, shape: tuple[int, ...], dtype: Any) -> Any:
        """Return an array that nothing will be written to."""
        return array_without_memory(shape, dtype)

    zeros = empty


class CompilingKernel:
    """A kernel that a call prepares for its launch instead of launching it."""

    def __init__(self, launcher: _launch.Launcher, spec: KernelSpec, progress: bool):
        self._launcher, self._spec, self._progress = launcher, spec, progress
        self._prepared: set[tuple[int, bool]] = set()

    def prepare(self, shared_bytes: int, cooperative: bool = False) -> None:
        """Compile and load, once, and say so."""
        if (shared_bytes, cooperative) in self._prepared:
            return
        if self._progress:
            print(f"gspn2_cupy compiles {self._spec}", end=" ", file=sys.stderr, flush=True)
        start = time.perf_counter()
        self._launcher.compile(self._spec).prepare(shared_bytes, cooperative)
        self._prepared.add((shared_bytes, cooperative))
        if self._progress:
            print(f"{time.perf_counter() - start:.2f} s", file=sys.stderr, flush=True)

    def __call__(
        self,
        grid: tuple[int, int, int],
        block: tuple[int, int, int],
        shared_bytes: int,
        args: Sequence[Any],
        cooperative: bool = False,
    ) -> None:
        """Prepare for a launch like this one."""
        self.prepare(shared_bytes, cooperative)


def _current_launcher() -> _launch.Launcher:
    """Return the launcher of the current CUDA device, or the one that stands in for it."""
    launcher = _launch.override()
    if launcher is not None:
        return launcher
    try:
        import cupy
    except ImportError:
        raise RuntimeError(f"warmup needs a CUDA device and CuPy; CuPy is not installed ({INSTALL})") from None
    try:
        return _launch.cupy_launcher(cupy.cuda.Device().id)
    except cupy.cuda.runtime.CUDARuntimeError as error:
        raise RuntimeError(f"warmup needs a CUDA device; CUDA says {error}") from None


def warmup(call: Call) -> None:
    """See :func:`gspn2_cupy.warmup`."""
    launcher = CompilingLauncher(_current_launcher(), call.progress)
    if 0 not in call.shape:  # else nothing is launched
        with _launch.use(launcher):
            _make_calls(call)


def _make_calls(call: Call) -> None:
    """Make every kind of call that may follow a warm-up."""
    batch, channels, height, width = call.shape
    count = len(call.directions)

    def array(*shape: int) -> Any:
        return array_without_memory(shape, call.dtype.numpy_dtype)

    x = array(*call.shape)
    lam = x if call.lam else None
    weight = array(batch, call.groups, 3, height, width)
    for direction in call.directions:
        if call.normalize is not None:
            _device.normalize_weights(weight, direction=direction, method=call.normalize)
            if call.backward:
                _device.normalize_weights_backward(weight, weight, direction=direction, method=call.normalize)
        options = {"direction": direction, "chunk": call.chunk}
        _device.line_scan(x, weight, lam, **options)
        if call.backward:
            for h in (None, x):
                _device.line_scan_backward(x, x, weight, lam, h, **options)

    images = array(batch, count, channels, height, width)
    lam, u = (images if call.lam else None), (images if call.u else None)
    weight = array(batch, count, call.groups, 3, height, width)
    for merge in (None, array(count)):
        options = {"directions": call.directions, "merge": merge, "normalize": call.normalize, "chunk": call.chunk}
        for states in (None, images):
            _device.propagate(x, weight, lam, u, **options, return_states=states is not None)
            for needs in (None, ("x",), ("weight",), ("lam",)) if call.backward else ():
                _device.propagate_backward(x, x, weight, lam, u, **options, states=states, needs=needs)
