"""Every case of benchmarks/cases.py on the GPU, its result checked first.

    python -m pytest --benchmark-only benchmarks [--cases PATTERN … | --cases all]

The columns are one call's share of the replay of a captured graph, by the host's clock, the device waited for. The
device's own time, by CUDA events, is in extra_info with bytes, GB/s, score, error and plans.
"""

import pytest

from benchmarks.host import device_calls
from benchmarks.runner import run_case

HOST_CALLS = (
    "line_scan(out=…)",
    "line_scan",
    "line_scan_backward",
    "propagate, four directions",
    "launch of a plan at hand",
    "replay of a graph of one call",
    "line_scan(out=…) of PyTorch tensors",
)


def test_case(benchmark, gpu, case):
    replays = []
    record = run_case(gpu, case, 0.5, lambda replay, calls: replays.append(timed(benchmark, gpu, replay, calls)))
    if record["status"] == "left out":
        pytest.skip(record["reason"])
    assert record["status"] == "ok", record["traceback"]
    benchmark.extra_info.update({name: value for name, value in record.items() if name != "status"})


def timed(benchmark, gpu, replay, calls):
    """Hand a batch of calls to pytest-benchmark; it divides by the calls."""

    def batch():
        replay()
        gpu.stream.synchronize()

    left = iter(range(10**9))

    def call():  # of every `calls` calls, the first does the work of all
        if next(left) % calls == 0:
            batch()

    benchmark.pedantic(call, rounds=5, iterations=calls)


@pytest.mark.parametrize("name", HOST_CALLS)
def test_host(benchmark, gpu, name):
    call = dict(device_calls(gpu)).get(name)
    if call is None:
        pytest.skip("not on this machine")
    benchmark.pedantic(call, rounds=10, iterations=100, warmup_rounds=1)
    gpu.stream.synchronize()
