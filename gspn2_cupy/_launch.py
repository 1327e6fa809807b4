"""Finds ``cuda/``, hashes it, compiles, caches and launches; the seam where the emulator of the tests plugs in.

Facts of CuPy this follows: its disk cache does not see edited headers, so a hash of everything under ``cuda/`` goes
into the options; a kernel runs on the current device whatever its arrays live on; arguments are not checked, so only
pointers and one struct are passed; more than 48 KB of dynamic shared memory must be allowed per kernel;
``get_function`` makes a new object each time, so kernels are kept.
"""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from pathlib import Path
from typing import Any, Protocol

from gspn2_cupy._plan import DeviceLimits, KernelSpec, LaunchPlan

STATIC_SHARED_LIMIT = 48 * 1024  # more dynamic shared memory than this has to be allowed first
MEMORY_CLOCK_AND_WIDTH = (36, 37)  # cudaDevAttrMemoryClockRate, in kHz, and cudaDevAttrGlobalMemoryBusWidth
PRINT_PLANS = bool(os.environ.get("GSPN2_PRINT_PLAN"))  # once: asked at each launch it takes a microsecond


class Kernel(Protocol):
    """A compiled kernel."""

    def __call__(
        self,
        grid: tuple[int, int, int],
        block: tuple[int, int, int],
        shared_bytes: int,
        args: Sequence[Any],
        cooperative: bool = False,
    ) -> None:
        """Queue one launch."""

    def prepare(self, shared_bytes: int, cooperative: bool = False) -> Any:
        """Do all that such a launch does the first time, but launch."""


class Launcher(Protocol):
    """What a device must offer."""

    limits: DeviceLimits

    def compile(self, spec: KernelSpec) -> Kernel:
        """Return the kernel of a specialisation, always the same one; it is compiled before its first launch."""

    def empty(self, shape: tuple[int, ...], dtype: Any) -> Any:
        """Return an uninitialised array on the device."""

    def zeros(self, shape: tuple[int, ...], dtype: Any) -> Any:
        """Return an array of zeros on the device."""


# --- sources ----------------------------------------------------------------------------------------------------------


@cache
def cuda_sources() -> Path:
    """Return the folder of the CUDA sources: inside the package when installed, beside it in a checkout."""
    package = Path(__file__).resolve().parent
    for folder in (package / "_cuda", package.parent / "cuda"):
        if (folder / "primitives.cuh").is_file():
            return folder
    raise FileNotFoundError(f"the CUDA sources are missing beside {package}; reinstall gspn2_cupy")


@cache
def sources_hash() -> str:
    """Return a hash of everything under ``cuda/``."""
    digest = hashlib.sha256()
    for path in sorted(cuda_sources().glob("*.cu*")):
        digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:16]


def compiler_input(spec: KernelSpec) -> tuple[str, tuple[str, ...]]:
    """Return source text and NVRTC options of a specialisation."""
    path = cuda_sources() / spec.source
    text = f'#line 1 "{path.as_posix()}"\n{path.read_text(encoding="utf-8")}'
    defines = tuple(f"-D{name}={value}" for name, value in spec.defines)
    return text, ("-std=c++17", f"-I{cuda_sources()}", *defines, f"-DGSPN2_SOURCES={sources_hash()}")


# --- CuPy -------------------------------------------------------------------------------------------------------------


class CupyKernel:
    """A kernel of CuPy's, on one device."""

    def __init__(self, spec: KernelSpec, limits: DeviceLimits):
        self._spec = spec
        self._limits = limits
        self._kernels: dict[bool, Any] = {}  # by whether the launch is cooperative
        self._allowed: set[bool] = set()  # those that may have all the shared memory there is

    def _load(self, cooperative: bool) -> Any:
        import cupy

        text, options = compiler_input(self._spec)
        module = cupy.RawModule(code=text, options=options, enable_cooperative_groups=cooperative)
        kernel = module.get_function(self._spec.entry)
        kernel.compile()
        return kernel

    def __call__(
        self,
        grid: tuple[int, int, int],
        block: tuple[int, int, int],
        shared_bytes: int,
        args: Sequence[Any],
        cooperative: bool = False,
    ) -> None:
        """Queue one launch on CuPy's current stream."""
        self.prepare(shared_bytes, cooperative)(grid, block, args, shared_mem=shared_bytes)

    def prepare(self, shared_bytes: int, cooperative: bool = False) -> Any:
        """Return CuPy's kernel, loaded and allowed its shared memory."""
        kernel = self._kernels.get(cooperative)
        if kernel is None:
            kernel = self._kernels.setdefault(cooperative, self._load(cooperative))
        if shared_bytes > STATIC_SHARED_LIMIT and cooperative not in self._allowed:
            # once, to all that the device has: never lowered, so other threads' launches stay valid
            kernel.max_dynamic_shared_size_bytes = self._limits.shared_bytes_per_block - kernel.shared_size_bytes
            self._allowed.add(cooperative)
        return kernel


class CupyLauncher:
    """Compiles and launches through CuPy on one CUDA device, which must be current."""

    def __init__(self, device: int):
        import cupy

        properties = cupy.cuda.runtime.getDeviceProperties(device)
        kilohertz, bits = (cupy.cuda.runtime.deviceGetAttribute(name, device) for name in MEMORY_CLOCK_AND_WIDTH)
        self.limits = DeviceLimits(
            name=properties["name"].decode(),
            compute_capability=(properties["major"], properties["minor"]),
            multiprocessors=properties["multiProcessorCount"],
            shared_bytes_per_block=properties["sharedMemPerBlockOptin"],
            shared_bytes_per_multiprocessor=properties["sharedMemPerMultiprocessor"],
            max_threads_per_multiprocessor=properties["maxThreadsPerMultiProcessor"],
            l2_bytes=properties["l2CacheSize"],
            memory_bandwidth=kilohertz * 1000 * 2 * bits // 8,  # both edges of the clock
        )
        self._cupy = cupy
        self._shared_pool = cupy.get_default_memory_pool().malloc
        self._captured: list[Any] = []
        self._kernels: dict[KernelSpec, CupyKernel] = {}

    def compile(self, spec: KernelSpec) -> CupyKernel:
        """Return the kernel of a specialisation; its first launch loads it from CuPy's disk cache or compiles it."""
        kernel = self._kernels.get(spec)
        if kernel is None:
            kernel = self._kernels.setdefault(spec, CupyKernel(spec, self.limits))
        return kernel

    def empty(self, shape: tuple[int, ...], dtype: Any) -> Any:
        """Return an uninitialised array of CuPy's current allocator."""
        return self._kept(self._cupy.ndarray(shape, dtype))  # as cupy.empty, a microsecond sooner

    def zeros(self, shape: tuple[int, ...], dtype: Any) -> Any:
        """Return an array of zeros of CuPy's current allocator."""
        return self._kept(self._cupy.zeros(shape, dtype))

    def _kept(self, array: Any) -> Any:
        """Keep what a graph's capture takes from the shared pool, for good: each replay of the graph writes to it."""
        cuda = self._cupy.cuda
        stream = cuda.get_current_stream()
        if stream.ptr and stream.is_capturing() and cuda.get_allocator() == self._shared_pool:
            self._captured.append(array)
        return array


@cache
def cupy_launcher(device: int) -> CupyLauncher:
    """Return the launcher of a CUDA device."""
    return CupyLauncher(device)


# --- the seam ---------------------------------------------------------------------------------------------------------

_override: ContextVar[Launcher | None] = ContextVar("gspn2_cupy_launcher", default=None)


def override() -> Launcher | None:
    """Return the launcher that stands in for CUDA devices, if there is one."""
    return _override.get()


@contextmanager
def use(launcher: Launcher) -> Iterator[Launcher]:
    """Let ``launcher`` run every call made inside the block, NumPy arrays included."""
    token = _override.set(launcher)
    try:
        yield launcher
    finally:
        _override.reset(token)


def run(launcher: Launcher, plan: LaunchPlan, *arrays: Any) -> None:
    """Launch a plan on its arrays (None for those that are not there)."""
    if PRINT_PLANS:
        print(plan, file=sys.stderr)
    launcher.compile(plan.spec)(plan.grid, plan.block, plan.shared_bytes, (*arrays, plan.struct), plan.cooperative)
