"""What is measured: one table of shapes, one of operations, one of quick cases. A new one is one entry.

Arrays are described by what they are per image: their sizes follow from the shape, and so do the bytes of a case
(:mod:`benchmarks.byte_model`). Nothing here needs a GPU.
"""

from __future__ import annotations

import fnmatch
import itertools
from collections.abc import Iterable
from dataclasses import dataclass

from gspn2_cupy import ALL_DIRECTIONS
from gspn2_cupy.reference import HORIZONTAL

# name: ((B, C, H, W), whom it stands for)
SHAPES = {
    "batch_1k": ((16, 8, 1024, 1024), "a batch of high-resolution maps: the shape GSPN-2's paper times"),
    "one_1k": ((1, 8, 1024, 1024), "one high-resolution image, answered at once"),
    "one_4k": ((1, 8, 4096, 4096), "one 4K image"),
    "vit_56": ((32, 96, 56, 56), "first stage of a vision transformer"),
    "vit_14": ((32, 384, 14, 14), "third stage of a vision transformer"),
    "wide_32": ((32, 1152, 32, 32), "diffusion transformer on 32 × 32 latents"),
    "latent_128": ((8, 64, 128, 128), "latent diffusion of 1K images"),
    "two_2k": ((2, 16, 2048, 2048), "high-resolution generation, 2K"),
    "huge_16k": ((1, 4, 16384, 16384), "one huge image: satellite, pathology"),
}
DTYPES = ("float32", "bfloat16")
WEIGHTS = ("per_channel", "shared")  # G = C, as in GSPN-1; G = 1, as in GSPN-2
ABBREVIATIONS = {"per_channel": "PC", "shared": "SH", "float32": "fp32", "bfloat16": "bf16"}


@dataclass(frozen=True)
class Case:
    """One thing to measure."""

    operation: str
    shape_name: str
    dtype: str
    weights: str
    direction: str  # "four" for the operations that run all of them
    implementation: str = "ours"

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(B, C, H, W)."""
        return SHAPES[self.shape_name][0]

    @property
    def groups(self) -> int:
        """G."""
        return self.shape[1] if self.weights == "per_channel" else 1

    @property
    def lines(self) -> int:
        """Lines of a scan in the case's direction."""
        return self.shape[3 if self.direction in HORIZONTAL else 2]

    @property
    def itemsize(self) -> int:
        """Bytes of an element."""
        return {"float64": 8, "float32": 4}.get(self.dtype, 2)

    @property
    def id(self) -> str:
        """A name for files, selections and tables."""
        parts = (self.operation, self.shape_name, self.dtype, self.weights, self.direction)
        return "-".join(parts if self.implementation == "ours" else (*parts, self.implementation))

    @property
    def reference_id(self) -> str:
        """The id of our own implementation of the same."""
        return self.id.removesuffix(f"-{self.implementation}")

    def shape_of(self, kind: str) -> tuple[int, ...]:
        """Return the shape of an array of a kind."""
        return KINDS[kind](*self.shape, self.groups, len(ALL_DIRECTIONS))


KINDS = {
    "image": lambda b, c, h, w, g, d: (b, c, h, w),
    "images": lambda b, c, h, w, g, d: (b, d, c, h, w),  # one per direction
    "weight": lambda b, c, h, w, g, d: (b, g, 3, h, w),
    "weights": lambda b, c, h, w, g, d: (b, d, g, 3, h, w),
}


@dataclass(frozen=True)
class Operation:
    """An operation: its arrays by name and kind. Each is read or written once by an ideal kernel."""

    title: str
    inputs: dict[str, str]
    outputs: dict[str, str]
    directions: tuple[str, ...] = ALL_DIRECTIONS


SCAN = {"x": "image", "weight": "weight", "lam": "image"}
UNIT = {"x": "image", "weight": "weights", "lam": "images"}
FOUR = ("four",)
OPERATIONS = {
    "forward": Operation("one scan, forward", SCAN, {"h": "image"}),
    "backward": Operation(
        "one scan, backward",
        {"dh": "image", **SCAN, "h": "image"},
        {"dx": "image", "dweight": "weight", "dlam": "image"},
    ),
    "unit": Operation("four directions, forward", UNIT, {"y": "image"}, FOUR),
    "unit_u": Operation("four directions with u, forward", {**UNIT, "u": "images"}, {"y": "image"}, FOUR),
    "unit_backward": Operation(
        "four directions, backward",
        {"dy": "image", **UNIT, "states": "images"},
        {"dx": "image", "dweight": "weights", "dlam": "images"},
        FOUR,
    ),
}
# what else can do an operation: benchmarks.baselines and benchmarks.baselines_torch
BASELINES = {
    "per_line_eager": ("forward", ("float32",)),  # GSPN-1's method: a launch per line
    "per_line_graph": ("forward", ("float32",)),
    "triton": ("forward", DTYPES),
    "separate_scans": ("unit", DTYPES),
    "attention": ("unit", ("bfloat16",)),  # another operator, which users would put in its place
    "torch_compile": ("forward", DTYPES),  # the last one, because it compiles for long
}


def all_cases() -> list[Case]:
    """Return every case of our own, then every case of the baselines."""
    cases = [
        Case(name, shape, dtype, weights, direction)
        for name, operation in OPERATIONS.items()
        for shape, dtype, weights in itertools.product(SHAPES, DTYPES, WEIGHTS)
        for direction in operation.directions
    ]
    for baseline, (name, dtypes) in BASELINES.items():
        for shape, dtype, weights in itertools.product(SHAPES, dtypes, WEIGHTS):
            directions = [d for d in OPERATIONS[name].directions if d in ("left_to_right", "top_to_bottom", "four")]
            cases += [Case(name, shape, dtype, weights, direction, baseline) for direction in directions]
    return cases


# What one look at a GPU needs most, best first: patterns of ids. Everything else needs `--all` or `--only`.
TYPES = ("float32-per_channel", "bfloat16-shared")
AXES = ("left_to_right", "top_to_bottom")
QUICK = (
    *(f"forward-*-{types}-{axis}" for types in TYPES for axis in AXES),
    *(f"unit-{shape}-{types}-four" for shape in ("vit_56", "latent_128", "batch_1k") for types in TYPES),
    *(f"forward-*_1k-float32-per_channel-left_to_right-per_line_{how}" for how in ("eager", "graph")),
    *(f"backward-{shape}-{types}-left_to_right" for shape in ("vit_56", "latent_128", "one_1k") for types in TYPES),
    *(f"unit-{shape}-bfloat16-shared-four-attention" for shape in ("vit_14", "vit_56", "latent_128")),
    "unit-latent_128-bfloat16-shared-four-separate_scans",
    "forward-latent_128-float32-per_channel-top_to_bottom-triton",
)

BRIEF = (  # and what a page has room for, where everything was measured
    *QUICK,
    "forward-*_1k-float32-per_channel-top_to_bottom-per_line_graph",
    *(f"forward-latent_128-{types}-{axis}-triton" for types in TYPES for axis in AXES),
    *(f"forward-vit_56-{types}-{axis}-torch_compile" for types in TYPES for axis in AXES),
    "unit-*-bfloat16-shared-four-attention",
    "unit-*_1k-bfloat16-shared-four-separate_scans",
    *(
        f"{operation}-*-{types}-{axis}"
        for operation in ("backward", "unit")
        for types in TYPES
        for axis in (*AXES, *FOUR)
    ),
)


def matching(patterns: Iterable[str]) -> list[Case]:
    """Return the cases whose id matches one of the patterns, in the patterns' order.

    A pattern without wildcards also selects every case whose id contains it.
    """
    chosen: dict[Case, None] = {}
    for pattern in patterns:
        loose = pattern if any(sign in pattern for sign in "*?[") else f"*{pattern}*"
        exact = [case for case in all_cases() if case.id == pattern]
        chosen.update(dict.fromkeys(exact or [case for case in all_cases() if fnmatch.fnmatchcase(case.id, loose)]))
    return list(chosen)


def quick_cases() -> list[Case]:
    """Return the quick selection."""
    return matching(QUICK)


def every_case() -> list[Case]:
    """Return every case, the quick selection first, so that a run cut short has what matters most."""
    return list(dict.fromkeys((*quick_cases(), *all_cases())))
