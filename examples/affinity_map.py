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

The weights of a pixel sum to less than 1, and to almost 0 where a colour begins. `gspn2_cupy.normalize_weights`, and
with it `CompactPropagation`, makes others, which sum to 1: each pixel hears a full share of the line before, even when
none of it is alike. So the same likeness in row-stochastic weights, s_k / Σ_j s_j, is measured, too.

Ends in the picture, and in how much of each map's weight lies where attention puts its own, beside a yardstick that
knows nothing of the photograph: a map of the distance alone, at the reach that makes it most like attention's.
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
REACHES = (0.06, 0.08, 0.10, 0.12, 0.14, 0.16, 0.20, REACH)  # of the yardstick, to choose from
MOST = 96  # pixels of the side: a matrix takes 4·side⁴ bytes, and several are made
# Queries on the photograph, as shares of its height and width.
QUERIES = {"saucer": (0.60, 0.27), "coffee": (0.34, 0.50), "spoon": (0.70, 0.69), "table": (0.14, 0.90)}


def photograph(side):
    """Return scikit-image's cup of coffee, cut square and made small: (side, side, 3), 0 to 1."""
    square = skimage.data.coffee()[:, 60:460]
    return resize(square, (side, side), anti_aliasing=True).astype("float32")


def unit(image, row_stochastic=False):
    """Return weight (1, 4, 1, 3, H, W) and u (1, 4, 1, H, W) made from an image (H, W, 3)."""
    height, width = image.shape[:2]
    padded = np.pad(image, ((1, 1), (1, 1), (0, 0)), constant_values=np.inf)  # nothing outside is alike
    logits = np.empty((1, 4, 1, 3, height, width), "float32")  # the logarithms of s
    steps = {"left_to_right": (0, -1), "right_to_left": (0, 1), "top_to_bottom": (-1, 0), "bottom_to_top": (1, 0)}
    for d, direction in enumerate(gspn2_cupy.ALL_DIRECTIONS):
        back = steps[direction]  # to the line before, as rows and columns
        for k in range(3):
            row, column = (step if step else k - 1 for step in back)
            neighbour = padded[1 + row : 1 + row + height, 1 + column : 1 + column + width]
            logits[0, d, 0, k] = -((neighbour - image) ** 2).sum(axis=-1) / (2 * COLOUR**2)
    if row_stochastic:
        each = zip(np.maximum(logits[0], -1e4), gspn2_cupy.ALL_DIRECTIONS, strict=True)  # no infinities
        parts = [gspn2_cupy.normalize_weights(z[None], direction=name, method="softmax") for z, name in each]
        weight = np.stack(parts, axis=1)
    else:
        alike = np.exp(logits)
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


def overlaps(a, b):
    """Return the weight that the maps of each pixel have in common (P,): 1 for the same map, 0 for disjoint ones."""
    return np.minimum(a, b).sum(axis=1)


def blind_map(places, attention):
    """Return the reach at which a map of the distance alone is most like attention's, and that map."""
    squares = squared_distances(places)

    def at(reach):
        return softmax_rows(-squares / (2 * reach**2))

    best = max(REACHES, key=lambda reach: overlaps(at(reach), attention).mean())
    return best, at(best)


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
    parser.add_argument(
        "--side", type=int, default=64, help=f"pixels of the photograph's side, 8 to {MOST} (default: 64)"
    )
    parser.add_argument("--output", type=Path, default=Path("affinity_map.png"), help="the picture")
    parser.add_argument("--quick", action="store_true", help="a smaller photograph")
    options = parser.parse_args(arguments)
    if not options.output.parent.is_dir():
        parser.error(f"--output: there is no folder {options.output.parent}")
    side = 24 if options.quick else options.side
    if not 8 <= side <= MOST:
        cost = f": one matrix of it takes {4 * side**4 / 2**30:.1f} GiB" if side > MOST else ""
        parser.error(f"--side must be 8 to {MOST}, got {side}{cost}")

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
    scores = -squared_distances(places) / (2 * REACH**2) - squared_distances(colours) / (2 * COLOUR**2)
    attention = softmax_rows(scores)
    reach, blind = blind_map(places, attention)
    maps = {
        "one unit, A": affinity,
        "two units, A·A": affinity @ affinity,
        "softmax attention": attention,
        f"distance alone, σ = {reach:.2f}": blind,
    }
    queries = {name: int(row * side) * side + int(column * side) for name, (row, column) in QUERIES.items()}
    draw(image, maps, queries, options.output)

    stochastic, its_u = unit(image, row_stochastic=True)
    stochastic = gspn2_cupy.affinity_matrix(stochastic, u=its_u)[0, 0]
    compared = {
        "one unit": affinity,
        "two units": maps["two units, A·A"],
        "distance alone": blind,
        "one, stochastic": stochastic,
        "two, stochastic": stochastic @ stochastic,
    }
    off = max(float(np.abs(map_.sum(axis=1) - 1).max()) for map_ in (attention, *compared.values()))
    likeness = {title: overlaps(map_, attention) for title, map_ in compared.items()}
    every = {title: float(values.mean()) for title, values in likeness.items()}
    sums = weight.sum(axis=3)
    print(f"photograph  {side} x {side} pixels: {side**2} x {side**2} affinities")
    tenth, half, most = np.quantile(sums, (0.1, 0.5, 1))
    print(
        f"weights     of a pixel sum to {half:.2f} in the median, {most:.2f} at most; a tenth to less than {tenth:.2f}"
    )
    print(f"affinity    {seconds:.2f} s for the whole matrix; the scans alone, without it, {1e3 * scans:.1f} ms")
    print(f"A·x = y     relative error {error:.1e}")
    print(f"rows        sum to 1 within {off:.1e}")
    print(f"yardstick   the distance alone, σ = {reach:.2f} of the side: the best of {REACHES}")
    print("overlap with attention (1: the same map)")
    print(f"  {'query':10}" + "".join(f"{title:>17}" for title in likeness))
    for name, pixel in queries.items():
        print(f"  {name:10}" + "".join(f"{values[pixel]:17.2f}" for values in likeness.values()))
    print(f"  {'all pixels':10}" + "".join(f"{value:17.3f}" for value in every.values()))
    print(f"picture     {options.output}")
    return {"error": error, "row_sums": off, "overlap": every, "reach": reach}


if __name__ == "__main__":
    main()
