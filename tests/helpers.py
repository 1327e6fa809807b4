"""What the tests of the operator share: random inputs, memory layouts, and the judgement of results."""

from dataclasses import dataclass

import ml_dtypes
import numpy as np

DTYPES = {
    "float64": np.dtype(np.float64),
    "float32": np.dtype(np.float32),
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
}
# Relative L2 error against the float64 truth, as the contract promises it.
TOLERANCE = {"float64": 1e-12, "float32": 5e-6, "float16": 6e-4, "bfloat16": 4e-3}
HORIZONTAL = ("left_to_right", "right_to_left")
BACKWARDS = ("right_to_left", "bottom_to_top")

# (lines, pixels in a line): why this size.
SIZES = {
    (0, 5): "no lines",
    (5, 0): "lines of no pixels",
    (1, 1): "one pixel, no neighbours, no previous line",
    (1, 7): "one line: the carry is never used",
    (7, 1): "both outer neighbours missing everywhere",
    (2, 2): "every pixel is on a border",
    (2, 31): "one pixel short of a warp",
    (31, 2): "one line short of a 32-line tile",
    (33, 33): "one more than a warp and than a tile",
    (7, 127): "one pixel short of a block of 128",
    (127, 7): "several tiles of lines and a partial one",
    (3, 1025): "a line longer than the largest block",
    (40, 300): "several tiles of lines, over several blocks of pixels",
}


def size_parameters():
    import pytest

    return [pytest.param(size, id=f"{size[0]}x{size[1]}") for size in SIZES]


def state_type(dtype):
    return DTYPES["float64" if np.dtype(dtype) == np.float64 else "float32"]


def line_shape(shape, direction):
    """The shape of h0 for an image shape (B, C, H, W)."""
    batch, channels, height, width = shape
    return batch, channels, height if direction in HORIZONTAL else width


def image_shape(batch, channels, size, direction):
    """(B, C, H, W) of an image with `size` = (lines, pixels in a line) in this direction."""
    lines, across = size
    return (batch, channels, across, lines) if direction in HORIZONTAL else (batch, channels, lines, across)


def scan_axis(direction):
    return -1 if direction in HORIZONTAL else -2


def lines(array, direction, start, stop):
    """Lines start..stop in scan order of an array (..., H, W), as a view."""
    length = array.shape[scan_axis(direction)]
    if direction in BACKWARDS:
        start, stop = length - stop, length - start
    return array[..., start:stop] if direction in HORIZONTAL else array[..., start:stop, :]


def outside(shape, direction):
    """True where a weight (..., 3, H, W) points to a neighbour outside the image."""
    mask = np.zeros(shape, dtype=bool)
    across = mask if direction not in HORIZONTAL else np.swapaxes(mask, -1, -2)
    across[..., 0, :, :1] = True
    across[..., 2, :, -1:] = True
    return mask


def signal(rng, shape, dtype):
    """Random numbers of both signs between 1/64 and 4 in size: nothing near a subnormal, nothing overflows."""
    values = rng.standard_normal(shape)
    return np.copysign(np.clip(np.abs(values), 2.0**-6, 4.0), values).astype(dtype)


def row_stochastic(rng, shape, direction, dtype):
    """Weights (..., 3, H, W) whose rows sum to 1 over the neighbours inside the image.

    Those of outside neighbours are 7: whoever uses one is far off.
    """
    weight = rng.uniform(0.1, 1.0, shape)
    weight[outside(shape, direction)] = 0.0
    weight /= np.sum(weight, axis=-3, keepdims=True)
    weight[outside(shape, direction)] = 7.0
    return weight.astype(dtype)


@dataclass
class Scan:
    """The arrays of one line scan and of its backward."""

    x: np.ndarray
    weight: np.ndarray
    lam: np.ndarray | None
    h0: np.ndarray | None
    dh: np.ndarray
    dh_last: np.ndarray | None
    direction: str

    def options(self, chunk=None):
        return {"direction": self.direction, "chunk": chunk, "h0": self.h0}


def make_scan(shape, direction, dtype="float32", *, groups=1, lam=True, h0=False, dh_last=False, seed=0):
    """A Scan of random arrays with row-stochastic weights; `lam`, `h0`, `dh_last` say which ones are there."""
    rng = np.random.default_rng(seed)
    batch, _, height, width = shape
    dtype, state = DTYPES[dtype], state_type(DTYPES[dtype])
    line = line_shape(shape, direction)
    return Scan(
        x=signal(rng, shape, dtype),
        weight=row_stochastic(rng, (batch, groups, 3, height, width), direction, dtype),
        lam=signal(rng, shape, dtype) if lam else None,
        h0=signal(rng, line, state) if h0 else None,
        dh=signal(rng, shape, dtype),
        dh_last=signal(rng, line, state) if dh_last else None,
        direction=direction,
    )


@dataclass
class Unit:
    """The arrays of one propagate and of its backward."""

    x: np.ndarray
    weight: np.ndarray
    lam: np.ndarray | None
    u: np.ndarray | None
    merge: np.ndarray | None
    dy: np.ndarray
    directions: tuple[str, ...]
    normalize: str | None

    def options(self, chunk=None):
        return {"directions": self.directions, "merge": self.merge, "normalize": self.normalize, "chunk": chunk}


def make_unit(shape, directions, dtype="float32", *, groups=1, lam=True, u=True, merge=True, normalize=None, seed=0):
    """A Unit of random arrays; with `normalize` the weight holds logits, else row-stochastic weights."""
    rng = np.random.default_rng(seed)
    batch, channels, height, width = shape
    dtype = DTYPES[dtype]
    per_direction = (batch, len(directions), channels, height, width)
    weight_shape = (batch, groups, 3, height, width)
    weights = [
        row_stochastic(rng, weight_shape, d, dtype) if normalize is None else signal(rng, weight_shape, dtype)
        for d in directions
    ]
    return Unit(
        x=signal(rng, shape, dtype),
        weight=np.stack(weights, axis=1),
        lam=signal(rng, per_direction, dtype) if lam else None,
        u=signal(rng, per_direction, dtype) if u else None,
        merge=signal(rng, len(directions), dtype) if merge else None,
        dy=signal(rng, shape, dtype),
        directions=tuple(directions),
        normalize=normalize,
    )


# Each layout: the shape of the array that holds the memory, from the shape of the view; and the view taken of it.
LAYOUTS = {
    "offset": (lambda s: (*s[:-2], s[-2] + 2, s[-1] + 4), lambda a: a[..., 1:-1, 1:-3]),
    "stepped": (lambda s: (*s[:-2], 2 * s[-2], 3 * s[-1]), lambda a: a[..., ::2, ::3]),
    "flipped": (lambda s: s, lambda a: a[..., ::-1, ::-1]),
    "upside_down": (lambda s: s, lambda a: a[..., ::-1, :]),
    "transposed": (lambda s: (*s[:-2], s[-1], s[-2]), lambda a: a.swapaxes(-1, -2)),
    "channels_last": (
        lambda s: (s[0], *s[2:], s[1]),
        lambda a: a.transpose(0, a.ndim - 1, *range(1, a.ndim - 1)),
    ),
}


def assert_same_bits(actual, expected):
    """Equal in type, shape and every bit."""
    assert actual.dtype == expected.dtype
    assert actual.shape == expected.shape
    a, b = (np.frombuffer(array.tobytes(), np.uint8) for array in (actual, expected))
    if not np.array_equal(a, b):
        different = np.nonzero((a != b).reshape(-1, actual.dtype.itemsize).any(axis=1))[0]
        first = np.unravel_index(different[0], actual.shape)
        raise AssertionError(
            f"{different.size} of {actual.size} elements differ in their bits; "
            f"the first at {tuple(map(int, first))}: {actual[first]} is not {expected[first]}"
        )


def assert_close(actual, truth, dtype, *, scale=None):
    """`actual`, of type `dtype`, is the finite float64 `truth` within the contract's tolerance for that type.

    Judged by relative L2 error, by cosine, and by element. With `scale`, the sum of the absolute terms behind each
    element, errors are judged against that instead: for sums that cancel, and for sizes too small for a norm to mean
    much.
    """
    dtype = np.dtype(dtype)
    assert isinstance(actual, np.ndarray), f"expected an array, got {type(actual).__name__}"
    assert actual.dtype == dtype, f"the result has type {actual.dtype}, not {dtype}"
    assert actual.shape == truth.shape, f"the result has shape {actual.shape}, not {truth.shape}"
    assert truth.dtype == np.float64
    assert np.isfinite(truth).all(), "the truth itself is not finite"
    value = actual.astype(np.float64)
    wrong = ~np.isfinite(value)
    assert not wrong.any(), f"{wrong.sum()} of {wrong.size} elements are not finite; the first at {first_of(wrong)}"
    if value.size == 0:
        return

    tolerance = TOLERANCE[dtype.name]
    error = np.abs(value - truth)
    smallest = float(ml_dtypes.finfo(dtype).smallest_subnormal)
    if scale is None:
        size = np.linalg.norm(truth)
        allowed = 2 * tolerance * np.abs(truth) + 10 * tolerance * size / np.sqrt(truth.size) + smallest
        cosine = np.sum(value * truth) / max(np.linalg.norm(value) * size, np.finfo(np.float64).tiny)
        assert size == 0 or cosine >= 1 - max(tolerance**2, 1e-14), f"cosine to the truth is {cosine!r}"
    else:
        size = np.linalg.norm(scale)
        allowed = tolerance * scale + smallest
    l2 = np.linalg.norm(error)
    floor = smallest * np.sqrt(error.size)
    assert l2 <= tolerance * size + floor, f"L2 error {l2:.3g} against {size:.3g}: more than {tolerance:g} of it"
    wrong = ~(error <= allowed)
    where = first_of(wrong)
    assert not wrong.any(), (
        f"{wrong.sum()} of {wrong.size} elements are off; the first at {where}: {value[where]!r}, not {truth[where]!r}"
    )


def first_of(mask):
    """Index of the first True, or None."""
    found = np.argwhere(mask)
    return tuple(map(int, found[0])) if len(found) else None


def assert_same_nonfinite(actual, truth):
    """NaN exactly where the truth is NaN, infinities where it has them; returns the mask of the finite rest."""
    value = actual.astype(np.float64)
    for name, here in (("NaN", np.isnan), ("+inf", np.isposinf), ("-inf", np.isneginf)):
        wrong = here(value) != here(truth)
        assert not wrong.any(), f"{name}: {wrong.sum()} elements differ from the truth, the first at {first_of(wrong)}"
    return np.isfinite(truth)


class Recorder:
    """A launcher that launches nothing and remembers what it was asked for."""

    def __init__(self):
        from emulator import LIMITS

        self.limits = LIMITS
        self.launched, self.allocated = [], []

    def compile(self, spec):
        return lambda *_: self.launched.append(spec.entry)

    def empty(self, shape, dtype):
        self.allocated.append((shape, np.dtype(dtype)))
        return np.empty(shape, dtype)
