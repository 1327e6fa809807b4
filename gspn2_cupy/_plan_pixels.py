"""Plans for the kernels that look at every pixel for itself: weights from logits, and the merge of the directions."""

from __future__ import annotations

import math

import numpy as np

from gspn2_cupy._plan import (
    IMAGE,
    PIXEL_THREADS,
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
from gspn2_cupy.reference import HORIZONTAL

NORMALIZE_GEOMETRY = np.dtype(
    [("scan", SCAN)]
    + [(name, TAPS) for name in ("logits", "weight", "dweight", "dlogits")]
    + [(name, "<i8") for name in ("blocks_across", "blocks_down")]
)
MERGE_GEOMETRY = np.dtype(
    [("scan", SCAN)] + [(name, IMAGE) for name in ("h", "u", "before", "sum", "states", "dy")] + [("partials", "<i8")]
)
METHODS = {"sigmoid": "Sigmoid", "softmax": "Softmax"}  # their names in cuda/stable_weights.cuh
MOST_IMAGES = 65535  # blocks in a grid's second dimension
MOST_IMAGES_OF_A_BLOCK = 64  # threads in a block's third dimension
MOST_PARTIALS = 1024  # blocks of a sum: enough to fill any GPU, few enough to sum in one block


def _blocks(pixels: int) -> int:
    return -(-pixels // PIXEL_THREADS)


def _names(state: str, **types: str) -> tuple[tuple[str, str], ...]:
    return (*types.items(), ("STATE", state), ("THREADS", str(PIXEL_THREADS)))


# --- stable weights ---------------------------------------------------------------------------------------------------


def normalize(direction: str, method: str, logits: Layout, weight: Layout) -> LaunchPlan:
    """Plan the weights (B, G, 3, H, W) of logits; ``weight`` may be in the state's type."""
    return _normalize("normalize", direction, method, weight.c_name, {"logits": logits, "weight": weight})


def normalize_backward(direction: str, method: str, dweight: Layout, logits: Layout, dlogits: Layout) -> LaunchPlan:
    """Plan the gradient of logits (B, G, 3, H, W); ``dweight`` may be in the state's type."""
    arrays = {"dweight": dweight, "logits": logits, "dlogits": dlogits}
    return _normalize("normalize_backward", direction, method, dweight.c_name, arrays)


def _normalize(entry: str, direction: str, method: str, weight: str, arrays: dict[str, Layout]) -> LaunchPlan:
    logits = arrays["logits"]
    forwards = "left_to_right" if direction in HORIZONTAL else "top_to_bottom"  # backwards neighbours are the same
    geometry = scan_geometry(forwards, None, logits, logits.shape[1], arrays, NORMALIZE_GEOMETRY)
    scan, vector = geometry["scan"], largest_vector(*arrays.values())
    if vector > 1:  # in every array rows are runs of memory
        scan["along"] = direction in HORIZONTAL
    rows, columns = (int(scan[name]) for name in (("width", "lines") if scan["along"] else ("lines", "width")))
    images, vectors = math.prod(logits.shape[:2]), columns // vector
    across = min(WARP, power_of_two(vectors))
    down = min(PIXEL_THREADS // across, power_of_two(rows))
    deep = min(PIXEL_THREADS // (across * down), MOST_IMAGES_OF_A_BLOCK)
    geometry["blocks_across"], geometry["blocks_down"] = -(-vectors // across), -(-rows // down)
    types = {"METHOD": METHODS[method], "SCALAR": logits.c_name, "WEIGHT": weight, "STATE": state_name(logits.c_name)}
    return LaunchPlan(
        spec=KernelSpec(f"{entry}.cu", entry, definitions(types | {"MOST_THREADS": PIXEL_THREADS, "VECTOR": vector})),
        grid=(-(-images // deep) * int(geometry["blocks_down"] * geometry["blocks_across"]), 1, 1),
        block=(across, down, deep),
        shared_bytes=0,
        geometry=geometry,
        workspace=0,
        bytes_moved=total_bytes(*arrays.values()),
        reason=f"{vector} pixels of a row to a thread",
    )


# --- merge ------------------------------------------------------------------------------------------------------------


def merge(
    scalar: str,
    h: Layout,
    u: Layout | None,
    before: Layout | None,
    total: Layout,
    states: Layout | None,
) -> LaunchPlan:
    """Plan total = before + m·(u ⊙ h); ``h`` and ``total`` are of type ``scalar`` or of its state's."""
    arrays = {"h": h, "u": u, "before": before, "sum": total, "states": states}
    images = [layout for layout in arrays.values() if layout is not None]
    batch, run = h.shape[0], math.prod(h.shape[1:])
    pack = 16 // min(layout.itemsize for layout in images)
    packed = batch <= MOST_IMAGES and run % pack == 0 and all(_in_packs(layout, pack) for layout in images)
    types = {"SCALAR": scalar, "HIDDEN": h.c_name, "SUM": total.c_name, "HAS_U": int(u is not None)}
    types |= {"STATE": state_name(scalar), "THREADS": PIXEL_THREADS, "PACK": pack if packed else 1}
    return LaunchPlan(
        spec=KernelSpec("merge.cu", "merge", definitions(types)),
        grid=(_blocks(run // pack), batch, 1) if packed else (_blocks(batch * run), 1, 1),
        block=(PIXEL_THREADS, 1, 1),
        shared_bytes=0,
        geometry=scan_geometry("top_to_bottom", None, h, h.shape[1], arrays, MERGE_GEOMETRY),
        workspace=0,
        bytes_moved=total_bytes(h, u, before, total, states),
        reason=f"a thread to {pack} pixels of an image's run" if packed else "a thread per pixel of a channel",
    )


def _in_packs(layout: Layout, pack: int) -> bool:
    """Tell whether every image of the batch is a run of whole, aligned packs."""
    return layout.in_runs and layout.alignment == 16 and (layout.shape[0] == 1 or layout.strides[0] % pack == 0)


def merge_gradient(dy: Layout, u: Layout | None, h: Layout) -> tuple[LaunchPlan, LaunchPlan]:
    """Plan dm = Σ dy ⊙ u ⊙ h: the blocks' sums, and the sum of these."""
    geometry = scan_geometry("top_to_bottom", None, h, h.shape[1], {"dy": dy, "u": u, "h": h}, MERGE_GEOMETRY)
    geometry["scan"]["along"] = 0  # in image order whatever the strides, so that they do not show in the sum
    geometry["partials"] = partials = min(_blocks(math.prod(h.shape)), MOST_PARTIALS)
    types = _names(state_name(dy.c_name), SCALAR=dy.c_name, HIDDEN=h.c_name)

    def plan(entry: str, blocks: int, workspace: int, bytes_moved: int) -> LaunchPlan:
        return LaunchPlan(
            spec=KernelSpec("merge_gradient.cu", entry, types),
            grid=(blocks, 1, 1),
            block=(PIXEL_THREADS, 1, 1),
            shared_bytes=8 * PIXEL_THREADS,
            geometry=geometry,
            workspace=workspace,
            bytes_moved=bytes_moved,
            reason=f"{partials} blocks, summed in order",
        )

    return (
        plan("merge_gradient_partials", partials, partials, total_bytes(dy, u, h) + 8 * partials),
        plan("merge_gradient", 1, 0, 8 * partials + dy.itemsize),
    )
