"""normalize_weights and its backward against loops written from their definition, and against central differences."""

import math
from dataclasses import replace

import loops
import numpy as np
import pytest
from emulator import emulated, require
from helpers import (
    DTYPES,
    HORIZONTAL,
    LAYOUTS,
    assert_close,
    assert_same_bits,
    line_shape,
    outside,
    signal,
    state_type,
)

import gspn2_cupy
from gspn2_cupy import ALL_DIRECTIONS, _launch, _plan_pixels, _steps
from gspn2_cupy._arrays import data_type
from gspn2_cupy._plan import Layout

pytestmark = pytest.mark.functions("normalize_weights", "normalize_weights_backward")
every_direction = pytest.mark.parametrize("direction", ALL_DIRECTIONS)
every_dtype = pytest.mark.parametrize("dtype", DTYPES)
every_method = pytest.mark.parametrize("method", ["sigmoid", "softmax"])

SHAPES = {
    "no pixels": (1, 1, 3, 0, 4),
    "no columns": (1, 1, 3, 4, 0),
    "no groups": (1, 0, 3, 4, 4),
    "one pixel: only the middle neighbour": (1, 1, 3, 1, 1),
    "one row": (1, 1, 3, 1, 7),
    "one column": (1, 1, 3, 7, 1),
    "only borders": (1, 1, 3, 2, 2),
    "odd": (2, 3, 3, 5, 7),
    "more than a block of pixels": (1, 1, 3, 33, 35),
    "more than a block across and down an image": (2, 2, 3, 9, 132),
    "more images than a block holds": (5, 13, 3, 2, 2),
}
every_shape = pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)


# columns, and the pixels of a thread: a block's row and more, two vectors, halves of them, single pixels
COLUMNS = {72: 4, 8: 4, 10: 2, 7: 1}


@pytest.fixture
def planned(monkeypatch):
    """The plans of the launches."""
    plans, run = [], _launch.run

    def keep(launcher, plan, *arrays):
        plans.append(plan)
        run(launcher, plan, *arrays)

    monkeypatch.setattr(_launch, "run", keep)
    return plans


def vectors(plans):
    """How many pixels a thread has, and whether these are neighbours along the scan, for each launch."""
    return {(int(dict(plan.spec.defines)["VECTOR"]), bool(plan.geometry["scan"]["along"])) for plan in plans}


def random_logits(shape, dtype, seed=0):
    rng = np.random.default_rng(seed)
    return (3 * signal(rng, shape, np.float64)).astype(DTYPES[dtype])


def random_upstream(shape, dtype, seed=1):
    return signal(np.random.default_rng(seed), shape, DTYPES[dtype])


def gradient_scale(dweight, logits, **options):
    """The size of the terms behind each gradient: w_k·(|dw_k| + sum_j w_j·|dw_j|)."""
    weight = loops.normalize_weights(logits, **options)
    dweight = np.abs(dweight.astype(np.float64))
    return weight * (dweight + np.sum(weight * dweight, axis=-3, keepdims=True))


def check_against_loops(backend, logits, dweight, **options):
    weight = backend(gspn2_cupy.normalize_weights, logits, **options)
    assert_close(weight, loops.normalize_weights(logits, **options), logits.dtype)
    dlogits = backend(gspn2_cupy.normalize_weights_backward, dweight, logits, **options)
    truth = loops.normalize_weights_backward(dweight, logits, **options)
    assert_close(dlogits, truth, logits.dtype, scale=gradient_scale(dweight, logits, **options))
    return weight, dlogits


@every_direction
@every_method
@every_shape
def test_shapes(backend, direction, method, shape):
    check_against_loops(
        backend,
        random_logits(shape, "float32"),
        random_upstream(shape, "float32"),
        direction=direction,
        method=method,
    )


@every_direction
@every_method
@every_dtype
def test_data_types(backend, direction, method, dtype):
    shape = (2, 2, 3, 5, 7)
    check_against_loops(
        backend, random_logits(shape, dtype), random_upstream(shape, dtype), direction=direction, method=method
    )


@every_direction
@every_method
@every_dtype
@pytest.mark.parametrize("columns", COLUMNS)
def test_rows_of_whole_vectors_and_others(backend, planned, direction, method, dtype, columns):
    shape = (1, 2, 3, 4, columns)
    check_against_loops(
        backend, random_logits(shape, dtype), random_upstream(shape, dtype), direction=direction, method=method
    )
    if backend.name != "reference":
        pixels = COLUMNS[columns]
        assert vectors(planned) == {(min(pixels, 2) if dtype == "float64" else pixels, direction in HORIZONTAL)}


@every_direction
@every_method
@every_dtype
def test_the_size_of_vectors_shows_in_no_bit(backend, planned, direction, method, dtype):
    shape = (2, 2, 3, 8, 8)
    logits, dweight = random_logits(shape, dtype), random_upstream(shape, dtype)
    options = {"direction": direction, "method": method}
    weight = backend(gspn2_cupy.normalize_weights, logits, **options)
    gradient = backend(gspn2_cupy.normalize_weights_backward, dweight, logits, **options)
    for elements in (1, 2):  # that the logits start behind an aligned address
        memory = backend.array(np.concatenate([np.full(elements, np.nan, logits.dtype), logits.reshape(-1)]))
        moved = memory[elements:].reshape(shape)
        assert_same_bits(backend(gspn2_cupy.normalize_weights, moved, **options), weight)
        assert_same_bits(backend(gspn2_cupy.normalize_weights_backward, dweight, moved, **options), gradient)
    if backend.name != "reference":
        sizes = (1, 2) if dtype == "float64" else (1, 2, 4)
        assert vectors(planned) == {(size, direction in HORIZONTAL) for size in sizes}


@every_direction
@every_method
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("columns", [8, 10, 7])
def test_emulated_weights_of_the_states_type(direction, method, dtype, columns):
    """As a unit keeps them between logits and scan: not rounded, else as those of logits of the state's type."""
    require()
    shape, options = (2, 2, 3, 4, columns), (direction, method)
    logits, dweight = random_logits(shape, dtype), random_upstream(shape, "float32")
    wide = logits.astype(state_type(dtype))
    weight, expected, gradient, exact = np.full((4, *shape), np.nan, np.float32)
    rounded = gradient.astype(logits.dtype)
    with emulated() as device:
        _steps.normalize(device, logits, weight, *options)
        _steps.normalize(device, wide, expected, *options)
        _steps.normalize_backward(device, dweight, logits, rounded, *options)
        _steps.normalize_backward(device, dweight, wide, exact, *options)
    assert not np.isnan(weight).any()
    assert_same_bits(weight, expected)
    assert_same_bits(rounded, exact.astype(logits.dtype))


@every_method
def test_emulated_weights_are_rounded_as_divisions_are(method):
    """But for numbers of which the CPU rounds an exponential in another way."""
    require()
    rng, shape = np.random.default_rng(7), (1, 1, 3, 64, 64)
    logits = rng.standard_normal(shape, np.float32)
    # from one of three to none of them, beside two whose sum is no power of two
    logits[:, :, 0] -= rng.uniform(0, 87, shape[3:]).astype(np.float32)
    weight = np.full(logits.shape, np.nan, np.float32)
    with emulated() as device:
        _steps.normalize(device, logits, weight, "top_to_bottom", method)
    z = logits[..., 1:-1]  # all neighbours exist
    if method == "sigmoid":
        numerator = 1 / (1 + np.exp(-np.maximum(z, -40).astype(np.float64)).astype(np.float32))
    else:
        numerator = np.exp((z - z.max(axis=2, keepdims=True)).astype(np.float64)).astype(np.float32)
    expected = numerator / (numerator[:, :, :1] + numerator[:, :, 1:2] + numerator[:, :, 2:])
    ranges = [(2.0**-118, 1)] + [(2.0**-126, 2.0**-118)] * (method == "softmax")
    for smallest, largest in ranges:
        there = (expected >= smallest) & (expected < largest)
        assert there.sum() > 100
        assert np.mean(weight[..., 1:-1][there] != expected[there]) < 0.005


@every_method
@pytest.mark.parametrize(("forwards", "backwards"), [ALL_DIRECTIONS[:2], ALL_DIRECTIONS[2:]])
def test_a_scan_backwards_has_the_same_neighbours(backend, method, forwards, backwards):
    logits, dweight = random_logits((1, 2, 3, 8, 8), "float32"), random_upstream((1, 2, 3, 8, 8), "float32")
    for function, arrays in (
        (gspn2_cupy.normalize_weights, [logits]),
        (gspn2_cupy.normalize_weights_backward, [dweight, logits]),
    ):
        expected = backend(function, *arrays, direction=forwards, method=method)
        assert_same_bits(backend(function, *arrays, direction=backwards, method=method), expected)


@every_method
@pytest.mark.parametrize("leading", [(), (4,), (2, 1, 2)], ids=str)
def test_leading_axes_are_free(backend, method, leading):
    logits, dweight = random_logits((4, 1, 3, 4, 5), "float32"), random_upstream((4, 1, 3, 4, 5), "float32")
    if leading == ():
        logits, dweight = logits[:1], dweight[:1]
    options = {"direction": "top_to_bottom", "method": method}
    shape = (*leading, 3, 4, 5)
    for function, arrays in (
        (gspn2_cupy.normalize_weights, [logits]),
        (gspn2_cupy.normalize_weights_backward, [dweight, logits]),
    ):
        expected = backend(function, *arrays, **options)
        actual = backend(function, *(a.reshape(shape) for a in arrays), **options)
        assert_same_bits(actual, expected.reshape(shape))


def test_sigmoid_is_the_default(backend):
    logits = random_logits((1, 1, 3, 4, 5), "float32")
    dweight = random_upstream(logits.shape, "float32")
    for function, arrays in (
        (gspn2_cupy.normalize_weights, [logits]),
        (gspn2_cupy.normalize_weights_backward, [dweight, logits]),
    ):
        default = backend(function, *arrays, direction="left_to_right")
        assert_same_bits(default, backend(function, *arrays, direction="left_to_right", method="sigmoid"))
        softmax = backend(function, *arrays, direction="left_to_right", method="softmax")
        assert not np.array_equal(default, softmax)


@every_direction
@every_method
@every_dtype
def test_rows_sum_to_one(backend, direction, method, dtype):
    # logits over the whole range that a float16 network can produce
    logits = random_logits((2, 2, 3, 5, 7), dtype) * DTYPES[dtype].type(20)
    weight = backend(gspn2_cupy.normalize_weights, logits, direction=direction, method=method).astype(np.float64)
    assert np.all(weight >= 0)
    assert np.all(weight[outside(weight.shape, direction)] == 0)
    ulp = {"float64": 2**-52, "float32": 2**-23, "float16": 2**-10, "bfloat16": 2**-7}[dtype]
    assert np.abs(weight.sum(axis=-3) - 1).max() <= 2 * ulp


@pytest.mark.parametrize("extreme", [60.0, 5e4, -5e4])
@every_dtype
@every_method
def test_extreme_logits(backend, method, dtype, extreme):
    # 5e4 is near the largest float16; exp of it overflows in every type
    logits = random_logits((1, 2, 3, 4, 5), dtype)
    logits[..., 1::2] = extreme  # whole pixels: equal weights
    logits[..., 0, :, 2] = extreme  # one neighbour of three
    check_against_loops(backend, logits, random_upstream(logits.shape, dtype), direction="left_to_right", method=method)


@every_direction
@every_dtype
def test_sigmoid_logits_below_minus_40_count_as_minus_40(backend, direction, dtype):
    # -60 and -inf are beyond the limit, -40 is on it, -39 and -30 are within; all but the limit are random neighbours
    rng = np.random.default_rng(4)
    values = np.array([-np.inf, -60, -40, -39, -30, 0.5])
    logits = rng.choice(values, (2, 2, 3, 6, 7)).astype(DTYPES[dtype])
    dweight = random_upstream(logits.shape, dtype)
    options = {"direction": direction, "method": "sigmoid"}
    weight, dlogits = check_against_loops(backend, logits, dweight, **options)
    clamped = np.maximum(logits.astype(np.float64), -40.0).astype(logits.dtype)
    assert_same_bits(weight, backend(gspn2_cupy.normalize_weights, clamped, **options))
    below = logits.astype(np.float64) < -40.0
    inside = ~outside(logits.shape, direction)
    at_the_limit = (logits.astype(np.float64) == -40.0) & inside
    assert np.all(dlogits[below] == 0)
    clamped_gradient = backend(gspn2_cupy.normalize_weights_backward, dweight, clamped, **options)
    assert np.any(clamped_gradient[at_the_limit] != 0)
    assert_same_bits(dlogits[~below], clamped_gradient[~below])


def test_sigmoid_of_a_pixel_all_below_the_limit_has_equal_weights(backend):
    logits = np.full((1, 1, 3, 3, 3), -100, np.float32)
    weight = backend(gspn2_cupy.normalize_weights, logits, direction="top_to_bottom")
    assert_close(weight[0, 0, :, 0, 1], np.full(3, 1 / 3), np.float32)
    assert_close(weight[0, 0, :, 0, 0], np.array([0, 0.5, 0.5]), np.float32)


def test_softmax_has_no_limit(backend):
    logits = np.zeros((1, 1, 3, 3, 3), np.float64)
    logits[0, 0, :, 1, 1] = [-100, -101, -102]
    weight = backend(gspn2_cupy.normalize_weights, logits, direction="top_to_bottom", method="softmax")
    powers = np.exp([0.0, -1.0, -2.0])
    assert_close(weight[0, 0, :, 1, 1], powers / powers.sum(), np.float64)


@every_direction
@every_method
@every_dtype
@pytest.mark.parametrize("columns", [5, 8])
def test_nan_logits_spoil_their_own_pixel_and_no_other(backend, direction, method, dtype, columns):
    logits = random_logits((1, 2, 3, 4, columns), dtype)
    clean = backend(gspn2_cupy.normalize_weights, logits, direction=direction, method=method)
    inside = ~outside(logits.shape, direction)
    dweight = random_upstream(logits.shape, dtype)
    clean_gradient = backend(gspn2_cupy.normalize_weights_backward, dweight, logits, direction=direction, method=method)
    for k in range(3):
        dirty = logits.copy()
        dirty[0, 1, k, 1, 2] = np.nan  # an inner pixel: all three neighbours exist
        weight = backend(gspn2_cupy.normalize_weights, dirty, direction=direction, method=method)
        gradient = backend(gspn2_cupy.normalize_weights_backward, dweight, dirty, direction=direction, method=method)
        spoilt = np.zeros(logits.shape, dtype=bool)
        spoilt[0, 1, :, 1, 2] = True
        for result, expected in ((weight, clean), (gradient, clean_gradient)):
            assert np.all(np.isnan(result[spoilt & inside].astype(np.float64)))
            assert_same_bits(result[~spoilt], expected[~spoilt])


@every_direction
@every_method
@pytest.mark.parametrize("columns", [5, 8])
def test_neighbours_outside_of_spoilt_pixels_still_have_a_weight_of_zero(backend, direction, method, columns):
    logits = np.full((1, 2, 3, 4, columns), np.nan, np.float32)
    there = outside(logits.shape, direction)
    options = {"direction": direction, "method": method}
    weight = backend(gspn2_cupy.normalize_weights, logits, **options)
    gradient = backend(gspn2_cupy.normalize_weights_backward, np.ones_like(logits), logits, **options)
    for result in (weight, gradient):
        assert np.array_equal(result == 0, there)
        assert np.array_equal(np.isnan(result), ~there)


@every_direction
@every_method
@pytest.mark.parametrize("columns", [5, 6, 8])
def test_what_neighbours_outside_hold_shows_nowhere(backend, direction, method, columns):
    logits = random_logits((1, 2, 3, 4, columns), "float32")
    dweight = random_upstream(logits.shape, "float32")
    options = {"direction": direction, "method": method}
    weight = backend(gspn2_cupy.normalize_weights, logits, **options)
    gradient = backend(gspn2_cupy.normalize_weights_backward, dweight, logits, **options)
    there = outside(logits.shape, direction)
    for junk in (np.nan, np.inf, -np.inf, 80.0):
        logits[there] = junk
        assert_same_bits(backend(gspn2_cupy.normalize_weights, logits, **options), weight)
        dweight[there] = junk
        assert_same_bits(backend(gspn2_cupy.normalize_weights_backward, dweight, logits, **options), gradient)
    assert np.all(weight[there] == 0)
    assert np.all(gradient[there] == 0)


@every_direction
@every_method
def test_central_differences(backend, direction, method):
    # 3 x 4: corners, edges and inner pixels; all shifts are one batch
    logits = random_logits((1, 1, 3, 3, 4), "float64") / 3
    dweight = random_upstream(logits.shape, "float64")
    step = 1e-5
    shifted = logits.ravel() + step * np.concatenate([np.eye(logits.size), -np.eye(logits.size)])
    weight = backend(
        gspn2_cupy.normalize_weights, shifted.reshape(-1, *logits.shape[1:]), direction=direction, method=method
    )
    loss = np.sum(dweight * weight, axis=(1, 2, 3, 4))
    differences = (loss[: logits.size] - loss[logits.size :]) / (2 * step)
    gradient = backend(gspn2_cupy.normalize_weights_backward, dweight, logits, direction=direction, method=method)
    np.testing.assert_allclose(gradient.ravel(), differences, rtol=1e-7, atol=1e-9)
    assert np.count_nonzero(gradient) == np.count_nonzero(~outside(logits.shape, direction))


@pytest.mark.functions("line_scan")
@every_direction
@every_method
def test_a_constant_stays_constant(backend, direction, method):
    shape = (1, 2, 9, 9)
    logits = random_logits((1, 2, 3, 9, 9), "float64")
    weight = backend(gspn2_cupy.normalize_weights, logits, direction=direction, method=method)
    h0 = np.full(line_shape(shape, direction), 3.0)
    x, lam = random_upstream(shape, "float64"), np.zeros(shape)
    h = backend(gspn2_cupy.line_scan, x, weight, lam, direction=direction, h0=h0)
    assert_close(h, np.full(shape, 3.0), np.float64)


@every_direction
@every_method
@pytest.mark.parametrize("layout", LAYOUTS)
def test_memory_layouts(backend, direction, method, layout):
    logits = random_logits((2, 3, 3, 4, 8), "float32")
    dweight = random_upstream(logits.shape, "float32")
    options = {"direction": direction, "method": method}
    strided, strided_upstream = backend.strided(logits, layout), backend.strided(dweight, layout)
    assert_same_bits(
        backend(gspn2_cupy.normalize_weights, strided, **options),
        backend(gspn2_cupy.normalize_weights, logits, **options),
    )
    assert_same_bits(
        backend(gspn2_cupy.normalize_weights_backward, strided_upstream, strided, **options),
        backend(gspn2_cupy.normalize_weights_backward, dweight, logits, **options),
    )


# --- plans ------------------------------------------------------------------------------------------------------------


def layout(shape, dtype="float32"):
    kind = data_type(dtype)
    strides = tuple(math.prod(shape[axis + 1 :]) for axis in range(len(shape)))
    return Layout(tuple(shape), strides, kind.c_name, kind.itemsize)


@every_direction
@every_dtype
@pytest.mark.parametrize("images", [(1, 1), (4, 3), (32, 1152)], ids=str)
@pytest.mark.parametrize(
    "size",
    [(1, 1), (2, 2), (7, 7), (14, 14), (1, 3000), (3000, 1), (1023, 1024), (16384, 16384), (1, 2**24), (2**24, 1)],
    ids=str,
)
def test_blocks_cover_the_images_and_no_more(direction, dtype, images, size):
    logits = layout((*images, 3, *size), dtype)
    for made in (
        _plan_pixels.normalize(direction, "softmax", logits, logits),
        _plan_pixels.normalize_backward(direction, "softmax", logits, logits, logits),
    ):
        scan, vector = made.geometry["scan"], int(dict(made.spec.defines)["VECTOR"])
        columns, rows = (scan[name] for name in (("lines", "width") if scan["along"] else ("width", "lines")))
        across, down, deep = made.block
        blocks_across, blocks_down = int(made.geometry["blocks_across"]), int(made.geometry["blocks_down"])
        blocks_deep, rest = divmod(made.grid[0], blocks_across * blocks_down)
        assert rest == 0
        assert (blocks_across - 1) * across * vector < columns <= blocks_across * across * vector
        assert (blocks_down - 1) * down < rows <= blocks_down * down
        assert (blocks_deep - 1) * deep < math.prod(images) <= blocks_deep * deep
        assert made.grid[0] < 2**31 or logits.bytes > 2**41  # more than the memory of any GPU
        assert deep <= 64
        assert 32 <= across * down * deep <= int(dict(made.spec.defines)["MOST_THREADS"])


def test_a_vector_is_whole_and_aligned_in_every_array():
    whole = layout((2, 3, 3, 8, 16))
    state = layout(whole.shape, "bfloat16")
    changed = [
        replace(whole, alignment=8),
        replace(whole, strides=(1296, 432, 144, 18, 1)),
        replace(whole, alignment=4),
    ]
    for other, pixels in zip((whole, state, *changed), (4, 4, 2, 2, 1), strict=True):
        for arrays in ((whole, whole, other), (whole, other, whole), (other, whole, whole)):
            made = [_plan_pixels.normalize_backward("left_to_right", "sigmoid", *arrays)]
            made += [_plan_pixels.normalize("left_to_right", "sigmoid", *arrays[:2])] if whole is arrays[2] else []
            assert {dict(plan.spec.defines)["VECTOR"] for plan in made} == {str(pixels)}
