"""What a PyTorch user would run instead: attention over all pixels, and the loop over columns under torch.compile."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import cupy
import numpy as np
import torch

from benchmarks.cases import Case
from benchmarks.implementations import MOST_LINES, Arrays, Call, LeftOutError, MissingError
from gspn2_cupy._arrays import data_type
from gspn2_cupy.reference import HORIZONTAL, REVERSED

EXPONENTIALS = 3e12  # a second, of one large GPU: what attention over many pixels is bound by
LONGEST = 2.0  # seconds of one call


def as_tensor(array: Any) -> torch.Tensor:
    """Return a CuPy array as a tensor of the same memory."""
    if array.dtype.itemsize == 2:
        return torch.from_dlpack(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_dlpack(array)


def as_array(tensor: torch.Tensor, dtype: str) -> Any:
    """Return a tensor as a CuPy array of the same memory."""
    if tensor.dtype == torch.bfloat16:
        return cupy.from_dlpack(tensor.view(torch.int16)).view(data_type(dtype).numpy_dtype)
    return cupy.from_dlpack(tensor)


def stream() -> Any:
    """Let PyTorch queue on CuPy's current stream."""
    return torch.cuda.stream(torch.cuda.ExternalStream(cupy.cuda.get_current_stream().ptr))


def head_size(channels: int) -> int:
    """Return the channels of a head: 64 or 32 where they divide, else all."""
    return next((size for size in (64, 32) if channels % size == 0), channels)


def attention(case: Case, a: Arrays) -> Call:
    """Scaled dot-product attention among all H·W pixels, by the flash kernel; x, and two parts of λ, as q, k and v."""
    batch, channels, height, width = case.shape
    size, tokens = head_size(channels), height * width
    seconds = batch * channels // size * tokens**2 / EXPONENTIALS
    if case.weights != "shared":
        raise LeftOutError("attention has no weights to share: see the case with shared weights")
    if seconds > LONGEST:
        raise LeftOutError(f"about {seconds:.0f} s a call, by its exponentials alone")
    shape = (batch, channels // size, tokens, size)  # the memory of (B, C, H, W), read as heads of tokens
    with stream():
        lam = as_tensor(a["lam"])
        q, k, v = (t.contiguous().reshape(shape) for t in (as_tensor(a["x"]), lam[:, 0], lam[:, 1]))
    kernels = torch.nn.attention.SDPBackend.FLASH_ATTENTION

    def call() -> Arrays:
        with stream(), torch.no_grad(), torch.nn.attention.sdpa_kernel(kernels):
            result = torch.nn.functional.scaled_dot_product_attention(q, k, v)
        return {"attention": result, "q": q, "k": k, "v": v}

    return call


def check_attention(outputs: Arrays) -> dict[str, Any]:
    """Judge some queries of one head against float64."""
    q, k, v, result = (outputs[name] for name in ("q", "k", "v", "attention"))
    with stream():
        parts = [t[0, 0].float().cpu().numpy().astype(np.float64) for t in (q[:, :, :4], k, v, result[:, :, :4])]
    queries, keys, values, out = parts
    scores = queries @ keys.T / np.sqrt(keys.shape[1])
    weights = np.exp(scores - scores.max(axis=1, keepdims=True))
    truth = weights @ values / weights.sum(axis=1, keepdims=True)
    relative = float(np.linalg.norm(out - truth) / np.linalg.norm(truth))
    if not relative <= 2e-2:
        raise AssertionError(f"attention is wrong: relative error {relative:.2e}")
    return {"relative": relative, "compared": truth.size}


def naive_scan(x: torch.Tensor, weight: torch.Tensor, lam: torch.Tensor, direction: str) -> torch.Tensor:
    """Scan column by column (or row by row) with PyTorch's own operations: what one writes first."""
    channels = x.shape[1]
    axis = -1 if direction in HORIZONTAL else -2
    repeated = weight.repeat_interleave(channels // weight.shape[1], dim=1)
    xs, ws, lams = x.unbind(axis), repeated.unbind(axis), lam.unbind(axis)
    order = range(len(xs) - 1, -1, -1) if direction in REVERSED else range(len(xs))
    lines: list[Any] = [None] * len(xs)
    h = None
    for t in order:
        line = (lams[t] * xs[t]).float()
        if h is not None:
            w = ws[t].float()
            above = torch.nn.functional.pad(h[..., :-1], (1, 0))
            below = torch.nn.functional.pad(h[..., 1:], (0, 1))
            line = line + w[:, :, 0] * above + w[:, :, 1] * h + w[:, :, 2] * below
        h = line
        lines[t] = line.to(x.dtype)
    return torch.stack(lines, axis)


@lru_cache(maxsize=1)
def compiled_scan(case: Case) -> Callable[..., torch.Tensor]:
    """Return the naive loop for all arrays of a case, which its first call compiles; earlier cases' is forgotten."""
    torch._dynamo.reset()
    return torch.compile(naive_scan, dynamic=False, fullgraph=True)


def torch_compile(case: Case, a: Arrays) -> Call:
    """The naive loop over lines under torch.compile, compiled: ``facts`` of the call tell in how many seconds."""
    if case.lines > MOST_LINES:
        raise LeftOutError(
            f"torch.compile unrolls the loop over {case.lines} lines; more than {MOST_LINES} take it minutes"
        )
    if not any(shutil.which(name) for name in (os.environ.get("CC", "cc"), "gcc", "clang")):
        raise MissingError("not installed: a C compiler, for torch.compile")
    with stream():
        x, weight, lam = (as_tensor(a[name]) for name in ("x", "weight", "lam"))
    compiled = compiled_scan(case)

    def call() -> Arrays:
        with stream(), torch.no_grad():
            return {"h": as_array(compiled(x, weight, lam, case.direction), case.dtype)}

    started = time.perf_counter()
    call()
    call.facts = {"compile_seconds": time.perf_counter() - started}
    return call
