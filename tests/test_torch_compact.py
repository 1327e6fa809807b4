"""gspn2_cupy.torch.CompactPropagation is compact_propagate with derivatives, and a layer like PyTorch's own."""

import copy
import io

import numpy as np
import pytest
from conftest import NO_GPU
from helpers import DTYPES, TOLERANCE, assert_same_bits, signal

import gspn2_cupy
from gspn2_cupy import ALL_DIRECTIONS, CompactParameters

torch = pytest.importorskip("torch", reason="PyTorch is not installed")

from torch_cases import numpy, tensor  # noqa: E402

from gspn2_cupy.torch import CompactPropagation  # noqa: E402

SHAPE = (2, 6, 5, 7)
STATE_NAMES = {name: name.replace("_", ".") for name in CompactParameters._fields}
VARIANTS = {
    "plain": {},
    "groups, chunks": {"groups": 2, "chunk": 3},
    "softmax, two directions": {"normalize": "softmax", "directions": ("bottom_to_top", "left_to_right")},
}
every_variant = pytest.mark.parametrize("options", list(VARIANTS.values()), ids=list(VARIANTS))


def layer(dtype="float32", *, seed=0, **options):
    """A layer whose parameters are all random."""
    module = CompactPropagation(SHAPE[1], 4, dtype=getattr(torch, dtype), **options)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += torch.rand(parameter.shape, generator=generator, dtype=torch.float64) * 0.4 - 0.2
    return module


def image(dtype="float32", seed=0):
    return signal(np.random.default_rng(seed), SHAPE, DTYPES[dtype])


def array_options(module):
    return {"directions": module.directions, "normalize": module.normalize, "chunk": module.chunk}


def arrays_of(module):
    return CompactParameters(*map(numpy, module.compact_parameters()))


def close(actual, wanted, tolerance):
    actual, wanted = actual.astype(np.float64), wanted.astype(np.float64)
    assert actual.shape == wanted.shape
    assert np.linalg.norm(actual - wanted) <= tolerance * np.linalg.norm(wanted)


def check_against_arrays(module, dtype, x, dy, convert=lambda array: array):
    given = tensor(x, device=module.merge.device, requires_grad=True)
    y = module(given)
    y.backward(tensor(dy, device=module.merge.device))
    parameters = CompactParameters(*map(convert, arrays_of(module)))
    options = array_options(module)
    wanted = gspn2_cupy.compact_propagate(convert(x), parameters, **options)
    grads = gspn2_cupy.compact_propagate_backward(convert(dy), convert(x), parameters, **options)
    # In the 16-bit types, whose tolerance is about one rounding, the layer's gradients have a second one: it rounds the
    # proxies' two gradients before it adds them, and a weight's for each image before it sums them.
    tolerance = TOLERANCE[dtype] * (2 if DTYPES[dtype].itemsize == 2 else 1)

    def back(array):
        return array.get() if hasattr(array, "get") else array

    close(numpy(y), back(wanted), TOLERANCE[dtype])
    close(numpy(given.grad), back(grads.x), tolerance)
    for name, gradient in grads.parameters._asdict().items():
        close(numpy(module.get_parameter(STATE_NAMES[name]).grad).reshape(gradient.shape), back(gradient), tolerance)


@every_variant
@pytest.mark.parametrize("dtype", DTYPES)
def test_results_and_gradients_are_those_of_the_array_function(dtype, options):
    check_against_arrays(layer(dtype, **options), dtype, image(dtype), image(dtype, seed=1))


def check_in_whole_vectors(dtype, device="cpu", convert=lambda array: array):
    """Sizes that suit a GPU, whose libraries choose their kernels by them."""
    module = CompactPropagation(96, 8, dtype=getattr(torch, dtype), device=device)
    x, dy = (signal(np.random.default_rng(seed), (2, 96, 16, 16), DTYPES[dtype]) for seed in (0, 1))
    check_against_arrays(module, dtype, x, dy, convert)


@pytest.mark.parametrize("dtype", DTYPES)
def test_results_and_gradients_in_whole_vectors(dtype):
    torch.manual_seed(0)
    check_in_whole_vectors(dtype)


@every_variant
def test_gradcheck(options):
    module = layer("float64", **options)
    names, values = zip(*module.named_parameters(), strict=True)
    inputs = [torch.from_numpy(image("float64")[:1, :, :3, :4].copy()), *(value.detach().clone() for value in values)]

    def function(x, *parameters):
        return torch.func.functional_call(module, dict(zip(names, parameters, strict=True)), (x,))

    assert torch.autograd.gradcheck(function, [each.requires_grad_() for each in inputs])


def test_the_emulated_kernels_serve_it():
    from emulator import emulated, require

    require()
    module = layer()
    with emulated(schedule="random") as device:
        check_against_arrays(module, "float32", image(), image(seed=1))
        assert device.launches > 0


@pytest.mark.gpu
@pytest.mark.skipif(NO_GPU is not None, reason=f"no GPU: {NO_GPU}")
@pytest.mark.filterwarnings("ignore:Attempting to run cuBLAS")  # PyTorch's first work in the thread of the derivatives
@every_variant
@pytest.mark.parametrize("dtype", DTYPES)
def test_on_a_gpu(dtype, options):
    import cupy

    if not torch.cuda.is_available():
        pytest.skip("PyTorch sees no CUDA device")
    check_against_arrays(layer(dtype, **options).cuda(), dtype, image(dtype), image(dtype, seed=1), cupy.asarray)


@pytest.mark.gpu
@pytest.mark.skipif(NO_GPU is not None, reason=f"no GPU: {NO_GPU}")
@pytest.mark.filterwarnings("ignore:Attempting to run cuBLAS")
@pytest.mark.parametrize("dtype", DTYPES)
def test_on_a_gpu_in_whole_vectors(dtype):
    import cupy

    torch.manual_seed(0)
    check_in_whole_vectors(dtype, "cuda", cupy.asarray)


# --- PyTorch's tools --------------------------------------------------------------------------------------------------


def gradients(function, x):
    module, x = copy.deepcopy(function), x.clone().requires_grad_()
    module(x).square().sum().backward()
    return [x.grad, *(parameter.grad for parameter in module.parameters())]


def test_it_compiles_without_a_graph_break():
    torch.compiler.reset()
    module, x = layer(groups=2, chunk=4), tensor(image())
    compiled = torch.compile(copy.deepcopy(module), fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(x), module(x))
    compiled(x).square().sum().backward()
    for a, b in zip(compiled.parameters(), gradients(module, x)[1:], strict=True):
        torch.testing.assert_close(a.grad, b, rtol=1e-5, atol=1e-5)
    torch.compiler.reset()


def test_checkpointing_gives_the_same_gradients():
    from torch.utils.checkpoint import checkpoint

    module, x = layer(), tensor(image())
    wanted = gradients(module, x)
    checkpoint(module, x, use_reentrant=False).square().sum().backward()
    for parameter, gradient in zip(module.parameters(), wanted[1:], strict=True):
        assert torch.equal(parameter.grad, gradient)


def test_autocast_runs_in_its_type_and_gradients_come_back_in_their_own():
    module, x = layer(), tensor(image(), requires_grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = module(x)
    assert y.dtype is torch.bfloat16
    assert torch.equal(y, copy.deepcopy(module).bfloat16()(x.bfloat16()))
    y.float().sum().backward()
    assert {each.grad.dtype for each in (x, *module.parameters())} == {torch.float32}
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert layer("float64")(tensor(image("float64"))).dtype is torch.float64


def test_memory_formats_are_taken():
    module, x = layer("float64"), tensor(image("float64"))
    torch.testing.assert_close(module(x.to(memory_format=torch.channels_last)), module(x), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("shape", [(0, 6, 5, 7), (2, 6, 0, 7), (2, 6, 5, 0)], ids=str)
def test_empty_images_are_taken(shape):
    module, x = layer(), torch.zeros(shape, requires_grad=True)
    y = module(x)
    assert y.shape == shape
    y.sum().backward()
    assert all((parameter.grad == 0).all() for parameter in module.parameters())


def test_it_is_exported_for_any_number_of_images():
    module, batch = layer(), torch.export.Dim("batch")
    exported = torch.export.export(module, (tensor(image()),), dynamic_shapes={"x": {0: batch}}).module()
    for count in (1, 3):
        x = tensor(image()).repeat(count, 1, 1, 1)
        assert torch.equal(exported(x), module(x))


def test_under_autocast_the_weights_are_kept_once_for_all_images():
    module, x = layer(), tensor(image()).repeat(8, 1, 1, 1).requires_grad_()
    kept = []
    keep = torch.autograd.graph.saved_tensors_hooks(lambda saved: kept.append(saved) or saved, lambda saved: saved)
    with keep, torch.autocast("cpu", torch.bfloat16):
        module(x)
    matrices = [each for each in kept if each.ndim == 3 and len(each) == len(x) and each.shape[2] in (4, 6)]
    assert len(matrices) == 3  # reduce, the gates, expand
    for each in matrices:
        assert each.untyped_storage().nbytes() <= each.numel() // len(x) * each.itemsize


def test_a_layer_of_one_16_bit_type_runs_under_autocast_to_the_other():
    with torch.autocast("cpu", torch.bfloat16):
        assert layer("float16")(tensor(image("float16"))).dtype is torch.bfloat16


def test_hooks_on_a_projection_run_and_change_no_result():
    module, x, seen = layer(), tensor(image()), []
    wanted = module(x)
    for name in ("reduce", "logits", "u", "expand"):
        module.get_submodule(name).register_forward_hook(lambda *call, name=name: seen.append(name))
    torch.testing.assert_close(module(x), wanted, rtol=1e-6, atol=1e-6)
    assert seen == ["reduce", "logits", "u", "expand"]


def test_it_is_pruned_and_parametrized_like_any_module():
    from torch.nn.utils import parametrizations, prune

    module, x = layer(), tensor(image())
    prune.l1_unstructured(module.lam, "weight", amount=0.5)
    parametrizations.weight_norm(module.expand)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        module(x).square().sum().backward()
        optimizer.step()
    assert (module.lam.weight == 0).sum() == module.lam.weight.numel() // 2
    shapes = [value.shape for value in layer().compact_parameters()]
    assert [value.shape for value in module.compact_parameters()] == shapes


# --- parameters -------------------------------------------------------------------------------------------------------


def test_the_state_dict_is_as_documented():
    module = CompactPropagation(6, 4, groups=2, directions=ALL_DIRECTIONS[:3])
    assert {name: tuple(value.shape) for name, value in module.state_dict().items()} == {
        "merge": (3,),
        "reduce.weight": (4, 6, 1, 1),
        "reduce.bias": (4,),
        "logits.weight": (3 * 2 * 3, 4, 1, 1),
        "logits.bias": (3 * 2 * 3,),
        "lam.weight": (3 * 4, 4, 1, 1),
        "lam.bias": (3 * 4,),
        "u.weight": (3 * 4, 4, 1, 1),
        "u.bias": (3 * 4,),
        "expand.weight": (6, 4, 1, 1),
        "expand.bias": (6,),
    }
    assert [name for name, _ in module.named_buffers()] == []


def test_a_saved_state_dict_gives_the_same_layer():
    module, file, x = layer(), io.BytesIO(), tensor(image())
    torch.save(module.state_dict(), file)
    file.seek(0)
    other = CompactPropagation(SHAPE[1], 4)
    other.load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(other(x), module(x))


@pytest.mark.parametrize("dtype", DTYPES)
def test_parameters_of_the_array_functions_go_in_and_come_out(dtype):
    parameters = gspn2_cupy.compact_parameters(6, 4, groups=2, dtype=dtype, seed=3)
    module = CompactPropagation(6, 4, groups=2, dtype=getattr(torch, dtype))
    module.load_compact_parameters(parameters)
    for back, array in zip(arrays_of(module), parameters, strict=True):
        assert_same_bits(back, array)
    other = CompactPropagation(6, 4, groups=2, dtype=torch.float64)
    other.load_compact_parameters(module.compact_parameters())
    for back, array in zip(arrays_of(other), parameters, strict=True):
        assert_same_bits(back, array.astype("float64"))
    assert all(parameter.requires_grad for parameter in module.parameters())
    shared = module.compact_parameters()
    with torch.no_grad():
        module.merge.fill_(7)
    assert not shared.merge.requires_grad
    assert (shared.merge == 7).all(), "not copied"


def test_strided_and_read_only_parameters_are_copied_in():
    parameters = gspn2_cupy.compact_parameters(6, 4)
    flipped = CompactParameters(*(np.flip(np.flip(array).copy()) for array in parameters))
    for array in flipped:
        array.flags.writeable = False
    module = CompactPropagation(6, 4)
    module.load_compact_parameters(flipped)
    for back, array in zip(arrays_of(module), parameters, strict=True):
        assert_same_bits(back, array)


def test_initial_values_are_distributed_as_those_of_the_array_functions():
    torch.manual_seed(0)
    module = CompactPropagation(300, 48, groups=3, dtype=torch.float64)
    parameters = gspn2_cupy.compact_parameters(300, 48, groups=3, dtype="float64")
    for name, ours, theirs in zip(CompactParameters._fields, arrays_of(module), parameters, strict=True):
        if name == "merge" or name.endswith("bias"):
            assert_same_bits(ours, theirs)
            continue
        assert not np.array_equal(ours, theirs)
        quantiles = np.linspace(0, 1, 11)
        reach = np.abs(theirs).max()
        assert np.abs(np.quantile(ours, quantiles) - np.quantile(theirs, quantiles)).max() < 0.15 * reach, name
    before = module.reduce.weight.detach().clone()
    module.reset_parameters()
    assert not torch.equal(module.reduce.weight, before)


def test_device_and_type_are_those_asked_for():
    module = CompactPropagation(6, 4, device="meta", dtype=torch.bfloat16)
    assert {(each.device.type, each.dtype) for each in module.parameters()} == {("meta", torch.bfloat16)}
    assert module(torch.empty(SHAPE, device="meta", dtype=torch.bfloat16)).shape == SHAPE


# --- words ------------------------------------------------------------------------------------------------------------


def test_it_shows_what_it_was_made_with():
    module = CompactPropagation(6, 4, groups=2, directions=["left_to_right"], chunk=8, normalize="softmax")
    assert module.extra_repr() == "6, 4, groups=2, directions=('left_to_right',), chunk=8, normalize='softmax'"


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((0, 4), ValueError, "channels must be an integer of at least 1; got 0"),
        ((6, 4.0), TypeError, "proxy_channels must be an integer of at least 1; got 4.0"),
        ((6, 4, {"groups": 3}), ValueError, "groups must divide proxy_channels=4; got 3"),
        ((6, 4, {"chunk": 0}), ValueError, "chunk must be None or an integer of at least 1; got 0"),
        ((6, 4, {"normalize": None}), TypeError, 'normalize must be one of "sigmoid", "softmax"; got None'),
        (
            (6, 4, {"directions": ()}),
            ValueError,
            "directions must hold one to four directions, each at most once; got ()",
        ),
    ],
)
def test_wrong_arguments_are_named(arguments, error, message):
    *sizes, options = arguments if isinstance(arguments[-1], dict) else (*arguments, {})
    with pytest.raises(error) as caught:
        CompactPropagation(*sizes, **options)
    assert str(caught.value) == message


def test_wrong_images_are_named():
    module = layer()
    for shape in ((2, 5, 5, 7), (6, 5, 7)):
        with pytest.raises(ValueError, match="x must have shape") as caught:
            module(torch.zeros(shape))
        assert str(caught.value) == f"x must have shape (B, 6, H, W); got {shape}"
    with pytest.raises(TypeError, match=r"^x must be a PyTorch tensor; got numpy.ndarray$"):
        module(image())


def test_wrong_parameters_are_named():
    module, parameters = layer(), gspn2_cupy.compact_parameters(6, 4)
    with pytest.raises(TypeError, match=r"^parameters must be gspn2_cupy.CompactParameters; got dict$"):
        module.load_compact_parameters({})
    with pytest.raises(ValueError, match=r"^parameters.reduce_weight must have shape \(4, 6\); got \(2, 6\)$"):
        module.load_compact_parameters(gspn2_cupy.compact_parameters(6, 2))
    with pytest.raises(ValueError, match=r"^parameters.logits_bias must have shape \(4, 1, 3\); got \(4,\)$"):
        module.load_compact_parameters(parameters._replace(logits_bias=parameters.merge))


def test_an_image_of_another_type_is_refused():
    with pytest.raises(TypeError, match=r"^x must be float32, like the layer's parameters; got float64$"):
        layer()(tensor(image("float64")))
    with torch.autocast("cpu", torch.bfloat16):
        assert layer()(tensor(image())).dtype is torch.bfloat16


def test_another_layers_parameters_are_copied_in():
    source, target = layer(seed=1), layer(seed=2)
    shapes = [parameter.shape for parameter in source.compact_parameters()]
    own = (source.get_parameter(name).view(shape) for name, shape in zip(STATE_NAMES.values(), shapes, strict=True))
    target.load_compact_parameters(CompactParameters(*own))
    assert all(torch.equal(a, b) for a, b in zip(source.parameters(), target.parameters(), strict=True))
