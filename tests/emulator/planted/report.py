"""Run in a process of its own: prints what planted faults are reported as, and whether shipped kernels are right.

    python -m emulator.planted.report [--sanitize] case/bug … direction/dtype/heightxwidth …

One line for each: itself; then the fault's class, "right" or "wrong"; then the first source line that a fault names.
"""

import re
import sys

import numpy as np

import gspn2_cupy
from emulator import Emulator, EmulatorFault, emulated
from emulator.planted.cases import CASES, FOLDER


def planted(case, bug, sanitize):
    try:
        actual, expected = CASES[case](Emulator(FOLDER, sanitize=sanitize), bug)
    except EmulatorFault as fault:
        place = re.search(r"\w+\.cu:\d+", str(fault))
        return f"{type(fault).__name__}: {place and place[0]}"
    return "right: None" if np.allclose(actual, expected) else "wrong: None"


def shipped(direction, dtype, size, sanitize):
    rng = np.random.default_rng(0)
    height, width = map(int, size.split("x"))
    x, lam, dh = (rng.standard_normal((1, 2, height, width)).astype(dtype) for _ in range(3))
    weight = rng.uniform(0, 0.3, (1, 1, 3, height, width)).astype(dtype)
    options = {"direction": direction, "chunk": 5}
    expected = [
        gspn2_cupy.line_scan(x, weight, lam, **options),
        *gspn2_cupy.line_scan_backward(dh, x, weight, lam, **options)[:3],
    ]
    with emulated(sanitize=sanitize) as device:
        actual = [
            gspn2_cupy.line_scan(x, weight, lam, **options),
            *gspn2_cupy.line_scan_backward(dh, x, weight, lam, **options)[:3],
        ]
    assert device.launches > 0
    close = (np.allclose(a, e, rtol=1e-2, atol=1e-2) for a, e in zip(actual, expected, strict=True))
    return "right: None" if all(close) else "wrong: None"


if __name__ == "__main__":
    sanitize = "--sanitize" in sys.argv
    for argument in (a for a in sys.argv[1:] if "/" in a):
        parts = argument.split("/")
        outcome = (shipped if len(parts) == 3 else planted)(*parts, sanitize)
        print(f"{argument} {outcome}", flush=True)
