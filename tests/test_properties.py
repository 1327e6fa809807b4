"""Random calls of every kind: shapes, memory layouts, groups, directions, chunks, optional arrays and data types.

Every draw is judged by element against the loops, relative to the sum of the absolute terms behind that element: the
loops on the absolute values of all inputs give it.
"""

import loops
import numpy as np
import pytest
from emulator import LIMITS
from helpers import (
    DTYPES,
    HORIZONTAL,
    LAYOUTS,
    assert_close,
    assert_same_bits,
    lines,
    make_scan,
    make_unit,
    scan_axis,
    state_type,
)
from hypothesis import given, settings
from hypothesis import strategies as st

import gspn2_cupy
from gspn2_cupy import ALL_DIRECTIONS, LineScanGrads, PropagateGrads, _plan_scan, _steps, reference
from gspn2_cupy._plan import LineScan

sizes = st.integers(0, 9) | st.sampled_from([31, 33, 127])  # mostly tiny; around one warp, and several
directions = st.sampled_from(ALL_DIRECTIONS)
dtypes = st.sampled_from(sorted(DTYPES))
chunks = st.none() | st.integers(1, 12) | st.sampled_from([31, 64, 130])
layouts = st.sampled_from(["contiguous", "one element in", *LAYOUTS])


@st.composite
def shapes(draw, limit=600):
    """(B, C, H, W) of at most `limit` elements, and a number of groups that divides C."""
    batch, groups, per_group = draw(st.integers(1, 2)), draw(st.integers(1, 3)), draw(st.integers(1, 3))
    height, width = draw(sizes), draw(sizes)
    if batch * groups * per_group * height * width > limit:
        batch, groups, per_group = 1, 1, 1
    return (batch, groups * per_group, height, width), groups


@st.composite
def scans(draw):
    shape, groups = draw(shapes())
    options = {name: draw(st.booleans()) for name in ("lam", "h0", "dh_last")}
    return make_scan(shape, draw(directions), draw(dtypes), groups=groups, seed=draw(st.integers(0, 99)), **options)


@st.composite
def units(draw):
    shape, groups = draw(shapes(300))
    names = draw(st.lists(directions, min_size=1, max_size=4, unique=True))
    options = {name: draw(st.booleans()) for name in ("lam", "u", "merge")}
    options["normalize"] = draw(st.sampled_from([None, "sigmoid", "softmax"]))
    return make_unit(shape, names, draw(dtypes), groups=groups, seed=draw(st.integers(0, 99)), **options)


def sizes_of(*arrays):
    return [None if a is None else np.abs(a) for a in arrays]


def laid_out(backend, array, layout):
    """A private strided copy in the backend's memory, or the array itself."""
    return array if layout == "contiguous" else backend.strided(array, layout)


def check_gradients(names, grads, truth, scales, types, needs=None):
    for name, actual, expected, scale, dtype in zip(names, grads, truth, scales, types, strict=True):
        if expected is None or (needs is not None and name not in needs):
            assert actual is None, f"no gradient of {name} was to be had"
        else:
            assert_close(actual, expected, dtype, scale=scale)


@pytest.mark.functions("line_scan")
@given(case=scans(), chunk=chunks, layout=layouts)
def test_line_scan(backend, case, chunk, layout):
    arrays = [laid_out(backend, a, layout) for a in (case.x, case.weight, case.lam)]
    h, h_last = backend(gspn2_cupy.line_scan, *arrays, **case.options(chunk), return_last=True)
    truth = loops.line_scan(case.x, case.weight, case.lam, **case.options(chunk))
    x, weight, lam, h0 = sizes_of(case.x, case.weight, case.lam, case.h0)
    scale = loops.line_scan(x, weight, lam, direction=case.direction, chunk=chunk, h0=h0)
    assert_close(h, truth[0], case.x.dtype, scale=scale[0])
    assert_close(h_last, truth[1], state_type(case.x.dtype), scale=scale[1])


@st.composite
def scans_in_tiles(draw):
    """Scans of images whose rows are whole vectors of 16 bytes, wider than small slices: those of the tile kernel."""
    direction = draw(directions)
    vectors, other = 8 * draw(st.integers(1, 20)), draw(st.integers(1, 160))
    across = max(vectors if direction not in HORIZONTAL else other, 72)
    height, width = (across, vectors) if direction in HORIZONTAL else (min(other, 40), across)
    groups, per_group = draw(st.sampled_from([(1, 1), (1, 2), (2, 1), (1, 4), (2, 2)]))
    dtype = draw(st.sampled_from(["float32", "float16", "bfloat16"]))
    options = {name: draw(st.booleans()) for name in ("lam", "h0")}
    shape = (draw(st.integers(1, 2)), groups * per_group, height, width)
    return make_scan(shape, direction, dtype, groups=groups, seed=draw(st.integers(0, 99)), **options)


@pytest.mark.functions("line_scan")
@settings(max_examples=30)
@given(case=scans_in_tiles(), chunk=st.none() | st.integers(1, 60))
def test_line_scan_in_tiles(backend, case, chunk):
    arrays, line = (case.x, case.weight, case.lam), case.h0
    layouts = [_steps.optional_layout(array) for array in (*arrays, line, case.x, line)]
    plan = _plan_scan.line_scan(LIMITS, LineScan(case.direction, chunk, *layouts))
    assert plan.spec.entry == "line_scan_tiles"
    h, h_last = backend(gspn2_cupy.line_scan, *arrays, **case.options(chunk), return_last=True)
    # by the reference in float64, which the other tests hold to the loops: these images are too large for loops
    exact = [None if a is None else a.astype(np.float64) for a in (*arrays, line)]
    for actual, truth, scale, dtype in zip(
        (h, h_last),
        reference.line_scan(*exact[:3], direction=case.direction, chunk=chunk, h0=exact[3], return_last=True),
        reference.line_scan(
            *sizes_of(*exact[:3]), direction=case.direction, chunk=chunk, h0=sizes_of(exact[3])[0], return_last=True
        ),
        (case.x.dtype, state_type(case.x.dtype)),
        strict=True,
    ):
        assert_close(actual, truth, dtype, scale=scale)


@pytest.mark.functions("line_scan", "line_scan_backward")
@given(
    case=scans(),
    chunk=chunks,
    layout=layouts,
    saved=st.booleans(),
    needs=st.none() | st.sets(st.sampled_from(LineScanGrads._fields)),
)
def test_line_scan_backward(backend, case, chunk, layout, saved, needs):
    inputs = (case.x, case.weight, case.lam)
    h = backend(gspn2_cupy.line_scan, *inputs, **case.options(chunk)) if saved else None
    arrays = (case.dh, *inputs, h)
    grads = backend(
        gspn2_cupy.line_scan_backward,
        *(laid_out(backend, a, layout) for a in arrays),
        **case.options(chunk),
        dh_last=case.dh_last,
        needs=needs,
    )
    truth = loops.line_scan_backward(*arrays, **case.options(chunk), dh_last=case.dh_last)
    h0, dh_last = sizes_of(case.h0, case.dh_last)
    scale = loops.line_scan_backward(
        *sizes_of(case.dh, *inputs), direction=case.direction, chunk=chunk, h0=h0, dh_last=dh_last
    )
    dtype = case.x.dtype
    check_gradients(LineScanGrads._fields, grads, truth, scale, (dtype, dtype, dtype, state_type(dtype)), needs)


@pytest.mark.functions("line_scan", "line_scan_backward")
@given(case=scans(), cut=st.integers(0, 33))
def test_two_pieces_are_the_whole(backend, case, cut):
    arrays = (case.x, case.weight, case.lam)
    direction = case.direction
    length = case.x.shape[scan_axis(direction)]
    cut = min(cut, length)
    whole, whole_last = backend(gspn2_cupy.line_scan, *arrays, **case.options(), return_last=True)
    whole_grads = backend(gspn2_cupy.line_scan_backward, case.dh, *arrays, **case.options(), dh_last=case.dh_last)

    def piece(start, stop):
        return [None if a is None else lines(a, direction, start, stop) for a in (case.dh, *arrays)]

    dh, *first = piece(0, cut)
    dh_rest, *rest = piece(cut, length)
    h, seam = backend(gspn2_cupy.line_scan, *first, **case.options(), return_last=True)
    h_rest, h_last = backend(gspn2_cupy.line_scan, *rest, direction=direction, h0=seam, return_last=True)
    assert_same_bits(h, np.ascontiguousarray(lines(whole, direction, 0, cut)))
    assert_same_bits(h_rest, np.ascontiguousarray(lines(whole, direction, cut, length)))
    assert_same_bits(h_last, whole_last)
    needs = ["x", "h0"]
    options = {"direction": direction, "needs": needs}
    grads_rest = backend(gspn2_cupy.line_scan_backward, dh_rest, *rest, **options, h0=seam, dh_last=case.dh_last)
    grads = backend(gspn2_cupy.line_scan_backward, dh, *first, **options, h0=case.h0, dh_last=grads_rest.h0)
    assert_same_bits(grads.x, np.ascontiguousarray(lines(whole_grads.x, direction, 0, cut)))
    assert_same_bits(grads_rest.x, np.ascontiguousarray(lines(whole_grads.x, direction, cut, length)))
    if case.h0 is not None:
        assert_same_bits(grads.h0, whole_grads.h0)


@pytest.mark.functions("line_scan", "line_scan_backward")
@given(case=scans(), chunk=chunks)
def test_gradients_are_the_transposed_map(backend, case, chunk):
    # h is linear in (x, h0): <dh, h> + <dh_last, h_last> = <dx, x> + <dh0, h0>, in float64 and for any weights
    case = make_scan(case.x.shape, case.direction, "float64", groups=case.weight.shape[1], h0=True, dh_last=True)
    arrays = (case.x, case.weight, case.lam)
    h, h_last = backend(gspn2_cupy.line_scan, *arrays, **case.options(chunk), return_last=True)
    grads = backend(gspn2_cupy.line_scan_backward, case.dh, *arrays, **case.options(chunk), dh_last=case.dh_last)
    there = np.sum(case.dh * h) + np.sum(case.dh_last * h_last)
    back = np.sum(grads.x * case.x) + np.sum(grads.h0 * case.h0)
    size = np.sum(np.abs(case.dh * h)) + np.sum(np.abs(case.dh_last * h_last))
    assert abs(there - back) <= 1e-12 * size


@pytest.mark.functions("normalize_weights", "normalize_weights_backward")
@given(
    unit=units(), method=st.sampled_from(["sigmoid", "softmax"]), layout=layouts, stretch=st.sampled_from([1, 8, 30])
)
def test_normalize_weights(backend, unit, method, layout, stretch):
    direction = unit.directions[0]
    options = {"direction": direction, "method": method}
    logits = unit.weight[:, 0] * unit.weight.dtype.type(stretch)  # 30: beyond the limit at -40
    dweight = np.flip(logits, -1) / logits.dtype.type(stretch)
    # judged against the largest of its pixel: a logit far below it has a weight of a few digits, or of none
    weight = backend(gspn2_cupy.normalize_weights, laid_out(backend, logits, layout), **options)
    truth = loops.normalize_weights(logits, **options)
    assert_close(weight, truth, logits.dtype, scale=largest_of_pixel(truth))
    arrays = [laid_out(backend, a, layout) for a in (dweight, logits)]
    dlogits = backend(gspn2_cupy.normalize_weights_backward, *arrays, **options)
    size = np.abs(dweight.astype(np.float64))
    scale = largest_of_pixel(truth * (size + np.sum(truth * size, axis=-3, keepdims=True)))
    assert_close(dlogits, loops.normalize_weights_backward(dweight, logits, **options), logits.dtype, scale=scale)


def largest_of_pixel(values):
    return np.broadcast_to(values.max(axis=-3, keepdims=True), values.shape)


@pytest.mark.functions("propagate")
@given(unit=units(), chunk=chunks, layout=layouts)
def test_propagate(backend, unit, chunk, layout):
    arrays = (unit.x, unit.weight, unit.lam, unit.u)
    laid = [laid_out(backend, a, layout) for a in arrays]
    y, states = backend(gspn2_cupy.propagate, *laid, **unit.options(chunk), return_states=True)
    truth = loops.propagate(*arrays, **unit.options(chunk))
    scale = loops.propagate(*absolute(unit), **absolute_options(unit, chunk))
    assert_close(y, truth[0], unit.x.dtype, scale=scale[0])
    assert_close(states, truth[1], unit.x.dtype, scale=scale[1])


@st.composite
def units_in_tiles(draw):
    """Units of images whose sides are whole vectors of 16 bytes and wider than small slices."""
    groups, per_group = draw(st.sampled_from([(1, 1), (1, 2), (2, 1), (1, 4)]))
    shape = (1, groups * per_group, *(8 * draw(st.integers(9, 12)) for _ in range(2)))
    names = draw(st.lists(directions, min_size=1, max_size=2, unique=True))
    options = {name: draw(st.booleans()) for name in ("lam", "u", "merge")}
    options["normalize"] = draw(st.sampled_from([None, "sigmoid", "softmax"]))
    dtype = draw(st.sampled_from(["float32", "float16", "bfloat16"]))
    return make_unit(shape, names, dtype, groups=groups, seed=draw(st.integers(0, 99)), **options)


@pytest.mark.functions("propagate")
@settings(max_examples=12)
@given(unit=units_in_tiles(), chunk=st.none() | st.integers(1, 60))
def test_propagate_in_tiles(backend, unit, chunk):
    arrays = (unit.x, unit.weight, unit.lam, unit.u)
    y, states = backend(gspn2_cupy.propagate, *arrays, **unit.options(chunk), return_states=True)
    # by the reference in float64, as in test_line_scan_in_tiles
    exact = [None if a is None else a.astype(np.float64) for a in (*arrays, unit.merge)]
    truth = reference.propagate(*exact[:4], **{**unit.options(chunk), "merge": exact[4]}, return_states=True)
    positive = [None if a is None else a.astype(np.float64) for a in absolute(unit)]
    scale = reference.propagate(*positive, **absolute_options(unit, chunk), return_states=True)
    for actual, expected, size in zip((y, states), truth, scale, strict=True):
        assert_close(actual, expected, unit.x.dtype, scale=size)


@pytest.mark.functions("propagate", "propagate_backward")
@given(
    unit=units(),
    chunk=chunks,
    layout=layouts,
    saved=st.booleans(),
    needs=st.none() | st.sets(st.sampled_from(PropagateGrads._fields)),
)
def test_propagate_backward(backend, unit, chunk, layout, saved, needs):
    arrays = (unit.x, unit.weight, unit.lam, unit.u)
    options = unit.options(chunk)
    states = backend(gspn2_cupy.propagate, *arrays, **options, return_states=True)[1] if saved else None
    laid = [laid_out(backend, a, layout) for a in (unit.dy, *arrays)]
    grads = backend(
        gspn2_cupy.propagate_backward, *laid, **options, states=laid_out(backend, states, layout), needs=needs
    )
    truth, _ = loops.propagate_backward(unit.dy, *arrays, **options, states=states)
    scale, _ = loops.propagate_backward(np.abs(unit.dy), *absolute(unit), **absolute_options(unit, chunk))
    if unit.normalize is not None:
        scale = scale._replace(weight=logits_scale(scale.weight, unit))
    check_gradients(PropagateGrads._fields, grads, truth, scale, [unit.x.dtype] * 5, needs)


def absolute(unit):
    """The inputs of a unit, all terms positive: logits are replaced by the weights that they mean."""
    weights = loops.direction_weights(unit.weight, unit.directions, unit.normalize)
    return sizes_of(unit.x, np.stack(weights, axis=1), unit.lam, unit.u)


def absolute_options(unit, chunk):
    (merge,) = sizes_of(unit.merge)
    return {"directions": unit.directions, "merge": merge, "chunk": chunk}


def logits_scale(dweight, unit):
    """The size of the terms of a logit's gradient, from that of the weights': w_k·(|dw_k| + sum_j w_j·|dw_j|)."""
    weight = np.stack(loops.direction_weights(unit.weight, unit.directions, unit.normalize), axis=1)
    return weight * (dweight + np.sum(weight * dweight, axis=-3, keepdims=True))
