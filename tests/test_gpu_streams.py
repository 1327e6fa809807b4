"""Work goes to the caller's current stream, and the host never waits for it.

A gate holds the stream while a call is made. Behind it the inputs are filled in: a call that ran on another stream
would see NaN, and a host that waited would find the gate open again.
"""

import os
import subprocess
import sys

import numpy as np
import pytest
from gpu_support import (
    FUNCTIONS,
    HOST_WAITED,
    SHAPES,
    Jax,
    PyTorch,
    case,
    every_function,
    gate,  # noqa: F401
    in_threads,
    needs_gpu,
    on_cupy,
    run,
    same,
    wanted,
)
from helpers import assert_same_bits

from gspn2_cupy import _launch
from gspn2_cupy._adapters import on_stream

pytestmark = needs_gpu

shapes = pytest.mark.parametrize("shape", list(SHAPES.values()), ids=list(SHAPES))


def behind_a_gate(gate, stream, function, shape):  # noqa: F811
    """Make a call on a stream that is held; its results, and whether the host was done before the stream."""
    import cupy

    arrays, options = case(function, shape=shape)
    values = on_cupy(arrays)
    given = {name: cupy.empty_like(array) for name, array in values.items()}

    def queue():
        for name, array in given.items():
            cupy.copyto(array, values[name])
        return run(function, given, options)

    with stream:
        queue()  # loads the kernels and fills the memory pool of this stream
        stream.synchronize()
        for array in given.values():
            array.fill(np.nan)
        gate.close()
        results = queue()
        ahead = not stream.done
        gate.open()
        stream.synchronize()
    same(results, wanted(function, arrays, options))
    return ahead


@shapes
@every_function
def test_cupys_current_stream(gate, function, shape):  # noqa: F811
    import cupy

    assert behind_a_gate(gate, cupy.cuda.Stream(non_blocking=True), function, shape), HOST_WAITED


@pytest.mark.parametrize("function", ["line_scan", "propagate_backward"])
def test_a_foreign_stream(gate, function):  # noqa: F811
    import cupy

    own = cupy.cuda.Stream(non_blocking=True)
    assert behind_a_gate(gate, cupy.cuda.Stream.from_external(own), function, SHAPES["tiles"]), HOST_WAITED


@pytest.mark.filterwarnings("ignore:ExternalStream is deprecated")
def test_a_foreign_stream_in_the_deprecated_way(gate):  # noqa: F811
    import cupy

    own = cupy.cuda.Stream(non_blocking=True)
    assert behind_a_gate(gate, cupy.cuda.ExternalStream(own.ptr, 0), "line_scan", SHAPES["tiles"]), HOST_WAITED


def test_the_null_stream(gate):  # noqa: F811
    import cupy

    assert behind_a_gate(gate, cupy.cuda.Stream.null, "line_scan", SHAPES["tiles"]), HOST_WAITED


@pytest.mark.parametrize("cupys", ["null", "another", "the same"])
@every_function
def test_pytorchs_current_stream(gate, function, cupys):  # noqa: F811
    """Whatever CuPy's current stream is: the two wait for each other."""
    library = PyTorch()
    torch, cupy = library.torch, library.cupy
    arrays, options = case(function)
    values = {name: library.array(array) for name, array in arrays.items()}
    given = {name: torch.empty_like(array) for name, array in values.items()}
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    other = {"null": cupy.cuda.Stream.null, "another": cupy.cuda.Stream(non_blocking=True)}.get(cupys)

    def queue():
        for name, tensor in given.items():
            tensor.copy_(values[name])
        return [each * 1 for each in run(function, given, options)]

    def both():
        return on_stream(0, stream.cuda_stream) if other is None else other

    with torch.cuda.stream(stream):
        with both():
            queue()
        stream.synchronize()
        for tensor in given.values():
            tensor.fill_(torch.nan)
        with on_stream(0, stream.cuda_stream):
            gate.close()
        with both():
            results = queue()
        ahead = not stream.query()
        gate.open()
        stream.synchronize()
    for result, each in zip(results, wanted(function, arrays, options), strict=True):
        assert_same_bits(library.numpy(result), each)
    assert ahead, HOST_WAITED


@every_function
def test_jax_waits_for_cupys_stream(gate, function):  # noqa: F811
    """What JAX computes from a result finds it there, though CuPy's stream was held when JAX was asked."""
    import cupy

    library = Jax()
    arrays, options = case(function)
    stream = cupy.cuda.Stream(non_blocking=True)
    given = {name: library.array(array) for name, array in arrays.items()}
    with stream:
        run(function, given, options)
        stream.synchronize()
        gate.close()
        results = run(function, given, options)
        ahead = not stream.done
        gate.open()
    used = [library.jax.numpy.negative(each) for each in results]
    for result, each in zip(used, wanted(function, arrays, options), strict=True):
        assert_same_bits(library.numpy(result), -each)
    assert ahead, HOST_WAITED


def test_cupy_waits_for_jax():
    """A call finds inputs that JAX is still computing."""
    library = Jax()
    jax = library.jax
    arrays, options = case("line_scan")
    given = {name: library.array(array) for name, array in arrays.items()}

    @jax.jit
    def late(x):
        big = jax.numpy.full((3000, 3000), 1e-3, jax.numpy.float32)
        for _ in range(12):
            big = big @ big * 1e-3
        return x + 0 * jax.numpy.tanh(big[0, 0])

    late(given["x"]).block_until_ready()
    results = run("line_scan", {**given, "x": late(given["x"])}, options)
    for result, each in zip(results, wanted("line_scan", arrays, options), strict=True):
        assert_same_bits(library.numpy(result), each)


# --- threads ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cold", [False, True], ids=["warm", "cold"])
def test_threads_with_streams_of_their_own(cold):
    """Different calls at once, each thread on its own stream; cold: all find the kernels not yet loaded."""
    import cupy

    cases = [(function, *case(function, seed=seed)) for seed, function in enumerate(FUNCTIONS)]
    expected = [wanted(*each) for each in cases]
    if cold:
        _launch.cupy_launcher.cache_clear()
    rounds = 1 if cold else 20

    def work(number):
        function, arrays, options = cases[number]
        with cupy.cuda.Stream(non_blocking=True) as stream:
            given = on_cupy(arrays)
            results = [run(function, given, options) for _ in range(rounds)]
            stream.synchronize()
            return [[each.get() for each in result] for result in results]

    for results, each in zip(in_threads(len(cases), work), expected, strict=True):
        for result in results:
            same(result, each)


def test_threads_that_share_kernels_arrays_and_the_null_stream():
    import cupy

    arrays, options = case("propagate_backward")
    expected = wanted("propagate_backward", arrays, options)
    _launch.cupy_launcher.cache_clear()
    given = on_cupy(arrays)
    cupy.cuda.Device().synchronize()

    def work(_):
        return [[each.get() for each in run("propagate_backward", given, options)] for _ in range(5)]

    for results in in_threads(6, work):
        for result in results:
            same(result, expected)


def test_a_threads_current_stream_is_left_as_it_was():
    import cupy

    arrays, options = case("propagate")
    with cupy.cuda.Stream(non_blocking=True) as stream:
        run("propagate", on_cupy(arrays), options)
        assert cupy.cuda.get_current_stream() == stream
    assert cupy.cuda.get_current_stream().ptr in (0, 1, 2)


def test_cupys_per_thread_default_streams():
    """CUPY_CUDA_PER_THREAD_DEFAULT_STREAM makes another stream than the null one current in every thread."""
    program = """
import cupy, numpy, threading
import gspn2_cupy
assert cupy.cuda.get_current_stream().ptr == cupy.cuda.Stream.ptds.ptr
x = numpy.random.default_rng(0).standard_normal((2, 4, 24, 32), "float32")
weight = numpy.full((2, 1, 3, 24, 32), 0.25, "float32")
right = gspn2_cupy.line_scan(x, weight, direction="top_to_bottom")
wrong = []
def work():
    for _ in range(10):
        h = gspn2_cupy.line_scan(cupy.asarray(x), cupy.asarray(weight), direction="top_to_bottom").get()
        if not numpy.allclose(h, right, atol=1e-5):
            wrong.append(h)
threads = [threading.Thread(target=work) for _ in range(3)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
assert not wrong
"""
    environment = os.environ | {"CUPY_CUDA_PER_THREAD_DEFAULT_STREAM": "1"}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
