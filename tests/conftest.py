"""The backends that every test of the operator runs on, and the limits on what random tests may cost.

A test asks for the fixture `backend` and names the public functions that it uses, `pytestmark =
pytest.mark.functions("line_scan")`. It then runs once per backend that has them all:

    reference    NumPy arrays through the NumPy reference
    emulator     NumPy arrays through the CUDA sources, executed on the CPU with the fault detector on
    cuda         CuPy arrays through the CUDA sources on a GPU (marker `gpu`), where there is one

Memory that a backend hands out uninitialised is full of NaN, so an element that nobody wrote shows in the result.

Each emulated test has a schedule and a seed of its own, which follow from its name and are printed when it fails;
GSPN2_EMULATOR_SEED=1, 2, … gives all of them others.
"""

import importlib.util
import os
import zlib
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import hypothesis
import numpy as np
import pytest
from helpers import LAYOUTS

# The public functions that run on device arrays. The one place to widen when another one gets its kernels.
DEVICE_FUNCTIONS = {
    "affinity_matrix",
    "compact_propagate",
    "compact_propagate_backward",
    "line_scan",
    "line_scan_backward",
    "normalize_weights",
    "normalize_weights_backward",
    "propagate",
    "propagate_backward",
}

SCHEDULES = ("thread", "reverse", "random", "priority")

hypothesis.settings.register_profile(
    "bounded",  # the same examples in every run, so that a run's time and outcome repeat
    deadline=None,
    derandomize=True,
    max_examples=60,
    suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture, hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.register_profile(
    "search",  # by hand, to look for new failures: HYPOTHESIS_PROFILE=search
    hypothesis.settings.get_profile("bounded"),
    derandomize=False,
    max_examples=2000,
)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "bounded"))


def why_no_gpu():
    """Why the tests cannot run on a GPU here, or None if they can."""
    if importlib.util.find_spec("cupy") is None:
        return "CuPy is not installed"
    import cupy

    try:
        return None if cupy.cuda.runtime.getDeviceCount() > 0 else "CUDA sees no device"
    except cupy.cuda.runtime.CUDARuntimeError as error:
        return f"CUDA does not start: {error}"


NO_GPU = why_no_gpu()


@contextmanager
def device_kept(runtime):
    """Begin on the first CUDA device, whatever is current, and see that it is current at the end.

    An earlier test may have started JAX, on the CPU even, which leaves the last device current.
    """
    runtime.setDevice(0)
    yield
    left = runtime.getDevice()
    runtime.setDevice(0)  # so that this test fails and not those that follow
    assert left == 0, f"the test left device {left} current"


@pytest.fixture(autouse=True)
def current_device(request):
    """Let no test on a GPU leave another device current."""
    if NO_GPU is not None or request.node.get_closest_marker("gpu") is None:
        yield
        return
    import cupy

    with device_kept(cupy.cuda.runtime):
        yield


def pytest_configure(config):
    if config.getoption("benchmark_only", False) and config.args_source is config.ArgsSource.TESTPATHS:
        config.args = [str(Path(__file__).parent.parent / "benchmarks")]  # pytest --benchmark-only, without a folder
    config.addinivalue_line("markers", "functions(*names): the public functions that a test of the operator uses")


def pytest_report_header(config):
    if NO_GPU is None:
        return "operator backends: reference, emulator, cuda"
    return f"operator backends: reference, emulator; not cuda ({NO_GPU})"


def pytest_generate_tests(metafunc):
    if "backend" not in metafunc.fixturenames:
        return
    names = {name for marker in metafunc.definition.iter_markers("functions") for name in marker.args}
    assert names, f"{metafunc.definition.nodeid} uses `backend` and must name its functions by the marker `functions`"
    backends = ["reference"]
    if names <= DEVICE_FUNCTIONS:
        backends.append("emulator")
        if NO_GPU is None:
            backends.append(pytest.param("cuda", marks=pytest.mark.gpu))
    metafunc.parametrize("backend", backends, indirect=True)


class Backend:
    """Runs public functions on NumPy arrays: called with a function and its arguments it returns NumPy results."""

    name = "reference"
    namespace = np

    def __init__(self, functions):
        self.functions = functions
        self.keep_results = False  # True: results are returned as they come, not as NumPy arrays

    def array(self, array):
        """The backend's own array with the values of a NumPy array."""
        return array

    def numpy(self, array):
        """The NumPy array with the values of one of the backend's own."""
        return array

    def strided(self, array, layout):
        """The values of a NumPy array in the backend's memory, laid out as LAYOUTS says, NaN in the gaps.

        Or "one element in": without gaps, at an address that only elements are aligned to.
        """
        if array is None:
            return None
        if layout == "one element in":
            memory = np.full(array.size + 1, np.nan, array.dtype)
            memory[1:] = array.reshape(-1)
            return self.array(memory)[1:].reshape(array.shape)
        memory_shape, view = LAYOUTS[layout]
        memory = np.full(memory_shape(array.shape), np.nan, array.dtype)
        view(memory)[...] = array
        return view(self.array(memory))

    @contextmanager
    def poisoned(self):
        """Inside, uninitialised memory is full of NaN."""
        plain = np.empty

        def poisoned_empty(*args, **kwargs):
            array = plain(*args, **kwargs)
            memory = array if array.flags.c_contiguous else array.T
            memory.reshape(-1).view(np.uint8).fill(0xFF)  # these bits are NaN in every floating type
            return array

        def poisoned_empty_like(prototype, dtype=None, shape=None, **ignored):
            return poisoned_empty(prototype.shape if shape is None else shape, dtype or prototype.dtype)

        with mock.patch.object(np, "empty", poisoned_empty), mock.patch.object(np, "empty_like", poisoned_empty_like):
            yield

    def __call__(self, function, *args, **kwargs):
        """Call; check that no input is written and that results are the caller's own type and memory."""
        assert function.__name__ in self.functions, f"name {function.__name__} in the marker `functions`"
        args = [self.array(a) if isinstance(a, np.ndarray) else a for a in args]
        kwargs = {key: self.array(a) if isinstance(a, np.ndarray) else a for key, a in kwargs.items()}
        inputs = [a for a in args if hasattr(a, "dtype")]
        inputs += [a for key, a in kwargs.items() if hasattr(a, "dtype") and key != "out"]
        before = [self.numpy(a).tobytes() for a in inputs]
        with self.poisoned():
            results = function(*args, **kwargs)
        for a, bits in zip(inputs, before, strict=True):
            assert self.numpy(a).tobytes() == bits, f"{function.__name__} wrote to an input"
        parts = [results] if hasattr(results, "dtype") else [r for r in results if r is not None]
        for result in parts:
            assert type(result) is type(inputs[0]), f"{function.__name__} returned a {type(result).__name__}"
            assert not any(self.overlap(result, a) for a in inputs), f"{function.__name__} returned an input's memory"
        if self.keep_results:
            return results
        if hasattr(results, "dtype"):
            return self.numpy(results)
        converted = [r if r is None else self.numpy(r) for r in results]
        return type(results)(*converted) if hasattr(results, "_fields") else type(results)(converted)

    def overlap(self, a, b):
        return np.may_share_memory(a, b)


class EmulatorBackend(Backend):
    name = "emulator"

    def __init__(self, functions, device):
        super().__init__(functions)
        self.device = device

    @contextmanager
    def poisoned(self):
        yield  # the emulator's own allocations are

    @property
    def launches(self):
        return self.device.launches


class CudaBackend(Backend):
    name = "cuda"

    def __init__(self, functions, cupy):
        super().__init__(functions)
        self.cupy = self.namespace = cupy
        self.pool = cupy.cuda.MemoryPool()

    def array(self, array):
        return self.cupy.asarray(array)

    def numpy(self, array):
        return self.cupy.asnumpy(array)

    @contextmanager
    def poisoned(self):
        with self.cupy.cuda.using_allocator(self.poisoned_malloc):
            yield

    def poisoned_malloc(self, size):
        memory = self.pool.malloc(size)
        if size:
            memory.memset_async(0xFF, size)
        return memory

    def overlap(self, a, b):
        return self.cupy.may_share_memory(a, b)


@pytest.fixture
def backend(request):
    functions = {name for marker in request.node.iter_markers("functions") for name in marker.args}
    match request.param:
        case "reference":
            yield Backend(functions)
        case "emulator":
            from emulator import emulated, require

            require()
            number = zlib.crc32(request.node.nodeid.encode()) + int(os.environ.get("GSPN2_EMULATOR_SEED", "0"))
            seed, schedule = number % 10_000, SCHEDULES[number // 10_000 % len(SCHEDULES)]
            print(f"emulated(seed={seed}, schedule={schedule!r}, detect=True)")  # shown when the test fails
            with emulated(seed=seed, schedule=schedule, detect=True) as device:
                yield EmulatorBackend(functions, device)
        case "cuda":
            import cupy

            yield CudaBackend(functions, cupy)
