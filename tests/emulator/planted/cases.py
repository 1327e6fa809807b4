"""Launches of the kernels in this folder: each is correct with BUG=none, and known by its result."""

from pathlib import Path

import numpy as np

from gspn2_cupy._plan import KernelSpec

FOLDER = Path(__file__).parent


def spec(source, entry, bug="none", **defines):
    return KernelSpec(source, entry, (("BUG", bug), *defines.items()))


def struct(**fields):
    return np.array(tuple(fields.values()), dtype=[(name, np.int64) for name in fields])


def numbers(count):
    return (np.arange(count) % 7 - 2).astype(np.float32)


def scan(device, bug="none", width=48, shared_bytes=None):
    x = numbers(6 * width).reshape(6, width)
    h = device.empty(x.shape, np.float32)
    kernel = device.compile(spec("scan.cu", "scan", bug))
    kernel(1, width, 8 * width if shared_bytes is None else shared_bytes, (x, h, struct(lines=6, width=width)))
    expected, before = np.empty_like(x), np.zeros(width + 2, np.float32)
    for t in range(6):
        expected[t] = 0.25 * (before[:-2] + before[1:-1] + before[2:]) + x[t]
        before[1:-1] = expected[t]
    return h, expected


def block_sums(device, bug="none"):
    x, total = numbers(150), np.zeros((), np.float32)
    device.compile(spec("sums.cu", "block_sums", bug))(3, 64, 0, (x, total, struct(count=150)))
    return total, x.sum()


def warp_sums(device, bug="none"):
    x, y = numbers(50), device.empty(2, np.float32)
    device.compile(spec("sums.cu", "warp_sums", bug))(1, 64, 0, (x, y, struct(count=50)))
    return y, 2 * np.array([x[:32].sum(), x[32:].sum()])


def copy(device, bug="none"):
    x, y = numbers(64), device.empty(64, np.float32)
    arguments = (x, y, struct(count=64, large=2**31 - 1))
    device.compile(spec("vectors.cu", "copy", bug))(1, 32, 0, arguments)
    return y, x


def reverse_tiles(device, bug="none"):
    x, y = numbers(104), device.empty(104, np.float32)
    device.compile(spec("copies.cu", "reverse_tiles", bug))(1, 8, 256, (x, y, struct(count=104)))
    return y, np.pad(x, (0, 24)).reshape(-1, 32)[:, ::-1].reshape(-1)[:104]


def pass_along(device, bug="none", cooperative=True):
    x, y, sums = numbers(5), device.empty((5, 32), np.float32), device.empty(5, np.float32)
    arguments = (x, y, sums, np.zeros(5, np.uint64), struct(unused=0))
    device.compile(spec("exchange.cu", "pass_along", bug))(5, 32, 0, arguments, cooperative=cooperative)
    return y, np.repeat(np.cumsum(x) - x, 32).reshape(5, 32)


def cluster_sums(device, bug="none"):
    x = numbers(2 * 4 * 32)
    y = device.empty(x.shape, np.float32)
    device.compile(spec("clusters.cu", "cluster_sums", bug, CLUSTER="4"))(8, 32, 4 * 32 + 8, (x, y, struct(unused=0)))
    sums = x.reshape(2, 4, 32).sum(axis=1, keepdims=True)
    return y, np.broadcast_to(sums, (2, 4, 32)).reshape(-1)


def swap_in_groups(device, bug="none"):
    x, y = numbers(128), device.empty(128, np.float32)
    device.compile(spec("groups.cu", "swap_in_groups", bug))(1, 128, 0, (x, y, struct(rounds=5)))
    return y, x.reshape(2, 2, 32)[:, ::-1].reshape(-1) + 5


CASES = {
    case.__name__: case
    for case in (scan, block_sums, warp_sums, copy, reverse_tiles, pass_along, cluster_sums, swap_in_groups)
}
