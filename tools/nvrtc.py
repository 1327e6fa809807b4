"""CUDA source to a cubin, and what it needs of a GPU, without CuPy and without a GPU: NVRTC's own library."""

from __future__ import annotations

import ctypes
import ctypes.util
import importlib.util
import re
import struct
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ATTEMPTS = 5  # NVRTC 13.0, in 15 processes at once, gave no log for one kernel of 700 or so; asked again it did
NOP = 0x918  # opcode, in the low 12 bits of an instruction


class NvrtcError(RuntimeError):
    """NVRTC refused a program; the text holds its errors."""


class NvrtcUnavailableError(RuntimeError):
    """NVRTC is not installed; the text says how to get it."""


@dataclass(frozen=True)
class Compiled:
    """What ptxas says of one kernel, and what its compilation cost."""

    registers: int
    spilled_bytes: int  # stores and loads
    local_bytes: int  # per thread: spills, and arrays that could not stay in registers
    static_shared_bytes: int
    instructions: int
    seconds: float  # of the compiling thread, so that other processes do not count
    warnings: str


@cache
def nvidia_folders() -> tuple[Path, ...]:
    """Return the folders of NVIDIA's Python packages, the newest CUDA first."""
    nvidia = importlib.util.find_spec("nvidia")
    roots = [Path(p) for p in (nvidia.submodule_search_locations or ())] if nvidia else []
    return tuple(folder for root in roots for folder in sorted(root.glob("*"), reverse=True))


@cache
def library() -> ctypes.CDLL:
    """Load NVRTC: NVIDIA's Python package, else an installed toolkit's."""
    found = [str(path) for folder in nvidia_folders() for path in sorted(folder.glob("lib/libnvrtc.so.*"))]
    found += filter(None, [ctypes.util.find_library("nvrtc")])
    if not found:
        raise NvrtcUnavailableError("NVRTC is not installed; the extra `test` of this project brings it")
    loaded = ctypes.CDLL(found[0])
    loaded.nvrtcGetErrorString.restype = ctypes.c_char_p
    return loaded


def version() -> str:
    """Return NVRTC's version."""
    major, minor = ctypes.c_int(), ctypes.c_int()
    _check(library().nvrtcVersion(ctypes.byref(major), ctypes.byref(minor)))
    return f"{major.value}.{minor.value}"


def _check(status: int, log: str = "") -> None:
    if status:
        raise NvrtcError(f"{library().nvrtcGetErrorString(status).decode()}\n{log}".strip())


def compile_cubin(source: str, options: Sequence[str], architecture: int) -> tuple[bytes, str, float]:
    """Return the cubin for sm_<architecture>, the compiler's log, and the processor seconds of this thread."""
    nvrtc = library()
    headers = [f"-I{folder / 'include'}" for folder in nvidia_folders() if (folder / "include/cuda_fp16.h").is_file()]
    # as CuPy does, always: small numbers are 0, functions without a word run on the device
    options = (
        *options,
        *headers[:1],
        "-ftz=true",
        "--device-as-default-execution-space",
        f"-arch=sm_{architecture}",
        "--ptxas-options=-v",
    )
    program = ctypes.c_void_p()
    _check(nvrtc.nvrtcCreateProgram(ctypes.byref(program), source.encode(), b"kernel.cu", 0, None, None))

    def fetch(what: str) -> bytes:
        size = ctypes.c_size_t()
        _check(getattr(nvrtc, f"nvrtcGet{what}Size")(program, ctypes.byref(size)))
        buffer = ctypes.create_string_buffer(size.value)
        _check(getattr(nvrtc, f"nvrtcGet{what}")(program, buffer))
        return buffer.raw

    try:
        start = time.thread_time()
        texts = (ctypes.c_char_p * len(options))(*(option.encode() for option in options))
        status = nvrtc.nvrtcCompileProgram(program, len(options), texts)
        seconds = time.thread_time() - start
        log = fetch("ProgramLog").rstrip(b"\0").decode()
        _check(status, log)
        return fetch("CUBIN"), log, seconds
    finally:
        nvrtc.nvrtcDestroyProgram(ctypes.byref(program))


def compile_kernel(source: str, options: Sequence[str], entry: str, architecture: int) -> Compiled:
    """Compile one kernel and read what it needs."""
    for _ in range(ATTEMPTS):
        cubin, log, seconds = compile_cubin(source, options, architecture)
        _, heading, rest = log.partition(f"Compiling entry function '{entry}'")
        if heading or log:
            break
    if not heading:
        raise NvrtcError(f"no kernel {entry} in\n{log}")
    about = rest.partition("Compiling entry function")[0]

    def number(pattern: str) -> int:
        found = re.search(rf"(\d+) {pattern}", about)
        return int(found[1]) if found else 0

    registers = re.search(r"Used (\d+) registers", about)
    stack = re.search(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", about)
    if registers is None or stack is None:
        raise NvrtcError(f"ptxas does not say what {entry} needs:\n{log}")
    told = [line for line in log.splitlines() if re.search(r"\b(warning|error)\b", line, re.IGNORECASE)]
    return Compiled(
        registers=int(registers[1]),
        spilled_bytes=int(stack[2]) + int(stack[3]),
        local_bytes=max(int(stack[1]), number("bytes lmem")),
        static_shared_bytes=number("bytes smem"),
        instructions=count_instructions(cubin, entry),
        seconds=seconds,
        warnings="\n".join(told),
    )


def count_instructions(cubin: bytes, entry: str) -> int:
    """Count a kernel's machine instructions: 16 bytes each since sm_70, filled up with NOPs."""
    offset, size = sections(cubin)[f".text.{entry}"]
    opcodes = (cubin[at] | (cubin[at + 1] & 15) << 8 for at in range(offset, offset + size, 16))
    return sum(opcode != NOP for opcode in opcodes)


def sections(elf: bytes) -> dict[str, tuple[int, int]]:
    """Return offset and size of the sections of a 64-bit ELF file by name."""
    (table,) = struct.unpack_from("<Q", elf, 0x28)
    entry_size, count, names = struct.unpack_from("<3H", elf, 0x3A)
    headers = [struct.unpack_from("<IIQQQQ", elf, table + k * entry_size) for k in range(count)]
    text = headers[names][4]
    return {elf[text + h[0] : elf.index(b"\0", text + h[0])].decode(): (h[4], h[5]) for h in headers}
