"""The way a benchmark takes on a GPU, on a stand-in for CuPy: NumPy arrays, kernels in Python, a made-up clock."""

import ctypes
import dataclasses
import json
import shutil
import sys
import types
from contextlib import contextmanager, nullcontext

import numpy as np
import pytest

import gspn2_cupy
from benchmarks import __main__ as command
from benchmarks import cases, check, implementations, plans, runner
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
    module.from_dlpack = lambda tensor: np.from_dlpack(tensor).view(FakeArray)
    module.get_default_memory_pool = lambda: pool
    module.RawModule = lambda code, options: types.SimpleNamespace(get_function=kernel_of)
    module.cuda = types.SimpleNamespace(
        Stream=Stream,
        Event=Event,
        Graph=object,
        get_elapsed_time=lambda start, stop: stop.at - start.at,
        using_allocator=lambda allocate: nullcontext(),
        MemoryPool=lambda: types.SimpleNamespace(malloc=None, free_all_blocks=lambda: None),
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
    for name in ("gpu", "baselines", "baselines_torch"):
        monkeypatch.delitem(sys.modules, f"benchmarks.{name}", raising=False)
    monkeypatch.setattr(_launch, "cupy_launcher", lambda device: types.SimpleNamespace(limits=plans.H200))

    for name in ("line_scan", "line_scan_backward", "propagate", "propagate_backward"):
        monkeypatch.setattr(gspn2_cupy, name, timed(clock, getattr(gspn2_cupy.reference, name)))

    import benchmarks.gpu as module

    @contextmanager
    def forget():
        yield module.Gpu()
        for name in ("gpu", "baselines", "baselines_torch"):
            sys.modules.pop(f"benchmarks.{name}", None)
            vars(sys.modules["benchmarks"]).pop(name, None)

    with forget() as made:
        made.clock = clock
        made.limits = dataclasses.replace(plans.H200, l2_bytes=40_000)  # few sets of buffers
        yield made


@pytest.mark.parametrize("dtype", cases.DTYPES)
@pytest.mark.parametrize("operation", cases.OPERATIONS)
def test_a_case_is_checked_timed_and_scored(gpu, operation, dtype):
    each = case(operation, dtype=dtype)
    record = runner.run_case(gpu, each, 0.1)
    assert record["status"] == "ok", record.get("traceback", record)
    assert record["bytes"] == bytes_moved(each)
    assert record["sets"] * record["bytes"] > 4 * gpu.limits.l2_bytes
    assert record["times_l2"] == record["sets"] * record["bytes"] / gpu.limits.l2_bytes
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


# --- the loop under torch.compile -------------------------------------------------------------------------------------


@pytest.fixture
def torch_on_the_cpu(gpu, monkeypatch):
    """The baselines that use PyTorch, on CPU tensors of the stand-in's memory."""
    pytest.importorskip("torch", reason="PyTorch is not installed")
    if shutil.which("g++") is None:
        pytest.skip("g++ is not installed")
    monkeypatch.setitem(implementations.NEEDS, "torch_compile", ("torch",))
    monkeypatch.setitem(cases.SHAPES, "tiny", ((2, 4, 3, 5), "few lines, which compile soon"))
    from benchmarks import baselines_torch

    monkeypatch.setattr(baselines_torch, "stream", nullcontext)
    monkeypatch.setattr(baselines_torch, "as_array", timed(gpu.clock, baselines_torch.as_array))
    return baselines_torch


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # PyTorch's compiler uses what PyTorch deprecates
@pytest.mark.parametrize("dtype", cases.DTYPES)
def test_torch_compile_compiles_once_a_case_and_not_while_it_is_timed(gpu, torch_on_the_cpu, dtype):
    from torch._dynamo.utils import counters

    counters.clear()
    record = runner.run_case(gpu, case(dtype=dtype, implementation="torch_compile"), 0.1)
    assert record["status"] == "ok", record.get("traceback", record)
    assert record["sets"] > 1
    assert counters["stats"]["unique_graphs"] == 1
    assert 0 < record["compile_seconds"] < record["took"]
    assert json.loads(json.dumps(record)) is not None


@pytest.mark.parametrize("direction", cases.AXES)
@pytest.mark.parametrize("weights", cases.WEIGHTS)
def test_the_loop_is_the_scan(torch_on_the_cpu, weights, direction):
    import torch

    generator = torch.Generator().manual_seed(0)
    x, lam = (torch.rand((2, 4, 7, 6), generator=generator) for _ in range(2))
    weight = torch.rand((2, 4 if weights == "per_channel" else 1, 3, 7, 6), generator=generator) / 3
    h = torch_on_the_cpu.naive_scan(x, weight, lam, direction)
    truth = gspn2_cupy.reference.line_scan(*(each.double().numpy() for each in (x, weight, lam)), direction=direction)
    assert np.linalg.norm(h.numpy() - truth) < 1e-6 * np.linalg.norm(truth)


def test_torch_compile_is_left_out_by_name(gpu, torch_on_the_cpu, monkeypatch):
    each = case(implementation="torch_compile")
    with monkeypatch.context() as patch:
        patch.setattr(torch_on_the_cpu.shutil, "which", lambda name: None)
        record = runner.run_case(gpu, each, 0.1)
        assert (record["status"], record["reason"]) == ("left out", "not installed: a C compiler, for torch.compile")
    monkeypatch.setitem(cases.SHAPES, "tiny", ((1, 1, 2, 65), "one line more than are unrolled"))
    record = runner.run_case(gpu, each, 0.1)
    assert record["status"] == "left out"
    assert "loop over 65 lines" in record["reason"]
    monkeypatch.setitem(implementations.NEEDS, "torch_compile", ("torch", "no_such_package"))
    assert runner.run_case(gpu, each, 0.1)["reason"] == "not installed: no_such_package"


# --- many cases in several runs ---------------------------------------------------------------------------------------


@pytest.fixture
def runs(gpu, monkeypatch, tmp_path):
    """A function that runs cases, with a limit in seconds, into one file; and the ids of what it ran."""
    ran = []

    def run_case(gpu, each, limit):
        ran.append(each.id)
        now["seconds"] += 10
        failed = each.dtype == "bfloat16"
        return {"id": each.id, **vars(each), "status": "failed" if failed else "ok", "reason": "made up", "took": 10.0}

    def run(seconds, *more):
        ran.clear()
        now["seconds"] = 0
        monkeypatch.setattr(command, "every_case", lambda: chosen)
        given = ["run", "--all", "--output", str(tmp_path / "r.json"), "--seconds", str(seconds), "--commit", "abc"]
        code = command.main([*given, *more])
        return code, list(ran), json.loads((tmp_path / "r.json").read_text())

    chosen = [case(dtype=dtype) for dtype in ("bfloat16", "float32", "float64")]
    chosen.append(case(implementation="torch_compile"))
    now = {"seconds": 0}
    for name, value in {
        "cuda_available": lambda: "",
        "machine": lambda reason: {"device": "Made-up GPU", "torch": "2.11.0"},
        "compile_ahead": lambda limits, given: 0.0,
        "_measure_machine": lambda results, gpu, say: results.save(accuracy=["measured"]),
        "run_case": run_case,
        "line": lambda record: record["id"],
    }.items():
        monkeypatch.setattr(runner, name, value)
    monkeypatch.setattr(runner.time, "perf_counter", lambda: now["seconds"])
    monkeypatch.setattr(runner.host, "first_calls", lambda: ["measured"])
    monkeypatch.setattr("benchmarks.report.tables", lambda contents: "")
    monkeypatch.setattr(gpu.__class__, "warm", lambda self: None)
    run.chosen = chosen
    return run


def test_a_run_goes_on_where_an_earlier_one_ended(runs):
    half, single, double, compiled = (each.id for each in runs.chosen)
    code, ran, content = runs(15)
    assert (code, ran) == (1, [half, single])
    assert [record["reason"] for record in content["cases"][2:]] == [runner.NO_TIME] * 2
    assert content["first_calls"] == []

    code, ran, content = runs(46, "--continue")  # what failed comes last; nothing is measured twice
    assert (code, ran) == (1, [double, compiled, half])
    assert [record["id"] for record in content["cases"]] == [single, double, compiled, half]
    assert content["first_calls"] == content["accuracy"] == ["measured"]
    assert content["seconds"] == 50
    assert len(content["continued"]) == 1
    assert content["continued"][0].startswith("python -m benchmarks")

    assert runs(45, "--continue")[1] == [half]
    assert runs(100)[1] == [half, single, double, compiled]  # without the option from the start


def test_compiling_needs_time(runs):
    compiled = runs.chosen[-1].id
    assert compiled not in runs(30 + 24 + 1)[1]  # 24 lines
    assert compiled in runs(30 + 24 + 3)[1]


def test_a_case_that_hung_comes_last(runs, tmp_path):
    runs(15)
    content = json.loads((tmp_path / "r.json").read_text())
    content["cases"], content["running"] = [], runs.chosen[1].id
    (tmp_path / "r.json").write_text(json.dumps(content))
    _, ran, content = runs(100, "--continue")
    assert ran == [runs.chosen[k].id for k in (0, 2, 3, 1)]
    assert "running" not in content


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"commit": "def"}, "commit def there, abc here"),
        ({"machine": {"device": "Another GPU", "torch": "2.11.0"}}, "device Another GPU there, Made-up GPU here"),
        ({"format": 0}, "its commit is not known"),
    ],
)
def test_figures_that_do_not_belong_together_are_not_mixed(runs, tmp_path, capsys, change, why):
    runs(100)
    path = tmp_path / "r.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    before = path.read_text()
    code, ran, _ = runs(100, "--continue")
    assert (code, ran) == (2, [])
    assert capsys.readouterr().err.strip() == f"{path} cannot be continued: {why}"
    assert path.read_text() == before


def test_changed_files_are_no_commit_to_continue(runs, tmp_path, capsys):
    for given in (["--commit", "abc, changed"], ["--commit", "abc, changed", "--continue"]):
        code, _, _ = runs(100, *given)
    assert code == 2
    assert "its commit is not known" in capsys.readouterr().err


# --- sweeps -----------------------------------------------------------------------------------------------------------


def test_a_sweep_tries_the_planned_shape_and_those_near_it_or_those_that_are_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", fake_cupy({"now": 0.0, "launches": 0, "replays": 0}))
    monkeypatch.delitem(sys.modules, "benchmarks.gpu", raising=False)
    monkeypatch.delitem(sys.modules, "benchmarks.sweep", raising=False)
    from benchmarks import sweep

    for shape, kernel in (("vit_14", "line_scan_slices"), ("batch_1k", "line_scan_tiles")):
        for case, direction in (("float32 PC", "top_to_bottom"), ("bfloat16 SH", "left_to_right")):
            (first, planned), *others = sweep.candidates(plans.H200, shape, case, direction, "forward", 40)
            assert (first, planned.spec.entry) == ("planned", kernel)
            assert len(others) >= 4
    named = sweep.tiles_from("4,2,2,6,32,8,16,2,8,0,5,64")
    assert dict(vars(named)) == dict(vars(sweep.tiles_of(planned))) | {"fetch": 64}
    labels = [label for label, _ in sweep.candidates(plans.H200, shape, case, direction, "forward", 4, [named])]
    assert labels == ["planned", "(4, 2, 2, 6, 32, 8, 16, 2, 8, False, 5, 64)"]
