"""The plain kernels, which have the line scan and its backward to themselves where a GPU has no asynchronous copies.

The planner leaves them little else, so tests of the operator on newer devices hardly reach them.
"""

import loops
import numpy as np
import pytest
from emulator import emulated, require
from helpers import assert_close, image_shape, lines, make_scan, outside, state_type

import gspn2_cupy
from gspn2_cupy import ALL_DIRECTIONS, _plan_scan
from gspn2_cupy.reference import HORIZONTAL

OLDER = {"compute_capability": (7, 5)}

# (lines, pixels in a line), channels, groups, type, chunk, h0, λ: why this case. Tiles are of 16 lines, 8 in float64;
# blocks, of 128 rows.
CASES = {
    "part of a tile": ((9, 11), 6, 2, "float32", None, False, True),
    "restarts within tiles": ((35, 20), 2, 1, "float32", 6, True, False),
    "chunks of whole tiles": ((40, 7), 2, 2, "float16", 16, False, True),
    "a block exactly": ((18, 128), 1, 1, "float32", None, True, True),
    "several bands": ((37, 140), 2, 1, "float32", None, True, True),
    "several bands, restarts": ((34, 300), 1, 1, "bfloat16", 20, True, True),
    "double precision": ((17, 130), 2, 1, "float64", 8, True, True),
}


@pytest.fixture(autouse=True)
def no_other_kernel(monkeypatch):
    monkeypatch.delattr(_plan_scan, "tiles_plan")  # whoever plans one fails
    monkeypatch.delattr(_plan_scan, "slices_plan")


def unused(case, chunk):
    """True for every weight that must not be used."""
    mask = outside(case.weight.shape, case.direction)
    length = case.x.shape[-1 if case.direction in HORIZONTAL else -2]
    for start in range(0, length, chunk or length):
        if start > 0 or case.h0 is None:
            lines(mask, case.direction, start, start + 1)[...] = True
    return mask


@pytest.mark.parametrize(("size", "channels", "groups", "dtype", "chunk", "h0", "lam"), CASES.values(), ids=CASES)
@pytest.mark.parametrize("direction", ALL_DIRECTIONS)
@pytest.mark.parametrize("schedule", ["random", "reverse"])
def test_emulated(direction, schedule, size, channels, groups, dtype, chunk, h0, lam):
    require()
    shape = image_shape(2, channels, size, direction)
    case = make_scan(shape, direction, dtype, groups=groups, lam=lam, h0=h0)
    dirty = case.weight.copy()
    dirty[unused(case, chunk)] = np.nan
    with emulated(seed=3, schedule=schedule, detect=True, limits=OLDER):
        h, h_last = gspn2_cupy.line_scan(case.x, dirty, case.lam, **case.options(chunk), return_last=True)
    truth, last_truth = loops.line_scan(case.x, case.weight, case.lam, **case.options(chunk))
    assert_close(h, truth, case.x.dtype)
    assert_close(h_last, last_truth, state_type(case.x.dtype))


@pytest.mark.parametrize(("size", "channels", "groups", "dtype", "chunk", "h0", "lam"), CASES.values(), ids=CASES)
@pytest.mark.parametrize("direction", ALL_DIRECTIONS)
@pytest.mark.parametrize("schedule", ["random", "reverse"])
def test_emulated_backward(direction, schedule, size, channels, groups, dtype, chunk, h0, lam):
    require()
    shape = image_shape(2, channels, size, direction)
    case = make_scan(shape, direction, dtype, groups=groups, lam=lam, h0=h0, dh_last=h0)
    dirty = case.weight.copy()
    dirty[unused(case, chunk)] = np.nan
    options = case.options(chunk) | {"dh_last": case.dh_last}
    with emulated(seed=4, schedule=schedule, detect=True, limits=OLDER) as device:
        grads = gspn2_cupy.line_scan_backward(case.dh, case.x, dirty, case.lam, **options)
        assert "line_scan_adjoint" in {spec.entry for spec in device._kernels}
    truth = loops.line_scan_backward(case.dh, case.x, case.weight, case.lam, None, **options)
    for name, actual, expected in zip(grads._fields, grads, truth, strict=True):
        if expected is not None:
            assert_close(actual, expected, state_type(case.x.dtype) if name == "h0" else case.x.dtype)


@pytest.mark.parametrize("direction", ALL_DIRECTIONS)
@pytest.mark.parametrize("place", [(0, 96), (1, 127), (3, 299), (7, 0)])  # (line, pixel), at the edges of blocks
@pytest.mark.parametrize(("value", "chunk"), [(np.nan, 20), (np.nan, 6), (np.inf, 20)])
def test_emulated_what_is_not_finite_spreads_one_pixel_a_line(direction, place, value, chunk):
    # What blocks share of a line, one of them computes in vain, and NaN must not get out of it; nor must infinity times
    # the weights of rows outside the image, which are 0 in the kernel, become NaN and come back.
    require()
    size, (t, i) = (20, 300), place
    case = make_scan(image_shape(1, 1, size, direction), direction)
    element = lines(case.x, direction, t, t + 1)
    element[(0, 0, i, 0) if direction in HORIZONTAL else (0, 0, 0, i)] = value
    with emulated(seed=i, schedule="random", limits=OLDER) as device:
        h = gspn2_cupy.line_scan(case.x, case.weight, case.lam, direction=direction, chunk=chunk)
    assert device.launches == 1
    for step in range(size[0]):
        line = lines(h, direction, step, step + 1).ravel()
        assert np.isnan(value) or not np.isnan(line).any()
        reached = np.abs(np.arange(size[1]) - i) <= step - t
        assert np.array_equal(~np.isfinite(line), reached & (step // chunk == t // chunk))


@pytest.mark.parametrize("direction", ALL_DIRECTIONS)
@pytest.mark.parametrize("place", [(19, 96), (18, 127), (16, 299), (12, 0)])  # (line, pixel), at the edges of blocks
@pytest.mark.parametrize(("value", "chunk"), [(np.nan, 20), (np.nan, 6), (np.inf, 20)])
def test_emulated_backward_what_is_not_finite_spreads_one_pixel_a_line(direction, place, value, chunk):
    # As forward, from the last line to the first: without λ, dx is g.
    require()
    size, (t, i) = (20, 300), place
    case = make_scan(image_shape(1, 1, size, direction), direction, lam=False)
    element = lines(case.dh, direction, t, t + 1)
    element[(0, 0, i, 0) if direction in HORIZONTAL else (0, 0, 0, i)] = value
    arrays, options = (case.dh, case.x, case.weight), {"direction": direction, "chunk": chunk}
    with emulated(seed=i, schedule="random", limits=OLDER):
        g = gspn2_cupy.line_scan_backward(*arrays, **options, needs=["x"]).x
    for step in range(size[0]):
        line = lines(g, direction, step, step + 1).ravel()
        assert np.isnan(value) or not np.isnan(line).any()
        reached = np.abs(np.arange(size[1]) - i) <= t - step
        assert np.array_equal(~np.isfinite(line), reached & (step // chunk == t // chunk))
