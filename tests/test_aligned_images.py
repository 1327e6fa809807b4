"""Line scans of the sizes that people use: whole tiles and aligned rows, where kernels take their fast ways.

The other files' sizes are odd on purpose, so that hardly any of them is aligned.
"""

import loops
import pytest
from helpers import DTYPES, assert_close, assert_same_bits, image_shape, make_scan, state_type

import gspn2_cupy
from gspn2_cupy import ALL_DIRECTIONS

pytestmark = pytest.mark.functions("line_scan", "line_scan_backward")

# (lines, pixels in a line), channels, groups, chunk: why this case.
CASES = {
    "small images, one matrix for all channels": ((16, 16), 8, 1, None),
    "whole tiles, two groups, chunks of whole tiles": ((64, 32), 4, 2, 16),
    "chunks against the tiles": ((32, 64), 4, 1, 12),
    "a matrix per channel": ((32, 64), 3, 3, None),
    "a long line, cut up among blocks": ((8, 512), 4, 2, None),
}


@pytest.mark.parametrize("direction", ALL_DIRECTIONS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("size", "channels", "groups", "chunk"), CASES.values(), ids=CASES)
def test_against_loops(backend, direction, dtype, size, channels, groups, chunk):
    shape = image_shape(1, channels, size, direction)
    case = make_scan(shape, direction, dtype, groups=groups, h0=True, dh_last=True)
    inputs = (case.x, case.weight, case.lam)
    h, h_last = backend(gspn2_cupy.line_scan, *inputs, **case.options(chunk), return_last=True)
    truth, last_truth = loops.line_scan(*inputs, **case.options(chunk))
    assert_close(h, truth, case.x.dtype)
    assert_close(h_last, last_truth, state_type(case.x.dtype))
    arrays = (case.dh, *inputs, h)
    grads = backend(gspn2_cupy.line_scan_backward, *arrays, **case.options(chunk), dh_last=case.dh_last)
    truth = loops.line_scan_backward(*arrays, **case.options(chunk), dh_last=case.dh_last)
    for name, actual, expected in zip(grads._fields, grads, truth, strict=True):
        assert_close(actual, expected, state_type(case.x.dtype) if name == "h0" else case.x.dtype)


@pytest.mark.parametrize("direction", ALL_DIRECTIONS)
@pytest.mark.parametrize("size", [(136, 128), (72, 40), (100, 250)], ids=str)
@pytest.mark.parametrize("turned", ["x", "weight", "lam"])
def test_an_array_upside_down_changes_no_bit(backend, direction, size, turned):
    """Its rows lie before its first element."""
    case = make_scan((1, 2, *size), direction, "float32", h0=True)
    arrays = {"x": case.x, "weight": case.weight, "lam": case.lam}
    expected = backend(gspn2_cupy.line_scan, *arrays.values(), **case.options())
    arrays[turned] = backend.strided(arrays[turned], "upside_down")
    assert_same_bits(backend(gspn2_cupy.line_scan, *arrays.values(), **case.options()), expected)


@pytest.mark.parametrize("direction", ALL_DIRECTIONS)
@pytest.mark.parametrize("columns", [302, 304])
def test_images_of_one_row_out_of_higher_ones(backend, direction, columns):
    """What lies between two rows is of no use for one, but aligns the addresses of rows that do not exist."""
    case = make_scan((1, 2, 1, columns), direction, "float32", h0=True)
    expected = backend(gspn2_cupy.line_scan, case.x, case.weight, case.lam, **case.options())
    x, weight, lam = (backend.strided(array, "offset") for array in (case.x, case.weight, case.lam))
    assert_same_bits(backend(gspn2_cupy.line_scan, x, weight, lam, **case.options()), expected)


@pytest.mark.parametrize("direction", ALL_DIRECTIONS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("misaligned", ["dh", "x", "weight", "lam", "h"])
def test_one_misaligned_array_changes_no_bit(backend, direction, dtype, misaligned):
    # 16 x 32: aligned everywhere but in the one array that starts one row and one element into its memory
    shape = image_shape(2, 4, (16, 32), direction)
    case = make_scan(shape, direction, dtype, groups=2)
    arrays = {"dh": case.dh, "x": case.x, "weight": case.weight, "lam": case.lam}
    inputs = ("x", "weight", "lam")
    h = backend(gspn2_cupy.line_scan, *(arrays[name] for name in inputs), direction=direction)
    arrays["h"] = h
    expected = backend(gspn2_cupy.line_scan_backward, *arrays.values(), direction=direction)
    arrays[misaligned] = backend.strided(arrays[misaligned], "offset")
    assert_same_bits(backend(gspn2_cupy.line_scan, *(arrays[name] for name in inputs), direction=direction), h)
    grads = backend(gspn2_cupy.line_scan_backward, *arrays.values(), direction=direction)
    for name in inputs:
        assert_same_bits(getattr(grads, name), getattr(expected, name))
