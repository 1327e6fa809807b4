"""The caller's arrays in, the caller's own array type out; the one table of data types.

An array of any library becomes the array that a backend works on: a ``numpy.ndarray`` if it lies on the CPU, a
``cupy.ndarray`` if it lies on a CUDA device. A result goes the same way back, to the same library and device.

========  ==============================  ====================================  =======================================
library   CPU, in                         CPU, out                              CUDA, in and out
========  ==============================  ====================================  =======================================
NumPy     itself                          itself
CuPy                                                                            itself
PyTorch   ``Tensor.numpy``                ``torch.from_numpy``                  in by address on CuPy's own stream;
                                                                                otherwise DLPack
JAX       ``numpy.asarray``, read-only    ``jax.device_put``, which copies      DLPack; results are copied into JAX's
                                          what is not aligned to 64 bytes       own memory
others    DLPack; no bfloat16, which      DLPack                                DLPack
          NumPy refuses
========  ==============================  ====================================  =======================================

Nothing is copied but what the table says. PyTorch's bfloat16 passes as a view of its bits. On CUDA devices each side
hands the other its current stream, so two streams wait for each other and the host for none. No library but NumPy is
ever imported here, with two exceptions at their first use: CuPy when a CUDA array arrives, ml_dtypes when bfloat16
does. What keeps memory until both streams are done with it is in :mod:`gspn2_cupy._streams`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from gspn2_cupy._streams import current_stream, lend, same_stream, torch_stream

Array: TypeAlias = Any  # numpy.ndarray on the CPU, cupy.ndarray on a CUDA device
Device: TypeAlias = tuple[str, int]  # ("cpu", 0) or ("cuda", index)

CPU: Device = ("cpu", 0)


# --- data types -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class DataType:
    """A type that arrays may have."""

    name: str
    c_name: str  # the type in the CUDA sources
    numpy_dtype: np.dtype[Any]

    @property
    def itemsize(self) -> int:
        """Bytes of an element."""
        return self.numpy_dtype.itemsize

    @property
    def state(self) -> DataType:
        """The type in which the recurrence is carried."""
        return FLOAT64 if self is FLOAT64 else FLOAT32


FLOAT32 = DataType("float32", "float", np.dtype(np.float32))
FLOAT16 = DataType("float16", "__half", np.dtype(np.float16))
FLOAT64 = DataType("float64", "double", np.dtype(np.float64))

_BUILT_IN = {each.numpy_dtype: each for each in (FLOAT32, FLOAT16, FLOAT64)}
DATA_TYPES = "float32, float16, bfloat16 or float64"
NOT_BFLOAT16 = "not be bfloat16 unless ml_dtypes is installed (pip install ml_dtypes)"


@lru_cache(maxsize=1)
def bfloat16() -> DataType:
    """Return bfloat16, which needs ml_dtypes."""
    import ml_dtypes

    return DataType("bfloat16", "__nv_bfloat16", np.dtype(ml_dtypes.bfloat16))


def data_type(value: Any) -> DataType | None:
    """Find a data type by a NumPy or PyTorch dtype, a scalar type or a name; None if it is no type of ours."""
    if type(value).__module__ == "torch":
        value = str(value).removeprefix("torch.")
    if isinstance(value, str) and value == "bfloat16":
        return bfloat16()
    if value is None:  # for NumPy None means float64
        return None
    try:
        dtype = np.dtype(value)
    except (TypeError, ValueError):
        return None
    if dtype.type.__name__ == "bfloat16" and dtype == bfloat16().numpy_dtype:
        return bfloat16()
    return _BUILT_IN.get(dtype)


def _is_bfloat16(array: Array) -> bool:
    """Tell whether an adopted array is bfloat16, without importing anything."""
    return bool(array.dtype.type.__name__ == "bfloat16")


# --- libraries --------------------------------------------------------------------------------------------------------


class Refusal(NamedTuple):
    """Why an array cannot be adopted, as the parts of an error message."""

    error: type[Exception]
    expected: str  # what the argument must do
    received: str


@dataclass(frozen=True, eq=False)  # compared and hashed by identity: fast, and there is one object per library
class Library:
    """How arrays of a library are adopted and handed back."""

    name: str
    adopt: Callable[[Any], tuple[Array, Device] | Refusal]
    restore: Callable[[Array, Any], Any]  # (result, an array of the caller) -> the result in the caller's library
    mutable: bool = True
    lend: Callable[[Array], Array] = lambda array: array  # what restore gets of a result in memory of CuPy's own
    retains: bool = False  # whether its arrays must be kept until CuPy's stream is done with them


def _library_of(cls: type) -> Library | None:
    """Find the library that a type of arrays belongs to; None if it is no type of arrays."""
    for base in cls.__mro__:
        library = _KNOWN.get((_package(base), base.__name__))
        if library is not None:
            return library
    if hasattr(cls, "__dlpack__") and hasattr(cls, "__dlpack_device__"):
        return _other_library(_package(cls))
    return None


library_of: Callable[[type], Library | None] = lru_cache(maxsize=64)(_library_of)


def _package(cls: type) -> str:
    return str(cls.__module__).partition(".")[0]


@lru_cache(maxsize=64)
def _other_library(package: str) -> Library:
    return Library(package, _adopt_other, _restore_other, retains=True)


def _adopt_numpy(array: Any) -> tuple[Array, Device] | Refusal:
    if type(array) is np.ndarray:
        return array, CPU
    if type(array) is np.memmap:
        return np.asarray(array), CPU
    return _refuse_subclass(array)


def _refuse_subclass(array: Any) -> Refusal:
    """Refuse a mask, a unit or the like, which the results could not carry."""
    return Refusal(TypeError, "be a plain array, not of a subclass", f"{type(array).__module__}.{type(array).__name__}")


def _adopt_cupy(array: Any) -> tuple[Array, Device] | Refusal:
    if type(array).__module__ != "cupy":
        return _refuse_subclass(array)
    return array, ("cuda", array.data.device_id)


def _adopt_cuda(array: Any, library: str) -> tuple[Array, Device] | Refusal:
    """Adopt a CUDA array of another library; the library's work on it comes first on CuPy's current stream."""
    try:
        import cupy
    except ImportError:
        cuda_extra = "pip install gspn2_cupy[cuda13], or [cuda12]"
        return Refusal(
            ImportError, f"lie on the CPU unless CuPy is installed ({cuda_extra})", f"a CUDA array of {library}"
        )
    adopted = cupy.from_dlpack(array)
    return adopted, ("cuda", adopted.data.device_id)


def _adopt_torch(tensor: Any) -> tuple[Array, Device] | Refusal:
    torch = sys.modules["torch"]
    if tensor.requires_grad:
        return Refusal(
            TypeError,
            "not require grad: use gspn2_cupy.torch, whose functions are differentiable, or pass its .detach()",
            "a PyTorch tensor that requires grad",
        )
    if tensor.layout is not torch.strided:
        return Refusal(TypeError, "be a dense tensor: pass its .to_dense()", f"a PyTorch tensor of {tensor.layout}")
    if tensor.is_neg() or tensor.is_conj():
        return Refusal(
            TypeError,
            "be stored as it reads: pass its .resolve_neg() or .resolve_conj()",
            "a PyTorch tensor with its negative or conjugate bit set",
        )
    same = _same_memory(tensor) if tensor.is_cuda else None
    if same is not None:
        return same
    is_bfloat16 = tensor.dtype is torch.bfloat16
    if is_bfloat16:
        try:
            dtype = bfloat16().numpy_dtype
        except ImportError:
            return Refusal(ImportError, NOT_BFLOAT16, "bfloat16")
        tensor = tensor.view(torch.int16)
    if tensor.is_cpu:
        try:
            array, device = tensor.numpy(), CPU
        except TypeError:  # a type that NumPy lacks
            return Refusal(TypeError, f"be {DATA_TYPES}", str(tensor.dtype).removeprefix("torch."))
    elif tensor.is_cuda:
        adopted = _adopt_cuda(tensor, "PyTorch")
        if isinstance(adopted, Refusal):
            return adopted
        array, device = adopted
    else:
        return Refusal(ValueError, "lie on the CPU or on a CUDA device", f"a PyTorch tensor on {tensor.device}")
    return (array.view(dtype) if is_bfloat16 else array), device


def _same_memory(tensor: Any) -> tuple[Array, Device] | None:
    """Describe a CUDA tensor as an array of CuPy's, in a fraction of the time that DLPack takes.

    None where DLPack is wanted: to order two streams, or to say what is wrong.
    """
    torch, index = sys.modules["torch"], tensor.device.index
    if type(tensor) not in (torch.Tensor, torch.nn.Parameter):
        return None
    try:
        import cupy

        dtype = _numpy_type(tensor.dtype)
        pointer = tensor.data_ptr()
    except (ImportError, LookupError, RuntimeError):  # RuntimeError: a tensor without memory
        return None
    if not same_stream(current_stream(index), torch_stream(index)):
        return None
    memory = cupy.cuda.UnownedMemory(pointer, tensor.nbytes, tensor, index)
    strides = [stride * dtype.itemsize for stride in tensor.stride()]
    return cupy.ndarray(tensor.shape, dtype, cupy.cuda.MemoryPointer(memory, 0), strides=strides), ("cuda", index)


@lru_cache(maxsize=64)
def _numpy_type(dtype: Any) -> np.dtype[Any]:
    """Return the type of ours that a type of PyTorch's is; LookupError for others."""
    kind = data_type(dtype)
    if kind is None:
        raise LookupError
    return kind.numpy_dtype


def _restore_torch(array: Array, _: Any) -> Any:
    torch = sys.modules["torch"]
    is_bfloat16 = _is_bfloat16(array)
    if is_bfloat16:
        array = array.view(np.int16)
    if isinstance(array, np.ndarray):
        tensor = torch.from_numpy(array)
    else:
        index = array.data.device_id
        with array.device:  # whose current stream CuPy records
            if same_stream(current_stream(index), torch_stream(index)):
                tensor = torch.from_dlpack(array.__dlpack__(stream=-1))  # PyTorch need not ask for its stream: slow
            else:
                tensor = torch.from_dlpack(array)
    return tensor.view(torch.bfloat16) if is_bfloat16 else tensor


def _lend_to_torch(array: Array) -> Array:
    if isinstance(array, np.ndarray):
        return array
    return lend(array, torch_stream(array.data.device_id))


def _adopt_jax(array: Any) -> tuple[Array, Device] | Refusal:
    jax = sys.modules["jax"]
    if isinstance(array, jax.core.Tracer):
        return Refusal(
            TypeError, "be a concrete array: inside jit and grad use the functions of gspn2_cupy.jax", "a JAX tracer"
        )
    if array.is_deleted():
        return Refusal(TypeError, "hold data", "a JAX array that was deleted or donated")
    devices = array.devices()
    if len(devices) != 1:
        return Refusal(ValueError, "lie on one device", f"a JAX array on {len(devices)} devices")
    (device,) = devices
    if device.platform == "cpu":
        return np.asarray(array), CPU
    if device.platform in ("gpu", "cuda"):
        return _adopt_cuda(array, "JAX")
    return Refusal(ValueError, "lie on the CPU or on a CUDA device", f"a JAX array on {device}")


def _restore_jax(array: Array, like: Any) -> Any:
    jax = sys.modules["jax"]
    if array.dtype == np.float64 and not jax.config.jax_enable_x64:  # or JAX makes it float32
        enable_x64 = jax.enable_x64 if hasattr(jax, "enable_x64") else jax.experimental.enable_x64
        with enable_x64(True):
            return _restore_jax(array, like)
    if isinstance(array, np.ndarray):
        (device,) = like.devices()
        return jax.device_put(array, device)
    import cupy

    with array.device:  # whose current stream CuPy records; and JAX leaves it current after whatever it does
        if array.size == 0:
            return jax.numpy.zeros(array.shape, array.dtype, device=next(iter(like.devices())))
        is_bfloat16 = _is_bfloat16(array)
        lent = jax.numpy.from_dlpack(array.view(np.uint16) if is_bfloat16 else array)
        copied = jax.numpy.array(lent, copy=True)  # from_dlpack's own copy=True is unknown to JAX's CUDA plugin
        cupy.from_dlpack(copied)  # CuPy's stream waits for the copy, before its memory is used again
        return jax.lax.bitcast_convert_type(copied, jax.numpy.bfloat16) if is_bfloat16 else copied


def _from_dlpack_of(array: Any) -> Any:
    """Find the function by which a library takes arrays back."""
    if hasattr(array, "__array_namespace__"):
        namespace = array.__array_namespace__()
    else:
        namespace = sys.modules.get(_package(type(array)))
    return getattr(namespace, "from_dlpack", None)


def _adopt_other(array: Any) -> tuple[Array, Device] | Refusal:
    library = _package(type(array))
    if _from_dlpack_of(array) is None:
        return Refusal(TypeError, "belong to a library whose from_dlpack takes results back", f"an array of {library}")
    try:
        kind = int(array.__dlpack_device__()[0])
        if kind in (2, 13):  # kDLCUDA, kDLCUDAManaged
            return _adopt_cuda(array, library)
        if kind in (1, 3):  # kDLCPU, kDLCUDAHost
            return np.from_dlpack(array), CPU
    except (BufferError, NotImplementedError, TypeError, ValueError) as error:
        return Refusal(TypeError, "be readable through DLPack", f"an array of {library}: {error}")
    return Refusal(
        ValueError, "lie on the CPU or on a CUDA device", f"an array of {library} on DLPack device type {kind}"
    )


def _restore_other(array: Array, like: Any) -> Any:
    if isinstance(array, np.ndarray):
        return _from_dlpack_of(like)(array)
    with array.device:  # whose current stream CuPy records
        return _from_dlpack_of(like)(array)


def _same(array: Array, _: Any) -> Any:
    return array


NUMPY = Library("NumPy", _adopt_numpy, _same)
CUPY = Library("CuPy", _adopt_cupy, _same)
TORCH = Library("PyTorch", _adopt_torch, _restore_torch, lend=_lend_to_torch)
JAX = Library("JAX", _adopt_jax, _restore_jax, mutable=False, retains=True)

_KNOWN = {
    ("numpy", "ndarray"): NUMPY,
    ("cupy", "ndarray"): CUPY,
    ("torch", "Tensor"): TORCH,
    ("jax", "Array"): JAX,
    ("jaxlib", "Array"): JAX,
    ("jaxlib", "ArrayImpl"): JAX,
    ("jax", "Tracer"): JAX,
}


# --- memory -----------------------------------------------------------------------------------------------------------


class _Twin:
    """A host array's description with a device array's addresses; good for comparing addresses, never read."""

    def __init__(self, array: Array) -> None:
        self.__array_interface__ = {
            "version": 3,
            "data": (array.data.ptr, True),
            "shape": array.shape,
            "strides": array.strides,
            "typestr": f"|V{array.dtype.itemsize}",
        }


def address(array: Array) -> int:
    """Return where an array's first element lies."""
    return int(array.__array_interface__["data"][0] if isinstance(array, np.ndarray) else array.data.ptr)


def _apart(a: Array, b: Array) -> bool:
    """Tell of two contiguous arrays whether one begins where the other has ended; False of others."""
    if not (a.flags.c_contiguous and b.flags.c_contiguous):
        return False
    first, second = address(a), address(b)
    return bool(first + a.nbytes <= second or second + b.nbytes <= first)


def overlap(a: Array, b: Array) -> bool:
    """Tell whether two adopted arrays of one device have an element's memory in common."""
    if _apart(a, b):  # nearly always, and a CUDA array's twin takes many times longer
        return False
    if not isinstance(a, np.ndarray):
        a, b = np.asarray(_Twin(a)), np.asarray(_Twin(b))
    if not np.may_share_memory(a, b):  # by their bounds: fast, and nearly always enough
        return False
    try:
        return np.shares_memory(a, b, max_work=100_000)  # type: ignore[arg-type]  # any number is allowed
    except np.exceptions.TooHardError:
        return True


def overlaps_itself(array: Array) -> bool:
    """Tell whether elements of an array may lie on each other, as those of a broadcast one do."""
    if array.flags.c_contiguous or array.size == 0:
        return False
    reach = array.dtype.itemsize
    for stride, extent in sorted((abs(s), n) for s, n in zip(array.strides, array.shape, strict=True) if n > 1):
        if stride < reach:
            return True
        reach += stride * (extent - 1)
    return False
