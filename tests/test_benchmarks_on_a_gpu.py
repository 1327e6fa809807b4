"""The way a benchmark takes on a GPU, on a stand-in for CuPy: NumPy arrays, kernels in Python, a made-up clock."""

import ctypes
import json
import sys
import types
from contextlib import contextmanager, nullcontext

import numpy as np
import pytest

import gspn2_cupy
from benchmarks import cases, check, plans, runner
from benchmarks.byte_model import bytes_moved
from benchmarks.cases import Case
from gspn2_cupy import _launch


def case(operation="forward", dtype="float32", implementation="ours"):
    direction = cases.OPERATIONS[operation].directions[0]
    return Case(operation, "tiny", dtype, "shared", direction, implementation)


class FakeArray(np.ndarray):
    """A NumPy array with what the benchmarks use of CuPy's."""

    @property
    def data(self):
        def memset_async(value, size):
            ctypes.memset(self.ctypes.data, value, size)

        return types.SimpleNamespace(ptr=self.ctypes.data, memset_async=memset_async)

    def get(self):
        return np.array(self)


def fake_cupy(clock):
    """A module with what the benchmarks use of CuPy; each launch moves the clock on by 10 µs."""

    def kernel_of(entry):
        def launch(grid, block, args):
            clock["launches"] += 1
            clock["now"] += 1e-2
            KERNELS[entry](*args)

        launch.compile = lambda: None
        return launch

    class Event:
        def record(self):
            self.at = clock["now"]

        def synchronize(self):
            pass

    class Stream:
        ptr = 0

        def __init__(self, **options):
            self.graph = None

        def __enter__(self):
            return self

        def __exit__(self, *error):
            pass

        def synchronize(self):
            pass

        def begin_capture(self):
            clock["captured"] = clock["launches"]

        def end_capture(self):
            def launch():
                clock["replays"] += 1
                clock["now"] += 1

            return types.SimpleNamespace(upload=lambda: None, launch=launch)

    pool = types.SimpleNamespace(free_all_blocks=lambda: None, free_bytes=lambda: 0, malloc=None)
    module = types.ModuleType("cupy")
    module.ndarray, module.RawKernel = FakeArray, object
    module.empty = lambda shape, dtype=float: np.empty(shape, dtype).view(FakeArray)
    module.zeros = lambda shape, dtype=float: np.zeros(shape, dtype).view(FakeArray)
    module.empty_like = np.empty_like
    module.get_default_memory_pool = lambda: pool
    module.RawModule = lambda code, options: types.SimpleNamespace(get_function=kernel_of)
    module.cuda = types.SimpleNamespace(
        Stream=Stream,
        Event=Event,
        Graph=object,
        get_elapsed_time=lambda start, stop: stop.at - start.at,
        using_allocator=lambda allocate: nullcontext(),
        runtime=types.SimpleNamespace(memGetInfo=lambda: (1 << 40, 1 << 40)),
    )
    return module


def fill(array, count, seed, low, high):
    array[...] = np.random.default_rng(int(seed)).uniform(low, high, array.shape).astype(array.dtype)


def count_nans(array, count, total):
    total[0] = np.isnan(array.astype(np.float64)).sum()


def crop_planes(array, part, planes, height, width, first_row, first_column, rows, columns):
    part[...] = array[..., first_row : first_row + rows, first_column : first_column + columns]


def copy(source, target, count):
    target[...] = source


def sum_of_four(a, b, c, d, y, count):
    y[...] = sum(part.astype(np.float32) for part in (a, b, c, d)).astype(y.dtype)


KERNELS = {
    "fill": fill,
    "count_nans": count_nans,
    "crop": crop_planes,
    "copy_blocks": copy,
    "copy_strided": copy,
    "sum_of_four": sum_of_four,
}


def timed(clock, function):
    def call(*args, **options):
        clock["now"] += 2e-2
        return function(*args, **options)

    return call


@pytest.fixture
def gpu(monkeypatch):
    """A Gpu of the benchmarks, on the stand-in, for one tiny shape."""
    monkeypatch.setattr(cases, "SHAPES", {"tiny": ((2, 4, 40, 24), "a test")})
    monkeypatch.setattr(check, "WINDOW_ELEMENTS", 300)
    clock = {"now": 0.0, "launches": 0, "replays": 0}
    monkeypatch.setitem(sys.modules, "cupy", fake_cupy(clock))
    for name in ("gpu", "baselines"):
        monkeypatch.delitem(sys.modules, f"benchmarks.{name}", raising=False)
    monkeypatch.setattr(_launch, "cupy_launcher", lambda device: types.SimpleNamespace(limits=plans.H200))

    for name in ("line_scan", "line_scan_backward", "propagate", "propagate_backward"):
        monkeypatch.setattr(gspn2_cupy, name, timed(clock, getattr(gspn2_cupy.reference, name)))

    import benchmarks.gpu as module

    @contextmanager
    def forget():
        yield module.Gpu()
        for name in ("gpu", "baselines"):
            sys.modules.pop(f"benchmarks.{name}", None)
            vars(sys.modules["benchmarks"]).pop(name, None)

    with forget() as made:
        made.clock = clock
        made.limits = plans.H200.__class__(**{**vars(plans.H200), "l2_bytes": 40_000})  # few sets of buffers
        yield made


@pytest.mark.parametrize("dtype", cases.DTYPES)
@pytest.mark.parametrize("operation", cases.OPERATIONS)
def test_a_case_is_checked_timed_and_scored(gpu, operation, dtype):
    each = case(operation, dtype=dtype)
    record = runner.run_case(gpu, each, 0.1)
    assert record["status"] == "ok", record.get("traceback", record)
    assert record["bytes"] == bytes_moved(each)
    assert record["sets"] * record["bytes"] > 4 * gpu.limits.l2_bytes
    assert record["time"]["how"] == "graph"
    assert record["gbps"] == pytest.approx(record["bytes"] / record["time"]["median"] / 1e9)
    assert record["score"] == pytest.approx(record["copy"]["median"] / record["time"]["median"])
    assert json.loads(json.dumps(record))["id"] == each.id
    assert "score" in runner.line(record)


def test_separate_scans_give_the_unit(gpu):
    record = runner.run_case(gpu, case("unit", implementation="separate_scans"), 0.1)
    assert record["status"] == "ok", record.get("traceback", record)


def test_a_wrong_result_is_recorded_and_not_timed(gpu, monkeypatch):
    right = gspn2_cupy.reference.line_scan
    monkeypatch.setattr(gspn2_cupy, "line_scan", lambda *a, out, **o: np.multiply(right(*a, **o), 1.01, out=out))
    record = runner.run_case(gpu, case(), 0.1)
    assert record["status"] == "failed"
    assert "h of left_to_right" in record["reason"]
    assert "time" not in record
    assert "score" not in record


def test_an_element_never_written_is_found(gpu, monkeypatch):
    def forgetful(x, weight, lam, direction, out):
        keep = out[-1, -1, -1, -1].copy()
        gspn2_cupy.reference.line_scan(x, weight, lam, direction=direction, out=out)
        out[-1, -1, -1, -1] = keep
        return out

    monkeypatch.setattr(gspn2_cupy, "line_scan", forgetful)
    record = runner.run_case(gpu, case(), 0.1)
    assert record["status"] == "failed"
    assert "never written: {'h': 1}" in record["reason"]


def test_what_cannot_run_says_why(gpu, monkeypatch):
    monkeypatch.setattr(gpu, "available", lambda: 1000)
    record = runner.run_case(gpu, case(), 0.1)
    assert record["status"] == "left out"
    assert record["reason"].startswith("needs")
