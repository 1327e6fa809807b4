"""Baselines that need no other package: GSPN-1's method of one launch per line, and four of our scans with a sum."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path

import cupy
import numpy as np

import gspn2_cupy
from benchmarks.cases import Case
from benchmarks.gpu import SOURCES, kernel
from benchmarks.implementations import Arrays, Call, MissingError
from gspn2_cupy import ALL_DIRECTIONS
from gspn2_cupy.reference import HORIZONTAL, REVERSED

THREADS = 256


@cache
def launcher() -> ctypes.CDLL:
    """Return the C++ loop over launches: the published code launches from C++, and Python would be slower."""
    compiler = shutil.which("g++") or shutil.which("c++")
    if compiler is None:
        raise MissingError("not installed: g++, for the loop over launches")
    library = Path(tempfile.mkdtemp()) / "per_line_launch.so"
    source = SOURCES / "per_line_launch.cpp"
    subprocess.run([compiler, "-O2", "-shared", "-fPIC", "-o", str(library), str(source)], check=True)
    loaded = ctypes.CDLL(str(library))
    loaded.launch_lines.restype = ctypes.c_int
    return loaded


def per_line_graph(case: Case, a: Arrays) -> Call:
    """One launch per line, meant to be captured into a graph."""
    batch, channels, height, width = case.shape
    horizontal = case.direction in HORIZONTAL
    lines, cross = (width, height) if horizontal else (height, width)
    strides = (1, width) if horizontal else (width, 1)
    driver = ctypes.CDLL("libcuda.so.1").cuLaunchKernel
    function = kernel("per_line", source="per_line.cu").kernel.ptr
    pointers = (ctypes.c_void_p * 4)(*(a[name].data.ptr for name in ("x", "weight", "lam", "h")))
    sizes = (ctypes.c_longlong * 7)(batch, channels, case.groups, lines, cross, *strides)
    blocks = -(-batch * channels * cross // THREADS)
    loop = launcher().launch_lines

    def call() -> Arrays:
        status = loop(
            ctypes.cast(driver, ctypes.c_void_p),
            ctypes.c_void_p(function),
            ctypes.c_uint(blocks),
            ctypes.c_uint(THREADS),
            ctypes.c_void_p(cupy.cuda.get_current_stream().ptr),
            pointers,
            sizes,
            ctypes.c_int(case.direction in REVERSED),
        )
        if status:
            raise RuntimeError(f"cuLaunchKernel returned {status}")
        return {"h": a["h"]}

    return call


per_line_eager = per_line_graph  # the same loop, timed without a graph


def separate_scans(case: Case, a: Arrays) -> Call:
    """Four calls of our own scan into four images, and one kernel that adds them."""
    hidden = [cupy.empty_like(a["y"]) for _ in ALL_DIRECTIONS]
    add = kernel("sum_of_four", case.dtype)
    blocks = -(-a["y"].size // 1024)

    def call() -> Arrays:
        for d, direction in enumerate(ALL_DIRECTIONS):
            gspn2_cupy.line_scan(a["x"], a["weight"][:, d], a["lam"][:, d], direction=direction, out=hidden[d])
        add((blocks,), (256,), (*hidden, a["y"], np.int64(a["y"].size)))
        return {"y": a["y"]}

    return call
