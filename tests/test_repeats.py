"""Calls of line_scan like one before are not checked and planned again, and differ from first ones in nothing else."""

import enum
import itertools
from types import SimpleNamespace

import numpy as np
import pytest
from emulator import emulated, require
from gpu_support import LIBRARIES, needs_gpu
from helpers import DTYPES, assert_same_bits, make_scan

import gspn2_cupy
from gspn2_cupy import ALL_DIRECTIONS, _checks, _launch, _repeats, _steps

SHAPE = (2, 4, 6, 8)


class Direction(enum.StrEnum):
    LEFT = "right_to_left"


def cupy_array():
    return LIBRARIES["CuPy"]().array


@pytest.fixture(params=["emulator", pytest.param("CuPy", marks=needs_gpu)])
def array(request, monkeypatch):
    """How an array of the device is made; nothing is remembered yet."""
    monkeypatch.setattr(_repeats, "_known", {})
    monkeypatch.setattr(_steps, "_plans", {})
    if request.param == "CuPy":
        yield cupy_array()
    else:
        require()
        with emulated():
            yield lambda values: values.copy(order="K")


@pytest.fixture
def checked(monkeypatch):
    """The calls that went through the checks."""
    calls = []
    check = _checks.line_scan

    def counted(*args, **options):
        calls.append(options)
        return check(*args, **options)

    monkeypatch.setattr(_checks, "line_scan", counted)
    return calls


def arrays_of(array, dtype="float32", shape=SHAPE, direction="right_to_left", seed=0):
    scan = make_scan(shape, direction, dtype, groups=2, h0=True, seed=seed)
    return {name: array(getattr(scan, name)) for name in ("x", "weight", "lam", "h0")}


def on_host(result):
    parts = result if isinstance(result, tuple) else (result,)
    return [part if isinstance(part, np.ndarray) else part.get() for part in parts]


@pytest.mark.parametrize("dtype", DTYPES)
def test_they_give_what_a_first_call_gives(array, checked, dtype, monkeypatch):
    """Every call is made twice, on other values in other memory, among all the other ones."""
    calls = []
    for names in (("x", "weight"), ("x", "weight", "lam"), ("x", "weight", "lam", "h0")):
        for direction, chunk, return_last in itertools.product(ALL_DIRECTIONS, (None, 2, 3), (False, True)):
            calls.append((names, {"direction": direction, "chunk": chunk, "return_last": return_last}))
    results = []
    for turn in range(2):
        for names, options in calls:
            given = arrays_of(array, dtype, (2, 4, 8, 8), options["direction"], seed=turn)
            given = {name: given[name] for name in names}
            results.append((given, options, gspn2_cupy.line_scan(**given, **options)))
        assert len(checked) == len(calls) == len(_repeats._known)
    for given, options, result in results:
        monkeypatch.setattr(_repeats, "_known", {})
        for one, other in zip(on_host(result), on_host(gspn2_cupy.line_scan(**given, **options)), strict=True):
            assert_same_bits(one, other)


def test_out_is_written_and_returned(array, checked):
    given = arrays_of(array)
    wanted = on_host(gspn2_cupy.line_scan(**given, direction="right_to_left"))[0]
    for _ in range(2):
        out = array(np.zeros(SHAPE, "float32"))
        assert gspn2_cupy.line_scan(**given, direction="right_to_left", out=out) is out
        assert_same_bits(on_host(out)[0], wanted)
    h, h_last = gspn2_cupy.line_scan(**given, direction="right_to_left", out=out, return_last=True)
    assert h is out
    assert_same_bits(on_host(h_last)[0], wanted[..., 0])
    assert len(checked) == 3


def views(memory, start):
    """Inputs in memory (2, channels, 6, 8), from a channel on."""
    image = memory[:, start : start + 4]
    return {"x": image, "lam": image, "weight": memory[:, None, start : start + 3], "h0": image[..., 0]}


@pytest.mark.parametrize("name", ["x", "weight", "lam", "h0"])
def test_the_memory_of_out_is_looked_at_every_time(array, checked, name):
    memory = array(np.zeros((2, 16, *SHAPE[2:]), "float32"))
    given = {**arrays_of(array), "direction": "right_to_left", "out": memory[:, :4]}
    gspn2_cupy.line_scan(**{**given, name: views(memory, 8)[name]})
    with pytest.raises(ValueError, match=rf"^out must not overlap an input; got memory shared with {name}$"):
        gspn2_cupy.line_scan(**{**given, name: views(memory, 2)[name]})
    assert len(checked) == 1


def test_out_that_cannot_be_written():
    require()
    with emulated():
        given = {**arrays_of(np.copy), "direction": "right_to_left"}
        out = np.zeros(SHAPE, "float32")
        gspn2_cupy.line_scan(**given, out=out)
        out.flags.writeable = False
        with pytest.raises(ValueError, match=r"^out must be writable; got a read-only array$"):
            gspn2_cupy.line_scan(**given, out=out)


def test_devices_have_plans_of_their_own(monkeypatch):
    require()
    monkeypatch.setattr(_repeats, "_known", {})
    given = {**arrays_of(np.copy, shape=(1, 4, 72, 72)), "direction": "right_to_left"}
    for capability in ((7, 5), (9, 0), (7, 5)):
        with emulated(limits={"compute_capability": capability}):
            gspn2_cupy.line_scan(**given)
    assert [plan.spec.entry for plan, _ in _repeats._known.values()] == ["line_scan_forward", "line_scan_tiles"]


def test_what_is_looked_at_in_an_array_of_cupy():
    class Array:
        shape, strides, dtype = (2, 3), (12, 4), np.dtype("float32")

        def __init__(self, address, device):
            self.data = SimpleNamespace(ptr=address, device_id=device)

    with pytest.raises(LookupError):
        _repeats._signature(Array(4096, 0))  # a subclass
    Array.__module__ = "cupy"
    first, aligned, other, elsewhere = (
        _repeats._signature(Array(*where)) for where in ((4096, 0), (8192, 0), (4100, 0), (4096, 1))
    )
    assert first == aligned
    assert len({first, other, elsewhere}) == 3


@pytest.mark.parametrize(
    "wrong",
    [
        {"chunk": 1.0},
        {"chunk": True},
        {"return_last": 1},
        {"return_last": 0},
        {"direction": b"right_to_left"},
        {"direction": ["right_to_left"]},
        {"lam": 1},
        {"x": [1.0]},
    ],
    ids=str,
)
def test_what_equals_the_options_of_a_call_before_is_refused_as_ever(array, wrong):
    given = {**arrays_of(array), "direction": "right_to_left"}
    for options in ({"chunk": 1}, {"chunk": 1, "return_last": True}, {"return_last": True}, {}):
        gspn2_cupy.line_scan(**given, **options)
    with pytest.raises((TypeError, ValueError)) as caught:
        gspn2_cupy.line_scan(**{**given, **wrong})
    assert next(iter(wrong)) in str(caught.value)


def test_other_kinds_of_options_are_taken_as_ever(array):
    given = arrays_of(array)
    wanted = on_host(gspn2_cupy.line_scan(**given, direction="right_to_left", chunk=3))[0]
    for direction, chunk in ((Direction.LEFT, 3), (np.str_("right_to_left"), np.int16(3))):
        for _ in range(2):
            assert_same_bits(on_host(gspn2_cupy.line_scan(**given, direction=direction, chunk=chunk))[0], wanted)
    enormous = gspn2_cupy.line_scan(**given, direction="right_to_left", chunk=10**30)
    again = gspn2_cupy.line_scan(**given, direction="right_to_left", chunk=10**30)
    assert_same_bits(on_host(again)[0], on_host(enormous)[0])


def different(array, **changes):
    given = arrays_of(array)
    for name, change in changes.items():
        given[name] = change(given[name])
    return given


OTHERS = {
    "strides": lambda array: different(array, x=lambda x: array(np.zeros((2, 4, 6, 16), "float32"))[..., ::2]),
    "an address": lambda array: different(array, x=lambda x: array(np.zeros(400, "float32"))[1:385].reshape(SHAPE)),
    "a shape": lambda array: arrays_of(array, shape=(1, 4, 6, 8)),
    "a type": lambda array: arrays_of(array, "float64"),
    "groups": lambda array: different(array, weight=lambda weight: weight[:, :1]),
    "no lam": lambda array: different(array, lam=lambda lam: None),
}


@pytest.mark.parametrize("other", OTHERS)
def test_calls_that_differ_are_checked(array, checked, other):
    for each in (arrays_of, OTHERS[other]):
        given = each(array)
        results = [on_host(gspn2_cupy.line_scan(**given, direction="right_to_left"))[0] for _ in range(2)]
        assert_same_bits(*results)
    assert len(checked) == 2


def test_planned_once(array, monkeypatch):
    given = arrays_of(array)
    gspn2_cupy.line_scan(**given, direction="right_to_left")
    monkeypatch.setattr(_steps, "planned", None)
    gspn2_cupy.line_scan(**given, direction="right_to_left")


def test_planners_are_asked_once(monkeypatch):
    monkeypatch.setattr(_steps, "_plans", {})
    monkeypatch.setattr(_steps, "PLANS_KEPT", 3)
    asked = []

    def one(*given):
        asked.append(given)
        return "one"

    def two(*given):
        return "two"

    x, y = np.zeros((2, 3), "float32"), np.zeros((2, 3), "float64")
    for _ in range(2):
        assert _steps.planned(one, (1,), x, None) == "one"
        assert _steps.planned(two, (1,), x, None) == "two"
        assert _steps.planned(one, (2,), y, x) == "one"
    assert asked == [(1, _steps.layout(x), None), (2, _steps.layout(y), _steps.layout(x))]
    for option in range(9):
        _steps.planned(two, (option,), x)
        assert len(_steps._plans) <= 3


def test_memory_that_is_less_aligned_has_a_plan_of_its_own(monkeypatch):
    """As an allocator of the user's may return it."""
    require()
    monkeypatch.setattr(_repeats, "_known", {})
    plans = []
    run = _launch.run

    def noted(launcher, plan, *arrays):
        plans.append(plan)
        run(launcher, plan, *arrays)

    def one_element_in(shape, dtype):
        return np.zeros(np.prod(shape) + 1, dtype)[1:].reshape(shape)

    monkeypatch.setattr(_launch, "run", noted)
    with emulated() as device:
        given = arrays_of(lambda values: values, shape=(1, 4, 72, 72), direction="right_to_left")
        aligned = gspn2_cupy.line_scan(**given, direction="right_to_left")
        monkeypatch.setattr(device, "empty", one_element_in)
        again = gspn2_cupy.line_scan(**given, direction="right_to_left")
        assert again.__array_interface__["data"][0] % 16
        assert_same_bits(again, aligned)
        _repeats._known.clear()
        gspn2_cupy.line_scan(**given, direction="right_to_left")
        assert not _repeats._known
    first, second, third = (plan.spec.entry for plan in plans)
    assert first == "line_scan_tiles"
    assert second == third != first


def test_empty_arrays_are_not_remembered(array):
    given = arrays_of(array, shape=(0, 4, 6, 8))
    for _ in range(2):
        assert gspn2_cupy.line_scan(**given, direction="right_to_left").shape == (0, 4, 6, 8)
    assert not _repeats._known


def test_no_more_are_kept_than_so_many(array, monkeypatch):
    monkeypatch.setattr(_repeats, "KEPT", 2)
    for lines in range(1, 6):
        gspn2_cupy.line_scan(**arrays_of(array, shape=(1, 2, 4, lines)), direction="right_to_left")
        assert len(_repeats._known) <= 2


def test_the_reference_is_not_remembered(monkeypatch):
    monkeypatch.setattr(_repeats, "_known", {})
    gspn2_cupy.line_scan(**arrays_of(np.copy), direction="right_to_left")
    assert not _repeats._known
