"""Scan an image that is larger than the memory you want to spend, piece by piece.

    python examples/large_image.py --size 16384 --memory 256

A line scan needs of its past only one line. So an image of any size is scanned in bands: each call returns its last
line (`return_last=True`), and the next band takes it as its line before the first (`h0`). The result is not nearly but
bitwise that of one call on the whole image, and this program shows it before it starts.

The image shows smoke in a wind. Some chimneys emit (`x`), and the weights of each pixel say from which of its three
neighbours on the line before the smoke comes, so its plume drifts from line to line, over the whole image. Both are
computed for each band when its turn comes, and the result is dropped once the band is drawn; a program of your own
would read and write files there. So no more than one band is in memory at a time.

It runs on a GPU with CuPy where there is one, and else on the CPU with NumPy. Ends in the most memory that was in use,
the time, and the picture.
"""

import argparse
import time
import tracemalloc
from pathlib import Path

import matplotlib
import numpy as np
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

import gspn2_cupy

matplotlib.use("Agg")
import matplotlib.pyplot as plt

MIB = 2**20
PICTURE = 512  # pixels of a side, at most
# How many arrays of the band's size are in memory at once. x, weight and h make 5; more are needed on the way from the
# logits to the weights. The program measures what it used and holds it against the budget.
ARRAYS = {"numpy": 17, "cupy": 16}
REST = 1 * MIB  # what doesn't grow with the band


class Smoke:
    """An image (1, 1, size, size) and its weights, computed for any part of it when asked."""

    def __init__(self, xp, size, chimneys=24, seed=0):
        self.xp, self.size = xp, size
        random = np.random.default_rng(seed)
        place = np.linspace(0, 1, size, dtype="float32")
        # The wind is a sum of products of a function of the row and one of the column.
        self.rows, self.columns = (
            xp.asarray([strength * np.sin(2 * np.pi * (n * place + random.random())) for n in range(1, 6)], "float32")
            for strength in (0.4, 1.0)
        )
        self.centres = random.uniform(0.02, 0.98, (chimneys, 2)) * (0.7 * size, size)
        self.radius = max(1.0, size / 400)

    def part(self, rows, columns, direction):
        """Return x (1, 1, h, w) and weight (1, 1, 3, h, w) of a range of rows and one of columns."""
        xp = self.xp
        down, across = xp.arange(*rows, dtype="float32")[:, None], xp.arange(*columns, dtype="float32")
        x = xp.zeros((1, 1, rows[1] - rows[0], columns[1] - columns[0]), "float32")
        for row, column in self.centres:
            top, bottom = np.clip([row - self.radius, row + self.radius + 1], *rows).astype(int) - rows[0]
            left, right = np.clip([column - self.radius, column + self.radius + 1], *columns).astype(int) - columns[0]
            distance = (down[top:bottom] - row) ** 2 + (across[left:right] - column) ** 2
            x[0, 0, top:bottom, left:right] += distance < self.radius**2
        wind = xp.zeros(x.shape[2:], "float32")
        for row, column in zip(self.rows[:, slice(*rows)], self.columns[:, slice(*columns)], strict=True):
            wind += row[:, None] * column
        logits = xp.zeros((1, 1, 3, *wind.shape), "float32")
        logits[0, 0, 0] = 3 * wind  # smoke comes from the neighbour before …
        logits[0, 0, 2] = -3 * wind  # … or from the one after
        return x, gspn2_cupy.normalize_weights(logits, direction=direction)


def bands(size, lines):
    """Cut 0 … size into ranges of at most so many lines."""
    return [(start, min(start + lines, size)) for start in range(0, size, lines)]


def scan_in_bands(smoke, lines, direction):
    """Scan the image band by band; yield each band's rows, columns and hidden lines."""
    whole = (0, smoke.size)
    horizontal = direction in ("left_to_right", "right_to_left")
    order = bands(smoke.size, lines)
    if direction in ("right_to_left", "bottom_to_top"):
        order.reverse()
    h_last = None  # the line before the first is zero
    for band in order:
        rows, columns = (whole, band) if horizontal else (band, whole)
        x, weight = smoke.part(rows, columns, direction)
        h, h_last = gspn2_cupy.line_scan(x, weight, direction=direction, h0=h_last, return_last=True)
        del x, weight  # before the next band's are made
        yield rows, columns, h


def check_against_the_whole(xp, size, lines):
    """Scan a small image in bands and in one call, in every direction; the bits must be the same."""
    smoke = Smoke(xp, size)
    for direction in gspn2_cupy.ALL_DIRECTIONS:
        x, weight = smoke.part((0, size), (0, size), direction)
        whole = gspn2_cupy.line_scan(x, weight, direction=direction)
        pieces = xp.full_like(whole, xp.nan)
        for rows, columns, h in scan_in_bands(smoke, lines, direction):
            pieces[:, :, slice(*rows), slice(*columns)] = h
        if not (pieces.view("uint32") == whole.view("uint32")).all():
            raise AssertionError(f"{direction}: the pieces differ from the whole")
    print(f"check    {size} x {size} in bands of {lines} lines, four directions: bitwise equal to the whole")


class Meter:
    """The most memory in use by arrays, on the host as NumPy reports it, on a GPU as CuPy's pool does."""

    def __init__(self, xp, budget):
        self.xp = xp
        if xp is np:
            tracemalloc.start()
        else:
            self.pool = xp.get_default_memory_pool()
            self.pool.free_all_blocks()
            self.pool.set_limit(size=budget)  # more than that raises OutOfMemoryError

    def peak(self):
        """Stop, and return bytes. (CuPy's pool gives nothing back unasked: what it holds is the most that it held.)"""
        if self.xp is not np:
            return self.pool.total_bytes()
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return most


def array_module():
    """Return CuPy where there is a GPU, else NumPy."""
    try:
        import cupy

        return cupy if cupy.cuda.is_available() else np
    except ImportError:
        return np


def draw(image, lines, size, output):
    figure, axes = plt.subplots(figsize=(7, 7.4), layout="constrained")
    axes.imshow(np.arcsinh(30 * image / image.max()), cmap="magma", extent=(0, size, size, 0))
    seams = [start for start, _ in bands(size, lines)]
    axes.set_yticks(seams, minor=True)
    axes.tick_params(axis="y", which="minor", left=True, right=True, length=5, color="tab:orange")
    axes.set_title(f"{size} × {size} pixels, scanned top to bottom in {len(seams)} bands\n(a mark at each seam)")
    figure.savefig(output, dpi=100)
    plt.close(figure)


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=16384, help="rows and columns (default: 16384)")
    parser.add_argument("--memory", type=int, default=256, metavar="MIB", help="for arrays (default: 256)")
    parser.add_argument("--output", type=Path, default=Path("large_image.png"), help="the picture")
    parser.add_argument("--quick", action="store_true", help="a small image and a small budget")
    options = parser.parse_args(arguments)
    if not options.output.parent.is_dir():
        parser.error(f"--output: there is no folder {options.output.parent}")
    size, memory = (700, 8) if options.quick else (options.size, options.memory)
    if size < 1:
        parser.error(f"--size must be at least 1, got {size}")

    xp = array_module()
    lines = (memory * MIB - REST) // (4 * size * ARRAYS[xp.__name__])
    if lines < 1:
        raise SystemExit(f"one line of {size} pixels needs more than {memory} MiB; raise --memory")
    check_against_the_whole(xp, size=300, lines=77)

    print(f"image    {size} x {size}, float32; x, weight and h would take {5 * 4 * size**2 / MIB:.0f} MiB at once")
    print(f"bands    {len(bands(size, lines))} of {lines} lines, on {xp.__name__}")
    smoke = Smoke(xp, size)
    step = -(-size // PICTURE)
    image = np.zeros((-(-size // step), -(-size // step)), "float32")
    meter = Meter(xp, memory * MIB)
    columns = (TextColumn("lines"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    start = time.perf_counter()
    with Progress(*columns) as progress:
        task = progress.add_task("lines", total=size)
        for (top, bottom), _, h in scan_in_bands(smoke, lines, "top_to_bottom"):
            sample = h[0, 0, -top % step :: step, ::step]  # every so many rows and columns are drawn
            first = -(-top // step)
            image[first : first + len(sample)] = sample if xp is np else xp.asnumpy(sample)
            progress.update(task, advance=bottom - top)
    seconds = time.perf_counter() - start
    peak = meter.peak()

    draw(image, lines, size, options.output)
    print(f"time     {seconds:.1f} s, {1e9 * seconds / size**2:.0f} ns per pixel")
    print(f"memory   {peak / MIB:.1f} MiB of arrays at most, of a budget of {memory} MiB")
    print(f"picture  {options.output}")
    if peak > memory * MIB:
        raise SystemExit("the budget was exceeded")
    return {"lines": lines, "peak": peak, "seconds": seconds, "image": image}


if __name__ == "__main__":
    main()
