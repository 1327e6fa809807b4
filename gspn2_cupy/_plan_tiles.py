"""Plans for ``cuda/line_scan_tiles.cu``: how lanes, warps, blocks and tiles lie over a slice."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache

from gspn2_cupy._plan import DeviceLimits, KernelSpec, LaunchPlan, Layout, scan_geometry, span, total_bytes
from gspn2_cupy.reference import HORIZONTAL


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
    group: int  # lines a lane loads at once; across the scan only: along it, those of 16 bytes of x
    ahead: bool = True  # whether a lane loads the next group before it computes this one
    cluster: int = 1  # blocks of a cluster, which then holds a slice; 1: bands meet through global memory

    @property
    def block_rows(self) -> int:
        """Rows of a block, halos included."""
        return 32 * self.rows * self.warps - 2 * self.inner * (self.warps - 1)

    @property
    def threads(self) -> int:
        """Threads of a block."""
        return 32 * (self.warps * self.sets + self.copiers)


def shared_bytes_of(tiles: Tiles, along: bool, x: Layout, weight: Layout, lam: Layout | None, h: Layout) -> int:
    """Return the shared memory of a block: the ring, the rows that warps exchange, the words of a cluster."""
    images = 1 if lam is None else 2
    stage = tiles.block_rows * tiles.lines * (3 * weight.itemsize + tiles.sets * images * x.itemsize)
    rows_twice = 2 * tiles.inner * (tiles.warps - 1) if h.itemsize == x.itemsize else tiles.block_rows
    beside = 2 * tiles.sets * rows_twice * tiles.lines * h.itemsize if along else 0
    edges = 2 * tiles.sets * tiles.block_rows * 4 if tiles.warps > 1 else 0
    words = 2 * 3 * tiles.sets * tiles.outer * 8 if tiles.cluster > 1 else 0
    return tiles.stages * stage + beside + edges + words


def _registers(tiles: Tiles, along: bool, x: Layout, weight: Layout, lam: Layout | None) -> int:
    """Return about how many registers a thread needs: for a group of lines, or for the vectors it copies."""
    elements = tiles.rows * (16 // x.itemsize if along else tiles.group)
    group = elements * (3 * weight.itemsize + (1 if lam is None else 2) * x.itemsize) // 4
    vectors = tiles.block_rows * tiles.lines // 16 / (32 * tiles.copiers)
    copied = math.ceil(vectors * weight.itemsize) * 2 + math.ceil(vectors * x.itemsize) * 4
    return min(max(group * (2 if tiles.ahead else 1), copied) + 64, 255)


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
    along = direction in HORIZONTAL
    width = int(geometry["scan"]["width"])
    units = x.shape[0] * x.shape[1] // tiles.sets
    offset = 4 if all(a is None or span(a) < 2**31 for a in (x, weight, lam, h)) else 8
    shared = shared_bytes_of(tiles, along, x, weight, lam, h)
    registers = _registers(tiles, along, x, weight, lam)
    if shared > limits.shared_bytes_per_block:
        return None
    resident = min(
        limits.shared_bytes_per_multiprocessor // (shared + 1024),
        65536 // (registers * tiles.threads),
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
        step = math.lcm(tiles.rows, 1 if along else 16 // min(x.itemsize, weight.itemsize, h.itemsize))
        band_rows = math.ceil(width / count / step) * step
        if band_rows > owned or band_rows < tiles.outer:
            return None
        geometry["bands"] = (count, band_rows, 1)
        # a cluster's blocks run together whatever the grid; other bands must all be resident
        grid = count * (units if tiles.cluster > 1 else min(units, most // count))
    elif tiles.warps > 1:
        if width > owned:
            return None
        geometry["bands"] = (1, width, 1)
        grid = min(units, most)
    else:
        per_block = owned // width
        if per_block == 0:
            return None
        geometry["bands"] = (1, width, per_block)
        grid = min(-(-units // per_block), most)
    if grid == 0:
        return None
    defines = {
        "SCALAR": x.c_name,
        "WEIGHT": weight.c_name,
        "RESULT": h.c_name,
        "STATE": "float",
        "OFFSET": "int" if offset == 4 else "long long",
        "ALONG": int(along),
        "REVERSED": int(direction == "right_to_left"),
        "HAS_LAM": int(lam is not None),
        "ROWS": tiles.rows,
        "SETS": tiles.sets,
        "WARPS": tiles.warps,
        "COPIERS": tiles.copiers,
        "LINES": tiles.lines,
        "INNER": tiles.inner,
        "OUTER": tiles.outer,
        "STAGES": tiles.stages,
        "GROUP": 16 // x.itemsize if along else tiles.group,
        "AHEAD": int(tiles.ahead),
        "BLOCKS": resident,
        "CLUSTER": tiles.cluster,
    }
    together = count > 1 and tiles.cluster == 1
    return LaunchPlan(
        spec=KernelSpec(
            "line_scan_tiles.cu", "line_scan_tiles", tuple((name, str(value)) for name, value in defines.items())
        ),
        grid=(grid, 1, 1),
        block=(tiles.threads, 1, 1),
        shared_bytes=shared,
        geometry=geometry,
        workspace=grid * 6 * tiles.sets * tiles.outer if together else 0,
        bytes_moved=total_bytes(x, weight, lam, h0, h, h_last),
        reason=reason,
        cooperative=together,
    )


# --- the choice -------------------------------------------------------------------------------------------------------


@lru_cache(maxsize=1024)
def line_scan_forward(
    limits: DeviceLimits,
    direction: str,
    chunk: int | None,
    x: Layout,
    weight: Layout,
    lam: Layout | None,
    h0: Layout | None,
    h: Layout,
    h_last: Layout | None,
) -> LaunchPlan | None:
    """Plan a forward scan by the tile kernel; None where only the plain kernel will do."""
    images = [layout for layout in (x, weight, lam, h) if layout is not None]
    slices = x.shape[0] * x.shape[1]
    if (
        limits.compute_capability < (8, 0)
        or x.itemsize == 8
        or slices >= 2**30
        or not all(_in_vectors(a) for a in images)
        or not x.c_name == weight.c_name == h.c_name
    ):
        return None
    _, channels, height, width = x.shape
    along = direction in HORIZONTAL
    across = height if along else width
    for tiles in _shapes(limits, along, across, x.itemsize, slices, channels // weight.shape[1]):
        plan = tiles_plan(limits, tiles, direction, chunk, x, weight, lam, h0, h, h_last, _reason(tiles, across))
        if plan is not None:
            return plan
    return None


def _in_vectors(layout: Layout) -> bool:
    """Tell whether every row of an image lies in whole, aligned vectors of 16 bytes."""
    vector = 16 // layout.itemsize
    steps = [stride for size, stride in zip(layout.shape[:-1], layout.strides[:-1], strict=True) if size > 1]
    return (
        layout.alignment == 16
        and layout.strides[-1] == 1
        and layout.shape[-1] % vector == 0
        and all(step % vector == 0 for step in steps)
    )


def _shapes(
    limits: DeviceLimits, along: bool, across: int, itemsize: int, slices: int, per_group: int
) -> Iterator[Tiles]:
    """Yield shapes for slices of ``across`` rows, best first, as measured on an H200 (docs/optimization_log.md)."""
    vector = 16 // itemsize
    # Warps that share staged weights pay where weights are many of the bytes read from L2: in the 16-bit types.
    sets = 1 if itemsize == 4 else next(sets for sets in (4, 2, 1) if per_group % sets == 0)
    shapes = _whole_slices(limits, along, across, vector, slices, sets) or _bands(
        limits, along, across, vector, slices, sets
    )
    for tiles in shapes:
        yield from _smaller(tiles)


def _smaller(tiles: Tiles) -> Iterator[Tiles]:
    """Yield a shape with ever shorter rings and fewer channels, for devices with less shared memory."""
    sets = tiles.sets
    while sets:
        for stages in range(tiles.stages, 1, -1):
            yield replace(tiles, stages=stages, sets=sets)
        sets //= 2


def _whole_slices(limits: DeviceLimits, along: bool, across: int, vector: int, slices: int, sets: int) -> list[Tiles]:
    """Return shapes in which a warp holds whole slices; none where a slice has more rows than a warp."""
    if along:
        for rows in (2, 4, 1):
            if across <= 32 * rows and across % rows == 0:
                return [Tiles(rows, sets, 1, 2, 4 * vector, 0, 0, 3 if vector == 4 else 2, vector)]
        return []
    if across > 32 * vector:
        return []
    blocks = -(-slices // (32 * vector // across))
    while sets > 1 and blocks // sets < limits.multiprocessors:
        sets //= 2
    return [Tiles(vector, sets, 1, 2, 8, 0, 0, 3, 2)]


def _bands(limits: DeviceLimits, along: bool, across: int, vector: int, slices: int, sets: int) -> list[Tiles]:
    """Return shapes that cut a slice into bands: in clusters where that was faster, in global memory elsewhere."""
    busy = 0.9 * limits.multiprocessors
    clusters = [2, 4, 8] if (9, 0) <= limits.compute_capability < (12, 0) else []
    shapes = []
    if along:
        rows = 2 if across % 2 == 0 else 1
        lines = 16 if rows == 2 else 8
        if clusters and slices * 8 < busy and across <= 1024:
            shapes.append(_tiles(rows, 1, _warps(-(-across // 8), rows, lines), 4, lines, lines, 4, vector, 8))
        for warps, depth in ((4, lines), (8, lines), (8, 8), (4, 8), (2, 8), (1, 8)):
            shapes.append(_tiles(rows, min(sets, 2), warps * 2 // rows, 4, depth, depth, 4, vector))
        return shapes
    enough = next((size for size in clusters if slices * size >= busy), 0)
    cluster = enough or (8 if clusters and (across <= 1024 or vector == 8) else 1)
    if cluster > 1 and not (vector == 4 and cluster == enough > 2):  # float32 in larger clusters: bands were faster
        warps = _warps(-(-across // cluster), vector, 32)
        lines, stages = (8, 2) if vector == 8 else (8, 3) if warps <= 3 else (4, 4)
        shapes.append(_tiles(vector, 1, warps, 2 if warps <= 8 else 4, lines, 32, stages, 2, cluster))
    for warps in (8, 4, 2, 1):
        owned = warps * (32 * vector - 64)
        if warps == 1 or slices * -(-across // owned) >= busy:
            shapes.append(_tiles(vector, 1, warps, 4, 4 if warps == 8 else 8, 32, 4 if warps == 8 else 3, 2))
    return shapes


def _tiles(rows, sets, warps, copiers, lines, halo, stages, group, cluster=1):
    return Tiles(rows, sets, warps, copiers, lines, halo if warps > 1 else 0, halo, stages, group, True, cluster)


def _warps(band: int, rows: int, halo: int) -> int:
    """Return the warps that a band of so many rows takes."""
    return max(1, -(-(band + 2 * halo - 32 * rows) // (32 * rows - 2 * halo)) + 1)


def _reason(tiles: Tiles, across: int) -> str:
    if not tiles.outer:
        return f"a warp holds {32 * tiles.rows // across} slices of {across} rows"
    where = f"a cluster of {tiles.cluster}" if tiles.cluster > 1 else "resident blocks"
    return f"slices of {across} rows cut over {where}, {tiles.warps} warps each, halos of {tiles.outer} rows"
