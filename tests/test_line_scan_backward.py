"""line_scan_backward against loops written from its definition, and against central differences."""

from itertools import chain, combinations

import loops
import numpy as np
import pytest
from helpers import (
    DTYPES,
    LAYOUTS,
    assert_close,
    assert_same_bits,
    assert_same_nonfinite,
    image_shape,
    lines,
    make_scan,
    outside,
    size_parameters,
    state_type,
)

import gspn2_cupy
from gspn2_cupy import ALL_DIRECTIONS, LineScanGrads

pytestmark = pytest.mark.functions("line_scan", "line_scan_backward")
every_direction = pytest.mark.parametrize("direction", ALL_DIRECTIONS)
every_dtype = pytest.mark.parametrize("dtype", DTYPES)


def backward(backend, case, h=None, *, chunk=None, **options):
    arrays = (case.dh, case.x, case.weight, case.lam, h)
    grads = backend(gspn2_cupy.line_scan_backward, *arrays, **case.options(chunk), dh_last=case.dh_last, **options)
    assert type(grads) is LineScanGrads
    return grads


def forward(backend, case, chunk=None):
    return backend(gspn2_cupy.line_scan, case.x, case.weight, case.lam, **case.options(chunk))


def check_against_loops(backend, case, *, chunk=None, given=False):
    """All gradients against the loops, the hidden lines recomputed or given."""
    h = forward(backend, case, chunk) if given else None
    grads = backward(backend, case, h, chunk=chunk)
    arrays = (case.dh, case.x, case.weight, case.lam, h)
    truth = loops.line_scan_backward(*arrays, **case.options(chunk), dh_last=case.dh_last)
    for name, actual, expected in zip(LineScanGrads._fields, grads, truth, strict=True):
        if expected is None:
            assert actual is None, f"there is no gradient of {name}"
        else:
            assert_close(actual, expected, state_type(case.x.dtype) if name == "h0" else case.x.dtype)
    return grads


@every_direction
@pytest.mark.parametrize("size", size_parameters())
def test_sizes(backend, direction, size):
    shape = image_shape(1, 2, size, direction)
    check_against_loops(backend, make_scan(shape, direction, h0=True, dh_last=True))


@pytest.mark.parametrize("shape", [(0, 2, 3, 4), (2, 0, 3, 4)], ids=["no images", "no channels"])
def test_empty_batch_or_channels(backend, shape):
    check_against_loops(backend, make_scan(shape, "left_to_right", h0=True, dh_last=True))


@every_direction
@every_dtype
@pytest.mark.parametrize("given", [True, False], ids=["h given", "h recomputed"])
@pytest.mark.parametrize("optional", [True, False], ids=["lam and h0", "bare"])
def test_data_types(backend, direction, dtype, given, optional):
    # 9 x 11: odd, so that no two rows of a 16-bit image are aligned alike; 2 images, 2 groups of 3 channels
    case = make_scan((2, 6, 9, 11), direction, dtype, groups=2, lam=optional, h0=optional, dh_last=optional)
    check_against_loops(backend, case, given=given)


@every_direction
@every_dtype
def test_data_types_beyond_one_tile(backend, direction, dtype):
    # 19 x 140: two tiles of lines and more, a block of 128 pixels and more
    shape = image_shape(1, 2, (19, 140), direction)
    check_against_loops(backend, make_scan(shape, direction, dtype, h0=True, dh_last=True), given=True)


@every_direction
@pytest.mark.parametrize("groups", [1, 2, 3, 6])
def test_groups(backend, direction, groups):
    # 6 channels have every kind of divisor
    check_against_loops(backend, make_scan((2, 6, 5, 7), direction, groups=groups))


@pytest.mark.parametrize("direction", ["right_to_left", "top_to_bottom"])  # one of each axis
def test_many_channels_share_a_weight(backend, direction):
    # 70 channels in one group: more than two warps of them take part in one sum
    check_against_loops(backend, make_scan((1, 70, 3, 4), direction))


@every_direction
@pytest.mark.parametrize("h0", [True, False], ids=["h0", "no h0"])
@pytest.mark.parametrize("given", [True, False], ids=["h given", "h recomputed"])
# lengths 10 and 11: chunks of one line, dividing one of the lengths, none, all but a line, the whole, and beyond it.
# GSPN-1's published backward started its chunks from the other end and was wrong wherever chunk does not divide.
@pytest.mark.parametrize("chunk", [1, 2, 5, 4, 10, 11, 12, 1 << 40])
def test_chunk(backend, direction, chunk, given, h0):
    case = make_scan((1, 2, 10, 11), direction, h0=h0, dh_last=True)
    check_against_loops(backend, case, chunk=chunk, given=given)


@every_direction
@pytest.mark.parametrize(
    "chunk", [7, 15, 16, 17, 31, 32, 33]
)  # with and against the tiles of a kernel: 8, 16 or 32 lines
def test_chunks_and_tiles(backend, direction, chunk):
    shape = image_shape(1, 2, (70, 3), direction)
    check_against_loops(backend, make_scan(shape, direction, h0=True, dh_last=True), chunk=chunk)


@every_direction
@pytest.mark.parametrize("given", [True, False], ids=["h given", "h recomputed"])
@pytest.mark.parametrize("chunk", [None, 2, 3])  # 3 divides neither length
def test_central_differences(backend, direction, chunk, given):
    # 4 x 5 pixels of 2 channels: small enough to shift every single number, all shifts being one batch
    case = make_scan((1, 2, 4, 5), direction, "float64", h0=True, dh_last=True)
    names = ("x", "weight", "lam", "h0")
    arrays = [getattr(case, name) for name in names]
    flat = np.concatenate([a.ravel() for a in arrays])
    step = 1e-5
    shifted = flat + step * np.concatenate([np.eye(flat.size), -np.eye(flat.size)])
    pieces = np.split(shifted, np.cumsum([a.size for a in arrays])[:-1], axis=1)
    x, weight, lam, h0 = (p.reshape(-1, *a.shape[1:]) for p, a in zip(pieces, arrays, strict=True))
    h, h_last = backend(gspn2_cupy.line_scan, x, weight, lam, direction=direction, chunk=chunk, h0=h0, return_last=True)
    loss = np.sum(case.dh * h, axis=(1, 2, 3)) + np.sum(case.dh_last * h_last, axis=(1, 2))
    differences = (loss[: flat.size] - loss[flat.size :]) / (2 * step)
    grads = backward(backend, case, forward(backend, case, chunk) if given else None, chunk=chunk)
    gradient = np.concatenate([getattr(grads, name).ravel() for name in names])
    np.testing.assert_allclose(gradient, differences, rtol=1e-7, atol=1e-8)
    assert np.count_nonzero(gradient) > flat.size / 2


@every_direction
@pytest.mark.parametrize("junk", [np.nan, np.inf])
@pytest.mark.parametrize("chunk", [None, 2])
@pytest.mark.parametrize("h0", [True, False], ids=["h0", "no h0"])
def test_weights_without_a_neighbour_are_never_used_and_have_no_gradient(backend, direction, h0, chunk, junk):
    case = make_scan((1, 2, 5, 6), direction, h0=h0, dh_last=True)
    unused = outside(case.weight.shape, direction)
    length = 6 if direction in ("left_to_right", "right_to_left") else 5
    for start in range(0, length, chunk or length):
        if start > 0 or not h0:
            lines(unused, direction, start, start + 1)[...] = True
    clean = backward(backend, case, chunk=chunk)
    case.weight = np.where(unused, np.float32(junk), case.weight)
    dirty = backward(backend, case, chunk=chunk)
    for a, b in zip(dirty[: 3 + h0], clean[: 3 + h0], strict=True):
        assert_same_bits(a, b)
    assert np.all(dirty.weight[unused] == 0)
    assert np.all(dirty.weight[~unused] != 0)


@every_direction
@pytest.mark.parametrize("chunk", [None, 2])
def test_hidden_lines_without_a_next_line_are_never_used(backend, direction, chunk):
    # The last line of each chunk is nobody's previous line: not even NaN in it reaches a weight's gradient.
    case = make_scan((1, 2, 5, 6), direction)
    h = forward(backend, case, chunk)
    clean = backward(backend, case, h, chunk=chunk)
    length = 6 if direction in ("left_to_right", "right_to_left") else 5
    for t in range(length):
        if t + 1 == length or (chunk and (t + 1) % chunk == 0):
            lines(h, direction, t, t + 1)[...] = np.nan
    for a, b in zip(backward(backend, case, h, chunk=chunk)[:3], clean[:3], strict=True):
        assert_same_bits(a, b)


@every_direction
@pytest.mark.parametrize("where", ["dh", "x", "weight", "lam", "h", "dh_last", "h0"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("chunk", [None, 3])  # the bad element stands behind a chunk's first line, whose dw stays 0
def test_nan_and_infinity_propagate(backend, direction, where, value, chunk):
    # 9 x 9: the cone of one bad element in the middle reaches neither all pixels nor only its own line
    case = make_scan((1, 2, 9, 9), direction, h0=True, dh_last=True)
    h = forward(backend, case, chunk)
    bad = h if where == "h" else getattr(case, where)
    bad[(0, 1, 4) if bad.ndim == 3 else (0, 0, 1, 4, 4) if where == "weight" else (0, 1, 4, 4)] = value
    grads = backward(backend, case, h, chunk=chunk)
    with np.errstate(all="ignore"):
        truth = loops.line_scan_backward(
            case.dh, case.x, case.weight, case.lam, h, **case.options(chunk), dh_last=case.dh_last
        )
    assert any(np.isfinite(t).any() for t in truth)
    assert not all(np.isfinite(t).all() for t in truth)
    for a, b in zip(grads, truth, strict=True):
        finite = assert_same_nonfinite(a, b)
        assert_close(a[finite], b[finite], a.dtype)


@every_direction
@pytest.mark.parametrize("place", [(0, 96), (1, 127), (3, 128), (17, 250)])  # (line, pixel), at the edges of blocks
def test_nan_spreads_one_pixel_a_line(backend, direction, place):
    # 20 x 300, counted from the last line: what blocks share of a line, one of them computes in vain
    size = (20, 300)
    case = make_scan(image_shape(1, 1, size, direction), direction)
    t, i = size[0] - 1 - place[0], place[1]
    element = lines(case.dh, direction, t, t + 1)
    element[(0, 0, i, 0) if direction in ("left_to_right", "right_to_left") else (0, 0, 0, i)] = np.nan
    dx = backward(backend, case, needs=["x"]).x
    across = np.arange(size[1])
    for step in range(size[0]):
        line = lines(dx, direction, step, step + 1).ravel()
        assert np.array_equal(np.isnan(line), np.abs(across - i) <= t - step)


@every_direction
@pytest.mark.parametrize("chunk", [None, 3])
@pytest.mark.parametrize("dtype", ["float32", "float64"])  # where h is the unrounded state itself
def test_given_and_recomputed_hidden_lines_agree_in_every_bit(backend, direction, dtype, chunk):
    case = make_scan((2, 4, 7, 8), direction, dtype, groups=2, h0=True, dh_last=True)
    given = backward(backend, case, forward(backend, case, chunk), chunk=chunk)
    for a, b in zip(given, backward(backend, case, chunk=chunk), strict=True):
        assert_same_bits(a, b)


SUBSETS = list(chain.from_iterable(combinations(LineScanGrads._fields, n) for n in range(5)))


@pytest.mark.parametrize("direction", ["right_to_left", "top_to_bottom"])  # one of each axis
@pytest.mark.parametrize("given", [True, False], ids=["h given", "h recomputed"])
def test_needs(backend, direction, given):
    case = make_scan((2, 4, 5, 6), direction, groups=2, h0=True, dh_last=True)
    h = forward(backend, case) if given else None
    every = backward(backend, case, h)
    for needs in SUBSETS:
        grads = backward(backend, case, h, needs=needs)
        for name, actual, expected in zip(LineScanGrads._fields, grads, every, strict=True):
            if name in needs:
                assert_same_bits(actual, expected)
            else:
                assert actual is None


def test_inputs_that_are_not_there_have_no_gradient(backend):
    case = make_scan((1, 2, 3, 4), "left_to_right", lam=False, dh_last=True)
    grads = backward(backend, case)
    assert grads.lam is None
    assert grads.h0 is None
    assert grads.x is not None
    assert grads.weight is not None


@every_direction
def test_no_lines_hand_the_gradient_of_the_last_line_back(backend, direction):
    shape = image_shape(1, 2, (0, 5), direction)
    case = make_scan(shape, direction, "float16", h0=True, dh_last=True)
    assert_same_bits(backward(backend, case).h0, case.dh_last)
    case.dh_last = None
    assert_same_bits(backward(backend, case).h0, np.zeros((1, 2, 5), np.float32))


@every_direction
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_the_carry_is_not_rounded_between_lines(backend, direction, dtype):
    # 64 steps of 2^-14 from 1: exact in float32, and each one lost if the carry were rounded on the way
    shape = image_shape(1, 1, (64, 2), direction)
    dh = np.full(shape, 2.0**-14, DTYPES[dtype])
    weight = np.zeros((1, 1, 3, *shape[2:]), dh.dtype)
    weight[:, :, 1] = 1
    dh_last = h0 = np.ones((1, 1, 2), np.float32)
    grads = backend(gspn2_cupy.line_scan_backward, dh, dh, weight, direction=direction, h0=h0, dh_last=dh_last)
    assert_same_bits(grads.h0, np.full_like(h0, 1 + 64 * 2.0**-14))


@every_direction
@pytest.mark.parametrize("layout", LAYOUTS)
def test_memory_layouts(backend, direction, layout):
    case = make_scan((2, 4, 6, 7), direction, groups=2, h0=True, dh_last=True)
    h = forward(backend, case)
    expected = backward(backend, case, h)
    arrays = [backend.strided(a, layout) for a in (case.dh, case.x, case.weight, case.lam, h)]
    # 3-D lines have no layout of their own but steps: every other element
    h0, dh_last = (backend.array(np.repeat(a, 2, axis=-1))[..., ::2] for a in (case.h0, case.dh_last))
    actual = backend(gspn2_cupy.line_scan_backward, *arrays, direction=direction, h0=h0, dh_last=dh_last)
    for a, b in zip(actual, expected, strict=True):
        assert_same_bits(a, b)


@every_dtype
@pytest.mark.parametrize("direction", ["right_to_left", "top_to_bottom"])  # one of each axis
def test_repeated_memory(backend, direction, dtype):
    case = make_scan((1, 3, 5, 4), direction, dtype)
    expected = [None if a is None else np.concatenate([a] * 2) for a in backward(backend, case)]
    arrays = [backend.array(a) for a in (case.dh, case.x, case.weight, case.lam)]
    arrays = [backend.namespace.broadcast_to(a, (2, *a.shape[1:])) for a in arrays]  # batch stride 0
    actual = backend(gspn2_cupy.line_scan_backward, *arrays, direction=direction)
    for a, b in zip(actual[:3], expected[:3], strict=True):
        assert_same_bits(a, b)


@every_dtype
def test_a_repeat_gives_the_same_bits(backend, dtype):
    # 6 channels in a group: the sum over them is where an order could vary
    case = make_scan((2, 12, 9, 35), "left_to_right", dtype, groups=2, h0=True, dh_last=True)
    for a, b in zip(backward(backend, case), backward(backend, case), strict=True):
        assert_same_bits(a, b)
