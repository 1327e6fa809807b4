"""PyTorch's own tools on gspn2_cupy.torch: opcheck, torch.compile, activation checkpointing, autocast."""

import pytest
from helpers import make_scan

import gspn2_cupy

torch = pytest.importorskip("torch", reason="PyTorch is not installed")

from torch_cases import (  # noqa: E402
    BFLOAT16,
    adapter,
    assert_same_bits,
    case,
    every_function,
    loss_and_gradients,
    network,
    numpy,
    operators,
    record_calls,
    tensor,
)

# --- PyTorch's tools --------------------------------------------------------------------------------------------------


def operator_calls():
    """Each operator with arguments of every kind: (name, arguments)."""
    scan, unit, logits = case("line_scan"), case("propagate"), tensor(case("normalize_weights").arrays["logits"])
    scan_inputs, unit_inputs = list(scan.arrays.values()), list(unit.arrays.values())
    x, weight, lam, h0 = map(tensor, scan_inputs)
    dh, dh_last = map(tensor, scan.upstream.values())
    states = torch.zeros(2, 2, 4, 6, 7)

    def inputs(arrays):
        return [tensor(each, requires_grad=True) for each in arrays]

    directions = "bottom_to_top,right_to_left"
    yield "normalize_weights", [*inputs([numpy(logits)]), "left_to_right", "softmax"]
    yield "normalize_weights_backward", [logits, logits, "left_to_right", "sigmoid"]
    yield "line_scan", [*inputs(scan_inputs), "bottom_to_top", 4, True, True]
    yield "line_scan", [*inputs(scan_inputs[:2]), None, None, "top_to_bottom", None, False, False]
    yield "line_scan_backward", [dh, x, weight, lam, dh, h0, dh_last, "bottom_to_top", 4, "x,weight,h0"]
    yield "propagate", [*inputs(unit_inputs), directions, "softmax", 4, True]
    yield "propagate", [*inputs(unit_inputs[:2]), None, None, None, directions, None, None, False]
    yield "propagate_backward", [dh, *map(tensor, unit_inputs), states, directions, "softmax", 4, "weight,merge"]


@pytest.mark.parametrize(("name", "arguments"), list(operator_calls()))
def test_opcheck(name, arguments):
    torch.library.opcheck(getattr(operators, name), arguments)


@pytest.fixture
def fresh_compiler():
    torch.compiler.reset()
    yield
    torch.compiler.reset()


@pytest.mark.parametrize("dynamic", [False, True])
def test_compiled_is_eager(fresh_compiler, dynamic):
    compiled = torch.compile(network, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    for actual, wanted in zip(loss_and_gradients(compiled), loss_and_gradients(network), strict=True):
        assert torch.equal(actual, wanted)


def test_compiled_reports_wrong_shapes_as_the_array_functions_do(fresh_compiler):
    def scanned(x, weight):
        return adapter.line_scan(x, weight, direction="left_to_right")

    compiled = torch.compile(scanned, fullgraph=True, backend="aot_eager")
    weight = torch.zeros(1, 1, 3, 4, 5)
    with pytest.raises(ValueError, match=r"^x must have shape \(B, C, H, W\); got \(2, 4, 5\)$"):
        compiled(torch.zeros(2, 4, 5), weight)
    with pytest.raises(ValueError, match=r"^weight must have shape \(1, G, 3, 4, 6\)"):
        compiled(torch.zeros(1, 2, 4, 6), weight)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # Inductor's own
def test_compiled_by_inductor_is_eager(fresh_compiler):
    def scanned(x, weight):
        return adapter.line_scan(x, weight, direction="right_to_left", chunk=4) * 2

    scan = make_scan((2, 4, 6, 7), "right_to_left", groups=2)
    results = []
    for function in (torch.compile(scanned, fullgraph=True), scanned):
        inputs = [tensor(each, requires_grad=True) for each in (scan.x, scan.weight)]
        results.append([function(*inputs), *torch.autograd.grad(function(*inputs).sum(), inputs)])
    for actual, wanted in zip(*results, strict=True):
        assert torch.equal(actual, wanted)


@pytest.mark.parametrize("reentrant", [False, True])
def test_activation_checkpointing(monkeypatch, reentrant):
    recorded = record_calls(monkeypatch)
    from torch.utils.checkpoint import checkpoint

    wanted = loss_and_gradients(network)
    recorded.clear()
    actual = loss_and_gradients(lambda *inputs: checkpoint(network, *inputs, use_reentrant=reentrant))
    assert [name for name, _ in recorded].count("propagate") == 2
    for result, each in zip(actual, wanted, strict=True):
        assert torch.equal(result, each)


# --- autocast ---------------------------------------------------------------------------------------------------------


@every_function
def test_autocast_casts_all_tensors_of_a_call(function):
    call, rounded = case(function), case(function)
    rounded.arrays = {name: array if name == "h0" else array.astype(BFLOAT16) for name, array in call.arrays.items()}
    mixed = case(function)
    first = next(iter(mixed.arrays))
    mixed.arrays[first] = mixed.arrays[first].astype(BFLOAT16)
    kwargs = {"return_last": True} if function == "line_scan" else {}
    wanted = getattr(gspn2_cupy, function)(**rounded.arrays, **call.options, **kwargs)
    for given in (call, rounded, mixed):
        inputs = {name: tensor(array, requires_grad=True) for name, array in given.arrays.items()}
        with torch.autocast("cpu", dtype=torch.bfloat16):
            results = getattr(adapter, function)(**inputs, **call.options, **kwargs)
        pairs = zip(results, wanted, strict=True) if function == "line_scan" else [(results, wanted)]
        for result, array in pairs:
            assert_same_bits(numpy(result), array)
        sum(each.sum() for each in (results if function == "line_scan" else [results])).backward()
        for each in inputs.values():
            assert each.grad.dtype is each.dtype


def test_autocast_leaves_float64_alone_and_keeps_h0_exact():
    call = case("line_scan", "float64")
    inputs = {name: tensor(array) for name, array in call.arrays.items()}
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert adapter.line_scan(**inputs, **call.options).dtype is torch.float64
        with pytest.raises(TypeError, match="weight must be bfloat16 like x; got float64"):
            adapter.line_scan(inputs["x"].float(), inputs["weight"], direction="left_to_right")
    call = case("line_scan")
    inputs = {name: tensor(array) for name, array in call.arrays.items()}
    half = {**inputs, "h0": inputs["h0"].bfloat16()}
    with torch.autocast("cpu", dtype=torch.bfloat16):
        _, last = adapter.line_scan(**half, **call.options, return_last=True)
        assert last.dtype is torch.float32
        assert adapter.line_scan(**inputs, **call.options).dtype is torch.bfloat16


def test_nothing_is_cast_outside_autocast():
    call = case("line_scan")
    inputs = {name: tensor(array) for name, array in call.arrays.items()}
    with pytest.raises(TypeError, match=r"^weight must be float32 like x; got float16$"):
        adapter.line_scan(inputs["x"], inputs["weight"].half(), **call.options)


@every_function
def test_autocast_of_cuda_tensors(function, monkeypatch):
    """The rule for CUDA's autocast, on tensors without memory: it needs no GPU."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    call = case(function)
    with FakeTensorMode(allow_non_fake_inputs=True):
        inputs = {name: torch.empty(array.shape, device="cuda") for name, array in call.arrays.items()}
        assert getattr(adapter, function)(**inputs, **call.options).dtype is torch.float32
        monkeypatch.setattr(torch, "is_autocast_enabled", lambda device: device == "cuda")
        result = getattr(adapter, function)(**inputs, **call.options)
    assert result.dtype is torch.get_autocast_dtype("cuda")
    assert result.device.type == "cuda"


def test_autocast_compiles(fresh_compiler):
    def scanned(x, weight):
        return adapter.line_scan(x, weight, direction="left_to_right")

    scan = make_scan((1, 2, 3, 4), "left_to_right")
    x, weight = tensor(scan.x), tensor(scan.weight)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        compiled = torch.compile(scanned, fullgraph=True, backend="aot_eager")(x, weight)
        assert compiled.dtype is torch.bfloat16
        assert torch.equal(compiled, scanned(x, weight))
