"""Whether outputs are right, judged by the NumPy reference in float64, whatever the size.

A scan is a recurrence, so it is right everywhere if it is right from line to line. The check takes windows of lines
(the first, the last and one at random, each of a random image and group) over their full width, and has the reference
scan them from the line that the output itself has before the window; a backward one from the gradient that the output
has behind it. That costs the same for 14 and for 16384 lines, and the window where a scan starts takes nothing from the
output. Several directions are checked through their parts: each direction's own scan by windows, then their sum.
Every element is looked at for poison that was never written over.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

import gspn2_cupy
from benchmarks.cases import Case
from gspn2_cupy import ALL_DIRECTIONS, reference
from gspn2_cupy.reference import HORIZONTAL, REVERSED

WINDOW_ELEMENTS = 150_000  # of x, in one window
# ‖error‖ / ‖truth‖ over a window, and the largest error in units of the largest truth
TOLERANCES = {
    "float64": (1e-12, 1e-11),
    "float32": (3e-6, 1e-5),
    "float16": (1.5e-3, 4e-3),
    "bfloat16": (1.2e-2, 3e-2),
}

Crop = Callable[[Any, slice, slice], np.ndarray]  # (array (…, H, W), rows, columns) → float64 on the host


@dataclass
class Error:
    """The worst error so far."""

    dtype: str
    relative: float = 0.0
    largest: float = 0.0
    compared: int = 0

    def add(self, name: str, out: np.ndarray, truth: np.ndarray) -> None:
        """Take in one more part; raise if it is wrong."""
        size = np.linalg.norm(truth)
        relative = float(np.linalg.norm(out - truth) / size) if size else float(np.linalg.norm(out))
        top = np.abs(truth).max(initial=0)
        largest = float(np.abs(out - truth).max(initial=0) / (top or 1))
        bounds = TOLERANCES[self.dtype]
        if not (relative <= bounds[0] and largest <= bounds[1]):  # NaN fails
            raise AssertionError(
                f"{name} is wrong: relative error {relative:.2e}, largest {largest:.2e}, bounds {bounds}"
            )
        self.relative, self.largest = max(self.relative, relative), max(self.largest, largest)
        self.compared += truth.size

    def record(self) -> dict[str, Any]:
        """Return plain values for a results file."""
        return {"relative": self.relative, "largest": self.largest, "compared": self.compared}


@dataclass(frozen=True)
class Window:
    """Lines [first, stop) in scan order of one image and one group, with the channels that are looked at."""

    first: int
    stop: int
    lines: int  # of the whole scan
    image: int
    group: int
    channels: slice
    direction: str

    def take(self, crop: Crop, array: Any, first: int, stop: int) -> np.ndarray:
        """Return lines [first, stop) in scan order of an array (…, H, W), all their width, as an image."""
        lines = slice(self.lines - stop, self.lines - first) if self.direction in REVERSED else slice(first, stop)
        height, width = array.shape[-2:]
        if self.direction in HORIZONTAL:
            return crop(array, slice(0, height), lines)
        return crop(array, lines, slice(0, width))

    def images(self, crop: Crop, array: Any, first: int, stop: int) -> np.ndarray:
        """Return (1, channels, …) of an array (B, C, H, W)."""
        return self.take(crop, array[self.image, self.channels], first, stop)[None]

    def weights(self, crop: Crop, array: Any, first: int, stop: int) -> np.ndarray:
        """Return (1, 1, 3, …) of an array (B, G, 3, H, W)."""
        return self.take(crop, array[self.image, self.group], first, stop)[None, None]

    def line(self, crop: Crop, array: Any, index: int) -> np.ndarray | None:
        """Return one line (1, channels, cross) of an array (B, C, H, W); None outside the scan."""
        if not 0 <= index < self.lines:
            return None
        return self.images(crop, array, index, index + 1).reshape(1, self.channels.stop - self.channels.start, -1)


def windows(shape: tuple[int, ...], groups: int, direction: str, all_channels: bool, seed: int) -> Iterator[Window]:
    """Choose windows: the first lines, the last, and some at random; a backward needs all channels of its group."""
    batch, channels, height, width = shape
    lines, cross = (width, height) if direction in HORIZONTAL else (height, width)
    per_group = channels // groups
    random = np.random.default_rng(seed)
    looked_at = per_group if all_channels else 1
    length = int(np.clip(WINDOW_ELEMENTS // (looked_at * cross), 2, lines))
    for first in dict.fromkeys((0, int(random.integers(0, lines - length + 1)), lines - length)):
        group = int(random.integers(groups))
        start = group * per_group + (0 if all_channels else int(random.integers(per_group)))
        image = int(random.integers(batch))
        yield Window(first, first + length, lines, image, group, slice(start, start + looked_at), direction)


def forward(case: Case, error: Error, crop: Crop, a: dict[str, Any], h: Any, direction: str, seed: int = 0) -> None:
    """Check h of arrays x, weight and lam."""
    for w in windows(case.shape, case.groups, direction, False, seed):
        ends = (w.first, w.stop)
        truth = reference.line_scan(
            w.images(crop, a["x"], *ends),
            w.weights(crop, a["weight"], *ends),
            w.images(crop, a["lam"], *ends),
            direction=direction,
            h0=w.line(crop, h, w.first - 1),
        )
        error.add(f"h of {direction} at lines {ends}", w.images(crop, h, *ends), truth)


def backward(
    case: Case, error: Error, crop: Crop, a: dict[str, Any], grads: dict[str, Any], direction: str, seed: int = 0
) -> None:
    """Check dx, dweight and dlam of arrays dh, x, weight, lam and h."""
    for w in windows(case.shape, case.groups, direction, True, seed):
        more = min(w.stop + 1, w.lines)  # the line behind, whose g = dx/λ is known from the output
        ends = (w.first, more)
        dh, lam = w.images(crop, a["dh"], *ends), w.images(crop, a["lam"], *ends)
        axis = -1 if direction in HORIZONTAL else -2
        order = slice(None, None, -1) if direction in REVERSED else slice(None)
        if more > w.stop:
            _lines(dh, axis)[order][-1] = _lines(w.images(crop, grads["dx"], w.stop, more), axis)[0]
            _lines(dh, axis)[order][-1] /= _lines(lam, axis)[order][-1]
        truth = reference.line_scan_backward(
            dh,
            w.images(crop, a["x"], *ends),
            w.weights(crop, a["weight"], *ends),
            lam,
            w.images(crop, a["h"], *ends),
            direction=direction,
            h0=w.line(crop, a["h"], w.first - 1),
        )
        outputs = {
            "dx": (w.images(crop, grads["dx"], w.first, w.stop), truth.x),
            "dlam": (w.images(crop, grads["dlam"], w.first, w.stop), truth.lam),
            "dweight": (w.weights(crop, grads["dweight"], w.first, w.stop), truth.weight),
        }
        for name, (out, whole) in outputs.items():
            inside = np.moveaxis(_lines(whole, axis)[order][: w.stop - w.first][order], 0, axis)
            error.add(f"{name} of {direction} at lines {(w.first, w.stop)}", out, inside)


def _lines(image: np.ndarray, axis: int) -> np.ndarray:
    """View an image with its lines first, in image order."""
    return np.moveaxis(image, axis, 0)


def unit(case: Case, error: Error, crop: Crop, a: dict[str, Any], y: Any, seed: int = 0) -> None:
    """Check y = Σ_d u_d ⊙ h_d through its parts."""
    rows, image, channel = _rows(case, seed)
    total = np.zeros(0)
    for d, direction in enumerate(ALL_DIRECTIONS):
        part = {"x": a["x"], "weight": _own(a["weight"], d), "lam": _own(a["lam"], d)}
        h = gspn2_cupy.line_scan(part["x"], part["weight"], part["lam"], direction=direction)
        forward(case, error, crop, part, h, direction, seed + d)
        term = crop(h[image, channel], *rows)
        if "u" in a:
            term = term * crop(a["u"][image, d, channel], *rows)
        total = term if d == 0 else total + term
    error.add("y", crop(y[image, channel], *rows), total)


def unit_backward(
    case: Case, error: Error, crop: Crop, a: dict[str, Any], grads: dict[str, Any], seed: int = 0
) -> None:
    """Check dx, dweight and dlam of the unit through its parts."""
    rows, image, channel = _rows(case, seed)
    group = channel // (case.shape[1] // case.groups)
    total = np.zeros(0)
    for d, direction in enumerate(ALL_DIRECTIONS):
        names = {"weight": "weight", "lam": "lam", "h": "states"}
        part = {"dh": a["dy"], "x": a["x"], **{name: _own(a[whole], d) for name, whole in names.items()}}
        given = (part["dh"], part["x"], part["weight"], part["lam"], part["h"])
        own = gspn2_cupy.line_scan_backward(*given, direction=direction)
        one = {"dx": own.x, "dweight": own.weight, "dlam": own.lam}
        backward(case, error, crop, part, one, direction, seed + d)
        term = crop(one["dx"][image, channel], *rows)
        total = term if d == 0 else total + term
        error.add("dlam", crop(grads["dlam"][image, d, channel], *rows), crop(one["dlam"][image, channel], *rows))
        weights = crop(grads["dweight"][image, d, group], *rows), crop(one["dweight"][image, group], *rows)
        error.add("dweight", *weights)
    error.add("dx", crop(grads["dx"][image, channel], *rows), total)


def _own(array: Any, d: int) -> Any:
    """Return the arrays (B, …) of direction d, contiguous where there is one image."""
    return array[:, d]


def _rows(case: Case, seed: int) -> tuple[tuple[slice, slice], int, int]:
    """Choose rows of one image and channel, over their whole width."""
    random = np.random.default_rng(seed)
    batch, channels, height, width = case.shape
    count = int(np.clip(WINDOW_ELEMENTS // width, 1, height))
    first = int(random.integers(0, height - count + 1))
    return (slice(first, first + count), slice(0, width)), int(random.integers(batch)), int(random.integers(channels))


def check(case: Case, crop: Crop, inputs: dict[str, Any], outputs: dict[str, Any]) -> Error:
    """Judge the outputs of a case; raise AssertionError if they are wrong."""
    error = Error(case.dtype)
    if case.operation == "forward":
        forward(case, error, crop, inputs, outputs["h"], case.direction)
    elif case.operation == "backward":
        backward(case, error, crop, inputs, outputs, case.direction)
    elif case.operation == "unit_backward":
        unit_backward(case, error, crop, inputs, outputs)
    else:
        unit(case, error, crop, inputs, outputs["y"])
    return error
