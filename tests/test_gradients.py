"""The kernel that makes the gradients of x, λ and the weights from g: vectors of pixels, and runs of channels."""

import math
from itertools import chain, combinations

import loops
import numpy as np
import pytest
from helpers import (
    BACKWARDS,
    DTYPES,
    HORIZONTAL,
    assert_close,
    assert_same_bits,
    image_shape,
    lines,
    make_scan,
    outside,
    scan_axis,
)

import gspn2_cupy
from gspn2_cupy import ALL_DIRECTIONS, _launch, _plan_gradients
from gspn2_cupy._arrays import data_type
from gspn2_cupy._plan import Layout

pytestmark = pytest.mark.functions("line_scan", "line_scan_backward")
every_direction = pytest.mark.parametrize("direction", ALL_DIRECTIONS)
every_dtype = pytest.mark.parametrize("dtype", DTYPES)
GRADIENTS = ("x", "weight", "lam")


@pytest.fixture
def planned(monkeypatch):
    """The plans of the kernel's launches."""
    plans, run = [], _launch.run

    def keep(launcher, plan, *arrays):
        if plan.spec.entry == "line_scan_gradients":
            plans.append(plan)
        run(launcher, plan, *arrays)

    monkeypatch.setattr(_launch, "run", keep)
    return plans


def hidden(case, chunk=None):
    """The hidden lines, by the reference."""
    h = gspn2_cupy.reference.line_scan(case.x, case.weight, case.lam, **case.options(chunk))
    return h.astype(case.x.dtype)


def backward(backend, case, h, *, chunk=None, **options):
    arrays = (case.dh, case.x, case.weight, case.lam, h)
    return backend(gspn2_cupy.line_scan_backward, *arrays, **case.options(chunk), dh_last=case.dh_last, **options)


def specialised(plans):
    """VECTOR, ALONG and REVERSED of each launch."""
    return {tuple(int(dict(plan.spec.defines)[name]) for name in ("VECTOR", "ALONG", "REVERSED")) for plan in plans}


def vectors(size, direction):
    """What a contiguous image is specialised for whose rows are whole vectors of this many pixels."""
    along = direction in HORIZONTAL
    return (size, int(along), int(along and size > 1 and direction in BACKWARDS))


def without_neighbour(case, chunk):
    """True for every weight whose pixel has no such neighbour on a previous line."""
    mask = outside(case.weight.shape, case.direction)
    length = case.x.shape[scan_axis(case.direction)]
    for start in range(0, length, chunk or length):
        if start > 0 or case.h0 is None:
            lines(mask, case.direction, start, start + 1)[...] = True
    return mask


# --- vectors of pixels ------------------------------------------------------------------------------------------------


@every_direction
@every_dtype
# columns, and the pixels of a thread: a block's row and more, two vectors, halves of them, single pixels
@pytest.mark.parametrize(("columns", "pixels"), [(72, 4), (8, 4), (10, 2), (7, 1)])
def test_rows_of_whole_vectors_and_others(backend, planned, direction, dtype, columns, pixels):
    case = make_scan((1, 4, 6, columns), direction, dtype, groups=2, h0=True, dh_last=True)
    h = hidden(case, 4)
    grads = backward(backend, case, h, chunk=4)
    truth = loops.line_scan_backward(case.dh, case.x, case.weight, case.lam, h, **case.options(4), dh_last=case.dh_last)
    for name in GRADIENTS:
        assert_close(getattr(grads, name), getattr(truth, name), case.x.dtype)
    if backend.name != "reference":
        assert specialised(planned) == {vectors(min(pixels, 2) if dtype == "float64" else pixels, direction)}


@every_direction
@every_dtype
@pytest.mark.parametrize("chunk", [None, 1, 3, 5])  # restarts anywhere in a vector along the scan
@pytest.mark.parametrize("h0", [True, False], ids=["h0", "no h0"])
def test_the_size_of_vectors_shows_in_no_bit(backend, planned, direction, dtype, chunk, h0):
    case = make_scan((2, 6, 8, 8), direction, dtype, groups=2, h0=h0)
    h = hidden(case, chunk)
    expected = backward(backend, case, h, chunk=chunk)
    x = case.x
    for elements in (1, 2):  # that x starts behind an aligned address
        memory = backend.array(np.concatenate([np.full(elements, np.nan, x.dtype), x.reshape(-1)]))
        case.x = memory[elements:].reshape(x.shape)
        grads = backward(backend, case, h, chunk=chunk)
        for name in GRADIENTS:
            assert_same_bits(getattr(grads, name), getattr(expected, name))
    if backend.name != "reference":
        sizes = (1, 2) if dtype == "float64" else (1, 2, 4)
        assert specialised(planned) == {vectors(size, direction) for size in sizes}


@every_direction
def test_transposed_images_have_threads_along_their_columns(backend, planned, direction):
    case = make_scan((2, 6, 8, 12), direction, groups=2, h0=True)
    h = hidden(case)
    expected = backward(backend, case, h)
    planned.clear()
    case.x = backend.strided(case.x, "transposed")
    grads = backward(backend, case, h)
    for name in GRADIENTS:
        assert_same_bits(getattr(grads, name), getattr(expected, name))
    if backend.name != "reference":
        assert specialised(planned) == {(1, int(direction not in HORIZONTAL), 0)}


# --- what there is no previous line for -------------------------------------------------------------------------------


@every_direction
@pytest.mark.parametrize("columns", [8, 10, 7])
@pytest.mark.parametrize("chunk", [None, 2, 3])
@pytest.mark.parametrize("h0", [True, False], ids=["h0", "no h0"])
def test_pixels_without_a_neighbour_have_a_gradient_of_zero(backend, direction, columns, chunk, h0):
    """Whatever g and h hold, while all that have one show it."""
    case = make_scan((1, 3, 6, columns), direction, h0=h0)
    h = hidden(case, chunk)
    case.dh = np.full_like(case.dh, np.nan)
    dweight = backward(backend, case, h, chunk=chunk).weight
    assert np.array_equal(dweight == 0, without_neighbour(case, chunk))
    assert np.array_equal(np.isnan(dweight), ~without_neighbour(case, chunk))


@every_direction
@pytest.mark.parametrize("columns", [8, 10, 7])
@pytest.mark.parametrize("chunk", [None, 2, 3])
def test_lines_before_a_restart_are_not_looked_at(backend, direction, columns, chunk):
    case = make_scan((1, 3, 6, columns), direction, h0=True)
    h = hidden(case, chunk)
    clean = backward(backend, case, h, chunk=chunk).weight
    length = case.x.shape[scan_axis(direction)]
    for t in range(length):
        if t + 1 == length or (chunk and (t + 1) % chunk == 0):
            lines(h, direction, t, t + 1)[...] = np.nan
    assert_same_bits(backward(backend, case, h, chunk=chunk).weight, clean)


# --- runs of channels -------------------------------------------------------------------------------------------------


@every_direction
# channels of a group, channels of a thread, threads: one, some, all that there may be, and more channels than these
@pytest.mark.parametrize(
    ("channels", "run", "runs"), [(1, 1, 1), (3, 3, 1), (5, 4, 2), (16, 4, 4), (63, 4, 16), (70, 5, 14)]
)
def test_channels_are_summed_in_order_in_runs_that_are_summed_in_order(
    backend, planned, direction, channels, run, runs
):
    # With weights of 0, g is dh. Products of 10 bits by 10 are exact in float32; their sum is rounded at every step.
    rng = np.random.default_rng(0)
    case = make_scan((2, 2 * channels, 3, 8), direction, groups=2, lam=False)
    case.weight = np.zeros_like(case.weight)
    sizes = [2.0 ** rng.integers(-10, 1, case.x.shape) for _ in range(2)]  # so that a sum has more bits than float32
    case.dh, h = ((rng.integers(-1023, 1024, case.x.shape) * size).astype(np.float32) for size in sizes)
    dweight = backward(backend, case, h).weight
    if backend.name == "reference":
        return

    length = case.x.shape[scan_axis(direction)]
    products = np.zeros((2, 2, channels, *case.weight.shape[2:]), np.float32)
    for t in range(1, length):
        g, previous = lines(case.dh, direction, t, t + 1), lines(h, direction, t - 1, t)
        for tap in range(3):
            across = -2 if direction in HORIZONTAL else -1
            neighbour = np.roll(previous, 1 - tap, across)
            lines(products[..., tap, :, :], direction, t, t + 1)[...] = (g * neighbour).reshape(
                2, 2, channels, *g.shape[2:]
            )
    products[np.broadcast_to(without_neighbour(case, None)[:, :, None], products.shape)] = 0
    total = 0
    for first in range(0, channels, run):
        of_run = np.zeros_like(case.weight)
        for channel in range(first, min(first + run, channels)):
            of_run += products[:, :, channel]
        total = total + of_run
    assert_same_bits(dweight, total)
    assert {plan.block[2] for plan in planned} == {runs}
    assert {int(plan.geometry["run"]) for plan in planned} == {run}


@every_direction
@every_dtype
def test_many_channels_in_pieces(backend, planned, direction, dtype):
    # With weights of 0, g is dh in every piece. Along the scan the rows of pieces are no whole vectors.
    case = make_scan(image_shape(1, 20, (16, 24), direction), direction, dtype, h0=True)
    h = hidden(case)
    case.weight = np.zeros_like(case.weight)
    whole = backward(backend, case, h)
    for start, stop in ((0, 3), (3, 11), (11, 16)):
        dh, x, weight, lam, of_piece = (
            lines(a, direction, start, stop) for a in (case.dh, case.x, case.weight, case.lam, h)
        )
        h0 = case.h0 if start == 0 else lines(h, direction, start - 1, start).reshape(case.h0.shape)
        arrays = (dh, x, weight, lam, of_piece)
        options = {"direction": direction, "h0": h0.astype(case.h0.dtype)}
        grads = backend(gspn2_cupy.line_scan_backward, *arrays, **options)
        for name in GRADIENTS:
            expected = np.ascontiguousarray(lines(getattr(whole, name), direction, start, stop))
            assert_same_bits(getattr(grads, name), expected)
    if backend.name != "reference" and direction in HORIZONTAL:
        assert {size for size, _, _ in specialised(planned)} == {1, 2 if dtype == "float64" else 4}


@pytest.mark.parametrize("direction", ["right_to_left", "top_to_bottom"])  # one of each axis
@pytest.mark.parametrize("lam", [True, False], ids=["lam", "no lam"])
def test_needs(backend, direction, lam):
    case = make_scan((1, 6, 8, 8), direction, groups=2, lam=lam, h0=True)
    h = hidden(case)
    every = backward(backend, case, h)
    for needs in chain.from_iterable(combinations(GRADIENTS, n) for n in range(1, 3)):
        grads = backward(backend, case, h, needs=needs)
        for name in GRADIENTS:
            if name in needs and getattr(every, name) is not None:
                assert_same_bits(getattr(grads, name), getattr(every, name))
            else:
                assert getattr(grads, name) is None


# --- plans ------------------------------------------------------------------------------------------------------------


def layout(shape, dtype="float32", alignment=16):
    kind = data_type(dtype)
    strides = tuple(math.prod(shape[axis + 1 :]) for axis in range(len(shape)))
    return Layout(tuple(shape), strides, kind.c_name, kind.itemsize, alignment)


def plan(shape, groups=1, direction="top_to_bottom", dtype="float32", x=None):
    of_all, g = layout(shape, dtype), layout(shape, data_type(dtype).state.name)
    weight = layout((shape[0], groups, 3, *shape[2:]), dtype)
    x = of_all if x is None else x
    return _plan_gradients.line_scan_gradients(
        direction, None, groups, g, x, of_all, of_all, None, None, of_all, of_all, weight
    )


@every_direction
@every_dtype
@pytest.mark.parametrize("channels", [1, 4, 16, 1152])
@pytest.mark.parametrize(
    "size",
    [(1, 1), (7, 7), (14, 14), (1, 3000), (3000, 1), (1023, 1024), (16384, 16384), (1, 2**24), (2**24, 1)],
    ids=str,
)
def test_blocks_cover_the_image_and_no_more(direction, dtype, channels, size):
    made = plan((4, channels, *size), direction=direction, dtype=dtype)
    defines, scan = dict(made.spec.defines), made.geometry["scan"]
    columns, rows = (scan["lines"], scan["width"]) if defines["ALONG"] == "1" else (scan["width"], scan["lines"])
    across, down, runs = made.block
    blocks_across, blocks_down = int(made.geometry["blocks_across"]), int(made.geometry["blocks_down"])
    assert (
        (blocks_across - 1) * across * int(defines["VECTOR"])
        < columns
        <= blocks_across * across * int(defines["VECTOR"])
    )
    assert (blocks_down - 1) * down < rows <= blocks_down * down
    assert made.grid == (4 * blocks_across * blocks_down, 1, 1)
    assert made.grid[0] < 2**31
    assert (runs - 1) * made.geometry["run"] < channels <= runs * made.geometry["run"]
    assert math.prod(made.block) <= int(defines["MOST_THREADS"])


@pytest.mark.parametrize("channels", range(1, 100))
def test_no_run_is_empty_and_all_but_the_last_are_alike(channels):
    run, runs = _plan_gradients.runs_of(channels)
    assert runs <= _plan_gradients.MOST_RUNS
    assert (runs - 1) * run < channels <= runs * run


def test_a_vector_is_whole_and_aligned_in_every_array():
    shape = (2, 3, 8, 16)

    def pixels(**changed):
        x = Layout(**(vars_of(layout(shape)) | changed))
        return int(dict(plan(shape, x=x).spec.defines)["VECTOR"])

    def vars_of(made):
        return {name: getattr(made, name) for name in ("shape", "strides", "c_name", "itemsize", "alignment")}

    assert pixels() == 4
    assert [pixels(alignment=alignment) for alignment in (8, 4)] == [2, 1]
    assert pixels(strides=(384, 128, -16, 1)) == 4  # upside down
    assert pixels(strides=(0, 128, 16, 1)) == 4  # one image for all
    assert pixels(strides=(540, 180, 20, 1)) == 4  # of larger images
    assert pixels(strides=(432, 144, 18, 1)) == 2
    assert pixels(strides=(408, 136, 17, 1)) == 1
    assert pixels(strides=(385, 128, 16, 1)) == 1
    assert pixels(strides=(768, 256, 32, 2)) == 1  # every other pixel
    assert pixels(strides=(384, 128, 1, 8)) == 1  # transposed
