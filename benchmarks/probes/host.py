"""What the host pays for a call through CuPy, how arguments arrive, cooperative launches."""

import statistics
import time
import warnings

import cupy
import numpy

from benchmarks.probes.gpu import MEBI, Gpu, Report, allow_shared, blocks_per_multiprocessor, kernels, source
from benchmarks.probes.latency import together

GEOMETRY = numpy.dtype([(f"field_{i}", numpy.int64) for i in range(18)])


def host(report: Report) -> None:
    """Microseconds per call on the host."""
    gpu = Gpu(report)
    start = time.perf_counter()
    loaded = kernels("latency.cu", ["arguments_7", "arguments_struct", "arguments_25"])
    report.figure("first load of latency.cu, three kernels", ms=(time.perf_counter() - start) * 1e3)

    def cost(case: str, call, told: str = "", count: int = 400) -> float:
        try:
            call()
            times = []
            for _ in range(7):
                gpu.stream.synchronize()
                start = time.perf_counter()
                for _ in range(count):
                    call()
                times.append((time.perf_counter() - start) / count * 1e6)
            gpu.stream.synchronize()
        except Exception as error:
            report.errors.append(f"{case}: {error!r}")
            report.line(case, "failed")
            return float("nan")
        value = statistics.median(times)
        report.figure(case, us=value, lowest_us=min(times))
        report.line(case, f"{value:.2f} us", told)
        return value

    arrays = tuple(cupy.empty(1024, dtype=numpy.float32) for _ in range(6))
    words = gpu.words(18)
    geometry = numpy.zeros((), dtype=GEOMETRY)
    for i in range(18):
        geometry[f"field_{i}"] = (i + 1) * 10**12 + i
    wanted = [(i + 1) * 10**12 + i for i in range(18)]
    for name, value in (("0-d structured array", geometry), ("structured scalar", geometry[()])):
        try:
            gpu.clear(words)
            loaded["arguments_struct"]((1,), (32,), (*arrays, words, value))
            arrived = words.get(stream=gpu.stream).tolist() == wanted
            verdict = "arrives" if arrived else "ARRIVES WRONG"
        except Exception as error:
            verdict = f"refused: {error!r}"[:90]
        report.figure("struct by value", passed_as=name, verdict=verdict)
        report.line(f"struct by value, {name}", verdict, "arrives")

    seven, function = (*arrays, words), loaded["arguments_7"].kernel
    sized = tuple(numpy.int64(i) for i in range(18))
    null = (*arrays, None, geometry)
    cost("launch, 7 arrays", lambda: loaded["arguments_7"]((1,), (32,), seven), "<= 3 us in the <= 8 us plan")
    cost("launch, 7 arrays, kernel.kernel", lambda: function((1,), (32,), seven))
    cost("launch, 7 arrays + 18 sized scalars", lambda: loaded["arguments_25"]((1,), (32,), (*seven, *sized)))
    cost("launch, 7 arrays + struct", lambda: loaded["arguments_struct"]((1,), (32,), (*seven, geometry)), "cheaper")
    cost("launch, 6 arrays + None + struct", lambda: loaded["arguments_struct"]((1,), (32,), null))
    cost("RawKernel.kernel look-up", lambda: loaded["arguments_7"].kernel)
    cost("cupy.empty (16,8,64,64)", lambda: cupy.empty((16, 8, 64, 64), dtype=numpy.float32))
    event = cupy.cuda.Event(disable_timing=True)
    cost("event record", lambda: event.record(gpu.stream))
    cost("event create + record", lambda: cupy.cuda.Event(disable_timing=True).record(gpu.stream))
    cost("stream.wait_event", lambda: gpu.stream.wait_event(event))
    cost("current stream", cupy.cuda.get_current_stream)
    cost("runtime.getDevice", cupy.cuda.runtime.getDevice)
    cost("with Device(0)", lambda: cupy.cuda.Device(0).__enter__().__exit__())
    cost("cupy.from_dlpack(cupy array)", lambda: cupy.from_dlpack(arrays[0]))

    for count in (1, 20, 200):
        gpu.stream.begin_capture()
        for _ in range(count):
            loaded["arguments_struct"]((1,), (32,), (*seven, geometry))
        graph = gpu.stream.end_capture()
        graph.upload(gpu.stream)
        cost(f"graph launch of {count} kernels (host)", lambda: graph.launch(gpu.stream), count=50)  # noqa: B023
        seconds = statistics.median(gpu.time_events(lambda: graph.launch(gpu.stream), 9))  # noqa: B023
        report.figure("graph replay on the device", kernels=count, us_per_kernel=seconds / count * 1e6)
        report.line(f"graph replay of {count}, per kernel", f"{seconds / count * 1e6:.2f} us", "<= 3 us")
    seconds = statistics.median(gpu.time_events(lambda: [function((1,), (32,), seven) for _ in range(200)], 9))
    report.line("eager launches back to back", f"{seconds / 200 * 1e6:.2f} us", "2.2 us")

    def compile_time(case: str, code: str, told: str) -> None:
        cupy.clear_memo()  # CuPy also keeps modules in memory
        start = time.perf_counter()
        cupy.RawModule(code=code, options=("-std=c++17",)).get_function("probe").kernel  # noqa: B018
        seconds = time.perf_counter() - start
        report.figure(case, ms=seconds * 1e3)
        report.line(case, f"{seconds * 1e3:.1f} ms", told)

    plain = f'// {time.time_ns()}\nextern "C" __global__ void probe(float* a) {{ a[threadIdx.x] *= 2; }}\n'
    halves = "#include <cuda_fp16.h>\n#include <cuda_bf16.h>\n" + plain
    compile_time("cold compile, plain", plain, "30 ms")
    compile_time("cold compile, cuda_fp16.h + cuda_bf16.h", halves, "90 ms; goal <= 1500")
    compile_time("disk cache, plain", plain, "goal <= 50")
    compile_time("disk cache, cuda_fp16.h + cuda_bf16.h", halves, "goal <= 50")


def cooperative(report: Report) -> None:
    """Large dynamic shared memory, co-resident blocks, cooperative launches, plain and captured."""
    gpu = Gpu(report)
    kernel = kernels("latency.cu", ["residency"])["residency"]
    nanoseconds = 200_000

    def run(blocks: int, shared: int, grid_wide: bool) -> tuple[int, int]:
        """Blocks that ran, blocks that ran together."""
        out = gpu.words(3 * blocks)
        kernel.kernel((blocks,), (256,), (out, nanoseconds), shared, enable_cooperative_groups=grid_wide)
        words = out.get(stream=gpu.stream)
        return int((words[::3] != 0).sum()), together(words[: 3 * blocks][numpy.repeat(words[::3] != 0, 3)])

    for shared in (0, 100 * 1024, 200 * 1024, 227 * 1024):
        try:
            allow_shared(kernel, shared)
            fits = blocks_per_multiprocessor(kernel, 256, shared) * gpu.multiprocessors
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                _, together_plain = run(fits + gpu.multiprocessors, shared, False)
                ran, together_grid = run(fits, shared, True)
                quiet = len(caught)
                try:
                    over = f"{run(fits + 1, shared, True)[0]} ran"
                except Exception as error:
                    over = f"{error!r}"[:60]
                warned = [str(w.message)[:120] for w in caught[quiet:]]
        except Exception as error:
            report.errors.append(f"{shared} bytes: {error!r}")
            report.line(f"{shared // 1024} KB", "failed")
            continue
        values = {"shared": shared, "fits": fits, "plain": together_plain, "ran": ran, "cooperative": together_grid}
        report.figure("co-resident", **values, one_more=over, warned=warned)
        measured = f"plain {together_plain}, cooperative {ran} ran, {together_grid} at once; one more: {over}"
        predicted = f"{fits}; CuPy cuts a grid that is too large, with a warning"
        report.line(f"{shared // 1024} KB, 256 threads", measured, predicted)
        report.line("  warned", "; ".join(warned) or "no")

    out = gpu.words(3 * gpu.multiprocessors)
    args = ((gpu.multiprocessors,), (256,), (out, 1000), 100 * 1024)
    for grid_wide in (False, True):
        what = "cooperative" if grid_wide else "plain"
        try:
            gpu.clear(out)
            gpu.stream.begin_capture()
            try:
                kernel.kernel(*args, enable_cooperative_groups=grid_wide)
            finally:
                graph = gpu.stream.end_capture()
            gpu.stream.synchronize()
            before = int((out.get(stream=gpu.stream) != 0).sum())
            graph.launch(gpu.stream)
            words = out.get(stream=gpu.stream)
            seconds = statistics.median(gpu.time_events(lambda: graph.launch(gpu.stream), 9))  # noqa: B023
            verdict = f"before {before}, after {int((words[::3] != 0).sum())} blocks ran, {seconds * 1e6:.1f} us"
        except Exception as error:
            verdict = f"refused: {error!r}"[:100]
        report.figure("captured", launch=what, verdict=verdict)
        report.line(f"captured {what} launch", verdict, f"works: 0, {gpu.multiprocessors}")
        times = []
        for _ in range(5):
            gpu.stream.synchronize()
            start = time.perf_counter()
            for _ in range(100):
                kernel.kernel(*args, enable_cooperative_groups=grid_wide)
            times.append((time.perf_counter() - start) * 1e4)
            gpu.stream.synchronize()
        report.figure("launch cost", launch=what, us=statistics.median(times))
        report.line(f"{what} launch, host", f"{statistics.median(times):.2f} us", "")
    try:
        module = cupy.RawModule(code=source("latency.cu"), options=("-std=c++17",), enable_cooperative_groups=True)
        module.get_function("residency")((1,), (32,), (out, 1000))
        gpu.stream.synchronize()
        verdict = "compiles and runs"
    except Exception as error:
        verdict = f"refused: {error!r}"[:140]
    report.figure("RawModule(enable_cooperative_groups=True)", verdict=verdict)
    report.line("RawModule(enable_cooperative_groups=True)", verdict, "needs libcudadevrt: -rdc=true")
    free, total = cupy.cuda.runtime.memGetInfo()
    report.figure("memory", free_gib=free / (1024 * MEBI), total_gib=total / (1024 * MEBI))
