"""Where does water go? A task that needs the whole image: GSPN-2 beside convolution and attention.

    python examples/long_range.py

The images are caves: open pixels and rock, drawn at random. One pixel is marked, the spring. The network says of each
open pixel whether a path through open pixels leads there. The way may be long and winding, so no pixel can be judged by
what is around it; signals must travel through the image.

Three networks are trained alike, on the same caves for the same number of steps. They are four blocks each, have about
the same number of parameters, and differ only in how a block mixes the image (network.py has the rest of it):

- GSPN-2: `gspn2_cupy.torch.CompactPropagation`, four line scans. Its weights decide which neighbour to hear, so in one
  block a signal can run along a corridor, as far as the corridor goes on in one of the four directions.
- convolution, 3 × 3: two pixels further in each block, nine in all.
- attention, with learned positions of rows and columns: it reaches every pixel in one block, but has to learn what a
  path is.

Ends in the figures of each on caves that it has never seen: how many pixels it judged rightly, how many of the pixels
that water reaches it found, by the length of the way there, and how many dry ones it took for wet.
"""

import argparse
import itertools
import math
from pathlib import Path

import matplotlib
import numpy as np
import torch
from matplotlib.colors import ListedColormap
from network import Block, parameters_of, train
from skimage.filters import gaussian
from skimage.measure import label
from torch import nn

from gspn2_cupy.torch import CompactPropagation

matplotlib.use("Agg")
import matplotlib.pyplot as plt

BLOCKS = 4
LENGTHS = (1, 6, 11, 16, 21, 26, 1000)  # of the way, in groups from each to the next


# --- the caves --------------------------------------------------------------------------------------------------------


def caves(count, side, seed):
    """Return images (count, 2, side, side), open pixels and spring, and the wet pixels (count, side, side)."""
    random = np.random.default_rng(seed)
    images, water = np.zeros((count, 2, side, side), "float32"), np.zeros((count, side, side), "float32")
    done = 0
    while done < count:
        noise = gaussian(random.standard_normal((side, side)), 1.2, mode="mirror")
        passable = noise > np.quantile(noise, 0.4)
        row, column = random.choice(np.argwhere(passable))
        rooms = label(passable, connectivity=1)
        wet = rooms == rooms[row, column]
        if 0.3 < wet.sum() / passable.sum() < 0.7:  # so that "all of it" and "none of it" are bad answers
            images[done, 0], images[done, 1, row, column], water[done] = passable, 1, wet
            done += 1
    return torch.from_numpy(images), torch.from_numpy(water)


def lengths(images):
    """Return how many steps from the spring each pixel is (count, side, side), -1 where no path leads."""
    passable, front = images[:, 0].numpy() > 0, images[:, 1].numpy() > 0
    steps = np.where(front, 0, -1)
    while front.any():
        padded = np.pad(front, ((0, 0), (1, 1), (1, 1)))
        beside = padded[:, 2:, 1:-1] | padded[:, :-2, 1:-1] | padded[:, 1:-1, 2:] | padded[:, 1:-1, :-2]
        front = beside & passable & (steps < 0)
        steps[front] = steps.max() + 1
    return steps


# --- the networks -----------------------------------------------------------------------------------------------------


class Attention(nn.Module):
    """Softmax attention among all pixels, (B, C, H, W) -> (B, C, H, W)."""

    def __init__(self, channels, heads=2):
        super().__init__()
        self.heads = heads
        self.qkv, self.out = nn.Conv2d(channels, 3 * channels, 1), nn.Conv2d(channels, channels, 1)

    def forward(self, x):
        qkv = self.qkv(x).flatten(2).unflatten(1, (3, self.heads, -1)).transpose(-1, -2)
        y = nn.functional.scaled_dot_product_attention(*qkv.unbind(1))
        return self.out(y.transpose(-1, -2).reshape(x.shape))


class Position(nn.Module):
    """Adds a learned vector for the row and one for the column: attention can't see where a pixel is otherwise."""

    def __init__(self, channels, side):
        super().__init__()
        self.row = nn.Parameter(0.02 * torch.randn(channels, side, 1))
        self.column = nn.Parameter(0.02 * torch.randn(channels, 1, side))

    def forward(self, x):
        return x + self.row + self.column


def network(channels, mixer, position=None):
    blocks = [Block(channels, mixer()) for _ in range(BLOCKS)]
    stem = nn.Conv2d(2, channels, 3, padding=1)
    return nn.Sequential(stem, position or nn.Identity(), *blocks, nn.BatchNorm2d(channels), nn.Conv2d(channels, 1, 1))


NETWORKS = {  # the numbers of channels make them equal in size
    "GSPN-2": lambda side: network(42, lambda: CompactPropagation(42, 8)),
    "convolution": lambda side: network(26, lambda: nn.Conv2d(26, 26, 3, padding=1)),
    "attention": lambda side: network(32, lambda: Attention(32), Position(32, side)),
}


# --- training and judgement -------------------------------------------------------------------------------------------


def fit(name, model, images, water, options, steps):
    chosen = torch.Generator().manual_seed(options.seed)

    def loss_of_step(step):
        picks = torch.randint(len(images), (32,), generator=chosen)
        x, y = images[picks], water[picks]
        turns = int(torch.randint(4, (), generator=chosen))  # each cave serves in four positions, and mirrored
        x, y = x.rot90(turns, (-2, -1)), y.rot90(turns, (-2, -1))
        if torch.rand((), generator=chosen) < 0.5:
            x, y = x.flip(-1), y.flip(-1)
        x, y = x.to(options.device), y.to(options.device)
        passable = x[:, 0]
        losses = nn.functional.binary_cross_entropy_with_logits(model(x)[:, 0], y, reduction="none")
        return (losses * passable).sum() / passable.sum()

    return train(f"{name:12}", model, loss_of_step, steps, options.rate)[1]


@torch.no_grad()
def judge(model, images, water, device):
    """Return the wet pixels as the model sees them, and the figures."""
    said = torch.cat([model(part.to(device)).cpu()[:, 0] for part in images.split(64)]).numpy() > 0
    passable, wet, steps = images[:, 0].numpy() > 0, water.numpy() > 0, lengths(images)
    groups = [said[wet & (steps >= a) & (steps < b)] for a, b in itertools.pairwise(LENGTHS)]
    figures = {
        "accuracy": float((said == wet)[passable].mean()),
        "sizes": [group.size for group in groups],
        "found": [float(group.mean()) if group.size else math.nan for group in groups],
        "false": float(said[passable & ~wet].mean()),
        "whole": float(((said == wet) | ~passable).all(axis=(1, 2)).mean()),
    }
    return said & passable, figures


def names_of_lengths():
    return [f"{a}–{b - 1}" for a, b in itertools.pairwise(LENGTHS[:-1])] + [f"{LENGTHS[-2]}+"]


def draw(images, water, said, figures, output):
    figure = plt.figure(figsize=(13, 6.4), layout="constrained")
    left, right = figure.subfigures(1, 2, width_ratios=(1.35, 1))
    colours = ListedColormap(["#2b2b2b", "#e9e3d5", "#4a90d9", "#d64545", "#f2b134"])  # rock, dry, wet, both mistakes
    steps = lengths(images)
    shown = np.argsort(-steps.max(axis=(1, 2)))[:40:10]  # four of the caves with the longest ways
    names = ["the truth", *said]
    axes = left.subplots(len(names), len(shown))
    for row, name in enumerate(names):
        for column, cave in enumerate(shown):
            passable, wet = images[cave, 0].numpy() > 0, water[cave].numpy() > 0
            answer = wet if name == "the truth" else said[name][cave]
            values = np.select([~passable, answer & wet, answer & ~wet, ~answer & wet], [0, 2, 3, 4], 1)
            each = axes[row, column]
            each.imshow(values, cmap=colours, vmin=0, vmax=4)
            spring = np.argwhere(images[cave, 1].numpy() > 0)[0]
            each.plot(spring[1], spring[0], "*", color="white", markersize=11, markeredgecolor="black")
            each.set_xticks([])
            each.set_yticks([])
            if column == 0:
                each.set_ylabel(name, fontsize=11)
    left.suptitle("star: spring; blue: wet, rightly; red: wet, wrongly; yellow: wet, but not found", fontsize=11)
    axes = right.subplots()
    sizes = figures["GSPN-2"]["sizes"]
    ways = [f"{name}\n({size})" for name, size in zip(names_of_lengths(), sizes, strict=True)]
    for name, each in figures.items():
        found = [100 * share for share in each["found"]]
        axes.plot(ways, found, "o-", label=f"{name}: {each['accuracy']:.1%} of all pixels right")
    xlabel = "length of the way from the spring, in pixels (and how many are wet)"
    axes.set(xlabel=xlabel, ylabel="wet pixels found, %", ylim=(0, 103))
    right.legend(loc="outside lower center")
    axes.grid(alpha=0.3)
    figure.savefig(output, dpi=80)
    plt.close(figure)


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=1000, help="of training, for each network (default: 1000)")
    parser.add_argument("--rate", type=float, default=8e-3, help="of learning, at its highest (default: 0.008)")
    parser.add_argument("--seed", type=int, default=0, help="of everything random, the caves included (default: 0)")
    parser.add_argument("--threads", type=int, default=1, help="of PyTorch (default: 1; more help on an idle machine)")
    parser.add_argument("--device", default="cpu", help="cpu (default) or cuda")
    parser.add_argument("--output", type=Path, default=Path("long_range.png"), help="the picture")
    parser.add_argument("--quick", action="store_true", help="a short training on few caves")
    options = parser.parse_args(arguments)
    if not options.output.parent.is_dir():
        parser.error(f"--output: there is no folder {options.output.parent}")
    side, steps, count, unseen = (8, 100, 1024, 128) if options.quick else (16, options.steps, 8192, 512)
    if steps < 20:
        parser.error(f"--steps must be at least 20, got {steps}: the learning rate rises and falls in them")
    torch.set_num_threads(options.threads)

    images, water = caves(count, side, seed=2 * options.seed)
    test_images, test_water = caves(unseen, side, seed=2 * options.seed + 1)
    said, figures = {}, {}
    for name, build in NETWORKS.items():
        torch.manual_seed(options.seed)
        model = build(side).to(options.device)
        seconds = fit(name, model, images, water, options, steps)
        said[name], figures[name] = judge(model, test_images, test_water, options.device)
        figures[name] |= {"parameters": parameters_of(model), "seconds": seconds}
    draw(test_images, test_water, said, figures, options.output)

    share = float(test_water.sum() / test_images[:, 0].sum())
    print(f"{unseen} unseen caves of {side} x {side} pixels, {share:.1%} of the open ones wet")
    print(f"{'':84}wet pixels found, by length of the way")
    ways = "".join(f"{name:>8}" for name in names_of_lengths())
    print(f"{'':12}  parameters  trained in  pixels right  caves all right  wet, wrongly{ways}")
    sizes = "".join(f"{size:>8}" for size in figures["GSPN-2"]["sizes"])
    print(f"{'how many there are':82}{sizes}")
    for name, each in figures.items():
        found = "".join(f"{'–' if math.isnan(part) else f'{part:.1%}':>8}" for part in each["found"])
        print(
            f"{name:12}{each['parameters']:12}{each['seconds']:10.0f} s{each['accuracy']:14.1%}{each['whole']:17.1%}"
            f"{each['false']:14.1%}{found}"
        )
    print(f"picture       {options.output}")
    return figures


if __name__ == "__main__":
    main()
