"""The operators behind :mod:`gspn2_cupy.torch`, registered with PyTorch's dispatcher as ``torch.ops.gspn2_cupy``.

Each array function is one operator with a fake function, which tells shapes and types without running, and an autograd
formula, which for a forward is the operator of its backward and for a backward an error. Options that PyTorch's schemas
have no plain type for are strings: names joined by commas.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from gspn2_cupy import ops
from gspn2_cupy._torch_memory import call
from gspn2_cupy.reference import HORIZONTAL

SCAN_INPUTS = ("x", "weight", "lam", "h0")
UNIT_INPUTS = ("x", "weight", "lam", "u", "merge")


# --- registration -----------------------------------------------------------------------------------------------------


def _names(joined: str) -> tuple[str, ...]:
    return tuple(joined.split(",")) if joined else ()


def _state_type(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype is torch.float64 else torch.float32


def _define(name: str, schema: str, run: Callable[..., Any], fake: Callable[..., Any]) -> Any:
    operator = torch.library.custom_op(f"gspn2_cupy::{name}", run, mutates_args=(), schema=schema)
    operator.register_fake(fake)
    return operator


def _needed(ctx: Any, names: tuple[str, ...]) -> tuple[str, ...]:
    """Name the inputs, first among the operator's arguments, whose gradients are asked for."""
    return tuple(name for name, needed in zip(names, ctx.needs_input_grad, strict=False) if needed)


def _placed(gradients: list[Tensor], needed: tuple[str, ...], names: tuple[str, ...], count: int) -> tuple[Any, ...]:
    """Put the gradients of some inputs at their places among an operator's ``count`` arguments."""
    by_name = dict(zip(needed, gradients, strict=True))
    return tuple(by_name.get(name) for name in names) + (None,) * (count - len(names))


def _differentiate_once(operator: Any, function: str) -> None:
    """Let a second derivative raise."""

    def refuse(ctx: Any, *_: Any) -> None:
        raise NotImplementedError(
            f"gspn2_cupy.torch.{function} has first derivatives only: its gradients cannot be differentiated again"
        )

    operator.register_autograd(refuse)


# --- normalize_weights ------------------------------------------------------------------------------------------------


def _run_normalize_weights(logits: Tensor, direction: str, method: str) -> Tensor:
    return call(ops.normalize_weights, logits, logits=logits, direction=direction, method=method)[0]


def _run_normalize_weights_backward(dweight: Tensor, logits: Tensor, direction: str, method: str) -> Tensor:
    arguments = {"dweight": dweight, "logits": logits, "direction": direction, "method": method}
    return call(ops.normalize_weights_backward, logits, **arguments)[0]


def _save_normalize_weights(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    logits, *ctx.options = inputs
    ctx.save_for_backward(logits)


def _differentiate_normalize_weights(ctx: Any, dweight: Tensor) -> tuple[Any, ...]:
    (logits,) = ctx.saved_tensors
    return normalize_weights_backward(dweight, logits, *ctx.options), None, None


normalize_weights = _define(
    "normalize_weights",
    "(Tensor logits, str direction, str method) -> Tensor",
    _run_normalize_weights,
    lambda logits, direction, method: logits.new_empty(logits.shape),
)
normalize_weights_backward = _define(
    "normalize_weights_backward",
    "(Tensor dweight, Tensor logits, str direction, str method) -> Tensor",
    _run_normalize_weights_backward,
    lambda dweight, logits, direction, method: logits.new_empty(logits.shape),
)
normalize_weights.register_autograd(_differentiate_normalize_weights, setup_context=_save_normalize_weights)
_differentiate_once(normalize_weights_backward, "normalize_weights")


# --- line_scan --------------------------------------------------------------------------------------------------------


def _run_line_scan(
    x: Tensor,
    weight: Tensor,
    lam: Tensor | None,
    h0: Tensor | None,
    direction: str,
    chunk: int | None,
    return_last: bool,
    save_states: bool,
) -> list[Tensor]:
    arrays = {"x": x, "weight": weight, "lam": lam, "h0": h0}
    return call(ops.line_scan, x, **arrays, direction=direction, chunk=chunk, return_last=return_last)


def _fake_line_scan(
    x: Tensor,
    weight: Tensor,
    lam: Tensor | None,
    h0: Tensor | None,
    direction: str,
    chunk: int | None,
    return_last: bool,
    save_states: bool,
) -> list[Tensor]:
    h = x.new_empty(x.shape)
    if not return_last:
        return [h]  # of any shape: a wrong one is reported in the array function's words, when the operator runs
    batch, channels, height, width = x.shape
    line = (batch, channels, height if direction in HORIZONTAL else width)
    return [h, x.new_empty(line, dtype=_state_type(x))]


def _save_line_scan(ctx: Any, inputs: tuple[Any, ...], output: list[Tensor]) -> None:
    x, weight, lam, h0, ctx.direction, ctx.chunk, _, save_states = inputs
    ctx.save_for_backward(x, weight, lam, h0, output[0] if save_states else None)
    ctx.set_materialize_grads(False)


def _differentiate_line_scan(ctx: Any, gradients: list[Tensor | None]) -> tuple[Any, ...]:
    dh, dh_last = [*gradients, None][:2]
    x, weight, lam, h0, h = ctx.saved_tensors
    needed = _needed(ctx, SCAN_INPUTS)
    if dh is None and dh_last is None:
        return _placed([], (), SCAN_INPUTS, 8)
    if dh is None:
        dh = torch.zeros_like(x)
    options = (ctx.direction, ctx.chunk, ",".join(needed))
    return _placed(line_scan_backward(dh, x, weight, lam, h, h0, dh_last, *options), needed, SCAN_INPUTS, 8)


def _run_line_scan_backward(
    dh: Tensor,
    x: Tensor,
    weight: Tensor,
    lam: Tensor | None,
    h: Tensor | None,
    h0: Tensor | None,
    dh_last: Tensor | None,
    direction: str,
    chunk: int | None,
    needs: str,
) -> list[Tensor]:
    arrays = {"dh": dh, "x": x, "weight": weight, "lam": lam, "h": h, "h0": h0, "dh_last": dh_last}
    return call(ops.line_scan_backward, x, **arrays, direction=direction, chunk=chunk, needs=_names(needs))


def _fake_line_scan_backward(
    dh: Tensor,
    x: Tensor,
    weight: Tensor,
    lam: Tensor | None,
    h: Tensor | None,
    h0: Tensor | None,
    dh_last: Tensor | None,
    direction: str,
    chunk: int | None,
    needs: str,
) -> list[Tensor]:
    inputs = dict(zip(SCAN_INPUTS, (x, weight, lam, h0), strict=True))
    return _fake_gradients(inputs, needs)


def _fake_gradients(inputs: dict[str, Tensor | None], needs: str) -> list[Tensor]:
    """Make a tensor like each of the inputs that are there and named, in their order."""
    named = _names(needs)
    wanted = [tensor for name, tensor in inputs.items() if name in named and tensor is not None]
    return [tensor.new_empty(tensor.shape) for tensor in wanted]


line_scan = _define(
    "line_scan",
    "(Tensor x, Tensor weight, Tensor? lam, Tensor? h0, str direction, SymInt? chunk, bool return_last, "
    "bool save_states) -> Tensor[]",
    _run_line_scan,
    _fake_line_scan,
)
line_scan_backward = _define(
    "line_scan_backward",
    "(Tensor dh, Tensor x, Tensor weight, Tensor? lam, Tensor? h, Tensor? h0, Tensor? dh_last, str direction, "
    "SymInt? chunk, str needs) -> Tensor[]",
    _run_line_scan_backward,
    _fake_line_scan_backward,
)
line_scan.register_autograd(_differentiate_line_scan, setup_context=_save_line_scan)
_differentiate_once(line_scan_backward, "line_scan")


# --- propagate --------------------------------------------------------------------------------------------------------


def _run_propagate(
    x: Tensor,
    weight: Tensor,
    lam: Tensor | None,
    u: Tensor | None,
    merge: Tensor | None,
    directions: str,
    normalize: str | None,
    chunk: int | None,
    save_states: bool,
) -> list[Tensor]:
    arrays = {"x": x, "weight": weight, "lam": lam, "u": u, "merge": merge}
    options = {"directions": _names(directions), "normalize": normalize, "chunk": chunk}
    return call(ops.propagate, x, **arrays, **options, return_states=save_states)


def _fake_propagate(
    x: Tensor,
    weight: Tensor,
    lam: Tensor | None,
    u: Tensor | None,
    merge: Tensor | None,
    directions: str,
    normalize: str | None,
    chunk: int | None,
    save_states: bool,
) -> list[Tensor]:
    batch, *image = x.shape
    states = [x.new_empty((batch, len(_names(directions)), *image))] if save_states else []
    return [x.new_empty(x.shape), *states]


def _save_propagate(ctx: Any, inputs: tuple[Any, ...], output: list[Tensor]) -> None:
    *arrays, ctx.directions, ctx.normalize, ctx.chunk, save_states = inputs
    ctx.save_for_backward(*arrays, output[1] if save_states else None)
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)


def _differentiate_propagate(ctx: Any, gradients: list[Tensor | None]) -> tuple[Any, ...]:
    dy = gradients[0]
    if dy is None:
        return _placed([], (), UNIT_INPUTS, 9)
    needed = _needed(ctx, UNIT_INPUTS)
    options = (ctx.directions, ctx.normalize, ctx.chunk, ",".join(needed))
    return _placed(propagate_backward(dy, *ctx.saved_tensors, *options), needed, UNIT_INPUTS, 9)


def _run_propagate_backward(
    dy: Tensor,
    x: Tensor,
    weight: Tensor,
    lam: Tensor | None,
    u: Tensor | None,
    merge: Tensor | None,
    states: Tensor | None,
    directions: str,
    normalize: str | None,
    chunk: int | None,
    needs: str,
) -> list[Tensor]:
    arrays = {"dy": dy, "x": x, "weight": weight, "lam": lam, "u": u, "merge": merge, "states": states}
    options = {"directions": _names(directions), "normalize": normalize, "chunk": chunk, "needs": _names(needs)}
    return call(ops.propagate_backward, x, **arrays, **options)


def _fake_propagate_backward(
    dy: Tensor,
    x: Tensor,
    weight: Tensor,
    lam: Tensor | None,
    u: Tensor | None,
    merge: Tensor | None,
    states: Tensor | None,
    directions: str,
    normalize: str | None,
    chunk: int | None,
    needs: str,
) -> list[Tensor]:
    return _fake_gradients(dict(zip(UNIT_INPUTS, (x, weight, lam, u, merge), strict=True)), needs)


propagate = _define(
    "propagate",
    "(Tensor x, Tensor weight, Tensor? lam, Tensor? u, Tensor? merge, str directions, str? normalize, SymInt? chunk, "
    "bool save_states) -> Tensor[]",
    _run_propagate,
    _fake_propagate,
)
propagate_backward = _define(
    "propagate_backward",
    "(Tensor dy, Tensor x, Tensor weight, Tensor? lam, Tensor? u, Tensor? merge, Tensor? states, str directions, "
    "str? normalize, SymInt? chunk, str needs) -> Tensor[]",
    _run_propagate_backward,
    _fake_propagate_backward,
)
propagate.register_autograd(_differentiate_propagate, setup_context=_save_propagate)
_differentiate_once(propagate_backward, "propagate")
