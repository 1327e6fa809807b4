"""What ``python -m gspn2_cupy check`` tries besides single calls: repeats, pieces, strides, streams, graphs, threads.

Each compares calls with each other, bit by bit, and raises where they differ.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from typing import Any

import numpy as np

import gspn2_cupy
from gspn2_cupy._check_cases import LINE_SCAN, UNIT, Case, random_arrays
from gspn2_cupy._check_cases import call as run_case
from gspn2_cupy.reference import ALL_DIRECTIONS

Array = Any

REPEATS = 50


class NotHereError(Exception):
    """Why a check does not apply."""


# What has a kernel, or a way of its own to hand lines over between warps, on a GPU that has clusters; elsewhere the
# cluster's blocks meet in global memory.
CASES = {
    "whole slices in tiles": Case(LINE_SCAN, "float32", (2, 8, 64, 96), 2, ("left_to_right",), lam=True, state=True),
    "small slices": Case(LINE_SCAN, "float16", (2, 3, 33, 37), 1, ("bottom_to_top",), lam=True, state=True, chunk=10),
    "clusters": Case(LINE_SCAN, "float16", (1, 2, 512, 32), 1, ("right_to_left",), lam=True, state=True),
    "resident blocks": Case(LINE_SCAN, "float32", (1, 2, 32, 4096), 1, ("top_to_bottom",), state=True, saved=True),
    "broken vectors": Case(LINE_SCAN, "float32", (1, 2, 3, 1025), 1, ("top_to_bottom",), lam=True, state=True),
    "plain": Case(LINE_SCAN, "float64", (1, 2, 3, 1025), 1, ("top_to_bottom",), lam=True, state=True),
    "four directions": Case(
        UNIT, "float32", (2, 4, 40, 64), 1, ALL_DIRECTIONS, lam=True, u=True, merge=True, normalize="sigmoid"
    ),
}


def _cases() -> list[tuple[Case, dict[str, Array]]]:
    return [(case, random_arrays(case, seed)) for seed, case in enumerate(CASES.values())]


def _on_device(cupy: Any, arrays: dict[str, Array]) -> dict[str, Array]:
    return {name: cupy.asarray(array) for name, array in arrays.items()}


def _bits(cupy: Any, results: dict[str, Array]) -> dict[str, bytes]:
    return {name: cupy.asnumpy(result).tobytes() for name, result in results.items()}


def _expect(actual: dict[str, bytes], expected: dict[str, bytes]) -> None:
    wrong = [name for name in expected if actual[name] != expected[name]]
    if wrong:
        raise AssertionError(f"{', '.join(wrong)} differ")


def _repeats(cupy: Any) -> None:
    for case, arrays in _cases():
        given = _on_device(cupy, arrays)
        expected = _bits(cupy, run_case(gspn2_cupy, case, given))
        for _ in range(REPEATS):
            _expect(_bits(cupy, run_case(gspn2_cupy, case, given)), expected)


def _pieces(cupy: Any) -> None:
    _, arrays = _cases()[0]
    given = _on_device(cupy, arrays)
    inputs = {name: given[name] for name in ("x", "weight", "lam")}
    whole = gspn2_cupy.line_scan(**inputs, h0=given["h0"], direction="left_to_right")
    line, parts = given["h0"], []
    for columns in (slice(0, 40), slice(40, 48), slice(48, 96)):
        pieces = {name: array[..., columns] for name, array in inputs.items()}
        part, line = gspn2_cupy.line_scan(**pieces, h0=line, direction="left_to_right", return_last=True)
        parts.append(cupy.asnumpy(part))
    _expect({"h": np.concatenate(parts, axis=-1).tobytes()}, {"h": cupy.asnumpy(whole).tobytes()})


def _strides(cupy: Any) -> None:
    for case, arrays in _cases():
        expected = _bits(cupy, run_case(gspn2_cupy, case, _on_device(cupy, arrays)))
        views = {}
        for name, array in arrays.items():
            memory = cupy.asarray(np.full((*array.shape[:-1], 2 * array.shape[-1] + 3), np.nan, array.dtype))
            view = memory[..., 1:-2:2]
            view[...] = cupy.asarray(array)
            views[name] = view
        _expect(_bits(cupy, run_case(gspn2_cupy, case, views)), expected)


def _empty(cupy: Any) -> None:
    for shape in ((0, 4, 5, 8), (2, 4, 0, 8), (2, 4, 5, 0)):
        case = Case(LINE_SCAN, "float32", shape, 1, ("top_to_bottom",), state=True)
        for name, result in run_case(gspn2_cupy, case, _on_device(cupy, random_arrays(case, 0))).items():
            if name in ("h", "dx") and result.shape != shape:
                raise AssertionError(f"{name} has shape {result.shape}, not {shape}")


SLEEP = """
extern "C" __global__ void sleep(long long cycles) { for (long long start = clock64(); clock64() - start < cycles;); }
"""


def _streams(cupy: Any) -> None:
    sleep = cupy.RawKernel(SLEEP, "sleep")
    for case, arrays in _cases():
        values = _on_device(cupy, arrays)
        expected = _bits(cupy, run_case(gspn2_cupy, case, values))
        given = {name: cupy.full_like(array, np.nan) for name, array in values.items()}
        cupy.cuda.Device().synchronize()
        with cupy.cuda.Stream(non_blocking=True) as stream:
            sleep((1,), (1,), (np.int64(30_000_000),))
            for name, array in given.items():
                cupy.copyto(array, values[name])  # only now are the inputs there
            results = run_case(gspn2_cupy, case, given)
            stream.synchronize()
        _expect(_bits(cupy, results), expected)


def _graphs(cupy: Any) -> None:
    for case, arrays in _cases():
        given, pool = _on_device(cupy, arrays), cupy.cuda.MemoryPool()
        cupy.cuda.Device().synchronize()
        stream = cupy.cuda.Stream(non_blocking=True)
        with cupy.cuda.using_allocator(pool.malloc), stream:
            run_case(gspn2_cupy, case, given)
            stream.begin_capture()
            try:
                results = run_case(gspn2_cupy, case, given)
            finally:
                graph = stream.end_capture()
            for factor in (0.5, 2.0):
                for array in given.values():
                    array *= factor
                graph.launch(stream=stream)
                stream.synchronize()
                _expect(_bits(cupy, results), _bits(cupy, run_case(gspn2_cupy, case, given)))


def _threads(cupy: Any) -> None:
    cases = _cases()
    expected = [_bits(cupy, run_case(gspn2_cupy, case, _on_device(cupy, arrays))) for case, arrays in cases]
    errors: list[Exception] = []

    def work(number: int) -> None:
        try:
            case, arrays = cases[number]
            with cupy.cuda.Stream(non_blocking=True) as stream:
                given = _on_device(cupy, arrays)
                for _ in range(20):
                    results = run_case(gspn2_cupy, case, given)
                    stream.synchronize()
                    _expect(_bits(cupy, results), expected[number])
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(len(cases))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


def _second_device(cupy: Any) -> None:
    count = cupy.cuda.runtime.getDeviceCount()
    if count < 2:
        raise NotHereError("one device only")
    current = cupy.cuda.Device().id
    for case, arrays in _cases():
        expected = _bits(cupy, run_case(gspn2_cupy, case, _on_device(cupy, arrays)))
        for device in set(range(count)) - {current}:
            with cupy.cuda.Device(device):
                given = _on_device(cupy, arrays)
            results = run_case(gspn2_cupy, case, given)  # while the first device is current
            names = [cupy.cuda.runtime.getDeviceProperties(each)["name"] for each in (current, device)]
            if names[0] == names[1]:
                _expect(_bits(cupy, results), expected)
            elif not all(math.isfinite(float(abs(cupy.asnumpy(result)).sum())) for result in results.values()):
                raise AssertionError(f"results on device {device} are not finite")


BEHAVIOURS: dict[str, Callable[[Any], None]] = {
    f"{REPEATS} repeats, bitwise equal": _repeats,
    "pieces hand their last line on": _pieces,
    "strided arrays": _strides,
    "empty arrays": _empty,
    "a stream of its own": _streams,
    "CUDA graph, replayed": _graphs,
    "several threads": _threads,
    "another device": _second_device,
}
