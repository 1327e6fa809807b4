"""What every probe uses: compile, time, keep figures and lines of the table, stop in time."""

import contextlib
import ctypes
import json
import math
import os
import statistics
import threading
import time
from pathlib import Path

import cupy
import numpy
from cupy.cuda import driver

SOURCES = Path(__file__).parent
MEBI = 1 << 20
NON_PORTABLE_CLUSTER_SIZE_ALLOWED = 14  # CUfunction_attribute


class OutOfTimeError(RuntimeError):
    """The probe's share of the time is used up."""


class Report:
    """The figures of one probe and its lines of the table: what was measured beside what was predicted."""

    def __init__(self, path: str, seconds: float) -> None:
        self.path, self.deadline = path, time.monotonic() + seconds
        self.figures: list[dict] = []
        self.lines: list[tuple[str, str, str]] = []
        self.facts: dict = {}
        self.errors: list[str] = []
        watchdog = threading.Timer(seconds + 3, self.give_up)  # a hung device: synchronisation releases the GIL
        watchdog.daemon = True
        watchdog.start()

    def give_up(self) -> None:
        self.errors.append("hung: ended by the watchdog")
        self.save()
        os._exit(3)

    def check_time(self) -> None:
        if time.monotonic() > self.deadline:
            raise OutOfTimeError("out of time: the remaining cases were left out")

    def figure(self, case: str, **values: object) -> None:
        self.figures.append({"case": case, **values})
        self.check_time()

    @contextlib.contextmanager
    def within_time(self):
        """What is measured inside may be cut short; the lines after it are still written."""
        try:
            yield
        except OutOfTimeError as error:
            self.errors.append(str(error))

    def line(self, case: str, measured: str, predicted: str = "") -> None:
        self.lines.append((case, measured, predicted))

    def save(self) -> None:
        content = {"facts": self.facts, "errors": self.errors, "lines": self.lines, "figures": self.figures}
        Path(self.path).write_text(json.dumps(content, default=float))


def source(name: str) -> str:
    """The text of a .cu file with its one header put in."""
    header = (SOURCES / "common.cuh").read_text().replace("#pragma once", "")
    text = (SOURCES / name).read_text().replace('#include "common.cuh"', header)
    assert '#include "' not in text
    return text


def kernels(file: str, expressions: list[str]) -> dict[str, cupy.RawKernel]:
    module = cupy.RawModule(code=source(file), options=("-std=c++17",), name_expressions=expressions)
    loaded = {name: module.get_function(name) for name in expressions}
    for kernel in loaded.values():
        _ = kernel.kernel  # load it now, not inside a capture
    return loaded


def allow_shared(kernel: cupy.RawKernel, shared_bytes: int) -> None:
    if shared_bytes > 48 * 1024:
        kernel.max_dynamic_shared_size_bytes = max(shared_bytes, kernel.max_dynamic_shared_size_bytes)


def blocks_per_multiprocessor(kernel: cupy.RawKernel, threads: int, shared_bytes: int) -> int:
    return driver.occupancyMaxActiveBlocksPerMultiprocessor(kernel.kernel.ptr, threads, shared_bytes)


def tensor_map(address: int, shape: tuple[int, ...], box: tuple[int, ...], promoted: int) -> numpy.void:
    """Encode a map of float32 for the tensor engine; sizes from the innermost on, without gaps.

    ``promoted``: bytes that the engine asks into L2 around each of its reads; 0: no more than it needs.
    """
    float32, promotions = 7, {0: 0, 64: 1, 128: 2, 256: 3}  # CUtensorMapDataType, CUtensorMapL2promotion
    rank = len(shape)
    memory = numpy.zeros(128 + 64, numpy.uint8)
    start = -memory.ctypes.data % 64
    strides = [4 * math.prod(shape[: axis + 1]) for axis in range(rank - 1)]
    status = ctypes.CDLL("libcuda.so.1").cuTensorMapEncodeTiled(
        ctypes.c_void_p(memory.ctypes.data + start),
        float32,
        rank,
        ctypes.c_void_p(address),
        (ctypes.c_uint64 * rank)(*shape),
        (ctypes.c_uint64 * rank)(*strides, 0),
        (ctypes.c_uint32 * rank)(*box),
        (ctypes.c_uint32 * rank)(*(1,) * rank),
        0,  # no interleaving
        0,  # no swizzle
        promotions[promoted],
        0,  # zeros outside
    )
    if status:
        raise RuntimeError(f"cuTensorMapEncodeTiled: error {status}")
    return memory[start : start + 128].view("V128")[0]


def device_facts() -> dict:
    properties = cupy.cuda.runtime.getDeviceProperties(0)
    names = ("multiProcessorCount", "l2CacheSize", "totalGlobalMem", "sharedMemPerBlockOptin", "regsPerMultiprocessor")
    return {
        "device": properties["name"].decode(),
        "compute_capability": f"{properties['major']}.{properties['minor']}",
        "cuda_driver": cupy.cuda.runtime.driverGetVersion(),
        "cuda_runtime": cupy.cuda.runtime.runtimeGetVersion(),
        "nvrtc": ".".join(map(str, cupy.cuda.nvrtc.getVersion())),
        "cupy": cupy.__version__,
        "numpy": numpy.__version__,
        **{name: properties.get(name) for name in names},
    }


class Gpu:
    """A stream, an arena of random floats, timing."""

    def __init__(self, report: Report, arena_bytes: int = 0) -> None:
        self.report = report
        report.facts.update(device_facts())
        self.multiprocessors = report.facts["multiProcessorCount"]
        self.stream = cupy.cuda.Stream(non_blocking=True)
        self.stream.__enter__()  # for good; after use() the end of any `with` would bring back the default stream
        self.size = arena_bytes
        if arena_bytes:
            self.arena = cupy.empty(arena_bytes // 4, dtype=numpy.float32)
            self.base = self.arena.data.ptr
            fill = cupy.RawModule(code=source("memory.cu"), options=("-std=c++17",)).get_function("fill")
            fill((self.multiprocessors * 8,), (256,), (self.arena, arena_bytes // 4))
        self.sink = cupy.empty(64, dtype=numpy.float32)
        self.stream.synchronize()

    def time_events(self, launch, repeats: int = 7, prepare=None) -> list[float]:
        """Seconds of each repeat after one warm-up; `prepare` is queued before the timed part."""
        before, after = cupy.cuda.Event(), cupy.cuda.Event()
        times = []
        for _ in range(repeats + 1):
            if prepare is not None:
                prepare()
            before.record(self.stream)
            launch()
            after.record(self.stream)
            after.synchronize()
            times.append(cupy.cuda.get_elapsed_time(before, after) * 1e-3)
        return times[1:]

    def time_graph(self, launch_all, count: int, repeats: int = 7) -> float:
        """Median seconds of one of the `count` launches in `launch_all`, replayed from a captured graph."""
        self.stream.begin_capture()
        try:
            launch_all()
        finally:
            graph = self.stream.end_capture()
        graph.upload(self.stream)
        return statistics.median(self.time_events(lambda: graph.launch(self.stream), repeats)) / count

    def words(self, count: int) -> cupy.ndarray:
        """Zeroed 64-bit words, without compiling a kernel of CuPy's."""
        words = cupy.empty(count, dtype=numpy.uint64)
        self.clear(words)
        return words

    def clear(self, array: cupy.ndarray) -> None:
        array.data.memset_async(0, array.nbytes, self.stream)


def short(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"
