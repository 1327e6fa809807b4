"""Options and the GPU of the benchmarks that run under pytest-benchmark."""

import pytest

from benchmarks.cases import all_cases, matching, quick_cases
from benchmarks.runner import cuda_available


def pytest_addoption(parser):
    parser.addoption(
        "--cases", nargs="+", metavar="PATTERN", help="cases by id, or: all (the default is a quick selection)"
    )


def chosen(patterns):
    if not patterns:
        return quick_cases()
    return all_cases() if patterns == ["all"] else matching(patterns)


def pytest_generate_tests(metafunc):
    if "case" in metafunc.fixturenames:
        cases = chosen(metafunc.config.getoption("--cases", None))
        metafunc.parametrize("case", cases, ids=[case.id for case in cases])


def pytest_report_header():
    reason = cuda_available()
    return f"benchmarks: no GPU ({reason}), so no kernel is measured" if reason else "benchmarks: on the GPU"


@pytest.fixture(scope="session")
def gpu():
    reason = cuda_available()
    if reason:
        pytest.skip(f"no CUDA device: {reason}")
    from benchmarks.gpu import opened

    with opened() as opened_gpu:
        opened_gpu.warm()
        yield opened_gpu
