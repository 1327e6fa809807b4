"""A scan done in pieces is the whole scan, in every bit, forward and backward."""

import numpy as np
import pytest
from helpers import DTYPES, assert_close, assert_same_bits, image_shape, lines, make_scan, scan_axis

import gspn2_cupy
from gspn2_cupy import ALL_DIRECTIONS

pytestmark = pytest.mark.functions("line_scan", "line_scan_backward")
every_direction = pytest.mark.parametrize("direction", ALL_DIRECTIONS)
every_dtype = pytest.mark.parametrize("dtype", DTYPES)

# 9 x 9 pixels, so that every direction has 9 lines: two pieces cut at every place, the ends included, and three pieces
LENGTH = 9
CUTS = [[cut] for cut in range(LENGTH + 1)] + [[2, 5], [4, 4, 5]]


def pieces(case, cuts):
    """(start, stop) of each piece in scan order."""
    return list(zip([0, *cuts], [*cuts, length_of(case)], strict=True))


def length_of(case):
    return case.x.shape[scan_axis(case.direction)]


def take(case, start, stop, *arrays):
    """The lines start..stop of optional arrays, as views."""
    return [None if a is None else lines(a, case.direction, start, stop) for a in arrays]


def joined(parts, direction):
    """Pieces in scan order put together in image layout."""
    ordered = parts if direction in ("left_to_right", "top_to_bottom") else parts[::-1]
    return np.concatenate(ordered, axis=scan_axis(direction))


def forward_in_pieces(backend, case, cuts):
    """(h, the line before each piece and after the last one)."""
    parts, seams = [], [case.h0]
    for start, stop in pieces(case, cuts):
        x, weight, lam = take(case, start, stop, case.x, case.weight, case.lam)
        h, h_last = backend(
            gspn2_cupy.line_scan, x, weight, lam, direction=case.direction, h0=seams[-1], return_last=True
        )
        parts.append(h)
        seams.append(h_last)
    return joined(parts, case.direction), seams


@every_direction
@every_dtype
@pytest.mark.parametrize("h0", [True, False], ids=["h0", "no h0"])
def test_forward(backend, direction, dtype, h0):
    check_forward(backend, make_scan((1, 4, LENGTH, LENGTH), direction, dtype, groups=2, h0=h0), CUTS)


def check_forward(backend, case, all_cuts):
    whole, whole_last = backend(gspn2_cupy.line_scan, case.x, case.weight, case.lam, **case.options(), return_last=True)
    for cuts in all_cuts:
        h, seams = forward_in_pieces(backend, case, cuts)
        assert_same_bits(h, whole)
        assert_same_bits(seams[-1], whole_last)


@every_direction
@every_dtype
# 35 x 140: three tiles of 16 lines, two blocks of 128 pixels. 32 x 64: whole tiles and aligned rows, the pieces not.
@pytest.mark.parametrize(("size", "channels"), [((35, 140), 2), ((32, 64), 4)], ids=["35x140", "32x64"])
def test_pieces_against_tiles(backend, direction, dtype, size, channels):
    case = make_scan(image_shape(1, channels, size, direction), direction, dtype, h0=True, dh_last=True)
    cuts = [[1], [15], [16], [17], [7, 31]]  # on, before and behind the edges of tiles
    check_forward(backend, case, cuts)
    check_backward(backend, case, False, cuts[2:4])


@every_direction
@every_dtype
@pytest.mark.parametrize("given", [True, False], ids=["h given", "h recomputed"])
def test_backward(backend, direction, dtype, given):
    check_backward(
        backend, make_scan((1, 4, LENGTH, LENGTH), direction, dtype, groups=2, h0=True, dh_last=True), given, CUTS
    )


def check_backward(backend, case, given, all_cuts):
    direction = case.direction
    h = backend(gspn2_cupy.line_scan, case.x, case.weight, case.lam, **case.options()) if given else None
    arrays = (case.dh, case.x, case.weight, case.lam, h)
    whole = backend(gspn2_cupy.line_scan_backward, *arrays, **case.options(), dh_last=case.dh_last)
    for cuts in all_cuts:
        _, seams = forward_in_pieces(backend, case, cuts)
        parts, dh_last = [], case.dh_last
        for (start, stop), h0 in reversed(list(zip(pieces(case, cuts), seams[:-1], strict=True))):
            grads = backend(
                gspn2_cupy.line_scan_backward,
                *take(case, start, stop, *arrays),
                direction=direction,
                h0=h0,
                dh_last=dh_last,
            )
            parts.insert(0, grads)
            dh_last = grads.h0
        assert_same_bits(dh_last, whole.h0)
        x, weight, lam = (joined([getattr(p, name) for p in parts], direction) for name in ("x", "weight", "lam"))
        assert_same_bits(x, whole.x)
        assert_same_bits(lam, whole.lam)
        check_weight(weight, whole.weight, case, cuts)


def check_weight(weight, whole, case, cuts):
    """Equal in every bit, but on a 16-bit seam line, whose gradient uses the unrounded h0: equal within the type."""
    length = length_of(case)
    seams = {cut for cut in cuts if cut < length} if case.x.dtype.itemsize == 2 else set()
    for t in range(length):
        actual, expected = (np.ascontiguousarray(lines(a, case.direction, t, t + 1)) for a in (weight, whole))
        if t in seams:
            # a sum of 2 channels: the rounding of h is judged against the size of the terms, all below 20
            np.testing.assert_allclose(
                actual.astype(np.float64), expected.astype(np.float64), rtol=8e-3, atol=2 * 20 * 4e-3
            )
        else:
            assert_same_bits(actual, expected)


@every_direction
@every_dtype
@pytest.mark.parametrize("cuts", [[3], [6], [3, 6]])  # multiples of the chunk
def test_chunks_cut_at_their_multiples_hand_nothing_on(backend, direction, dtype, cuts):
    case = make_scan((1, 4, LENGTH, LENGTH), direction, dtype, groups=2, h0=True, dh_last=True)
    arrays = (case.dh, case.x, case.weight, case.lam, None)
    whole, whole_last = backend(
        gspn2_cupy.line_scan, case.x, case.weight, case.lam, **case.options(3), return_last=True
    )
    whole_grads = backend(gspn2_cupy.line_scan_backward, *arrays, **case.options(3), dh_last=case.dh_last)
    parts, grads = [], []
    for start, stop in pieces(case, cuts):
        dh, x, weight, lam, _ = take(case, start, stop, *arrays)
        options = {"direction": direction, "chunk": 3, "h0": case.h0 if start == 0 else None}
        h, h_last = backend(gspn2_cupy.line_scan, x, weight, lam, **options, return_last=True)
        parts.append(h)
        dh_last = case.dh_last if stop == LENGTH else None
        grads.append(backend(gspn2_cupy.line_scan_backward, dh, x, weight, lam, **options, dh_last=dh_last))
    assert_same_bits(joined(parts, direction), whole)
    assert_same_bits(h_last, whole_last)
    assert_same_bits(grads[0].h0, whole_grads.h0)
    for name in ("x", "weight", "lam"):
        assert_same_bits(joined([getattr(g, name) for g in grads], direction), getattr(whole_grads, name))


@every_direction
def test_a_short_last_chunk_may_be_cut_off(backend, direction):
    case = make_scan((1, 2, LENGTH, LENGTH), direction)  # 9 lines in chunks of 4: the last one has a single line
    whole = backend(gspn2_cupy.line_scan, case.x, case.weight, case.lam, **case.options(4))
    parts = [
        backend(gspn2_cupy.line_scan, *take(case, *piece, case.x, case.weight, case.lam), **case.options(4))
        for piece in ((0, 4), (4, 8), (8, 9))
    ]
    assert_same_bits(joined(parts, direction), whole)


@every_direction
def test_pieces_hand_on_what_the_whole_scan_means(backend, direction):
    # Guards the other tests of this file: a piece that ignored h0 would differ from the whole by far more than bits.
    case = make_scan((1, 2, LENGTH, LENGTH), direction, "float64")
    whole = backend(gspn2_cupy.line_scan, case.x, case.weight, case.lam, **case.options())
    h, seams = forward_in_pieces(backend, case, [5])
    assert_close(h, whole, np.float64)
    assert np.abs(seams[1]).min() > 0
