"""The compact unit against NumPy's einsum and the reference in float64, and against central differences."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from helpers import DTYPES, LAYOUTS, Recorder, assert_close, assert_same_bits, signal

import gspn2_cupy
from gspn2_cupy import ALL_DIRECTIONS, CompactGrads, CompactParameters, _launch, _plan_projection, _steps, reference

pytestmark = pytest.mark.functions("compact_propagate", "compact_propagate_backward")
every_dtype = pytest.mark.parametrize("dtype", DTYPES)


@dataclass
class Unit:
    """The arrays and options of one call and of its backward."""

    x: np.ndarray
    dy: np.ndarray
    parameters: CompactParameters
    options: dict


def make(
    shape=(2, 7, 6, 9),
    proxies=4,
    dtype="float32",
    *,
    groups=2,
    directions=ALL_DIRECTIONS,
    normalize="sigmoid",
    chunk=None,
    seed=0,
):
    """A Unit of random arrays: initial parameters with all biases and merge weights moved off their round values."""
    rng = np.random.default_rng(seed)
    initial = gspn2_cupy.compact_parameters(shape[1], proxies, groups=groups, directions=directions, seed=seed)
    moved = [array + rng.uniform(-0.3, 0.3, array.shape) for array in initial]
    parameters = CompactParameters(*(array.astype(DTYPES[dtype]) for array in moved))
    x, dy = signal(rng, shape, DTYPES[dtype]), signal(rng, shape, DTYPES[dtype])
    return Unit(x, dy, parameters, {"directions": directions, "normalize": normalize, "chunk": chunk})


# The functions with their parameters one by one, which a backend takes as any other arrays.


def compact_propagate(x, *parameters, **options):
    return gspn2_cupy.compact_propagate(x, CompactParameters(*parameters), **options)


def compact_propagate_backward(dy, x, *parameters, **options):
    grads = gspn2_cupy.compact_propagate_backward(dy, x, CompactParameters(*parameters), **options)
    assert type(grads) is CompactGrads
    assert grads.parameters is None or type(grads.parameters) is CompactParameters
    return [grads.x, *(grads.parameters or ())]


def forward(backend, unit):
    return backend(compact_propagate, unit.x, *unit.parameters, **unit.options)


def backward(backend, unit, **options):
    return backend(compact_propagate_backward, unit.dy, unit.x, *unit.parameters, **unit.options, **options)


NAMES = ("x", *CompactParameters._fields)


def truth(unit):
    """The result and the gradients in float64; what the unit hands on in its data type is rounded here too."""
    dtype = unit.x.dtype

    def rounded(array):
        return array.astype(dtype).astype(np.float64)

    wide = CompactParameters(*(array.astype(np.float64) for array in unit.parameters))
    x, dy = unit.x.astype(np.float64), unit.dy.astype(np.float64)
    options = {**unit.options, "merge": wide.merge}
    p = rounded(np.einsum("pc,bchw->bphw", wide.reduce_weight, x) + wide.reduce_bias[:, None, None])
    z = rounded(np.einsum("dgkp,bphw->bdgkhw", wide.logits_weight, p) + wide.logits_bias[..., None, None])
    lam = rounded(np.einsum("dqp,bphw->bdqhw", wide.lam_weight, p) + wide.lam_bias[..., None, None])
    u = rounded(np.einsum("dqp,bphw->bdqhw", wide.u_weight, p) + wide.u_bias[..., None, None])
    q = rounded(reference.propagate(p, z, lam, u, **options))
    y = np.einsum("cp,bphw->bchw", wide.expand_weight, q) + wide.expand_bias[:, None, None]

    dq = rounded(np.einsum("cp,bchw->bphw", wide.expand_weight, dy))
    inner = reference.propagate_backward(dq, p, z, lam, u, **options)
    dz, dlam, du = (rounded(each) for each in inner[1:4])
    dp = rounded(
        rounded(inner.x)
        + np.einsum("dgkp,bdgkhw->bphw", wide.logits_weight, dz)
        + np.einsum("dqp,bdqhw->bphw", wide.lam_weight, dlam)
        + np.einsum("dqp,bdqhw->bphw", wide.u_weight, du)
    )
    return y, [
        np.einsum("pc,bphw->bchw", wide.reduce_weight, dp),
        np.einsum("bphw,bchw->pc", dp, x),
        np.einsum("bphw->p", dp),
        np.einsum("bdgkhw,bphw->dgkp", dz, p),
        np.einsum("bdgkhw->dgk", dz),
        np.einsum("bdqhw,bphw->dqp", dlam, p),
        np.einsum("bdqhw->dq", dlam),
        np.einsum("bdqhw,bphw->dqp", du, p),
        np.einsum("bdqhw->dq", du),
        inner.merge,
        np.einsum("bchw,bphw->cp", dy, q),
        np.einsum("bchw->c", dy),
    ]


def check(backend, unit):
    y, gradients = truth(unit)
    assert_close(forward(backend, unit), y, unit.x.dtype)
    for name, actual, wanted in zip(NAMES, backward(backend, unit), gradients, strict=True):
        try:
            assert_close(actual, wanted, unit.x.dtype)
        except AssertionError as error:
            raise AssertionError(f"gradient of {name}: {error}") from error


# --- values -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("normalize", "chunk"), [("sigmoid", None), ("softmax", 4)])
@every_dtype
def test_against_einsum_and_the_reference(backend, dtype, normalize, chunk):
    check(backend, make(dtype=dtype, normalize=normalize, chunk=chunk))


@pytest.mark.parametrize(
    "directions",
    [("bottom_to_top",), ("top_to_bottom", "left_to_right"), ("right_to_left", "bottom_to_top", "left_to_right")],
    ids="+".join,
)
def test_directions(backend, directions):
    check(backend, make(directions=directions))


SIZES = {
    "one pixel": ((1, 3, 1, 1), 2, 1),
    "one channel, one proxy": ((2, 1, 4, 5), 1, 1),
    "a matrix per proxy channel": ((1, 4, 5, 3), 3, 3),
    "as many outputs as a thread has": ((1, 8, 3, 4), 8, 1),
    "more inputs than are staged at a time, and outputs of several tiles": ((1, 70, 3, 5), 18, 3),
    "inputs and the bias fill tiles of 16": ((1, 15, 4, 4), 15, 1),
    "the bias is alone in its tile": ((1, 16, 4, 4), 16, 1),
    "several blocks, images that end inside them": ((3, 2, 11, 13), 2, 1),
    "more shares than one": ((2, 3, 9, 17), 2, 2),
}


@pytest.mark.parametrize(("shape", "proxies", "groups"), list(SIZES.values()), ids=list(SIZES))
def test_sizes(backend, shape, proxies, groups):
    check(backend, make(shape, proxies, groups=groups))


@pytest.mark.parametrize("shape", [(0, 3, 4, 5), (2, 3, 0, 5), (2, 3, 4, 0)])
def test_no_pixels(backend, shape):
    unit = make(shape)
    assert forward(backend, unit).shape == shape
    dx, *gradients = backward(backend, unit)
    assert dx.shape == shape
    for gradient, parameter in zip(gradients, unit.parameters, strict=True):
        assert_same_bits(gradient, np.zeros_like(parameter))


def test_no_proxies(backend):
    """What is left is the last bias."""
    shapes = gspn2_cupy._compact_parameters.shapes(3, 0, 2, 4)
    parameters = CompactParameters(*(np.ones(shape, "float32") for shape in shapes))
    unit = Unit(np.ones((2, 3, 4, 5), "float32"), np.ones((2, 3, 4, 5), "float32"), parameters, {})
    assert_same_bits(forward(backend, unit), unit.x)
    gradients = dict(zip(NAMES, backward(backend, unit), strict=True))
    assert_same_bits(gradients["x"], np.zeros_like(unit.x))
    assert_same_bits(gradients["expand_bias"], np.full(3, 40, "float32"))
    assert_same_bits(gradients["logits_bias"], np.zeros((4, 2, 3), "float32"))


def test_no_channels(backend):
    shapes = gspn2_cupy._compact_parameters.shapes(0, 2, 1, 4)
    parameters = CompactParameters(*(np.ones(shape, "float32") for shape in shapes))
    nothing = np.ones((2, 0, 4, 5), "float32")
    unit = Unit(nothing, nothing, parameters, {})
    assert forward(backend, unit).shape == nothing.shape
    for gradient, array in zip(backward(backend, unit), (nothing, *parameters), strict=True):
        assert_same_bits(gradient, np.zeros_like(array))


@pytest.mark.parametrize("blocks", [1, 7])
def test_a_block_sums_several_parts_of_its_share(backend, blocks, monkeypatch):
    """As on images of many thousand pixels, which would be slow here: there are fewer blocks than parts."""
    monkeypatch.setattr(_plan_projection, "GRADIENT_BLOCKS", blocks)
    monkeypatch.setattr(_steps, "_plans", {})
    shares, run = set(), _launch.run

    def noted(launcher, plan, *arrays):
        if "shares" in plan.geometry.dtype.names:
            shares.add(int(plan.geometry["shares"]))
        run(launcher, plan, *arrays)

    monkeypatch.setattr(_launch, "run", noted)
    check(backend, make((2, 3, 13, 19), 2))
    assert not shares or max(shares) == blocks  # none on the reference


def test_nan_stays_in_its_image(backend):
    unit = make((2, 3, 4, 5))
    clean, clean_gradients = forward(backend, unit), backward(backend, unit, needs=["x"])[0]
    unit.x[1, 0, 2, 2] = np.nan
    y, dx = forward(backend, unit), backward(backend, unit, needs=["x"])[0]
    assert_same_bits(y[0], clean[0])
    assert_same_bits(dx[0], clean_gradients[0])
    assert np.isnan(y[1]).all(), "four directions carry it everywhere"


# --- derivatives ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("normalize", "chunk"), [("sigmoid", 2), ("softmax", None)])
def test_central_differences(normalize, chunk):
    unit = make((1, 3, 3, 4), 2, "float64", groups=1, normalize=normalize, chunk=chunk)
    gradients = compact_propagate_backward(unit.dy, unit.x, *unit.parameters, **unit.options)
    step = 1e-6
    for name, array, gradient in zip(NAMES, (unit.x, *unit.parameters), gradients, strict=True):
        estimate = np.zeros_like(array)
        for place in np.ndindex(array.shape):
            centre, loss = array[place], []
            for moved in (centre + step, centre - step):
                array[place] = moved
                loss.append(np.sum(unit.dy * compact_propagate(unit.x, *unit.parameters, **unit.options)))
            array[place] = centre
            estimate[place] = (loss[0] - loss[1]) / (2 * step)
        np.testing.assert_allclose(gradient, estimate, rtol=1e-6, atol=1e-7, err_msg=name)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_only_what_is_needed(backend, dtype):
    unit = make(dtype=dtype)
    everything = backward(backend, unit)
    (dx,) = backward(backend, unit, needs=["x"])
    assert_same_bits(dx, everything[0])
    grads = gspn2_cupy.compact_propagate_backward(
        unit.dy, unit.x, unit.parameters, **unit.options, needs=("parameters",)
    )
    assert grads.x is None
    assert grads.parameters is not None
    none = gspn2_cupy.compact_propagate_backward(unit.dy, unit.x, unit.parameters, **unit.options, needs=())
    assert none == (None, None)


# --- memory -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", LAYOUTS)
def test_any_strides_give_the_same_bits(backend, layout):
    unit = make((2, 5, 6, 9), chunk=4)
    y, gradients = forward(backend, unit), backward(backend, unit)
    parameters = [
        backend.strided(a, layout) if a.ndim > 1 and (layout != "channels_last" or a.ndim > 2) else backend.array(a)
        for a in unit.parameters
    ]
    parameters[1] = backend.array(np.repeat(unit.parameters.reduce_bias, 2))[::2]
    x, dy = backend.strided(unit.x, layout), backend.strided(unit.dy, layout)
    if backend.name == "reference":  # NumPy's BLAS may sum in another order
        np.testing.assert_allclose(backend(compact_propagate, x, *parameters, **unit.options), y, rtol=1e-4, atol=1e-5)
        return
    assert_same_bits(backend(compact_propagate, x, *parameters, **unit.options), y)
    strided = backend(compact_propagate_backward, dy, x, *parameters, **unit.options)
    for actual, wanted in zip(strided, gradients, strict=True):
        assert_same_bits(actual, wanted)


def test_repeats_are_bitwise_equal(backend):
    unit = make((2, 7, 9, 17))
    first = [forward(backend, unit), *backward(backend, unit)]
    for actual, wanted in zip([forward(backend, unit), *backward(backend, unit)], first, strict=True):
        assert_same_bits(actual, wanted)


@pytest.mark.parametrize("library", ["torch", "jax"])
def test_arrays_of_other_libraries_come_back(library):
    module = pytest.importorskip(library, reason=f"{library} is not installed")
    convert = module.from_numpy if library == "torch" else module.numpy.asarray
    unit = make()
    x, dy, parameters = convert(unit.x), convert(unit.dy), CompactParameters(*map(convert, unit.parameters))
    y = gspn2_cupy.compact_propagate(x, parameters, **unit.options)
    grads = gspn2_cupy.compact_propagate_backward(dy, x, parameters, **unit.options)
    wanted = gspn2_cupy.compact_propagate_backward(unit.dy, unit.x, unit.parameters, **unit.options)
    assert_same_bits(np.asarray(y), gspn2_cupy.compact_propagate(unit.x, unit.parameters, **unit.options))
    for actual, array in zip((grads.x, *grads.parameters), (wanted.x, *wanted.parameters), strict=True):
        assert type(actual) is type(x)
        assert_same_bits(np.asarray(actual), array)


# --- initial parameters -----------------------------------------------------------------------------------------------


def test_initial_parameters():
    parameters = gspn2_cupy.compact_parameters(300, 48, groups=3, directions=ALL_DIRECTIONS[:2], dtype="float64")
    assert parameters.reduce_weight.shape == (48, 300)
    assert parameters.logits_weight.shape == (2, 3, 3, 48)
    for name, reach in {
        "reduce_weight": (3 / 300) ** 0.5,
        "logits_weight": (3 / 48) ** 0.5,
        "lam_weight": 0.1 * (3 / 48) ** 0.5,
        "u_weight": 0.1 * (3 / 48) ** 0.5,
        "expand_weight": (3 / 48) ** 0.5,
    }.items():
        array = getattr(parameters, name)
        assert np.abs(array).max() <= reach
        assert array.std() == pytest.approx(reach / 3**0.5, rel=0.1), name
    for name, value in {
        "reduce_bias": 0,
        "logits_bias": 0,
        "lam_bias": 1,
        "u_bias": 1,
        "merge": 1 / 2,
        "expand_bias": 0,
    }.items():
        assert (getattr(parameters, name) == value).all(), name


def test_initial_parameters_follow_from_the_seed():
    first, again, other = (gspn2_cupy.compact_parameters(6, 4, seed=seed) for seed in (1, 1, 2))
    for a, b in zip(first, again, strict=True):
        assert_same_bits(a, b)
    assert not np.array_equal(first.reduce_weight, other.reduce_weight)
    exact = gspn2_cupy.compact_parameters(6, 4, seed=1, dtype="float64")
    for name, dtype in DTYPES.items():
        rounded = gspn2_cupy.compact_parameters(6, 4, seed=1, dtype=name)
        for a, b in zip(rounded, exact, strict=True):
            assert_same_bits(a, b.astype(dtype))


# --- what docs/compact_unit.md promises -------------------------------------------------------------------------------


def counts(channels, proxies, directions=4):
    """Parameters, and channels between x and y, of a unit with a matrix per channel, with a shared one, and compact."""
    per_channel = directions * 5 * channels  # three weights, λ, u
    shared = directions * (3 + 2 * channels)
    compact = gspn2_cupy.compact_parameters(channels, proxies, directions=ALL_DIRECTIONS[:directions])
    return (
        (per_channel * (channels + 1) + directions, per_channel),
        (shared * (channels + 1) + directions, shared),
        (sum(array.size for array in compact), (2 + 2 * directions) * proxies + 3 * directions),
    )


def table():
    yield "| C | P | image | | parameters | per pixel | bytes |"
    yield "|---|---|---|---|---|---|---|"
    for channels, proxies, side in ((64, 4, 128), (96, 8, 56), (384, 16, 14), (1152, 32, 32)):
        kinds = ("a matrix per channel (GSPN-1)", "a shared matrix", "**compact (GSPN-2)**")
        for kind, (parameters, between) in zip(kinds, counts(channels, proxies), strict=True):
            shown = str(proxies) if "compact" in kind else "–"
            size = between * side * side * 2 / 1e6
            yield f"| {channels} | {shown} | {side}² | {kind} | {parameters:,} | {between:,} | {size:.3g} MB |"


def test_the_table_of_the_page():
    page = (Path(__file__).resolve().parents[1] / "docs" / "compact_unit.md").read_text(encoding="utf-8")
    shown = page.partition("<!-- table:begin -->\n")[2].partition("<!-- table:end -->")[0]
    assert shown.splitlines() == list(table())


@pytest.mark.parametrize(("groups", "directions"), [(1, 4), (2, 3)])
def test_the_channels_between_are_what_a_call_allocates(groups, directions):
    options = {"directions": ALL_DIRECTIONS[:directions]}
    parameters = gspn2_cupy.compact_parameters(6, 4, groups=groups, **options, dtype="float16")
    x = np.zeros((2, 6, 5, 7), "float16")
    with _launch.use(Recorder()) as recorder:
        gspn2_cupy.compact_propagate(x, parameters, **options)
    bits_16 = [shape for shape, dtype in recorder.allocated if dtype == np.float16]
    between = sum(int(np.prod(shape)) for shape in bits_16) // (2 * 5 * 7) - 6  # without y
    assert between == (2 + 2 * directions) * 4 + 3 * directions * groups
    if groups == 1:
        assert between == counts(6, 4, directions)[2][1]
    workspace = [shape for shape, dtype in recorder.allocated if dtype != np.float16]
    assert {np.dtype(dtype) for _, dtype in recorder.allocated} <= {np.dtype("float16"), np.dtype("float32")}
    channels = sum(int(np.prod(shape)) for shape in workspace) // (2 * 5 * 7)
    assert channels == (1 if directions > 1 else 0) * 4 + 3 * groups  # the sum of directions, and weights of one
