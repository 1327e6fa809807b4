"""The dense affinity matrix: y = A·x and dx = A^T·dy, the whole operator as one linear map."""

from itertools import product

import numpy as np
import pytest
from helpers import DTYPES, TOLERANCE, assert_close, make_unit

import gspn2_cupy
from gspn2_cupy import ALL_DIRECTIONS

pytestmark = pytest.mark.functions("affinity_matrix", "propagate", "propagate_backward")


def affinity(backend, unit, chunk=None):
    options = {"directions": unit.directions, "merge": unit.merge, "chunk": chunk}
    return backend(gspn2_cupy.affinity_matrix, unit.weight, unit.lam, unit.u, **options)


def check(backend, unit, chunk=None):
    """The two products, in float64 from whatever type the matrix has."""
    batch, channels, height, width = unit.x.shape
    matrix = affinity(backend, unit, chunk)
    assert matrix.shape == (batch, channels, height * width, height * width)
    assert matrix.dtype == unit.x.dtype
    size = np.abs(matrix.astype(np.float64))
    arrays = (unit.x, unit.weight, unit.lam, unit.u)
    y = backend(gspn2_cupy.propagate, *arrays, **unit.options(chunk))
    dx = backend(gspn2_cupy.propagate_backward, unit.dy, *arrays, **unit.options(chunk), needs=["x"]).x
    for result, vector, subscripts in ((y, unit.x, "bcij,bcj->bci"), (dx, unit.dy, "bcij,bci->bcj")):
        flat = vector.reshape(batch, channels, height * width).astype(np.float64)
        truth = np.einsum(subscripts, matrix.astype(np.float64), flat).reshape(vector.shape)
        # the matrix is rounded and so is the result: twice the tolerance, against the size of the terms
        scale = 2 * np.einsum(subscripts, size, np.abs(flat)).reshape(vector.shape)
        assert_close(result, truth, unit.x.dtype, scale=scale)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("chunk", [None, 2, 3])  # 4 x 5 pixels: dividing, and dividing neither
@pytest.mark.parametrize("directions", [*((d,) for d in ALL_DIRECTIONS), ALL_DIRECTIONS], ids="+".join)
def test_products(backend, directions, chunk, dtype):
    check(backend, make_unit((2, 4, 4, 5), directions, dtype, groups=2), chunk)


@pytest.mark.parametrize(("lam", "u", "merge"), list(product([True, False], repeat=3)))
def test_channels_come_from_lam_or_u_or_the_groups(backend, lam, u, merge):
    groups = 2 if lam or u else 4
    check(backend, make_unit((1, 4, 3, 4), ALL_DIRECTIONS, "float64", groups=groups, lam=lam, u=u, merge=merge))


@pytest.mark.parametrize("shape", [(0, 2, 3, 4), (1, 2, 0, 4), (1, 2, 1, 1), (1, 2, 1, 5), (1, 2, 5, 1)])
def test_degenerate_images(backend, shape):
    check(backend, make_unit(shape, ALL_DIRECTIONS, "float64"))


@pytest.mark.parametrize("direction", ALL_DIRECTIONS)
def test_entries_are_products_of_weights_along_the_scan(backend, direction):
    # Straight on: from the first line to the last at the same place across, with lam of the source only.
    unit = make_unit((1, 1, 3, 3), (direction,), "float64", u=False, merge=False)
    unit.weight[:, :, :, [0, 2]] = 0  # only the middle neighbour is left
    matrix = affinity(backend, unit)[0, 0].reshape(3, 3, 3, 3)
    weight, lam = unit.weight[0, 0, 0, 1], unit.lam[0, 0, 0]
    if direction in ("left_to_right", "right_to_left"):
        matrix, weight, lam = matrix.transpose(1, 0, 3, 2), weight.T, lam.T
    if direction in ("right_to_left", "bottom_to_top"):
        matrix, weight, lam = matrix[::-1, :, ::-1], weight[::-1], lam[::-1]
    for i in range(3):
        assert matrix[2, i, 0, i] == pytest.approx(weight[2, i] * weight[1, i] * lam[0, i], rel=TOLERANCE["float64"])
        assert matrix[0, i, 2, i] == 0, "nothing goes against the scan"
        assert matrix[1, i, 1, i] == pytest.approx(lam[1, i], rel=TOLERANCE["float64"])


def test_scans_reach_what_their_direction_allows(backend):
    # With all weights positive, each direction fills exactly the cone before it; all four together fill the matrix but
    # the pixels that no cone reaches.
    height, width = 4, 5
    row, column = np.divmod(np.arange(height * width), width)
    ahead = {
        "left_to_right": column[:, None] - column[None, :],
        "right_to_left": column[None, :] - column[:, None],
        "top_to_bottom": row[:, None] - row[None, :],
        "bottom_to_top": row[None, :] - row[:, None],
    }
    for direction, distance in ahead.items():
        across = row if direction in ("left_to_right", "right_to_left") else column
        cone = (distance >= 0) & (np.abs(across[:, None] - across[None, :]) <= distance)
        unit = make_unit((1, 1, height, width), (direction,), "float64", u=False, merge=False)
        unit.lam = np.abs(unit.lam)
        assert np.array_equal(affinity(backend, unit)[0, 0] != 0, cone)
