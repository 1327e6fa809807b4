"""Draws the pictures of operator.md: ``python docs/pictures.py`` writes them to docs/pictures/."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.patches import FancyArrowPatch, Rectangle

import gspn2_cupy

FOLDER = Path(__file__).parent / "pictures"
SIDE = 9
INK, PALE, LINE, DONE = "#1f2933", "#eef1f4", "#e8590c", "#a5c9ea"
ARROWS = {  # where a scan starts and ends, beside the image: x, y of the tail and of the head
    "left_to_right": ((-0.3, SIDE + 0.3), (SIDE - 0.7, SIDE + 0.3)),
    "right_to_left": ((SIDE - 0.7, SIDE + 0.3), (-0.3, SIDE + 0.3)),
    "top_to_bottom": ((-1.3, -0.3), (-1.3, SIDE - 0.7)),
    "bottom_to_top": ((-1.3, SIDE - 0.7), (-1.3, -0.3)),
}


def arrow(axes: Any, tail: tuple[float, float], head: tuple[float, float], colour: str = INK, **options: Any) -> None:
    """Draw an arrow."""
    style = {"arrowstyle": "-|>", "mutation_scale": 16, "linewidth": 1.8, "shrinkA": 0, "shrinkB": 0} | options
    axes.add_patch(FancyArrowPatch(tail, head, color=colour, clip_on=False, **style))


def pixel(axes: Any, x: float, y: float, colour: Any, width: float = 1) -> None:
    """Draw one pixel with its centre at x, y."""
    axes.add_patch(Rectangle((x - width / 2, y - 0.5), width, 1, facecolor=colour, edgecolor="white", linewidth=1.5))


def frame(axes: Any, left: float, right: float, bottom: float, top: float, title: str) -> None:
    """Set limits and title, and hide the axes."""
    axes.set_xlim(left, right)
    axes.set_ylim(bottom, top)  # bottom > top: rows count downwards
    axes.set_aspect("equal")
    axes.axis("off")
    axes.set_title(title, fontsize=13, color=INK)


def three_neighbours(axes: Any) -> None:
    """Draw one pixel, what it hears, and from where."""
    for row in range(3):
        pixel(axes, 0, row, DONE, 1.7)
        pixel(axes, 3.6, row, LINE if row == 1 else PALE, 1.7)
    for row, name in enumerate(("i−1", "i", "i+1")):
        axes.text(0, row, f"h[t−1, {name}]", ha="center", va="center", fontsize=11, color=INK)
        arrow(axes, (0.85, row), (2.72, 1 + 0.25 * (row - 1)), linewidth=2.2)
        axes.text(1.72, (0.1, 0.76, 1.44)[row], f"w{row}", ha="center", va="center", fontsize=14, color=INK)
    axes.text(3.6, 1, "h[t, i]", ha="center", va="center", fontsize=12, color="white", weight="bold")
    arrow(axes, (3.6, 3.0), (3.6, 1.55), LINE, linewidth=2.2)
    axes.text(3.6, 3.28, "λ[t, i] · x[t, i]", ha="center", va="center", fontsize=12, color=LINE)
    for x, name in ((0, "line t−1"), (3.6, "line t")):
        axes.text(x, -0.75, name, ha="center", fontsize=11, color=INK)
    frame(axes, -1.0, 4.6, 3.5, -1.0, "a pixel hears three neighbours")


def moving_line(axes: Any, t: int, title: str) -> None:
    """Draw the image when the scan from left to right has come to column t."""
    for column in range(SIDE):
        for row in range(SIDE):
            pixel(axes, column, row, DONE if column < t else LINE if column == t else PALE)
    if t + 1 < SIDE:
        for row in range(0, SIDE, 2):
            arrow(axes, (t + 0.5, row), (t + 1.5, row), LINE, mutation_scale=11, linewidth=1.6)
    if t == 0:
        arrow(axes, (-0.5, SIDE + 0.2), (2.5, SIDE + 0.2), mutation_scale=12, linewidth=1.4)
        axes.text(2.8, SIDE + 0.2, "t", va="center", fontsize=12, color=INK)
        arrow(axes, (-1.2, -0.5), (-1.2, 2.5), mutation_scale=12, linewidth=1.4)
        axes.text(-1.2, 3.2, "i", ha="center", fontsize=12, color=INK)
    frame(axes, -1.5, SIDE - 0.3, SIDE + 0.5, -0.7, title)


def heard(directions: tuple[str, ...]) -> Any:
    """Return how much the marked pixel hears from each pixel, with equal weights."""
    weight = np.full((1, len(directions), 1, 3, SIDE, SIDE), 1 / 3)
    return gspn2_cupy.affinity_matrix(weight, directions=directions)[0, 0, MARKED].reshape(SIDE, SIDE)


MARKED = 4 * SIDE + 5  # row 4, column 5


def cone(axes: Any, directions: tuple[str, ...], title: str) -> None:
    """Draw what one pixel hears by scans in these directions."""
    values = heard(directions)
    colours = plt.get_cmap("Blues")(0.25 + 0.65 * (values / np.delete(values, MARKED).max()).clip(0, 1) ** 0.5)
    for row in range(SIDE):
        for column in range(SIDE):
            pixel(axes, column, row, colours[row, column] if values[row, column] > 0 else PALE)
    row, column = divmod(MARKED, SIDE)
    pixel(axes, column, row, LINE)
    for direction in directions if len(directions) == 1 else ():
        arrow(axes, *ARROWS[direction], colour=LINE, linewidth=2.2)
    frame(axes, -1.8, SIDE - 0.3, SIDE + 0.8, -0.7, title)


def line_scan() -> Any:
    """Draw the three neighbours, the moving line, and the four directions."""
    figure = plt.figure(figsize=(13, 7.4), dpi=80)
    top, bottom = figure.subfigures(2, 1, height_ratios=(1.08, 1))
    axes = top.subplots(1, 4, width_ratios=(1.5, 1, 1, 1))
    three_neighbours(axes[0])
    stages = ((0, "t = 0: x alone"), (4, "t = 4: all pixels of a line at once"), (8, "t = 8: done"))
    for each, (t, title) in zip(axes[1:], stages, strict=True):
        moving_line(each, t, title)
    top.subplots_adjust(left=0.02, right=0.99, bottom=0.03, top=0.9, wspace=0.06)
    axes = bottom.subplots(1, 5)
    for each, direction in zip(axes, gspn2_cupy.ALL_DIRECTIONS, strict=False):
        cone(each, (direction,), direction.replace("_", " "))
    cone(axes[4], gspn2_cupy.ALL_DIRECTIONS, "all four, added up")
    bottom.suptitle("What the orange pixel hears: the darker, the more", fontsize=13, color=INK, y=0.98)
    bottom.subplots_adjust(left=0.01, right=0.99, bottom=0.02, top=0.82, wspace=0.05)
    return figure


def main() -> None:
    """Write all pictures."""
    FOLDER.mkdir(exist_ok=True)
    line_scan().savefig(FOLDER / "line_scan.png")


if __name__ == "__main__":
    main()
