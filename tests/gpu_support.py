"""What the tests of GPU behaviour share: calls of every function, the libraries, and a gate that holds a stream."""

import os
import threading
from contextlib import contextmanager

import numpy as np
import pytest
from conftest import NO_GPU
from helpers import DTYPES, assert_same_bits, make_scan, make_unit

import gspn2_cupy
from gspn2_cupy import ALL_DIRECTIONS, CompactParameters

os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # JAX leaves the others some of the GPU's memory

needs_gpu = [pytest.mark.gpu, pytest.mark.skipif(NO_GPU is not None, reason=f"no GPU: {NO_GPU}")]
FUNCTIONS = (
    "normalize_weights",
    "normalize_weights_backward",
    "line_scan",
    "line_scan_backward",
    "propagate",
    "propagate_backward",
    "affinity_matrix",
    "compact_propagate",
    "compact_propagate_backward",
)
every_function = pytest.mark.parametrize("function", FUNCTIONS)
every_dtype = pytest.mark.parametrize("dtype", DTYPES)

# By the kernel that a forward scan from left to right in float32 has on an H100 (tests/test_plan_scan.py).
SHAPES = {
    "tiles": (2, 4, 72, 64),
    "small slices": (2, 4, 9, 37),
    "a cluster": (1, 2, 512, 32),
    "resident blocks": (1, 1, 1536, 32),
    "rows of broken vectors": (1, 2, 130, 131),
}


def case(function, dtype="float32", shape=SHAPES["tiles"], seed=0):
    """The arrays and the options of a call, so that every kind of result comes back."""
    direction, groups = ALL_DIRECTIONS[seed % 4], 2 if shape[1] % 2 == 0 else 1
    scan = make_scan(shape, direction, dtype, groups=groups, h0=True, dh_last=True, seed=seed)
    scans = {"x": scan.x, "weight": scan.weight, "lam": scan.lam, "h0": scan.h0}
    if function == "affinity_matrix":
        shape, groups = (2, 2, 4, 8), 2
    unit = make_unit(shape, ALL_DIRECTIONS, dtype, groups=groups, seed=seed)
    units = {"x": unit.x, "weight": unit.weight, "lam": unit.lam, "u": unit.u, "merge": unit.merge}
    one = {"direction": direction}
    compact = {"x": scan.x, **gspn2_cupy.compact_parameters(shape[1], 6, groups=2, dtype=dtype, seed=seed)._asdict()}
    return {
        "normalize_weights": ({"logits": scan.weight}, one),
        "normalize_weights_backward": ({"dweight": scan.weight, "logits": scan.weight[::-1].copy()}, one),
        "line_scan": (scans, {**one, "return_last": True}),
        "line_scan_backward": ({**scans, "dh": scan.dh, "dh_last": scan.dh_last}, {**one, "chunk": None}),
        "propagate": (units, {"return_states": True, "normalize": "softmax", "chunk": 13}),
        "propagate_backward": ({**units, "dy": unit.dy}, {"normalize": "sigmoid"}),
        "compact_propagate": (compact, {"normalize": "softmax", "chunk": 13}),
        "compact_propagate_backward": ({**compact, "dy": scan.dh}, {}),
        "affinity_matrix": ({name: units[name] for name in ("weight", "lam", "u", "merge")}, {}),
    }[function]


def run(function, arrays, options):
    """Call a public function; its results in a list, without those that are not there."""
    if function.startswith("compact"):
        parameters = CompactParameters(*(arrays[name] for name in CompactParameters._fields))
        arrays = {name: array for name, array in arrays.items() if name not in CompactParameters._fields}
        arrays["parameters"] = parameters
    results = getattr(gspn2_cupy, function)(**arrays, **options)
    if function == "compact_propagate_backward":
        results = (results.x, *results.parameters)
    return [each for each in (results if isinstance(results, tuple) else (results,)) if each is not None]


def wanted(function, arrays, options):
    """NumPy arrays of what CuPy arrays get, on CuPy's null stream, after all other work is done."""
    import cupy

    cupy.cuda.Device().synchronize()
    with cupy.cuda.Stream.null:
        return [each.get() for each in run(function, on_cupy(arrays), options)]


def on_cupy(arrays):
    import cupy

    return {name: cupy.asarray(array) for name, array in arrays.items()}


def same(results, expected):
    """CuPy's results are bitwise the expected NumPy arrays."""
    assert len(results) == len(expected)
    for result, each in zip(results, expected, strict=True):
        assert_same_bits(result if isinstance(result, np.ndarray) else result.get(), each)


# --- libraries --------------------------------------------------------------------------------------------------------


class CuPy:
    name = "CuPy"
    mutable = True

    def __init__(self):
        import cupy

        self.cupy = cupy

    def array(self, array, device=0):
        """The library's own array on a CUDA device with the values of a NumPy array."""
        with self.cupy.cuda.Device(device):
            return self.cupy.array(array)

    def numpy(self, array):
        """The values of one of the library's arrays."""
        return array.get()

    def address(self, array):
        return array.data.ptr

    def owns(self, array, device=0):
        return type(array) is self.cupy.ndarray and array.device.id == device

    @contextmanager
    def current(self, device):
        """Make a device the library's and CuPy's current one."""
        with self.cupy.cuda.Device(device):
            yield


class PyTorch(CuPy):
    name = "PyTorch"

    def __init__(self):
        super().__init__()
        self.torch = pytest.importorskip("torch", reason="PyTorch is not installed")
        if not self.torch.cuda.is_available():
            pytest.skip("PyTorch sees no CUDA device")

    def array(self, array, device=0):
        if array.dtype == DTYPES["bfloat16"]:
            tensor = self.torch.from_numpy(array.view(np.int16).copy()).view(self.torch.bfloat16)
        else:
            tensor = self.torch.from_numpy(array.copy())
        return tensor.to(f"cuda:{device}")

    def numpy(self, array):
        array = array.cpu()
        if array.dtype is self.torch.bfloat16:
            return array.view(self.torch.int16).numpy().view(DTYPES["bfloat16"])
        return array.numpy()

    def address(self, array):
        return array.data_ptr()

    def owns(self, array, device=0):
        return type(array) is self.torch.Tensor and array.device == self.torch.device("cuda", device)

    @contextmanager
    def current(self, device):
        with self.cupy.cuda.Device(device), self.torch.cuda.device(device):
            yield


class Jax(CuPy):
    """JAX makes every device current in turn as it starts, and later those that it works on, and leaves them so."""

    name = "JAX"
    mutable = False

    def __init__(self):
        super().__init__()
        self.jax = pytest.importorskip("jax", reason="JAX is not installed")
        try:
            with self.cupy.cuda.Device():  # and back to it
                self.devices = self.jax.devices("cuda")
        except RuntimeError as error:
            pytest.skip(f"JAX sees no CUDA device: {error}")

    def array(self, array, device=0):
        with self.cupy.cuda.Device(), self.jax.enable_x64(True):
            return self.jax.device_put(array.copy(), self.devices[device])

    def numpy(self, array):
        with self.cupy.cuda.Device():
            return np.asarray(array)

    def address(self, array):
        return array.unsafe_buffer_pointer()

    def owns(self, array, device=0):
        return isinstance(array, self.jax.Array) and array.devices() == {self.devices[device]}


LIBRARIES = {each.name: each for each in (CuPy, PyTorch, Jax)}


# --- streams ----------------------------------------------------------------------------------------------------------

SOURCE = r"""
extern "C" __global__ void gate(const volatile int* open, unsigned long long nanoseconds) {
  unsigned long long start, now;
  asm volatile("mov.u64 %0, %globaltimer;" : "=l"(start));
  do asm volatile("mov.u64 %0, %globaltimer;" : "=l"(now)); while (!*open && now - start < nanoseconds);
}
"""


class Gate:
    """Holds a stream until it is opened: what is queued behind it runs no sooner, and a host that waits is caught.

    It opens by itself after some seconds, so nothing hangs.
    """

    SECONDS = 4

    def __init__(self):
        import cupy

        self._kernel = cupy.RawKernel(SOURCE, "gate")
        self._memory = cupy.cuda.alloc_pinned_memory(4)
        self._is_open = np.frombuffer(self._memory, np.int32, 1)
        self.open()
        self._launch()  # loads the kernel
        cupy.cuda.Device().synchronize()

    def _launch(self):
        self._kernel((1,), (1,), (np.uint64(self._memory.ptr), np.uint64(self.SECONDS * 10**9)))

    def close(self):
        """Hold CuPy's current stream from here on."""
        self._is_open[0] = 0
        self._launch()

    def open(self):
        self._is_open[0] = 1


@pytest.fixture
def gate():
    import cupy

    cupy.cuda.Device().synchronize()
    gate = Gate()
    yield gate
    gate.open()
    cupy.cuda.Device().synchronize()


HOST_WAITED = "the host waited for the device"


def in_threads(count, task):
    """Run task(0), …, task(count - 1) in threads that start together; their results in order."""
    results, errors, barrier = [None] * count, [], threading.Barrier(count)

    def work(number):
        try:
            barrier.wait(timeout=60)
            results[number] = task(number)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    return results
