"""The tile kernel in every way it can lie over a slice, forced one by one: bit for bit what the plain kernels give."""

import dataclasses

import ml_dtypes
import numpy as np
import pytest
from conftest import NO_GPU
from emulator import emulated, require
from helpers import lines, outside

from gspn2_cupy import ALL_DIRECTIONS, _launch, _plan, _plan_tiles, _steps
from gspn2_cupy._plan_tiles import Tiles
from gspn2_cupy.reference import HORIZONTAL

FLOAT32, FLOAT16, BFLOAT16 = np.dtype("float32"), np.dtype("float16"), np.dtype(ml_dtypes.bfloat16)
SAME = (None, None)

# A name for what the case is about: shape, groups, types of x, weights and h (None: the same); Tiles; chunk, h0.
CASES = {
    "several slices in a warp": ((1, 3, 32, 40), 3, FLOAT32, SAME, (4, 1, 1, 2, 8, 0, 0, 2, 2), None, False),
    "from unit to unit": ((2, 7, 32, 32), 7, FLOAT32, SAME, (4, 1, 1, 1, 8, 0, 0, 3, 2), None, True),
    "from unit to unit, one at a time": ((2, 3, 64, 64), 1, FLOAT32, SAME, (2, 1, 1, 2, 16, 0, 0, 2, 4), 24, True),
    "from unit to unit, the last tile half full": (
        (3, 2, 72, 72),
        1,
        FLOAT32,
        SAME,
        (2, 1, 2, 2, 16, 8, 0, 2, 2),
        None,
        True,
    ),
    "a tile cut short, restarts inside": ((1, 3, 16, 20), 3, FLOAT32, SAME, (4, 1, 1, 2, 8, 0, 0, 2, 2), 5, True),
    "a tile cut short after a restart": ((1, 2, 20, 20), 1, FLOAT32, SAME, (4, 1, 1, 2, 8, 0, 0, 2, 2), 12, True),
    "a restart on a tile's last line": ((1, 2, 32, 32), 1, FLOAT32, SAME, (4, 1, 1, 2, 8, 0, 0, 2, 2), 23, True),
    "a warp per channel": ((2, 8, 32, 64), 1, BFLOAT16, SAME, (2, 4, 1, 1, 16, 0, 0, 2, 2, False), 7, False),
    "whole slices, several warps": ((2, 2, 96, 96), 1, FLOAT32, SAME, (4, 1, 2, 2, 8, 8, 0, 2, 2), 50, True),
    "three warps": ((1, 2, 64, 64), 1, FLOAT32, SAME, (1, 1, 3, 1, 8, 8, 0, 2, 4), None, True),
    "halos refreshed within a tile": ((1, 2, 96, 96), 1, BFLOAT16, SAME, (2, 2, 2, 2, 32, 8, 0, 2, 2), None, True),
    "warps of a block": ((1, 2, 160, 160), 1, FLOAT32, SAME, (2, 1, 2, 2, 8, 8, 8, 2, 2), None, False),
    "an exchange every second tile": ((1, 2, 160, 160), 1, FLOAT32, SAME, (4, 1, 1, 2, 8, 0, 16, 2, 4), 50, True),
    "bands in global memory": ((2, 2, 160, 160), 1, FLOAT32, SAME, (4, 1, 1, 2, 8, 0, 16, 2, 2, False), None, True),
    "bands, unit after unit": ((4, 2, 112, 112), 1, FLOAT32, SAME, (4, 1, 1, 2, 8, 0, 16, 2, 2), None, True),
    "inner and outer halos": ((1, 2, 192, 192), 1, FLOAT32, SAME, (2, 1, 2, 2, 8, 4, 16, 2, 2), None, True),
    "bands refreshed within a tile": ((1, 2, 192, 192), 1, BFLOAT16, SAME, (2, 2, 2, 2, 32, 8, 16, 2, 2), 70, True),
    "eight rows in a lane, warps and bands refreshed together": (
        (1, 2, 264, 272),
        1,
        BFLOAT16,
        SAME,
        (8, 1, 2, 2, 8, 64, 64, 3, 4, False),
        None,
        True,
    ),
    "a warp's bands refreshed within a tile": (
        (1, 2, 96, 96),
        1,
        BFLOAT16,
        SAME,
        (2, 1, 1, 2, 32, 0, 8, 2, 8, False),
        70,
        True,
    ),
    "warps and channel sets": ((1, 4, 160, 160), 1, FLOAT32, SAME, (2, 2, 2, 2, 8, 8, 8, 2, 2), None, False),
    "a cluster of 2": ((2, 2, 160, 160), 1, FLOAT32, SAME, (4, 1, 1, 2, 8, 0, 8, 2, 2, True, 2), None, False),
    "a cluster of blocks of warps": (
        (1, 2, 240, 240),
        1,
        FLOAT32,
        SAME,
        (4, 2, 2, 1, 8, 8, 8, 2, 2, True, 2),
        90,
        True,
    ),
    "a cluster of 3, refreshed within a tile": (
        (1, 2, 240, 240),
        1,
        BFLOAT16,
        SAME,
        (4, 2, 2, 1, 32, 8, 16, 2, 8, False, 3),
        None,
        True,
    ),
    "six copying warps": ((1, 4, 136, 136), 2, BFLOAT16, SAME, (2, 2, 2, 6, 32, 8, 16, 2, 8, False), 40, True),
    "eight copying warps, from unit to unit": (
        (2, 3, 72, 72),
        3,
        FLOAT16,
        SAME,
        (4, 1, 1, 8, 32, 0, 0, 3, 4, False),
        None,
        True,
    ),
    "a warp without rows of its own": ((1, 2, 64, 64), 1, FLOAT32, SAME, (1, 1, 3, 2, 8, 8, 8, 2, 4), None, False),
    "a cluster of 4, deep rings": (
        (1, 2, 136, 136),
        1,
        BFLOAT16,
        SAME,
        (8, 1, 1, 1, 8, 0, 8, 4, 2, True, 4),
        None,
        False,
    ),
    "h unrounded": ((2, 3, 48, 64), 1, BFLOAT16, (None, FLOAT32), (2, 1, 1, 2, 16, 0, 0, 2, 2), None, True),
    "eight rows in a lane, h and weights in the state's type": (
        (1, 4, 64, 64),
        2,
        FLOAT16,
        (FLOAT32, FLOAT32),
        (8, 2, 1, 2, 8, 0, 0, 2, 2),
        12,
        True,
    ),
    # rows that are no whole vectors, and lanes with rows beyond the image
    "an odd number of rows": ((1, 2, 131, 136), 1, BFLOAT16, SAME, (4, 1, 1, 2, 32, 0, 16, 2, 8, False), None, True),
    "pieces of 8 bytes": ((1, 4, 100, 100), 2, BFLOAT16, SAME, (4, 2, 1, 2, 32, 0, 0, 2, 8, False), None, True),
    "pieces of 8 bytes, float32": ((1, 2, 94, 94), 1, FLOAT32, SAME, (2, 1, 2, 2, 16, 8, 0, 2, 4), 41, False),
    "pieces of 4 bytes in bands": ((1, 2, 130, 130), 1, BFLOAT16, SAME, (4, 1, 1, 2, 32, 0, 16, 2, 8, False), 50, True),
    "pieces of 4 bytes, float32": ((2, 2, 99, 99), 1, FLOAT32, SAME, (4, 1, 1, 2, 8, 0, 0, 2, 2), None, True),
    "pieces of 4 bytes in a cluster": (
        (1, 2, 163, 163),
        2,
        FLOAT32,
        SAME,
        (4, 1, 1, 2, 8, 0, 8, 2, 2, True, 2),
        7,
        True,
    ),
    "pieces of 2 bytes in bands": (
        (1, 4, 131, 131),
        1,
        FLOAT16,
        SAME,
        (2, 2, 2, 2, 32, 8, 16, 2, 8, False),
        None,
        True,
    ),
    "pieces of 2 bytes, eight rows in a lane": (
        (1, 2, 61, 61),
        1,
        BFLOAT16,
        SAME,
        (8, 1, 1, 2, 16, 0, 0, 2, 4),
        None,
        False,
    ),
    "from unit to unit, pieces of 2 bytes": ((2, 3, 45, 45), 1, BFLOAT16, SAME, (2, 1, 1, 2, 16, 0, 0, 3, 8), 19, True),
    "several slices in a warp, in pieces": ((1, 3, 30, 31), 3, FLOAT32, SAME, (2, 1, 1, 2, 8, 0, 0, 2, 2), None, True),
    "pieces, and weights in the state's type": (
        (1, 4, 67, 67),
        2,
        FLOAT16,
        (FLOAT32, FLOAT32),
        (4, 2, 1, 2, 16, 0, 0, 2, 2),
        None,
        True,
    ),
    "x and h in the state's type": (  # as adjoints have them
        (1, 4, 160, 160),
        2,
        FLOAT32,
        (BFLOAT16, None),
        (2, 2, 2, 2, 16, 8, 8, 2, 8),
        None,
        True,
    ),
    "x and h in the state's type, pieces of 4 bytes": (
        (2, 3, 66, 70),
        1,
        FLOAT32,
        (FLOAT16, None),
        (2, 1, 2, 2, 32, 8, 0, 2, 8, False),
        20,
        True,
    ),
    "h and weights in the state's type": (
        (1, 4, 160, 160),
        2,
        FLOAT16,
        (FLOAT32, FLOAT32),
        (2, 2, 2, 2, 8, 8, 8, 2, 2),
        None,
        True,
    ),
}

# All cases before any comes again in another direction: whoever stops at the first failure comes to it soon.
ALL_CASES = [(case, ALL_DIRECTIONS[(k + turn) % 4]) for turn in range(4) for k, case in enumerate(CASES)]

# Planned for a device of one multiprocessor, which holds so few blocks at once that each has several units to scan.
SMALL_DEVICE = ("bands, unit after unit", *(case for case in CASES if case.startswith("from unit to unit")))


def arrays_of(shape, groups, kind, weight_kind, direction, chunk, h0, adjoint=False):
    """Random x, weight, lam and h0, with NaN for every weight that must not be used; and the shape of a line.

    An adjoint knows no lam, and comes from the other end: it uses no weights of a line before a restart.

    The weights carry nearly all of a line one way across in the first half of the scan, the other way in the second: so
    what is wrong at the edge of a halo of 32 rows, and gets out of it, is large enough to be seen.
    """
    batch, channels, height, width = shape
    generator = np.random.default_rng(0)
    x = generator.standard_normal(shape).astype(kind)
    lam = generator.standard_normal(shape).astype(kind)
    weight_kind = weight_kind or kind
    weight = (generator.random((batch, groups, 3, height, width)) / 10).astype(weight_kind)
    length = width if direction in HORIZONTAL else height
    lines(weight, direction, 0, length // 2)[:, :, 0] += weight_kind.type(0.8)
    lines(weight, direction, length // 2, length)[:, :, 2] += weight_kind.type(0.8)
    unused = outside(weight.shape, direction)
    restarts = [start for start in range(0, length, chunk or length) if start > 0 or not (h0 or adjoint)]
    for start in restarts:
        line = length - 1 - start if adjoint else start
        lines(unused, direction, line, line + 1)[...] = True
    weight[unused] = np.nan
    line = generator.standard_normal((batch, channels, height if direction in HORIZONTAL else width)).astype("f4")
    return x, weight, None if adjoint else lam, line if h0 else None, line.shape


def case_arrays(case, direction, adjoint=False):
    shape, groups, kind, (weight_kind, _), _, chunk, h0 = CASES[case]
    return arrays_of(shape, groups, kind, weight_kind, direction, chunk, h0, adjoint)


def spread(array, rows, columns):
    """The same values, in memory that holds so many more rows and columns."""
    *stack, height, width = array.shape
    view = np.full((*stack, height + rows, width + columns), np.nan, array.dtype)[..., :height, :width]
    view[...] = array
    return view


def both(
    launcher,
    arrays,
    direction,
    chunk,
    tiles,
    line_shape,
    result_kind=None,
    case=None,
    laid_out=lambda h: h,
    offset=None,
    adjoint=False,
):
    """Run the tile kernel, maybe with another type of offsets, and a plain one; return their h and h_last."""
    results, limits = [], launcher.limits
    if case in SMALL_DEVICE:
        shared = limits.shared_bytes_per_multiprocessor // (1 + adjoint)  # without λ twice as many blocks would fit
        limits = dataclasses.replace(limits, multiprocessors=1, shared_bytes_per_multiprocessor=shared)
    for forced in (True, False):
        h = laid_out(launcher.empty(arrays[0].shape, result_kind or arrays[0].dtype))
        h_last = launcher.empty(line_shape, np.float32)
        scan = _plan.LineScan(direction, chunk, *map(_steps.optional_layout, (*arrays, h, h_last)), adjoint=adjoint)
        if forced:
            plan = _plan_tiles.tiles_plan(limits, tiles, scan)
            assert plan is not None, f"{tiles} does not fit"
            if offset is not None:
                defines = tuple((name, offset if name == "OFFSET" else value) for name, value in plan.spec.defines)
                plan = dataclasses.replace(plan, spec=dataclasses.replace(plan.spec, defines=defines))
            bands, units_of_block = plan.geometry["bands"]["count"], plan.geometry["bands"]["units"]
            assert units_of_block > 1 or not (case or "").startswith("several slices") or direction not in HORIZONTAL
            assert (bands > 1) == (tiles.outer > 0), "a slice in one band tells nothing of halos"
            if case in SMALL_DEVICE:
                units = arrays[0].shape[0] * arrays[0].shape[1] // tiles.sets
                assert plan.grid[0] * units_of_block < units * bands
            workspace = launcher.zeros((plan.workspace,), np.uint64) if plan.workspace else None
        else:
            plan = _plan.plain_line_scan(scan)
            workspace = launcher.empty((plan.workspace,), np.float32)
        taken = arrays if forced or not adjoint else [*arrays[:2], arrays[3]]  # the plain adjoint knows no λ
        _launch.run(launcher, plan, *taken, h, h_last, workspace)
        results.append((h, h_last))
    return results


@pytest.mark.parametrize("schedule", ["random", "priority"])
@pytest.mark.parametrize(("case", "direction"), ALL_CASES)
def test_emulated(case, direction, schedule):
    require()
    (_, result_kind), sizes, chunk = CASES[case][3:6]
    *arrays, line_shape = case_arrays(case, direction)
    with emulated(seed=1, schedule=schedule, detect=True, async_copies="random") as device:
        (h, h_last), (plain, plain_last) = both(
            device, arrays, direction, chunk, Tiles(*sizes), line_shape, result_kind, case
        )
    assert np.isfinite(plain.astype(np.float32)).all()
    assert h.tobytes() == plain.tobytes()
    assert h_last.tobytes() == plain_last.tobytes()


@pytest.mark.parametrize(("case", "direction"), ALL_CASES)
def test_emulated_adjoint(case, direction):
    require()
    chunk, tiles = CASES[case][5], tiles_of_adjoint(case, direction)
    *arrays, line_shape = case_arrays(case, direction, adjoint=True)
    with emulated(seed=5, schedule="random", detect=True, async_copies="random") as device:
        results = both(device, arrays, direction, chunk, tiles, line_shape, FLOAT32, case, adjoint=True)
    (g, dh0), (plain, plain_dh0) = results
    assert np.isfinite(plain).all() and np.isfinite(plain_dh0).all()
    assert g.tobytes() == plain.tobytes()
    assert dh0.tobytes() == plain_dh0.tobytes()


def tiles_of_adjoint(case, direction):
    """The same tiles for a g in float32: rows are twice as many vectors, which two warps copy, and take more memory."""
    tiles = Tiles(*CASES[case][4])
    sets = 1 if case == "a cluster of 3, refreshed within a tile" else tiles.sets
    odd = tiles.copiers % 2 if direction in HORIZONTAL else 0
    return dataclasses.replace(tiles, sets=sets, copiers=tiles.copiers + odd)


@pytest.mark.parametrize("direction", ["right_to_left", "top_to_bottom"])
@pytest.mark.parametrize("length", range(8, 73, 8))
@pytest.mark.parametrize(
    ("sizes", "kind"),
    [
        ((2, 1, 2, 2, 16, 8, 0, 2, 4), FLOAT32),
        ((2, 1, 2, 2, 32, 8, 0, 2, 8, False), BFLOAT16),
        ((4, 2, 1, 1, 32, 0, 0, 2, 8, False), BFLOAT16),
        ((2, 1, 1, 1, 32, 0, 8, 2, 8), BFLOAT16),
    ],
    ids=str,
)
def test_emulated_from_unit_to_unit_at_any_length(sizes, kind, length, direction):
    """What a tile holds beyond an image's last line is forgotten before the next image, which h0 precedes."""
    require()
    size = (72, length) if direction in HORIZONTAL else (length, 72)
    *arrays, line_shape = arrays_of((3, 2, *size), 1, kind, None, direction, None, True)
    with emulated(seed=3, schedule="random", detect=True, async_copies="random") as device:
        results = both(device, arrays, direction, None, Tiles(*sizes), line_shape, case=SMALL_DEVICE[0])
    (h, h_last), (plain, plain_last) = results
    assert h.tobytes() == plain.tobytes()
    assert h_last.tobytes() == plain_last.tobytes()


@pytest.mark.parametrize("direction", ALL_DIRECTIONS)
@pytest.mark.parametrize("case", ["from unit to unit", "bands in global memory", "pieces of 4 bytes in a cluster"])
def test_emulated_every_array_has_a_layout_of_its_own(case, direction):
    require()
    x, weight, lam, h0, line_shape = case_arrays(case, direction)
    arrays = spread(x, 1, 4), spread(weight, 2, 8), spread(lam, 3, 12), np.repeat(h0, 2, axis=-1)[..., ::2]
    with emulated(seed=2, schedule="random", detect=True, async_copies="random") as device:
        (h, h_last), (plain, plain_last) = both(
            device, arrays, direction, None, Tiles(*CASES[case][4]), line_shape, None, case, lambda h: spread(h, 4, 16)
        )
    assert h.tobytes() == plain.tobytes()
    assert h_last.tobytes() == plain_last.tobytes()


@pytest.mark.parametrize("direction", ["right_to_left", "top_to_bottom"])
@pytest.mark.parametrize("case", ["from unit to unit", "bands in global memory", "pieces of 4 bytes in bands"])
def test_emulated_with_the_offsets_of_large_arrays(case, direction):
    """The kernels of arrays with more than 2³¹ elements, on small ones."""
    require()
    (_, result_kind), sizes, chunk = CASES[case][3:6]
    *arrays, line_shape = case_arrays(case, direction)
    with emulated(seed=4, schedule="random", detect=True, async_copies="random") as device:
        (h, h_last), (plain, plain_last) = both(
            device, arrays, direction, chunk, Tiles(*sizes), line_shape, result_kind, case, offset="long long"
        )
        assert any(("OFFSET", "long long") in spec.defines for spec in device._kernels)
    assert h.tobytes() == plain.tobytes()
    assert h_last.tobytes() == plain_last.tobytes()


@pytest.mark.parametrize(
    ("direction", "shape"),
    [("right_to_left", (1, 1, 64, 800)), ("top_to_bottom", (1, 1, 800, 64))],
    ids=["along", "across"],
)
def test_emulated_slow_warps_find_what_their_neighbours_sent(direction, shape):
    """The last warp of a block here has no rows of its own, so nobody waits for it; it may be two exchanges late.

    Only three boxes in turn keep its words so long. Several orders are tried, as not all make it that late.
    """
    require()
    *arrays, line_shape = arrays_of(shape, 1, FLOAT32, None, direction, None, False)
    tiles = Tiles(1, 1, 3, 1, 8, 8, 8, 2, 4)
    for seed in range(8):
        with emulated(seed=seed, schedule="priority", async_copies="random") as device:
            (h, h_last), (plain, plain_last) = both(device, arrays, direction, None, tiles, line_shape)
        assert h.tobytes() == plain.tobytes()
        assert h_last.tobytes() == plain_last.tobytes()


@pytest.mark.gpu
@pytest.mark.skipif(NO_GPU is not None, reason=f"no GPU: {NO_GPU}")
@pytest.mark.parametrize("direction", ALL_DIRECTIONS)
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("adjoint", [False, True], ids=["forward", "adjoint"])
def test_on_a_gpu(case, direction, adjoint):
    import cupy

    (_, result_kind), sizes, chunk = CASES[case][3:6]
    tiles = Tiles(*sizes)
    if adjoint:
        result_kind, tiles = FLOAT32, tiles_of_adjoint(case, direction)
    *arrays, line_shape = case_arrays(case, direction, adjoint)
    arrays = [None if array is None else cupy.asarray(array) for array in arrays]
    launcher = _launch.cupy_launcher(cupy.cuda.Device().id)
    for _ in range(20):  # timing differs from run to run; bits must not
        (h, h_last), (plain, plain_last) = both(
            launcher, arrays, direction, chunk, tiles, line_shape, result_kind, case, adjoint=adjoint
        )
        assert cupy.asnumpy(h).tobytes() == cupy.asnumpy(plain).tobytes()
        assert cupy.asnumpy(h_last).tobytes() == cupy.asnumpy(plain_last).tobytes()
