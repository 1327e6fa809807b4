"""Which kernel runs a scan, and what its plan promises of memory, residency and rows, for several devices."""

import itertools
import math
import re
from dataclasses import replace
from pathlib import Path

import gpu_support
import numpy as np
import pytest

from gspn2_cupy import ALL_DIRECTIONS, _plan_scan, _plan_slices
from gspn2_cupy._check_choice import forward_scan
from gspn2_cupy._plan import DeviceLimits, Layout, LineScan
from gspn2_cupy.reference import HORIZONTAL

DEVICES = {
    "H200": DeviceLimits("H200", (9, 0), 132, 232448, 233472, 2048, 60 << 20, 4_916_000_000_000),
    "A100": DeviceLimits("A100", (8, 0), 108, 166912, 167936, 2048, 40 << 20, 2_039_000_000_000),
    "RTX 4090": DeviceLimits("RTX 4090", (8, 9), 128, 101376, 102400, 1536, 72 << 20, 1_008_000_000_000),
    "RTX 5090": DeviceLimits("RTX 5090", (12, 0), 170, 101376, 102400, 1536, 96 << 20, 1_792_000_000_000),
    "small Hopper": DeviceLimits("small Hopper", (9, 0), 8, 232448, 233472, 2048, 10 << 20, 300_000_000_000),
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
    (4, 16, 512, 512),
    (8, 32, 256, 256),
    (32, 1152, 32, 32),  # exactly a warp
    (32, 384, 14, 14),  # rows of broken vectors
    (2, 64, 100, 100),  # the same in 16 bits
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
    return _plan_scan.line_scan(device, LineScan(direction, None, **arrays))


def sizes_of(plan):
    return {name: int(value) for name, value in plan.spec.defines if value.lstrip("-").isdigit()}


def rows_of_block(sizes):
    warp = 32 * sizes["ROWS"]
    return (sizes["WARPS"] - 1) * (warp - 2 * sizes["INNER"]) + warp


def kernel_of(plan):
    return plan.spec.entry.removeprefix("line_scan_")


@every_device
@every_direction
@every_shape
@every_kind
@pytest.mark.parametrize("sharing", ["a matrix per channel", "one for all", "in the state's type"])
def test_plans_keep_their_promises(device, direction, shape, kind, sharing):
    limits, changes = DEVICES[device], {}
    groups = shape[1] if sharing == "a matrix per channel" else 1
    if sharing == "in the state's type":
        changes = {"weight": layout((shape[0], groups, 3, *shape[2:])), "h": layout(shape)}
    plan = plan_of(limits, direction, shape, kind, groups, **changes)
    across = shape[2] if direction in HORIZONTAL else shape[3]
    assert plan.shared_bytes <= limits.shared_bytes_per_block
    assert plan.block[0] <= 1024
    assert plan.reason in str(plan)
    if kernel_of(plan) == "tiles":
        tiles_keep_their_promises(limits, plan, across)
    elif kernel_of(plan) == "slices":
        slices_keep_their_promises(limits, plan, shape, across, KINDS[kind])
    else:
        # too little shared memory, or slices of more bands than fit on the device at once
        assert device.startswith("RTX") or (device == "small Hopper" and max(shape) > 1024)


def tiles_keep_their_promises(limits, plan, across):
    sizes, bands = sizes_of(plan), plan.geometry["bands"]
    threads = plan.block[0]
    assert threads == 32 * (sizes["WARPS"] * sizes["SETS"] + sizes["COPIERS"])
    # What __launch_bounds__(threads, BLOCKS) makes sure of, as to registers; and the same for shared memory.
    assert sizes["BLOCKS"] * (plan.shared_bytes + 1024) <= limits.shared_bytes_per_multiprocessor
    assert sizes["BLOCKS"] * threads <= limits.max_threads_per_multiprocessor
    assert bands["count"] * bands["rows"] >= across
    assert bands["rows"] + 2 * sizes["OUTER"] <= rows_of_block(sizes)
    assert bands["count"] == 1 or bands["rows"] % sizes["ROWS"] == 0
    assert sizes["RAGGED"] == (across % sizes["ROWS"] != 0)
    assert plan.grid[0] % bands["count"] == 0
    if sizes["OUTER"]:
        assert sizes["CLUSTER"] > 1 or across > (bands["count"] - 1) * bands["rows"]
        assert bands["count"] == 1 or bands["rows"] >= sizes["OUTER"]  # a halo reaches into one neighbour only
    else:
        assert bands["count"] == 1 and bands["units"] * across <= rows_of_block(sizes)
        assert bands["units"] == 1 or (sizes["WARPS"] == 1 and not sizes["RAGGED"])
    in_global_memory = bands["count"] > 1 and sizes["CLUSTER"] == 1
    assert plan.cooperative == in_global_memory == (plan.workspace > 0)
    if in_global_memory:  # all of them at once, or they wait for each other for ever
        assert plan.grid[0] <= sizes["BLOCKS"] * limits.multiprocessors
        assert plan.workspace == plan.grid[0] * 2 * 3 * sizes["SETS"] * sizes["OUTER"]
    if sizes["CLUSTER"] > 1:
        assert (9, 0) <= limits.compute_capability < (12, 0)
        assert bands["count"] == sizes["CLUSTER"] <= 8
    assert str(across) in plan.reason


def slices_keep_their_promises(limits, plan, shape, across, itemsize):
    sizes, bands, runs = sizes_of(plan), plan.geometry["bands"], plan.geometry["runs"]
    lanes = -(-across // sizes["ROWS"])
    assert bands["units"] // sizes["CHANNELS"] * lanes <= 32
    warps = plan.block[0] // 32
    family, of_block = shape[1], runs["rounds"] * warps * bands["units"]
    assert bands["count"] * of_block >= family > (bands["count"] - 1) * of_block
    assert sizes["STAGES"] == (1 if runs["rounds"] == 1 else 2)
    if runs["rounds"] > 1:
        assert plan.grid[0] >= 0.9 * limits.multiprocessors
        if sizes["CHANNELS"] == 1:  # all of its blocks run at once
            resident = limits.shared_bytes_per_multiprocessor // (plan.shared_bytes + 1024)
            assert plan.grid[0] <= resident * limits.multiprocessors
    assert plan.grid[0] == shape[0] * bands["count"]
    assert warps <= 8  # what the kernel is bound to
    assert sizes["RAGGED"] == (across % sizes["ROWS"] != 0)
    assert plan.workspace == 0 and not plan.cooperative
    assert runs["images"] in (2, 4, 8, 16) and runs["taps"] in (2, 4, 8, 16)
    assert (runs["turn"] > 0) == (sizes["GROUP"] * itemsize == 16)


@pytest.mark.parametrize(
    ("shape", "kind", "groups", "copied"),
    [
        ((2, 4, 14, 14), "float", 4, (16, 16)),  # 784 bytes a slice
        ((2, 4, 14, 14), "__half", 4, (16, 16)),  # 392, but a warp starts at every second slice
        ((2, 5, 14, 14), "__half", 1, (8, 8)),  # an image of the batch starts at 1960, its weights at 1176
        ((2, 4, 7, 7), "float", 4, (16, 16)),  # 196, four slices in a warp
        ((2, 3, 7, 7), "__half", 3, (2, 2)),  # 98, three slices in a warp
        ((1, 3, 7, 7), "float", 1, (16, 16)),  # one warp only, which starts where the image does
    ],
    ids=str,
)
def test_runs_are_copied_by_as_many_bytes_as_their_starts_allow(shape, kind, groups, copied):
    plan = plan_of(DEVICES["H200"], "left_to_right", shape, kind, groups)
    assert kernel_of(plan) == "slices"
    assert plan.geometry["runs"].item()[:2] == copied
    x = layout(shape, kind)
    moved = plan_of(DEVICES["H200"], "left_to_right", shape, kind, groups, lam=replace(x, alignment=x.itemsize))
    assert moved.geometry["runs"].item()[:2] == (x.itemsize, copied[1])


@pytest.mark.parametrize("rows", [1, 2, 4])
@pytest.mark.parametrize("row_vectors", [*range(1, 33), 63, 64, 100])
def test_lanes_that_read_together_touch_all_banks(row_vectors, rows):
    step = row_vectors * rows
    turn, period = _plan_slices.turn_of(step), math.lcm(step, 8)
    vectors = np.arange(232448 // 16, dtype=np.uint64)  # as many as shared memory holds
    turns = vectors * np.uint64(turn) >> np.uint64(32)  # __umulhi
    assert (turns == vectors // np.uint64(period)).all()
    places = vectors ^ turns % 8
    assert (np.sort(places) == vectors).all()
    rows_of_all = turns[: len(turns) // row_vectors * row_vectors].reshape(-1, row_vectors)
    assert (rows_of_all == rows_of_all[:, :1]).all()  # so a lane works out once a row how its vectors change places
    for first_lane, row, n in itertools.product((0, 8, 24), range(rows), range(row_vectors)):
        read = [(first_lane + lane) * step + row * row_vectors + n for lane in range(8)]
        assert len({int(places[vector]) % 8 for vector in read}) == 8


@pytest.mark.parametrize(
    ("shape", "groups", "rows", "outer", "cluster"),
    [
        ((8, 64, 160, 160), 1, 2, 0, 1),  # a block holds them
        ((8, 64, 160, 160), 64, 4, 0, 1),
        ((8, 64, 192, 192), 1, 4, 0, 1),
        ((8, 64, 192, 192), 64, 4, 0, 1),
        ((8, 64, 256, 256), 1, 4, 0, 1),
        ((8, 16, 384, 384), 1, 4, 16, 2),
        ((16, 8, 1024, 1024), 1, 4, 16, 5),  # three rounds
        ((8, 8, 768, 768), 1, 4, 16, 1),  # four bands of each run at once; clusters of four would not
        ((2, 16, 2048, 2048), 1, 4, 32, 1),  # twice 128 blocks of few rows
        ((16, 8, 1024, 1024), 8, 4, 16, 1),  # four rounds of three warps, and not six of halos twice as wide
        ((8, 8, 768, 768), 8, 4, 32, 1),  # twice either way
    ],
    ids=str,
)
def test_wide_slices_in_16_bits_go_the_cheapest_way(shape, groups, rows, outer, cluster):
    """As measured on an H100 and an H200: docs/optimization_log.md."""
    sizes = sizes_of(plan_of(DEVICES["H200"], "left_to_right", shape, "__nv_bfloat16", groups))
    assert (sizes["ROWS"], sizes["OUTER"], sizes["CLUSTER"]) == (rows, outer, cluster)


@pytest.mark.parametrize(
    ("shape", "rows", "outer", "lines"),
    [
        ((2, 16, 2048, 2048), 8, 64, 8),
        ((1, 4, 16384, 16384), 8, 64, 8),
        ((1, 8, 4096, 4096), 4, 32, 16),  # 32 bands of four pairs of channels; of 16 bands only 64 blocks
        ((2, 8, 1024, 1024), 2, 16, 16),  # one channel in a block
        ((1, 8, 2048, 2048), 2, 16, 16),  # 128 blocks at once; halos of 32 rows would take 176, two on a multiprocessor
        ((1, 8, 3072, 3072), 2, 32, 16),  # two on a multiprocessor
    ],
    ids=str,
)
def test_wide_slices_in_16_bits_go_the_cheapest_way_down(shape, rows, outer, lines):
    """As measured on an H200 and an H100: docs/optimization_log.md, step 32."""
    sizes = sizes_of(plan_of(DEVICES["H200"], "top_to_bottom", shape, "__nv_bfloat16"))
    assert (sizes["ROWS"], sizes["OUTER"], sizes["LINES"], sizes["CLUSTER"]) == (rows, outer, lines, 1)


@every_direction
@pytest.mark.parametrize("side", [136, 256, 512, 1000, 1024])
@pytest.mark.parametrize("kind", ["float", "__half"])
def test_a_few_slices_get_a_cluster_each_of_as_few_warps_as_hold_them(direction, side, kind):
    sizes = sizes_of(plan_of(DEVICES["H200"], direction, (1, 8, side, side), kind))
    rows = 32 * sizes["ROWS"] * sizes["WARPS"] - 2 * sizes["INNER"] * (sizes["WARPS"] - 1) - 2 * sizes["OUTER"]
    assert (sizes["CLUSTER"], sizes["SETS"]) == (8, 1)
    assert 8 * rows >= side
    assert sizes["WARPS"] == (1 if side <= 256 else 2 if side <= 512 or sizes["ROWS"] == 4 else 4)


def test_fast_memory_wants_more_on_its_way():
    shape, h200 = (16, 8, 1024, 1024), DEVICES["H200"]
    h100 = replace(h200, memory_bandwidth=3_352_000_000_000)
    stages = [sizes_of(plan_of(device, "bottom_to_top", shape, "__half"))["STAGES"] for device in (h200, h100)]
    assert stages == [4, 3]
    warps = [sizes_of(plan_of(device, "left_to_right", shape, "__half", 8)) for device in (h200, h100)]
    assert [(sizes["WARPS"], sizes["OUTER"]) for sizes in warps] == [(3, 16), (3, 32)]


@pytest.mark.parametrize(
    ("direction", "shape", "rows", "channels", "rounds"),
    [
        ("left_to_right", (64, 1152, 14, 14), 1, 2, 2),  # many waves of blocks
        ("left_to_right", (32, 1152, 32, 32), 1, 2, 1),
        ("left_to_right", (128, 2048, 7, 7), 2, 2, 2),
        ("top_to_bottom", (128, 2048, 7, 7), 2, 2, 2),
        ("left_to_right", (32, 384, 14, 14), 1, 2, 2),  # two waves, which would load, and then scan
        ("left_to_right", (8, 384, 14, 14), 1, 1, 1),  # less than one
        ("top_to_bottom", (32, 384, 14, 14), 2, 1, 2),
    ],
    ids=str,
)
def test_small_slices_in_16_bits_are_dealt_out_as_was_fastest(direction, shape, rows, channels, rounds):
    """As measured on an H200 and an H100: docs/optimization_log.md, steps 20 and 32."""
    plan = plan_of(DEVICES["H200"], direction, shape, "__nv_bfloat16")
    sizes = sizes_of(plan)
    assert kernel_of(plan) == "slices"
    assert (sizes["ROWS"], sizes["CHANNELS"], plan.geometry["runs"]["rounds"]) == (rows, channels, rounds)
    x, state = layout(shape, "__nv_bfloat16"), layout(shape)
    scan = LineScan(direction, None, x, layout((shape[0], 1, 3, *shape[2:]), "__nv_bfloat16"), x, None, state, None)
    merging = _plan_scan.merging_line_scan(DEVICES["H200"], replace(scan, merging=True, before=state))
    assert sizes_of(merging)["CHANNELS"] == 1 or shape[2] <= 8  # two never paid there


@pytest.mark.parametrize(
    ("shape", "groups", "kind", "copiers"),
    [
        ((1, 8, 1024, 1024), 1, "__nv_bfloat16", 6),
        ((1, 8, 1024, 1024), 1, "float", 6),
        ((1, 8, 768, 768), 1, "float", 4),  # three scanning warps
        ((2, 16, 2048, 2048), 1, "__nv_bfloat16", 6),  # two channels in a block
        ((1, 8, 3072, 3072), 1, "__half", 8),
        ((2, 16, 2048, 2048), 16, "__half", 4),  # which read ahead
        ((8, 8, 768, 768), 8, "__half", 8),
        ((8, 64, 128, 128), 1, "__nv_bfloat16", 8),
        ((16, 8, 1024, 1024), 1, "float", 4),
    ],
    ids=str,
)
def test_as_many_warps_copy_as_were_measured_to_be_best(shape, groups, kind, copiers):
    """On an H100, and since lanes read ahead on an H200: docs/optimization_log.md."""

    def planned(device, **changes):
        return sizes_of(plan_of(device, "left_to_right", shape, kind, groups, **changes))["COPIERS"]

    assert planned(DEVICES["H200"]) == copiers
    assert planned(replace(DEVICES["H200"], compute_capability=(8, 0))) == 4  # eight would spill
    if kind != "float":
        assert planned(DEVICES["H200"], h=layout(shape)) == 8  # with h in float32, which they write over x and λ
        assert planned(DEVICES["H200"], h=layout(shape), lam=None) == 4  # without λ it lies beside: eight would spill


@every_direction
def test_offsets_have_64_bits_where_they_must(direction):
    def offset(shape):
        return dict(plan_of(DEVICES["H200"], direction, shape, "__half").spec.defines)["OFFSET"]

    assert offset((1, 1, 16384, 16384)) == "int"
    assert offset((128, 8, 2048, 1024)) == "long long"  # exactly 2³¹ elements
    assert offset((64, 512, 256, 256)) == "long long"


@pytest.mark.parametrize(
    ("shape", "kind", "changes", "piece"),
    [
        ((2, 4, 300, 304), "__half", {}, 16),
        ((2, 4, 300, 300), "__half", {}, 8),
        ((2, 4, 300, 302), "__half", {}, 4),
        ((2, 4, 300, 301), "__half", {}, 2),
        ((2, 4, 300, 301), "__half", {"weight": "float"}, 2),
        ((2, 4, 300, 304), "float", {}, 16),
        ((2, 4, 300, 302), "float", {}, 8),
        ((2, 4, 300, 301), "float", {}, 4),
        ((2, 4, 300, 304), "float", {"alignment": 8}, 8),  # of one array
        ((2, 4, 300, 304), "__half", {"pitch": 306}, 4),  # likewise
        ((2, 4, 300, 301), "__half", {"pitch": 304}, 2),  # where a row ends matters, too
    ],
    ids=str,
)
@every_direction
def test_rows_are_copied_by_as_many_bytes_as_their_ends_allow(direction, shape, kind, changes, piece):
    batch, channels, height, width = shape
    x, arrays = layout(shape, kind), {}
    if "weight" in changes:
        arrays["weight"] = layout((batch, 1, 3, height, width), changes["weight"])
    if "alignment" in changes:
        arrays["lam"] = replace(x, alignment=changes["alignment"])
    if "pitch" in changes:
        pitch = changes["pitch"]
        arrays["h"] = replace(x, strides=(channels * height * pitch, height * pitch, pitch, 1))
    plan = plan_of(DEVICES["H200"], direction, shape, kind, **arrays)
    assert kernel_of(plan) == "tiles"
    assert sizes_of(plan)["PIECE"] == piece


@every_direction
def test_what_each_kernel_takes(direction):
    device, shape = DEVICES["H200"], (2, 4, 64, 64)

    def kernel(shape=shape, kind="float", device=device, **changes):
        return kernel_of(plan_of(device, direction, shape, kind, **changes))

    x = layout(shape)
    assert kernel() == "tiles"
    assert kernel(device=replace(device, compute_capability=(7, 5))) == "forward"  # no asynchronous copies
    assert kernel(kind="double") == "slices"  # tiles have a float state
    assert kernel((2, 4, 300, 300), "double") == "forward"
    assert kernel((2, 4, 64, 66)) == "slices"  # rows of 16.5 vectors
    assert kernel((2, 4, 64, 68), "__half") == "slices"  # of 8.5
    assert kernel((2, 4, 300, 302)) == kernel((2, 4, 300, 301), "__half") == "tiles"
    assert kernel(x=replace(x, alignment=4)) == kernel(h=replace(x, alignment=4)) == "slices"
    assert kernel(lam=replace(x, strides=(4 * 64 * 66, 64 * 66, 66, 1))) == "tiles"  # neither vectors nor a run
    assert kernel(lam=replace(x, strides=(4 * 64 * 64, 64 * 64, 1, 64))) == "forward"
    assert kernel(kind="__half", h=x) == kernel(kind="__half", h=x, weight=layout((2, 1, 3, 64, 64))) == "tiles"
    wide = replace(x, strides=(4 * 64 * 80, 64 * 80, 80, 1))  # a slice of a wider image: no copy, no plain kernel
    assert kernel(x=wide, lam=wide) == "tiles"
    assert kernel((2, 64, 32, 32)) == "slices"  # aligned, and small
    assert kernel((32, 4, 32, 2048) if direction in HORIZONTAL else (32, 4, 2048, 32)) == "tiles"  # long


def test_the_plan_that_a_page_shows_is_the_one_that_is_made():
    page = (Path(__file__).parent.parent / "docs" / "environment.md").read_text(encoding="utf-8")
    shown = " ".join(re.search(r"^    line_scan_tiles<.*?rows$", page, re.M | re.S)[0].split())
    plan = plan_of(DEVICES["H200"], "left_to_right", (1, 4, 64, 64), groups=4)
    assert re.fullmatch(".*".join(map(re.escape, shown.split("…"))), str(plan))


def test_the_tests_of_graphs_and_streams_see_every_kind_of_kernel():
    """Their shapes, which only a GPU can run, launch what their names say."""
    kinds = {}
    for name, shape in gpu_support.SHAPES.items():
        groups = 2 if shape[1] % 2 == 0 else 1
        kind = ("float", 4)
        plan = _plan_scan.line_scan(
            DEVICES["H200"], forward_scan(shape, groups, "left_to_right", True, kind, kind, kind)
        )
        kinds[name] = (plan.spec.entry, int(dict(plan.spec.defines).get("CLUSTER", 1)) > 1, plan.cooperative)
    assert kinds == {
        "tiles": ("line_scan_tiles", False, False),
        "small slices": ("line_scan_slices", False, False),
        "a cluster": ("line_scan_tiles", True, False),
        "resident blocks": ("line_scan_tiles", False, True),
        "rows of broken vectors": ("line_scan_tiles", True, False),
    }
