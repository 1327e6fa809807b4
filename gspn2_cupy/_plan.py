"""From shapes, strides, data types and device limits to launch plans: frozen, printable values.

Pure Python: nothing here sees an array or a GPU. An array is described by its :class:`Layout`. A :class:`LaunchPlan`
says which kernel runs, specialised how, on which grid, with how much shared memory and workspace, how many bytes it
must move, and why it was chosen; ``GSPN2_PRINT_PLAN=1`` prints each one as it is launched.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from gspn2_cupy.reference import ALL_DIRECTIONS, HORIZONTAL, REVERSED

OPPOSITE = dict(zip(ALL_DIRECTIONS, (ALL_DIRECTIONS[k] for k in (1, 0, 3, 2)), strict=True))


LANES = 32  # of a warp
CLUSTERS = ((9, 0), (12, 0))  # compute capabilities, from … to below
FAST_MEMORY = 4 * 10**12  # bytes a second


@dataclass(frozen=True)
class DeviceLimits:
    """What a plan may use of a device."""

    name: str
    compute_capability: tuple[int, int]
    multiprocessors: int
    shared_bytes_per_block: int
    shared_bytes_per_multiprocessor: int
    max_threads_per_multiprocessor: int
    l2_bytes: int
    memory_bandwidth: int  # bytes a second, by its clock

    @property
    def busy(self) -> float:
        """Blocks that keep it busy."""
        return 0.9 * self.multiprocessors

    @property
    def has_clusters(self) -> bool:
        """Whether blocks in clusters reach each other's shared memory, as measured to pay."""
        return CLUSTERS[0] <= self.compute_capability < CLUSTERS[1]

    @property
    def has_fast_memory(self) -> bool:
        """Whether memory is as fast as an H200's, and not as an H100's: more may then have to be on its way."""
        return self.memory_bandwidth >= FAST_MEMORY

    def __post_init__(self) -> None:
        object.__setattr__(self, "_hash", hash(tuple(vars(self).values())))

    def __hash__(self) -> int:  # once: every call looks its plan up
        return self._hash  # type: ignore[attr-defined, no-any-return]


@dataclass(frozen=True)
class KernelSpec:
    """One specialisation of one kernel: a file under ``cuda/``, its entry, and the ``-D`` definitions."""

    source: str
    entry: str
    defines: tuple[tuple[str, str], ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "_hash", hash((self.source, self.entry, self.defines)))

    def __hash__(self) -> int:
        return self._hash  # type: ignore[attr-defined, no-any-return]

    def __reduce__(self) -> Any:
        return KernelSpec, (self.source, self.entry, self.defines)  # hashes of text differ between processes

    def __str__(self) -> str:
        return f"{self.entry}<{', '.join(f'{name}={value}' for name, value in self.defines)}>"


@dataclass(frozen=True)
class Layout:
    """An array as a plan sees it; strides count elements."""

    shape: tuple[int, ...]
    strides: tuple[int, ...]
    c_name: str
    itemsize: int
    alignment: int = 16  # bytes, 16 at the most, that the first element's address is a multiple of

    @property
    def bytes(self) -> int:
        """Bytes of its elements."""
        return math.prod(self.shape) * self.itemsize

    @property
    def in_runs(self) -> bool:
        """Whether all that belongs to one image of the batch is one run of memory."""
        expected = 1
        for size, stride in zip(self.shape[:0:-1], self.strides[:0:-1], strict=True):
            if size > 1 and stride != expected:
                return False
            expected *= size
        return True


@dataclass(frozen=True)
class LaunchPlan:
    """One kernel launch."""

    spec: KernelSpec
    grid: tuple[int, int, int]
    block: tuple[int, int, int]
    shared_bytes: int
    geometry: Any = field(repr=False, compare=False)  # a zero-dimensional array of GEOMETRY, passed by value
    workspace: int  # elements in the state's type (of a sum's partials: in double; of the tile kernel: words of 0)
    bytes_moved: int  # each input and output once; staged halos not counted
    reason: str
    cooperative: bool = False
    struct: Any = field(init=False, repr=False, compare=False)  # the geometry as bytes: CuPy passes it 13 µs faster

    def __post_init__(self) -> None:
        object.__setattr__(self, "struct", self.geometry.view(f"V{self.geometry.itemsize}"))

    def __str__(self) -> str:
        size = f"{self.bytes_moved / 1e6:.3g} MB, {self.shared_bytes} B shared, {self.workspace} workspace elements"
        return f"{self.spec} grid={self.grid} block={self.block}: {size}; {self.reason}"


# --- the structs of cuda/geometry.cuh ---------------------------------------------------------------------------------


def _struct(*names: str) -> list[tuple[str, str]]:
    return [(name, "<i8") for name in names]


IMAGE = np.dtype(_struct("origin", "batch", "channel", "line", "cross"))
TAPS = np.dtype(_struct("origin", "batch", "group", "tap", "line", "cross"))
LINE = np.dtype(_struct("batch", "channel", "cross"))
SCAN = np.dtype(_struct("batch", "channels", "channels_per_group", "lines", "width", "chunk", "along"))
BANDS = np.dtype(_struct("count", "rows", "units"))
RUNS = np.dtype(_struct("images", "taps", "turn", "rounds"))
GEOMETRY = np.dtype(
    [("scan", SCAN), ("bands", BANDS), ("runs", RUNS)]
    + [(name, IMAGE) for name in ("x", "lam", "h", "u")]
    + [("weight", TAPS)]
    + [(name, LINE) for name in ("first", "last")]
)


def in_lines(layout: Layout, direction: str) -> tuple[int, ...]:
    """Return origin and strides (…, line, cross) of an image array seen in scan order."""
    *outer, row, column = layout.strides
    height, width = layout.shape[-2:]
    line, cross, length = (column, row, width) if direction in HORIZONTAL else (row, column, height)
    if direction in REVERSED:
        return ((length - 1) * line, *outer, -line, cross)
    return (0, *outer, line, cross)


def scan_geometry(
    direction: str,
    chunk: int | None,
    x: Layout,
    groups: int,
    arrays: Mapping[str, Layout | None],
    struct: np.dtype[Any] = GEOMETRY,
) -> Any:
    """Fill a struct for a scan of images like ``x`` (B, C, …, H, W) and the arrays it works on."""
    (batch, channels), (height, width) = x.shape[:2], x.shape[-2:]
    lines, cross = (width, height) if direction in HORIZONTAL else (height, width)
    geometry = np.zeros((), struct)
    along = abs(in_lines(x, direction)[-2]) < abs(in_lines(x, direction)[-1])
    per_group = channels // groups
    geometry["scan"] = (batch, channels, per_group, lines, cross, lines if chunk is None else min(chunk, lines), along)
    for name, layout in arrays.items():
        if layout is not None:
            geometry[name] = layout.strides if name in ("first", "last") else in_lines(layout, direction)
    return geometry


# --- plans ------------------------------------------------------------------------------------------------------------

SCAN_THREADS = 128  # rows a block scans at a time; a slice wider than this is cut into bands with a halo
SCAN_LINES = {
    "float": 16,
    "double": 8,
}  # lines staged at a time: 35 KB and 38 KB, below the 48 KB that every GPU allows
PIXEL_THREADS = 256
WARP = 32


def definitions(values: Mapping[str, object]) -> tuple[tuple[str, str], ...]:
    """Return definitions for the compiler."""
    return tuple((name, str(value)) for name, value in values.items())


def state_name(c_name: str) -> str:
    """Return the state's C type for a data type's."""
    return "double" if c_name == "double" else "float"


def _scan_block(state: str) -> tuple[int, tuple[tuple[str, str], ...]]:
    """Return shared bytes and definitions of the tile of ``cuda/scan_tile.cuh``."""
    lines, size = SCAN_LINES[state], 8 if state == "double" else 4
    shared = (4 * lines * (SCAN_THREADS + 1) + 4 * (SCAN_THREADS + 2)) * size
    return shared, (("STATE", state), ("THREADS", str(SCAN_THREADS)), ("LINES", str(lines)))


def _scan_reason(width: int, lines: int) -> str:
    owned = SCAN_THREADS - 2 * lines
    if width <= SCAN_THREADS:
        return "a block per slice, which fits"
    return f"a block per slice, {-(-width // owned)} bands of {owned} rows with a halo of {lines}"


def total_bytes(*layouts: Layout | None) -> int:
    """Return the bytes of the arrays that are there."""
    return sum(layout.bytes for layout in layouts if layout is not None)


@dataclass(frozen=True)
class LineScan:
    """One direction, h[t] = A[t]·h[t-1] + λ[t]·x[t], as planners see it; or its adjoint, g[t] = dh[t] + A[t+1]ᵀ·g[t+1].

    The adjoint is a scan in the opposite direction, with dh for x, g for h, and dh_last and dh0 for h0 and h_last.
    ``weight`` and ``h`` may be in the state's type; the adjoint's ``x``, too. Merging, the scan writes no lines but the
    sum before + m·(u ⊙ h) in ``h``'s place.
    """

    direction: str  # in which lines are visited
    chunk: int | None
    x: Layout
    weight: Layout
    lam: Layout | None
    h0: Layout | None
    h: Layout
    h_last: Layout | None
    adjoint: bool = False
    merging: bool = False
    u: Layout | None = None
    before: Layout | None = None  # in the state's type

    @property
    def along(self) -> bool:
        """Whether it goes along the rows of the image."""
        return self.direction in HORIZONTAL

    @property
    def width(self) -> int:
        """Pixels of a line."""
        return self.x.shape[2] if self.along else self.x.shape[3]

    @property
    def slices(self) -> int:
        """Images times channels."""
        return self.x.shape[0] * self.x.shape[1]

    @property
    def groups(self) -> int:
        """Channels that have weights of their own."""
        return self.weight.shape[1]

    @property
    def images(self) -> tuple[Layout, ...]:
        """The images of each channel."""
        images = (self.x, self.lam, self.h, self.u, self.before)
        return tuple(layout for layout in images if layout is not None)

    @property
    def hidden_bytes(self) -> int:
        """Bytes of a pixel of h in shared memory, where it is unrounded until it is merged."""
        return 8 if self.x.itemsize == 8 else 4 if self.merging else self.h.itemsize

    @property
    def hidden_over(self) -> bool:
        """Whether h fits into the place of x, or of x and λ, in shared memory."""
        images = 1 if self.lam is None else 2
        return self.hidden_bytes in (self.x.itemsize, images * self.x.itemsize)

    @property
    def bytes(self) -> int:
        """What it must move."""
        return total_bytes(self.weight, self.h0, self.h_last, *self.images)

    @property
    def types(self) -> tuple[tuple[str, str], ...]:
        """Definitions of the arrays' types."""
        return (("SCALAR", self.x.c_name), ("WEIGHT", self.weight.c_name), ("RESULT", self.h.c_name))

    @property
    def vectors(self) -> tuple[int, ...]:
        """Elements of x, weights and h that 16 bytes hold."""
        return 16 // self.x.itemsize, 16 // self.weight.itemsize, 16 // self.hidden_bytes

    @cached_property
    def piece(self) -> int:
        """Bytes by which the arrays' rows can be copied: 16, 8, 4 or 2.

        0 where pixels are apart, or memory runs backwards: to the kernel an address before an array's is nowhere.
        """
        arrays = (*self.images, self.weight)
        if any(array.strides[-1] != 1 or min(array.strides) < 0 for array in arrays):
            return 0
        starts = [array.itemsize * step for array in arrays for step in (array.shape[-1], *_steps_of(array))]
        return math.gcd(16, *(array.alignment for array in arrays), *starts)

    @cached_property
    def short_offsets(self) -> bool:
        """Whether an int counts the elements of each array."""
        return all(span(array) < 2**31 for array in (*self.images, self.weight))

    def geometry(self) -> Any:
        """Return the struct that tells a kernel of the arrays."""
        arrays = {"x": self.x, "weight": self.weight, "lam": self.lam, "first": self.h0, "h": self.h}
        arrays |= {"last": self.h_last, "u": self.u}
        return scan_geometry(self.direction, self.chunk, self.x, self.groups, arrays)


def _steps_of(array: Layout) -> Iterator[int]:
    """Yield the strides from row to row, channel to channel and image to image.

    That of rows even where there is one: addresses of rows that do not exist have to be aligned, too.
    """
    yield array.strides[-2]
    yield from (stride for size, stride in zip(array.shape[:-2], array.strides[:-2], strict=True) if size > 1)


def plain_line_scan(scan: LineScan) -> LaunchPlan:
    """Plan the plain kernels, which take any scan."""
    state = state_name(scan.x.c_name)
    shared_bytes, tile = _scan_block(state)
    entry, types = ("line_scan_adjoint", scan.types[:2]) if scan.adjoint else ("line_scan_forward", scan.types)
    return LaunchPlan(
        spec=KernelSpec(f"{entry}.cu", entry, types + tile),
        grid=(scan.slices, 1, 1),
        block=(SCAN_THREADS, 1, 1),
        shared_bytes=shared_bytes,
        geometry=scan.geometry(),
        workspace=2 * scan.slices * scan.width,
        bytes_moved=scan.bytes,
        reason=_scan_reason(scan.width, SCAN_LINES[state]),
    )


# --- vectors of pixels ------------------------------------------------------------------------------------------------

VECTORS = (4, 2, 1)  # pixels of a thread; 16 bytes of the state's type at the most, as arrays are aligned to no more


def largest_vector(*images: Layout | None) -> int:
    """Return the most pixels, neighbours in memory, that the rows of all arrays (…, H, W) are whole vectors of."""
    return next(pixels for pixels in VECTORS if pixels == 1 or all(in_vectors(image, pixels) for image in images))


def in_vectors(image: Layout | None, pixels: int) -> bool:
    """Tell whether the rows of an array (…, H, W), if it is there, are runs of whole, aligned vectors."""
    if image is None:
        return True
    steps = [stride for size, stride in zip(image.shape[:-1], image.strides[:-1], strict=True) if size > 1]
    whole = all(step % pixels == 0 for step in (image.shape[-1], *steps))
    return whole and image.strides[-1] == 1 and image.alignment % (pixels * image.itemsize) == 0


def power_of_two(number: int) -> int:
    """Return the smallest power of two that is no less."""
    return 1 << (number - 1).bit_length()


def span(layout: Layout) -> int:
    """Return the elements from the first to the last."""
    return sum((size - 1) * abs(stride) for size, stride in zip(layout.shape, layout.strides, strict=True)) + 1
