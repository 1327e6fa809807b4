"""Scans that merge h into a sum, and adjoints that multiply dy by u, forced in every shape: the bits of two passes."""

import dataclasses

import numpy as np
import pytest
import test_slices
import test_tiles
from conftest import NO_GPU
from emulator import emulated, require
from test_tiles import FLOAT32, SMALL_DEVICE

from gspn2_cupy import ALL_DIRECTIONS, _launch, _plan, _plan_slices, _plan_tiles, _steps
from gspn2_cupy._plan_slices import Slices
from gspn2_cupy._plan_tiles import Tiles
from gspn2_cupy.reference import HORIZONTAL

TILES = [case for case in test_tiles.CASES if "pieces" not in case]  # the others copy no whole vectors
CASES = [*TILES, *test_slices.CASES]
ALL_CASES = [(case, ALL_DIRECTIONS[(k + turn) % 4]) for turn in range(4) for k, case in enumerate(CASES)]
# On the CPU, where each is a kernel to build: forward once along the rows and once across, adjoints once.
FORWARD = [(case, ALL_DIRECTIONS[(k + turn) % 4]) for turn in (0, 2) for k, case in enumerate(CASES)]
ADJOINT = [(case, ALL_DIRECTIONS[(k + 1) % 4]) for k, case in enumerate(CASES)]


def arrays_of(case, direction):
    """X, weight, λ, h0, u, m and the sum so far, and the sum's type: one of the terms that a sum of four has."""
    if case in TILES:
        *arrays, _ = test_tiles.case_arrays(case, direction)
        state, chunk = FLOAT32, test_tiles.CASES[case][5]
    else:
        *arrays, _, state = test_slices.arrays_of(case, direction)
        chunk = test_slices.CASES[case][6]
    x, kind, shape = arrays[0], arrays[0].dtype, arrays[0].shape
    generator = np.random.default_rng(1)
    u = generator.standard_normal((shape[0], 2, *shape[1:])).astype(kind)[:, 1]
    factor = np.array([0.7], kind)
    before = generator.standard_normal(shape).astype(state)
    turn = (CASES.index(case) + ALL_DIRECTIONS.index(direction)) % 4
    u, factor, before = (u if turn != 1 else None), (factor if turn < 2 else None), (before if turn > 0 else None)
    return (*arrays, u, factor, before), x.dtype if turn % 2 else np.dtype(state), np.dtype(state), chunk


def forced_plan(limits, case, direction, scan):
    """Force the case's shape."""
    if case not in TILES:
        return _plan_slices.slices_plan(limits, Slices(*test_slices.CASES[case][5]), scan)
    tiles = Tiles(*test_tiles.CASES[case][4])
    if scan.x.itemsize == 2 and direction in HORIZONTAL:  # rows of h are twice as many vectors, which two warps copy
        tiles = dataclasses.replace(tiles, copiers=tiles.copiers + tiles.copiers % 2)
    if case == "a cluster of 3, refreshed within a tile" and direction not in HORIZONTAL:
        tiles = dataclasses.replace(tiles, lines=16)  # with u and the sum in the ring, too, 32 do not fit
    if case in SMALL_DEVICE:
        limits = dataclasses.replace(limits, multiprocessors=1)
    return _plan_tiles.tiles_plan(limits, tiles, scan)


def both(launcher, case, direction, arrays, result, state, chunk):
    """Return what a scan that merges gives, and a scan and a merge: the sum and the last line."""
    x, weight, lam, h0, u, factor, before = arrays
    line = (*x.shape[:2], x.shape[2 if direction in HORIZONTAL else 3])
    answers = []
    for merging in (True, False):
        total, last = launcher.empty(x.shape, result), launcher.empty(line, state)
        if merging and before is not None and result == state:
            total[...] = before  # in place, as sums are carried
        so_far = total if merging and before is not None and result == state else before
        hidden = total if merging else launcher.empty(x.shape, state)
        scanned = map(_steps.optional_layout, (x, weight, lam, h0, hidden, last))
        scan = _plan.LineScan(direction, chunk, *scanned)
        if merging:
            addends = {"u": _steps.optional_layout(u), "before": _steps.optional_layout(so_far)}
            scan = dataclasses.replace(scan, merging=True, **addends)
            plan = forced_plan(launcher.limits, case, direction, scan)
            assert plan is not None, f"{case} does not fit"
            mail = _steps.scan_workspace(launcher, plan, _steps.type_of(x))
            _launch.run(launcher, plan, x, weight, lam, h0, total, last, *mail, so_far, u, factor)
        else:
            plan = _plan.plain_line_scan(scan)
            workspace = launcher.empty((plan.workspace,), state)
            _launch.run(launcher, plan, x, weight, lam, h0, hidden, last, workspace)
            _steps.merge(launcher, _steps.type_of(x), hidden, u, factor, before, total)
        answers.append((total, last))
    return answers


@pytest.mark.parametrize(("case", "direction"), FORWARD)
def test_emulated(case, direction):
    require()
    arrays, *types = arrays_of(case, direction)
    with emulated(seed=6, schedule="random", detect=True, async_copies="random") as device:
        (total, last), (expected, expected_last) = both(device, case, direction, arrays, *types)
    assert np.isfinite(expected.astype(np.float32)).all()
    assert total.tobytes() == expected.tobytes()
    assert last.tobytes() == expected_last.tobytes()


def both_adjoints(launcher, case, direction, arrays, state, chunk):
    """Return g and dh0 of u ⊙ dy: from a kernel that multiplies itself, and from a merge and a plain adjoint."""
    dy, weight, u, dh_last = arrays
    line = (*dy.shape[:2], dy.shape[2 if direction in HORIZONTAL else 3])
    answers = []
    for itself in (True, False):
        g, dh0 = launcher.empty(dy.shape, state), launcher.empty(line, state)
        dh = dy
        if not itself:
            dh = launcher.empty(dy.shape, state)
            _steps.merge(launcher, _steps.type_of(dy), dy, u, None, None, dh)
        taken = (dh, weight, u if itself else None, dh_last, g, dh0)
        scan = _plan.LineScan(direction, chunk, *map(_steps.optional_layout, taken), adjoint=True)
        plan = forced_plan(launcher.limits, case, direction, scan) if itself else _plan.plain_line_scan(scan)
        assert plan is not None, f"{case} does not fit"
        arguments = taken if itself else (dh, weight, dh_last, g, dh0)
        _launch.run(launcher, plan, *arguments, *_steps.scan_workspace(launcher, plan, _steps.type_of(g)))
        answers.append((g, dh0))
    return answers


def adjoint_arrays_of(case, direction):
    """Dy, weight, u and dh_last, and the type of the state."""
    (x, weight, lam, h0, *_), _, state, chunk = arrays_of(case, direction)
    weight = np.where(np.isnan(weight.astype(np.float32)), weight.dtype.type(0), weight)  # others are unused here
    return (x, weight, x[::-1] if lam is None else lam, h0), state, chunk


@pytest.mark.parametrize(("case", "direction"), ADJOINT)
def test_emulated_adjoint(case, direction):
    require()
    arrays, *types = adjoint_arrays_of(case, direction)
    with emulated(seed=7, schedule="random", detect=True, async_copies="random") as device:
        (g, dh0), (expected, expected_dh0) = both_adjoints(device, case, direction, arrays, *types)
    assert np.isfinite(expected).all()
    assert g.tobytes() == expected.tobytes()
    assert dh0.tobytes() == expected_dh0.tobytes()


@pytest.mark.gpu
@pytest.mark.skipif(NO_GPU is not None, reason=f"no GPU: {NO_GPU}")
@pytest.mark.parametrize(("case", "direction"), ALL_CASES)
def test_on_a_gpu(case, direction):
    import cupy

    arrays, *types = arrays_of(case, direction)
    arrays = [None if array is None else cupy.asarray(array) for array in arrays]
    launcher = _launch.cupy_launcher(cupy.cuda.Device().id)
    for _ in range(10):  # timing differs from run to run; bits must not
        (total, last), (expected, expected_last) = both(launcher, case, direction, arrays, *types)
        assert cupy.asnumpy(total).tobytes() == cupy.asnumpy(expected).tobytes()
        assert cupy.asnumpy(last).tobytes() == cupy.asnumpy(expected_last).tobytes()


@pytest.mark.gpu
@pytest.mark.skipif(NO_GPU is not None, reason=f"no GPU: {NO_GPU}")
@pytest.mark.parametrize(("case", "direction"), ALL_CASES)
def test_adjoint_on_a_gpu(case, direction):
    import cupy

    arrays, *types = adjoint_arrays_of(case, direction)
    arrays = [None if array is None else cupy.asarray(array) for array in arrays]
    launcher = _launch.cupy_launcher(cupy.cuda.Device().id)
    for _ in range(5):
        (g, dh0), (expected, expected_dh0) = both_adjoints(launcher, case, direction, arrays, *types)
        assert cupy.asnumpy(g).tobytes() == cupy.asnumpy(expected).tobytes()
        assert cupy.asnumpy(dh0).tobytes() == cupy.asnumpy(expected_dh0).tobytes()
