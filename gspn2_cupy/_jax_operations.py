"""The operations behind :mod:`gspn2_cupy.jax`: array functions as JAX operations, on the platform's callback.

On the CPU an array function runs in ``jax.pure_callback``. On GPUs it runs in ``jax.experimental.buffer_callback``:
CuPy works on XLA's stream and buffers, without synchronising the host. The callback is not put into XLA's command
buffers, whose replays would find the workspaces that CuPy allocated given to others.

What an operation cannot do raises with a text of its own: derivatives (the public functions define the first ones),
``vmap``, and several devices outside ``jax.shard_map``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import count
from typing import Any

import jax
import numpy as np
from jax.custom_batching import custom_vmap
from jax.experimental.buffer_callback import buffer_callback
from jax.experimental.custom_partitioning import custom_partitioning

from gspn2_cupy import ops
from gspn2_cupy._adapters import on_stream

Array = Any


@dataclass(frozen=True)
class Task:
    """A call of an array function, all but the values of its arrays: hashable, so that JAX compiles it once."""

    function: str
    arrays: tuple[str, ...]  # the names of those that are there
    options: tuple[tuple[str, Any], ...]
    results: tuple[jax.ShapeDtypeStruct, ...]  # those that are there
    takes_out: bool = False

    def run(self, arrays: Sequence[Array], **out: Array) -> list[Array]:
        """Call the array function on arrays of NumPy or CuPy."""
        given = dict(zip(self.arrays, arrays, strict=True))
        results = getattr(ops, self.function)(**given, **dict(self.options), **out)
        return [result for result in (results if isinstance(results, tuple) else (results,)) if result is not None]


def apply(task: Task, *arrays: Array) -> list[Array]:
    """Run a task on JAX arrays, in the order of ``task.arrays``."""
    return varying_alike(_operation(task)(*arrays), arrays)


def varying_alike(arrays: Sequence[Array | None], others: Sequence[Array | None]) -> list[Any]:
    """Let arrays vary over the devices of a ``jax.shard_map`` wherever some of the others do."""
    axes = frozenset[str]().union(*(_varying(other) for other in others))
    return [
        array
        if array is None or not (missing := axes - _varying(array))
        else jax.lax.pcast(array, tuple(missing), to="varying")
        for array in arrays
    ]


def _varying(array: Array | None) -> frozenset[str]:
    """Name the axes of a ``jax.shard_map`` over which an array varies; none outside."""
    manual = None if array is None else getattr(jax.typeof(array), "manual_axis_type", None)
    return frozenset() if manual is None else frozenset(manual.varying)


@lru_cache(maxsize=1024)
def _operation(task: Task) -> Any:
    """Make the operation of a task: its callback, inside what refuses the transformations that it has no rule for."""
    whole = custom_partitioning(partial(_callback, task))
    whole.def_partition(
        partition=_refuse_devices,  # inside jax.shard_map and on one device nothing is asked of it
        infer_sharding_from_operands=lambda mesh, arguments, results: (_replicated(mesh),) * len(task.results),
        sharding_rule=_independent,
    )

    @custom_vmap
    def mapped(*arrays: Array) -> Any:
        return jax.jit(whole)(*arrays)

    @mapped.def_vmap
    def refuse_vmap(*_: Any) -> Any:
        raise NotImplementedError(
            "gspn2_cupy.jax has no vmap: put the mapped axis into the batch axis B, or use jax.lax.map"
        )

    @jax.custom_jvp
    def differentiated(*arrays: Array) -> Any:
        return mapped(*arrays)

    @differentiated.defjvp
    def refuse_derivative(*_: Any) -> Any:
        raise NotImplementedError(
            "gspn2_cupy.jax has first derivatives in reverse mode only (jax.grad, jax.vjp): no second ones, no jax.jvp"
        )

    return differentiated


# --- the callbacks ----------------------------------------------------------------------------------------------------


def _callback(task: Task, *arrays: Array) -> Any:
    return jax.lax.platform_dependent(*arrays, cpu=partial(_on_cpu, task), cuda=partial(_on_gpu, task))


def _on_cpu(task: Task, *arrays: Array) -> Any:
    def callback(*arrays: Array) -> tuple[Array, ...]:
        return tuple(task.run([np.asarray(array) for array in arrays]))

    return jax.pure_callback(callback, task.results, *arrays)


def _on_gpu(task: Task, *arrays: Array) -> Any:
    def callback(context: Any, results: Sequence[Any], *buffers: Any) -> None:
        import cupy

        device = buffers[0].__dlpack_device__()[1]
        with on_stream(device, context.stream):
            _fill(task, [cupy.from_dlpack(result) for result in results], [cupy.from_dlpack(each) for each in buffers])

    return buffer_callback(callback, task.results)(*arrays)


def _fill(task: Task, results: Sequence[Array], arrays: Sequence[Array]) -> None:
    """Run a task into arrays that are there: into the first itself where the function takes ``out``, else by a copy."""
    out = {"out": results[0]} if task.takes_out else {}
    for result, computed in zip(results, task.run(arrays, **out), strict=True):
        if computed is not result:
            result[...] = computed


# --- shardings --------------------------------------------------------------------------------------------------------


def _refuse_devices(*_: Any) -> Any:
    """Refuse to be compiled for several devices, be the arrays sharded or replicated."""
    raise NotImplementedError(
        "gspn2_cupy.jax runs on one device: call it inside jax.shard_map, where each device scans images of its own"
    )


def _replicated(mesh: Any) -> Any:
    return jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())


def _independent(_: Any, arguments: Sequence[Any], results: Sequence[Any]) -> str:
    """Say, as a rule for shardings, that none of an array follows from that of another."""
    axes = (f"i{number}" for number in count())
    sides = (", ".join(" ".join(next(axes) for _ in each.shape) for each in side) for side in (arguments, results))
    return " -> ".join(sides)
