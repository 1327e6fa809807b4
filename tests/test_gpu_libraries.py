"""CUDA arrays of CuPy, PyTorch and JAX go in without a copy and come back as the caller's own type, on their device."""

import numpy as np
import pytest
from gpu_support import LIBRARIES, case, every_dtype, every_function, needs_gpu, run, wanted
from helpers import assert_same_bits

import gspn2_cupy
from gspn2_cupy import _checks

pytestmark = needs_gpu


@pytest.fixture(params=LIBRARIES)
def library(request):
    return LIBRARIES[request.param]()


@every_dtype
@every_function
def test_results_are_the_callers_own_and_what_cupy_gets(library, dtype, function):
    arrays, options = case(function, dtype)
    expected = wanted(function, arrays, options)
    given = {name: library.array(array) for name, array in arrays.items()}
    results = run(function, given, options)
    assert len(results) == len(expected)
    for result, each in zip(results, expected, strict=True):
        assert library.owns(result), f"got a {type(result)}"
        assert_same_bits(library.numpy(result), each)
    for name, array in arrays.items():
        assert_same_bits(library.numpy(given[name]), array)  # not written to


@every_dtype
def test_nothing_is_copied_on_the_way_in(library, dtype):
    arrays, options = case("line_scan_backward", dtype)
    given = {name: library.array(array) for name, array in arrays.items()}
    call = _checks.line_scan_backward(**{"h": None, **given}, **options, needs=None)
    for name, array in given.items():
        adopted = getattr(call, name)
        assert type(adopted) is library.cupy.ndarray
        assert adopted.dtype == arrays[name].dtype
        assert adopted.data.ptr == library.address(array), f"{name} was copied"
    assert (call.device, call.dtype.name) == (("cuda", 0), dtype)


@every_dtype
@pytest.mark.parametrize("function", ["line_scan", "propagate"])
def test_out_is_written_to_and_is_what_comes_back(library, dtype, function):
    arrays, options = case(function, dtype)
    expected = wanted(function, arrays, options)
    given = {name: library.array(array) for name, array in arrays.items()}
    out = library.array(np.zeros_like(arrays["x"]))
    if not library.mutable:
        with pytest.raises(TypeError, match=r"^out must be of a library with mutable arrays; got one of JAX$"):
            run(function, {**given, "out": out}, options)
        return
    first, second = run(function, {**given, "out": out}, options)
    assert first is out
    assert library.owns(second)
    assert_same_bits(library.numpy(out), expected[0])
    assert_same_bits(library.numpy(second), expected[1])


@pytest.mark.parametrize("name", ["CuPy", "PyTorch"])
def test_views_in_any_strides_need_no_copy(name):
    library = LIBRARIES[name]()
    arrays, options = case("line_scan", shape=(2, 4, 9, 37))
    expected = wanted("line_scan", arrays, options)
    given = {each: library.array(array) for each, array in arrays.items()}
    given["x"] = library.array(arrays["x"].transpose(3, 1, 0, 2).copy())
    given["x"] = given["x"].transpose(2, 1, 3, 0) if name == "CuPy" else given["x"].permute(2, 1, 3, 0)
    out = library.array(np.zeros((2, 4, 9, 40), np.float32))[..., 1:38]
    first, _ = run("line_scan", {**given, "out": out}, options)
    assert first is out
    assert_same_bits(np.ascontiguousarray(library.numpy(out)), expected[0])


@pytest.mark.parametrize("function", ["line_scan", "propagate"])
@pytest.mark.parametrize("shape", [(0, 4, 5, 8), (2, 4, 0, 8), (2, 4, 5, 0)])
def test_empty_arrays(library, function, shape):
    arrays, options = case(function, shape=shape)
    for result, each in zip(
        run(function, {name: library.array(array) for name, array in arrays.items()}, options),
        run(function, arrays, options),  # by the NumPy reference
        strict=True,
    ):
        assert library.owns(result)
        assert_same_bits(library.numpy(result), each)


@pytest.mark.parametrize("name", ["PyTorch", "JAX"])
def test_libraries_and_places_do_not_mix(name):
    library = LIBRARIES[name]()
    arrays, options = case("line_scan")
    given = {each: library.array(array) for each, array in arrays.items()}
    with pytest.raises(TypeError, match=rf"^weight must be an array of {name} like x; got one of NumPy$"):
        gspn2_cupy.line_scan(**{**given, "weight": arrays["weight"]}, **options)
    with pytest.raises(TypeError, match=rf"^weight must be an array of {name} like x; got one of CuPy$"):
        gspn2_cupy.line_scan(**{**given, "weight": library.cupy.asarray(arrays["weight"])}, **options)
    if name == "PyTorch":
        on_cpu = given["weight"].cpu()
    else:
        on_cpu = library.jax.device_put(arrays["weight"], library.jax.devices("cpu")[0])
    with pytest.raises(ValueError, match=r"^weight must lie on cuda:0 like x; got the CPU$"):
        gspn2_cupy.line_scan(**{**given, "weight": on_cpu}, **options)


def test_a_cuda_tensor_that_requires_grad_is_refused():
    library = LIBRARIES["PyTorch"]()
    arrays, options = case("normalize_weights")
    with pytest.raises(TypeError, match=r"^logits must not require grad: use gspn2_cupy\.torch"):
        gspn2_cupy.normalize_weights(library.array(arrays["logits"]).requires_grad_(), **options)
