"""``python -m gspn2_cupy demo``: colour a grey photograph from a few coloured pixels.

The photograph's luma Y (its grey values) and the chroma (R − Y, B − Y) of a few random pixels, the hints, are known.
The four-direction line scan carries chroma and a mask of ones away from the hints, with weights that fall across edges
of the grey image and are 0 at the hints, which therefore keep their own value::

    weight_k = 0.9/3 · exp(−|Δgrey| / scale),    scale = 0.01 + 1.5 · local mean of |Δgrey|
    chroma   = propagate(chroma · mask) / propagate(mask)

The mask that arrives is the divisor: it turns the sum over all paths into a mean. Two more passes start from the chroma
that the one before found, with a mask of ones wherever it found any. The yardstick is the plain fill: the nearest
hint's chroma at every pixel.
"""

from __future__ import annotations

import argparse
import io
import json
import math
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

import gspn2_cupy

Array = npt.NDArray[Any]

RED, GREEN, BLUE = 0.299, 0.587, 0.114  # luma, ITU-R BT.601: what most programs mean by "convert to grey"
PASSES = 3
DECAY = 0.9  # per line; nearer hints count more
SMALLEST_SCALE, SCALE_PER_CONTRAST, CONTRAST_SMOOTHING = 0.01, 1.5, 8
ARRIVED = 1e-20  # a smaller mask has lost too many digits in float32 to divide by

# Where the previous line of a direction lies, in rows and columns.
PREVIOUS = {"left_to_right": (0, -1), "right_to_left": (0, 1), "top_to_bottom": (-1, 0), "bottom_to_top": (1, 0)}


class DemoError(Exception):
    """What the user can put right, in one line."""


# --- the command ----------------------------------------------------------------------------------------------


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of the command."""
    parser.description = (
        "Take a photograph, forget all its colour but that of a few percent of the pixels, propagate that over the "
        "image with edge-aware weights made from the grey values, and compare the result with the original. "
        "Runs on the GPU with CuPy where it can, else on the CPU with NumPy."
    )
    parser.add_argument("image", nargs="?", metavar="IMAGE", help="image file (default: scikit-image's astronaut)")
    parser.add_argument(
        "--hints", default="0.02", metavar="FRACTION", help="pixels that keep their colour (default: 0.02)"
    )
    parser.add_argument("--output", default="demo.png", metavar="PNG", help="picture to write (default: demo.png)")
    parser.add_argument("--seed", default=0, type=int, metavar="N", help="places the hints (default: 0)")
    parser.add_argument(
        "--json", action="store_true", help="print one JSON object: backend, shape, seconds, psnr, psnr_nearest"
    )


def run(arguments: argparse.Namespace) -> int:
    """Run the demo; return 0, or 2 after one line on standard error."""
    try:
        _run(arguments)
    except DemoError as error:
        print(f"python -m gspn2_cupy demo: {error}", file=sys.stderr)
        return 2
    return 0


def _run(arguments: argparse.Namespace) -> None:
    fraction, output = _fraction(arguments.hints), Path(arguments.output)
    if arguments.seed < 0:
        raise DemoError(f"--seed must be 0 or more; got {arguments.seed}")
    _require_extra()
    original = _photograph(arguments.image)
    _check_writable(output, arguments.image)
    try:
        hints = _place_hints(original.shape[:2], fraction, arguments.seed)
        xp, backend = _array_module()
        grey, chroma = _split(original)
        nearest = _nearest_chroma(chroma, hints)
        if xp is not np:
            colorize(xp, grey, chroma, hints, nearest)  # compiles the kernels, untimed
        start = time.perf_counter()
        filled = colorize(xp, grey, chroma, hints, nearest)
        seconds = time.perf_counter() - start
        result, plain = _join(grey, filled), _join(grey, nearest)
        psnr, psnr_nearest = _psnr(result, original), _psnr(plain, original)
        picture = _picture(original, grey, nearest, hints, result, psnr, psnr_nearest)
    except MemoryError:
        raise DemoError(f"an image of {_size(original)} pixels needs more memory than there is") from None
    _write(output, picture)

    height, width = grey.shape
    if arguments.json:
        report = {
            "backend": xp.__name__,
            "shape": [1, 3, height, width],
            "seconds": round(seconds, 6),
            "psnr": round(psnr, 4) if math.isfinite(psnr) else None,  # JSON has no infinity
            "psnr_nearest": round(psnr_nearest, 4) if math.isfinite(psnr_nearest) else None,
        }
        print(json.dumps(report))
        return
    name = "scikit-image's astronaut" if arguments.image is None else repr(arguments.image)
    gain = f" ({psnr - psnr_nearest:+.2f} dB)" if math.isfinite(psnr) and math.isfinite(psnr_nearest) else ""
    print(f"image    {name}, {_size(original)} pixels, colour kept at {hints.sum()} of {hints.size}")
    print(f"backend  {backend}")
    print(f"shapes   x (1, 3, {height}, {width}), weight (1, 4, 1, 3, {height}, {width}), float32, {PASSES} passes")
    print(f"time     {seconds:.3f} s")
    print(f"PSNR     {psnr:.2f} dB propagated, {psnr_nearest:.2f} dB plain fill with the nearest hint's chroma{gain}")
    print(f"picture  {str(output)!r}")


# --- the method -----------------------------------------------------------------------------------------------


def colorize(xp: Any, grey: Array, chroma: Array, hints: Array, nearest: Array) -> Array:
    """Propagate the chroma of the hints over the image.

    Parameters
    ----------
    xp : module
        ``numpy`` or ``cupy``: where it runs. All arrays are NumPy's.
    grey : array (H, W), float32
        The grey values, 0 to 1.
    chroma : array (2, H, W), float32
        Read at the hints only.
    hints : array (H, W), bool
        The pixels whose chroma is known.
    nearest : array (2, H, W), float32
        What stands where no hint reaches.

    Returns
    -------
    chroma : array (2, H, W), float32
    """
    mask = xp.asarray(hints)
    weight = edge_weights(xp, xp.asarray(grey)) * ~mask
    known, fallback = xp.where(mask, xp.asarray(chroma), 0), xp.asarray(nearest)
    for _ in range(PASSES):
        x = xp.concatenate([known, mask[None]]).astype(xp.float32)
        y = gspn2_cupy.propagate(x[None], weight)[0]
        mask = y[2] > ARRIVED
        known = xp.where(mask, y[:2] / xp.where(mask, y[2], 1), 0)
    filled = xp.where(mask, known, fallback)
    return np.asarray(filled if xp is np else xp.asnumpy(filled))


def edge_weights(xp: Any, grey: Any) -> Any:
    """Make the weights (1, 4, 1, 3, H, W) of ``propagate`` from a grey image (H, W); they sum to less than 1."""
    guide = _smooth(xp, grey, 1)  # takes the edge off noise
    beside = xp.stack([_shifted(xp, guide, *offset) for offset in PREVIOUS.values()])
    contrast = _smooth(xp, xp.abs(beside - guide).mean(axis=0), CONTRAST_SMOOTHING)
    scale = SMALLEST_SCALE + SCALE_PER_CONTRAST * contrast  # what counts as an edge here
    weight = xp.empty((1, 4, 1, 3, *grey.shape), xp.float32)
    for d, direction in enumerate(gspn2_cupy.ALL_DIRECTIONS):
        rows, columns = PREVIOUS[direction]
        for k in range(3):
            neighbour = _shifted(xp, guide, rows + (k - 1) * abs(columns), columns + (k - 1) * abs(rows))
            weight[0, d, 0, k] = DECAY / 3 * xp.exp(-xp.abs(guide - neighbour) / scale)
    return weight


def _shifted(xp: Any, image: Any, rows: int, columns: int) -> Any:
    """Return the image whose pixel (i, j) is pixel (i + rows, j + columns) of ``image``, continued at the border."""
    height, width = image.shape
    padded = xp.pad(image, 1, mode="edge")
    return padded[1 + rows : 1 + rows + height, 1 + columns : 1 + columns + width]


def _smooth(xp: Any, image: Any, times: int) -> Any:
    """Apply the binomial filter [1, 2, 1]/4 along both axes so many times: a variance of times/2 pixels² along each."""
    for _ in range(times):
        padded = xp.pad(image, 1, mode="edge")
        rows = padded[:-2] + 2 * padded[1:-1] + padded[2:]
        image = (rows[:, :-2] + 2 * rows[:, 1:-1] + rows[:, 2:]) / 16
    return image


def _array_module() -> tuple[Any, str]:
    """Return ``cupy`` if the operator runs on a GPU here, else ``numpy``, and a line that says which and why."""
    try:
        import cupy

        ones = cupy.ones((1, 1, 2, 2), cupy.float32)
        gspn2_cupy.propagate(ones, cupy.ones((1, 4, 1, 3, 2, 2), cupy.float32))
        device = cupy.cuda.runtime.getDeviceProperties(cupy.cuda.Device().id)["name"].decode()
    except ModuleNotFoundError as error:
        why_not = "CuPy is not installed" if error.name == "cupy" else _one_line(error)
    except Exception as error:  # no driver, no device, no compiler, …: whatever it is, the CPU serves
        why_not = f"CuPy cannot run here: {_one_line(error)}"
    else:
        return cupy, f"CUDA kernels through CuPy {cupy.__version__} on {device}"
    return np, f"NumPy {np.__version__} on the CPU ({why_not})"


# --- images ---------------------------------------------------------------------------------------------------


def _split(image: Array) -> tuple[Array, Array]:
    """Split an image (H, W, 3) of bytes into luma (H, W) and chroma (R − Y, B − Y) (2, H, W), white being 1."""
    red, green, blue = np.moveaxis(image.astype(np.float32) / np.float32(255), -1, 0)
    luma = RED * red + GREEN * green + BLUE * blue
    return luma, np.stack([red - luma, blue - luma])


def _join(luma: Array, chroma: Array) -> Array:
    """Undo :func:`_split`, cutting off what no screen shows."""
    red, blue = luma + chroma
    green = (luma - RED * red - BLUE * blue) / GREEN
    image: Array = np.rint(255 * np.clip(np.stack([red, green, blue], axis=-1), 0, 1))
    return image.astype(np.uint8)


def _psnr(image: Array, original: Array) -> float:
    """Peak signal-to-noise ratio in decibels over all RGB values of two images of bytes; infinite if equal."""
    error = float(np.mean(np.square(image.astype(np.float32) - original), dtype=np.float64))
    return 10 * math.log10(255**2 / error) if error else math.inf


def _place_hints(shape: tuple[int, ...], fraction: float, seed: int) -> Array:
    """Choose that fraction of the pixels, at least one, all equally likely."""
    hints = np.zeros(math.prod(shape), bool)
    count = max(1, round(fraction * hints.size))
    hints[np.random.default_rng(seed).choice(hints.size, count, replace=False)] = True
    return hints.reshape(shape)


def _nearest_hint(hints: Array, distance: float = math.inf) -> Array:
    """Number, from 1, of the hint nearest to each pixel; 0 where none is within ``distance``."""
    from skimage.segmentation import expand_labels

    labels = np.zeros(hints.shape, np.int32)
    labels[hints] = np.arange(1, hints.sum() + 1)
    return np.asarray(expand_labels(labels, distance))


def _nearest_chroma(chroma: Array, hints: Array) -> Array:
    """Give every pixel the chroma of the nearest hint: the plain fill."""
    filled: Array = chroma[:, hints][:, _nearest_hint(hints) - 1]
    return filled


# --- files ----------------------------------------------------------------------------------------------------


def _fraction(text: str | float) -> float:
    """Read ``--hints``."""
    try:
        fraction = float(text)
    except ValueError:
        fraction = math.nan
    if not 0 < fraction <= 1:
        raise DemoError(f"--hints must be a fraction above 0 and at most 1; got {text}")
    return fraction


def _require_extra() -> None:
    """Check that the packages of the extra are there."""
    try:
        import PIL.Image
        import PIL.ImageDraw
        import PIL.ImageFont
        import PIL.ImageOps  # noqa: F401
        import skimage.data
        import skimage.segmentation  # noqa: F401
    except ImportError as error:
        missing = f"scikit-image and Pillow ({_one_line(error)})"
        raise DemoError(f'the demo needs {missing}; install them with: pip install "gspn2_cupy[demo]"') from None


def _photograph(path: str | None) -> Array:
    """Read an image file of any kind, or the default photograph, as bytes (H, W, 3)."""
    if path is None:
        import skimage.data

        return np.asarray(skimage.data.astronaut())

    from PIL import Image, ImageOps

    try:
        with Image.open(path) as image:
            upright = ImageOps.exif_transpose(image)
            if upright.mode.startswith(("I", "F")):  # 16 or 32 bits per pixel, which Pillow would clip to bytes
                return _bytes_from_deep(np.asarray(upright))
            transparent = upright.convert("RGBA")
            white = Image.new("RGBA", transparent.size, "white")
            return np.asarray(Image.alpha_composite(white, transparent).convert("RGB"))
    except FileNotFoundError:
        raise DemoError(f"image {path!r} does not exist") from None
    except Exception as error:  # a broken file makes Pillow raise nearly anything
        raise DemoError(f"image {path!r} cannot be read: {_reason(error)}") from None


def _bytes_from_deep(grey: Array) -> Array:
    """Turn grey values of 16 bits, or of unknown range, into bytes (H, W, 3)."""
    values = np.nan_to_num(grey.astype(np.float64))
    largest = values.max()
    white = 1 if largest <= 1 and grey.dtype.kind == "f" else max(largest, 65535 if grey.dtype.kind in "iu" else 255)
    bytes_ = np.rint(np.clip(values / white, 0, 1) * 255).astype(np.uint8)
    return np.repeat(bytes_[..., None], 3, axis=-1)


def _check_writable(output: Path, image: str | None) -> None:
    """Check before the work that the picture can be written, and leave everything as it was."""
    try:
        if image is not None and output.exists() and output.samefile(image):
            raise DemoError(f"output {str(output)!r} must be another file than the image")
        target = output.resolve()  # of a link, the file that it stands for
        existed = target.exists()
        with target.open("ab"):
            pass
        if not existed:
            target.unlink()
    except (OSError, ValueError) as error:
        raise _cannot_write(output, error) from None


def _write(output: Path, picture: bytes) -> None:
    """Write the picture; where that fails half-way, leave no new file behind."""
    target = output.resolve()
    existed = target.exists()
    try:
        target.write_bytes(picture)
    except OSError as error:
        if not existed:
            target.unlink(missing_ok=True)
        raise _cannot_write(output, error) from None


def _cannot_write(output: Path, error: Exception) -> DemoError:
    return DemoError(f"output {str(output)!r} cannot be written: {_reason(error)}")


def _reason(error: Exception) -> str:
    return error.strerror if isinstance(error, OSError) and error.strerror else _one_line(error)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _size(image: Array) -> str:
    return f"{image.shape[1]} x {image.shape[0]}"


# --- the picture ----------------------------------------------------------------------------------------------

LARGEST_PANEL, SMALLEST_PANEL = 1024, 256  # pixels of the longer side
MARGIN, CAPTION = 20, 62


def _picture(
    original: Array, grey: Array, nearest: Array, hints: Array, result: Array, psnr: float, psnr_nearest: float
) -> bytes:
    """Draw grey with hints, result and original side by side; return the bytes of a PNG file."""
    from PIL import Image, ImageDraw, ImageFont

    radius = _dot_radius(hints)
    larger = ", drawn larger" if radius > 1 else ""
    given = _join(grey, nearest * (_nearest_hint(hints, radius) > 0))
    panels = (
        (given, f"Given: grey and {_percent(hints)} of the colours", f"{hints.sum():,} coloured pixels{larger}"),
        (result, "Propagated", f"PSNR {_decibels(psnr)} (nearest hint: {_decibels(psnr_nearest)})"),
        (original, "Original", f"{_size(original)} pixels"),
    )
    width, height = _panel_size(original)
    column = max(width, 320)  # a caption's width
    title, note = ImageFont.load_default(20), ImageFont.load_default(15)
    canvas = Image.new("RGB", (3 * column + 4 * MARGIN, CAPTION + height + 2 * MARGIN), "white")
    draw = ImageDraw.Draw(canvas)
    filter_ = Image.Resampling.NEAREST if width > original.shape[1] else Image.Resampling.LANCZOS
    for i, (panel, heading, remark) in enumerate(panels):
        left = MARGIN + i * (column + MARGIN)
        draw.text((left, MARGIN), heading, fill="black", font=title)
        draw.text((left, MARGIN + 30), remark, fill="dimgray", font=note)
        canvas.paste(Image.fromarray(panel).resize((width, height), filter_), (left, MARGIN + CAPTION))
    file = io.BytesIO()
    canvas.save(file, "PNG")
    return file.getvalue()


def _panel_size(image: Array) -> tuple[int, int]:
    """Width and height to show an image in: its own, but for very large and very small ones."""
    height, width = image.shape[:2]
    longest = max(width, height)
    if longest < SMALLEST_PANEL:
        factor: float = SMALLEST_PANEL // longest
    else:
        factor = min(1, LARGEST_PANEL / longest)
    return max(1, round(width * factor)), max(1, round(height * factor))


def _dot_radius(hints: Array) -> float:
    """Radius to draw the hints with: as large as a fifth of the area allows, and no larger than looks like a dot."""
    largest: float = max(hints.shape) / 100
    return min(math.sqrt(hints.size / (5 * math.pi * hints.sum())), largest)


def _percent(hints: Array) -> str:
    return f"{100 * hints.sum() / hints.size:.3g} %"


def _decibels(psnr: float) -> str:
    return f"{psnr:.1f} dB" if math.isfinite(psnr) else "perfect"
