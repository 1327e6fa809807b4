"""Arrays of any library go in without a copy and come back as the caller's own type, bfloat16 included.

PyTorch and JAX are the real ones, on the CPU; where one is not installed its tests skip and say so. A small library
made here stands for all others that speak DLPack.
"""

import sys
from types import SimpleNamespace

import ml_dtypes
import numpy as np
import pytest
from helpers import DTYPES, assert_same_bits, make_scan, make_unit
from stand_ins import CudaArray, Shelf, StandardShelf, shelf_module

import gspn2_cupy
from gspn2_cupy import ALL_DIRECTIONS, _checks

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
LIBRARIES = ("NumPy", "PyTorch", "JAX", "DLPack", "array API")


def libraries(*names):
    return pytest.mark.parametrize("library", names, indirect=True)


every_library_and_dtype = pytest.mark.parametrize(
    ("library", "dtype"),
    [
        (library, dtype)
        for library in LIBRARIES
        for dtype in DTYPES
        if dtype != "bfloat16" or library not in ("DLPack", "array API")  # which NumPy cannot exchange through DLPack
    ],
    indirect=["library"],
)


class NumPy:
    name = "NumPy"

    def array(self, array):
        """The library's own array with the values of a NumPy array, in memory of its own."""
        return array.copy()

    def numpy(self, array):
        """The values of one of the library's arrays."""
        return array

    def address(self, array):
        return array.__array_interface__["data"][0]

    def owns(self, array):
        return type(array) is np.ndarray


class PyTorch(NumPy):
    name = "PyTorch"

    def __init__(self):
        self.torch = pytest.importorskip("torch", reason="PyTorch is not installed")

    def array(self, array):
        if array.dtype == BFLOAT16:
            return self.torch.from_numpy(array.view(np.int16).copy()).view(self.torch.bfloat16)
        return self.torch.from_numpy(array.copy())

    def numpy(self, array):
        if array.dtype is self.torch.bfloat16:
            return array.view(self.torch.int16).numpy().view(BFLOAT16)
        return array.numpy()

    def address(self, array):
        return array.data_ptr()

    def owns(self, array):
        return type(array) is self.torch.Tensor and array.device.type == "cpu"


class Jax(NumPy):
    name = "JAX"

    def __init__(self):
        self.jax = pytest.importorskip("jax", reason="JAX is not installed")
        self.cpu = self.jax.devices("cpu")[0]

    def array(self, array):
        with self.jax.enable_x64():
            return self.jax.device_put(array.copy(), self.cpu)

    def numpy(self, array):
        return np.asarray(array)

    def address(self, array):
        return array.unsafe_buffer_pointer()

    def owns(self, array):
        return isinstance(array, self.jax.Array) and array.devices() == {self.cpu}


class Other(NumPy):
    cls = Shelf

    def __init__(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "shelf", shelf_module())

    def array(self, array):
        return self.cls(array.copy())

    def numpy(self, array):
        return array.array

    def address(self, array):
        return array.array.__array_interface__["data"][0]

    def owns(self, array):
        return type(array) is self.cls


class OtherStandard(Other):
    cls = StandardShelf


@pytest.fixture
def library(request, monkeypatch):
    match request.param:
        case "NumPy":
            return NumPy()
        case "PyTorch":
            return PyTorch()
        case "JAX":
            return Jax()
        case "DLPack":
            return Other(monkeypatch)
        case "array API":
            return OtherStandard(monkeypatch)


def calls(dtype):
    """Every public function, its arrays and its options, so that every kind of result comes back."""
    scan = make_scan((2, 4, 5, 6), "left_to_right", dtype, groups=2, h0=True, dh_last=True)
    unit = make_unit((2, 4, 5, 6), ALL_DIRECTIONS, dtype, groups=2)
    direction, x = {"direction": "left_to_right"}, {"x": scan.x, "weight": scan.weight, "lam": scan.lam, "h0": scan.h0}
    units = {"x": unit.x, "weight": unit.weight, "lam": unit.lam, "u": unit.u, "merge": unit.merge}
    weights = {name: units[name] for name in ("weight", "lam", "u", "merge")}
    return {
        "normalize_weights": ({"logits": scan.weight}, direction),
        "normalize_weights_backward": ({"dweight": scan.weight, "logits": scan.weight}, direction),
        "line_scan": (x, {**direction, "return_last": True}),
        "line_scan_backward": ({**x, "dh": scan.dh, "h": scan.x, "dh_last": scan.dh_last}, direction),
        "propagate": (units, {"return_states": True}),
        "propagate_backward": ({**units, "dy": unit.dy}, {"normalize": "sigmoid", "needs": {"x", "weight", "merge"}}),
        "affinity_matrix": (weights, {"chunk": 2}),
    }


@every_library_and_dtype
@pytest.mark.parametrize("function", calls("float32"))
def test_results_are_the_callers_own_and_what_numpy_gets(library, dtype, function):
    arrays, options = calls(dtype)[function]
    function = getattr(gspn2_cupy, function)
    given = {name: library.array(array) for name, array in arrays.items()}
    expected, results = function(**arrays, **options), function(**given, **options)
    for name, array in arrays.items():
        assert_same_bits(library.numpy(given[name]), array)  # not written to
    if isinstance(expected, tuple):
        assert type(results) is type(expected)
    else:
        expected, results = (expected,), (results,)
    for wanted, result in zip(expected, results, strict=True):
        if wanted is None:
            assert result is None
        else:
            assert library.owns(result)
            assert_same_bits(library.numpy(result), wanted)


@every_library_and_dtype
def test_nothing_is_copied_on_the_way_in(library, dtype):
    arrays, options = calls(dtype)["line_scan_backward"]
    given = {name: library.array(array) for name, array in arrays.items()}
    call = _checks.line_scan_backward(**{"lam": None, "h": None, **given}, **options, chunk=None, needs=None)
    for name, array in given.items():
        adopted = getattr(call, name)
        assert type(adopted) is np.ndarray
        assert adopted.dtype == arrays[name].dtype
        assert adopted.__array_interface__["data"][0] == library.address(array), f"{name} was copied"
    assert call.dtype.name == dtype
    assert call.device == ("cpu", 0)


@every_library_and_dtype
def test_out_is_written_to_and_is_what_comes_back(library, dtype):
    arrays, options = calls(dtype)["line_scan"]
    given = {name: library.array(array) for name, array in arrays.items()}
    out = library.array(np.zeros_like(arrays["x"]))
    if library.name == "JAX":
        with pytest.raises(TypeError, match=r"^out must be of a library with mutable arrays; got one of JAX$"):
            gspn2_cupy.line_scan(**given, **options, out=out)
        return
    h, h_last = gspn2_cupy.line_scan(**given, **options, out=out)
    assert h is out
    assert library.owns(h_last)
    assert_same_bits(library.numpy(out), gspn2_cupy.line_scan(**arrays, **options)[0])


@libraries(*LIBRARIES)
def test_empty_arrays(library):
    x, weight = library.array(np.zeros((2, 3, 0, 4), "f4")), library.array(np.zeros((2, 1, 3, 0, 4), "f4"))
    result, h_last = gspn2_cupy.line_scan(x, weight, direction="top_to_bottom", return_last=True)
    assert library.owns(result)
    assert library.numpy(result).shape == (2, 3, 0, 4)
    assert np.array_equal(library.numpy(h_last), np.zeros((2, 3, 4)))


@libraries("PyTorch", "JAX", "DLPack", "array API")
def test_libraries_do_not_mix(library):
    scan = make_scan((1, 2, 3, 4), "left_to_right")
    with pytest.raises(TypeError, match=r"^weight must be an array of \w+ like x; got one of NumPy$"):
        gspn2_cupy.line_scan(library.array(scan.x), scan.weight, direction="left_to_right")


def refused(logits):
    """How logits that cannot be adopted are refused."""
    with pytest.raises((TypeError, ValueError, ImportError)) as caught:
        gspn2_cupy.normalize_weights(logits, direction="left_to_right")
    return f"{type(caught.value).__name__}: {caught.value}"


LOGITS = np.zeros((1, 1, 3, 2, 2), np.float32)
DATA_TYPES = "float32, float16, bfloat16 or float64"


# --- other libraries --------------------------------------------------------------------------------------------------


def test_a_library_must_take_results_back():
    assert refused(Shelf(LOGITS)) == (
        "TypeError: logits must belong to a library whose from_dlpack takes results back; got an array of shelf"
    )


def test_dlpack_devices():
    assert refused(StandardShelf(LOGITS, device=(8, 0))) == (
        "ValueError: logits must lie on the CPU or on a CUDA device; "
        "got an array of standard_shelf on DLPack device type 8"
    )
    pinned = StandardShelf(LOGITS, device=(3, 0))  # host memory that CUDA can read
    assert type(gspn2_cupy.normalize_weights(pinned, direction="left_to_right")) is StandardShelf


def test_what_numpy_cannot_read_is_refused():
    bfloat16 = StandardShelf(LOGITS.astype(BFLOAT16))
    assert refused(bfloat16).startswith(
        "TypeError: logits must be readable through DLPack; got an array of standard_shelf: "
    )


def test_cuda_arrays_need_cupy(monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", None)
    assert refused(StandardShelf(LOGITS, device=(2, 0))) == (
        "ImportError: logits must lie on the CPU unless CuPy is installed (pip install gspn2_cupy[cuda13], or "
        "[cuda12]); got a CUDA array of standard_shelf"
    )


def test_cuda_arrays_are_adopted_by_cupy(monkeypatch):
    def from_dlpack(array):
        return CudaArray(like=array.array, device=array.device[1], address=4096)

    monkeypatch.setitem(sys.modules, "cupy", SimpleNamespace(from_dlpack=from_dlpack))
    for kind in (2, 13):  # on a device, and managed memory
        call = _checks.normalize_weights(
            StandardShelf(LOGITS, device=(kind, 1)), direction="left_to_right", method="sigmoid"
        )
        assert type(call.logits) is CudaArray
        assert call.device == ("cuda", 1)
        assert call.on_device
