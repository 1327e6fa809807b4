"""What the tests of gspn2_cupy.torch share: calls of every function, run by the adapter and by the array functions."""

from types import SimpleNamespace

import ml_dtypes
import numpy as np
import pytest
from helpers import assert_same_bits, make_scan, make_unit

import gspn2_cupy

torch = pytest.importorskip("torch", reason="PyTorch is not installed")

import gspn2_cupy.torch as adapter  # noqa: E402
from gspn2_cupy import _torch_operators as operators  # noqa: E402

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)


def tensor(array, *, device="cpu", requires_grad=False):
    """A tensor with the values of a NumPy array, or None."""
    if array is None:
        return None
    if array.dtype == BFLOAT16:
        result = torch.from_numpy(array.view(np.int16).copy()).view(torch.bfloat16)
    else:
        result = torch.from_numpy(array.copy())
    return result.to(device).requires_grad_(requires_grad)


def numpy(value):
    value = value.detach().cpu()
    return value.view(torch.int16).numpy().view(BFLOAT16) if value.dtype is torch.bfloat16 else value.numpy()


def case(function, dtype="float32", *, optional=True, directions=("bottom_to_top", "right_to_left"), chunk=4):
    """A call of a function: its arrays in the order of their gradients, its options, and upstream gradients."""
    shape = (2, 4, 6, 7)  # neither side is a multiple of 4
    if function == "normalize_weights":
        scan = make_scan(shape, directions[0], dtype, groups=2)
        return SimpleNamespace(
            arrays={"logits": scan.weight}, options={"direction": directions[0]}, upstream={"dweight": scan.weight}
        )
    if function == "line_scan":
        scan = make_scan(shape, directions[0], dtype, groups=2, lam=optional, h0=optional, dh_last=True)
        return SimpleNamespace(
            arrays={"x": scan.x, "weight": scan.weight, "lam": scan.lam, "h0": scan.h0},
            options={"direction": directions[0], "chunk": chunk},
            upstream={"dh": scan.dh, "dh_last": scan.dh_last},
        )
    unit = make_unit(shape, directions, dtype, groups=2, lam=optional, u=optional, merge=optional, normalize="sigmoid")
    return SimpleNamespace(
        arrays={"x": unit.x, "weight": unit.weight, "lam": unit.lam, "u": unit.u, "merge": unit.merge},
        options={"directions": directions, "normalize": "sigmoid", "chunk": chunk},
        upstream={"dy": unit.dy},
    )


FUNCTIONS = ("normalize_weights", "line_scan", "propagate")
every_function = pytest.mark.parametrize("function", FUNCTIONS)


def run(function, call, *, device="cpu", needs=None, **options):
    """Results and gradients of the adapter; gradients of the inputs in `needs`, or of all that are there."""
    inputs = {
        name: tensor(array, device=device, requires_grad=needs is None or name in needs)
        for name, array in call.arrays.items()
    }
    if function == "line_scan":
        options["return_last"] = True
    results = getattr(adapter, function)(**inputs, **call.options, **options)
    results = results if isinstance(results, tuple) else (results,)
    upstream = [tensor(array, device=device) for array in call.upstream.values()]
    torch.autograd.backward(results, upstream)
    return results, {name: each.grad for name, each in inputs.items() if each is not None}


def expected(function, call, *, states=False):
    """Results and gradients of the array functions, on NumPy arrays."""
    kwargs = {"line_scan": {"return_last": True}, "propagate": {"return_states": states}}.get(function, {})
    results = getattr(gspn2_cupy, function)(**call.arrays, **call.options, **kwargs)
    results = results if isinstance(results, tuple) else (results,)
    saved = {"line_scan": {"h": results[0]}, "propagate": {"states": results[-1]}}[function] if states else {}
    grads = getattr(gspn2_cupy, f"{function}_backward")(**call.upstream, **call.arrays, **call.options, **saved)
    if function == "propagate":
        results = results[:1]
    return results, {"logits": grads} if function == "normalize_weights" else grads._asdict()


def assert_same(actual, wanted):
    for result, array in zip(actual[0], wanted[0], strict=True):
        assert_same_bits(numpy(result), array)
    for name, gradient in actual[1].items():
        assert_same_bits(numpy(gradient), wanted[1][name])


def network(x, logits, lam, h0):
    """A graph with every function in it."""
    weight = adapter.normalize_weights(logits[:, 0], direction="left_to_right")
    h, h_last = adapter.line_scan(x, weight, lam, direction="left_to_right", chunk=4, h0=h0, return_last=True)
    y = adapter.propagate(
        torch.tanh(h), logits, directions=("left_to_right", "top_to_bottom"), normalize="softmax", save_states=True
    )
    return y, h_last


def network_inputs(device):
    unit = make_unit((2, 4, 6, 7), ("left_to_right", "top_to_bottom"), groups=2, normalize="softmax")
    scan = make_scan((2, 4, 6, 7), "left_to_right", h0=True)
    return [tensor(each, device=device, requires_grad=True) for each in (unit.x, unit.weight, scan.lam, scan.h0)]


def loss_and_gradients(function, device="cpu"):
    inputs = network_inputs(device)
    y, h_last = function(*inputs)
    ((y * y).sum() + h_last.sum()).backward()
    return [y, h_last, *(each.grad for each in inputs)]


def record_calls(monkeypatch):
    """A list that grows by the calls of the array functions that the adapter makes, as (name, keyword arguments)."""
    calls = []

    def recording(function):
        def call(**arguments):
            calls.append((function.__name__, arguments))
            return function(**arguments)

        return call

    for name in FUNCTIONS:
        for each in (name, f"{name}_backward"):
            monkeypatch.setattr(operators.ops, each, recording(getattr(gspn2_cupy, each)))
    return calls
