"""Arrays on a device that is not current; arrays of two devices in a call. They need two CUDA devices."""

import pytest
from conftest import NO_GPU
from gpu_support import (
    HOST_WAITED,
    LIBRARIES,
    Gate,
    case,
    every_function,
    in_threads,
    needs_gpu,
    run,
    wanted,
)
from helpers import assert_same_bits

import gspn2_cupy


def devices():
    if NO_GPU is not None:
        return 0
    import cupy

    return cupy.cuda.runtime.getDeviceCount()


pytestmark = [*needs_gpu, pytest.mark.skipif(NO_GPU is None and devices() < 2, reason="one CUDA device only")]


@pytest.fixture(params=LIBRARIES)
def library(request):
    import cupy

    with cupy.cuda.Device(0):  # and back to it: JAX leaves the device current of an array that it frees
        yield LIBRARIES[request.param]()


@pytest.mark.parametrize("current", [0, 1])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@every_function
def test_the_arrays_device_not_the_current_one(library, function, dtype, current):
    import cupy

    arrays, options = case(function, dtype)
    expected = wanted(function, arrays, options)
    for device in (1 - current, current):
        given = {name: library.array(array, device) for name, array in arrays.items()}
        with library.current(current):
            results = run(function, given, options)
            assert cupy.cuda.runtime.getDevice() == current
        for result, each in zip(results, expected, strict=True):
            assert library.owns(result, device)
            assert_same_bits(library.numpy(result), each)


@pytest.mark.parametrize("current", [0, 1])
def test_empty_arrays_leave_the_current_device(library, current):
    import cupy

    arrays, options = case("line_scan", shape=(2, 4, 0, 64))
    given = {name: library.array(array, 1 - current) for name, array in arrays.items()}
    with library.current(current):
        results = run("line_scan", given, options)
        assert cupy.cuda.runtime.getDevice() == current
    assert all(library.owns(each, 1 - current) for each in results)


@pytest.mark.parametrize("name", ["CuPy", "PyTorch"])
def test_out_on_another_device(name):
    library = LIBRARIES[name]()
    arrays, options = case("line_scan")
    given = {each: library.array(array, 1) for each, array in arrays.items()}
    out = library.array(arrays["x"], 1)
    h, _ = run("line_scan", {**given, "out": out}, options)
    assert h is out
    assert_same_bits(library.numpy(out), wanted("line_scan", arrays, options)[0])


def test_devices_do_not_mix(library):
    arrays, options = case("line_scan")
    given = {name: library.array(array, 0) for name, array in arrays.items()}
    given["weight"] = library.array(arrays["weight"], 1)
    with pytest.raises(ValueError, match=r"^weight must lie on cuda:0 like x; got cuda:1$"):
        gspn2_cupy.line_scan(**given, **options)


def test_a_held_stream_of_the_other_device_holds_the_call():
    """The call goes to the current stream of the arrays' device; that of the current device is not asked."""
    import cupy

    library = LIBRARIES["CuPy"]()
    arrays, options = case("line_scan")
    given = {name: library.array(array, 1) for name, array in arrays.items()}
    with cupy.cuda.Device(1):
        gate, stream = Gate(), cupy.cuda.Stream(non_blocking=True)
        with stream:
            run("line_scan", given, options)
            stream.synchronize()
            gate.close()
            with cupy.cuda.Device(0):
                results = run("line_scan", given, options)
            ahead = not stream.done
            gate.open()
            stream.synchronize()
    for result, each in zip(results, wanted("line_scan", arrays, options), strict=True):
        assert_same_bits(result.get(), each)
    assert ahead, HOST_WAITED


def test_a_thread_for_each_device():
    import cupy

    library = LIBRARIES["CuPy"]()
    arrays, options = case("propagate_backward")
    expected = wanted("propagate_backward", arrays, options)

    def work(device):
        with cupy.cuda.Device(device):
            given = {name: library.array(array, device) for name, array in arrays.items()}
            return [[each.get() for each in run("propagate_backward", given, options)] for _ in range(10)]

    for results in in_threads(2, work):
        for result in results:
            for actual, each in zip(result, expected, strict=True):
                assert_same_bits(actual, each)
