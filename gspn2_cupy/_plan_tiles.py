"""Plans for ``cuda/line_scan_tiles.cu``: how lanes, warps, blocks and tiles lie over a slice."""

from __future__ import annotations

import math
from dataclasses import dataclass

from gspn2_cupy._plan import DeviceLimits, KernelSpec, LaunchPlan, Layout, scan_geometry, span, total_bytes
from gspn2_cupy.reference import HORIZONTAL

@dataclass(frozen=True)
class Tiles:
    """The specialisation of ``cuda/line_scan_tiles.cu``: how lanes, warps and tiles lie over a slice."""

    rows: int  # rows a lane carries
    channels: int  # channels a lane carries, which share their weights
    sets: int  # such sets of channels in a block, a warp each
    warps: int  # warps over the rows of a block
    copiers: int  # warps that copy
    lines: int  # lines of a tile
    halo: int  # rows that a warp shares with each neighbour; 0: a warp holds whole slices
    stages: int  # tiles in the ring
    group: int  # lines a lane loads at once, across the scan
    cluster: int = 1  # blocks of a cluster, which then holds a slice; 1: bands meet through global memory


def tiles_plan(
    limits: DeviceLimits,
    tiles: Tiles,
    direction: str,
    chunk: int | None,
    x: Layout,
    weight: Layout,
    lam: Layout | None,
    h0: Layout | None,
    h: Layout,
    h_last: Layout | None,
    reason: str = "",
) -> LaunchPlan | None:
    """Plan the tile kernel in a given shape; None if it does not fit the device."""
    arrays = {"x": x, "weight": weight, "lam": lam, "first": h0, "h": h, "last": h_last}
    geometry = scan_geometry(direction, chunk, x, weight.shape[1], arrays)
    vector = 16 // x.itemsize
    along = direction in HORIZONTAL
    width = int(geometry["scan"]["width"])
    block_channels = tiles.channels * tiles.sets
    units = x.shape[0] * x.shape[1] // block_channels
    warp_rows = 32 * tiles.rows
    block_rows = (tiles.warps - 1) * (warp_rows - 2 * tiles.halo) + warp_rows
    slots = block_rows if along else block_rows // vector
    array_vectors = block_rows * tiles.lines // vector
    arrays_staged = 3 + block_channels * (1 if lam is None else 2)
    offset = 4 if all(a is None or span(a) < 2**31 for a in (x, weight, lam, h)) else 8
    shared = tiles.stages * arrays_staged * array_vectors * 16 + slots * 4 * offset
    if along and tiles.warps > 1:
        shared += 2 * block_channels * array_vectors * 16
    threads = 32 * (tiles.warps * tiles.sets + tiles.copiers)
    if tiles.halo and tiles.warps > 1:
        shared += 2 * block_channels * block_rows * 4
    if tiles.cluster > 1:
        shared += 2 * 3 * block_channels * tiles.halo * 8
    lane_vectors = tiles.rows if along else tiles.rows // vector * tiles.group
    registers = min(8 * lane_vectors * (3 + tiles.channels * (1 if lam is None else 2)) + 64, 255)
    if shared > limits.shared_bytes_per_block:
        return None
    blocks = min(limits.shared_bytes_per_multiprocessor // (shared + 1024), 65536 // (registers * threads), 16)
    blocks = max(blocks, 1)
    if tiles.halo:
        count = -(-width // (block_rows - 2 * tiles.halo)) if tiles.cluster == 1 else tiles.cluster
        if -(-width // count) > block_rows - 2 * tiles.halo:
            return None
        step = math.lcm(tiles.rows, 1 if along else vector)
        band_rows = -(-(-(-width // count)) // step) * step
        concurrent = units if count == 1 or tiles.cluster > 1 else min(units, blocks * limits.multiprocessors // count)
        geometry["bands"] = (count, band_rows, 1)
        grid = concurrent * count
        if grid == 0 or band_rows < tiles.halo:
            return None
    else:
        per_block = warp_rows // width
        geometry["bands"] = (1, width, per_block)
        count, grid = 1, -(-units // per_block)
    defines = {
        "SCALAR": x.c_name,
        "STATE": "float",
        "OFFSET": "int" if offset == 4 else "long long",
        "ALONG": int(along),
        "REVERSED": int(direction == "right_to_left"),
        "HAS_LAM": int(lam is not None),
        "ROWS": tiles.rows,
        "CHANNELS": tiles.channels,
        "SETS": tiles.sets,
        "WARPS": tiles.warps,
        "COPIERS": tiles.copiers,
        "LINES": tiles.lines,
        "HALO": tiles.halo,
        "STAGES": tiles.stages,
        "GROUP": vector if along else tiles.group,
        "BLOCKS": blocks,
        "CLUSTER": tiles.cluster,
    }
    return LaunchPlan(
        spec=KernelSpec(
            "line_scan_tiles.cu", "line_scan_tiles", tuple((name, str(value)) for name, value in defines.items())
        ),
        grid=(grid, 1, 1),
        block=(threads, 1, 1),
        shared_bytes=shared,
        geometry=geometry,
        workspace=grid * 6 * block_channels * tiles.halo if count > 1 and tiles.cluster == 1 else 0,
        bytes_moved=total_bytes(x, weight, lam, h0, h, h_last),
        reason=reason,
        cooperative=count > 1 and tiles.cluster == 1,
    )
