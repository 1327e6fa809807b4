"""What runs the operations: our own calls, and the list of everything else.

An implementation is a function of a case and a set of arrays that returns what to call; the call returns its outputs by
name. ``functions`` is ``gspn2_cupy`` itself, or ``gspn2_cupy._device`` where arrays have no memory.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from typing import Any

import gspn2_cupy
from benchmarks.cases import BASELINES, Case

Arrays = dict[str, Any]
Call = Callable[[], Arrays]


class MissingError(RuntimeError):
    """A baseline needs a package or tool that is not here."""


class LeftOutError(RuntimeError):
    """The case makes no sense or takes too long, for a reason that the results name."""


def forward(case: Case, a: Arrays, functions: Any = gspn2_cupy) -> Call:
    return lambda: {"h": functions.line_scan(a["x"], a["weight"], a["lam"], direction=case.direction, out=a.get("h"))}


def backward(case: Case, a: Arrays, functions: Any = gspn2_cupy) -> Call:
    def call() -> Arrays:
        grads = functions.line_scan_backward(a["dh"], a["x"], a["weight"], a["lam"], a["h"], direction=case.direction)
        return {"dx": grads.x, "dweight": grads.weight, "dlam": grads.lam}

    return call


def unit(case: Case, a: Arrays, functions: Any = gspn2_cupy) -> Call:
    return lambda: {"y": functions.propagate(a["x"], a["weight"], a["lam"], a.get("u"), out=a.get("y"))}


def unit_backward(case: Case, a: Arrays, functions: Any = gspn2_cupy) -> Call:
    def call() -> Arrays:
        grads = functions.propagate_backward(a["dy"], a["x"], a["weight"], a["lam"], states=a["states"])
        return {"dx": grads.x, "dweight": grads.weight, "dlam": grads.lam}

    return call


OURS: dict[str, Callable[..., Call]] = {
    "forward": forward,
    "backward": backward,
    "unit": unit,
    "unit_u": unit,
    "unit_backward": unit_backward,
}
PREALLOCATED = {"h", "y"}  # outputs that calls take as `out`; the others they allocate
MODULES = {
    "per_line_eager": "baselines",
    "per_line_graph": "baselines",
    "separate_scans": "baselines",
    "attention": "baselines_torch",
    "torch_compile": "baselines_torch",
    "triton": "baselines_triton",
}
ENTRIES = {"triton": "triton_scan"}  # where the function has another name
NEEDS = {"attention": ("torch",), "torch_compile": ("torch", "triton"), "triton": ("torch", "triton")}
MOST_LINES = 64  # of a loop that torch.compile is asked to unroll
SECONDS_A_LINE = 1.0  # that it may take for each


def build(case: Case, arrays: Arrays) -> Call:
    """Return the call of a case on one set of arrays; raise MissingError by name where a package is not here."""
    if case.implementation == "ours":
        return OURS[case.operation](case, arrays)
    missing = missing_packages([case.implementation])
    if missing:
        raise MissingError(f"not installed: {', '.join(missing)}")
    module = importlib.import_module(f"benchmarks.{MODULES[case.implementation]}")
    return getattr(module, ENTRIES.get(case.implementation, case.implementation))(case, arrays)


def seconds_to_compile(case: Case) -> float:
    """Return the seconds that may pass before a case's first call."""
    return SECONDS_A_LINE * case.lines if case.implementation == "torch_compile" and case.lines <= MOST_LINES else 0.0


def missing_packages(implementations: Any = BASELINES) -> dict[str, str]:
    """Return the packages that baselines need and that are not here, with the reason."""
    missing = {}
    for package in dict.fromkeys(name for each in implementations for name in NEEDS.get(each, ())):
        if importlib.util.find_spec(package) is None:
            missing[package] = "not installed"
    return missing
