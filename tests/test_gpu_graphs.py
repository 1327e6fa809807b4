"""Warm calls can be captured in CUDA graphs; each replay works on what the inputs hold by then."""

import gc

import numpy as np
import pytest
from gpu_support import SHAPES, PyTorch, case, every_dtype, every_function, needs_gpu, on_cupy, run, same, wanted
from helpers import assert_same_bits

from gspn2_cupy import _launch
from gspn2_cupy._adapters import on_stream

pytestmark = needs_gpu

TAKES_OUT = ("line_scan", "propagate")


def changed(arrays):
    """Other values in the same arrays."""
    return {name: (array * 0.5).astype(array.dtype) for name, array in arrays.items()}


def captured(stream, function, given, options):
    """Warm up and capture a call on a stream: the graph, and the results that each replay fills."""
    import cupy

    if function in TAKES_OUT:
        given = {**given, "out": cupy.empty_like(given["x"])}
    with stream:
        run(function, given, options)
        stream.synchronize()
        stream.begin_capture()
        try:
            results = run(function, given, options)
        finally:
            graph = stream.end_capture()
    return graph, results


def check_replays(stream, graph, results, function, given, arrays, options):
    import cupy

    for values in (arrays, changed(arrays), arrays):
        with stream:
            for name, array in values.items():
                given[name].set(array, stream=stream)
            for result in results:
                result.fill(0)
            graph.launch(stream=stream)
            stream.synchronize()
        same(results, wanted(function, values, options))
    cupy.cuda.Device().synchronize()


@pytest.mark.parametrize("shape", list(SHAPES.values()), ids=list(SHAPES))
@every_function
def test_replays_see_new_inputs(function, shape):
    import cupy

    arrays, options = case(function, shape=shape)
    given, stream = on_cupy(arrays), cupy.cuda.Stream(non_blocking=True)
    cupy.cuda.Device().synchronize()
    graph, results = captured(stream, function, given, options)
    check_replays(stream, graph, results, function, given, arrays, options)


@every_dtype
def test_every_data_type(dtype):
    import cupy

    arrays, options = case("propagate_backward", dtype)
    given, stream = on_cupy(arrays), cupy.cuda.Stream(non_blocking=True)
    cupy.cuda.Device().synchronize()
    graph, results = captured(stream, "propagate_backward", given, options)
    check_replays(stream, graph, results, "propagate_backward", given, arrays, options)


@pytest.mark.parametrize("own_pool", [False, True], ids=["shared pool", "pool of its own"])
@pytest.mark.parametrize(
    "function", ["line_scan_backward", "propagate", "propagate_backward", "compact_propagate_backward"]
)
def test_workspaces_are_not_given_to_others(function, own_pool):
    """A replay writes to the workspaces of its capture: they must be nobody else's by then."""
    import cupy

    arrays, options = case(function)
    given, stream = on_cupy(arrays), cupy.cuda.Stream(non_blocking=True)
    pool = cupy.cuda.MemoryPool()
    cupy.cuda.Device().synchronize()
    if own_pool:
        with cupy.cuda.using_allocator(pool.malloc):
            graph, results = captured(stream, function, given, options)
    else:
        graph, results = captured(stream, function, given, options)
    with stream:
        others = [cupy.full(size, 7, np.uint8) for size in 20 * [arrays["x"].nbytes, 3 * arrays["x"].nbytes, 4096]]
    check_replays(stream, graph, results, function, given, arrays, options)
    assert all(bool((each == 7).all()) for each in others)


def test_a_pool_of_its_own_is_kept_by_nobody_else():
    """As advised: with a memory pool per graph, workspaces are freed with it."""
    import cupy

    arrays, options = case("propagate_backward")
    given, stream = on_cupy(arrays), cupy.cuda.Stream(non_blocking=True)
    pool = cupy.cuda.MemoryPool()
    cupy.cuda.Device().synchronize()
    kept = len(_launch.cupy_launcher(0)._captured)
    with cupy.cuda.using_allocator(pool.malloc):
        graph, results = captured(stream, "propagate_backward", given, options)
    assert len(_launch.cupy_launcher(0)._captured) == kept
    del graph, results
    gc.collect()
    assert pool.used_bytes() == 0


def test_two_graphs_at_once():
    import cupy

    first, second = case("propagate_backward"), case("propagate_backward", seed=1)
    givens = [on_cupy(arrays) for arrays, _ in (first, second)]
    streams = [cupy.cuda.Stream(non_blocking=True) for _ in givens]
    cupy.cuda.Device().synchronize()
    captures = [
        captured(stream, "propagate_backward", given, options)
        for stream, given, (_, options) in zip(streams, givens, (first, second), strict=True)
    ]
    for _ in range(20):
        for stream, (graph, _) in zip(streams, captures, strict=True):
            graph.launch(stream=stream)
    cupy.cuda.Device().synchronize()
    for (_, results), (arrays, options) in zip(captures, (first, second), strict=True):
        same(results, wanted("propagate_backward", arrays, options))


@pytest.mark.parametrize("function", ["line_scan", "line_scan_backward", "propagate", "propagate_backward"])
def test_pytorchs_graphs(function):
    """The array functions inside ``torch.cuda.graph``, with PyTorch's stream made CuPy's current one."""
    library = PyTorch()
    torch = library.torch
    arrays, options = case(function)
    given = {name: library.array(array) for name, array in arrays.items()}
    if function in TAKES_OUT:
        given["out"] = torch.empty_like(given["x"])
    stream = torch.cuda.Stream()
    torch.cuda.synchronize()
    with torch.cuda.stream(stream), on_stream(0, stream.cuda_stream):
        run(function, given, options)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream, capture_error_mode="relaxed"), on_stream(0, stream.cuda_stream):
        results = run(function, given, options)
    for values in (arrays, changed(arrays), arrays):
        for name, array in values.items():
            given[name].copy_(library.array(array))
        graph.replay()
        torch.cuda.synchronize()
        for result, each in zip(results, wanted(function, values, options), strict=True):
            assert_same_bits(library.numpy(result), each)
