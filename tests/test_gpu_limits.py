"""Repeats, sizes and what is compiled: bitwise equal results, more than 2³¹ elements, much shared memory, warm-up."""

import gc

import numpy as np
import pytest
from gpu_support import FUNCTIONS, case, needs_gpu, on_cupy, run, same, wanted
from helpers import DTYPES

import gspn2_cupy
from gspn2_cupy import ALL_DIRECTIONS, _launch

pytestmark = needs_gpu

REPEATS = 100
# Why each shape: what its plans differ in.
SHAPES = {
    (2, 4, 72, 64): "a block holds whole slices",
    (1, 2, 512, 512): "slices cut over a cluster or over bands",
    (1, 1, 1536, 1536): "one slice alone, cut over as many blocks as there can be",
    (2, 3, 33, 37): "small slices",
    (1, 2, 130, 131): "rows of broken vectors, copied in pieces",
}


@pytest.fixture
def plans(monkeypatch):
    """The plans that are launched."""
    launched, launch = [], _launch.run

    def spy(launcher, plan, *arrays):
        launched.append(plan)
        launch(launcher, plan, *arrays)

    monkeypatch.setattr(_launch, "run", spy)
    return launched


# --- repeats ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    ("function", "shape"),
    [
        *(("line_scan", shape) for shape in SHAPES),
        *(("line_scan_backward", shape) for shape in SHAPES if shape[-1] < 1000),  # the others take too long
        *((function, (2, 4, 40, 64)) for function in ("normalize_weights", "propagate", "propagate_backward")),
        ("propagate_backward", (2, 3, 33, 37)),
        ("compact_propagate", (2, 4, 40, 64)),
        ("compact_propagate_backward", (2, 4, 40, 64)),
    ],
)
def test_results_repeat_bitwise(function, shape, dtype):
    """A hundred times, while another stream keeps the GPU busy with calls of its own."""
    import cupy

    arrays, options = case(function, dtype, shape)
    given = on_cupy(arrays)
    first = run(function, given, options)
    differing = cupy.zeros((), np.int64)
    cupy.cuda.Device().synchronize()
    with cupy.cuda.Stream(non_blocking=True) as other:
        pass
    for repeat in range(REPEATS):
        if repeat % 3 == 0:
            with other:
                run(function, given, options)
        for result, each in zip(run(function, given, options), first, strict=True):
            differing += (result.view(np.uint8) != each.view(np.uint8)).sum()
    cupy.cuda.Device().synchronize()
    assert int(differing) == 0


@pytest.mark.parametrize("function", FUNCTIONS)
def test_results_do_not_depend_on_what_memory_held(function):
    import cupy

    arrays, options = case(function)
    expected = wanted(function, arrays, options)
    pool = cupy.cuda.MemoryPool()
    for byte in (0x00, 0xFF, 0x7B):

        def allocate(size, byte=byte):
            memory = pool.malloc(size)
            if size:
                memory.memset_async(byte, size)
            return memory

        with cupy.cuda.using_allocator(allocate):
            same(run(function, on_cupy(arrays), options), expected)


# --- sizes ------------------------------------------------------------------------------------------------------------

FILL = r"""
extern "C" __global__ void fill(unsigned short* values, unsigned long long count, unsigned seed, unsigned low) {
  // float16 bits: random mantissas, exponents of [low, low + 1], so 2^-3..2^-1 for low = 12
  for (unsigned long long i = blockIdx.x * 256ull + threadIdx.x; i < count; i += gridDim.x * 256ull) {
    unsigned long long z = (i + seed) * 0x9E3779B97F4A7C15ull;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ull;
    z ^= z >> 27;
    values[i] = (unsigned short)((low + (z & 1)) << 10 | ((z >> 8) & 1023));
  }
}
"""


def random_float16(shape, seed, low):
    import cupy

    array = cupy.empty(shape, np.float16)
    kernel = cupy.RawKernel(FILL, "fill")
    kernel((4096,), (256,), (array, np.uint64(array.size), np.uint32(seed), np.uint32(low)))
    return array


def require_memory(needed):
    import cupy

    gc.collect()
    cupy.get_default_memory_pool().free_all_blocks()
    free, _ = cupy.cuda.runtime.memGetInfo()
    if free < needed:
        pytest.skip(f"needs {needed / 2**30:.0f} GiB of GPU memory; {free / 2**30:.0f} GiB are free")


@pytest.fixture
def large():
    """Gives the memory back to the GPU afterwards."""
    import cupy

    yield
    gc.collect()
    cupy.get_default_memory_pool().free_all_blocks()


@pytest.mark.parametrize("direction", ["right_to_left", "top_to_bottom"])
@pytest.mark.parametrize(("channels", "groups"), [(64, 1), (22, 22)], ids=["image", "weight"])
def test_more_than_two_to_the_31_elements(large, direction, channels, groups):
    """A forward and a backward against the same of a few channels alone: first, last, and around element 2³¹."""
    import cupy

    side = 5800  # 64 images or 22·3 weights of it are more than 2³¹ elements
    images, weights = channels * side * side, 3 * groups * side * side
    assert max(images, weights) > 2**31
    require_memory(2 * (4 * images + weights) + 4 * images + 3 * 2**30)
    x = random_float16((1, channels, side, side), 1, 12)
    weight = random_float16((1, groups, 3, side, side), 2, 11)  # below 1/4: rows sum to less than 1
    h, h_last = gspn2_cupy.line_scan(x, weight, direction=direction, return_last=True)
    dx = gspn2_cupy.line_scan_backward(x, x, weight, direction=direction, needs=("x",)).x
    at = 2**31 // (side * side * (3 if groups > 1 else 1))
    for channel in sorted({0, at - 1, at, channels - 1}):
        one = slice(channel, channel + 1)
        part, matrix = x[:, one], weight[:, one if groups > 1 else slice(0, 1)]
        expected, last = gspn2_cupy.line_scan(part, matrix, direction=direction, return_last=True)
        assert bool((h[:, one].view(np.uint16) == expected.view(np.uint16)).all()), f"h of channel {channel}"
        assert bool((h_last[:, one] == last).all()), f"h_last of channel {channel}"
        expected = gspn2_cupy.line_scan_backward(part, part, matrix, direction=direction, needs=("x",)).x
        assert bool((dx[:, one].view(np.uint16) == expected.view(np.uint16)).all()), f"dx of channel {channel}"
    assert float(cupy.abs(h[0, -1, ::100, ::100].astype(np.float32)).sum()) > 0


def test_one_image_of_more_than_two_to_the_31_elements(large):
    """A single channel, cut along the scan: the pieces hand their last line on."""
    height, width = 46400, 46400
    assert height * width > 2**31
    require_memory(2 * 6 * height * width + 3 * 2**30)
    x = random_float16((1, 1, height, width), 3, 12)
    weight = random_float16((1, 1, 3, height, width), 4, 11)
    h = gspn2_cupy.line_scan(x, weight, direction="top_to_bottom")
    last = None
    for start in range(0, height, 11600):
        rows = slice(start, start + 11600)
        part, last = gspn2_cupy.line_scan(
            x[:, :, rows], weight[..., rows, :], direction="top_to_bottom", h0=last, return_last=True
        )
        assert bool((h[:, :, rows].view(np.uint16) == part.view(np.uint16)).all()), f"rows from {start}"


def test_more_shared_memory_than_48_kilobytes(plans):
    """Kernels are allowed it, never less than before, and both small and large launches of a kernel still run."""
    import cupy

    launcher = _launch.cupy_launcher(0)
    allowed = {}
    for shape in (*SHAPES, (1, 64, 64, 64), (4, 32, 256, 256)):
        for direction in ("left_to_right", "top_to_bottom"):
            for dtype in ("float32", "bfloat16"):
                x = cupy.asarray(np.ones(shape, DTYPES[dtype]))
                weight = cupy.asarray(np.full((shape[0], 1, 3, *shape[2:]), 0.25, DTYPES[dtype]))
                gspn2_cupy.line_scan(x, weight, direction=direction)
                plan = plans[-1]
                if plan.shared_bytes > _launch.STATIC_SHARED_LIMIT:
                    kernel = launcher.compile(plan.spec).prepare(plan.shared_bytes, plan.cooperative)
                    allowed[plan.spec, plan.cooperative] = kernel
                    assert kernel.max_dynamic_shared_size_bytes >= plan.shared_bytes
    cupy.cuda.Device().synchronize()
    if not allowed:
        pytest.skip("no plan for this GPU needs more than 48 KB")
    for (spec, cooperative), kernel in allowed.items():
        before = kernel.max_dynamic_shared_size_bytes
        assert launcher.compile(spec).prepare(_launch.STATIC_SHARED_LIMIT + 1, cooperative) is kernel
        assert kernel.max_dynamic_shared_size_bytes == before


# --- what is compiled -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("shape", [(2, 4, 40, 64), (2, 3, 33, 37)])
def test_after_a_warm_up_nothing_is_compiled(monkeypatch, dtype, shape):
    import cupy

    _launch.cupy_launcher.cache_clear()
    gspn2_cupy.warmup(shape, dtype, groups=2 if shape[1] % 2 == 0 else 1, u=True, normalize="sigmoid", progress=False)

    def refuse(self, cooperative):
        raise AssertionError(f"{self._spec} (cooperative={cooperative}) was not warmed up")

    monkeypatch.setattr(_launch.CupyKernel, "_load", refuse)
    groups = 2 if shape[1] % 2 == 0 else 1
    batch, channels, height, width = shape

    def ones(*extents):
        return cupy.asarray(np.full(extents, 0.25, DTYPES[dtype]))

    x, each = ones(*shape), ones(batch, 4, channels, height, width)
    for direction in ALL_DIRECTIONS:
        weight = gspn2_cupy.normalize_weights(ones(batch, groups, 3, height, width), direction=direction)
        h = gspn2_cupy.line_scan(x, weight, x.copy(), direction=direction)
        gspn2_cupy.line_scan_backward(x, x, weight, x, h, direction=direction)
        gspn2_cupy.line_scan_backward(x, x, weight, x, direction=direction)
    logits = ones(batch, 4, groups, 3, height, width)
    _, states = gspn2_cupy.propagate(x, logits, each, each, normalize="sigmoid", return_states=True)
    gspn2_cupy.propagate(x, logits, each, each, normalize="sigmoid", merge=ones(4))
    gspn2_cupy.propagate_backward(x, x, logits, each, each, normalize="sigmoid", merge=ones(4))
    gspn2_cupy.propagate_backward(x, x, logits, each, each, normalize="sigmoid", states=states)
    _launch.cupy_launcher.cache_clear()
