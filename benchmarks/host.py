"""What a call costs on the host, the first call of a process, accuracy by data type, and the NumPy reference."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

import gspn2_cupy
from benchmarks.timing import Timing
from gspn2_cupy import _checks, _launch, _plan, _plan_scan, _steps, reference
from gspn2_cupy._arrays import data_type

SMALL = (1, 8, 32, 32)  # so small that the device never keeps the host waiting
CALLS, SAMPLES = 100, 15
REFERENCE_SHAPE = (1, 8, 128, 128)
ACCURACY_SHAPE = (2, 4, 96, 128)
ROOT = Path(__file__).resolve().parents[1]
Records = list[dict[str, Any]]


def time_calls(
    call: Callable[[], object], wait: Callable[[], object], calls: int = CALLS, limit: float = 2.0
) -> Timing:
    """Time the host's side of a call: batches of calls, the device waited for in between."""
    call()
    wait()
    samples: list[float] = []
    started = time.perf_counter()
    while len(samples) < SAMPLES and (len(samples) < 3 or time.perf_counter() - started < limit):
        start = time.perf_counter()
        for _ in range(calls):
            call()
        samples.append((time.perf_counter() - start) / calls)
        wait()
    return Timing.of(samples, calls, "host")


def inputs(shape: tuple[int, ...], seed: int = 0, dtype: str = "float32") -> dict[str, np.ndarray]:
    """Return NumPy arrays for one scan and for four, weights shared."""
    random = np.random.default_rng(seed)
    batch, channels, height, width = shape
    count = len(gspn2_cupy.ALL_DIRECTIONS)
    arrays = {
        "x": random.uniform(-1, 1, shape),
        "weight": random.uniform(0, 1 / 3, (batch, 1, 3, height, width)),
        "lam": random.uniform(0.5, 1.5, shape),
        "weights": random.uniform(0, 1 / 3, (batch, count, 1, 3, height, width)),
        "lams": random.uniform(0.5, 1.5, (batch, count, channels, height, width)),
    }
    return {name: array.astype(data_type(dtype).numpy_dtype) for name, array in arrays.items()}


def collected(calls: Iterator[tuple[str, Callable[[], object]]], wait: Callable[[], object]) -> Records:
    """Time each call; the first that fails says why, and ends them."""
    records: Records = []
    name = "setting up"
    try:
        for name, call in calls:
            records.append({"name": name, **time_calls(call, wait).record()})
    except Exception as error:
        records.append({"name": name, "error": f"{type(error).__name__}: {error}"})
    return records


# --- without a GPU ----------------------------------------------------------------------------------------------------


def host_side() -> Iterator[tuple[str, Callable[[], object]]]:
    """Yield what every call does on the host before it launches."""
    a = inputs(SMALL)
    layout = {name: _layout(array) for name, array in a.items()}
    x, weight, lam = layout["x"], layout["weight"], layout["lam"]
    scan = (a["x"], a["weight"], a["lam"])
    options = {"direction": "left_to_right", "chunk": None, "h0": None, "out": None, "return_last": False}
    limits = _plan.DeviceLimits("NVIDIA H200", (9, 0), 132, 232448, 233472, 2048, 60 << 20, 4_916_000_000_000)
    given = (limits, _plan.LineScan("left_to_right", None, x, weight, lam, None, x, None))
    yield "arguments checked", lambda: _checks.line_scan(*scan, **options)
    arrays = (*scan, None, a["x"], None)
    launcher = SimpleNamespace(limits=limits)
    yield "plan found in its cache", lambda: _steps.scan_plan(launcher, "left_to_right", None, *arrays)
    yield "plan made anew", lambda: _plan_scan.line_scan(*given)


def _layout(array: np.ndarray) -> _plan.Layout:
    strides = tuple(stride // array.itemsize for stride in array.strides)
    return _plan.Layout(array.shape, strides, data_type(array.dtype).c_name, array.itemsize)


def reference_times() -> Records:
    """Time the NumPy reference."""
    a = inputs(REFERENCE_SHAPE)
    scan = (a["x"], a["weight"], a["lam"])
    calls = {
        "forward": lambda: gspn2_cupy.line_scan(*scan, direction="left_to_right"),
        "backward": lambda: gspn2_cupy.line_scan_backward(a["x"], *scan, a["x"], direction="left_to_right"),
        "four directions": lambda: gspn2_cupy.propagate(a["x"], a["weights"], a["lams"]),
    }
    size = " × ".join(map(str, REFERENCE_SHAPE))
    return [
        {"name": f"NumPy reference, {name}, {size} fp32", **time_calls(call, lambda: None, 1, 3.0).record()}
        for name, call in calls.items()
    ]


# --- with one ---------------------------------------------------------------------------------------------------------


def upload(array: np.ndarray) -> Any:
    """Copy an array to the device, bit by bit whatever its type."""
    import cupy

    bits = {2: np.uint16, 4: np.uint32, 8: np.uint64}[array.itemsize]
    return cupy.asarray(array.view(bits)).view(array.dtype)


def download(array: Any) -> np.ndarray:
    """Copy an array to the host, bit by bit."""
    bits = {2: np.uint16, 4: np.uint32, 8: np.uint64}[array.itemsize]
    return array.view(bits).get().view(array.dtype)


def device_calls(gpu: Any) -> Iterator[tuple[str, Callable[[], object]]]:
    """Yield calls on small CUDA arrays."""
    import cupy

    from benchmarks.plans import recorded

    a = {name: upload(array) for name, array in inputs(SMALL).items()}
    out = cupy.empty_like(a["x"])
    scan, options = (a["x"], a["weight"], a["lam"]), {"direction": "left_to_right"}
    yield "line_scan(out=…)", lambda: gspn2_cupy.line_scan(*scan, **options, out=out)
    yield "line_scan", lambda: gspn2_cupy.line_scan(*scan, **options)
    yield "line_scan_backward", lambda: gspn2_cupy.line_scan_backward(a["x"], *scan, out, **options)
    yield "propagate, four directions", lambda: gspn2_cupy.propagate(a["x"], a["weights"], a["lams"], out=out)
    with recorded() as plans:
        gspn2_cupy.line_scan(*scan, **options, out=out)
    launcher, (plan,) = _launch.cupy_launcher(0), plans
    workspace = _steps.scan_workspace(launcher, plan, data_type(out.dtype).state)
    yield "launch of a plan at hand", lambda: _launch.run(launcher, plan, *scan, None, out, None, *workspace)
    graph = gpu.capture(lambda: gspn2_cupy.line_scan(*scan, **options, out=out))
    yield "replay of a graph of one call", graph.launch
    try:
        import torch
    except ImportError:
        return
    tensors = [torch.from_dlpack(array) for array in (*scan, out)]
    current = torch.cuda.ExternalStream(gpu.stream.ptr)

    def from_torch() -> None:
        with torch.cuda.stream(current):
            gspn2_cupy.line_scan(*tensors[:3], **options, out=tensors[3])

    yield "line_scan(out=…) of PyTorch tensors", from_torch


def accuracy(on_gpu: bool) -> Records:
    """Measure the error of each data type against float64, its inputs rounded first."""
    records: Records = []
    to, back = (upload, download) if on_gpu else (np.asarray, np.asarray)
    for dtype in ("float64", "float32", "float16", "bfloat16"):
        try:
            a = inputs(ACCURACY_SHAPE, 1, dtype)
            exact = {name: array.astype(np.float64) for name, array in a.items()}
            d = {name: to(array) for name, array in a.items()}
            for name, run in ACCURATE.items():
                outputs, truths = run(gspn2_cupy, d), run(reference, exact)
                for result, out in outputs.items():
                    truth = truths[result]
                    gap = np.linalg.norm(back(out).astype(np.float64) - truth) / np.linalg.norm(truth)
                    records.append({"operation": name, "result": result, "dtype": dtype, "relative": float(gap)})
        except Exception as error:
            records.append({"dtype": dtype, "error": f"{type(error).__name__}: {error}"})
    return records


def _forward(functions: Any, a: dict[str, Any]) -> dict[str, Any]:
    return {"h": functions.line_scan(a["x"], a["weight"], a["lam"], direction="left_to_right")}


def _backward(functions: Any, a: dict[str, Any]) -> dict[str, Any]:
    given = (a["x"], a["x"], a["weight"], a["lam"])
    grads = functions.line_scan_backward(*given, direction="left_to_right")
    return {"dx": grads.x, "dweight": grads.weight, "dlam": grads.lam}


def _unit(functions: Any, a: dict[str, Any]) -> dict[str, Any]:
    return {"y": functions.propagate(a["x"], a["weights"], a["lams"])}


ACCURATE = {"forward": _forward, "backward": _backward, "unit": _unit}


def small_plans(limits: Any) -> list[_plan.LaunchPlan]:
    """Return what the calls on small arrays launch on a device, without one."""
    from benchmarks.plans import PlanningLauncher, recorded
    from gspn2_cupy import _device

    with _launch.use(PlanningLauncher(limits)), recorded() as plans:
        for dtype in ("float64", "float32", "float16", "bfloat16"):
            for shape in (ACCURACY_SHAPE, SMALL) if dtype == "float32" else (ACCURACY_SHAPE,):
                arrays = inputs(shape, 0, dtype)
                for run in ACCURATE.values():
                    run(_device, arrays)
    return plans


# the first call of a process: from nothing, then from CuPy's disk cache
FIRST_CALL = """
import json, time
start = time.perf_counter()
import cupy, gspn2_cupy
imported = time.perf_counter()
x = cupy.empty((1, 8, 32, 32), "float32"); w = cupy.empty((1, 1, 3, 32, 32), "float32")
cupy.cuda.Device().synchronize()
ready = time.perf_counter()
gspn2_cupy.line_scan(x, w, x, direction="left_to_right"); cupy.cuda.Device().synchronize()
called = time.perf_counter()
gspn2_cupy.line_scan(x, w, x, direction="left_to_right"); cupy.cuda.Device().synchronize()
print(json.dumps([imported - start, ready - imported, called - ready, time.perf_counter() - called]))
"""


def first_calls() -> Records:
    """Time import, device, first and second call in fresh processes, without and with CuPy's disk cache."""
    records: Records = []
    with tempfile.TemporaryDirectory() as cache:
        environment = {**os.environ, "CUPY_CACHE_DIR": cache, "CUDA_CACHE_PATH": cache}
        for state in ("cold", "from the disk cache"):
            done = subprocess.run(
                [sys.executable, "-c", FIRST_CALL],
                cwd=ROOT,
                env=environment,
                capture_output=True,
                text=True,
                timeout=30,
            )
            if done.returncode:
                return [*records, {"name": state, "error": done.stderr[-400:]}]
            names = ("import of cupy and gspn2_cupy", "CUDA started", "first call", "second call")
            seconds = json.loads(done.stdout.splitlines()[-1])
            records += [{"name": f"{name}, {state}", "seconds": s} for name, s in zip(names, seconds, strict=True)]
    return records
