"""gspn2_cupy.torch gives the results and the gradients of the array functions, only those asked for, and no more."""

import ctypes
import sys
import weakref
from types import SimpleNamespace

import numpy as np
import pytest
from helpers import DTYPES, assert_same_bits, make_scan, make_unit

import gspn2_cupy
from gspn2_cupy import ALL_DIRECTIONS

torch = pytest.importorskip("torch", reason="PyTorch is not installed")

from torch_cases import (  # noqa: E402
    adapter,
    assert_same,
    case,
    every_function,
    expected,
    numpy,
    record_calls,
    run,
    tensor,
)

from gspn2_cupy import _torch_memory  # noqa: E402

SOME_DIRECTIONS = [("left_to_right",), ("bottom_to_top", "right_to_left"), ALL_DIRECTIONS]

# --- what comes out ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@every_function
def test_results_and_gradients_are_those_of_the_array_functions(function, dtype):
    for optional in (True, False):
        call = case(function, dtype, optional=optional)
        assert_same(run(function, call), expected(function, call))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("function", ["line_scan", "propagate"])
def test_saved_states_are_what_the_backward_gets(function, dtype):
    call = case(function, dtype)
    assert_same(run(function, call, save_states=True), expected(function, call, states=True))


def check_gradients(function, **arrays):
    inputs = [tensor(array, requires_grad=True) for array in arrays.values() if array is not None]
    names = [name for name, array in arrays.items() if array is not None]
    assert torch.autograd.gradcheck(lambda *given: function(**dict(zip(names, given, strict=True))), inputs)


@pytest.mark.parametrize("optional", [True, False])
@pytest.mark.parametrize("chunk", [None, 2])
@pytest.mark.parametrize("direction", ALL_DIRECTIONS)
def test_gradcheck_line_scan(direction, chunk, optional):
    scan = make_scan((1, 2, 3, 5), direction, "float64", groups=2 - optional, lam=optional, h0=optional)
    options = {"direction": direction, "chunk": chunk, "return_last": True, "save_states": optional}
    check_gradients(
        lambda **given: adapter.line_scan(**given, **options),
        x=scan.x,
        weight=scan.weight,
        lam=scan.lam,
        h0=scan.h0,
    )


@pytest.mark.parametrize(("optional", "chunk"), [(True, 2), (False, None)])
@pytest.mark.parametrize("normalize", [None, "sigmoid", "softmax"])
@pytest.mark.parametrize("directions", SOME_DIRECTIONS, ids="+".join)
def test_gradcheck_propagate(directions, normalize, optional, chunk):
    unit = make_unit((1, 2, 3, 3), directions, "float64", lam=optional, u=optional, merge=optional, normalize=normalize)
    options = {"directions": directions, "normalize": normalize, "chunk": chunk, "save_states": optional}
    check_gradients(
        lambda **given: adapter.propagate(**given, **options),
        x=unit.x,
        weight=unit.weight,
        lam=unit.lam,
        u=unit.u,
        merge=unit.merge,
    )


@pytest.mark.parametrize("method", ["sigmoid", "softmax"])
@pytest.mark.parametrize("direction", ["left_to_right", "bottom_to_top"])
def test_gradcheck_normalize_weights(direction, method):
    scan = make_scan((1, 2, 3, 4), direction, "float64")
    check_gradients(
        lambda logits: adapter.normalize_weights(logits, direction=direction, method=method), logits=scan.weight
    )


def test_the_pieces_of_a_scan_hand_their_gradients_on():
    scan = make_scan((2, 4, 6, 7), "top_to_bottom", groups=2)
    whole = [tensor(each, requires_grad=True) for each in (scan.x, scan.weight, scan.lam)]
    adapter.line_scan(*whole, direction="top_to_bottom").backward(tensor(scan.dh))
    pieces = [tensor(each, requires_grad=True) for each in (scan.x, scan.weight, scan.lam)]
    first, h0 = adapter.line_scan(*(p[..., :2, :] for p in pieces), direction="top_to_bottom", return_last=True)
    second = adapter.line_scan(*(p[..., 2:, :] for p in pieces), direction="top_to_bottom", h0=h0)
    torch.cat([first, second], dim=2).backward(tensor(scan.dh))
    for piece, each in zip(pieces, whole, strict=True):
        assert torch.equal(piece.grad, each.grad)


def test_a_gradient_of_the_last_line_alone():
    scan = make_scan((1, 2, 3, 4), "left_to_right", dh_last=True)
    x, weight = tensor(scan.x, requires_grad=True), tensor(scan.weight)
    adapter.line_scan(x, weight, direction="left_to_right", return_last=True)[1].backward(tensor(scan.dh_last))
    grads = gspn2_cupy.line_scan_backward(
        np.zeros_like(scan.x), scan.x, scan.weight, direction="left_to_right", dh_last=scan.dh_last
    )
    assert_same_bits(numpy(x.grad), grads.x)


def test_strided_inputs_and_gradients():
    scan = make_scan((2, 4, 5, 6), "right_to_left", groups=2)
    call = SimpleNamespace(
        arrays={"x": scan.x, "weight": scan.weight, "lam": scan.lam},
        options={"direction": "right_to_left"},
        upstream={"dh": np.ones_like(scan.x)},
    )
    inputs = [tensor(each).requires_grad_() for each in call.arrays.values()]
    x, weight, lam = inputs
    h = adapter.line_scan(
        x.to(memory_format=torch.channels_last),
        weight.transpose(3, 4).contiguous().transpose(3, 4),
        lam,
        **call.options,
    )
    assert h.is_contiguous()
    h.sum().backward()  # its gradient is one number, expanded
    wanted = gspn2_cupy.line_scan_backward(**call.upstream, **call.arrays, **call.options)
    for each, gradient in zip(inputs, wanted, strict=False):
        assert_same_bits(numpy(each.grad), gradient)


@every_function
def test_gradients_are_contiguous_whatever_the_strides_of_the_inputs(function):
    call = case(function)
    inputs = {
        name: None if array is None else tensor(array.swapaxes(0, -1)).transpose(0, -1).requires_grad_()
        for name, array in call.arrays.items()
    }
    result = getattr(adapter, function)(**inputs, **call.options)
    assert result.is_contiguous()
    given = [each for each in inputs.values() if each is not None]
    upstream = tensor(next(iter(call.upstream.values())))
    for gradient in torch.autograd.grad(result, given, upstream):
        assert gradient.is_contiguous()


def test_a_result_may_be_changed_unless_it_is_saved():
    scan = make_scan((1, 2, 3, 4), "left_to_right")
    for save_states in (False, True):
        x, weight = (tensor(each, requires_grad=True) for each in (scan.x, scan.weight))
        h = adapter.line_scan(x, weight, direction="left_to_right", save_states=save_states)
        h += 1
        if save_states:
            with pytest.raises(RuntimeError, match="modified by an inplace operation"):
                h.sum().backward()
        else:
            h.sum().backward()
            grads = gspn2_cupy.line_scan_backward(np.ones_like(scan.x), scan.x, scan.weight, direction="left_to_right")
            assert_same_bits(numpy(weight.grad), grads.weight)


def test_empty_tensors():
    x = torch.zeros(2, 3, 0, 4, requires_grad=True)
    weight = torch.zeros(2, 1, 3, 0, 4, requires_grad=True)
    h, h_last = adapter.line_scan(x, weight, direction="top_to_bottom", return_last=True)
    (h.sum() + h_last.sum()).backward()
    assert x.grad.shape == x.shape
    assert weight.grad.shape == weight.shape


# --- only what is asked for -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("function", ["line_scan", "propagate"])
def test_only_the_gradients_asked_for_are_computed(function, monkeypatch):
    recorded = record_calls(monkeypatch)
    call = case(function)
    for needed in call.arrays:
        recorded.clear()
        _, gradients = run(function, call, needs={needed})
        assert [name for name, gradient in gradients.items() if gradient is not None] == [needed]
        assert [(name, arguments.get("needs")) for name, arguments in recorded] == [
            (function, None),
            (f"{function}_backward", (needed,)),
        ]


def test_nothing_is_recorded_where_no_gradient_is_asked_for(monkeypatch):
    recorded = record_calls(monkeypatch)
    call = case("propagate")
    result = adapter.propagate(**{name: tensor(array) for name, array in call.arrays.items()}, **call.options)
    assert not result.requires_grad
    with torch.no_grad():
        inputs = {name: tensor(array, requires_grad=True) for name, array in call.arrays.items()}
        assert not adapter.propagate(**inputs, **call.options, save_states=True).requires_grad
    assert [arguments["return_states"] for _, arguments in recorded] == [False, False]


@pytest.mark.parametrize("save_states", [False, True])
@pytest.mark.parametrize(("function", "state"), [("line_scan", (2, 4, 6, 7)), ("propagate", (2, 2, 4, 6, 7))])
def test_nothing_is_saved_that_can_be_recomputed(function, state, save_states):
    call = case(function)
    saved = []
    inputs = {name: tensor(array, requires_grad=True) for name, array in call.arrays.items()}
    with torch.autograd.graph.saved_tensors_hooks(lambda each: saved.append(each) or each, lambda each: each):
        getattr(adapter, function)(**inputs, **call.options, save_states=save_states)
    known = {each.data_ptr() for each in inputs.values()}
    assert [tuple(each.shape) for each in saved if each.data_ptr() not in known] == [state] * save_states


# --- what is refused --------------------------------------------------------------------------------------------------


@every_function
def test_a_second_derivative_is_refused(function):
    call = case(function)
    inputs = [tensor(array, requires_grad=True) for array in call.arrays.values()]
    result = getattr(adapter, function)(**dict(zip(call.arrays, inputs, strict=True)), **call.options)
    (gradient,) = torch.autograd.grad((result**2).sum(), inputs[:1], create_graph=True)
    message = f"^gspn2_cupy.torch.{function} has first derivatives only: its gradients cannot be differentiated again$"
    with pytest.raises(NotImplementedError, match=message):
        gradient.sum().backward()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch.func.jvp itself
def test_forward_mode_is_refused():
    scan = make_scan((1, 2, 3, 4), "left_to_right")
    x, weight = tensor(scan.x), tensor(scan.weight)
    message = "^x must not carry a tangent: gspn2_cupy.torch has no forward-mode derivatives$"
    with pytest.raises(NotImplementedError, match=message):
        torch.func.jvp(lambda x: adapter.line_scan(x, weight, direction="left_to_right"), (x,), (x,))


def test_vmap_is_refused_by_pytorch():
    scan = make_scan((1, 2, 3, 4), "left_to_right")
    x, weight = tensor(scan.x), tensor(scan.weight)
    with pytest.raises(RuntimeError, match="gspn2_cupy::line_scan"):
        torch.func.vmap(lambda x: adapter.line_scan(x, weight, direction="left_to_right"))(x[None])


@pytest.mark.parametrize(
    "changes",
    [
        {"weight": torch.zeros(2, 4, 3, 6, 6)},
        {"weight": torch.zeros(2, 2, 3, 6, 7, dtype=torch.float64)},
        {"h0": torch.zeros(2, 4, 6)},
        {"direction": "upwards"},
        {"direction": 1},
        {"chunk": 0},
        {"chunk": 1.5},
        {"return_last": 1},
    ],
)
def test_errors_are_those_of_the_array_functions(changes):
    call = case("line_scan")
    given = {**{name: tensor(array) for name, array in call.arrays.items()}, **call.options, **changes}
    with pytest.raises((TypeError, ValueError)) as wanted:
        gspn2_cupy.line_scan(**given)
    with pytest.raises(type(wanted.value)) as caught:
        adapter.line_scan(**given)
    assert str(caught.value) == str(wanted.value)


def test_only_tensors_are_taken():
    scan = make_scan((1, 2, 3, 4), "left_to_right")
    with pytest.raises(TypeError, match=r"^x must be a PyTorch tensor; got numpy.ndarray$"):
        adapter.line_scan(scan.x, tensor(scan.weight), direction="left_to_right")
    with pytest.raises(TypeError, match=r"^weight must be a PyTorch tensor; got builtins.NoneType$"):
        adapter.line_scan(tensor(scan.x), None, direction="left_to_right")
    with pytest.raises(TypeError, match=r"^save_states must be True or False; got 2$"):
        adapter.line_scan(tensor(scan.x), tensor(scan.weight), direction="left_to_right", save_states=2)


# --- towards the kernels ----------------------------------------------------------------------------------------------


@every_function
def test_the_emulated_kernels_serve_the_adapter(function):
    from emulator import emulated, require

    require()
    call = case(function)
    with emulated(schedule="random") as device:
        wanted = expected(function, call)
        launches = device.launches
        actual = run(function, call)
        assert device.launches == 2 * launches > 0
    assert_same(actual, wanted)
    for name, gradient in expected(function, call)[1].items():
        np.testing.assert_allclose(numpy(actual[1][name]), gradient, rtol=1e-4, atol=1e-4)


def test_cupy_gets_memory_of_tensors_and_results_are_tensors(monkeypatch):
    """On the CPU, with stand-ins for CuPy's memory; the tests of the marker `gpu` do it with CuPy's own."""
    kept = weakref.WeakSet()

    class UnownedMemory:
        def __init__(self, address, size, owner, device):
            self.address, self.size, self.owner = address, size, owner
            kept.add(self)

    cuda = SimpleNamespace(UnownedMemory=UnownedMemory, MemoryPointer=lambda memory, offset: memory)
    monkeypatch.setitem(sys.modules, "cupy", SimpleNamespace(cuda=cuda))
    memory = _torch_memory._Memory(torch.device("cpu"))
    pointer, workspace = memory.allocate(2 * 3 * 4 * 2), memory.allocate(1 << 20)
    seen = torch.frombuffer((ctypes.c_char * pointer.size).from_address(pointer.address), dtype=torch.bfloat16)
    seen.copy_(torch.arange(24))
    owned = memory.own(seen.view(2, 3, 4))
    assert owned.dtype is torch.bfloat16
    assert owned.untyped_storage().data_ptr() == pointer.owner.data_ptr()
    assert not owned._is_view()
    del pointer, seen, workspace
    assert len(kept) == 0
    assert len(memory._tensors) == 0
    assert torch.equal(owned, torch.arange(24).bfloat16().view(2, 3, 4))
    assert memory.allocate(0).size == 0
    assert memory.own(torch.zeros(2, 0, 4)).shape == (2, 0, 4)
