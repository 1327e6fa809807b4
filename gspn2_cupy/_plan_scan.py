"""Which kernel runs a line scan, forward or adjoint: the first shape of the first kernel that takes it and fits.

Small slices lie in shared memory as a whole (``_shapes_slices``, ``_plan_slices``); larger ones go through a ring of
tiles (``_shapes_tiles``, ``_plan_tiles``), fastest where rows are whole vectors of 16 bytes. The plain kernel takes
float64, images whose pixels are apart or that run backwards in memory, and older GPUs.
"""

from __future__ import annotations

from gspn2_cupy import _plan, _shapes_slices, _shapes_tiles
from gspn2_cupy._plan import DeviceLimits, LaunchPlan, LineScan
from gspn2_cupy._plan_slices import slices_plan
from gspn2_cupy._plan_tiles import tiles_plan

ASYNCHRONOUS_COPIES = (8, 0)  # compute capability


def line_scan(limits: DeviceLimits, scan: LineScan) -> LaunchPlan:
    """Plan a scan on a device."""
    return _tuned(limits, scan) or _plan.plain_line_scan(scan)


def merging_line_scan(limits: DeviceLimits, scan: LineScan) -> LaunchPlan | None:
    """Plan a scan that merges its h into a sum; None if that takes a scan and a merge."""
    same_steps = scan.before is None or scan.before.strides == scan.h.strides
    return _tuned(limits, scan) if same_steps else None


def _tuned(limits: DeviceLimits, scan: LineScan) -> LaunchPlan | None:
    """Plan one of the tuned kernels; None if the scan is not for them."""
    if limits.compute_capability < ASYNCHRONOUS_COPIES:
        return None
    piece = scan.piece
    tiled = scan.x.itemsize < 8 and scan.slices < 2**30 and piece > 0
    if scan.width <= _shapes_slices.widest(scan) or not tiled or piece < 16:
        # warps; with fewer, tiles of whole vectors hide the waits better
        enough = 5 if tiled and piece == 16 else 1
        for slices in _shapes_slices.shapes(limits, scan, enough):
            reason = f"a warp holds {slices.units} slices of {scan.width} rows in shared memory"
            plan = slices_plan(limits, slices, scan, reason)
            if plan is not None:
                return plan
    if tiled and (piece == 16 or not scan.merging):
        for tiles in _shapes_tiles.shapes(limits, scan):
            plan = tiles_plan(limits, tiles, scan, _shapes_tiles.reason(tiles, scan.width))
            if plan is not None:
                return plan
    return None
