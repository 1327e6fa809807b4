"""The drop-in for GSPN-1's module, against plain loops written from GSPN-1's definition."""

import pytest
from helpers import outside

torch = pytest.importorskip("torch", reason="PyTorch is not installed")

from gspn2_cupy.torch import GateRecurrent2dnoind  # noqa: E402

NAMES = ("X", "B", "G1", "G2", "G3")


def loops(x, b, g1, g2, g3, items_each_chunk):
    """H[i,t] = G1·H[i-1,t-1] + G2·H[i,t-1] + G3·H[i+1,t-1] + B·X, from left to right; each chunk starts from nothing.

    Pixel by pixel, so that PyTorch differentiates the definition itself.
    """
    *_, height, width = x.shape
    columns = []
    for t in range(width):
        column = []
        for i in range(height):
            value = b[..., i, t] * x[..., i, t]
            if t % items_each_chunk:
                for gate, j in ((g1, i - 1), (g2, i), (g3, i + 1)):
                    if 0 <= j < height:
                        value = value + gate[..., i, t] * columns[-1][j]
            column.append(value)
        columns.append(column)
    return torch.stack([torch.stack(column, dim=-1) for column in columns], dim=-1)


def inputs(shape=(2, 3, 5, 7), dtype=torch.float64):
    """X, B and row-stochastic gates, as GSPN-1's normalisation makes them."""
    generator = torch.Generator().manual_seed(0)
    x, b = (torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(2))
    gates = torch.rand((3, *shape), generator=generator, dtype=torch.float64) + 0.1
    inside = gates.clone()
    inside[0, ..., 0, :] = 0
    inside[2, ..., -1, :] = 0
    gates /= inside.sum(dim=0)
    return [each.to(dtype).requires_grad_() for each in (x, b, *gates)]


@pytest.mark.parametrize("items_each_chunk", [1, 2, 3, 6, 7, 8, 1000])
def test_forward_and_true_gradients(items_each_chunk):
    """Chunks that divide the width of 7 and that do not, and more than the width, which is the global scan."""
    given = inputs()
    upstream = torch.randn(given[0].shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    actual = GateRecurrent2dnoind(items_each_chunk)(*given)
    truth = loops(*given, items_each_chunk)
    torch.testing.assert_close(actual, truth, rtol=1e-13, atol=1e-13)
    gradients = torch.autograd.grad(actual, given, upstream)
    trues = torch.autograd.grad(truth, given, upstream, materialize_grads=True)
    for name, gradient, true in zip(NAMES, gradients, trues, strict=True):
        torch.testing.assert_close(
            gradient, true, rtol=1e-12, atol=1e-12, msg=lambda text, name=name: f"{name}: {text}"
        )


def test_gates_of_neighbours_outside_the_image_are_never_used():
    given = inputs()
    with torch.no_grad():
        h = GateRecurrent2dnoind(3)(*given)
        for gate, mask in zip(given[2:], outside((3, 5, 7), "left_to_right"), strict=True):
            gate[..., torch.from_numpy(mask)] = torch.nan
        for gate in given[2:]:
            gate[..., ::3] = torch.nan  # first columns of chunks
        assert torch.equal(GateRecurrent2dnoind(3)(*given), h)


def test_it_is_called_as_existing_code_calls_it():
    for module in (GateRecurrent2dnoind(4), GateRecurrent2dnoind(4, "triton"), GateRecurrent2dnoind(4, backend="cuda")):
        assert isinstance(module, torch.nn.Module)
        assert module.items_each_chunk == 4
        assert list(module.parameters()) == []
        assert module.state_dict() == {}
    assert repr(module) == "GateRecurrent2dnoind(items_each_chunk=4, backend='cuda')"


def test_bfloat16_is_carried_in_float32():
    given = inputs(dtype=torch.bfloat16)
    h = GateRecurrent2dnoind(1000)(*given)
    assert h.dtype is torch.bfloat16
    truth = loops(*(each.double() for each in given), 1000)
    assert torch.linalg.vector_norm(h.double() - truth) <= 4e-3 * torch.linalg.vector_norm(truth)


def test_autocast_takes_the_mixture_that_it_makes():
    x, b, *gates = inputs(dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        h = GateRecurrent2dnoind(3)(x, b.bfloat16(), gates[0], gates[1].bfloat16(), gates[2])
    assert h.dtype is torch.bfloat16
    h.float().sum().backward()
    assert gates[1].grad.dtype is torch.float32


def test_it_compiles():
    torch.compiler.reset()
    given = inputs()
    module = GateRecurrent2dnoind(3)
    assert torch.equal(torch.compile(module, fullgraph=True, backend="aot_eager")(*given), module(*given))
    torch.compiler.reset()


def test_wrong_arguments_are_named():
    x, b, g1, g2, g3 = inputs()
    module = GateRecurrent2dnoind(3)
    with pytest.raises(TypeError, match=r"^G2 must be torch.float64 like X; got torch.float32$"):
        module(x, b, g1, g2.float(), g3)
    with pytest.raises(ValueError, match=r"^B must have shape \(2, 3, 5, 7\) like X; got \(2, 3, 5, 6\)$"):
        module(x, b[..., 1:], g1, g2, g3)
    with pytest.raises(TypeError, match=r"^B must be a PyTorch tensor; got builtins.NoneType$"):
        module(x, None, g1, g2, g3)
    with pytest.raises(ValueError, match=r"^items_each_chunk must be an integer of at least 1; got 0$"):
        GateRecurrent2dnoind(0)
    with pytest.raises(TypeError, match=r"^items_each_chunk must be an integer of at least 1; got None$"):
        GateRecurrent2dnoind(None)


def test_the_emulated_kernels_serve_it():
    from emulator import emulated, require

    require()
    given = inputs(dtype=torch.float32)
    module = GateRecurrent2dnoind(3)
    truth = loops(*(each.double() for each in given), 3)
    true = torch.autograd.grad(truth.sum(), given)
    with emulated() as device:
        h = module(*given)
        gradients = torch.autograd.grad(h.sum(), given)
        assert device.launches > 1
    for result, each in zip((h, *gradients), (truth, *true), strict=True):
        torch.testing.assert_close(result.double(), each.double(), rtol=1e-5, atol=1e-5)
