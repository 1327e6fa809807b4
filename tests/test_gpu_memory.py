"""Memory outlives every stream that uses it: what is dropped while a stream is still busy with it is not reused.

A test drops an array while a gate holds the stream that uses it, and then has its memory filled with NaN: by the next
taker of the same library on another stream.
"""

import gc
import time

import numpy as np
import pytest
from gpu_support import (
    HOST_WAITED,
    Jax,
    PyTorch,
    case,
    gate,  # noqa: F401
    needs_gpu,
    on_cupy,
    run,
    same,
    wanted,
)
from helpers import assert_same_bits

from gspn2_cupy import _streams
from gspn2_cupy._adapters import on_stream

pytestmark = needs_gpu


@pytest.fixture
def pool():
    """A memory pool of CuPy's that nobody else takes from."""
    import cupy

    pool = cupy.cuda.MemoryPool()
    with cupy.cuda.using_allocator(pool.malloc):
        yield pool


def fill_with_nan(pool, size, count=6):
    """Take and fill what is free in CuPy's pool on the current stream."""
    import cupy

    arrays = [cupy.empty(size // 4, np.float32) for _ in range(count)]
    for array in arrays:
        array.fill(np.nan)
    return arrays


def test_cupys_results_dropped_at_once():
    """Calls on several streams, the host far ahead, every result dropped: none may see another's memory."""
    import cupy

    streams = [cupy.cuda.Stream(non_blocking=True) for _ in range(3)]
    cases = [case("propagate_backward", shape=(1, 4, 40, 64 + 8 * i), seed=i) for i in range(3)]
    given = [on_cupy(arrays) for arrays, _ in cases]
    expected = [[cupy.asarray(each) for each in wanted("propagate_backward", *each)] for each in cases]
    wrong = [cupy.zeros((), np.int64) for _ in streams]
    cupy.cuda.Device().synchronize()
    for _ in range(60):
        for i, stream in enumerate(streams):
            with stream:
                for result, each in zip(run("propagate_backward", given[i], cases[i][1]), expected[i], strict=True):
                    wrong[i] += (result != each).sum()
    cupy.cuda.Device().synchronize()
    assert [int(each) for each in wrong] == [0, 0, 0]


def test_a_result_that_pytorch_drops_while_its_stream_is_busy_with_it(gate, pool):  # noqa: F811
    library = PyTorch()
    torch, cupy = library.torch, library.cupy
    arrays, options = case("line_scan")
    expected = wanted("line_scan", arrays, options)
    given = {name: library.array(array) for name, array in arrays.items()}
    theirs, ours = torch.cuda.Stream(), cupy.cuda.Stream(non_blocking=True)

    def use_and_drop():
        h, h_last = run("line_scan", given, options)
        with on_stream(0, theirs.cuda_stream):
            gate.close()
        address, used = h.data_ptr(), h * 1
        del h, h_last
        gc.collect()
        return address, used

    torch.cuda.synchronize()
    with torch.cuda.stream(theirs), ours:
        gate.open()
        for _ in range(2):  # the second time all kernels are loaded
            address, used = use_and_drop()
            others = fill_with_nan(pool, used.nbytes)
            ahead = not theirs.query()
            gate.open()
            theirs.synchronize()
            ours.synchronize()
    assert address in {each.data.ptr for each in others}, "it wasn't reused: this test shows nothing"
    assert_same_bits(library.numpy(used), expected[0])
    assert ahead, HOST_WAITED


def test_an_input_that_pytorch_drops_while_our_stream_is_busy_with_it(gate):  # noqa: F811
    library = PyTorch()
    torch, cupy = library.torch, library.cupy
    arrays, options = case("line_scan")
    expected = wanted("line_scan", arrays, options)
    theirs, ours = torch.cuda.Stream(), cupy.cuda.Stream(non_blocking=True)
    torch.cuda.synchronize()
    with torch.cuda.stream(theirs), ours:
        for _ in range(2):  # the second time all kernels are loaded
            given = {name: library.array(array) for name, array in arrays.items()}
            address, kind = given["x"].data_ptr(), torch.empty_like(given["x"])
            theirs.synchronize()
            gate.close()
            h, _ = run("line_scan", given, options)
            del given
            others = [torch.full_like(kind, torch.nan) for _ in range(8)]
            ahead = not ours.done
            gate.open()
            theirs.synchronize()
    size = arrays["x"].nbytes
    assert any(abs(each.data_ptr() - address) < size for each in others), "it wasn't reused: this test shows nothing"
    assert_same_bits(library.numpy(h), expected[0])
    assert ahead, HOST_WAITED


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_result_that_jax_drops_while_it_is_busy_with_it(dtype, pool):
    """Under load: JAX's stream is far behind, and CuPy's memory of the results is free at once."""
    library = Jax()
    jax, cupy = library.jax, library.cupy
    arrays, options = case("line_scan", dtype)
    expected = wanted("line_scan", arrays, options)
    given = {name: library.array(array) for name, array in arrays.items()}

    @jax.jit
    def late(h, big):
        for _ in range(6):
            big = big @ big * 1e-3
        return h + (0 * jax.numpy.tanh(big[0, 0])).astype(h.dtype)

    big = jax.device_put(np.full((3000, 3000), 1e-3, np.float32), library.devices[0])
    late(given["x"], big).block_until_ready()
    used = []
    with cupy.cuda.Stream(non_blocking=True) as ours:
        for _ in range(10):
            h, h_last = run("line_scan", given, options)
            used.append(late(h, big))
            del h, h_last
            fill_with_nan(pool, arrays["x"].nbytes)
        ours.synchronize()
    for each in used:
        assert_same_bits(library.numpy(each), expected[0])


def test_an_input_that_jax_drops_while_our_stream_is_busy_with_it(gate):  # noqa: F811
    library = Jax()
    jax, cupy = library.jax, library.cupy
    arrays, options = case("line_scan")
    expected = wanted("line_scan", arrays, options)
    fill = jax.jit(lambda: jax.numpy.full(arrays["x"].shape, jax.numpy.nan, jax.numpy.float32))
    fill().block_until_ready()
    with cupy.cuda.Stream(non_blocking=True) as ours:
        for _ in range(2):  # the second time all kernels are loaded
            given = {name: library.array(array) for name, array in arrays.items()}
            jax.block_until_ready(given)
            gate.close()
            h, _ = run("line_scan", given, options)
            given["x"].delete()
            del given
            others = [fill() for _ in range(16)]
            time.sleep(0.3)  # JAX's own stream isn't held: they are written at once
            ahead = not ours.done
            gate.open()
            ours.synchronize()
            jax.block_until_ready(others)
    assert_same_bits(library.numpy(h), expected[0])
    assert ahead, HOST_WAITED


def test_what_is_kept_for_jax_is_let_go():
    library = Jax()
    arrays, options = case("line_scan")
    given = {name: library.array(array) for name, array in arrays.items()}
    for _ in range(5):
        run("line_scan", given, options)
        library.cupy.cuda.Device().synchronize()
    assert len(_streams._retained) <= 1


def test_what_is_lent_to_pytorch_comes_back(pool):
    library = PyTorch()
    arrays, options = case("line_scan")
    given = {name: library.array(array) for name, array in arrays.items()}
    stranded = len(_streams._stranded)
    with library.cupy.cuda.Stream(non_blocking=True):
        for _ in range(20):
            run("line_scan", given, options)
    gc.collect()
    assert pool.used_bytes() == 0
    assert pool.total_bytes() < 8 * arrays["x"].nbytes  # reused, not taken anew
    assert len(_streams._stranded) == stranded


def test_results_survive_their_streams():
    """A stream may be gone before what was computed on it."""
    import cupy

    arrays, options = case("propagate")
    given = on_cupy(arrays)
    cupy.cuda.Device().synchronize()
    with cupy.cuda.Stream(non_blocking=True) as stream:
        results = run("propagate", given, options)
    stream.synchronize()
    del stream
    gc.collect()
    same(results, wanted("propagate", arrays, options))
