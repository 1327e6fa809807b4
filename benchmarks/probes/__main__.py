"""Probes that settle section 8 of the kernel design on an NVIDIA GPU of compute capability 9.0.

Run as ``python -m benchmarks.probes --output FILE.json``. Every probe is a process of its own, so that a fault in one
leaves the others whole; the table beside the predictions comes last.
"""

import argparse
import datetime
import importlib
import json
import os
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path

from benchmarks.runner import command_line

ROOT = Path(__file__).parents[2]
PROBES = {  # module and most seconds of each, in the order of their worth
    "copies": ("memory", 20),
    "rows": ("memory", 40),
    "boxes": ("memory", 30),
    "columns": ("memory", 30),
    "steps": ("latency", 20),
    "exchange": ("latency", 20),
    "clusters": ("latency", 25),
    "l2": ("memory", 15),
    "cooperative": ("host", 15),
    "host": ("host", 20),
}


def run_one(name: str, output: str, seconds: float) -> None:
    from benchmarks.probes.gpu import OutOfTimeError, Report

    report = Report(output, seconds)
    try:
        getattr(importlib.import_module(f"benchmarks.probes.{PROBES[name][0]}"), name)(report)
    except OutOfTimeError as error:
        report.errors.append(str(error))
    except Exception:
        report.errors.append(traceback.format_exc())
    finally:
        report.save()
    sys.stdout.flush()
    os._exit(0)  # no tear-down of a context that a fault may have broken


def run_all(names: list[str], output: Path, limit: float, commit: str | None) -> dict:
    started = time.monotonic()
    result: dict = {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "commit": commit or _tell("git", "rev-parse", "HEAD"),
        "command": command_line("benchmarks.probes"),
        "driver": _tell("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"),
        "probes": {},
    }
    environment = {**os.environ, "CUDA_MODULE_LOADING": "EAGER"}
    for name in names:
        left = limit - (time.monotonic() - started)
        seconds = min(PROBES[name][1], left - 10)
        begun = time.monotonic()
        if seconds < 5:
            result["probes"][name] = {"errors": ["left out: no time"], "lines": [], "figures": []}
            continue
        with tempfile.TemporaryDirectory() as folder:
            part = str(Path(folder) / "part.json")
            command = [
                sys.executable,
                "-m",
                "benchmarks.probes",
                "--only",
                name,
                "--child",
                str(seconds),
                "--output",
                part,
            ]
            try:
                done = subprocess.run(
                    command, cwd=ROOT, env=environment, timeout=seconds + 10, capture_output=True, text=True
                )
                ended = f"exit {done.returncode} {done.stderr[-800:]}"
            except subprocess.TimeoutExpired:
                ended = "killed: over its time"
            try:
                content = json.loads(Path(part).read_text())
            except (OSError, ValueError):
                content = {"errors": [ended], "lines": [], "figures": []}
        content["seconds"] = round(time.monotonic() - begun, 1)
        if "facts" in content:
            result.update(content.pop("facts"))
        result["probes"][name] = content
        output.write_text(json.dumps(result, indent=1))
        print(f"{name}: {content['seconds']} s, {len(content['errors'])} errors", flush=True)
    return result


def table(result: dict) -> str:
    facts = ("device", "driver", "cuda_driver", "nvrtc", "cupy", "multiProcessorCount", "l2CacheSize", "commit", "date")
    text = [", ".join(f"{key} {result.get(key)}" for key in facts)]
    for name, probe in result["probes"].items():
        text.append(f"\n[{name}]")
        for case, measured, predicted in probe["lines"]:
            text.append(f"{case} | {measured}" + (f" | predicted {predicted}" if predicted else ""))
        for error in probe["errors"]:
            text.append(f"ERROR {error.strip()[-400:]}")
    return "\n".join(text)


def _tell(*command: str) -> str | None:
    try:
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip() or None
    except (OSError, subprocess.CalledProcessError):
        return None


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.probes", description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, required=True, help="JSON file for every figure")
    parser.add_argument("--only", nargs="+", choices=list(PROBES), default=list(PROBES), help="probes to run")
    parser.add_argument("--seconds", type=float, default=170, help="most seconds for all of them")
    parser.add_argument("--commit", help="where the checkout has no git")
    parser.add_argument("--child", type=float, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child is not None:
        run_one(arguments.only[0], str(arguments.output), arguments.child)
    result = run_all(arguments.only, arguments.output, arguments.seconds, arguments.commit)
    arguments.output.with_suffix(".txt").write_text(table(result) + "\n")
    print(table(result))


if __name__ == "__main__":
    main()
