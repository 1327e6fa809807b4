"""normalize_weights and its backward against loops written from their definition, and against central differences."""

import loops
import numpy as np
import pytest
from helpers import (
    DTYPES,
    LAYOUTS,
    assert_close,
    assert_same_bits,
    line_shape,
    outside,
    signal,
)

import gspn2_cupy
from gspn2_cupy import ALL_DIRECTIONS

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
}
every_shape = pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)


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
def test_nan_logits_spoil_their_own_pixel_and_no_other(backend, direction, method, dtype):
    logits = random_logits((1, 2, 3, 4, 5), dtype)
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
def test_neighbours_outside_are_never_looked_at(backend, direction, method):
    logits = random_logits((1, 2, 3, 4, 5), "float32")
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


@every_method
@pytest.mark.parametrize("layout", LAYOUTS)
def test_memory_layouts(backend, method, layout):
    logits = random_logits((2, 3, 3, 4, 5), "float32")
    dweight = random_upstream(logits.shape, "float32")
    options = {"direction": "bottom_to_top", "method": method}
    strided, strided_upstream = backend.strided(logits, layout), backend.strided(dweight, layout)
    assert_same_bits(
        backend(gspn2_cupy.normalize_weights, strided, **options),
        backend(gspn2_cupy.normalize_weights, logits, **options),
    )
    assert_same_bits(
        backend(gspn2_cupy.normalize_weights_backward, strided_upstream, strided, **options),
        backend(gspn2_cupy.normalize_weights_backward, dweight, logits, **options),
    )
