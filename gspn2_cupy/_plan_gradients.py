"""The plan of the kernel that makes the gradients of x, λ and the weights from g."""

from __future__ import annotations

import numpy as np

from gspn2_cupy._plan import (
    IMAGE,
    LINE,
    SCAN,
    TAPS,
    WARP,
    KernelSpec,
    LaunchPlan,
    Layout,
    definitions,
    largest_vector,
    power_of_two,
    scan_geometry,
    state_name,
    total_bytes,
)
from gspn2_cupy.reference import HORIZONTAL, REVERSED

GRADIENTS_GEOMETRY = np.dtype(
    [("scan", SCAN)]
    + [(name, IMAGE) for name in ("g", "x", "lam", "h", "before", "dx", "dlam")]
    + [("first", LINE), ("dweight", TAPS)]
    + [(name, "<i8") for name in ("blocks_across", "blocks_down", "groups", "run")]
)
SHORTEST_RUN, MOST_RUNS = 4, 16  # channels that a thread sums, and threads that share those of a group
MOST_THREADS = WARP * MOST_RUNS  # of a block
FILLED = 256  # threads that a block of few runs is filled up to
ROW_BYTES = 256  # of x on a row of a block, which goes down several: they are neighbours that share lines of h


def line_scan_gradients(
    direction: str,
    chunk: int | None,
    groups: int,
    g: Layout,
    x: Layout,
    lam: Layout | None,
    h: Layout | None,
    h0: Layout | None,
    before: Layout | None,
    dx: Layout | None,
    dlam: Layout | None,
    dweight: Layout | None,
) -> LaunchPlan:
    """Plan dx, dλ and dw from g; ``dx`` with ``before`` added may be in the state's type."""
    images = {"g": g, "dx": dx, "dlam": dlam, "dweight": dweight}
    read_for = {"x": (x, dlam), "lam": (lam, dx), "before": (before, dx), "h": (h, dweight)}
    images |= {name: image for name, (image, gradient) in read_for.items() if gradient is not None}
    geometry = scan_geometry(direction, chunk, x, groups, images | {"first": h0}, GRADIENTS_GEOMETRY)
    lines, width, along = (int(geometry["scan"][name]) for name in ("lines", "width", "along"))
    vector = largest_vector(*images.values())
    if vector > 1:  # in every array rows are runs of memory
        along = int(direction in HORIZONTAL)
    columns, rows = (lines // vector, width) if along else (width // vector, lines)
    channels = x.shape[1] // groups
    run, runs = runs_of(channels)
    across = min(WARP, ROW_BYTES // (vector * x.itemsize), power_of_two(columns))
    lanes = min(max(WARP, FILLED // power_of_two(runs)), max(WARP, across * power_of_two(rows)))
    down = lanes // across
    blocks_across, blocks_down = -(-columns // across), -(-rows // down)
    geometry["blocks_across"], geometry["blocks_down"] = blocks_across, blocks_down
    geometry["groups"], geometry["run"] = groups, run
    state = state_name(x.c_name)
    return LaunchPlan(
        spec=KernelSpec(
            "line_scan_gradients.cu",
            "line_scan_gradients",
            definitions(
                {
                    "SCALAR": x.c_name,
                    "WEIGHT": x.c_name if dweight is None else dweight.c_name,
                    "RESULT": x.c_name if h is None else h.c_name,
                    "SUM": x.c_name if dx is None else dx.c_name,
                    "STATE": state,
                    "MOST_THREADS": MOST_THREADS,
                    "VECTOR": vector,
                    "ALONG": along,
                    "REVERSED": int(along and vector > 1 and direction in REVERSED),
                }
            ),
        ),
        grid=(x.shape[0] * groups * blocks_down * blocks_across, 1, 1),
        block=(across, down, runs),
        shared_bytes=lanes * runs * 3 * vector * g.itemsize if dweight is not None and runs > 1 else 0,
        geometry=geometry,
        workspace=0,
        bytes_moved=total_bytes(*images.values(), h0 if dweight is not None else None),
        reason=f"{vector} pixels of a row and {run} channels to a thread, {runs} threads side by side for {channels}",
    )


def runs_of(channels: int) -> tuple[int, int]:
    """Cut the channels of a group into runs, by their number alone: channels of each but the last, and runs."""
    run = min(channels, max(SHORTEST_RUN, -(-channels // MOST_RUNS)))
    return run, -(-channels // run)
