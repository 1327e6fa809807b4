"""The GPU as the benchmarks use it: buffers that outgrow L2, poison, replayed graphs, the yardstick copy.

One non-blocking stream carries everything. Importing this needs CuPy.
"""

from __future__ import annotations

import gc
import math
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import cupy
import numpy as np

from benchmarks.timing import Timing, batches
from gspn2_cupy import _launch
from gspn2_cupy._arrays import data_type

SOURCES = Path(__file__).parent
POISON = 0xFF  # in every byte: NaN in every floating type
MEMORY_SHARE = 0.85  # of what is free, for the buffers of a case
RANGES = {"weight": (0.0, 1 / 3), "lam": (0.5, 1.5), "u": (0.5, 1.5)}  # three weights stay below 1


class DoesNotFitError(RuntimeError):
    """The case needs more memory than there is."""


@cache
def kernel(entry: str, dtype: str = "float32", source: str = "kernels.cu") -> cupy.RawKernel:
    """Return a kernel of the benchmarks' own, loaded."""
    code = (SOURCES / source).read_text(encoding="utf-8")
    options = ("-std=c++17", f"-DSCALAR={data_type(dtype).c_name}")
    function = cupy.RawModule(code=code, options=options).get_function(entry)
    function.compile()
    return function


class Gpu:
    """A stream, and what is done on it."""

    def __init__(self) -> None:
        self.stream = cupy.cuda.Stream(non_blocking=True)
        self.limits = _launch.cupy_launcher(0).limits
        self.pool = cupy.get_default_memory_pool()
        self._copies: dict[int, Timing] = {}
        self._of_graphs: list[Any] = []  # memory pools; a graph writes to its own at every replay
        self._wide = self.limits.multiprocessors * 8

    # --- memory -------------------------------------------------------------------------------------------------------

    def release(self) -> None:
        """Give back what no array holds."""
        self.stream.synchronize()
        gc.collect()  # what a cycle holds, with the memory of its arrays
        for pool in (*self._of_graphs, self.pool):
            pool.free_all_blocks()
        self._of_graphs.clear()
        torch = sys.modules.get("torch")
        if torch is not None and torch.cuda.is_initialized():
            torch.cuda.empty_cache()

    def available(self) -> int:
        """Return bytes that arrays may still take."""
        return int(cupy.cuda.runtime.memGetInfo()[0] + self.pool.free_bytes())

    def sets_for(self, set_bytes: int, extra_bytes: int = 0) -> int:
        """Return how many sets of buffers to rotate over: more than 4 × L2 in all, two at least if memory allows."""
        fit = int((self.available() * MEMORY_SHARE - extra_bytes) // set_bytes)
        if fit < 1:
            raise DoesNotFitError(
                f"needs {(set_bytes + extra_bytes) / 1e9:.0f} GB, "
                f"may take {self.available() * MEMORY_SHARE / 1e9:.0f} of {self.available() / 1e9:.0f}"
            )
        return min(fit, max(2, 4 * self.limits.l2_bytes // set_bytes + 1))

    def random(self, name: str, shape: tuple[int, ...], dtype: str, seed: int) -> cupy.ndarray:
        """Return an array of uniform values that suit an input of that name."""
        array = cupy.empty(shape, data_type(dtype).numpy_dtype)
        low, high = RANGES.get(name, (-1.0, 1.0))
        kernel("fill", dtype)((self._wide,), (256,), (array, np.int64(array.size), np.int64(seed), low, high))
        return array

    @contextmanager
    def poisoned(self) -> Iterator[None]:
        """Fill everything that is allocated inside with NaN."""

        def allocate(size: int) -> Any:
            memory = self.pool.malloc(size)
            if size:
                memory.memset_async(POISON, size)
            return memory

        with cupy.cuda.using_allocator(allocate):
            yield

    def poison(self, array: cupy.ndarray) -> None:
        """Fill an array with NaN."""
        array.data.memset_async(POISON, array.nbytes)

    def unwritten(self, array: cupy.ndarray, dtype: str) -> int:
        """Count the elements that are NaN."""
        total = cupy.zeros(1, np.uint64)
        kernel("count_nans", dtype)((self._wide,), (256,), (array, np.int64(array.size), total))
        return int(total.get()[0])

    def crop(self, array: cupy.ndarray, rows: slice, columns: slice) -> np.ndarray:
        """Copy a part of every plane of a contiguous array (…, H, W) to the host, as float64."""
        assert array.flags.c_contiguous
        height, width = array.shape[-2:]
        shape = (*array.shape[:-2], rows.stop - rows.start, columns.stop - columns.start)
        part = cupy.empty(shape, array.dtype)
        sizes = (math.prod(array.shape[:-2]), height, width, rows.start, columns.start, *shape[-2:])
        entry = kernel("crop", data_type(array.dtype).name)
        entry((self._wide,), (256,), (array, part, *map(np.int64, sizes)))
        bits = {2: np.uint16, 4: np.uint32, 8: np.uint64}[part.itemsize]
        return part.view(bits).get().view(part.dtype).astype(np.float64)

    # --- time ---------------------------------------------------------------------------------------------------------

    def elapsed(self, work: Callable[[], object]) -> float:
        """Seconds of the device between the start and the end of what ``work`` queues."""
        start, stop = cupy.cuda.Event(), cupy.cuda.Event()
        start.record()
        work()
        stop.record()
        stop.synchronize()
        return cupy.cuda.get_elapsed_time(start, stop) * 1e-3

    def capture(self, work: Callable[[], object]) -> cupy.cuda.Graph:
        """Return a graph of what ``work`` queues; what it allocates is given back by ``release``.

        Workspaces that a capture takes from CuPy's default pool are kept for good, so a pool of its own stands in.
        """
        pool = cupy.cuda.MemoryPool()
        self._of_graphs.append(pool)
        with cupy.cuda.using_allocator(pool.malloc):
            self.stream.begin_capture()
            try:
                work()
            finally:
                graph = self.stream.end_capture()
        graph.upload()
        return graph

    def time(
        self,
        run: Callable[[int], object],
        sets: int,
        limit: float,
        nodes: int = 4,
        graph: bool = True,
        then: Callable[[Callable[[], object], int], object] | None = None,
    ) -> Timing:
        """Time ``run(set)``, rotating over sets, within about ``limit`` seconds; ``nodes``: launches of one call.

        A captured graph holds a batch of calls, so the host does not count. Where a call cannot be captured (or with
        ``graph=False``) the calls of a batch are queued one by one, and ``how`` says "eager".
        ``then`` gets what was timed, and how many calls it holds.
        """
        estimate = self.elapsed(lambda: run(0))  # the first call may have loaded something
        if estimate < limit:
            for s in range(sets):
                run(s)
            estimate = min(estimate, self.elapsed(lambda: [run(s) for s in range(sets)]) / sets)
        plan = batches(estimate, limit, sets, max(20_000 // nodes, 1))

        def batch() -> None:
            for call in range(plan.calls):
                run(call % sets)

        how, replay = "eager", batch
        if graph and estimate < limit:
            try:
                captured = self.capture(batch)
                how, replay = "graph", captured.launch
            except Exception as error:  # what cannot be captured is timed one by one, and the record says so
                self.stream.synchronize()
                print(f"  not captured: {type(error).__name__}: {error}", flush=True)
        if plan.samples > 1:
            replay()
        timing = Timing.of([self.elapsed(replay) / plan.calls for _ in range(plan.samples)], plan.calls, how)
        if then is not None:
            then(replay, plan.calls)
        return timing

    def copy(self, moved: int, limit: float = 0.1) -> Timing:
        """Time the equal-bytes copy: half of ``moved`` bytes read, half written; the faster of two kernels."""
        count = max(moved // 32, 1)
        if count not in self._copies:
            self.release()
            sets = self.sets_for(32 * count)
            arrays = [self.random("x", (2, 4 * count), "float32", s) for s in range(sets)]
            launches = {"copy_blocks": (-(-count // 1024), 256), "copy_strided": (self._wide, 512)}

            def measure(entry: str) -> Timing:
                grid, block = launches[entry]

                def run(s: int) -> None:
                    kernel(entry)((grid,), (block,), (arrays[s][0], arrays[s][1], np.int64(count)))

                self.poison(arrays[0][1])
                run(0)
                if self.unwritten(arrays[0][1], "float32"):
                    raise AssertionError("the copy left elements unwritten")
                return self.time(run, sets, limit)

            self._copies[count] = min((measure(entry) for entry in launches), key=lambda timing: timing.median)
            del arrays
            self.release()
        return self._copies[count]

    def warm(self, seconds: float = 0.3) -> None:
        """Keep the GPU busy until its clocks have risen."""
        for _ in range(max(1, int(seconds / 0.15))):
            self.copy(1 << 30)
            self._copies.clear()


@contextmanager
def opened() -> Iterator[Gpu]:
    """Use the current device through one stream."""
    gpu = Gpu()
    with gpu.stream:
        yield gpu
