"""python -m gspn2_cupy check: without a GPU in one line; its cases and its judgement on the emulator and by hand."""

import threading
import time
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import NO_GPU
from emulator import emulated, require
from helpers import DTYPES

import gspn2_cupy
from gspn2_cupy import ALL_DIRECTIONS, _check, _check_behaviours, _check_cases, _check_choice, _launch, reference
from gspn2_cupy.__main__ import main
from gspn2_cupy._check_cases import LINE_SCAN, PROJECTION, UNIT, WEIGHTS, Case
from gspn2_cupy._check_choice import Sweep
from gspn2_cupy._plan import DeviceLimits

SWEEP = {
    "broken": (),
    "slices": ((1, 2, 1),),
    "shares": (),
    "lines": 8,
    "across": (8,),
    "narrow": (),
    "small": (),
    "in_rounds": (),
}
TINY = {"odd": ((1, 3), (3, 1)), "unit": (5, 8), "sweep": Sweep(**SWEEP)}
H100 = DeviceLimits("H100", (9, 0), 132, 227 * 1024, 228 * 1024, 2048, 50 * 1024**2, 3_352_000_000_000)
A100 = DeviceLimits("A100", (8, 0), 108, 163 * 1024, 164 * 1024, 2048, 40 * 1024**2, 2_039_000_000_000)


@pytest.fixture
def device():
    require()
    with emulated() as device:
        yield device


@pytest.mark.skipif(NO_GPU is None, reason="there is a GPU")
@pytest.mark.parametrize("options", [[], ["--bench"]])
def test_without_a_gpu_it_says_so_in_one_line(capsys, options):
    assert main(["check", *options]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("python -m gspn2_cupy check: no GPU to check: ")
    assert captured.err.count("\n") == 1


def test_without_cupy(capsys, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "cupy", None)
    assert main(["check"]) == 2
    assert capsys.readouterr().err == "python -m gspn2_cupy check: no GPU to check: CuPy is not installed\n"


def test_a_broken_cupy(capsys, monkeypatch, tmp_path):
    (tmp_path / "cupy.py").write_text("raise ImportError('libnvrtc.so.13:\\n  cannot open')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(__import__("sys").modules, "cupy", raising=False)
    assert main(["check"]) == 2
    assert "CuPy does not start: libnvrtc.so.13: cannot open" in capsys.readouterr().err


# --- the choice of cases ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("limits", "dtypes"), [(H100, list(DTYPES)), (A100, ["float32", "float16"])], ids=["H100", "A100"]
)
def test_the_chosen(limits, dtypes):
    """In one test, as they take half a minute to find."""
    candidates = list(_check_choice.candidates(limits, dtypes))
    chosen = list(_check_choice.choose(limits, candidates))
    assert {planned.case.dtype for planned in chosen} == set(dtypes)
    they_launch_all_that_candidates_do(limits, candidates, chosen)
    every_shape_of_a_kernel_comes_first(chosen)
    random_calls_find_no_shape_that_is_not_checked(limits, chosen, dtypes)


def they_launch_all_that_candidates_do(limits, candidates, chosen):
    launches = {launch for planned in chosen for launch in planned.launches}
    assert {planned.case.operation for planned in chosen} == {LINE_SCAN, WEIGHTS, UNIT, PROJECTION}
    assert {name for planned in chosen for name in planned.case.directions[:1]} == set(ALL_DIRECTIONS)
    for _, case in candidates[::37]:
        assert launches.issuperset(_check_choice.launches(limits, case))


def every_shape_of_a_kernel_comes_first(chosen):
    seen, last = set(), 0
    for number, planned in enumerate(chosen):
        shapes = {_check_choice.shape_of(*launch) for launch in planned.launches}
        if not seen.issuperset(shapes):
            last = number
        seen |= shapes
    assert last < 500  # more would take a first run too long: there are two or three kernels to compile for each
    assert last < len(chosen) / 4


def random_calls_find_no_shape_that_is_not_checked(limits, chosen, dtypes):
    """Small or not; what is left out has more elements than 32 bits count, or gaps, or rows of many vectors."""
    checked = {_check_choice.shape_of(*launch) for planned in chosen for launch in planned.launches}
    random = np.random.default_rng(1)
    for number in range(600):
        dtype, direction = str(random.choice(dtypes)), str(random.choice(ALL_DIRECTIONS))
        groups, per_group, height, width = (int(2 ** random.uniform(0, most)) for most in (5, 5, 11, 11))
        if random.random() < 0.5:
            height, width = (height + 7) // 8 * 8, (width + 7) // 8 * 8
        shape = (int(2 ** random.uniform(0, 4)), groups * per_group, height, width)
        options = {"lam": bool(random.random() < 0.5), "saved": bool(random.random() < 0.5)}
        case = Case(LINE_SCAN, dtype, shape, groups, (direction,), **options)
        if number % 3 == 0:
            normalize = (None, "sigmoid", "softmax")[number // 3 % 3]
            case = Case(UNIT, dtype, shape, groups, ALL_DIRECTIONS, merge=True, u=True, normalize=normalize, **options)
        new = {_check_choice.shape_of(*launch) for launch in _check_choice.launches(limits, case)} - checked
        assert not {shape for shape in new if ("OFFSET", "long long") not in shape[1]}, case


def test_a_case_says_what_it_is():
    case = Case(LINE_SCAN, "float16", (1, 2, 3, 4), 2, ("top_to_bottom",), lam=True, chunk=3)
    assert str(case) == "line scan float16 (1, 2, 3, 4) G=2 top_to_bottom lam chunk=3"


def planned_for(device, dtype):
    """All cases of float32, and some of the other types: each is a kernel or more to build."""
    planned = list(_check_choice.choose(device.limits, _check_choice.candidates(device.limits, [dtype], **TINY)))
    return planned if dtype == "float32" else planned[::6]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_what_a_case_launches_is_what_runs_and_is_judged(device, monkeypatch, dtype):
    ran = []
    run = _launch.run
    monkeypatch.setattr(
        _launch, "run", lambda launcher, plan, *arrays: (ran.append(plan), run(launcher, plan, *arrays))
    )
    planned = planned_for(device, dtype)
    assert {each.case.saved for each in planned} == {True, False}
    for each in planned:
        ran.clear()
        _check_cases.errors(each.case, 1, lambda array: array, lambda array: array)
        assert {(plan.spec, plan.cooperative) for plan in ran} == set(each.launches)


def test_a_case_with_saved_lines_gives_them_to_the_backward():
    case = Case(LINE_SCAN, "float32", (1, 2, 4, 5), 1, ("left_to_right",), lam=True, saved=True)
    arrays = _check_cases.random_arrays(case, 0)
    gradients = [
        _check_cases.call(reference, each, arrays, np.ones(case.shape, "float32"))["dweight"]
        for each in (case, replace(case, saved=False))
    ]
    assert (gradients[0] != gradients[1]).any()


@pytest.mark.parametrize("name", ["h_last", "dh0"])
def test_a_line_that_is_off_is_found(device, monkeypatch, name):
    """It is judged by the size of all lines, which must not hide an error of a few times what is allowed."""
    case = Case(LINE_SCAN, "float32", (2, 4, 24, 40), 2, ("left_to_right",), lam=True, state=True)
    assert max(_check_cases.errors(case, 0, lambda array: array, lambda array: array).values()) < 1
    call = _check_cases.call

    def off(module, *args):
        results = call(module, *args)
        if module is gspn2_cupy:
            results[name] = results[name] * np.float32(1 + 4e-5)
        return results

    monkeypatch.setattr(_check_cases, "call", off)
    shares = _check_cases.errors(case, 0, lambda array: array, lambda array: array)
    assert [each for each, share in shares.items() if share > 1] == [name]
    assert shares[name] < 20


def test_a_line_that_is_small_by_chance_is_right(device):
    """The sum of a line of the gradient is handed on, and walks: here to a quarter of its size, at the end of 1200."""
    case = Case(LINE_SCAN, "float16", (1, 1, 5, 1200), 1, ("left_to_right",), lam=True, state=True)
    assert max(_check_cases.errors(case, 1236, lambda array: array, lambda array: array).values()) < 1


def test_calls_are_compared_with_each_other_on_every_kind_of_forward_kernel():
    plans = {}
    for name, case in _check_behaviours.CASES.items():
        spec, cooperative = next(
            launch for launch in _check_choice.launches(H100, case) if launch[0].entry.startswith("line_scan_")
        )
        plans[name] = (spec.entry, int(dict(spec.defines).get("CLUSTER", 1)) > 1, cooperative)
    assert plans == {
        "whole slices in tiles": ("line_scan_tiles", False, False),
        "small slices": ("line_scan_slices", False, False),
        "clusters": ("line_scan_tiles", True, False),
        "resident blocks": ("line_scan_tiles", False, True),
        "broken vectors": ("line_scan_tiles", False, True),
        "plain": ("line_scan_forward", False, False),
        "four directions": ("line_scan_tiles", False, False),
    }


# --- the cases on the emulator ----------------------------------------------------------------------------------------


def check_all(device, dtype, monkeypatch=None, run=None):
    planned = planned_for(device, dtype)
    if run is not None:
        monkeypatch.setattr(_launch, "run", run)
    report = _check.Report()
    deadline = time.monotonic() + 600
    _check.check_cases(planned, _check.Kernels(device), report, deadline, lambda array: array, lambda array: array)
    return planned, report


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_emulator_passes(device, dtype):
    planned, report = check_all(device, dtype)
    assert report.failures == []
    assert report.cases == len(planned)
    assert report.verdict() == "all ok"
    assert {row.result for row in report.rows.values()} == {"ok"}
    assert "FAILED" not in report.table()


def test_a_wrong_kernel_is_found(device, monkeypatch):
    run = _launch.run

    def twice(launcher, plan, *arrays):
        if plan.spec.entry == "line_scan_gradients":
            arrays = (arrays[0] * np.float32(2), *arrays[1:])
        run(launcher, plan, *arrays)

    _, report = check_all(device, "float32", monkeypatch, twice)
    assert report.rows[LINE_SCAN, "float32"].result == "FAILED"
    assert report.rows[WEIGHTS, "float32"].result == "ok"
    assert any("dx" in failure and "times the error allowed" in failure for failure in report.failures)
    assert "FAILED" in report.table()
    assert (report.verdict(), report.passed) == (f"{len(report.failures)} FAILED", False)


def test_an_error_is_reported_and_the_rest_goes_on(device, monkeypatch):
    run = _launch.run

    def refuse(launcher, plan, *arrays):
        if plan.spec.entry == "normalize_backward":
            raise RuntimeError("something\n  happened")
        run(launcher, plan, *arrays)

    _, report = check_all(device, "float32", monkeypatch, refuse)
    assert report.rows[WEIGHTS, "float32"].result == "FAILED"
    assert report.rows[LINE_SCAN, "float32"].result == "ok"
    assert any(failure.endswith("RuntimeError: something happened") for failure in report.failures)


class Slow(_check.Kernels):
    """Kernels that are ready when somebody waits for them, and no sooner."""

    def ready(self, launches):
        return False


def check_for_a_while(device, monkeypatch, planned, run):
    """Run as many of the cases; all of them are found first."""
    times = iter([0] * (len(planned) + 1 + run))
    monkeypatch.setattr(_check.time, "monotonic", lambda: next(times, 2))
    report = _check.Report()
    _check.check_cases(planned, Slow(device), report, 1, lambda array: array, lambda array: array)
    return report


def test_what_does_not_fit_into_the_time_is_counted(device, monkeypatch):
    planned = list(_check_choice.choose(device.limits, _check_choice.candidates(device.limits, ["float32"], **TINY)))
    report = check_for_a_while(device, monkeypatch, planned, 1)
    assert (report.of_all(), report.left_out) == (f"1 of {len(planned)}", len(planned) - 1)
    assert f"{len(planned) - 1} more cases did not fit into the time; run it again" in report.table()
    assert (report.verdict(), report.passed) == ("all of these ok", True)


def test_no_time_at_all(device):
    planned = _check_choice.choose(device.limits, _check_choice.candidates(device.limits, ["float32"], **TINY))
    report = _check.Report()
    past = time.monotonic() - 1
    _check.check_cases(planned, _check.Kernels(device), report, past, lambda array: array, lambda array: array)
    assert report.of_all() == "0"
    assert "some more cases did not fit into the time; run it again" in report.table()
    assert (report.verdict(), report.passed) == ("NOT CHECKED", False)


def test_cases_run_while_others_are_looked_for(device):
    planned = _check_choice.choose(device.limits, _check_choice.candidates(device.limits, ["float32"], **TINY))
    first, report = next(planned), _check.Report()

    def endless():
        yield first
        assert report.cases == 1
        yield from planned

    deadline = time.monotonic() + 600
    _check.check_cases(endless(), _check.Kernels(device), report, deadline, lambda array: array, lambda array: array)
    assert report.cases > 1


def test_what_is_left_out_at_last_is_other_types(device, monkeypatch):
    planned = list(_check_choice.choose(device.limits, _check_choice.candidates(device.limits, list(DTYPES), **TINY)))
    some = [each for each in planned if each.first][:1] + [each for each in planned if not each.first][:2]
    report = check_for_a_while(device, monkeypatch, some, 1)
    assert (report.of_all(), report.left_out) == ("1 of 3", 2)
    assert "2 more cases did not fit into the time: each kernel has run in all its shapes" in report.table()


def test_a_lost_device_is_no_lack_of_time(device):
    report = _check.Report(lost=True)
    planned = _check_choice.choose(device.limits, _check_choice.candidates(device.limits, ["float32"], **TINY))
    deadline = time.monotonic() + 9
    _check.check_cases(planned, _check.Kernels(device), report, deadline, lambda array: array, lambda array: array)
    _check.check_behaviours(None, report)
    assert "some more cases were not run: the device answers no more" in report.table()
    assert {row.result for row in report.rows.values()} == {"not run: the device answers no more"}


def test_what_hangs_ends_the_process(capsys, monkeypatch):
    ended = threading.Event()
    monkeypatch.setattr(_check, "HANG", 0.01)
    monkeypatch.setattr(_check.os, "_exit", lambda code: ended.set())
    with _check.watched("one case"):
        assert ended.wait(10)
    assert "FAILED: one case: no end after 0.01 s" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["_repeats", "_pieces", "_strides", "_empty"])
def test_calls_agree_with_each_other(device, monkeypatch, name):
    """The checks that need no stream, with the emulator in CuPy's place."""
    monkeypatch.setattr(_check_behaviours, "REPEATS", 1)
    getattr(_check_behaviours, name)(SimpleNamespace(asarray=np.array, asnumpy=np.asarray))


def test_a_difference_is_found():
    with pytest.raises(AssertionError, match=r"^h, dx differ$"):
        _check_behaviours._expect({"h": b"1", "dx": b"", "dh0": b"2"}, {"h": b"2", "dx": b"2", "dh0": b"2"})


# --- the judgement ----------------------------------------------------------------------------------------------------


def test_errors_are_shares_of_what_is_allowed():
    truth = np.full(100, 2.0)
    actual = truth.astype(np.float32)
    assert _check_cases.share_of_allowed(actual, truth) == 0
    assert _check_cases.share_of_allowed(actual * np.float32(1 + 1e-5), truth) == pytest.approx(2, rel=0.01)
    actual[3] = np.nan
    assert _check_cases.share_of_allowed(actual, truth) == np.inf
    assert _check_cases.share_of_allowed(actual[:4], truth) == np.inf
    assert _check_cases.share_of_allowed(np.zeros(0, np.float32), np.zeros(0)) == 0


def test_the_arrays_hold_every_input():
    case = Case(UNIT, "float32", (2, 4, 5, 6), 2, ALL_DIRECTIONS, lam=True, u=True, merge=True)
    arrays = _check_cases.random_arrays(case, 0)
    assert set(arrays) == {"x", "weight", "lam", "u", "merge", "dy"}
    weight = arrays["weight"]
    used = np.where(weight == 7, 0, weight)
    assert np.allclose(used.sum(axis=3), 1)
    assert (weight == 7).any()
    assert set(_check_cases.random_arrays(replace(case, lam=False, u=False, merge=False), 0)) == {"x", "weight", "dy"}


def test_a_bar_on_a_terminal(capsys, monkeypatch):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    progress = _check.Progress()
    progress.show(1, 4, "one case")
    progress.end()
    assert "1/4 one case" in capsys.readouterr().err
