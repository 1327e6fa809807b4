"""The emulator runs correct kernels as a GPU would, silently, and refuses launches that a GPU refuses or misreads."""

import dataclasses
import os
import re
import subprocess
import sys
from pathlib import Path

import emulator
import ml_dtypes
import numpy as np
import pytest
from emulator import LIMITS, SCHEDULES, Emulator, LaunchRefused, _build, emulated
from emulator.planted.cases import CASES, FOLDER, numbers, scan, spec, struct

import gspn2_cupy

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)


@pytest.fixture(autouse=True)
def _emulator():
    emulator.require()


def features(device, entry, scalar="__half"):
    return device.compile(spec("features.cu", entry, SCALAR=scalar))


# --- correct kernels --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("detect", [True, False])
@pytest.mark.parametrize("case", CASES)
def test_correct_kernels_are_silent(case, detect):
    for schedule in SCHEDULES:
        for seed in range(25):
            copies = ("wait", "issue", "random")[seed % 3]
            actual, expected = CASES[case](
                Emulator(FOLDER, seed=seed, schedule=schedule, detect=detect, async_copies=copies, preempt=0.1)
            )
            np.testing.assert_allclose(actual, expected, rtol=1e-5)


@pytest.mark.parametrize("width", [32, 16, 8])
def test_warp_operations(width):
    device = Emulator(FOLDER)
    x, y = np.arange(32, dtype=np.int32) * 5 % 32, np.zeros((10, 32), np.int32)
    features(device, "warp_operations")(1, 32, 0, (x, y, struct(width=width)))
    lane = np.arange(32)
    start = lane // width * width
    assert np.array_equal(y[0], x[start + (lane + 3) % width])
    assert np.array_equal(y[1], x[np.where(lane - 2 < start, lane, lane - 2)])
    assert np.array_equal(y[2], x[np.where(lane + 5 >= start + width, lane, lane + 5)])
    assert np.array_equal(y[3], x[lane ^ 6])
    assert (y[4].view(np.uint32) == sum(1 << i for i in range(32) if x[i] % 2)).all()
    assert (y[5] == 1).all() and (y[6] == 1).all()
    assert (y[7] == 11).all()  # 0, 3, …, 30
    assert (y[8] == 2).all()
    assert np.array_equal(y[9], np.where(lane < 16, x[2], x[30]))


def test_atomics():
    y, total, largest = np.zeros(6, np.int32), np.zeros((), np.float64), np.zeros((), np.uint64)
    features(Emulator(FOLDER), "atomics")(3, 40, 0, (y, total, largest))
    assert list(y) == [sum(range(120)), 119, -119, 255, 17, 120]
    assert total == 60
    assert largest == 119 << 40


@pytest.mark.parametrize(("dtype", "scalar"), [(np.dtype(np.float16), "__half"), (BFLOAT16, "__nv_bfloat16")])
def test_sixteen_bit_numbers_in_vectors_of_sixteen_bytes(dtype, scalar):
    device = Emulator(FOLDER)
    x = (np.arange(32) / 7 - 1.3).astype(dtype)
    y, integers = device.empty(32, dtype), device.empty(4, np.int64)
    kernel = features(device, "narrow", scalar)
    kernel(1, 4, 0, (x, y, None))
    assert np.array_equal(y, (x.astype(np.float32) * 2 + 1).astype(dtype))
    kernel(1, 4, 0, (x, y, integers))
    assert list(integers) == [i << 40 for i in range(4)]


# --- memory -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("step", [1, 3, -1, -2])
def test_strided_views(step):
    x, y = np.arange(20.0), np.zeros(20)
    features(Emulator(FOLDER), "strided")(1, 6, 0, (x[::step][:6], y[::step][:6], struct(width=step)))
    expected = np.zeros(20)
    expected[::step][:6] = x[::step][:6] + 1
    assert np.array_equal(y, expected)  # what lies between the elements is untouched


def test_between_the_elements_of_a_view_is_no_access():
    x, y = np.arange(20.0), np.zeros(20)
    with pytest.raises(emulator.OutOfBounds, match="between the elements"):
        features(Emulator(FOLDER), "strided")(1, 6, 0, (x[::2], y[::2], struct(width=1)))


def test_arrays_that_share_memory_share_it_in_the_kernel():
    both = np.arange(12.0)
    kernel = features(Emulator(FOLDER), "strided")
    kernel(1, 6, 0, (both[::2], both[1::2], struct(width=2)))  # interleaved
    assert np.array_equal(both, np.repeat(np.arange(0.0, 12, 2), 2) + [0, 1] * 6)
    kernel(1, 12, 0, (both, both, struct(width=1)))  # in place
    assert both[0] == 1.0
    with pytest.raises(emulator.DataRace):  # shifted by one
        kernel(1, 11, 0, (both[:-1], both[1:], struct(width=1)))


def test_empty_and_absent_arrays():
    kernel = features(Emulator(FOLDER), "narrow")
    empty, x = np.zeros(0, np.float16), np.zeros(8, np.float16)
    for arguments in ((empty, x, None), (x, empty, None), (None, x, None)):
        with pytest.raises(emulator.OutOfBounds):
            kernel(1, 1, 0, arguments)


def test_a_misaligned_view_stays_misaligned():
    x, y = numbers(65), np.zeros(65, np.float32)
    kernel = Emulator(FOLDER).compile(spec("vectors.cu", "copy"))
    plan = struct(count=64, large=0)
    with pytest.raises(emulator.Misaligned):
        kernel(1, 16, 0, (x[1:], y[:-1], plan))
    with pytest.raises(emulator.Misaligned):
        kernel(1, 16, 0, (x[:-1], y[1:], plan))


def test_what_a_launch_writes_the_next_may_read():
    device = Emulator(FOLDER)
    kernel = features(device, "strided")
    workspace = device.empty(8, np.float64)
    assert np.isnan(workspace).all()
    kernel(1, 5, 0, (np.arange(8.0), workspace, struct(width=1)))
    kernel(1, 5, 0, (workspace, np.zeros(8), struct(width=1)))
    with pytest.raises(emulator.UninitialisedRead, match="of argument 0"):
        kernel(1, 6, 0, (workspace, np.zeros(8), struct(width=1)))
    workspace[5:] = np.frombuffer(b"\x01" + b"\xff" * 7)  # Python may write there too, even bytes of the poison
    kernel(1, 8, 0, (workspace, np.zeros(8), struct(width=1)))


# --- refusals ---------------------------------------------------------------------------------------------------------

GOOD = (np.zeros(4), np.zeros(4), struct(width=1))
READ_ONLY = np.zeros(4)
READ_ONLY.flags.writeable = False
ARGUMENTS = {
    "one too few": (GOOD[:2], "3 parameters; got 2"),
    "float32 for a double pointer": ((np.zeros(4, np.float32), *GOOD[1:]), "pointer is to float64; got .* float32"),
    "a number for a pointer": ((1.0, *GOOD[1:]), "must be a NumPy array or None; got float"),
    "a list for a pointer": (([0.0], *GOOD[1:]), "must be a NumPy array or None; got list"),
    "a struct for a pointer": ((struct(a=1), *GOOD[1:]), "must be a NumPy array or None"),
    "a read-only output": ((GOOD[0], READ_ONLY, GOOD[2]), "argument 1: the kernel may write to it"),
    "an array for a struct": ((*GOOD[:2], np.zeros(4)), "zero-dimensional structured array"),
    "a struct of the wrong size": ((*GOOD[:2], struct(width=1, more=2)), "struct has 8 bytes; got 16"),
    "a struct of int32": ((*GOOD[:2], np.array((1, 1), [("a", "i4"), ("b", "i4")])), "must be int64"),
}


@pytest.mark.parametrize("name", ARGUMENTS)
def test_refuses_arguments(name):
    arguments, message = ARGUMENTS[name]
    device = Emulator(FOLDER)
    with pytest.raises(LaunchRefused, match=message):
        features(device, "strided")(1, 1, 0, arguments)
    assert device.launches == 0


def test_bfloat16_is_not_float16():
    with pytest.raises(LaunchRefused, match="pointer is to float16; got an array of bfloat16"):
        features(Emulator(FOLDER), "narrow")(1, 1, 0, (np.zeros(8, BFLOAT16), np.zeros(8, np.float16), None))


@pytest.mark.parametrize(
    ("grid", "block", "shared", "message"),
    [
        ((0, 1, 1), (1, 1, 1), 0, "grid must be between"),
        ((1, 65536, 1), (1, 1, 1), 0, "grid must be between"),
        ((1, 1, 1), (32, 33, 1), 0, "at most 1024 threads"),
        ((1, 1, 1), (1, 1, 65), 0, "at most 1024 threads"),
        ((1, 1, 1), (1, 1, 1), 227 * 1024 + 1, "a block may have 232448"),
    ],
)
def test_refuses_sizes(grid, block, shared, message):
    with pytest.raises(LaunchRefused, match=message):
        features(Emulator(FOLDER), "strided")(grid, block, shared, GOOD)


def test_accepts_all_shared_memory_of_the_device():
    features(Emulator(FOLDER), "strided")(1, 1, 227 * 1024, GOOD)
    smaller = Emulator(FOLDER, limits=dataclasses.replace(LIMITS, shared_bytes_per_block=99 * 1024))
    with pytest.raises(LaunchRefused, match="a block may have 101376"):
        features(smaller, "strided")(1, 1, 100 * 1024, GOOD)


def test_refuses_a_cooperative_launch_that_does_not_fit():
    one = Emulator(FOLDER, limits=dataclasses.replace(LIMITS, multiprocessors=1))
    with pytest.raises(LaunchRefused, match="of 3 blocks, of which 2 fit"):
        features(one, "strided")(3, 1024, 0, GOOD, cooperative=True)


def test_refuses_unknown_options():
    with pytest.raises(ValueError, match="schedule must be one of"):
        Emulator(schedule="fast")
    with pytest.raises(ValueError, match="async_copies must be one of"):
        Emulator(async_copies="never")
    with pytest.raises(emulator.EmulatorUnavailableError, match="run_sanitized"):
        Emulator(sanitize=True)


# --- building ---------------------------------------------------------------------------------------------------------


def test_a_compiler_error_is_shown():
    with pytest.raises(emulator.KernelBuildError, match=r"nonsense.*not declared[\s\S]*scan\.cu:\d+"):
        scan(Emulator(FOLDER), "nonsense")


def test_a_kernel_is_built_once(monkeypatch):
    scan(Emulator(FOLDER))
    monkeypatch.setattr(_build, "run", lambda command: pytest.fail(f"ran {command}"))
    scan(Emulator(FOLDER))


def test_an_edited_header_is_built_anew(tmp_path):
    (tmp_path / "value.cuh").write_text("constexpr double kValue = 1.0;\n")
    (tmp_path / "k.cu").write_text(
        '#include "value.cuh"\nextern "C" __global__ void k(double* y) { y[threadIdx.x] = kValue; }\n'
    )
    results = []
    for value in ("1.0", "2.0"):
        (tmp_path / "value.cuh").write_text(f"constexpr double kValue = {value};\n")
        y = np.zeros(1)
        Emulator(tmp_path).compile(emulator.KernelSpec("k.cu", "k", ()))(1, 1, 0, (y,))
        results.append(float(y[0]))
    assert results == [1.0, 2.0]


def test_what_is_missing_is_named(monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(emulator.EmulatorUnavailableError, match=re.escape("needs g++")):
        _build.toolchain.__wrapped__()
    monkeypatch.setattr(_build.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setenv("CUDA_PATH", "/nowhere")
    with pytest.raises(emulator.EmulatorUnavailableError, match="pip install"):
        _build.find_headers()


def test_missing_tools_fail_in_ci_and_skip_elsewhere(monkeypatch):
    monkeypatch.setattr(emulator, "why_unavailable", lambda: "no g++")
    monkeypatch.setenv("CI", "true")
    with pytest.raises(pytest.fail.Exception, match=re.escape("no g++")):
        emulator.require()
    monkeypatch.delenv("CI")
    with pytest.raises(pytest.skip.Exception, match=re.escape("no g++")):
        emulator.require()


def test_without_assembly():
    cases = {"scan/none": "right", "scan/no_barrier": "DataRace", "copy/null_pointer": "OutOfBounds"}
    code = """if True:
        import runpy
        from emulator import _build
        _build.RUNTIME_FLAGS = ("-DEMULATOR_UCONTEXT",)
        runpy.run_module("emulator.planted.report", run_name="__main__")
    """
    command = [sys.executable, "-c", code, *cases]
    here = Path(__file__).parent
    path = os.pathsep.join([str(here), str(here.parent), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": path}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for line, expected in zip(done.stdout.splitlines(), cases.items(), strict=True):
        assert line.startswith(" ".join(expected))


# --- the front door ---------------------------------------------------------------------------------------------------


def test_public_functions_run_through_the_kernels():
    rng = np.random.default_rng(0)
    x, lam = rng.standard_normal((2, 1, 2, 5, 9)).astype(np.float32)
    weight = rng.uniform(0, 0.3, (1, 1, 3, 5, 9)).astype(np.float32)
    expected = gspn2_cupy.line_scan(x, weight, lam, direction="left_to_right")
    with emulated(seed=0, schedule="random", detect=True, limits={"multiprocessors": 3}) as device:
        assert device.limits.multiprocessors == 3
        h = gspn2_cupy.line_scan(x, weight, lam, direction="left_to_right")
        launches = device.launches
    assert launches > 0
    np.testing.assert_allclose(h, expected, rtol=1e-5)
    gspn2_cupy.line_scan(x, weight, lam, direction="left_to_right")
    assert device.launches == launches  # outside, NumPy arrays take the reference again
