"""Which kernel runs a line scan, forward or adjoint, and in which shape, as measured (docs/optimization_log.md).

Small slices lie in shared memory as a whole (``_plan_slices``); larger ones go through a ring of tiles
(``_plan_tiles``), fastest where rows are whole vectors of 16 bytes. The plain kernel takes float64, images whose pixels
are apart or that run backwards in memory, and older GPUs.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

from gspn2_cupy import _plan
from gspn2_cupy._plan import DeviceLimits, LaunchPlan, LineScan
from gspn2_cupy._plan_slices import BESIDE_SHARED, Slices, bytes_of_block, slices_plan
from gspn2_cupy._plan_tiles import Tiles, shared_bytes_of, tiles_plan

ASYNCHRONOUS_COPIES = (8, 0)  # compute capability
CLUSTERS = ((9, 0), (12, 0))  # from … to below
LARGEST_CLUSTER = 8  # that every such device runs
FAST_MEMORY = 4 * 10**12  # bytes a second
LANES = 32
WARPS = (4, 2, 1)  # that may share weights in a block of the kernel for small slices


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
    if scan.width <= _widest_slice(scan) or not tiled or piece < 16:
        # warps; with fewer, tiles of whole vectors hide the waits better
        enough = 5 if tiled and piece == 16 else 1
        for slices in _slices(limits, scan, enough):
            reason = f"a warp holds {slices.units} slices of {scan.width} rows in shared memory"
            plan = slices_plan(limits, slices, scan, reason)
            if plan is not None:
                return plan
    if tiled and (piece == 16 or not scan.merging):
        for tiles in _tiles(limits, scan):
            plan = tiles_plan(limits, tiles, scan, _reason(tiles, scan.width))
            if plan is not None:
                return plan
    return None


# --- whole slices in shared memory ------------------------------------------------------------------------------------


def _widest_slice(scan: LineScan) -> int:
    """Rows up to which slices in shared memory beat tiles, where both can be had."""
    shared, short = scan.groups < scan.x.shape[1], scan.x.itemsize == 2
    if scan.along:
        return 64 if short else 48 if shared else 40
    return LANES if short else 40 if shared else 36


@dataclass(frozen=True)
class _Dealer:
    """Deals the slices of a scan out to warps and blocks."""

    limits: DeviceLimits
    scan: LineScan

    @property
    def shared(self) -> bool:
        """Whether channels share weights."""
        return self.scan.groups < self.scan.x.shape[1]

    @property
    def family(self) -> int:
        """Slices that may share a block."""
        channels = self.scan.x.shape[1]
        return channels // self.scan.groups if self.shared else channels

    def shape(self, warps: int, rounds: int = 1, carried: int = 0, rows: int = 0) -> Slices:
        """Deal as many slices to a warp as it has lanes for, which carry what lanes usually do, or what is told."""
        carried = carried or carried_channels(self.scan)
        rows = rows or rows_of_lane(self.scan)
        lanes = -(-self.scan.width // rows)
        return Slices(rows, carried, warps, max(1, min(LANES // lanes, self.family // carried)), rounds)

    def blocks(self, slices: Slices) -> int:
        """Blocks of a launch."""
        of_family = -(-self.family // (slices.rounds * slices.warps * slices.units))
        return self.scan.slices // self.family * of_family

    def resident(self, slices: Slices) -> int:
        """Blocks that a multiprocessor holds at once: 32 warps at most, of 64 registers a thread.

        Some kernels take up to 120, and fewer of their blocks run at once. No block waits for another, so that is slow
        at worst.
        """
        taken = bytes_of_block(slices, self.scan) + BESIDE_SHARED
        return min(self.limits.shared_bytes_per_multiprocessor // taken, 32 // slices.warps)

    def busiest(self, slices: Slices) -> int:
        """Blocks of the multiprocessor that has most."""
        return -(-self.blocks(slices) // self.limits.multiprocessors)


def _slices(limits: DeviceLimits, scan: LineScan, enough: int) -> Iterator[Slices]:
    """Yield shapes, best first; in one round those of which a multiprocessor holds ``enough`` warps."""
    deal = _Dealer(limits, scan)
    if rows_of_lane(scan) > 4:
        return
    single = [deal.shape(warps) for warps in (WARPS if deal.shared else (1,))]
    single = [slices for slices in single if deal.resident(slices) * slices.warps >= enough]
    busy = [slices for slices in single if slices.warps == 1 or deal.blocks(slices) >= 0.7 * limits.multiprocessors]
    if busy and deal.busiest(busy[0]) <= 2 * deal.resident(busy[0]):
        yield from _in_rounds(deal, busy[0])
    elif busy:
        yield from _in_many_waves(deal)
    yield from busy


def _in_many_waves(deal: _Dealer) -> Iterator[Slices]:
    """Yield the best shape where blocks load and scan at different times anyway, if it was seen to pay."""
    scan = deal.scan
    if carried_channels(scan) == 2 and not scan.merging:
        yield deal.shape(4, 2, rows=2)
    elif pairs_along(scan):
        yield deal.shape(2, 2, 2) if scan.width <= 24 else deal.shape(4, 1, 2)


def _in_rounds(deal: _Dealer, single: Slices) -> Iterator[Slices]:
    """Yield the best shape that brings slices while it scans others and whose blocks all run at once, if any pays.

    Where a multiprocessor would have no more than two waves of blocks, all load at once, and then all scan.
    """
    multiprocessors = deal.limits.multiprocessors
    pairs = deal.shape(2, 2, 2)
    enough = _busy(deal.limits) <= deal.blocks(pairs) <= deal.resident(pairs) * multiprocessors
    if pairs_along(deal.scan) and enough and deal.busiest(single) * single.warps >= 16:
        yield pairs
    preferred = (3, 4, 2) if deal.scan.along else (2, 3, 4)  # rounds, as measured
    shapes = [deal.shape(warps, rounds) for warps in warps_in_rounds(deal.scan) for rounds in preferred]

    def scans(slices: Slices) -> int:  # of the busiest multiprocessor's warps
        return deal.busiest(slices) * slices.warps * slices.rounds

    fitting = [
        slices
        for slices in shapes
        if _busy(deal.limits) <= deal.blocks(slices) <= deal.resident(slices) * multiprocessors
        and scans(slices) <= scans(single)
    ]
    if fitting and scans(single) >= 16 and single.channels == 1:
        few = {slices: deal.busiest(slices) * slices.warps < 8 for slices in fitting}
        yield min(fitting, key=lambda slices: (scans(slices), few[slices], preferred.index(slices.rounds)))


def rows_of_lane(scan: LineScan) -> int:
    """Return how many rows of a slice a lane carries."""
    rows = 1 << max(0, (scan.width - 1).bit_length() - 5)
    pairs = scan.groups < scan.x.shape[1] and scan.x.itemsize == 2 and not scan.along and scan.width % 2 == 0
    return 2 if pairs and rows == 1 else rows  # a pair is read by one instruction


def warps_in_rounds(scan: LineScan) -> tuple[int, ...]:
    """Return how many warps a block that works in rounds may have; none where that was never seen to pay."""
    shared = scan.groups < scan.x.shape[1]
    if rows_of_lane(scan) > 2 or not (shared or scan.along):
        return ()
    if not shared:
        return (1,)
    return (2, 4) if not scan.along and scan.x.itemsize == 2 else (4, 8)


def pairs_along(scan: LineScan) -> bool:
    """Tell whether two channels in a lane pay along the scan, where slices are many; merging they never did."""
    shared, short = scan.groups < scan.x.shape[1], scan.x.itemsize == 2
    return shared and short and scan.along and 8 < scan.width <= LANES and not scan.merging


def carried_channels(scan: LineScan) -> int:
    """Return how many channels a lane carries, whose weights it reads once: two where slices are very small."""
    return 2 if scan.width <= 8 and scan.groups < scan.x.shape[1] and scan.x.itemsize == 2 else 1


# --- tiles ------------------------------------------------------------------------------------------------------------


def _tiles(limits: DeviceLimits, scan: LineScan) -> Iterator[Tiles]:
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
    for tiles in shapes:
        for smaller in _ever_smaller(tiles):
            if fills:
                smaller = replace(smaller, copiers=6 if smaller.sets * smaller.warps <= 2 else 4)
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
        yield Tiles(2, 1, 4, 4, 32, 16, 0 if across <= 160 else 16, 2, vector)
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
    elif _has_fast_memory(limits) and not scan.merging:
        shapes += [(Tiles(4, 1, 3, _copiers(limits, scan, 4), 32, 16, 16, 2, 8, True, 1, 128), 0.52)]
    if _has_clusters(limits):  # not measured elsewhere
        shapes += [(replace(cut, cluster=blocks(cut)), 0.6), (cut, 0.85 if pair == 2 else 0.71)]
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
        if _has_clusters(limits):
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
    stages = 4 if _has_fast_memory(limits) else 3  # for them: an H200 and an H100 lose up to a tenth otherwise
    if _is_latency_bound(limits, scan) and (short or across <= 512):
        cluster = Tiles(2, 1, 1, 2 if short else 4, 16, 16, 16, 4, 4, True, LARGEST_CLUSTER)
        yield _cut(-(-across // LARGEST_CLUSTER) + 32, cluster)
    if short and across <= 64:
        yield Tiles(2, sets, 1, 2, 4, 0, 0, 4, 4)
    elif short and across <= 256:
        yield Tiles(4 if across <= 128 else 8, pair, 1, 4, 8, 0, 0, 4, 4, False)
    elif across <= 64 and sets > 1:
        yield Tiles(2, sets, 1, 2, 4, 0, 0, 4, 4, False)
    elif across <= 128:
        yield Tiles(4, 1, 1, 2, 4, 0, 0, 4, 4, False)
    if short and 256 < across <= 448 and slices // pair >= _busy(limits):
        yield Tiles(8, pair, 2, 4, 8, 32, 0, 3, 4, False)
    if _has_clusters(limits) and across <= 1024:
        if short and across <= 512 and slices // pair * 2 >= _busy(limits):
            yield _cut(-(-across // 2) + 64, Tiles(4, pair, 1, 4, 8, 16, 32, 3, 8, False, 2))
        elif short and slices // pair * 2 >= _busy(limits):
            yield _cut(-(-across // 2) + 128, Tiles(8, eight, 1, 4, 4, 32, 64, stages, 4, False, 2, 128))
        elif not short and slices * 2 >= _busy(limits):
            yield _cut(-(-across // 2) + 64, Tiles(4, 1, 1, 4, 4, 32, 32, 4, 2, True, 2))
        elif not short:
            yield _cut(-(-across // 8) + 64, Tiles(4, 1, 1, 4, 16, 32, 32, 3, 4, True, 8))
    if short:
        copiers = 6 if _has_clusters(limits) else 4  # sm_80 spills with 6
        two = Tiles(2, 1, 4, 2, 16, 16, 32, 4, 4)
        wide = [  # and ns a line, on an H200: of two channels, of one; and how many blocks a multiprocessor holds then
            (Tiles(8, eight, 2, copiers, 8, 64, 64, stages, 2, True, 1, 128), (120, 101), 1),
            (Tiles(4, pair, 4, copiers, 8, 16, 64, 4, 4, pair == 1, 1, 128), (135, 102), 1),
            (Tiles(4, pair, 2, copiers, 16, 32, 32, 4, 4, True, 1, 128), (77, 71), 1),
            (Tiles(2, pair, 4, 4, 8, 8, 32, 3, 8, False), (88, 90), 1),
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


def _busy(limits: DeviceLimits) -> float:
    """Blocks that keep the device busy."""
    return 0.9 * limits.multiprocessors


def _is_latency_bound(limits: DeviceLimits, scan: LineScan) -> bool:
    """Tell whether slices are so few that each line's latency counts: a cluster each, of blocks with few warps."""
    return _has_clusters(limits) and 128 < scan.width <= 1024 and scan.slices * LARGEST_CLUSTER < _busy(limits)


def _has_clusters(limits: DeviceLimits) -> bool:
    return CLUSTERS[0] <= limits.compute_capability < CLUSTERS[1]


def _has_fast_memory(limits: DeviceLimits) -> bool:
    """Tell whether memory is as fast as an H200's, and not as an H100's: more may then have to be on its way."""
    return limits.memory_bandwidth >= FAST_MEMORY


def _fills_copiers(limits: DeviceLimits, scan: LineScan) -> bool:
    """Tell whether few copying warps need more registers than they have, and many leave too few to those that scan."""
    unrounded = scan.hidden_bytes > scan.x.itemsize and (scan.merging or scan.lam is not None)
    return unrounded and not (_has_clusters(limits) and (scan.weight.itemsize == scan.x.itemsize or not scan.merging))


def _copiers(limits: DeviceLimits, scan: LineScan, best: int) -> int:
    """Return how many warps copy: the best number, or four where it was not measured or registers are too few.

    These weights and h of the state's type fill, but for an adjoint, which has no λ; and on sm_80 others, too.
    """
    if not _has_clusters(limits):
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


def _reason(tiles: Tiles, across: int) -> str:
    if not tiles.outer and tiles.warps == 1:
        return f"a warp holds {32 * tiles.rows // across} slices of {across} rows"
    if not tiles.outer:
        return f"a block holds a slice of {across} rows, {tiles.warps} warps with halos of {tiles.inner} rows"
    where = f"a cluster of {tiles.cluster}" if tiles.cluster > 1 else "resident blocks"
    inner = f", their own {tiles.inner}" if tiles.warps > 1 else ""
    return f"slices of {across} rows cut over {where}, halos of {tiles.outer} rows; {tiles.warps} warps each{inner}"
