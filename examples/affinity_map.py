"""Look at the affinity of a GSPN-2 unit: what each pixel receives from every other, beside the map of attention.

    python examples/affinity_map.py

Attention makes each output pixel a weighted mean of all input pixels, and the weights of one output pixel, a row of the
attention matrix, can be shown as a picture. The line scan never forms such a matrix, but it is linear in its input, so
there is one: `gspn2_cupy.affinity_matrix` makes it, for small images.

The unit here is made by hand on a photograph. A pixel hears its three neighbours on the line before, those most that
are most alike in colour, and hears them the less, the less even the best of them is alike:

    s_k = exp(−|Δcolour|² / 2σ²),    weight_k = KEEP · max_j s_j · s_k / Σ_j s_j,    λ = 1,    u = 1 / propagate(ones)

u makes every row of the affinity sum to 1, as a row of softmax attention does. Attention gets the same colours, and
the distance between pixels. Both are shown for a few query pixels, and so are two units one after the other (A·A), as
layers of a network stand: the four scans of one unit see along four cones, those of two see around corners.

Ends in the picture, and in how much of each map's weight lies where attention puts its own, beside a yardstick that
knows nothing of the photograph: a map of the distance alone.
"""

import argparse
import time
from pathlib import Path

import matplotlib
import numpy as np
import skimage.data
from skimage.transform import resize

import gspn2_cupy

matplotlib.use("Agg")
import matplotlib.pyplot as plt

KEEP = 0.97  # of a line's signal goes on to the next where all colours are the same
COLOUR = 0.10  # σ of colours, white being (1, 1, 1)
REACH = 0.25  # attention's σ of the distance, as a share of the image's side
# Queries on the photograph, as shares of its height and width.
QUERIES = {"saucer": (0.60, 0.27), "coffee": (0.34, 0.50), "spoon": (0.70, 0.69), "table": (0.14, 0.90)}


def photograph(side):
    """Return scikit-image's cup of coffee, cut square and made small: (side, side, 3), 0 to 1."""
    square = skimage.data.coffee()[:, 60:460]
    return resize(square, (side, side), anti_aliasing=True).astype("float32")


def unit(image):
    """Return weight (1, 4, 1, 3, H, W) and u (1, 4, 1, H, W) made from an image (H, W, 3)."""
    height, width = image.shape[:2]
    padded = np.pad(image, ((1, 1), (1, 1), (0, 0)), constant_values=np.inf)  # nothing outside is alike
    alike = np.empty((1, 4, 1, 3, height, width), "float32")
    steps = {"left_to_right": (0, -1), "right_to_left": (0, 1), "top_to_bottom": (-1, 0), "bottom_to_top": (1, 0)}
    for d, direction in enumerate(gspn2_cupy.ALL_DIRECTIONS):
        back = steps[direction]  # to the line before, as rows and columns
        for k in range(3):
            row, column = (step if step else k - 1 for step in back)
            neighbour = padded[1 + row : 1 + row + height, 1 + column : 1 + column + width]
            alike[0, d, 0, k] = np.exp(-((neighbour - image) ** 2).sum(axis=-1) / (2 * COLOUR**2))
    best, total = alike.max(axis=3, keepdims=True), alike.sum(axis=3, keepdims=True)
    weight = KEEP * best * alike / np.maximum(total, 1e-20)
    received = gspn2_cupy.propagate(np.ones((1, 1, height, width), "float32"), weight)
    return weight, np.repeat(1 / received[:, None], 4, axis=1)


def pixels_of(image):
    """Return the colour (P, 3) and the place (P, 2), the side being 1, of each pixel in row-major order."""
    places = np.indices(image.shape[:2], dtype="float32").reshape(2, -1).T / len(image)
    return image.reshape(-1, 3), places


def softmax_rows(scores):
    exponentials = np.exp(scores - scores.max(axis=1, keepdims=True))
    return exponentials / exponentials.sum(axis=1, keepdims=True)


def squared_distances(a):
    squares = (a**2).sum(axis=1)
    return squares[:, None] + squares - 2 * a @ a.T


def overlap(a, b):
    """Return the weight that two maps, each of sum 1, have in common: 1 for the same map, 0 for disjoint ones."""
    return float(np.minimum(a, b).sum())


def draw(image, maps, queries, output):
    side = len(image)
    figure, axes = plt.subplots(len(queries), 1 + len(maps), figsize=(2.5 * (1 + len(maps)), 2.5 * len(queries) + 0.5))
    for i, (query, pixel) in enumerate(queries.items()):
        row, column = divmod(pixel, side)
        for j, (title, map_) in enumerate([("the photograph", None), *maps.items()]):
            each = axes[i, j]
            if map_ is None:
                each.imshow(image)
                each.set_ylabel(query, fontsize=12)
            else:
                values = map_[pixel].reshape(side, side)
                # A pixel's weight on itself outshines the rest; what is above the 99.5th percentile is drawn alike.
                each.imshow(values / np.quantile(values, 0.995), cmap="inferno", vmin=0, vmax=1)
            each.plot(
                column, row, "o", markersize=9, markerfacecolor="none", markeredgecolor="white", markeredgewidth=2
            )
            each.plot(column, row, "o", markersize=9, markerfacecolor="none", markeredgecolor="deepskyblue")
            each.set_xticks([])
            each.set_yticks([])
            if i == 0:
                each.set_title(title, fontsize=12)
    figure.tight_layout()
    figure.savefig(output, dpi=80)
    plt.close(figure)


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", type=int, default=64, help="pixels of the photograph's side (default: 64)")
    parser.add_argument("--output", type=Path, default=Path("affinity_map.png"), help="the picture")
    parser.add_argument("--quick", action="store_true", help="a smaller photograph")
    options = parser.parse_args(arguments)
    side = 24 if options.quick else options.side

    image = photograph(side)
    weight, u = unit(image)
    start = time.perf_counter()
    affinity = gspn2_cupy.affinity_matrix(weight, u=u)[0, 0]
    seconds = time.perf_counter() - start

    # The matrix is the operator: a product with it is what the scans compute without it.
    x = np.random.default_rng(0).standard_normal((1, 1, side, side), "float32")
    start = time.perf_counter()
    y = gspn2_cupy.propagate(x, weight, u=u)
    scans = time.perf_counter() - start
    error = np.linalg.norm(affinity @ x.ravel() - y.ravel()) / np.linalg.norm(y)

    colours, places = pixels_of(image)
    distance = -squared_distances(places) / (2 * REACH**2)
    maps = {
        "one unit, A": affinity,
        "two units, A·A": affinity @ affinity,
        "softmax attention": softmax_rows(distance - squared_distances(colours) / (2 * COLOUR**2)),
    }
    blind = softmax_rows(distance)
    queries = {name: int(row * side) * side + int(column * side) for name, (row, column) in QUERIES.items()}
    draw(image, maps, queries, options.output)

    sums = {title: float(np.abs(map_.sum(axis=1) - 1).max()) for title, map_ in maps.items()}
    print(f"photograph  {side} x {side} pixels: {side**2} x {side**2} affinities")
    print(f"affinity    {seconds:.2f} s for the whole matrix; the scans alone, without it, {1e3 * scans:.1f} ms")
    print(f"A·x = y     relative error {error:.1e}")
    print(f"rows        sum to 1 within {max(sums.values()):.1e}")
    print("overlap with attention (1: the same map)")
    print(f"  {'query':10}" + "".join(f"{name:>16}" for name in ("one unit", "two units", "distance alone")))
    compared = (affinity, maps["two units, A·A"], blind)
    rows = {
        name: [overlap(m[pixel], maps["softmax attention"][pixel]) for m in compared] for name, pixel in queries.items()
    }
    every = [float(np.minimum(m, maps["softmax attention"]).sum(axis=1).mean()) for m in compared]
    for name, values in [*rows.items(), ("all pixels", every)]:
        print(f"  {name:10}" + "".join(f"{value:16.2f}" for value in values))
    print(f"picture     {options.output}")
    return {"error": error, "row_sums": max(sums.values()), "overlap": every}


if __name__ == "__main__":
    main()
