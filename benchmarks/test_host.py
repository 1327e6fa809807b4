"""What a call costs on the host before it launches, which needs no GPU, and what the first one costs.

python -m pytest --benchmark-only benchmarks/test_host.py
"""

import pytest

from benchmarks.host import first_calls, host_side

CALLS = dict(host_side())


@pytest.mark.parametrize("name", CALLS)
def test_host_side(benchmark, name):
    benchmark(CALLS[name])


def test_first_calls(benchmark, gpu):
    """In fresh processes, compiling and from CuPy's disk cache; what each step took is in extra_info."""
    records = benchmark.pedantic(first_calls, rounds=1)
    benchmark.extra_info.update({record["name"]: record["seconds"] for record in records})
