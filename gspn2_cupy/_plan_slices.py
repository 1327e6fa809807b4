"""Plans for ``cuda/line_scan_slices.cu``: small images, whose slices lie in shared memory as a whole."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from gspn2_cupy._plan import DeviceLimits, KernelSpec, LaunchPlan, Layout, LineScan, definitions, state_name
from gspn2_cupy.reference import REVERSED

BESIDE_SHARED = 1024  # bytes of shared memory that each block costs a multiprocessor besides its own


@dataclass(frozen=True)
class Slices:
    """The specialisation of ``cuda/line_scan_slices.cu``: how slices are dealt out."""

    rows: int  # rows a lane carries
    channels: int  # channels a lane carries, which share their weights
    warps: int  # of a block
    side_by_side: int  # lanes' slices in a warp, times `channels` of them
    rounds: int = 1  # of a warp; with several it brings the slices of the next one while it scans

    @property
    def units(self) -> int:
        """Slices of a warp in a round."""
        return self.channels * self.side_by_side

    @property
    def stages(self) -> int:
        """Rounds whose slices are in shared memory at once."""
        return min(self.rounds, 2)


def slices_plan(limits: DeviceLimits, slices: Slices, scan: LineScan, reason: str = "") -> LaunchPlan | None:
    """Plan the kernel for small images in a given shape; None if it does not fit the device or the arrays."""
    x, weight = scan.x, scan.weight
    if limits.compute_capability < (8, 0) or not all(layout.in_runs for layout in (*scan.images, weight)):
        return None
    batch, channels, height, image_width = x.shape
    groups, area = scan.groups, height * image_width
    along, width = scan.along, scan.width
    rows = slices.rows
    shared = groups < channels
    if slices.side_by_side * -(-width // rows) > 32 or (slices.channels > 1 and not shared):
        return None
    family = channels // groups if shared else channels
    blocks = -(-family // (slices.rounds * slices.warps * slices.units))
    shared_bytes = bytes_of_block(slices, scan)
    if shared_bytes > limits.shared_bytes_per_block:
        return None
    geometry = scan.geometry()
    geometry["bands"] = (blocks, width, slices.units)
    most = 16 // x.itemsize  # lines that a lane reads at once: of a row, as many as divide it
    group = math.gcd(image_width, most) if along else 1
    turn = turn_of(image_width // most * rows) if group == most else 0
    first_family = family * area if shared and groups > 1 else 0

    def copied_by(layouts: Sequence[Layout], run: int) -> int:
        """Return by how many bytes runs can be copied that start at multiples of so many elements."""
        starts = [math.gcd(a.alignment, a.itemsize * math.gcd(run, a.strides[0] if batch > 1 else 0)) for a in layouts]
        return math.gcd(16, *starts)

    next_warp = slices.units * area if family > slices.units else 0  # 0: nothing starts there but the family
    image_run = math.gcd(next_warp, first_family)
    taps_run = (3 * area if groups > 1 else 0) if shared else 3 * next_warp
    defines = {
        "STATE": state_name(x.c_name),
        "ADJOINT": int(scan.adjoint),
        "MERGING": int(scan.merging),
        "HAS_U": int(scan.u is not None),
        "ALONG": int(along),
        "REVERSED": int(scan.direction in REVERSED),
        "HAS_LAM": int(scan.lam is not None),
        "ROWS": rows,
        "RAGGED": int(width % rows != 0),
        "CHANNELS": slices.channels,
        "SHARED": int(shared),
        "GROUP": group,
        "STAGES": slices.stages,
    }
    geometry["runs"] = (copied_by(scan.images, image_run), copied_by([weight], taps_run), turn, slices.rounds)
    return LaunchPlan(
        spec=KernelSpec("line_scan_slices.cu", "line_scan_slices", scan.types + definitions(defines)),
        grid=(batch * (groups if shared else 1) * blocks, 1, 1),
        block=(32 * slices.warps, 1, 1),
        shared_bytes=shared_bytes,
        geometry=geometry,
        workspace=0,
        bytes_moved=scan.bytes,
        reason=reason,
    )


def turn_of(step: int) -> int:
    """Return 2³² over the vectors between one layout and the next, rounded up, where lanes are ``step`` apart.

    Eight lanes come to the banks of eight neighbouring vectors once in ``lcm(step, 8)`` vectors, and again after them.
    """
    return -(-(1 << 32) // math.lcm(step, 8))


def bytes_of_block(slices: Slices, scan: LineScan) -> int:
    """Return the shared memory of a block."""
    area, shared = scan.x.shape[2] * scan.x.shape[3], scan.groups < scan.x.shape[1]

    def region(elements: int, itemsize: int) -> int:
        return -(-elements * itemsize // 128) * 128

    taps = region(3 * area * (1 if shared else slices.units), scan.weight.itemsize)
    images = [scan.x.itemsize] * (1 if scan.lam is None else 2)
    if scan.hidden_bytes != scan.x.itemsize:  # else it lies over x
        images.append(scan.hidden_bytes)
    warp = sum(region(slices.units * area, itemsize) for itemsize in images)
    copies = slices.warps * slices.stages
    return taps + copies * warp if shared else copies * (taps + warp)
