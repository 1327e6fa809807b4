"""What is accepted beside the plain cases, what a checked call then holds, and that it is checked once."""

import enum
import sys

import ml_dtypes
import numpy as np
import pytest
from helpers import assert_same_bits, make_scan, make_unit
from stand_ins import CudaArray

import gspn2_cupy
from gspn2_cupy import ALL_DIRECTIONS, _arrays, _checks


class Direction(enum.StrEnum):
    DOWN = "top_to_bottom"


SCAN = make_scan((2, 6, 5, 7), "top_to_bottom", groups=3, h0=True)
UNIT = make_unit((2, 6, 5, 7), ALL_DIRECTIONS, groups=3, u=False, merge=False)


def checked_scan(x=SCAN.x, weight=SCAN.weight, lam=None, *, direction="top_to_bottom", chunk=None, h0=None, out=None):
    options = {"direction": direction, "chunk": chunk, "h0": h0, "out": out, "return_last": False}
    return _checks.line_scan(x, weight, lam, **options)


def checked_unit(directions):
    options = {"merge": None, "normalize": None, "chunk": None, "out": None, "return_states": np.bool_(True)}
    return _checks.propagate(UNIT.x, UNIT.weight, UNIT.lam, None, directions=directions, **options)


def checked_scan_backward(needs):
    options = {"direction": "top_to_bottom", "chunk": None, "h0": None, "dh_last": None, "needs": needs}
    return _checks.line_scan_backward(SCAN.dh, SCAN.x, SCAN.weight, SCAN.lam, None, **options)


@pytest.mark.parametrize(
    ("given", "chunk"),
    [(None, None), (3, 3), (np.int16(3), 3), (np.uint64(2**63), sys.maxsize), (10**30, sys.maxsize)],
)
def test_chunk(given, chunk):
    call = checked_scan(chunk=given)
    assert call.chunk == chunk
    assert type(call.chunk) is type(chunk)


def test_an_enormous_chunk_is_the_global_scan():
    arrays = (SCAN.x, SCAN.weight, SCAN.lam)
    whole = gspn2_cupy.line_scan(*arrays, direction="top_to_bottom")
    assert_same_bits(gspn2_cupy.line_scan(*arrays, direction="top_to_bottom", chunk=10**30), whole)


@pytest.mark.parametrize("given", ["top_to_bottom", np.str_("top_to_bottom"), Direction.DOWN])
def test_direction(given):
    assert type(checked_scan(direction=given).direction) is str
    assert checked_scan(direction=given).direction == "top_to_bottom"


@pytest.mark.parametrize("given", [ALL_DIRECTIONS, list(ALL_DIRECTIONS), ALL_DIRECTIONS[::-1]])
def test_directions_keep_their_order(given):
    call = checked_unit(given)
    assert call.directions == tuple(given)
    assert call.return_states is True


@pytest.mark.parametrize(
    "given", [["x", "lam"], ("x", "lam", "h0"), {"lam", "x"}, {"x": 1, "lam": 2}, np.array(["x", "lam"])]
)
def test_needs_leaves_out_inputs_that_are_not_there(given):
    assert checked_scan_backward(given).needs == {"x", "lam"}


def test_needs_none_is_all_and_empty_is_none():
    assert checked_scan_backward(None).needs == {"x", "weight", "lam"}
    assert checked_scan_backward(()).needs == set()
    options = {"direction": "top_to_bottom", "needs": ["h0"]}
    grads = gspn2_cupy.line_scan_backward(SCAN.dh, SCAN.x, SCAN.weight, **options)
    assert grads == (None, None, None, None)


def test_memory_maps_and_read_only_arrays(tmp_path):
    mapped = np.memmap(tmp_path / "x", np.float32, "w+", shape=SCAN.x.shape)
    mapped[...] = SCAN.x
    mapped.flush()
    mapped.flags.writeable = False
    assert type(checked_scan(mapped).x) is np.ndarray
    result = gspn2_cupy.line_scan(mapped, SCAN.weight, direction="top_to_bottom")
    assert type(result) is np.ndarray
    assert_same_bits(result, gspn2_cupy.line_scan(SCAN.x, SCAN.weight, direction="top_to_bottom"))


@pytest.mark.parametrize("groups", [0, 1, 5])
def test_no_channels_fall_into_any_number_of_groups(groups):
    x, weight = np.zeros((2, 0, 5, 7), "f4"), np.zeros((2, groups, 3, 5, 7), "f4")
    assert gspn2_cupy.line_scan(x, weight, direction="top_to_bottom").shape == x.shape
    assert gspn2_cupy.line_scan_backward(x, x, weight, direction="top_to_bottom").weight.shape == weight.shape


@pytest.mark.parametrize("shape", [(3, 5, 7), (3, 3, 5, 7), (2, 4, 1, 3, 5, 7), (0, 3, 5, 7)])
def test_logits_have_any_leading_axes(shape):
    assert gspn2_cupy.normalize_weights(np.zeros(shape), direction="top_to_bottom").shape == shape


def test_warmup_takes_plain_values():
    options = {"groups": 3, "directions": ["top_to_bottom"], "lam": True, "u": False, "normalize": "softmax"}
    for dtype in ("float16", "f2", np.float16, np.dtype(np.float16)):
        call = _checks.warmup([2, np.int64(6), 8, 9], dtype, **options, chunk=4, backward=True, progress=False)
        assert call.dtype is _arrays.FLOAT16
        assert (call.shape, call.groups, call.directions) == ((2, 6, 8, 9), 3, ("top_to_bottom",))
        assert (call.lam, call.u, call.normalize, call.chunk) == (True, False, "softmax", 4)
        assert (call.backward, call.progress) == (True, False)


# --- data types -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "dtype", "c_name", "itemsize", "state"),
    [
        ("float32", np.float32, "float", 4, "float32"),
        ("float16", np.float16, "__half", 2, "float32"),
        ("bfloat16", ml_dtypes.bfloat16, "__nv_bfloat16", 2, "float32"),
        ("float64", np.float64, "double", 8, "float64"),
    ],
)
def test_data_type(name, dtype, c_name, itemsize, state):
    for given in (name, dtype, np.dtype(dtype)):
        found = _arrays.data_type(given)
        assert (found.name, found.c_name, found.itemsize, found.state.name) == (name, c_name, itemsize, state)
        assert found.numpy_dtype == np.dtype(dtype)
        assert found is _arrays.data_type(name)


@pytest.mark.parametrize(
    "given", [None, "int8", np.int64, "", "float31", ">f8", ml_dtypes.float8_e5m2, 3, [], object()]
)
def test_no_data_type_of_ours(given):
    assert _arrays.data_type(given) is None


# --- out --------------------------------------------------------------------------------------------------------------


def halves(array):
    return array[:, :6], array[:, 6:]


def alternate_columns(array):
    return array[..., ::2], array[..., 1::2]


@pytest.mark.parametrize(
    "layout",
    [
        lambda: halves(np.zeros((2, 12, 5, 7), "f4")),
        lambda: alternate_columns(np.zeros((2, 6, 5, 14), "f4")),
        lambda: halves(np.zeros((2, 5, 7, 12), "f4").transpose(0, 3, 1, 2)),
        lambda: halves(np.zeros((2, 12, 5, 7), "f4")[..., ::-1, ::-1]),
    ],
    ids=["half of the channels", "every other column", "channels last", "flipped"],
)
def test_out_beside_its_input_in_the_same_memory(layout):
    x, out = layout()
    x[...] = SCAN.x
    assert gspn2_cupy.line_scan(x, SCAN.weight, SCAN.lam, direction="top_to_bottom", h0=SCAN.h0, out=out) is out
    assert_same_bits(x, SCAN.x)
    expected = gspn2_cupy.line_scan(SCAN.x, SCAN.weight, SCAN.lam, direction="top_to_bottom", h0=SCAN.h0)
    assert_same_bits(out, expected)


def test_out_in_device_memory():
    weight = CudaArray(2, 3, 3, 5, 7, address=1 << 20)
    x, out = halves(np.empty((2, 12, 5, 7), np.float32))
    base, beside = CudaArray(like=x, address=4096), CudaArray(like=out, address=4096 + 6 * 5 * 7 * 4)
    call = checked_scan(base, weight, out=beside)
    assert call.out is beside
    assert call.restore(beside) is beside
    assert call.device == ("cuda", 0)
    assert call.on_device
    one_row_on = CudaArray(like=out, address=4096 + 5 * 7 * 4)
    with pytest.raises(ValueError, match=r"^out must not overlap an input; got memory shared with x$"):
        checked_scan(base, weight, out=one_row_on)
    repeated = CudaArray(like=np.broadcast_to(np.float32(0), (2, 6, 5, 7)), address=1 << 21)
    with pytest.raises(
        ValueError, match=r"^out must hold each element in a place of its own; got strides \(0, 0, 0, 0\)$"
    ):
        checked_scan(base, weight, out=repeated)


# --- repeated calls ---------------------------------------------------------------------------------------------------


def test_a_repeated_call_is_checked_once(monkeypatch):
    checked_scan(lam=SCAN.lam, h0=SCAN.h0)
    monkeypatch.setattr(_checks.arrays, "leading", None)  # checking anything anew would fail
    call = checked_scan(SCAN.x.copy(), SCAN.weight.copy(), SCAN.lam.copy(), h0=SCAN.h0.copy())
    assert_same_bits(call.x, SCAN.x)
    with pytest.raises(TypeError, match="not callable"):
        checked_scan(SCAN.x[:1])


def test_calls_hold_no_reference_to_earlier_arrays():
    x = SCAN.x.copy()
    references = sys.getrefcount(x)
    for chunk in range(1, 9):
        gspn2_cupy.line_scan(x, SCAN.weight, direction="top_to_bottom", chunk=chunk)
    assert sys.getrefcount(x) == references
