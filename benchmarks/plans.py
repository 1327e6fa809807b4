"""Which plans a case launches: recorded from the calls themselves, on a GPU or without one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

from benchmarks.cases import OPERATIONS, Case
from benchmarks.implementations import OURS
from gspn2_cupy import _device, _launch
from gspn2_cupy._arrays import data_type
from gspn2_cupy._plan import DeviceLimits, LaunchPlan
from gspn2_cupy._warmup import array_without_memory

H200 = DeviceLimits("NVIDIA H200", (9, 0), 132, 232448, 233472, 2048, 60 << 20, 4_916_000_000_000)


@contextmanager
def recorded() -> Iterator[list[LaunchPlan]]:
    """Collect the plans launched inside."""
    plans: list[LaunchPlan] = []
    run = _launch.run

    def record(launcher: Any, plan: LaunchPlan, *arrays: Any) -> None:
        plans.append(plan)
        run(launcher, plan, *arrays)

    with mock.patch.object(_launch, "run", record):
        yield plans


class PlanningLauncher:
    """Stands in for a device of given limits; launches nothing."""

    def __init__(self, limits: DeviceLimits):
        self.limits = limits

    def compile(self, spec: Any) -> Any:
        return lambda *launch: None

    def empty(self, shape: tuple[int, ...], dtype: Any) -> Any:
        return array_without_memory(shape, dtype)

    zeros = empty


def plans_of(case: Case, limits: DeviceLimits = H200) -> list[LaunchPlan]:
    """Return what our own implementation of a case launches on a device, without one."""
    dtype = data_type(case.dtype).numpy_dtype
    inputs = OPERATIONS[case.operation].inputs
    arrays = {name: array_without_memory(case.shape_of(kind), dtype) for name, kind in inputs.items()}
    with _launch.use(PlanningLauncher(limits)), recorded() as plans:
        OURS[case.operation](case, arrays, _device)()
    return plans
