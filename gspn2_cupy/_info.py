"""``python -m gspn2_cupy info``: what this machine has, and where things are."""

from __future__ import annotations

import argparse
import json
import os
import platform
from collections.abc import Callable
from importlib import import_module, metadata
from pathlib import Path
from typing import Any

import numpy

import gspn2_cupy
from gspn2_cupy import _launch


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of the command."""
    parser.add_argument("--json", action="store_true", help="print one JSON object on one line")


def run(arguments: argparse.Namespace) -> int:
    """Print the facts, for a person or as JSON."""
    facts = collect()
    if arguments.json:
        print(json.dumps(facts))
    else:
        for name, text in _lines(facts):
            print(f"{name:<14}{text}")
    return 0


def collect() -> dict[str, Any]:
    """Return the facts as plain values; for every one that is None or empty, ``missing`` says why."""
    facts: dict[str, Any] = {
        "gspn2_cupy": gspn2_cupy.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "numpy": numpy.__version__,
    }
    missing: dict[str, str] = {}

    def ask(name: str, question: Callable[[], Any]) -> Any:
        # A diagnosis must not fail of what it is to diagnose: whatever CuPy raises is the reason shown.
        try:
            facts[name] = question()
        except Exception as error:
            facts[name] = None
            missing[name] = _reason(error)
        return facts[name]

    ask("ml_dtypes", lambda: metadata.version("ml_dtypes"))
    if ask("cupy", lambda: import_module("cupy").__version__):
        from cupy import cuda

        ask("cuda_driver", lambda: _driver(cuda.runtime))
        ask("cuda_runtime", lambda: _version(cuda.runtime.runtimeGetVersion()))
        ask("nvrtc", lambda: ".".join(map(str, cuda.nvrtc.getVersion())))
        ask("devices", lambda: _devices(cuda.runtime))
    else:
        for name in ("cuda_driver", "cuda_runtime", "nvrtc", "devices"):
            facts[name] = None
            missing[name] = "not known without CuPy"
    facts["devices"] = facts["devices"] or []
    ask("cuda_sources", lambda: str(_launch.cuda_sources()))
    facts["kernel_cache"] = os.environ.get("CUPY_CACHE_DIR") or str(Path("~/.cupy/kernel_cache").expanduser())
    facts["missing"] = missing
    return facts


def _lines(facts: dict[str, Any]) -> list[tuple[str, str]]:
    def show(name: str) -> str:
        return facts[name] or f"none: {facts['missing'][name]}"

    lines = [
        ("gspn2_cupy", show("gspn2_cupy")),
        ("Python", f"{facts['python']} on {facts['platform']}"),
        ("NumPy", show("numpy")),
        ("ml_dtypes", show("ml_dtypes")),
        ("CuPy", show("cupy")),
        ("CUDA driver", show("cuda_driver")),
        ("CUDA runtime", show("cuda_runtime")),
        ("NVRTC", show("nvrtc")),
    ]
    for device in facts["devices"]:
        memory = f"{device['memory_bytes'] / 2**30:.1f} GiB"
        text = f"{device['name']}, compute capability {device['compute_capability']}, {memory}"
        lines.append((f"device {device['index']}", text))
    if not facts["devices"]:
        lines.append(("devices", show("devices")))
    lines.append(("CUDA arrays", "run here, by CUDA kernels" if facts["devices"] else "cannot run here"))
    lines.append(("CPU arrays", "run here, by the NumPy reference"))
    lines.append(("CUDA sources", show("cuda_sources")))
    lines.append(("kernel cache", show("kernel_cache")))
    return lines


def _driver(runtime: Any) -> str:
    number = runtime.driverGetVersion()
    if number == 0:
        raise RuntimeError("no NVIDIA driver found")
    return _version(number)


def _devices(runtime: Any) -> list[dict[str, Any]]:
    devices = []
    for index in range(runtime.getDeviceCount()):
        properties = runtime.getDeviceProperties(index)
        devices.append(
            {
                "index": index,
                "name": properties["name"].decode(),
                "compute_capability": f"{properties['major']}.{properties['minor']}",
                "memory_bytes": int(properties["totalGlobalMem"]),
            }
        )
    if not devices:
        raise RuntimeError("no CUDA device is visible")
    return devices


def _version(number: int) -> str:
    return f"{number // 1000}.{number % 1000 // 10}"


def _reason(error: Exception) -> str:
    if isinstance(error, metadata.PackageNotFoundError):
        return "not installed; bfloat16 arrays need it"
    if isinstance(error, ModuleNotFoundError) and error.name == "cupy":
        return "not installed; the extras cuda12 and cuda13 bring it"
    return " ".join(str(error).split()) or type(error).__name__
