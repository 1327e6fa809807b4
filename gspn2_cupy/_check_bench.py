"""``python -m gspn2_cupy check --bench``: a few calls against copies of as many bytes, in about a minute.

A call's bytes are those of its inputs and outputs, each once; the copy reads half as many and writes them. Both run
from CUDA graphs over sets of buffers that together exceed four times the L2 cache. The score is the copy's time over
the call's: 1 would be as fast as memory goes.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np

import gspn2_cupy
from gspn2_cupy import _launch
from gspn2_cupy._arrays import data_type
from gspn2_cupy.reference import ALL_DIRECTIONS

Array = Any

SECONDS = 60
ROUNDS = 15  # replays of a graph; the median is shown
SHAPES = {
    "high-resolution batch": (16, 8, 1024, 1024),
    "one 4K image": (1, 8, 4096, 4096),
    "vision transformer": (32, 96, 56, 56),
    "latent diffusion": (8, 64, 128, 128),
}
# operation, data type, whether each channel has weights of its own
CALLS = (
    ("forward", "float32", True),
    ("forward", "bfloat16", False),
    ("backward", "bfloat16", False),
    ("four directions", "bfloat16", False),
)


def run(cupy: Any) -> None:
    """Measure and print a table."""
    start = time.monotonic()
    print(f"\n{'shape':<24}{'call':<18}{'type':<10}{'G':>4}{'MB':>8}{'µs':>9}{'copy µs':>9}{'GB/s':>7}{'score':>7}")
    for name, shape in SHAPES.items():
        for operation, dtype, per_channel in CALLS:
            if time.monotonic() - start > SECONDS:
                print("the rest did not fit into the time")
                return
            groups = shape[1] if per_channel else 1
            label = f"{name:<24}{operation:<18}{dtype:<10}{groups:>4}"
            try:
                moved, seconds, copy = measure(cupy, shape, dtype, groups, operation)
            except (cupy.cuda.memory.OutOfMemoryError, ImportError) as error:
                print(f"{label}  not measured: {' '.join(str(error).split())[:60]}")
                continue
            rate = moved / seconds / 1e9
            print(
                f"{label}{moved / 1e6:>8.1f}{seconds * 1e6:>9.1f}{copy * 1e6:>9.1f}{rate:>7.0f}{copy / seconds:>7.2f}"
            )
            sys.stdout.flush()
    print("MB: inputs and outputs, each once. score: time of a copy of as many bytes over the call's.")


def measure(
    cupy: Any, shape: tuple[int, int, int, int], dtype: str, groups: int, operation: str
) -> tuple[int, float, float]:
    """Return bytes, seconds of a call, and seconds of a copy of as many bytes."""
    pool = cupy.cuda.MemoryPool()
    try:
        with cupy.cuda.using_allocator(pool.malloc), cupy.cuda.Stream(non_blocking=True) as stream:
            moved, call = _make(cupy, shape, dtype, groups, operation)
            sets = _sets(moved)
            calls = [call, *(_make(cupy, shape, dtype, groups, operation)[1] for _ in range(sets - 1))]
            seconds = _seconds(cupy, stream, calls)
            del call, calls
            stream.synchronize()
            pool.free_all_blocks()
            pairs = [(cupy.empty(moved // 2, np.uint8), cupy.empty(moved // 2, np.uint8)) for _ in range(sets)]
            copies = [partial(cupy.copyto, *pair) for pair in pairs]
            copy = _seconds(cupy, stream, copies)
            stream.synchronize()
            del pairs, copies
    finally:
        pool.free_all_blocks()
    return moved, seconds, copy


def _sets(moved: int) -> int:
    """Return how many sets of buffers exceed four times the L2 cache: at least two."""
    import cupy

    l2 = _launch.cupy_launcher(cupy.cuda.Device().id).limits.l2_bytes
    return min(64, max(2, -(-4 * l2 // moved) + 1))


def _make(
    cupy: Any, shape: tuple[int, int, int, int], dtype: str, groups: int, operation: str
) -> tuple[int, Callable[[], Any]]:
    """Return the bytes of a call, and the call on arrays of its own."""
    batch, _, height, width = shape
    count = len(ALL_DIRECTIONS)

    def random(*extents: int, low: float, high: float) -> Array:
        return _random(cupy, extents, dtype, low, high)

    x = random(*shape, low=-1, high=1)
    if operation == "four directions":
        weight = random(batch, count, groups, 3, height, width, low=0.2, high=0.33)
        lam, out = random(batch, count, *shape[1:], low=-1, high=1), cupy.empty_like(x)
        inputs: tuple[Array, ...] = (x, weight, lam)
        return _bytes(*inputs, out), lambda: gspn2_cupy.propagate(*inputs, out=out)
    weight = random(batch, groups, 3, height, width, low=0.2, high=0.33)
    lam = random(*shape, low=-1, high=1)
    inputs = (x, weight, lam)
    if operation == "forward":
        out = cupy.empty_like(x)
        return _bytes(*inputs, out), lambda: gspn2_cupy.line_scan(*inputs, direction="left_to_right", out=out)
    dh = random(*shape, low=-1, high=1)
    h = gspn2_cupy.line_scan(*inputs, direction="left_to_right")
    moved = _bytes(dh, *inputs, h) + _bytes(*inputs)  # the gradients are as large as what they belong to
    return moved, lambda: gspn2_cupy.line_scan_backward(dh, *inputs, h, direction="left_to_right")


def _random(cupy: Any, shape: tuple[int, ...], dtype: str, low: float, high: float) -> Array:
    kind = data_type(dtype)
    assert kind is not None
    size = int(np.prod(shape))
    some = np.random.default_rng(0).uniform(low, high, min(size, 1 << 20)).astype(kind.numpy_dtype)
    bits = cupy.asarray(some.view(f"u{kind.itemsize}"))
    return cupy.tile(bits, -(-size // bits.size))[:size].reshape(shape).view(kind.numpy_dtype)


def _bytes(*arrays: Array) -> int:
    return sum(int(array.nbytes) for array in arrays)


def _seconds(cupy: Any, stream: Any, calls: Sequence[Callable[[], Any]]) -> float:
    """Return the median time of a call, replayed from a graph of all of them."""
    calls[0]()  # loads the kernels
    stream.synchronize()
    stream.begin_capture()
    try:
        kept = [call() for call in calls]
    finally:
        graph = stream.end_capture()
    times: list[float] = []
    for _ in range(ROUNDS + 2):
        begin, end = cupy.cuda.Event(), cupy.cuda.Event()
        begin.record(stream)
        graph.launch(stream=stream)
        end.record(stream)
        end.synchronize()
        times.append(cupy.cuda.get_elapsed_time(begin, end) / 1e3 / len(calls))
    del kept
    return statistics.median(times[2:])
