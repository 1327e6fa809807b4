"""Plans for ``cuda/line_scan_tiles.cu``: how lanes, warps, blocks and tiles lie over a slice."""

from __future__ import annotations

import math
from dataclasses import dataclass

from gspn2_cupy._plan import DeviceLimits, KernelSpec, LaunchPlan, LineScan, definitions

REGISTERS = 65536  # of a multiprocessor


@dataclass(frozen=True)
class Tiles:
    """The specialisation of ``cuda/line_scan_tiles.cu``: how lanes, warps and tiles lie over a slice."""

    rows: int  # rows a lane carries
    sets: int  # channels in a block, which share their weights, a warp each
    warps: int  # warps over the rows of a block
    copiers: int  # warps that copy
    lines: int  # lines of a tile
    inner: int  # rows that a warp shares with each neighbour in its block; 0: it has none
    outer: int  # rows that a block shares with each neighbour; 0: a block holds whole slices
    stages: int  # tiles in the ring
    group: int  # lines a lane loads at once; across the scan only: along it, those of 16 bytes
    ahead: bool = True  # whether a lane loads the next group before it computes this one
    cluster: int = 1  # blocks of a cluster, which then holds a slice; 1: bands meet through global memory
    fetch: int = 256  # bytes asked into L2 around each copy

    @property
    def block_rows(self) -> int:
        """Rows of a block, halos included."""
        return 32 * self.rows * self.warps - 2 * self.inner * (self.warps - 1)

    @property
    def threads(self) -> int:
        """Threads of a block."""
        return 32 * (self.warps * self.sets + self.copiers)


def _consistent(tiles: Tiles, scan: LineScan, group: int) -> bool:
    """Tell whether lanes, groups, tiles and halos fit into each other: what the kernel's static_asserts ask for."""
    part = math.gcd(tiles.lines, tiles.inner, tiles.outer)  # lines scanned between two meetings
    slot_vectors = tiles.lines // min(scan.vectors)
    return (
        (tiles.inner == 0) == (tiles.warps == 1)
        and tiles.inner % tiles.rows == tiles.outer % tiles.rows == 0
        and (tiles.inner == 0 or tiles.outer % tiles.inner == 0)
        and part % group == 0
        and 2 * tiles.inner < 32 * tiles.rows
        and not (scan.along and (slot_vectors > 8 or 32 * tiles.copiers % (8 * slot_vectors)))
        and not (tiles.cluster > 1 and tiles.outer == 0)
        and tiles.threads <= 1024
        and tiles.stages >= 2
    )


def shared_bytes_of(tiles: Tiles, scan: LineScan) -> int:
    """Return the shared memory of a block: the ring, the rows that warps exchange, the words of a cluster."""
    x, weight = scan.x, scan.weight
    images = 1 if scan.lam is None else 2
    channel = images * x.itemsize
    if scan.merging and not scan.along:  # what h is merged with comes through the ring, too
        channel += 4 + (0 if scan.u is None else x.itemsize)
    stage = tiles.block_rows * tiles.lines * (3 * weight.itemsize + tiles.sets * channel)
    rows_twice = 2 * tiles.inner * (tiles.warps - 1) if scan.hidden_over else tiles.block_rows
    beside = 2 * tiles.sets * rows_twice * tiles.lines * scan.hidden_bytes if scan.along else 0
    edges = 2 * tiles.sets * tiles.block_rows * 4 if tiles.warps > 1 else 0
    words = 2 * 3 * tiles.sets * tiles.outer * 8 if tiles.cluster > 1 else 0
    return tiles.stages * stage + beside + edges + words


def _registers(tiles: Tiles, scan: LineScan, offset: int) -> int:
    """Return about how many registers a thread needs: for a group of lines, or for the vectors it copies."""
    x, weight = scan.x, scan.weight
    elements = tiles.rows * (max(scan.vectors) if scan.along else tiles.group)
    group = elements * (3 * weight.itemsize + (1 if scan.lam is None else 2) * x.itemsize) // 4
    vectors = tiles.block_rows * tiles.lines // 16 / (32 * tiles.copiers)
    copied = math.ceil(vectors * weight.itemsize) * 2 + math.ceil(vectors * x.itemsize) * 4
    beside = 8 if scan.along and scan.hidden_bytes > x.itemsize else 0  # where h lies in shared memory
    if scan.merging and scan.along:  # what h is merged with, on its way
        copied += math.ceil(vectors * 4) * (tiles.sets * (4 + (0 if scan.u is None else x.itemsize)) + 4)
    if scan.along and weight.itemsize < x.itemsize:
        group += 2 * elements  # a lane reads twice as many lines as x has in a vector, and makes their results
    converted = 8 if tiles.ahead and x.c_name == "__half" else 0  # which takes more than bfloat16's shift
    pieces = 40 if scan.piece < 16 else 0
    kept, fewest = 0, 0  # of the results; those of fewer lines fit into what everything else takes
    if not scan.along and tiles.group > 4:
        kept, fewest = (elements * itemsize // 4 for itemsize in (scan.hidden_bytes, x.itemsize))

    def needed(results: int) -> int:
        scanned = (group + results) * (2 if tiles.ahead else 1) + converted
        return min(max(scanned, copied) + beside + pieces + 48 + 4 * offset, 255)

    return needed(kept if needed(kept) * tiles.threads <= REGISTERS else fewest)


def tiles_plan(limits: DeviceLimits, tiles: Tiles, scan: LineScan, reason: str = "") -> LaunchPlan | None:
    """Plan the tile kernel in a given shape; None if it does not fit the device, or into itself."""
    along, width = scan.along, scan.width
    units = scan.slices // tiles.sets
    offset = 4 if scan.short_offsets else 8
    group = max(scan.vectors) if along else tiles.group
    piece = scan.piece
    if piece == 0 or (scan.merging and piece < 16) or not _consistent(tiles, scan, group):
        return None
    shared = shared_bytes_of(tiles, scan)
    registers = _registers(tiles, scan, offset)
    if shared > limits.shared_bytes_per_block:
        return None
    resident = min(
        limits.shared_bytes_per_multiprocessor // (shared + 1024),
        REGISTERS // (registers * tiles.threads),
        limits.max_threads_per_multiprocessor // tiles.threads,
        16,
    )
    if resident == 0:
        return None
    most = resident * limits.multiprocessors
    count, owned = 1, tiles.block_rows - 2 * tiles.outer
    if owned <= 0:
        return None
    if tiles.outer:
        count = -(-width // owned) if tiles.cluster == 1 else tiles.cluster
        step = math.lcm(tiles.rows, 1 if along else max(scan.vectors))
        band_rows = math.ceil(width / count / step) * step
        if band_rows > owned or band_rows < tiles.outer:
            return None
        bands = (count, band_rows, 1)
        # a cluster's blocks run together whatever the grid; other bands must all be resident
        grid = count * (units if tiles.cluster > 1 else min(units, most // count))
    elif tiles.warps > 1:
        if width > owned:
            return None
        bands = (1, width, 1)
        grid = min(units, most)
    else:
        per_block = owned // width
        if width % tiles.rows or (not along and piece < 16):
            per_block = min(per_block, 1)  # or the rows of a lane, or of a vector, would be of two slices
        if per_block == 0:
            return None
        bands = (1, width, per_block)
        grid = min(-(-units // per_block), most)
    if grid == 0:
        return None
    defines = {
        "STATE": "float",
        "ADJOINT": int(scan.adjoint),
        "MERGING": int(scan.merging),
        "HAS_U": int(scan.u is not None),
        "OFFSET": "int" if offset == 4 else "long long",
        "ALONG": int(along),
        "REVERSED": int(scan.direction == "right_to_left"),
        "HAS_LAM": int(scan.lam is not None),
        "ROWS": tiles.rows,
        "SETS": tiles.sets,
        "WARPS": tiles.warps,
        "COPIERS": tiles.copiers,
        "LINES": tiles.lines,
        "INNER": tiles.inner,
        "OUTER": tiles.outer,
        "STAGES": tiles.stages,
        "GROUP": group,
        "AHEAD": int(tiles.ahead),
        "BLOCKS": resident,
        "CLUSTER": tiles.cluster,
        "FETCH": tiles.fetch,
        "PIECE": piece,
        "RAGGED": int(width % tiles.rows != 0),
    }
    together = count > 1 and tiles.cluster == 1
    geometry = scan.geometry()
    geometry["bands"] = bands
    return LaunchPlan(
        spec=KernelSpec("line_scan_tiles.cu", "line_scan_tiles", scan.types + definitions(defines)),
        grid=(grid, 1, 1),
        block=(tiles.threads, 1, 1),
        shared_bytes=shared,
        geometry=geometry,
        workspace=grid * 6 * tiles.sets * tiles.outer if together else 0,
        bytes_moved=scan.bytes,
        reason=reason,
        cooperative=together,
    )
