"""line_scan against loops written from its definition, on every backend."""

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
    line_shape,
    lines,
    make_scan,
    outside,
    size_parameters,
    state_type,
)

import gspn2_cupy
from gspn2_cupy import ALL_DIRECTIONS

pytestmark = pytest.mark.functions("line_scan")
every_direction = pytest.mark.parametrize("direction", ALL_DIRECTIONS)
every_dtype = pytest.mark.parametrize("dtype", DTYPES)


def scan(backend, case, *, chunk=None, **options):
    return backend(gspn2_cupy.line_scan, case.x, case.weight, case.lam, **case.options(chunk), **options)


def check_against_loops(backend, case, *, chunk=None):
    """Both results against the loops."""
    h, h_last = scan(backend, case, chunk=chunk, return_last=True)
    truth, last_truth = loops.line_scan(case.x, case.weight, case.lam, **case.options(chunk))
    assert_close(h, truth, case.x.dtype)
    assert_close(h_last, last_truth, state_type(case.x.dtype))
    return h, h_last


def test_directions_come_in_the_documented_order():
    assert ALL_DIRECTIONS == ("left_to_right", "right_to_left", "top_to_bottom", "bottom_to_top")


def test_the_backend_is_the_one_it_says(backend):
    scan(backend, make_scan((1, 1, 2, 2), "left_to_right"))
    if backend.name == "emulator":
        assert backend.launches > 0


@every_direction
@pytest.mark.parametrize("size", size_parameters())
def test_sizes(backend, direction, size):
    check_against_loops(backend, make_scan(image_shape(1, 2, size, direction), direction, h0=True))


@pytest.mark.parametrize("shape", [(0, 2, 3, 4), (2, 0, 3, 4)], ids=["no images", "no channels"])
def test_empty_batch_or_channels(backend, shape):
    check_against_loops(backend, make_scan(shape, "left_to_right", h0=True))


@every_direction
@every_dtype
@pytest.mark.parametrize("lam", [True, False], ids=["lam", "no lam"])
def test_data_types(backend, direction, dtype, lam):
    # 9 x 11: odd, so that no two rows of a 16-bit image are aligned alike; 2 images, 2 groups of 3 channels
    case = make_scan((2, 6, 9, 11), direction, dtype, groups=2, lam=lam, h0=lam)
    h, h_last = check_against_loops(backend, case)
    length = 11 if direction in ("left_to_right", "right_to_left") else 9
    last_line = lines(h, direction, length - 1, length).reshape(h_last.shape)
    assert_same_bits(h_last.astype(h.dtype), last_line)


@every_direction
@every_dtype
def test_data_types_beyond_one_tile(backend, direction, dtype):
    # 19 x 140: two tiles of lines and more, a block of 128 pixels and more
    check_against_loops(backend, make_scan(image_shape(1, 2, (19, 140), direction), direction, dtype, h0=True))


@every_direction
@pytest.mark.parametrize("groups", [1, 2, 3, 6])
def test_groups(backend, direction, groups):
    # 6 channels have every kind of divisor
    check_against_loops(backend, make_scan((2, 6, 5, 7), direction, groups=groups))


@every_direction
@pytest.mark.parametrize("h0", [True, False], ids=["h0", "no h0"])
# lengths 10 and 11: chunks of one line, dividing one of the lengths, none, all but a line, the whole, and beyond it
@pytest.mark.parametrize("chunk", [1, 2, 5, 4, 10, 11, 12, 1 << 40])
def test_chunk(backend, direction, chunk, h0):
    check_against_loops(backend, make_scan((1, 2, 10, 11), direction, h0=h0), chunk=chunk)


@every_direction
@pytest.mark.parametrize(
    "chunk", [7, 15, 16, 17, 31, 32, 33]
)  # with and against the tiles of a kernel: 8, 16 or 32 lines
def test_chunks_and_tiles(backend, direction, chunk):
    check_against_loops(backend, make_scan(image_shape(1, 2, (70, 3), direction), direction, h0=True), chunk=chunk)


@every_direction
def test_chunks_are_independent_scans(backend, direction):
    case = make_scan((1, 2, 7, 7), direction, "float64")  # 7 lines in chunks of 3: the last one is short
    h = scan(backend, case, chunk=3)
    for start, stop in ((0, 3), (3, 6), (6, 7)):
        x, weight, lam = (lines(a, direction, start, stop) for a in (case.x, case.weight, case.lam))
        assert_same_bits(
            lines(h, direction, start, stop), backend(gspn2_cupy.line_scan, x, weight, lam, direction=direction)
        )


@every_direction
def test_no_lines_hand_the_line_before_them_on(backend, direction):
    shape = image_shape(1, 2, (0, 5), direction)
    with_h0, without = make_scan(shape, direction, "float16", h0=True), make_scan(shape, direction, "float16")
    assert_same_bits(scan(backend, with_h0, return_last=True)[1], with_h0.h0)
    assert_same_bits(scan(backend, without, return_last=True)[1], np.zeros((1, 2, 5), np.float32))


@every_direction
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_the_state_is_not_rounded_between_lines(backend, direction, dtype):
    # 64 steps of 2^-14 from 1: exact in float32, and each one lost if the line were rounded on the way
    x = np.full(image_shape(1, 1, (64, 2), direction), 2.0**-14, DTYPES[dtype])
    weight = np.zeros((1, 1, 3, *x.shape[2:]), x.dtype)
    weight[:, :, 1] = 1
    h0 = np.ones(line_shape(x.shape, direction), np.float32)
    h, h_last = backend(gspn2_cupy.line_scan, x, weight, direction=direction, h0=h0, return_last=True)
    assert_same_bits(h_last, np.full_like(h0, 1 + 64 * 2.0**-14))
    steps = 1 + 2.0**-14 * np.arange(1, 65)
    for t in range(64):
        assert np.all(lines(h, direction, t, t + 1) == steps[t].astype(DTYPES[dtype]))


def test_overflow_shows_only_where_the_result_is_rounded(backend):
    # 65504 is the largest float16: 4 x 30000 is infinite in h, finite in the state and therefore back in h after it
    x = np.array([30000] * 4 + [-30000] * 4, np.float16).reshape(1, 1, 1, 8)
    weight = np.ones((1, 1, 3, 1, 8), np.float16)
    h, h_last = backend(gspn2_cupy.line_scan, x, weight, direction="left_to_right", return_last=True)
    expected = 30000.0 * np.array([1, 2, 3, 4, 3, 2, 1, 0])
    with np.errstate(over="ignore"):
        assert_same_bits(h, expected.astype(np.float16).reshape(x.shape))
    assert_same_bits(h_last, np.zeros((1, 1, 1), np.float32))


@every_direction
@pytest.mark.parametrize("layout", LAYOUTS)
def test_memory_layouts(backend, direction, layout):
    case = make_scan((2, 4, 6, 7), direction, groups=2, h0=True)
    expected = scan(backend, case, return_last=True)
    # 3-D lines have no layout of their own but steps: every other element
    h0 = backend.array(np.repeat(case.h0, 2, axis=-1))[..., ::2]
    x, weight, lam = (backend.strided(a, layout) for a in (case.x, case.weight, case.lam))
    actual = backend(gspn2_cupy.line_scan, x, weight, lam, direction=direction, h0=h0, return_last=True)
    for a, b in zip(actual, expected, strict=True):
        assert_same_bits(a, b)


@every_dtype
@pytest.mark.parametrize("direction", ["right_to_left", "top_to_bottom"])  # one of each axis
def test_repeated_memory(backend, direction, dtype):
    case = make_scan((1, 3, 5, 4), direction, dtype)
    expected = np.concatenate([scan(backend, case)] * 2)
    x, weight, lam = (backend.array(a) for a in (case.x, case.weight, case.lam))
    xp = backend.namespace
    x, weight, lam = (xp.broadcast_to(a, (2, *a.shape[1:])) for a in (x, weight, lam))  # batch stride 0
    assert_same_bits(backend(gspn2_cupy.line_scan, x, weight, lam, direction=direction), expected)


@every_dtype
@pytest.mark.parametrize("layout", ["contiguous", *LAYOUTS])
def test_out_receives_the_result_and_nothing_beside_it(backend, layout, dtype):
    case = make_scan((2, 3, 4, 5), "bottom_to_top", dtype)
    expected, expected_last = scan(backend, case, return_last=True)
    memory_shape, view = LAYOUTS.get(layout, (lambda s: s, lambda a: a))
    memory = backend.array(np.full(memory_shape(case.x.shape), np.nan, case.x.dtype))
    out = view(memory)
    backend.keep_results = True
    result, h_last = scan(backend, case, out=out, return_last=True)
    assert result is out
    assert_same_bits(backend.numpy(out), expected)
    assert_same_bits(backend.numpy(h_last), expected_last)
    untouched = np.full(memory.shape, np.nan, case.x.dtype)
    view(untouched)[...] = expected
    assert_same_bits(backend.numpy(memory), untouched)
    assert scan(backend, case, out=out) is out


@every_direction
@pytest.mark.parametrize("junk", [np.nan, np.inf])
@pytest.mark.parametrize("chunk", [None, 2])
@pytest.mark.parametrize("h0", [True, False], ids=["h0", "no h0"])
def test_weights_without_a_neighbour_are_never_used(backend, direction, h0, chunk, junk):
    case = make_scan((1, 2, 5, 6), direction, h0=h0)
    clean, dirty = case.weight, case.weight.copy()
    dirty[outside(dirty.shape, direction)] = junk
    length = 6 if direction in ("left_to_right", "right_to_left") else 5
    for start in range(0, length, chunk or length):
        if start > 0 or not h0:
            lines(dirty, direction, start, start + 1)[...] = junk
    expected = backend(gspn2_cupy.line_scan, case.x, clean, case.lam, **case.options(chunk))
    actual = backend(gspn2_cupy.line_scan, case.x, dirty, case.lam, **case.options(chunk))
    assert_same_bits(actual, expected)


@every_direction
@every_dtype
@pytest.mark.parametrize("where", ["x", "lam", "weight", "h0"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("chunk", [None, 3])  # the bad element stands in the second chunk: the third stays clean
def test_nan_and_infinity_propagate(backend, direction, dtype, where, value, chunk):
    # 9 x 9: the cone of one bad element in the middle reaches neither all pixels nor only its own line
    case = make_scan((1, 2, 9, 9), direction, dtype, h0=True)
    bad = getattr(case, where)
    bad[(0, 1, 4) if where == "h0" else (0, 0, 1, 4, 4) if where == "weight" else (0, 1, 4, 4)] = value
    h, h_last = scan(backend, case, chunk=chunk, return_last=True)
    with np.errstate(all="ignore"):
        truth, last_truth = loops.line_scan(case.x, case.weight, case.lam, **case.options(chunk))
    assert np.isfinite(truth).any()
    assert not np.isfinite(truth).all()
    assert np.isfinite(last_truth).all() == (chunk is not None)
    for a, b in ((h, truth), (h_last, last_truth)):
        finite = assert_same_nonfinite(a, b)
        assert_close(a[finite], b[finite], a.dtype)


@every_direction
@pytest.mark.parametrize("place", [(0, 96), (1, 127), (3, 128), (17, 250)])  # (line, pixel), at the edges of blocks
def test_nan_spreads_one_pixel_a_line(backend, direction, place):
    # 20 x 300: what blocks share of a line, one of them computes in vain, and NaN must not get out of it
    size = (20, 300)
    case = make_scan(image_shape(1, 1, size, direction), direction)
    t, i = place
    element = lines(case.x, direction, t, t + 1)
    element[(0, 0, i, 0) if direction in ("left_to_right", "right_to_left") else (0, 0, 0, i)] = np.nan
    h = scan(backend, case)
    across = np.arange(size[1])
    for step in range(size[0]):
        line = lines(h, direction, step, step + 1).ravel()
        assert np.array_equal(np.isnan(line), np.abs(across - i) <= step - t)


@every_direction
def test_reversing_the_image_swaps_directions(backend, direction):
    other = {"left": "right", "right": "left", "top": "bottom", "bottom": "top"}
    start, _, stop = direction.split("_")
    mirrored = f"{other[start]}_to_{other[stop]}"
    axis = -1 if start in ("left", "right") else -2
    case = make_scan((2, 4, 5, 6), direction, groups=2, h0=True)
    expected = np.flip(scan(backend, case), axis)
    x, weight, lam = (np.flip(a, axis) for a in (case.x, case.weight, case.lam))
    actual = backend(gspn2_cupy.line_scan, x, weight, lam, direction=mirrored, h0=case.h0)
    assert_same_bits(actual, np.ascontiguousarray(expected))


@every_direction
def test_flipping_across_the_scan_swaps_the_outer_weights(backend, direction):
    axis = -2 if direction in ("left_to_right", "right_to_left") else -1
    case = make_scan((2, 4, 5, 6), direction, "float64", groups=2)
    expected = np.flip(scan(backend, case), axis)
    x, lam = np.flip(case.x, axis), np.flip(case.lam, axis)
    weight = np.flip(case.weight, (axis, -3))
    assert_close(backend(gspn2_cupy.line_scan, x, weight, lam, direction=direction), expected, np.float64)


@pytest.mark.parametrize(
    ("direction", "transposed"), [("left_to_right", "top_to_bottom"), ("right_to_left", "bottom_to_top")]
)
def test_transposing_the_image_swaps_rows_and_columns(backend, direction, transposed):
    case = make_scan((2, 4, 5, 6), direction, groups=2, h0=True)
    x, weight, lam = (a.swapaxes(-1, -2) for a in (case.x, case.weight, case.lam))
    actual = backend(gspn2_cupy.line_scan, x, weight, lam, direction=transposed, h0=case.h0)
    assert_same_bits(actual.swapaxes(-1, -2), scan(backend, case))


@every_direction
def test_a_constant_stays_constant(backend, direction):
    # weights that are exact in binary, so that "constant" means every bit
    shape = (1, 2, 5, 6)
    weight = np.empty((1, 1, 3, 5, 6), np.float32)
    weight[:, :, 0], weight[:, :, 1], weight[:, :, 2] = 0.25, 0.5, 0.25
    centre = weight[:, :, 1] if direction in ("top_to_bottom", "bottom_to_top") else weight[:, :, 1].swapaxes(-1, -2)
    centre[..., 0] = centre[..., -1] = 0.75
    x, lam = np.full(shape, 9, np.float32), np.zeros(shape, np.float32)
    h0 = np.full(line_shape(shape, direction), 3, np.float32)
    h = backend(gspn2_cupy.line_scan, x, weight, lam, direction=direction, h0=h0)
    assert_same_bits(h, np.full(shape, 3, np.float32))


@every_direction
def test_without_weights_a_scan_is_a_product(backend, direction):
    case = make_scan((1, 2, 5, 6), direction)
    h = backend(gspn2_cupy.line_scan, case.x, np.zeros_like(case.weight), case.lam, direction=direction)
    assert_same_bits(h, case.lam * case.x)


@every_dtype
def test_a_repeat_gives_the_same_bits(backend, dtype):
    case = make_scan((2, 4, 9, 35), "left_to_right", dtype, groups=2, h0=True)
    first, second = (scan(backend, case, return_last=True) for _ in range(2))
    for a, b in zip(first, second, strict=True):
        assert_same_bits(a, b)


def test_read_only_inputs():
    case = make_scan((1, 2, 3, 4), "left_to_right", h0=True)
    for array in (case.x, case.weight, case.lam, case.h0):
        array.flags.writeable = False
    h = gspn2_cupy.line_scan(case.x, case.weight, case.lam, **case.options())
    h += 1  # the result is the caller's to write to
