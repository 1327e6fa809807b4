"""What a call costs on the host before it launches; needs no GPU.

python -m pytest --benchmark-only benchmarks/test_host.py
"""

import pytest

from benchmarks.host import host_side

CALLS = dict(host_side())


@pytest.mark.parametrize("name", CALLS)
def test_host_side(benchmark, name):
    benchmark(CALLS[name])
