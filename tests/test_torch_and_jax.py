"""What is particular to arrays of PyTorch and of JAX: what is refused and how, strides, devices, jit."""

import subprocess
import sys

import numpy as np
import pytest
from helpers import DTYPES, assert_same_bits, make_scan

import gspn2_cupy
from gspn2_cupy import ALL_DIRECTIONS, _arrays


@pytest.fixture
def torch():
    return pytest.importorskip("torch", reason="PyTorch is not installed")


@pytest.fixture
def jax():
    return pytest.importorskip("jax", reason="JAX is not installed")


def refused(logits):
    """How logits that cannot be adopted are refused."""
    with pytest.raises((TypeError, ValueError, ImportError)) as caught:
        gspn2_cupy.normalize_weights(logits, direction="left_to_right")
    return f"{type(caught.value).__name__}: {caught.value}"


LOGITS = np.zeros((1, 1, 3, 2, 2), np.float32)
DATA_TYPES = "float32, float16, bfloat16 or float64"


# --- PyTorch ----------------------------------------------------------------------------------------------------------


def test_torch_refuses_what_requires_grad(torch):
    logits = torch.zeros(1, 1, 3, 2, 2, requires_grad=True)
    message = (
        "TypeError: logits must not require grad: use gspn2_cupy.torch, whose functions are differentiable, "
        "or pass its .detach(); got a PyTorch tensor that requires grad"
    )
    assert refused(logits) == message
    assert refused(torch.nn.Parameter(torch.zeros(1, 1, 3, 2, 2))) == message
    with torch.no_grad():
        assert refused(logits) == message
    frozen = torch.nn.Parameter(torch.zeros(1, 1, 3, 2, 2), requires_grad=False)
    assert type(gspn2_cupy.normalize_weights(frozen, direction="left_to_right")) is torch.Tensor


def test_torch_refuses_what_has_no_plain_memory(torch):
    dense = torch.zeros(1, 1, 3, 2, 2)
    assert refused(dense.to_sparse()) == (
        "TypeError: logits must be a dense tensor: pass its .to_dense(); got a PyTorch tensor of torch.sparse_coo"
    )
    assert refused(dense.to("meta")) == (
        "ValueError: logits must lie on the CPU or on a CUDA device; got a PyTorch tensor on meta"
    )
    negated = torch.zeros(1, 1, 3, 2, 2, dtype=torch.complex64).conj().imag
    assert negated.is_neg()
    assert refused(negated) == (
        "TypeError: logits must be stored as it reads: pass its .resolve_neg() or .resolve_conj(); "
        "got a PyTorch tensor with its negative or conjugate bit set"
    )


def test_torch_refuses_other_data_types(torch):
    zeros = torch.zeros(1, 1, 3, 2, 2)
    for dtype in ("int64", "bool", "complex64", "float8_e4m3fn"):
        assert refused(zeros.to(getattr(torch, dtype))) == f"TypeError: logits must be {DATA_TYPES}; got {dtype}"


def test_torch_bfloat16_without_ml_dtypes(torch, monkeypatch):
    monkeypatch.setitem(sys.modules, "ml_dtypes", None)
    _arrays.bfloat16.cache_clear()
    assert refused(torch.zeros(1, 1, 3, 2, 2, dtype=torch.bfloat16)) == (
        "ImportError: logits must not be bfloat16 unless ml_dtypes is installed (pip install ml_dtypes); got bfloat16"
    )


def test_torch_strides_pass_without_a_copy(torch):
    scan = make_scan((2, 4, 5, 6), "left_to_right", groups=2)
    expected = gspn2_cupy.line_scan(scan.x, scan.weight, direction="left_to_right")
    weight = torch.from_numpy(scan.weight)
    for x in (
        torch.from_numpy(scan.x).to(memory_format=torch.channels_last),
        torch.from_numpy(np.ascontiguousarray(scan.x.swapaxes(2, 3))).transpose(2, 3),
    ):
        assert not x.is_contiguous()
        assert_same_bits(gspn2_cupy.line_scan(x, weight, direction="left_to_right").numpy(), expected)
        out = torch.full_like(x, torch.nan)  # with the strides of x
        assert gspn2_cupy.line_scan(x, weight, direction="left_to_right", out=out) is out
        assert_same_bits(out.contiguous().numpy(), expected)


@pytest.mark.parametrize("direction", ALL_DIRECTIONS)
def test_torch_takes_results_of_every_direction(torch, direction):
    """PyTorch takes no negative strides, so no result may come as a flipped view."""
    scan = make_scan((2, 4, 5, 6), direction, groups=2, h0=True, dh_last=True)
    arrays = {"x": scan.x, "weight": scan.weight, "lam": scan.lam, "h0": scan.h0}
    tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
    upstream = {"dh": scan.dh, "dh_last": scan.dh_last}
    for results, expected in (
        (
            gspn2_cupy.line_scan(**tensors, direction=direction, return_last=True),
            gspn2_cupy.line_scan(**arrays, direction=direction, return_last=True),
        ),
        (
            gspn2_cupy.line_scan_backward(
                **tensors, **{name: torch.from_numpy(array) for name, array in upstream.items()}, direction=direction
            ),
            gspn2_cupy.line_scan_backward(**arrays, **upstream, direction=direction),
        ),
    ):
        for result, wanted in zip(results, expected, strict=True):
            assert_same_bits(result.numpy(), wanted)


def test_torch_out_may_not_be_an_input_nor_repeat_itself(torch):
    x, weight = torch.zeros(1, 2, 3, 4), torch.zeros(1, 1, 3, 3, 4)
    options = {"direction": "left_to_right"}
    with pytest.raises(ValueError, match=r"^out must not overlap an input; got memory shared with x$"):
        gspn2_cupy.line_scan(x, weight, **options, out=x)
    with pytest.raises(
        ValueError, match=r"^out must hold each element in a place of its own; got strides \(48, 0, 16, 4\)$"
    ):
        gspn2_cupy.line_scan(x, weight, **options, out=torch.zeros(1, 1, 3, 4).expand(1, 2, 3, 4))


def test_torch_data_types_have_their_names(torch):
    for name in DTYPES:
        assert _arrays.data_type(getattr(torch, name)).name == name
    assert _arrays.data_type(torch.int32) is None


# --- JAX --------------------------------------------------------------------------------------------------------------


def test_jax_refuses_what_holds_no_data(jax):
    seen = []
    jax.jit(lambda logits: seen.append(refused(logits)))(LOGITS)
    assert seen == [
        "TypeError: logits must be a concrete array: inside jit and grad use the functions of gspn2_cupy.jax; "
        "got a JAX tracer"
    ]
    deleted = jax.numpy.asarray(LOGITS)
    deleted.delete()
    assert refused(deleted) == "TypeError: logits must hold data; got a JAX array that was deleted or donated"


def test_jax_jit_calls_through_pure_callback(jax):
    scan = make_scan((2, 4, 5, 6), "left_to_right", groups=2)

    @jax.jit
    def jitted(x, weight):
        def run(x, weight):
            return gspn2_cupy.line_scan(x, weight, direction="left_to_right")

        return jax.pure_callback(run, jax.ShapeDtypeStruct(x.shape, x.dtype), x, weight)

    expected = gspn2_cupy.line_scan(scan.x, scan.weight, direction="left_to_right")
    assert_same_bits(np.asarray(jitted(scan.x, scan.weight)), expected)


def test_jax_keeps_the_device_and_refuses_arrays_of_several(jax):
    code = """if True:
        import jax, numpy, gspn2_cupy
        jax.config.update("jax_num_cpu_devices", 2)
        first, second = jax.devices("cpu")
        logits = numpy.zeros((2, 1, 3, 2, 2), "float32")
        result = gspn2_cupy.normalize_weights(jax.device_put(logits, second), direction="left_to_right")
        print(result.devices() == {second})
        mesh = jax.sharding.Mesh(numpy.array([first, second]), "b")
        sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("b"))
        try:
            gspn2_cupy.normalize_weights(jax.device_put(logits, sharding), direction="left_to_right")
        except ValueError as error:
            print(error)
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.splitlines() == ["True", "logits must lie on one device; got a JAX array on 2 devices"], (
        done.stderr
    )
