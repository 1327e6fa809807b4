"""The same recurrence as a Triton kernel: a program per slice, all of its rows at once, line after line.

Triton cannot hand a value to the neighbouring row in registers, so a program writes each line to a small buffer, waits
for its own threads, and reads the buffer shifted by one row either way.
"""

from __future__ import annotations

import cupy
import torch
import triton
import triton.language as tl

from benchmarks.baselines_torch import as_tensor, stream
from benchmarks.cases import Case
from benchmarks.implementations import Arrays, Call, LeftOutError
from gspn2_cupy.reference import HORIZONTAL, REVERSED

WIDEST = 4096


@triton.jit
def scan_kernel(
    x, weight, lam, h, lines_buffer, channels, per_group, lines, width, line, cross, start, pixels, BLOCK: tl.constexpr
):  # fmt: skip
    slice_index = tl.program_id(0).to(tl.int64)
    image, channel = slice_index // channels, slice_index % channels
    group = image * (channels // per_group) + channel // per_group
    row = tl.arange(0, BLOCK)
    inside = row < width
    at = slice_index * pixels + start + row * cross
    at_weight = group * 3 * pixels + start + row * cross
    buffer = lines_buffer + slice_index * 2 * width + row
    state = tl.load(lam + at, inside, 0.0).to(tl.float32) * tl.load(x + at, inside, 0.0).to(tl.float32)
    tl.store(h + at, state, inside)
    tl.store(buffer, state, inside)
    for t in range(1, lines):
        tl.debug_barrier()
        at += line
        at_weight += line
        last = buffer + ((t + 1) % 2) * width
        above = tl.load(last - 1, inside & (row > 0), 0.0)
        below = tl.load(last + 1, row + 1 < width, 0.0)
        own = tl.load(lam + at, inside, 0.0).to(tl.float32) * tl.load(x + at, inside, 0.0).to(tl.float32)
        own += tl.load(weight + at_weight, inside, 0.0).to(tl.float32) * above
        own += tl.load(weight + at_weight + pixels, inside, 0.0).to(tl.float32) * state
        own += tl.load(weight + at_weight + 2 * pixels, inside, 0.0).to(tl.float32) * below
        state = own
        tl.store(h + at, state, inside)
        tl.store(buffer + (t % 2) * width, state, inside)


def triton_scan(case: Case, a: Arrays) -> Call:
    """The recurrence as a Triton kernel."""
    batch, channels, height, width = case.shape
    horizontal, backwards = case.direction in HORIZONTAL, case.direction in REVERSED
    lines, rows = (width, height) if horizontal else (height, width)
    if rows > WIDEST:
        raise LeftOutError(f"a program holds at most {WIDEST} rows")
    line, cross = (1, width) if horizontal else (width, 1)
    tensors = [as_tensor(a[name]) for name in ("x", "weight", "lam", "h")]
    buffer = as_tensor(cupy.empty(batch * channels * 2 * rows, "float32"))
    block = triton.next_power_of_2(rows)
    sizes = (channels, channels // case.groups, lines, rows, -line if backwards else line, cross)

    def call() -> Arrays:
        with stream(), torch.cuda.device(0):
            scan_kernel[(batch * channels,)](
                *tensors, buffer, *sizes, (lines - 1) * line if backwards else 0, height * width, BLOCK=block,
                num_warps=min(max(block // 128, 1), 16),
            )  # fmt: skip
        return {"h": a["h"]}

    return call
