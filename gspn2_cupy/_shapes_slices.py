"""In which shapes the kernel for small slices may run a scan, best first, as measured (docs/optimization_log.md)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from gspn2_cupy._plan import LANES, DeviceLimits, LineScan
from gspn2_cupy._plan_slices import BESIDE_SHARED, Slices, bytes_of_block

WARPS = (4, 2, 1)  # that may share weights in a block


def widest(scan: LineScan) -> int:
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


def shapes(limits: DeviceLimits, scan: LineScan, enough: int) -> Iterator[Slices]:
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
    enough = deal.limits.busy <= deal.blocks(pairs) <= deal.resident(pairs) * multiprocessors
    if pairs_along(deal.scan) and enough and deal.busiest(single) * single.warps >= 16:
        yield pairs
    preferred = (3, 4, 2) if deal.scan.along else (2, 3, 4)  # rounds, as measured
    shapes = [deal.shape(warps, rounds) for warps in warps_in_rounds(deal.scan) for rounds in preferred]

    def scans(slices: Slices) -> int:  # of the busiest multiprocessor's warps
        return deal.busiest(slices) * slices.warps * slices.rounds

    fitting = [
        slices
        for slices in shapes
        if deal.limits.busy <= deal.blocks(slices) <= deal.resident(slices) * multiprocessors
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
