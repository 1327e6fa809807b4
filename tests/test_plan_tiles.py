"""Plans of the tile kernel: what they promise about memory, residency and rows, for several devices, without a GPU."""

import math
from dataclasses import replace

import pytest

from gspn2_cupy import ALL_DIRECTIONS, _plan_forward
from gspn2_cupy._plan import DeviceLimits, Layout
from gspn2_cupy.reference import HORIZONTAL

DEVICES = {
    "H200": DeviceLimits("H200", (9, 0), 132, 232448, 233472, 2048, 60 << 20),
    "A100": DeviceLimits("A100", (8, 0), 108, 166912, 167936, 2048, 40 << 20),
    "RTX 4090": DeviceLimits("RTX 4090", (8, 9), 128, 101376, 102400, 1536, 72 << 20),
    "RTX 5090": DeviceLimits("RTX 5090", (12, 0), 170, 101376, 102400, 1536, 96 << 20),
    "small Hopper": DeviceLimits("small Hopper", (9, 0), 8, 232448, 233472, 2048, 10 << 20),
}
SHAPES = [
    (16, 8, 1024, 1024),  # many wide slices
    (1, 8, 1024, 1024),  # few
    (1, 8, 4096, 4096),
    (1, 4, 16384, 16384),  # wider than a cluster
    (32, 96, 56, 56),  # several slices in a warp
    (8, 64, 128, 128),  # exactly a warp of float32
    (2, 16, 2048, 2048),
    (2, 4, 333, 336),  # an odd number of rows
    (3, 6, 65, 136),  # one row more than a warp of two
    (1, 1, 8, 8),  # less than a warp
]
KINDS = {"float": 4, "__half": 2, "__nv_bfloat16": 2}

every_device = pytest.mark.parametrize("device", DEVICES)
every_direction = pytest.mark.parametrize("direction", ALL_DIRECTIONS)
every_shape = pytest.mark.parametrize("shape", SHAPES, ids=str)
every_kind = pytest.mark.parametrize("kind", KINDS)


def layout(shape, kind="float"):
    strides = tuple(math.prod(shape[axis + 1 :]) for axis in range(len(shape)))
    return Layout(shape, strides, kind, KINDS.get(kind, 8))


def plan_of(device, direction, shape, kind="float", groups=1, **changes):
    x, weight = layout(shape, kind), layout((shape[0], groups, 3, *shape[2:]), kind)
    arrays = {"x": x, "weight": weight, "lam": x, "h0": None, "h": x, "h_last": None} | changes
    return _plan_forward.line_scan_forward(device, direction, None, *arrays.values())


def sizes_of(plan):
    return {name: int(value) for name, value in plan.spec.defines if value.lstrip("-").isdigit()}


def rows_of_block(sizes):
    warp = 32 * sizes["ROWS"]
    return (sizes["WARPS"] - 1) * (warp - 2 * sizes["HALO"]) + warp


@every_device
@every_direction
@every_shape
@every_kind
def test_plans_keep_their_promises(device, direction, shape, kind):
    limits = DEVICES[device]
    plan = plan_of(limits, direction, shape, kind)
    if plan is None:
        # Too little shared memory; slices of more bands than fit on the device at once; or rows of broken vectors.
        assert device.startswith("RTX") or (device == "small Hopper" and max(shape) > 1024) or shape[3] % 8
        return
    sizes, bands = sizes_of(plan), plan.geometry["bands"]
    across = shape[2] if direction in HORIZONTAL else shape[3]
    threads = plan.block[0]
    assert plan.shared_bytes <= limits.shared_bytes_per_block
    assert threads == 32 * (sizes["WARPS"] * sizes["SETS"] + sizes["COPIERS"]) <= 1024
    # What __launch_bounds__(threads, BLOCKS) makes sure of, as to registers; and the same for shared memory.
    assert sizes["BLOCKS"] * (plan.shared_bytes + 1024) <= limits.shared_bytes_per_multiprocessor
    assert sizes["BLOCKS"] * threads <= limits.max_threads_per_multiprocessor
    if sizes["HALO"]:
        assert bands["count"] * bands["rows"] >= across
        assert sizes["CLUSTER"] > 1 or across > (bands["count"] - 1) * bands["rows"]
        assert bands["rows"] + 2 * sizes["HALO"] <= rows_of_block(sizes)
        assert bands["count"] == 1 or bands["rows"] >= sizes["HALO"]  # a halo reaches into one neighbour only
        assert bands["rows"] % sizes["ROWS"] == 0
        assert plan.grid[0] % bands["count"] == 0
    else:
        assert bands["count"] == 1 and bands["units"] * across <= 32 * sizes["ROWS"]
    in_global_memory = bands["count"] > 1 and sizes["CLUSTER"] == 1
    assert plan.cooperative == in_global_memory == (plan.workspace > 0)
    if in_global_memory:  # all of them at once, or they wait for each other for ever
        assert plan.grid[0] <= sizes["BLOCKS"] * limits.multiprocessors
        words = 2 * 3 * sizes["SETS"] * sizes["CHANNELS"] * sizes["HALO"]
        assert plan.workspace == plan.grid[0] * words
    if sizes["CLUSTER"] > 1:
        assert (9, 0) <= limits.compute_capability < (12, 0)
        assert bands["count"] == sizes["CLUSTER"] <= 8
    assert str(across) in plan.reason
    assert plan.reason in str(plan)


@every_direction
def test_offsets_have_64_bits_where_they_must(direction):
    def offset(shape):
        return dict(plan_of(DEVICES["H200"], direction, shape, "__half").spec.defines)["OFFSET"]

    assert offset((1, 1, 16384, 16384)) == "int"
    assert offset((128, 8, 2048, 1024)) == "long long"  # exactly 2³¹ elements
    assert offset((64, 512, 256, 256)) == "long long"


@every_direction
def test_what_is_left_to_the_plain_kernel(direction):
    device, shape = DEVICES["H200"], (2, 4, 64, 64)
    x = layout(shape)
    assert plan_of(device, direction, shape) is not None
    assert plan_of(replace(device, compute_capability=(7, 5)), direction, shape) is None  # no asynchronous copies
    assert plan_of(device, direction, shape, "double") is None
    assert plan_of(device, direction, (2, 4, 64, 66)) is None  # rows of 16.5 vectors
    assert plan_of(device, direction, (2, 4, 64, 68), "__half") is None  # of 8.5
    assert plan_of(device, direction, shape, x=replace(x, aligned=False)) is None
    assert plan_of(device, direction, shape, h=replace(x, aligned=False)) is None
    assert plan_of(device, direction, shape, lam=replace(x, strides=(4 * 64 * 66, 64 * 66, 66, 1))) is None
    assert plan_of(device, direction, shape, lam=replace(x, strides=(4 * 64 * 64, 64 * 64, 1, 64))) is None
    assert plan_of(device, direction, shape, h=layout(shape, "double")) is None  # a hidden line in another type
    wide = replace(x, strides=(4 * 64 * 80, 64 * 80, 80, 1))  # a slice of a wider image: no copy, no plain kernel
    assert plan_of(device, direction, shape, x=wide, lam=wide) is not None


def test_equal_calls_share_a_plan():
    plans = [plan_of(DEVICES["H200"], "left_to_right", (2, 4, 64, 64)) for _ in range(2)]
    assert plans[0] is plans[1]
