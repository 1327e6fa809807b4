"""The tile kernel in every way it can lie over a slice, forced one by one: bit for bit what the plain kernel gives."""

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

# A name for what the case is about; shape, groups, data type; rows of a lane (None: one vector), then the rest of
# Tiles; chunk and h0.
CASES = {
    "several slices in a warp": ((1, 3, 32, 40), 3, FLOAT32, (4, 1, 1, 1, 2, 8, 0, 2), None, False),
    "a tile cut short": ((1, 3, 20, 20), 3, FLOAT32, (4, 1, 1, 1, 2, 8, 0, 2), 12, True),
    "a tile cut short, restarts inside": ((1, 3, 16, 20), 3, FLOAT32, (4, 1, 1, 1, 2, 8, 0, 2), 5, True),
    "two channels in a lane": ((2, 4, 32, 32), 2, FLOAT16, (None, 2, 1, 1, 2, 16, 0, 3), None, False),
    "a warp per channel": ((2, 8, 32, 64), 1, BFLOAT16, (None, 1, 4, 1, 1, 16, 0, 2), 7, False),
    "warps of a block": ((1, 2, 160, 160), 1, FLOAT32, (4, 1, 1, 2, 2, 8, 8, 2), None, False),
    "an exchange every second tile": ((1, 2, 160, 160), 1, FLOAT32, (4, 2, 1, 1, 2, 8, 16, 2), 50, True),
    "a restart on a tile's last line": ((1, 2, 32, 32), 1, FLOAT32, (4, 1, 1, 1, 2, 8, 0, 2), 23, True),
    "bands in global memory": ((2, 2, 160, 160), 1, FLOAT32, (4, 1, 1, 1, 2, 8, 16, 2), None, True),
    "warps and channel sets": ((1, 4, 160, 160), 1, FLOAT32, (4, 1, 2, 2, 2, 8, 8, 2), None, False),
    "a cluster of 2": ((2, 2, 160, 160), 1, FLOAT32, (4, 1, 1, 1, 2, 8, 8, 2, 2), None, False),
    "a cluster of blocks of warps": ((1, 2, 240, 240), 1, FLOAT32, (4, 1, 2, 2, 1, 8, 8, 2, 2), 90, True),
    "bands in global memory, unit after unit": ((4, 2, 112, 112), 1, FLOAT32, (4, 1, 1, 1, 2, 8, 16, 2), None, True),
    "a warp without rows of its own": ((1, 2, 208, 208), 1, FLOAT32, (4, 1, 1, 2, 2, 8, 8, 2, 2), None, False),
    "a cluster of 4, deep rings": ((1, 2, 136, 136), 1, BFLOAT16, (None, 1, 1, 1, 1, 8, 8, 4, 4), None, False),
}


# Planned for a device of one multiprocessor, which holds so few blocks at once that each has several units to scan.
SMALL_DEVICE = ("bands in global memory, unit after unit",)


def tiles_of(direction, itemsize, sizes):
    rows, *others = sizes
    *middle, stages = others[:7]
    vector = 16 // itemsize
    rows = rows if rows is not None and (direction in HORIZONTAL or rows % vector == 0) else 4
    rows = rows if direction in HORIZONTAL else max(rows, vector)
    return Tiles(rows, *middle, stages, 2, *others[7:])


def arrays_of(shape, groups, kind, direction, chunk, h0):
    """Random x, weight, lam and h0, with NaN for every weight that must not be used; and the shape of a line.

    The weights carry nearly all of a line one way across in the first half of the scan, the other way in the second: so
    what is wrong at the edge of a halo of 32 rows, and gets out of it, is large enough to be seen.
    """
    batch, channels, height, width = shape
    generator = np.random.default_rng(0)
    x = generator.standard_normal(shape).astype(kind)
    lam = generator.standard_normal(shape).astype(kind)
    weight = (generator.random((batch, groups, 3, height, width)) / 10).astype(kind)
    length = width if direction in HORIZONTAL else height
    lines(weight, direction, 0, length // 2)[:, :, 0] += kind.type(0.8)
    lines(weight, direction, length // 2, length)[:, :, 2] += kind.type(0.8)
    unused = outside(weight.shape, direction)
    for start in range(0, length, chunk or length):
        if start > 0 or not h0:
            lines(unused, direction, start, start + 1)[...] = True
    weight[unused] = np.nan
    line = generator.standard_normal((batch, channels, height if direction in HORIZONTAL else width)).astype("f4")
    return x, weight, lam, line if h0 else None, line.shape


def both(launcher, arrays, direction, chunk, tiles, line_shape, case=None):
    """Run the tile kernel and the plain one; return their h and h_last."""
    results, limits = [], launcher.limits
    if case in SMALL_DEVICE:
        limits = dataclasses.replace(limits, multiprocessors=1)
    for forced in (True, False):
        h, h_last = launcher.empty(arrays[0].shape, arrays[0].dtype), launcher.empty(line_shape, np.float32)
        layouts = [_steps.optional_layout(array) for array in (*arrays, h, h_last)]
        if forced:
            plan = _plan_tiles.tiles_plan(limits, tiles, direction, chunk, *layouts)
            assert plan is not None, f"{tiles} does not fit"
            units = arrays[0].shape[0] * arrays[0].shape[1] // (tiles.channels * tiles.sets)
            if case in SMALL_DEVICE:
                assert plan.grid[0] < units * plan.geometry["bands"]["count"]
            workspace = launcher.zeros((plan.workspace,), np.uint64) if plan.workspace else None
        else:
            plan = _plan.line_scan_forward(direction, chunk, *layouts)
            workspace = launcher.empty((plan.workspace,), np.float32)
        _launch.run(launcher, plan, *arrays, h, h_last, workspace)
        results.append((h, h_last))
    return results


@pytest.mark.parametrize("direction", ALL_DIRECTIONS)
@pytest.mark.parametrize("schedule", ["random", "priority"])
@pytest.mark.parametrize("case", CASES)
def test_emulated(case, direction, schedule):
    require()
    shape, groups, kind, sizes, chunk, h0 = CASES[case]
    *arrays, line_shape = arrays_of(shape, groups, kind, direction, chunk, h0)
    tiles = tiles_of(direction, kind.itemsize, sizes)
    with emulated(seed=1, schedule=schedule, detect=True, async_copies="random") as device:
        (h, h_last), (plain, plain_last) = both(device, arrays, direction, chunk, tiles, line_shape, case)
    assert np.isfinite(plain.astype(np.float32)).all()
    assert h.tobytes() == plain.tobytes()
    assert h_last.tobytes() == plain_last.tobytes()


@pytest.mark.parametrize(
    ("direction", "shape", "rows"),
    [("right_to_left", (1, 1, 32, 800), 1), ("top_to_bottom", (1, 1, 400, 208), 4)],
    ids=["along", "across"],
)
def test_emulated_slow_warps_find_what_their_neighbours_sent(direction, shape, rows):
    """The last warp of a block here has no rows of its own, so nobody waits for it; it may be two exchanges late.

    Only three boxes in turn keep its words so long. Many orders are tried, as few make it that late.
    """
    require()
    *arrays, line_shape = arrays_of(shape, 1, FLOAT32, direction, None, False)
    tiles = tiles_of(direction, 4, (rows, 1, 1, 2, 2, 8, 8, 2, 2))
    for seed in range(20):
        with emulated(seed=seed, schedule="priority", async_copies="random") as device:
            (h, h_last), (plain, plain_last) = both(device, arrays, direction, None, tiles, line_shape)
        assert h.tobytes() == plain.tobytes()
        assert h_last.tobytes() == plain_last.tobytes()


@pytest.mark.gpu
@pytest.mark.skipif(NO_GPU is not None, reason=f"no GPU: {NO_GPU}")
@pytest.mark.parametrize("direction", ALL_DIRECTIONS)
@pytest.mark.parametrize("case", CASES)
def test_on_a_gpu(case, direction):
    import cupy

    shape, groups, kind, sizes, chunk, h0 = CASES[case]
    *arrays, line_shape = arrays_of(shape, groups, kind, direction, chunk, h0)
    arrays = [None if array is None else cupy.asarray(array) for array in arrays]
    launcher = _launch.cupy_launcher(cupy.cuda.Device().id)
    tiles = tiles_of(direction, kind.itemsize, sizes)
    for _ in range(20):  # timing differs from run to run; bits must not
        (h, h_last), (plain, plain_last) = both(launcher, arrays, direction, chunk, tiles, line_shape, case)
        assert cupy.asnumpy(h).tobytes() == cupy.asnumpy(plain).tobytes()
        assert cupy.asnumpy(h_last).tobytes() == cupy.asnumpy(plain_last).tobytes()
