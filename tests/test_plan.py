"""Launch plans: values that are computed, compared and printed without a GPU and without allocating anything."""

import dataclasses
import inspect
import math
import os
import re
import subprocess
import sys

import numpy as np
import pytest
from emulator import LIMITS, emulated, require
from helpers import BACKWARDS, DTYPES, HORIZONTAL, Recorder, make_scan, make_unit

import gspn2_cupy
from gspn2_cupy import ALL_DIRECTIONS, _device, _launch, _plan, _plan_gradients, _plan_pixels, _plan_projection
from gspn2_cupy._arrays import data_type
from gspn2_cupy._plan import Layout, LineScan

MOST_BLOCKS = 2**31 - 1
every_direction = pytest.mark.parametrize("direction", ALL_DIRECTIONS)
every_dtype = pytest.mark.parametrize("dtype", DTYPES)


def layout(shape, dtype="float32"):
    """A contiguous array."""
    kind = data_type(dtype)
    strides = tuple(math.prod(shape[axis + 1 :]) for axis in range(len(shape)))
    return Layout(tuple(shape), strides, kind.c_name, kind.itemsize)


def layout_of(array):
    kind = data_type(array.dtype)
    return Layout(array.shape, tuple(s // kind.itemsize for s in array.strides), kind.c_name, kind.itemsize)


def all_plans(dtype, direction, shape, groups, *, chunk=None):
    """A plan of every kernel, by its entry, for contiguous arrays that are all there."""
    batch, _, height, width = shape
    state = data_type(dtype).state.name
    x, g = layout(shape, dtype), layout(shape, state)
    weight = layout((batch, groups, 3, height, width), dtype)
    line = layout((*shape[:2], height if direction in HORIZONTAL else width), state)
    matrix, bias = layout((shape[1], shape[1]), dtype), layout((shape[1],), dtype)  # to as many channels
    plans = [
        _plan.plain_line_scan(LineScan(direction, chunk, x, weight, x, line, x, line)),
        _plan.plain_line_scan(LineScan(_plan.OPPOSITE[direction], chunk, x, weight, None, line, g, line, adjoint=True)),
        _plan_gradients.line_scan_gradients(direction, chunk, groups, g, x, x, x, line, g, x, x, weight),
        _plan_pixels.normalize(direction, "sigmoid", weight, weight),
        _plan_pixels.normalize_backward(direction, "softmax", weight, weight, weight),
        _plan_pixels.merge(x.c_name, g, x, g, x, x),
        *_plan_pixels.merge_gradient(x, x, g),
        _plan_projection.projection(x, matrix, bias, g, x),
        *_plan_projection.projection_gradient(x, x),
    ]
    return {plan.spec.entry: plan for plan in plans}


@every_dtype
@every_direction
def test_a_plan_is_a_value(dtype, direction):
    plans, again = (all_plans(dtype, direction, (2, 6, 40, 300), 3) for _ in range(2))
    assert plans == again
    for entry, plan in plans.items():
        assert hash(plan.spec) == hash(again[entry].spec)
        with pytest.raises(dataclasses.FrozenInstanceError):
            plan.grid = (1, 1, 1)
        text = str(plan)
        assert "\n" not in text
        for part in (f"{entry}<", f"grid={plan.grid}", f"block={plan.block}", "MB", "B shared", plan.reason):
            assert part in text
        assert f"STATE={data_type(dtype).state.c_name}" in text


@every_dtype
@every_direction
@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (2, 6, 40, 300), (3, 4, 2000, 7)])
def test_a_plan_is_within_what_every_gpu_allows(dtype, direction, shape):
    for plan in all_plans(dtype, direction, shape, 1).values():
        assert 0 <= plan.shared_bytes <= _launch.STATIC_SHARED_LIMIT <= LIMITS.shared_bytes_per_block
        defines, threads = dict(plan.spec.defines), math.prod(plan.block)
        assert threads % 32 == 0
        assert threads <= int(defines.get("MOST_THREADS", threads)) <= 1024
        assert defines.get("THREADS", str(threads)) == str(threads)
        assert all(1 <= n <= most for n, most in zip(plan.grid, (MOST_BLOCKS, 65535, 65535), strict=True))
        assert not plan.cooperative


def test_plans_see_no_gpu():
    for module in (_plan, _plan_gradients, _plan_pixels, _plan_projection):
        assert "cupy" not in re.sub("gspn2_cupy", "", inspect.getsource(module))


# --- the structs that cross the border --------------------------------------------------------------------------------


def structs_of_the_header():
    """The fields of the structs of cuda/geometry.cuh: {struct: [(field, struct or "long long")]}."""
    text = (_launch.cuda_sources() / "geometry.cuh").read_text(encoding="utf-8")
    text = re.sub(r"//.*", "", text)
    structs = {}
    for name, body in re.findall(r"^struct (\w+) \{\n(.*?)^\};", text, re.MULTILINE | re.DOTALL):
        structs[name] = [
            (field, kind)
            for kind, fields in re.findall(r"^  (long long|[A-Z]\w+) (\w+(?:, \w+)*);", body, re.MULTILINE)
            for field in fields.split(", ")
        ]
    return structs


def fields(dtype, names):
    """The same of a NumPy type, whose nested types have these names."""
    return [
        (field, "long long" if dtype[field] == np.dtype("<i8") else names[dtype[field]]) for field in dtype.names or ()
    ]


def test_structs_agree_with_the_header():
    structs = structs_of_the_header()
    names = {_plan.IMAGE: "Image", _plan.TAPS: "Taps", _plan.LINE: "Line", _plan.SCAN: "Scan", _plan.BANDS: "Bands"}
    names[_plan.RUNS] = "Runs"
    names[_plan_projection.MATRIX] = "Matrix"
    geometries = {
        _plan.GEOMETRY: "Geometry",
        _plan_gradients.GRADIENTS_GEOMETRY: "GradientsGeometry",
        _plan_pixels.NORMALIZE_GEOMETRY: "NormalizeGeometry",
        _plan_pixels.MERGE_GEOMETRY: "MergeGeometry",
        _plan_projection.PROJECTION_GEOMETRY: "ProjectionGeometry",
        _plan_projection.PROJECTION_GRADIENT_GEOMETRY: "ProjectionGradientGeometry",
    }
    for dtype, name in (names | geometries).items():
        assert fields(dtype, names) == structs[name], name
        assert not dtype.isalignedstruct
        assert dtype.itemsize == sum(dtype[field].itemsize for field in dtype.names), "nothing is padded"
    assert set(structs) - {"Place"} == {*names.values(), *geometries.values()}, "every struct that the host writes"


@every_direction
@pytest.mark.parametrize("steps", [(1, 1), (2, 3), (-1, -1), (-2, 1)])
def test_lines_are_found_where_they_are(direction, steps):
    memory = np.arange(2.0 * 3 * 24 * 28)  # each element tells its place
    image = memory.reshape(2, 3, 24, 28)[..., :: steps[0], :: steps[1]]
    lines = np.swapaxes(image, -1, -2) if direction in HORIZONTAL else image
    lines = lines[..., ::-1, :] if direction in BACKWARDS else lines
    origin, *strides = _plan.in_lines(layout_of(image), direction)
    place = origin + sum(
        stride * index for stride, index in zip(strides, np.indices(lines.shape), strict=True)
    )  # from the element that the pointer points to
    assert np.array_equal(place + image[0, 0, 0, 0], lines)


# --- any size ---------------------------------------------------------------------------------------------------------

HUGE = (3, 8, 16384, 16384)  # 6.4e9 pixels: no 32-bit number counts them


@every_dtype
@every_direction
def test_more_elements_than_32_bits_count(dtype, direction):
    batch, channels, height, width = HUGE
    for entry, plan in all_plans(dtype, direction, HUGE, 2).items():
        geometry = plan.geometry
        assert all(1 <= n <= most for n, most in zip(plan.grid, (MOST_BLOCKS, 65535, 65535), strict=True))
        scan = geometry["scan"]
        assert scan["lines"] * scan["width"] == height * width
        for name in geometry.dtype.names:
            if geometry.dtype[name] not in (_plan.IMAGE, _plan.TAPS) or not geometry[name]["cross"]:
                continue
            array = geometry[name]
            last = {
                "batch": batch - 1,
                "channel": channels - 1,
                "group": 2 - 1,
                "tap": 2,
                "line": scan["lines"] - 1,
                "cross": scan["width"] - 1,
            }
            highest = array["origin"] + sum(
                int(array[field]) * int(index)
                for field, index in last.items()
                if field in array.dtype.names and array[field] > 0
            )
            elements = batch * (2 * 3 if array.dtype == _plan.TAPS else channels) * height * width
            assert highest == elements - 1 > 2**31, f"{name} of {entry}"
        if plan.block[0] == _plan.PIXEL_THREADS and not re.search("(merge|projection)_gradient", entry):
            slices = {"merge": channels, "projection": 1}.get(entry, 2)
            pack = int(dict(plan.spec.defines).get("PACK", 1))
            assert plan.grid[0] * plan.grid[1] * plan.block[0] * pack >= batch * slices * height * width


def test_line_scan_of_more_slices_than_65535():
    plan = all_plans("float16", "top_to_bottom", (1000, 1000, 2, 2), 1000)["line_scan_forward"]
    assert plan.grid == (1_000_000, 1, 1)


# --- choices ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", ["rows are contiguous", "columns are contiguous"])
@every_direction
def test_neighbouring_threads_touch_neighbouring_addresses(direction, order):
    array = np.broadcast_to(np.float32(0), (2, 4, 30, 40))
    strides = (4800, 1200, 40, 1) if order == "rows are contiguous" else (4800, 1200, 1, 30)
    x = dataclasses.replace(layout_of(array), strides=strides)
    weight = layout((2, 1, 3, 30, 40))
    plan = _plan.plain_line_scan(LineScan(direction, None, x, weight, None, None, x, None))
    assert plan.geometry["scan"]["along"] == ((direction in HORIZONTAL) == (order == "rows are contiguous"))


def test_the_order_of_a_sum_depends_on_the_number_of_pixels_alone():
    shape = (2, 6, 50, 70)
    plain = layout(shape)
    transposed = dataclasses.replace(plain, strides=(21000, 3500, 1, 50))
    for arrays in ((plain, plain, plain), (transposed, plain, transposed), (plain, None, layout(shape, "float32"))):
        first, second = _plan_pixels.merge_gradient(*arrays)
        assert first.grid == (min(-(-math.prod(shape) // 256), 1024), 1, 1)
        assert first.workspace == first.grid[0] == first.geometry["partials"] == second.geometry["partials"]
        assert first.geometry["scan"]["along"] == 0
        assert second.grid == (1, 1, 1)


@pytest.mark.parametrize(
    ("outputs", "inputs", "pixels", "tiles", "shares"),
    [
        (1, 1, 1, 1, 1),
        (16, 15, 64 * 10, 1, 10),  # the bias fills the tile
        (16, 16, 64 * 10 + 1, 2, 11),  # the bias has a tile of its own
        (8, 1152, 10**6, 73, 14),  # about a thousand blocks
        (2048, 2048, 10**6, 128 * 129, 1),
    ],
)
def test_blocks_of_a_projections_gradient(outputs, inputs, pixels, tiles, shares):
    first, second = _plan_projection.projection_gradient(
        layout((1, outputs, 1, pixels), "bfloat16"), layout((1, inputs, 1, pixels), "bfloat16")
    )
    assert first.grid == (tiles * shares, 1, 1)
    assert first.geometry["shares"] == second.geometry["shares"] == shares
    assert first.workspace == shares * outputs * (inputs + 1)
    assert second.grid == (math.ceil(outputs * (inputs + 1) / 256), 1, 1)


def test_blocks_of_a_projection():
    x, total = layout((3, 70, 10, 10)), layout((3, 17, 10, 10))
    plan = _plan_projection.projection(x, layout((17, 70)), layout((17,)), None, total)
    assert plan.grid == (2 * 3, 1, 1)  # 300 pixels of all images, 17 outputs in three tiles
    assert plan.geometry["scan"]["channels"] == 1


@pytest.mark.parametrize("chunk", [None, 1, 7, 30, 10**18])
def test_chunk(chunk):
    scan = all_plans("float32", "top_to_bottom", (1, 2, 30, 5), 1, chunk=chunk)["line_scan_forward"].geometry["scan"]
    assert scan["chunk"] == min(chunk or 30, 30)


# --- bytes ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("dtype", "size", "state"), [("float32", 4, 4), ("bfloat16", 2, 4), ("float64", 8, 8)])
def test_bytes_moved_are_those_counted_by_hand(dtype, size, state):
    # 2 images of 6 channels in 3 groups, 5 x 7 pixels: 420 pixels of channels, 210 of groups; lines of 5
    plans = all_plans(dtype, "left_to_right", (2, 6, 5, 7), 3)
    image, taps, line = 420, 3 * 210, 2 * 6 * 5
    expected = {
        "line_scan_forward": (3 * image + taps) * size + 2 * line * state,  # x, λ, h; w; h0, h_last
        "line_scan_adjoint": (image + taps) * size + (image + 2 * line) * state,  # dh; w; g; dh_last, dh0
        "line_scan_gradients": (5 * image + taps) * size
        + (2 * image + line) * state,  # x, λ, h, dx, dλ; dw; g, before; h0
        "normalize": 2 * taps * size,
        "normalize_backward": 3 * taps * size,
        "merge": 3 * image * size + 2 * image * state,  # u, sum, states; h, before
        "merge_gradient_partials": 2 * image * size + image * state + 2 * 8,  # dy, u; h; the sums of two blocks
        "merge_gradient": 2 * 8 + size,
        "projection": (2 * image + 6 * 6 + 6) * size + image * state,  # x, sum, weight, bias; before
        "projection_gradient_partials": 2 * image * size + 2 * 6 * 7 * 8,  # g, x; two shares of weight and bias
        "projection_gradient": 2 * 6 * 7 * 8 + 6 * 7 * size,
    }
    assert {entry: plan.bytes_moved for entry, plan in plans.items()} == expected


# --- what calls launch and allocate -----------------------------------------------------------------------------------


def record(function, *arrays, **options):
    with _launch.use(Recorder()) as recorder:
        function(*arrays, **options)
    return recorder


def workspace(recorder, shape, state):
    """How many images, and how many sets of weights of one direction, were allocated in the state's type."""
    images = recorder.allocated.count((shape, state))
    weights = [s for s, dtype in recorder.allocated if len(s) == 5 and s[2] == 3 and dtype == state]
    return images, len(weights)


SHAPE = (2, 4, 5, 6)


def unit_options(**options):
    unit = make_unit(SHAPE, ALL_DIRECTIONS, groups=2, **options)
    return unit, (unit.x, unit.weight, unit.lam, unit.u), unit.options()


def test_launches_of_a_unit():
    _, arrays, options = unit_options(u=False, merge=False)
    assert record(gspn2_cupy.propagate, *arrays, **options).launched == [
        "line_scan_slices",  # the first direction is the sum so far
        *["line_scan_slices"] * 3,  # the others are merged into it
    ]
    unit, arrays, options = unit_options(normalize="softmax")
    assert record(gspn2_cupy.propagate, *arrays, **options).launched == ["normalize", "line_scan_slices"] * 4
    with_states = record(gspn2_cupy.propagate, *arrays, **options, return_states=True).launched
    assert with_states == ["normalize", "line_scan_slices", "merge"] * 4
    backward = record(gspn2_cupy.propagate_backward, unit.dy, *arrays, **options).launched
    assert backward == 4 * [
        "normalize",
        "merge",  # dh
        "line_scan_slices",  # g
        "line_scan_slices",  # h
        "merge",  # du
        "merge_gradient_partials",
        "merge_gradient",
        "line_scan_gradients",
        "normalize_backward",
    ]
    without_merge = record(gspn2_cupy.propagate_backward, unit.dy, *arrays, **options | {"merge": None}).launched
    assert without_merge[:4] == ["normalize", "line_scan_slices", "line_scan_slices", "merge"]  # g of u ⊙ dy, h, du


def test_launches_of_the_compact_unit():
    x, parameters = np.ones((2, 6, 5, 7), "float32"), gspn2_cupy.compact_parameters(6, 4, directions=ALL_DIRECTIONS[:1])
    options = {"directions": ALL_DIRECTIONS[:1]}
    gates = ["projection"] * 4  # proxies, logits, λ, u
    unit = ["normalize", "line_scan_slices"]
    assert record(gspn2_cupy.compact_propagate, x, parameters, **options).launched == [*gates, *unit, "projection"]
    gradient = ["projection_gradient_partials", "projection_gradient"]
    backward = record(gspn2_cupy.compact_propagate_backward, x, x, parameters, **options).launched
    assert backward == [
        *gates,
        "projection",  # dq
        *unit,
        "merge",  # q and the hidden lines
        *gradient,
        *["normalize", "merge", "line_scan_slices", "merge"],  # dh, g, du
        *["merge_gradient_partials", "merge_gradient", "line_scan_gradients", "normalize_backward"],
        *["projection"] * 3,  # dp, a term for each of logits, λ and u
        "projection",  # dx
        *gradient * 4,
    ]
    needs_x = record(gspn2_cupy.compact_propagate_backward, x, x, parameters, **options, needs=["x"]).launched
    assert not set(gradient) & set(needs_x)


@every_dtype
def test_workspace_of_the_compact_unit(dtype):
    """The sum of a proxy's gradients is carried in the state's type, which the 16-bit types pay an image for."""
    dy, weight = np.ones((2, 6, 5, 7), DTYPES[dtype]), np.ones((6, 4), DTYPES[dtype])
    for terms, sums in ((1, 0), (3, dtype in ("float16", "bfloat16"))):
        recorder = record(_device.project_back, [(dy, weight)] * terms)
        assert recorder.launched == ["projection"] * terms
        assert len(recorder.allocated) == 1 + sums


def test_only_what_is_needed_is_launched():
    unit, arrays, options = unit_options(normalize="sigmoid")
    states = np.stack([unit.x] * 4, axis=1)

    def launched(*needs):
        recorder = record(gspn2_cupy.propagate_backward, unit.dy, *arrays, **options, states=states, needs=needs)
        return recorder.launched[: len(recorder.launched) // 4]

    assert launched() == []
    assert launched("u") == ["merge"]
    assert launched("merge") == ["merge_gradient_partials", "merge_gradient"]
    assert launched("x") == ["normalize", "merge", "line_scan_slices", "line_scan_gradients"]
    assert launched("lam") == ["normalize", "merge", "line_scan_slices", "line_scan_gradients"]


@every_dtype
def test_workspace_of_a_unit(dtype):
    # The results too are allocated: in the state's type y is one image more, dx another, dweight has one axis more.
    wide = dtype in ("float32", "float64")
    state = data_type(dtype).state.numpy_dtype
    unit, arrays, options = unit_options(dtype=dtype, normalize="sigmoid")

    def forward(*arrays, **options):
        return workspace(record(gspn2_cupy.propagate, *arrays, **options), SHAPE, state)

    assert forward(*arrays, **options) == (1, 1)  # y, or the sum
    assert forward(*arrays, **options, return_states=True) == (1 if wide else 2, 1)
    x, weight, lam, u = (a if a is unit.x else a[:, :1] for a in arrays)
    one = {"directions": ALL_DIRECTIONS[:1]}
    assert forward(x, weight, lam, **one) == (int(wide), 0)  # nothing but y
    assert forward(x, weight, lam, u, **one) == (int(wide), 0)
    assert forward(x, weight, lam, u, **one, return_states=True) == (1, 0)  # hidden lines, or y

    def backward(*arrays, **options):
        return workspace(record(gspn2_cupy.propagate_backward, unit.dy, *arrays, **options), SHAPE, state)

    assert backward(*arrays, **options) == (3, 1)  # g; dh, then h; dx, or its sum
    states = np.stack([unit.x] * 4, axis=1)
    plain = {**options, "merge": None, "states": states}
    assert backward(*arrays[:3], **plain) == (2, 1)  # dh is dy
    assert backward(*arrays, **options, states=states, needs=["u", "merge"]) == (0, 0)


def test_printed_when_asked(monkeypatch, capsys):
    require()
    scan = make_scan((1, 2, 4, 5), "left_to_right")
    arrays = (scan.x, scan.weight, scan.lam)
    with emulated() as device:
        gspn2_cupy.line_scan(*arrays, direction=scan.direction)
        assert capsys.readouterr() == ("", "")
        monkeypatch.setattr(_launch, "PRINT_PLANS", True)
        before = device.launches
        gspn2_cupy.line_scan_backward(scan.dh, *arrays, direction=scan.direction)
        captured = capsys.readouterr()
    assert captured.out == ""
    lines = captured.err.splitlines()
    assert len(lines) == device.launches - before
    assert [line.partition("<")[0] for line in lines] == [
        "line_scan_slices",  # g
        "line_scan_slices",  # h
        "line_scan_gradients",
    ]


@pytest.mark.parametrize("value", ["1", ""])
def test_the_environment_asks_for_plans_on_import(value):
    code = "from gspn2_cupy import _launch; print(_launch.PRINT_PLANS)"
    environment = os.environ | {"GSPN2_PRINT_PLAN": value}
    printed = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert printed.stdout.strip() == str(value == "1")


@pytest.mark.parametrize("dtype", DTYPES)
def test_images_are_merged_by_packs_where_they_are_runs(dtype):
    kind = data_type(DTYPES[dtype])

    def plan(shape, **strides):
        def of(name, type_):
            contiguous = layout(shape, type_)
            return dataclasses.replace(contiguous, strides=strides.get(name, contiguous.strides))

        layouts = of("h", kind.state.name), of("u", dtype), of("before", kind.state.name), of("sum", dtype), None
        return _plan_pixels.merge(kind.c_name, *layouts)

    pack = 16 // kind.itemsize
    whole = plan((3, 2, 8, 8))
    assert dict(whole.spec.defines)["PACK"] == str(pack)
    assert whole.grid == (1, 3, 1)
    of_four = plan((3, 2, 8, 8), u=(4 * 2 * 64, 64, 8, 1))  # one direction of several
    assert dict(of_four.spec.defines)["PACK"] == str(pack)
    for single in (
        plan((3, 1, 3, 5)),  # 15 pixels
        plan((3, 2, 8, 8), u=(128, 64, 1, 8)),  # transposed
        plan((3, 2, 8, 8), before=(129, 64, 8, 1)),  # every other image starts between two packs
        plan((65536, 1, 4, 4)),  # more images than a grid has rows
    ):
        assert dict(single.spec.defines)["PACK"] == "1"
        assert single.grid[1:] == (1, 1)
