"""The launcher: what `gspn2_cupy._launch` calls instead of CuPy."""

from __future__ import annotations

import ctypes
import dataclasses
import threading
from functools import cache
from pathlib import Path

import numpy as np

from gspn2_cupy._plan import DeviceLimits, KernelSpec

from ._build import HERE, EmulatorUnavailableError, build_kernel, build_runtime
from ._faults import LaunchRefused, make_fault
from ._memory import Allocations, Staging

SCHEDULES = ("thread", "reverse", "random", "priority")
COPY_TIMES = ("wait", "issue", "random")

# An H100's, as far as a launch can ask.
LIMITS = DeviceLimits(
    name="emulator",
    compute_capability=(9, 0),
    multiprocessors=132,
    shared_bytes_per_block=227 * 1024,
    shared_bytes_per_multiprocessor=228 * 1024,
    max_threads_per_multiprocessor=2048,
    l2_bytes=50 * 1024 * 1024,
    memory_bandwidth=3_352_000_000_000,
)
STATIC_SHARED_LIMIT = 48 * 1024
SHARED_PER_BLOCK = 1024  # what CUDA itself takes of a multiprocessor for each block
MAXIMUM_GRID = (2**31 - 1, 65535, 65535)
MAXIMUM_BLOCK = (1024, 1024, 64)
MAXIMUM_CLUSTER = 8


class RegionRequest(ctypes.Structure):
    """As in runtime/launch.hpp."""

    _fields_ = (
        ("offset", ctypes.c_uint64),
        ("bytes", ctypes.c_uint64),
        ("granule", ctypes.c_uint64),
        ("state", ctypes.c_void_p),
        ("label", ctypes.c_char_p),
    )


class Request(ctypes.Structure):
    """As in runtime/launch.hpp."""

    _fields_ = (
        ("grid", ctypes.c_uint32 * 3),
        ("block", ctypes.c_uint32 * 3),
        ("dynamic_shared_bytes", ctypes.c_uint64),
        ("seed", ctypes.c_uint64),
        ("preempt", ctypes.c_double),
        ("cooperative", ctypes.c_int32),
        ("cluster", ctypes.c_int32),
        ("detect", ctypes.c_int32),
        ("schedule", ctypes.c_int32),
        ("copy_time", ctypes.c_int32),
        ("entry", ctypes.c_void_p),
        ("arguments", ctypes.POINTER(ctypes.c_void_p)),
        ("regions", ctypes.POINTER(RegionRequest)),
        ("region_count", ctypes.c_uint64),
    )


@cache
def load_runtime() -> ctypes.CDLL:
    runtime = ctypes.CDLL(str(build_runtime()))
    runtime.emulator_arena.restype = ctypes.c_void_p
    for name in ("emulator_arena_bytes", "emulator_maximum_threads", "emulator_static_shared_bytes"):
        getattr(runtime, name).restype = ctypes.c_uint64
    runtime.emulator_static_shared_bytes.argtypes = (ctypes.c_void_p,)
    runtime.emulator_launch.argtypes = (ctypes.POINTER(Request), ctypes.c_char_p, ctypes.c_uint64)
    return runtime


ONE_AT_A_TIME = threading.Lock()  # the runtime has one arena and one set of stacks


class Emulator:
    """A `Launcher` that runs kernels on the CPU. `launches` counts them."""

    def __init__(
        self,
        sources: Path | None = None,
        *,
        seed: int = 0,
        schedule: str = "random",
        detect: bool = True,
        sanitize: bool = False,
        preempt: float = 0.02,
        async_copies: str = "wait",
        limits: DeviceLimits = LIMITS,
    ):
        if schedule not in SCHEDULES:
            raise ValueError(f"schedule must be one of {SCHEDULES}; got {schedule!r}")
        if async_copies not in COPY_TIMES:
            raise ValueError(f"async_copies must be one of {COPY_TIMES}; got {async_copies!r}")
        if sanitize and not load_runtime().emulator_sanitizer_loaded():
            raise EmulatorUnavailableError("sanitize=True needs libasan in LD_PRELOAD: see emulator.run_sanitized")
        self.sources = Path(sources) if sources else HERE.parents[1] / "cuda"
        self.seed, self.schedule, self.preempt, self.async_copies = seed, schedule, preempt, async_copies
        self.detect = detect and not sanitize
        self.sanitize = sanitize
        self.limits = limits
        self.launches = 0
        self.allocations = Allocations()
        self._kernels: dict[KernelSpec, EmulatedKernel] = {}

    @property
    def variant(self) -> str:
        return "sanitize" if self.sanitize else "detect" if self.detect else "plain"

    def __str__(self) -> str:
        which = "sanitize=True" if self.sanitize else f"detect={self.detect}"
        return (
            f"emulated(seed={self.seed}, schedule={self.schedule!r}, {which}, preempt={self.preempt}, "
            f"async_copies={self.async_copies!r})"
        )

    def compile(self, spec: KernelSpec) -> EmulatedKernel:
        if spec not in self._kernels:
            self._kernels[spec] = EmulatedKernel(self, spec)
        return self._kernels[spec]

    def empty(self, shape, dtype) -> np.ndarray:
        """Return an array of NaN whose bytes count as never written until a kernel or Python writes them."""
        return self.allocations.empty(shape, dtype)

    def zeros(self, shape, dtype) -> np.ndarray:
        """Return an array of zeros."""
        return np.zeros(shape, dtype)


class EmulatedKernel:
    """One specialisation, built and loaded."""

    def __init__(self, device: Emulator, spec: KernelSpec):
        self.device, self.spec = device, spec
        self.cluster = int(dict(spec.defines).get("CLUSTER", 1))  # compiled in, as __cluster_dims__
        self.path = build_kernel(device.sources, spec.source, spec.entry, tuple(spec.defines), device.variant)
        self.library = ctypes.CDLL(str(self.path))
        self.library.emulator_signature.restype = ctypes.c_char_p
        signature = self.library.emulator_signature().decode()
        self.parameters = [parameter.split() for parameter in signature.split(";") if parameter]
        self.entry = ctypes.cast(self.library.emulator_entry, ctypes.c_void_p).value

    def prepare(self, shared_bytes, cooperative=False) -> None:
        """Nothing: what is built is ready to launch."""

    def __call__(self, grid, block, shared_bytes, args, cooperative=False) -> None:
        grid, block = three(grid), three(block)
        heading = f"launch {self.device.launches} of {self.spec.entry} in {self.spec.source}, {self.device}"
        refuse = refuser(heading)
        with ONE_AT_A_TIME:
            self.library.emulator_touch()
            runtime = load_runtime()
            check_sizes(self, runtime, grid, block, shared_bytes, cooperative, refuse)
            arrays, structs = check_arguments(self.parameters, args, refuse)
            writable = {i for i in arrays if self.parameters[i][1] == "mutable"}
            arena = runtime.emulator_arena()
            staging = Staging(arrays, writable, arena, self.device.allocations)
            report = self._launch(runtime, grid, block, shared_bytes, cooperative, staging, structs)
        self.device.launches += 1
        if report:
            raise make_fault(report, self.path, heading)
        staging.copy_out()

    def _launch(self, runtime, grid, block, shared_bytes, cooperative, staging, structs) -> str:
        device = self.device
        count = len(self.parameters)
        # cuLaunchKernel's convention: an array of pointers to the values.
        values = {i: ctypes.c_void_p(pointer) for i, pointer in staging.pointers.items()}
        arguments = (ctypes.c_void_p * count)()
        null = ctypes.c_void_p(None)
        for i in range(count):
            if i in structs:
                arguments[i] = structs[i].ctypes.data
            else:
                arguments[i] = ctypes.addressof(values.get(i, null))
        regions = (RegionRequest * len(staging.groups))(
            *(
                RegionRequest(g.offset, g.stop - g.start, g.granule, g.state.ctypes.data, g.label)
                for g in staging.groups
            )
        )
        request = Request(
            grid=(ctypes.c_uint32 * 3)(*grid),
            block=(ctypes.c_uint32 * 3)(*block),
            dynamic_shared_bytes=shared_bytes,
            seed=(device.seed * 1_000_003 + device.launches) % 2**64,
            preempt=device.preempt,
            cooperative=cooperative,
            cluster=self.cluster,
            detect=device.detect,
            schedule=SCHEDULES.index(device.schedule),
            copy_time=COPY_TIMES.index(device.async_copies),
            entry=self.entry,
            arguments=arguments,
            regions=regions,
            region_count=len(staging.groups),
        )
        report = ctypes.create_string_buffer(65536)
        failed = runtime.emulator_launch(ctypes.byref(request), report, len(report))
        return report.value.decode(errors="replace") if failed else ""


def three(size) -> tuple[int, int, int]:
    values = tuple(int(n) for n in (size if isinstance(size, tuple | list) else (size,)))
    return (*values, 1, 1)[:3]


def refuser(heading: str):
    def refuse(why: str):
        raise LaunchRefused(f"{heading}\n{why}")

    return refuse


def check_sizes(kernel, runtime, grid, block, shared_bytes, cooperative, refuse) -> None:
    """Refuse what a GPU refuses."""
    limits = kernel.device.limits
    threads = block[0] * block[1] * block[2]
    if any(not 1 <= n <= most for n, most in zip(grid, MAXIMUM_GRID, strict=True)):
        refuse(f"the grid must be between (1, 1, 1) and {MAXIMUM_GRID}; got {grid}")
    if any(not 1 <= n <= most for n, most in zip(block, MAXIMUM_BLOCK, strict=True)) or threads > 1024:
        refuse(f"a block has at most 1024 threads, and at most {MAXIMUM_BLOCK} in each direction; got {block}")
    # The library's thread-local storage holds one byte of the emulator's own, with its padding.
    static = max(0, runtime.emulator_static_shared_bytes(kernel.entry) - 16)
    if static > STATIC_SHARED_LIMIT:
        refuse(f"static shared memory is limited to {STATIC_SHARED_LIMIT} bytes; the kernel has {static}")
    if shared_bytes < 0 or static + shared_bytes > limits.shared_bytes_per_block:
        refuse(
            f"{static} bytes of static and {shared_bytes} of dynamic shared memory; "
            f"a block may have {limits.shared_bytes_per_block}"
        )
    if kernel.cluster > 1:
        if limits.compute_capability < (9, 0):
            refuse(f"clusters need compute capability 9.0; the device has {limits.compute_capability}")
        if kernel.cluster > MAXIMUM_CLUSTER or grid[0] % kernel.cluster or cooperative:
            refuse(f"a cluster has at most {MAXIMUM_CLUSTER} blocks and divides the grid; got {kernel.cluster}, {grid}")
        if kernel.cluster * threads > runtime.emulator_maximum_threads():
            refuse(f"the emulator runs {runtime.emulator_maximum_threads()} threads at once")
    if not cooperative:
        return
    blocks = grid[0] * grid[1] * grid[2]
    by_threads = limits.max_threads_per_multiprocessor // (-(-threads // 32) * 32)
    by_memory = limits.shared_bytes_per_multiprocessor // (static + shared_bytes + SHARED_PER_BLOCK)
    resident = limits.multiprocessors * min(by_threads, by_memory, 32)
    if blocks > resident:
        refuse(f"a cooperative launch of {blocks} blocks, of which {resident} fit on the device at once")
    if blocks * threads > runtime.emulator_maximum_threads():
        refuse(f"the emulator runs {runtime.emulator_maximum_threads()} threads at once; got {blocks * threads}")


def check_arguments(parameters, args, refuse) -> tuple[dict[int, np.ndarray], dict[int, np.ndarray]]:
    """Compare arguments to the kernel's own signature; return the arrays and the structs by position."""
    if len(args) != len(parameters):
        refuse(f"the kernel has {len(parameters)} parameters; got {len(args)} arguments")
    arrays, structs = {}, {}
    for i, (parameter, value) in enumerate(zip(parameters, args, strict=True)):
        if parameter[0] == "struct":
            struct = np.asarray(value)
            if struct.ndim or struct.dtype.kind != "V":
                refuse(f"argument {i} must be a zero-dimensional structured array; got {value!r}")
            if struct.dtype.names and not all(leaf == np.int64 for leaf in leaves(struct.dtype)):
                refuse(f"argument {i}: every field of a struct must be int64 (long long); got {struct.dtype}")
            if struct.itemsize != int(parameter[1]):
                refuse(f"argument {i}: the kernel's struct has {parameter[1]} bytes; got {struct.itemsize}")
            structs[i] = struct
        elif parameter[0] == "pointer":
            _, access, element = parameter
            if value is None:
                continue
            if not isinstance(value, np.ndarray) or value.dtype.names is not None:
                refuse(f"argument {i} must be a NumPy array or None; got {type(value).__name__}")
            if value.dtype.name != element:
                refuse(f"argument {i}: the kernel's pointer is to {element}; got an array of {value.dtype}")
            if access == "mutable" and not value.flags.writeable:
                refuse(f"argument {i}: the kernel may write to it, but the array is read-only")
            arrays[i] = value
        else:
            refuse(f"parameter {i} of the kernel is neither a pointer nor a plain struct")
    return arrays, structs


def leaves(dtype: np.dtype):
    """Yield the types of a struct's fields, those of nested structs included."""
    if dtype.names is None:
        yield dtype
    for name in dtype.names or ():
        yield from leaves(dtype[name])


def with_limits(limits: DeviceLimits | dict | None) -> DeviceLimits:
    """Return the emulator's limits with some replaced."""
    return dataclasses.replace(LIMITS, **limits) if isinstance(limits, dict) else limits or LIMITS
