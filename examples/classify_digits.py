"""Read handwritten digits with a small GSPN-2 network, trained in about a minute on a CPU.

    python examples/classify_digits.py

The digits are real: 1797 images of 8 × 8 pixels that come with scikit-learn, written by 13 people. A fifth of them is
held out, in the same proportions of digits, and never seen in training. (Other digits by the same people are.)

The network is what a vision network of this kind looks like, only smaller: a convolution makes channels out of pixels,
blocks mix them over the image by the four line scans of `gspn2_cupy.torch.CompactPropagation` (network.py has the rest
of a block), and the means over the four quarters of the image go into a linear layer. There is no attention anywhere.

Ends in the accuracy on the held-out digits, and a picture of the hardest among them.
"""

import argparse
from pathlib import Path

import matplotlib
import numpy as np
import torch
from network import Block, parameters_of, train
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import nn

from gspn2_cupy.torch import CompactPropagation

matplotlib.use("Agg")
import matplotlib.pyplot as plt

CHANNELS, PROXIES, BLOCKS = 48, 8, 2


class Reader(nn.Module):
    """(B, 1, 8, 8) -> (B, 10), a score for each digit."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(1, CHANNELS, 3, padding=1)
        self.blocks = nn.Sequential(*[Block(CHANNELS, CompactPropagation(CHANNELS, PROXIES)) for _ in range(BLOCKS)])
        self.norm = nn.BatchNorm2d(CHANNELS)
        self.head = nn.Sequential(nn.AvgPool2d(4), nn.Flatten(), nn.Linear(4 * CHANNELS, 10))

    def forward(self, x):
        return self.head(self.norm(self.blocks(self.stem(x))))


def digits(seed):
    """Return images (B, 1, 8, 8), 0 to 1, and labels: those to train with, and those held out."""
    images, labels = load_digits(return_X_y=True)
    images = (images / 16).astype("float32").reshape(-1, 1, 8, 8)
    parts = train_test_split(images, labels, test_size=0.2, stratify=labels, random_state=seed)
    return [torch.from_numpy(part) for part in parts]


def moved(images, generator):
    """Shift each image by up to a pixel in each direction: written a little to the side, a digit is the same."""
    padded = nn.functional.pad(images, (1, 1, 1, 1))[:, 0]
    corners = torch.randint(3, (2, len(images), 1), generator=generator)
    rows, columns = corners + torch.arange(8)
    return padded[torch.arange(len(images))[:, None, None], rows[:, :, None], columns[:, None, :]][:, None]


def draw(losses, images, labels, probabilities, output):
    hardest = probabilities[torch.arange(len(labels)), labels].argsort()[:24]
    figure = plt.figure(figsize=(12, 5), layout="constrained")
    left, right = figure.subfigures(1, 2, width_ratios=(1, 1.7))
    axes = left.subplots()
    axes.semilogy(losses, color="lightsteelblue")
    axes.semilogy(range(19, len(losses)), np.convolve(losses, np.ones(20) / 20, "valid"), color="navy")
    axes.set(xlabel="step", ylabel="loss on the training digits")
    for each, image in zip(right.subplots(4, 6).flat, hardest, strict=True):
        label, read = int(labels[image]), int(probabilities[image].argmax())
        each.imshow(images[image, 0], cmap="gray_r")
        title = f"{label} read as {read}, {float(probabilities[image, read]):.0%}"
        each.set_title(title, fontsize=9, color="black" if read == label else "crimson")
        each.axis("off")
    right.suptitle("the held-out digits that were hardest to read; red: read wrongly")
    figure.savefig(output, dpi=80)
    plt.close(figure)


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=1000, help="of training (default: 1000)")
    parser.add_argument("--seed", type=int, default=0, help="of everything random, also of what is held out")
    parser.add_argument("--threads", type=int, default=1, help="of PyTorch (default: 1; more help on an idle machine)")
    parser.add_argument("--device", default="cpu", help="cpu (default) or cuda")
    parser.add_argument("--output", type=Path, default=Path("classify_digits.png"), help="the picture")
    parser.add_argument("--quick", action="store_true", help="a short training")
    options = parser.parse_args(arguments)
    if not options.output.parent.is_dir():
        parser.error(f"--output: there is no folder {options.output.parent}")
    steps = 100 if options.quick else options.steps
    if steps < 20:
        parser.error(f"--steps must be at least 20, got {steps}: the learning rate rises and falls in them")
    torch.set_num_threads(options.threads)

    images, test_images, labels, test_labels = digits(options.seed)
    torch.manual_seed(options.seed)
    model = Reader().to(options.device)
    generator = torch.Generator().manual_seed(options.seed)

    def loss_of_step(step):
        picks = torch.randint(len(images), (64,), generator=generator)
        x, y = moved(images[picks], generator).to(options.device), labels[picks].to(options.device)
        return nn.functional.cross_entropy(model(x), y, label_smoothing=0.05)

    losses, seconds = train("digits", model, loss_of_step, steps, rate=1e-2)
    with torch.no_grad():
        probabilities = model(test_images.to(options.device)).softmax(1).cpu()
    right = int((probabilities.argmax(1) == test_labels).sum())
    draw(losses, test_images, test_labels, probabilities, options.output)

    accuracy = right / len(test_labels)
    print(f"network   {parameters_of(model)} parameters, {BLOCKS} blocks of four line scans")
    print(f"training  {steps} steps of 64 out of {len(images)} digits, {seconds:.0f} s")
    print(f"held out  {right} of {len(test_labels)} digits read rightly: {accuracy:.1%}")
    print(f"picture   {options.output}")
    return {"accuracy": accuracy, "seconds": seconds}


if __name__ == "__main__":
    main()
