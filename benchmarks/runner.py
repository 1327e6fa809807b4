"""Runs cases, each on its own: what fails or does not fit is recorded and the next one runs."""

from __future__ import annotations

import datetime
import json
import os
import platform
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from importlib import metadata
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import gspn2_cupy
from benchmarks import host
from benchmarks.byte_model import bytes_moved
from benchmarks.cases import OPERATIONS, Case
from benchmarks.check import check
from benchmarks.implementations import (
    PREALLOCATED,
    LeftOutError,
    MissingError,
    build,
    missing_packages,
    seconds_to_compile,
)
from benchmarks.plans import plans_of, recorded
from gspn2_cupy import _launch

ROOT = Path(__file__).resolve().parents[1]
RESULTS = Path(__file__).parent / "results"
NO_GPU = "no GPU"
LEAST_SECONDS = 2.0  # left for a case to be begun, beside what it compiles
NO_TIME = "no time left"
CHANGED = ", changed"  # behind a commit from which files differ
BELONGS = ("commit", "device", "driver", "cuda_runtime", "nvrtc", "cupy", "torch", "triton")  # alike in all of a file
HANG = 60  # seconds beyond the limit after which the device counts as hung
COMPILERS = 14


# --- one case ---------------------------------------------------------------------------------------------------------


def run_case(gpu: Any, case: Case, limit: float, then: Any = None) -> dict[str, Any]:
    """Check and time a case; return its record. ``then``: see ``Gpu.time``."""
    from benchmarks.gpu import DoesNotFitError

    moved = bytes_moved(case)
    record: dict[str, Any] = {"id": case.id, **vars(case), "shape": case.shape, "bytes": moved}
    started = time.perf_counter()
    try:
        _measure(gpu, case, limit, record, then)
        if case.implementation != "attention":  # which moves other bytes
            copy = gpu.copy(moved)
            seconds = record["time"]["median"]
            record |= {"copy": copy.record(), "gbps": moved / seconds / 1e9, "score": copy.median / seconds}
        record["status"] = "ok"
    except (MissingError, LeftOutError, DoesNotFitError) as error:
        record |= {"status": "left out", "reason": str(error)}
    except Exception as error:
        record |= {
            "status": "failed",
            "reason": f"{type(error).__name__}: {error}",
            "traceback": traceback.format_exc(),
        }
    gpu.release()
    record["took"] = time.perf_counter() - started
    return record


def _measure(gpu: Any, case: Case, limit: float, record: dict[str, Any], then: Any) -> None:
    operation, extra = OPERATIONS[case.operation], 20 * _elements(case)  # states in float32, parts for the check
    sets = gpu.sets_for(record["bytes"], extra)
    arrays = [_arrays(gpu, case, s) for s in range(sets)]
    calls = [build(case, a) for a in arrays]
    for name in PREALLOCATED & arrays[0].keys() & operation.outputs.keys():
        gpu.poison(arrays[0][name])
    with recorded() as plans, gpu.poisoned():
        outputs = calls[0]()
    record["plans"] = [str(plan) for plan in plans]
    record["bytes_planned"] = sum(plan.bytes_moved for plan in plans)
    if case.implementation == "attention":
        from benchmarks.baselines_torch import check_attention

        record["error"] = check_attention(outputs)
    else:
        unwritten = {name: gpu.unwritten(out, case.dtype) for name, out in outputs.items()}
        if any(unwritten.values()):
            raise AssertionError(f"NaN, or never written: {unwritten}")
        record["error"] = check(case, gpu.crop, arrays[0], outputs).record()
    kept: list[Any] = [None] * sets  # so that every set has outputs of its own
    del outputs

    def run(s: int) -> None:
        kept[s] = None
        kept[s] = calls[s]()

    record |= getattr(calls[0], "facts", {})
    launches_a_line = {"per_line_eager": 1, "per_line_graph": 1, "torch_compile": 2}.get(case.implementation, 0)
    nodes = launches_a_line * case.lines or max(len(plans), 4)
    graph = not case.implementation.endswith("_eager")
    record |= {"sets": sets, "times_l2": sets * record["bytes"] / gpu.limits.l2_bytes}
    record["time"] = gpu.time(run, sets, limit, nodes, graph, then).record()


def _elements(case: Case) -> int:
    batch, channels, height, width = case.shape
    return batch * channels * height * width


def _arrays(gpu: Any, case: Case, seed: int) -> dict[str, Any]:
    """Return random inputs, and the outputs that calls write into."""
    operation = OPERATIONS[case.operation]
    kinds = operation.inputs | {n: kind for n, kind in operation.outputs.items() if n in PREALLOCATED}
    return {
        name: gpu.random(name, case.shape_of(kind), case.dtype, 100 * seed + i)
        for i, (name, kind) in enumerate(kinds.items())
    }


# --- all of them ------------------------------------------------------------------------------------------------------


def compile_ahead(limits: Any, cases: Iterable[Case]) -> float:
    """Compile what the cases launch, in several processes, into CuPy's disk cache; return the seconds."""
    started = time.perf_counter()
    plans = [plan for case in cases if case.implementation == "ours" for plan in plans_of(case, limits)]
    wanted = {(plan.spec, plan.cooperative) for plan in (*plans, *host.small_plans(limits))}
    if len(wanted) > 4:
        workers = min(COMPILERS, os.cpu_count() or 1, len(wanted))
        with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
            list(pool.map(_compile, wanted, chunksize=2))
    return time.perf_counter() - started


def _compile(wanted: tuple[Any, bool]) -> None:
    spec, cooperative = wanted
    _launch.CupyKernel(spec, None).prepare(0, cooperative)


def cuda_available() -> str:
    """Return an empty text if a CUDA device can be used, else why not."""
    try:
        import cupy

        cupy.cuda.runtime.getDeviceProperties(0)
        return ""
    except Exception as error:
        return f"{type(error).__name__}: {error}"


def machine(reason: str) -> dict[str, Any]:
    """Return what the results depend on."""
    facts: dict[str, Any] = {"python": platform.python_version(), "platform": platform.platform()}
    for package in ("numpy", "ml_dtypes", "torch", "triton"):
        try:
            facts[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            facts[package] = None
    if reason:
        return {"device": NO_GPU, "why": reason, "processor": platform.machine(), "cores": os.cpu_count(), **facts}
    import cupy

    runtime, limits = cupy.cuda.runtime, _launch.cupy_launcher(0).limits
    return {
        "device": limits.name,
        "compute_capability": ".".join(map(str, limits.compute_capability)),
        "multiprocessors": limits.multiprocessors,
        "l2_bytes": limits.l2_bytes,
        "memory_bytes": runtime.memGetInfo()[1],
        "driver": _tell("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"),
        "cuda_driver": runtime.driverGetVersion(),
        "cuda_runtime": runtime.runtimeGetVersion(),
        "nvrtc": ".".join(map(str, cupy.cuda.nvrtc.getVersion())),
        "cupy": cupy.__version__,
        **facts,
    }


def _tell(*command: str) -> str | None:
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip().splitlines()[0] if done.stdout.strip() else None


def command_line(module: str) -> str:
    """Return the command that runs, paths by their last part: their folders tell nothing to others."""
    arguments = [a.rstrip("/").rpartition("/")[2] if "/" in a else a for a in sys.argv[1:]]
    return " ".join([f"python -m {module}", *arguments])


def commit() -> str | None:
    """Return the checkout's commit, marked where files differ from it."""
    found = _tell("git", "rev-parse", "--short=12", "HEAD")
    return f"{found}{CHANGED}" if found and _tell("git", "status", "--porcelain", "--", "gspn2_cupy", "cuda") else found


class CannotContinueError(RuntimeError):
    """A results file is of another commit or machine."""


class Results:
    """The file that grows with every case, so that what was measured is kept whatever happens."""

    def __init__(self, path: Path | None, limit: float, said: str | None, continues: bool = False):
        self.reason = cuda_available()
        self.content: dict[str, Any] = {
            "format": 1,
            "machine": machine(self.reason),
            "gspn2_cupy": gspn2_cupy.__version__,
            "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "commit": said or commit(),
            "command": command_line("benchmarks"),
            "cases": [],
        }
        self.path = path or RESULTS / f"{self.content['machine']['device'].lower().replace(' ', '_')}.json"
        if continues and self.path.exists():
            self.content = self._continued(json.loads(self.path.read_text(encoding="utf-8")))
        self.before = self.content.get("seconds", 0.0)
        self.started = time.perf_counter()
        self.deadline = self.started + limit

    def _continued(self, earlier: dict[str, Any]) -> dict[str, Any]:
        """Return an earlier run's content, to be added to; raise if its figures would not belong with this run's."""
        facts = [{"commit": each.get("commit"), **each["machine"]} for each in (earlier, self.content)]
        differ = [name for name in BELONGS if facts[0].get(name) != facts[1].get(name)]
        unsure = not facts[0]["commit"] or facts[0]["commit"].endswith(CHANGED)
        if earlier.get("format") != self.content["format"] or differ or unsure:
            why = ", ".join(f"{name} {facts[0].get(name)} there, {facts[1].get(name)} here" for name in differ)
            raise CannotContinueError(f"{self.path} cannot be continued: {why or 'its commit is not known'}")
        return {**earlier, "continued": [*earlier.get("continued", []), self.content["command"]]}

    def rest(self, cases: list[Case]) -> list[Case]:
        """Return the cases still to be run: those without a record, then those that failed; their records go."""
        again = {record["id"] for record in self.content["cases"] if record["status"] == "failed"}
        again.add(self.content.pop("running", None))  # where the device hung
        kept = [r for r in self.content["cases"] if r["id"] not in again and r.get("reason") != NO_TIME]
        self.content["cases"] = kept
        done = {record["id"] for record in kept}
        return sorted((case for case in cases if case.id not in done), key=lambda case: case.id in again)

    def left(self) -> float:
        """Return the seconds left."""
        return self.deadline - time.perf_counter()

    def save(self, **more: Any) -> None:
        """Write everything so far."""
        self.content |= {**more, "seconds": self.before + time.perf_counter() - self.started}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps(self.content, indent=1, default=str)
        fresh = self.path.with_suffix(".tmp")
        fresh.write_text(text + "\n", encoding="utf-8")
        fresh.replace(self.path)

    @contextmanager
    def watched(self) -> Iterator[None]:
        """End the process, with what was measured, where the device hangs inside."""
        watchdog = threading.Timer(self.left() + HANG, self._give_up)
        watchdog.daemon = True
        watchdog.start()
        try:
            yield
        finally:
            watchdog.cancel()

    def _give_up(self) -> None:
        print("the device hangs: ended", flush=True)
        self.save(hung=True)
        os._exit(3)


def line(record: dict[str, Any]) -> str:
    """Return a record in one line."""
    if record["status"] != "ok":
        return f"{record['id']:66} {record['status']}: {record['reason'][:160]}"
    timing, score = record["time"], record.get("score")
    rate = f"{record['gbps']:7.0f} GB/s  score {score:.2f}  " if score else ""
    spread = f"{timing['p10'] * 1e6:.1f}–{timing['p90'] * 1e6:.1f}"
    return (
        f"{record['id']:66} {timing['median'] * 1e6:10.1f} µs ({spread}, {timing['how']})  {rate}"
        f"error {record['error']['relative']:.1e}  took {record['took']:.1f} s"
    )


def run(results: Results, cases: list[Case], case_seconds: float, say: Any = print) -> dict[str, Any]:
    """Run everything that the machine can, within the limit."""
    implementations = dict.fromkeys(case.implementation for case in cases)
    cases = results.rest(cases)
    empty = {name: results.content.get(name, []) for name in ("reference", "host", "accuracy", "first_calls")}
    results.save(missing=missing_packages(implementations), **empty)
    if results.reason:
        say(f"No GPU here ({results.reason}): the NumPy reference and the host side are measured, no kernel.")
        side = host.collected(host.host_side(), lambda: None)
        results.save(reference=host.reference_times(), host=side, accuracy=host.accuracy(False))
        for each in (*results.content["reference"], *side):
            say(f"{each['name']:60} {each['median'] * 1e6:12.2f} µs" if "median" in each else str(each))
        return results.content
    with results.watched():
        _run_on_gpu(results, cases, case_seconds, say)
    return results.content


def _measure_machine(results: Results, gpu: Any, say: Any) -> None:
    """Measure what is no case: the largest copy, the host's side, the errors of whole results."""
    large = gpu.copy(4 << 30)
    results.save(copy={"bytes": 4 << 30, "gbps": (4 << 30) / large.median / 1e9, **large.record()})
    say(f"copy of 4 GiB: {results.content['copy']['gbps']:.0f} GB/s")
    side = host.collected(host.host_side(), lambda: None)
    side += host.collected(host.device_calls(gpu), gpu.stream.synchronize)
    results.save(host=side, accuracy=host.accuracy(True))
    for each in side:
        say(f"{each['name']:40} {each['median'] * 1e6:8.2f} µs" if "median" in each else str(each))


def _run_on_gpu(results: Results, cases: list[Case], case_seconds: float, say: Any) -> None:
    from benchmarks.gpu import opened

    limits = _launch.cupy_launcher(0).limits
    try:
        results.save(compile_ahead_seconds=compile_ahead(limits, cases))
    except Exception as error:  # then each case compiles for itself
        results.save(compile_ahead_error=f"{type(error).__name__}: {error}")
    say(f"{limits.name}; compiled ahead, {results.left():.0f} s left")
    with opened() as gpu:
        gpu.warm()
        if not results.content["accuracy"]:
            _measure_machine(results, gpu, say)
        for case in cases:
            if results.left() < LEAST_SECONDS + seconds_to_compile(case):
                record = {"id": case.id, **vars(case), "shape": case.shape, "status": "left out", "reason": NO_TIME}
            else:
                results.content["running"] = case.id
                record = run_case(gpu, case, min(case_seconds, results.left() / 2))
            results.content.pop("running", None)
            results.content["cases"].append(record)
            results.save()
            say(line(record))
    if results.left() > 15 and not results.content["first_calls"]:
        try:
            results.save(first_calls=host.first_calls())
        except Exception as error:
            results.save(first_calls=[{"name": "first calls", "error": f"{type(error).__name__}: {error}"}])
