"""In which shapes the tile kernel may run a scan, best first, as measured (docs/optimization_log.md)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

from gspn2_cupy._plan import LANES, DeviceLimits, LineScan
from gspn2_cupy._plan_tiles import Tiles, shared_bytes_of

LARGEST_CLUSTER = 8  # that every device that has clusters runs


def shapes(limits: DeviceLimits, scan: LineScan) -> Iterator[Tiles]:
    """Yield shapes, best first; each also with less memory, for smaller devices."""
    per_group = scan.x.shape[1] // scan.groups
    # Warps that share staged weights pay where weights are many of the bytes read from L2: most in the 16-bit types.
    most = (2, 1) if scan.x.itemsize == 4 else (4, 2, 1)
    sets = next(sets for sets in most if per_group % sets == 0)
    shapes = _along(limits, scan, sets) if scan.along else _down(limits, scan, sets)
    piece = scan.piece
    if piece < 16:
        shapes = (replace(tiles, copiers=4) for tiles in shapes)
    fills = piece == 16 and scan.along and _fills_copiers(limits, scan)
    heavy = piece == 16 and scan.along and _fills_ten_warps(scan)
    for tiles in shapes:
        for smaller in _ever_smaller(tiles):
            scanning = smaller.sets * smaller.warps
            if fills:
                smaller = replace(smaller, copiers=6 if scanning <= 2 else 4)
            elif heavy and scanning == 2:  # registers are dealt out to four warps at a time
                smaller = replace(smaller, copiers=min(smaller.copiers, 6))
            if piece == 16 or _light(limits, smaller, scan, piece):
                yield smaller


def _ever_smaller(tiles: Tiles) -> Iterator[Tiles]:
    """Yield a shape, then with fewer stages, then with fewer registers, then all that with fewer channels."""
    sets = tiles.sets
    while sets:
        for stages in range(tiles.stages, 1, -1):
            yield replace(tiles, stages=stages, sets=sets)
        if tiles.ahead:
            yield replace(tiles, stages=2, sets=sets, ahead=False)
        sets //= 2


def _light(limits: DeviceLimits, tiles: Tiles, scan: LineScan, piece: int) -> bool:
    """Tell whether a shape leaves registers for copies in pieces, which take more of them, most those of two bytes.

    What is left out here spilled when it was compiled, in some of the types and pieces.
    """
    alike = scan.weight.itemsize == scan.hidden_bytes == scan.x.itemsize
    if alike and scan.x.itemsize == 4:
        return True
    if not scan.along:
        return tiles.rows <= (4 if alike else 2) and tiles.threads <= (256 if piece == 2 else 384)
    if piece == 2 or not alike or limits.compute_capability < (9, 0):
        return tiles.rows <= 2 and tiles.lines <= 16 and tiles.threads <= 256 and (piece > 2 or tiles.sets == 1)
    return tiles.threads <= 256 and (tiles.sets == 1 or scan.x.c_name != "__half")


# Fields in order: rows of a lane; sets, warps, copiers; lines of a tile; inner, outer; stages, group, ahead; cluster,
# fetch.
#
# Along the scan a tile takes 32 to 128 bytes of each row, and what else a copy asks into L2 must stay there until later
# tiles want it. In the 16-bit types so many rows are on their way at once that 256 bytes of each are too many for L2.


def _along(limits: DeviceLimits, scan: LineScan, sets: int) -> Iterator[Tiles]:
    """Shapes for horizontal scans."""
    across, vector = scan.width, 16 // scan.x.itemsize
    short, pair = vector == 8, min(sets, 2)
    if across <= 64:
        yield Tiles(2, sets, 1, 4, *((32, 0, 0, 2, 8, False, 1, 128) if short else (16, 0, 0, 3, 4, sets == 1)))
    elif across <= 128 and short:
        yield Tiles(4, pair, 1, _copiers(limits, scan, 8), 32, 0, 0, 3, vector, False, 1, 64)
    elif across <= 128:
        yield _cut(across, Tiles(2, 1, 1, 4, 16, 16, 0, 4, vector))
    if _is_latency_bound(limits, scan):
        shape = (_copiers(limits, scan, 6), 32, 16, 16, 3, 8) if short else (4, 16, 16, 16, 4, 4)
        tiles = _cut(-(-across // LARGEST_CLUSTER) + 32, Tiles(2, 1, 1, *shape, True, LARGEST_CLUSTER, 128))
        yield tiles if short or tiles.warps != 4 else replace(tiles, copiers=6)
    if short and across > 128:
        yield from _cheapest_along(limits, scan, pair)
    else:
        whole = scan.piece == 16  # or registers are too few to read ahead
        yield Tiles(2, 1, 4, 4, 32, 16, 0 if across <= 160 else 16, 2, vector, whole)
    for warps, lines in ((4, 16), (8, 16), (8, 8), (4, 8), (2, 8), (1, 8)):
        inner = 16 if warps > 1 else 0
        yield Tiles(2, pair if short else 1, warps, 4, lines, inner, 16, 4, vector, fetch=128 if short else 256)


def _cheapest_along(limits: DeviceLimits, scan: LineScan, pair: int) -> Iterator[Tiles]:
    """Shapes for horizontal scans of wide slices in the 16-bit types, cheapest first.

    A block takes about as long as it holds rows, times what a row of its shape was measured to cost; blocks that do not
    run at once come in rounds. Four rows of a lane are cheaper than two. Halos of 16 rows are refreshed twice as often
    as halos of 32, which is cheaper in a cluster than through global memory.
    """
    across = scan.width

    def blocks(tiles: Tiles) -> int:
        return -(-across // (tiles.block_rows - 2 * tiles.outer))

    four = Tiles(4, pair, 2, _copiers(limits, scan, 6 if pair == 2 else 8), 32, 8, 0, 2, 8, False, 1, 128)
    cut = replace(four, outer=16)
    one = replace(four, sets=1, warps=3, copiers=_copiers(limits, scan, 8), inner=32)
    shapes = [(four, 0.55), (one, 0.43), (replace(four, outer=32), 0.63 if pair == 2 else 0.53)]  # and what a row costs
    shapes += [(replace(four, inner=32, outer=32), 0.63 if pair == 2 else 0.46), (replace(one, outer=32), 0.45)]
    if pair == 2:
        shapes += [(replace(four, inner=16, outer=16), 0.85)]
    elif limits.has_fast_memory and not scan.merging:
        shapes += [(Tiles(4, 1, 3, _copiers(limits, scan, 4), 32, 16, 16, 2, 8, True, 1, 128), 0.52)]
    if limits.has_clusters:  # not measured elsewhere
        shapes += [(cut, 0.85 if pair == 2 else 0.71)]
        shapes += [(replace(cut, cluster=blocks(cut)), 0.6)] if blocks(cut) <= 5 else []  # larger: never seen to pay
    if not scan.hidden_over:  # it lies beside the ring, where little room is left
        bands, deep = replace(four, inner=32, outer=32), Tiles(4, pair, 2, 4, 16, 16, 16, 3, 8, False, 1, 128)
        shapes = [(four, 0.55), (one, 0.36 if scan.adjoint else 0.43), (replace(bands, sets=1), 0.41)]
        shapes += [(replace(one, outer=32), 0.32 if scan.adjoint else 0.4), (deep, 0.8 if pair == 2 else 0.5)]
        shapes += [(bands, 0.54)] if pair == 2 else []
        shapes = [shape for shape in shapes if shared_bytes_of(shape[0], scan) <= limits.shared_bytes_per_block]
    if pair == 1:
        shapes += [(Tiles(2, 1, 4, 4, 16, 16, 16, 4, 8, True, 1, 128), 0.58)]
    elif scan.hidden_bytes == 2:  # or registers are too few
        two = Tiles(2, 2, 4, 4, 32, 16, 0, 2, 8, False, 1, 128)
        cut = replace(two, outer=16)
        shapes += [(two, 0.7), (cut, 0.78)]
        if limits.has_clusters:
            shapes += [(replace(cut, cluster=blocks(cut)), 0.76)]
    return _cheapest(limits, scan, [(tiles, tiles.block_rows * of_row, 1) for tiles, of_row in shapes])


def _cheapest(limits: DeviceLimits, scan: LineScan, shapes: list[tuple[Tiles, float, int]]) -> Iterator[Tiles]:
    """Yield shapes, cheapest first; given with each: what a line costs while a multiprocessor holds so many blocks."""

    def cost(tiles: Tiles, of_line: float, held: int) -> float:
        # of larger clusters' blocks fewer find room at once: 120 for 132 multiprocessors
        bands = -(-scan.width // (tiles.block_rows - 2 * tiles.outer))
        at_once = int(held * limits.multiprocessors * (0.91 if tiles.cluster > 2 else 1)) // bands
        whole = tiles.outer == 0
        if whole != (bands == 1) or tiles.cluster > LARGEST_CLUSTER or at_once == 0:
            return math.inf
        return -(-(scan.slices // tiles.sets) // at_once) * of_line

    for found, tiles in sorted(((cost(*shape), shape[0]) for shape in shapes), key=lambda costed: costed[0]):
        if found < math.inf:
            yield tiles


def _down(limits: DeviceLimits, scan: LineScan, sets: int) -> Iterator[Tiles]:
    """Shapes for vertical scans."""
    across, slices, vector = scan.width, scan.slices, 16 // scan.x.itemsize
    short, pair = vector == 8, min(sets, 2)
    eight = pair if scan.weight.itemsize == 2 or scan.lam is None else 1  # of eight rows: or registers are too few
    stages = 4 if limits.has_fast_memory else 3  # for them: an H200 and an H100 lose up to a tenth otherwise
    if _is_latency_bound(limits, scan) and (short or across <= 512) and scan.piece == 16:
        cluster = Tiles(2, 1, 1, 2, 16, 16, 16, 4, 4, True, LARGEST_CLUSTER)
        yield _cut(-(-across // LARGEST_CLUSTER) + 32, cluster)
    if short and across <= 64:
        yield Tiles(2, sets, 1, 2, 4, 0, 0, 4, 4)
    elif short and across <= 256:
        yield Tiles(4 if across <= 128 else 8, pair, 1, 4, 8, 0, 0, 4, 4, False)
    elif across <= 64 and sets > 1:
        yield Tiles(2, sets, 1, 2, 4, 0, 0, 4, 4, False)
    elif across <= 128:
        yield Tiles(4, 1, 1, 2, 4, 0, 0, 4, 4, False)
    if short and 256 < across <= 448 and slices // pair >= limits.busy:
        yield Tiles(8, pair, 2, 4, 8, 32, 0, 3, 4, False)
    if limits.has_clusters and across <= 1024:
        if short and across <= 512 and slices // pair * 2 >= limits.busy:
            yield _cut(-(-across // 2) + 64, Tiles(4, pair, 1, 4, 8, 16, 32, 3, 8, False, 2))
        elif short and slices // pair * 2 >= limits.busy:
            yield _cut(-(-across // 2) + 128, Tiles(8, eight, 1, 4, 4, 32, 64, stages, 4, False, 2, 128))
        elif not short and slices * 2 >= limits.busy:
            yield _cut(-(-across // 2) + 64, Tiles(4, 1, 1, 4, 4, 32, 32, 4, 2, True, 2))
        elif not short:
            yield _cut(-(-across // 8) + 64, Tiles(4, 1, 1, 4, 16, 32, 32, 3, 4, True, 8))
    if short:
        copiers = 6 if limits.has_clusters else 4  # sm_80 spills with 6
        two = Tiles(2, 1, 4, 2, 16, 16, 32, 4, 4)
        wide = [  # and ns a line, on an H200: of two channels, of one; and how many blocks a multiprocessor holds then
            (Tiles(8, eight, 2, copiers, 8, 64, 64, stages, 2, True, 1, 128), (120, 101), 1),
            (Tiles(4, pair, 4, copiers, 8, 16, 64, 4, 4, pair == 1, 1, 128), (135, 102), 1),
            (Tiles(4, pair, 2, copiers, 16, 32, 32, 4, 4, True, 1, 128), (77, 71), 1),
            (replace(two, outer=16), (62, 67), 1),
            (two, (51, 53), 1),
            (two, (73, 73), 2),
            (replace(two, warps=2), (53, 53), 1),
        ]
        yield from _cheapest(limits, scan, [(tiles, ns[tiles.sets == 1], held) for tiles, ns, held in wide])
    else:
        copiers = 2 if limits.compute_capability >= (9, 0) else 4  # sm_80 spills with 2
        tiles = Tiles(2, 1, 9, copiers, 8, 16, 32, 3, 2, False)
        if slices * -(-across // (tiles.block_rows - 2 * tiles.outer)) >= 0.8 * limits.multiprocessors:
            yield tiles
        for warps in (4, 2):
            yield Tiles(4, 1, warps, 2, 8, 16, 32, 3, 2)
    yield Tiles(vector, 1, 1, 2, 8, 0, 32, 3, 2)


def _is_latency_bound(limits: DeviceLimits, scan: LineScan) -> bool:
    """Tell whether slices are so few that each line's latency counts: a cluster each, of blocks with few warps."""
    return limits.has_clusters and 128 < scan.width <= 1024 and scan.slices * LARGEST_CLUSTER < limits.busy


def _fills_copiers(limits: DeviceLimits, scan: LineScan) -> bool:
    """Tell whether few copying warps need more registers than they have, and many leave too few to those that scan."""
    unrounded = scan.hidden_bytes > scan.x.itemsize and (scan.merging or scan.lam is not None)
    return unrounded and not (limits.has_clusters and (scan.weight.itemsize == scan.x.itemsize or not scan.merging))


def _fills_ten_warps(scan: LineScan) -> bool:
    """Tell whether ten warps have too few registers each, which eight have: in float16, or with offsets of 64 bits."""
    wide = scan.x.c_name == "__half" or not scan.short_offsets
    return scan.x.itemsize == 2 and wide and (scan.merging or scan.weight.itemsize > scan.x.itemsize)


def _copiers(limits: DeviceLimits, scan: LineScan, best: int) -> int:
    """Return how many warps copy: the best number, or four where it was not measured or registers are too few.

    These weights and h of the state's type fill, but for an adjoint, which has no λ; and on sm_80 others, too.
    """
    if not limits.has_clusters:
        return 4
    if scan.weight.itemsize > scan.x.itemsize:
        return best if scan.adjoint and scan.lam is None else 4
    over = scan.lam is not None and scan.hidden_bytes > scan.x.itemsize
    if scan.merging or over:
        return 8  # what h lies over, and what it is merged with, takes registers of copying threads
    alike = scan.hidden_bytes == scan.x.itemsize
    return best if alike or scan.adjoint else 4


def _cut(rows: int, tiles: Tiles) -> Tiles:
    """Return the same shape with as many warps as so many rows of a block take."""
    warp = LANES * tiles.rows
    warps = max(1, -(-(rows - warp) // (warp - 2 * tiles.inner)) + 1)
    return replace(tiles, warps=warps, inner=tiles.inner if warps > 1 else 0)


def reason(tiles: Tiles, across: int) -> str:
    if not tiles.outer and tiles.warps == 1:
        return f"a warp holds {32 * tiles.rows // across} slices of {across} rows"
    if not tiles.outer:
        return f"a block holds a slice of {across} rows, {tiles.warps} warps with halos of {tiles.inner} rows"
    where = f"a cluster of {tiles.cluster}" if tiles.cluster > 1 else "resident blocks"
    inner = f", their own {tiles.inner}" if tiles.warps > 1 else ""
    return f"slices of {across} rows cut over {where}, halos of {tiles.outer} rows; {tiles.warps} warps each{inner}"
