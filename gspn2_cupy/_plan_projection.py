"""Plans for the projections of the compact unit, 1×1 convolutions, and for their gradients."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from gspn2_cupy._plan import (
    IMAGE,
    PIXEL_THREADS,
    SCAN,
    KernelSpec,
    LaunchPlan,
    Layout,
    scan_geometry,
    state_name,
    total_bytes,
)

MATRIX = np.dtype([("output", "<i8"), ("input", "<i8")])
PROJECTION_GEOMETRY = np.dtype(
    [("scan", SCAN)]
    + [(name, IMAGE) for name in ("x", "before", "sum")]
    + [("weight", MATRIX)]
    + [(name, "<i8") for name in ("bias", "inputs", "outputs")]
)
PROJECTION_GRADIENT_GEOMETRY = np.dtype(
    [("scan", SCAN)]
    + [(name, IMAGE) for name in ("g", "x")]
    + [(name, "<i8") for name in ("inputs", "outputs", "shares")]
)
OUTPUTS = 8  # output channels of a thread: as many sums in registers
INPUTS = 64  # input channels whose weights are in shared memory at a time
TILE = 16  # outputs and inputs of a block of the gradient
STEP = 64  # pixels whose products are summed in the state's type
GRADIENT_BLOCKS = 1024  # enough to fill any GPU; sums of small matrices are shared by as many


def _geometry(image: Layout, arrays: dict[str, Layout | None], struct: np.dtype[Any], inputs: int, outputs: int) -> Any:
    """Fill a struct for the pixels of one channel of an image."""
    geometry = scan_geometry("top_to_bottom", None, image, 1, arrays, struct)
    geometry["scan"]["channels"] = geometry["scan"]["channels_per_group"] = 1
    geometry["inputs"], geometry["outputs"] = inputs, outputs
    return geometry


def projection(x: Layout, weight: Layout, bias: Layout | None, before: Layout | None, total: Layout) -> LaunchPlan:
    """Plan total = before + bias + weight·x; ``x``, ``before`` and ``total`` may be in the state's type."""
    outputs, inputs = weight.shape
    geometry = _geometry(total, {"x": x, "before": before, "sum": total}, PROJECTION_GEOMETRY, inputs, outputs)
    geometry["weight"] = weight.strides
    geometry["bias"] = 0 if bias is None else bias.strides[0]
    state = state_name(weight.c_name)
    pixels = x.shape[0] * math.prod(x.shape[2:])
    blocks, tiles = -(-pixels // PIXEL_THREADS), -(-outputs // OUTPUTS)
    types = {
        "SCALAR": weight.c_name,
        "INPUT": x.c_name,
        "BEFORE": total.c_name if before is None else before.c_name,
        "SUM": total.c_name,
        "STATE": state,
        "OUTPUTS": str(OUTPUTS),
        "INPUTS": str(INPUTS),
        "THREADS": str(PIXEL_THREADS),
    }
    return LaunchPlan(
        spec=KernelSpec("projection.cu", "projection", tuple(types.items())),
        grid=(blocks * tiles, 1, 1),
        block=(PIXEL_THREADS, 1, 1),
        shared_bytes=INPUTS * OUTPUTS * (8 if state == "double" else 4),
        geometry=geometry,
        workspace=0,
        bytes_moved=total_bytes(x, weight, bias, before, total),
        reason=f"a thread per pixel and {OUTPUTS} of {outputs} outputs",
    )


def projection_gradient(g: Layout, x: Layout) -> tuple[LaunchPlan, LaunchPlan]:
    """Plan the gradients of weight (O, I) and bias (O,): the blocks' sums, and the sum of these."""
    outputs, inputs = g.shape[1], x.shape[1]
    pixels = x.shape[0] * math.prod(x.shape[2:])
    entries = outputs * (inputs + 1)
    tiles = -(-outputs // TILE) * -(-(inputs + 1) // TILE)
    shares = max(1, min(-(-pixels // STEP), GRADIENT_BLOCKS // tiles))
    geometry = _geometry(x, {"g": g, "x": x}, PROJECTION_GRADIENT_GEOMETRY, inputs, outputs)
    geometry["scan"]["along"] = 0  # in image order whatever the strides, so that they do not show in the sum
    geometry["shares"] = shares
    state = state_name(x.c_name)
    types = (("SCALAR", x.c_name), ("STATE", state), ("TILE", str(TILE)), ("STEP", str(STEP)))
    partials, written = 8 * shares * entries, entries * x.itemsize

    def plan(entry: str, blocks: int, shared_bytes: int, workspace: int, bytes_moved: int) -> LaunchPlan:
        return LaunchPlan(
            spec=KernelSpec("projection_gradient.cu", entry, (*types, ("THREADS", str(TILE * TILE)))),
            grid=(blocks, 1, 1),
            block=(TILE * TILE, 1, 1),
            shared_bytes=shared_bytes,
            geometry=geometry,
            workspace=workspace,
            bytes_moved=bytes_moved,
            reason=f"{tiles} tiles of {TILE} x {TILE}, {shares} shares of the pixels, summed in order",
        )

    tile_bytes = 2 * TILE * (STEP + 1) * (8 if state == "double" else 4)
    return (
        plan(
            "projection_gradient_partials", tiles * shares, tile_bytes, shares * entries, total_bytes(g, x) + partials
        ),
        plan("projection_gradient", -(-entries // (TILE * TILE)), 0, 0, partials + written),
    )
