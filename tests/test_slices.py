"""The kernel for small images in every way it can deal them out, forced one by one: the plain kernels' bits."""

import ml_dtypes
import numpy as np
import pytest
from conftest import NO_GPU
from emulator import emulated, require

from gspn2_cupy import ALL_DIRECTIONS, _launch, _plan, _plan_slices, _steps
from gspn2_cupy._plan_slices import Slices
from gspn2_cupy.reference import HORIZONTAL

FLOAT32, FLOAT64 = np.dtype("float32"), np.dtype("float64")
FLOAT16, BFLOAT16 = np.dtype("float16"), np.dtype(ml_dtypes.bfloat16)
SAME = (None, None)

# A name for what the case is about: (lines, pixels in a line), (images, channels), groups, types of x, weights and h
# (None: the same); Slices: rows and channels of a lane, warps, slices side by side, rounds; chunk, h0, λ.
CASES = {
    "two slices in a warp, vectors of 8 bytes": ((14, 14), (2, 5), 1, BFLOAT16, SAME, (1, 1, 2, 2), None, True, True),
    "four slices in a warp, single elements": ((7, 7), (2, 9), 9, FLOAT16, SAME, (1, 1, 1, 4), 3, False, True),
    "whole vectors, swizzled": ((32, 32), (2, 3), 3, FLOAT32, SAME, (1, 1, 2, 1), None, True, True),
    "whole vectors, shared weights, two groups": ((16, 32), (2, 6), 2, BFLOAT16, SAME, (1, 1, 2, 1), 5, True, True),
    "no λ": ((8, 24), (2, 4), 1, FLOAT32, SAME, (1, 1, 4, 1), None, False, False),
    "two rows in a lane": ((9, 40), (2, 3), 1, FLOAT32, SAME, (2, 1, 2, 1), 4, False, True),
    "two rows in a lane, whole vectors": ((56, 56), (2, 2), 1, BFLOAT16, SAME, (2, 1, 2, 1), None, False, True),
    "two rows in a lane, one in the last": ((6, 35), (2, 2), 2, FLOAT16, SAME, (2, 1, 1, 1), None, True, True),
    "four rows in a lane": ((5, 101), (2, 2), 1, FLOAT32, SAME, (4, 1, 1, 1), None, False, True),
    "double precision": ((12, 20), (2, 3), 1, FLOAT64, SAME, (1, 1, 2, 1), 7, True, True),
    "one pixel": ((1, 1), (2, 40), 40, FLOAT32, SAME, (1, 1, 1, 32), None, True, True),
    "two channels in a lane": ((14, 14), (2, 7), 1, BFLOAT16, SAME, (2, 2, 1, 4), None, True, True),
    "two channels of whole vectors": ((16, 16), (2, 7), 1, BFLOAT16, SAME, (1, 2, 2, 2), 9, True, True),
    "four rows and two channels": ((10, 64), (2, 6), 2, BFLOAT16, SAME, (4, 2, 1, 2), None, True, False),
    "h unrounded": ((14, 14), (2, 5), 1, BFLOAT16, (None, FLOAT32), (1, 1, 2, 2), None, True, True),
    "h unrounded, whole vectors": ((16, 16), (2, 5), 1, FLOAT16, (None, FLOAT32), (1, 1, 2, 2), 6, True, True),
    "h and weights unrounded": ((16, 16), (2, 4), 2, BFLOAT16, (FLOAT32, FLOAT32), (1, 1, 1, 2), 6, True, True),
    "less than a copy left over": ((7, 7), (1, 9), 9, FLOAT32, SAME, (1, 1, 1, 4), 3, True, True),
    "two lines at once": ((10, 14), (2, 5), 5, BFLOAT16, SAME, (1, 1, 1, 2), None, False, True),
    "four lines at once": ((28, 12), (2, 5), 1, FLOAT16, SAME, (1, 1, 2, 1), 6, True, True),
    "rounds of slices": ((14, 14), (2, 12), 1, BFLOAT16, SAME, (1, 1, 2, 1, 3), None, True, True),
    "rounds of whole vectors": ((16, 24), (1, 10), 1, BFLOAT16, SAME, (1, 1, 1, 1, 4), 5, True, True),
    "rounds of two rows in a lane": ((8, 40), (1, 8), 2, BFLOAT16, SAME, (2, 1, 1, 1, 4), None, True, False),
    "rounds, each with weights of its own": ((7, 7), (2, 7), 7, FLOAT32, SAME, (1, 1, 1, 2, 2), 3, True, True),
    "rounds without slices for all": ((6, 9), (2, 5), 1, FLOAT32, SAME, (1, 1, 2, 1, 4), None, True, True),
    "rounds, h unrounded": ((8, 16), (2, 7), 1, FLOAT16, (None, FLOAT32), (1, 2, 2, 1, 2), None, False, True),
    "rounds of two channels in a lane": ((14, 14), (2, 11), 1, BFLOAT16, SAME, (1, 2, 2, 2, 2), None, True, True),
    "rounds of two channels and two rows": ((7, 7), (1, 37), 1, FLOAT16, SAME, (2, 2, 2, 8, 2), 5, True, True),
    "rounds, less than a copy left over": ((7, 7), (1, 11), 1, BFLOAT16, SAME, (1, 1, 1, 4, 3), None, False, True),
    "h unrounded, in rows that periods cut": (
        (64, 8),
        (1, 3),
        1,
        FLOAT16,
        (None, FLOAT32),
        (1, 1, 1, 2),
        9,
        True,
        True,
    ),
    "too many lines to be read ahead": ((16, 100), (1, 2), 1, BFLOAT16, SAME, (4, 1, 1, 1), 12, True, True),
    "x and h unrounded": ((12, 24), (2, 5), 1, FLOAT32, (BFLOAT16, None), (1, 1, 2, 1), 5, True, False),
    "x and h unrounded, rounds, two rows in a lane": (
        (14, 36),
        (1, 10),
        1,
        FLOAT32,
        (FLOAT16, None),
        (2, 1, 2, 1, 2),
        None,
        True,
        True,
    ),
    "three vectors in a row": ((12, 5), (1, 7), 7, FLOAT32, SAME, (1, 1, 1, 3), 5, True, True),
}
# All cases before any comes again in another direction: whoever stops at the first failure comes to it soon.
ALL_CASES = [(case, ALL_DIRECTIONS[(k + turn) % 4]) for turn in range(4) for k, case in enumerate(CASES)]


def arrays_of(case, direction):
    (lines, width), (batch, channels), groups, kind, (weight_kind, _), *_, h0, lam = CASES[case]
    height, image_width = (width, lines) if direction in HORIZONTAL else (lines, width)
    generator = np.random.default_rng(0)
    state = FLOAT64 if kind == FLOAT64 else FLOAT32
    shape, line = (batch, channels, height, image_width), (batch, channels, width)
    x, scale = (generator.standard_normal(shape).astype(kind) for _ in range(2))
    weight = (generator.random((batch, groups, 3, height, image_width)) / 3).astype(weight_kind or kind)
    # outside neighbours' weights are never used
    before, after = ((0, slice(None)), (-1, slice(None))) if direction in HORIZONTAL else ((..., 0), (..., -1))
    weight[:, :, 0][(..., *before) if direction in HORIZONTAL else before] = np.nan
    weight[:, :, 2][(..., *after) if direction in HORIZONTAL else after] = np.nan
    first = generator.standard_normal(line).astype(state)
    return x, weight, scale if lam else None, first if h0 else None, line, state


def spread(array, channels):
    """The same values, in memory where so many more channels lie between two images."""
    view = np.full((len(array), array.shape[1] + channels, *array.shape[2:]), np.nan, array.dtype)[:, : array.shape[1]]
    view[...] = array
    return view


def both(launcher, case, arrays, direction, line, state, laid_out=lambda h: h, adjoint=False):
    """Run the kernel for small images and a plain one; return their h and h_last."""
    kind, (_, result), slices, chunk = CASES[case][3:7]
    if adjoint:
        result = state
    answers = []
    for forced in (True, False):
        h, h_last = laid_out(launcher.empty(arrays[0].shape, result or kind)), launcher.empty(line, state)
        scan = _plan.LineScan(direction, chunk, *map(_steps.optional_layout, (*arrays, h, h_last)), adjoint=adjoint)
        if forced:
            plan = _plan_slices.slices_plan(launcher.limits, Slices(*slices), scan)
            assert plan is not None, f"{case} does not fit"
            _launch.run(launcher, plan, *arrays, h, h_last)
        else:
            plan = _plan.plain_line_scan(scan)
            taken = [*arrays[:2], arrays[3]] if adjoint else arrays  # the plain adjoint knows no λ
            _launch.run(launcher, plan, *taken, h, h_last, launcher.empty((plan.workspace,), state))
        answers.append((h, h_last))
    return answers


@pytest.mark.parametrize(("case", "direction"), ALL_CASES)
@pytest.mark.parametrize("schedule", ["random", "priority"])
def test_emulated(case, direction, schedule):
    require()
    *arrays, line, state = arrays_of(case, direction)
    with emulated(seed=1, schedule=schedule, detect=True, async_copies="random") as device:
        (h, h_last), (plain, plain_last) = both(device, case, arrays, direction, line, state)
    assert np.isfinite(plain.astype(np.float64)).all()
    assert h.tobytes() == plain.tobytes()
    assert h_last.tobytes() == plain_last.tobytes()


@pytest.mark.parametrize(("case", "direction"), ALL_CASES)
def test_emulated_adjoint(case, direction):
    require()
    x, weight, _, h0, line, state = arrays_of(case, direction)
    with emulated(seed=5, schedule="random", detect=True, async_copies="random") as device:
        results = both(device, case, [x, weight, None, h0], direction, line, state, adjoint=True)
    (g, dh0), (plain, plain_dh0) = results
    assert np.isfinite(plain).all() and np.isfinite(plain_dh0).all()
    assert g.tobytes() == plain.tobytes()
    assert dh0.tobytes() == plain_dh0.tobytes()


@pytest.mark.parametrize("direction", ALL_DIRECTIONS)
def test_emulated_adjoint_a_weight_that_is_no_number_spoils_one_row(direction):
    """The last lane has a row beyond the slice, for which it reads the last row's weights again."""
    require()
    case = "two rows in a lane, one in the last"
    x, weight, _, h0, line, state = arrays_of(case, direction)
    weight[(..., 0, -1, 2) if direction in HORIZONTAL else (..., 0, 2, -1)] = np.nan  # handed from the last row up
    with emulated(seed=6, schedule="random") as device:
        (g, _), (plain, _) = both(device, case, [x, weight, None, h0], direction, line, state, adjoint=True)
    assert np.array_equal(g, plain, equal_nan=True)
    rows = np.isnan(g).any(axis=(0, 1, 3 if direction in HORIZONTAL else 2))
    assert rows[-2] and not rows[0]


@pytest.mark.parametrize("direction", ALL_DIRECTIONS)
@pytest.mark.parametrize("case", ["four slices in a warp, single elements", "two channels in a lane"])
def test_emulated_every_array_has_a_layout_of_its_own(case, direction):
    require()
    x, weight, lam, h0, line, state = arrays_of(case, direction)
    arrays = spread(x, 1), spread(weight, 2), spread(lam, 3), None if h0 is None else spread(h0, 1)
    with emulated(seed=2, schedule="random", detect=True, async_copies="random") as device:
        (h, h_last), (plain, plain_last) = both(device, case, arrays, direction, line, state, lambda h: spread(h, 4))
    assert h.tobytes() == plain.tobytes()
    assert h_last.tobytes() == plain_last.tobytes()


@pytest.mark.gpu
@pytest.mark.skipif(NO_GPU is not None, reason=f"no GPU: {NO_GPU}")
@pytest.mark.parametrize("direction", ALL_DIRECTIONS)
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("adjoint", [False, True], ids=["forward", "adjoint"])
def test_on_a_gpu(case, direction, adjoint):
    import cupy

    *arrays, line, state = arrays_of(case, direction)
    if adjoint:
        arrays[2] = None
    arrays = [None if array is None else cupy.asarray(array) for array in arrays]
    launcher = _launch.cupy_launcher(cupy.cuda.Device().id)
    (h, h_last), (plain, plain_last) = both(launcher, case, arrays, direction, line, state, adjoint=adjoint)
    assert cupy.asnumpy(h).tobytes() == cupy.asnumpy(plain).tobytes()
    assert cupy.asnumpy(h_last).tobytes() == cupy.asnumpy(plain_last).tobytes()
