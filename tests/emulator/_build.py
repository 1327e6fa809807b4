"""Builds the runtime and the kernels with g++, and keeps what it built.

A kernel's library is named after a hash of everything that goes into it, so nothing stale is ever loaded. It is written
under another name first: several test processes may build the same one at once.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import os
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path

HERE = Path(__file__).resolve().parent
DEVICE, RUNTIME = HERE / "device", HERE / "runtime"

COMMON = (
    "-std=c++17",
    "-g1",  # lines, for reports
    "-fno-var-tracking",  # of variables, a fifth of a build's time: reports name lines
    "-gdwarf-4",  # addr2line mistakes some of g++'s file numbers in version 5
    "-fPIC",
    "-ffp-contract=off",  # kernels say fma where they mean it
    "-fno-math-errno",
    "-fno-strict-aliasing",  # as in nvcc
    "-fno-exceptions",
    "-fno-gnu-unique",  # static shared memory of a template is each library's own
    "-fno-threadsafe-statics",
    "-fvisibility=hidden",  # with the next two and --gc-sections: only what this kernel uses stays in
    "-ffunction-sections",
    "-fdata-sections",
    "-Wall",
    "-Wno-unknown-pragmas",  # unroll
)
# How the kernels are compiled: at the lowest levels that optimise. A kernel takes longer to build than to run, so
# `detect`, which tests use, spares a quarter of the first for a third of the second.
VARIANTS = {
    "plain": ("-O1",),
    # Without scalar replacement a 16-byte load stays one access, whose alignment can be checked.
    "detect": ("-Og", "-fsanitize=thread", "-fno-tree-sra"),
    "sanitize": ("-O1", "-fsanitize=address,undefined", "-fsanitize-recover=address", "-fno-sanitize=vptr"),
}
RUNTIME_FLAGS: tuple[str, ...] = ()  # more for the runtime: a test builds it without assembly
AUTO_INIT = "-ftrivial-auto-var-init=pattern"  # g++ 12: an uninitialised local is absurd, not plausible


class EmulatorUnavailableError(RuntimeError):
    """The emulator cannot run here; the text says what is missing."""


class KernelBuildError(RuntimeError):
    """g++ refused a kernel; the text holds its errors."""


@dataclass(frozen=True)
class Toolchain:
    """What the emulator builds with."""

    compiler: str
    version: str
    headers: Path  # NVIDIA's, with cuda_fp16.h
    cache: Path

    def flags(self, variant: str) -> tuple[str, ...]:
        major = int(self.version.split()[-1].split(".")[0])
        extra = (AUTO_INIT,) if major >= 12 else ()
        return (*COMMON, *VARIANTS[variant], *extra)


@cache
def toolchain() -> Toolchain:
    """Find g++ and NVIDIA's headers."""
    compiler = shutil.which(os.environ.get("CXX", "g++"))
    version = run([compiler, "--version"]).splitlines()[0] if compiler else ""
    if compiler is None or "clang" in version:
        raise EmulatorUnavailableError("the emulator needs g++ (C++17; set CXX if it has another name)")
    return Toolchain(compiler, version, find_headers(), cache_folder())


def find_headers() -> Path:
    """Find the folder of cuda_fp16.h: in NVIDIA's Python packages, else in an installed toolkit."""
    nvidia = importlib.util.find_spec("nvidia")
    packages = [Path(p) for p in (nvidia.submodule_search_locations or ())] if nvidia else []
    candidates = [folder for p in packages for folder in sorted(p.glob("*/include"), reverse=True)]
    toolkit = os.environ.get("CUDA_PATH") or os.environ.get("CUDA_HOME") or "/usr/local/cuda"
    candidates.append(Path(toolkit) / "include")
    for folder in candidates:
        if all((folder / name).is_file() for name in ("cuda_fp16.h", "cuda_bf16.h", "vector_types.h")):
            return folder
    raise EmulatorUnavailableError(
        "the emulator needs NVIDIA's cuda_fp16.h and cuda_bf16.h: pip install 'cuda-toolkit[cudart]', "
        "or the extra `test` of this project"
    )


def cache_folder() -> Path:
    """Return a folder of the user's for built kernels."""
    chosen = os.environ.get("GSPN2_EMULATOR_CACHE")
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser())
    folder = Path(chosen) if chosen else home / "gspn2_cupy" / "emulator"
    with contextlib.suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
    if not os.access(folder, os.W_OK):
        folder = Path(tempfile.gettempdir()) / f"gspn2_cupy-emulator-{os.getuid()}"
        folder.mkdir(mode=0o700, exist_ok=True)
    return folder


def run(command: list[str]) -> str:
    # A preloaded sanitizer is for Python and the kernels, not for the compiler.
    environment = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"} | {"LC_ALL": "C"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise KernelBuildError(f"{' '.join(command)}\n{done.stdout}{done.stderr}")
    return done.stdout


def digest(*parts: str | Path) -> str:
    """Hash texts, and files with their names."""
    total = hashlib.sha256()
    for part in parts:
        if isinstance(part, Path):
            total.update(part.name.encode() + b"\0" + part.read_bytes())
        else:
            total.update(part.encode())
        total.update(b"\0")
    return total.hexdigest()[:20]


@cache
def device_headers() -> tuple[Path, ...]:
    return tuple(sorted(p for p in (*DEVICE.rglob("*"), RUNTIME / "interface.hpp") if p.is_file()))


@cache
def build_runtime() -> Path:
    """Return the runtime's shared library, built if need be. All variants share it."""
    tools = toolchain()
    sources = sorted(RUNTIME.glob("*.cpp"))
    flags = ("-std=c++17", "-O2", "-g1", "-fPIC", "-shared", "-Wall", "-Wextra")
    flags += RUNTIME_FLAGS
    target = tools.cache / f"runtime-{digest(tools.version, *flags, *sorted(RUNTIME.iterdir()))}.so"
    if not target.exists():
        with replacing(target) as partial:
            run([tools.compiler, *flags, *map(str, sources), "-o", str(partial)])
    return target


@cache
def prelude(variant: str) -> Path:
    """Return a header that includes all that kernels need, precompiled: it saves most of a kernel's build time."""
    tools = toolchain()
    flags = (*tools.flags(variant), *includes(tools))
    folder = tools.cache / f"prelude-{variant}-{digest(tools.version, *flags, *device_headers())}"
    if not folder.exists():
        partial = Path(tempfile.mkdtemp(dir=tools.cache, prefix="partial-"))
        (partial / "prelude.hpp").write_text('#include "kernel_entry.hpp"\n')
        run([tools.compiler, *flags, "-x", "c++-header", str(partial / "prelude.hpp")])
        try:
            partial.rename(folder)
        except OSError:  # another process was faster
            shutil.rmtree(partial)
    return folder / "prelude.hpp"


def includes(tools: Toolchain) -> tuple[str, ...]:
    return (f"-I{DEVICE}", "-isystem", str(tools.headers))


def state_of(sources: Path) -> tuple[tuple[Path, int, int], ...]:
    """Return the files that kernels may include, with time and size: equal states have been hashed before."""
    files = sorted(p for p in sources.iterdir() if p.suffix in {".cu", ".cuh", ".hpp", ".h"})
    return tuple((p, p.stat().st_mtime_ns, p.stat().st_size) for p in files)


@cache
def sources_digest(state: tuple[tuple[Path, int, int], ...]) -> str:
    return digest(*(path for path, _, _ in state))


def build_kernel(sources: Path, source: str, entry: str, defines: tuple[tuple[str, str], ...], variant: str) -> Path:
    """Return the shared library of one kernel, built if need be."""
    tools = toolchain()
    # Definitions come after the precompiled header, so they cannot make it unusable.
    text = "".join(f"#define {name} {value}\n" for name, value in (("GSPN2_EMULATED", "1"), *defines))
    text += f'#include "{sources / source}"\nEMULATOR_ENTRY({entry})\n'
    flags = (*tools.flags(variant), *includes(tools), f"-I{sources}")
    runtime = build_runtime()
    key = digest(text, runtime.name, prelude(variant).parent.name, *flags, sources_digest(state_of(sources)))
    target = tools.cache / f"{entry}-{variant}-{key}.so"
    if target.exists():
        return target
    wrapped = ",".join(f"--wrap={name}" for name in ("memcpy", "memmove", "memset"))
    with tempfile.TemporaryDirectory(dir=tools.cache) as folder, replacing(target) as partial:
        unit, compiled = Path(folder) / "kernel.cpp", Path(folder) / "kernel.o"
        unit.write_text(text)
        header = ("-include", str(prelude(variant)))
        run([tools.compiler, *flags, *header, "-c", str(unit), "-o", str(compiled)])
        # Linked without -fsanitize: the runtime stands in for libtsan, and libasan is preloaded.
        linker = (f"-Wl,{wrapped}", "-Wl,--gc-sections", "-Wl,-Bsymbolic", f"-Wl,-rpath,{tools.cache}")
        run([tools.compiler, "-shared", str(compiled), str(runtime), *linker, "-o", str(partial)])
    return target


@contextlib.contextmanager
def replacing(target: Path):
    """Yield a temporary name that becomes `target` at the end, at once."""
    handle, name = tempfile.mkstemp(dir=target.parent, prefix="partial-")
    os.close(handle)
    partial = Path(name)
    try:
        yield partial
        partial.chmod(0o755)
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)
