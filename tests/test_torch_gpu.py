"""gspn2_cupy.torch on a CUDA device keeps to PyTorch's current stream, device and memory, and the host never waits.

A stream is kept busy by a kernel that sleeps, so whatever runs on another stream, or reuses memory too early, meets
values that are not there yet.
"""

import gc
import importlib.util

import pytest
from helpers import DTYPES, assert_same_bits, make_scan

import gspn2_cupy
from gspn2_cupy import _device

torch = pytest.importorskip("torch", reason="PyTorch is not installed")

from torch_cases import adapter, assert_same, case, loss_and_gradients, network, numpy, run, tensor  # noqa: E402

pytestmark = pytest.mark.gpu

A_WHILE = 200_000_000  # clock cycles that a sleeping kernel takes: about a tenth of a second
FUNCTIONS = ["normalize_weights", "line_scan", "propagate"]


@pytest.fixture(autouse=True)
def cuda():
    """The CUDA device, with nothing left to do on it."""
    if importlib.util.find_spec("cupy") is None:
        pytest.skip("CuPy is not installed")
    if not torch.cuda.is_available():
        pytest.skip("PyTorch sees no CUDA device")
    torch.cuda.synchronize()
    yield torch.device("cuda", torch.cuda.current_device())
    torch.cuda.synchronize()


def on_device(function):
    if not hasattr(_device, function):
        pytest.skip(f"{function} has no kernels yet")


def scan_inputs(device, *, requires_grad=True, shape=(2, 16, 64, 96)):
    scan = make_scan(shape, "left_to_right", groups=2)
    return [tensor(each, device=device, requires_grad=requires_grad) for each in (scan.x, scan.weight, scan.lam)]


def scan_and_gradients(inputs):
    h = adapter.line_scan(*inputs, direction="left_to_right", chunk=40)
    return [h.detach(), *torch.autograd.grad(h, inputs, torch.ones_like(h))]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("function", FUNCTIONS)
def test_results_and_gradients_are_those_of_the_array_functions(cuda, function, dtype):
    """Bitwise those of CuPy's arrays, through the array functions."""
    import cupy

    on_device(function)

    def array(each):
        return None if each is None else cupy.asarray(each)

    for optional in (True, False):
        call = case(function, dtype, optional=optional)
        arrays = {name: array(each) for name, each in call.arrays.items()}
        upstream = {name: array(each) for name, each in call.upstream.items()}
        kwargs = {"return_last": True} if function == "line_scan" else {}
        results = getattr(gspn2_cupy, function)(**arrays, **call.options, **kwargs)
        grads = getattr(gspn2_cupy, f"{function}_backward")(**upstream, **arrays, **call.options)
        grads = {"logits": grads} if function == "normalize_weights" else grads._asdict()
        wanted = [each.get() for each in (results if isinstance(results, tuple) else (results,))]
        actual = run(function, call, device=cuda)
        for result in (*actual[0], *actual[1].values()):
            assert result.device == cuda
        assert_same(actual, (wanted, {name: None if each is None else each.get() for name, each in grads.items()}))


def test_it_runs_on_the_current_stream(cuda):
    inputs = scan_inputs(cuda)
    wanted = [each.clone() for each in scan_and_gradients(inputs)]
    values = [each.detach().clone() for each in inputs]
    for each in inputs:
        each.data.fill_(torch.nan)
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(A_WHILE)
        for each, value in zip(inputs, values, strict=True):
            each.data.copy_(value)  # only now are the inputs there
        results = scan_and_gradients(inputs)
        assert not stream.query()  # the host didn't wait
    torch.cuda.synchronize()
    for result, each in zip(results, wanted, strict=True):
        assert torch.equal(result, each)


def test_results_are_memory_of_pytorch(cuda):
    import cupy

    inputs = scan_inputs(cuda, requires_grad=False)
    adapter.line_scan(*inputs, direction="left_to_right")  # loads the kernels
    pool = cupy.get_default_memory_pool()
    before, cupys = torch.cuda.memory_allocated(), pool.total_bytes()
    h = adapter.line_scan(*inputs, direction="left_to_right")
    assert torch.cuda.memory_allocated() - before == h.untyped_storage().nbytes() == h.numel() * 4
    assert pool.total_bytes() == cupys
    del h
    assert torch.cuda.memory_allocated() == before


def test_a_result_used_on_another_stream_outlives_its_name(cuda):
    """``record_stream`` keeps the memory of a result, as of any other tensor."""
    inputs = scan_inputs(cuda, requires_grad=False)
    wanted = adapter.line_scan(*inputs, direction="left_to_right").clone()
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    h = adapter.line_scan(*inputs, direction="left_to_right")
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        torch.cuda._sleep(A_WHILE)
        used = h * 1
    h.record_stream(stream)
    del h
    others = [torch.full_like(wanted, torch.nan) for _ in range(8)]  # would take the memory if it were free
    torch.cuda.synchronize()
    assert torch.equal(used, wanted)
    del others


def count_wrong(inputs, wanted):
    """How many elements of the results and gradients are not the wanted ones, counted on the device."""
    return sum((result != each).sum() for result, each in zip(scan_and_gradients(inputs), wanted, strict=True))


def test_memory_is_freed_and_reused_under_load(cuda):
    """Calls on several streams, the host far ahead, every result dropped at once: none may see another's memory."""
    streams = [torch.cuda.Stream() for _ in range(3)]
    inputs = [scan_inputs(cuda, shape=(1, 8, 40 + 8 * i, 64)) for i in range(3)]
    wanted = [[each.clone() for each in scan_and_gradients(each)] for each in inputs]
    wrong = [torch.zeros((), dtype=torch.int64, device=cuda) for _ in streams]
    torch.cuda.synchronize()
    gc.collect()  # what earlier tests left in cycles must not go in between
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    for stream in streams:
        with torch.cuda.stream(stream):
            torch.cuda._sleep(A_WHILE)
    for _ in range(60):
        for i, stream in enumerate(streams):
            with torch.cuda.stream(stream):
                wrong[i] += count_wrong(inputs[i], wanted[i])
    torch.cuda.synchronize()
    assert [int(each) for each in wrong] == [0, 0, 0]
    gc.collect()
    assert torch.cuda.memory_allocated() == before
    a_round = sum(each.numel() * 4 for results in wanted for each in results)
    assert torch.cuda.max_memory_allocated() - before < 30 * a_round  # half of what it takes if nothing is reused


def test_cuda_graphs(cuda):
    inputs = scan_inputs(cuda, requires_grad=False)
    scan_and_gradients([each.clone().requires_grad_() for each in inputs])  # compiles outside the capture
    leaves = [each.requires_grad_() for each in inputs]
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        scan_and_gradients(leaves)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = scan_and_gradients(leaves)
    for _ in range(3):
        with torch.no_grad():
            for each in leaves:
                each.mul_(0.5)
        graph.replay()
        torch.cuda.synchronize()
        replayed = [each.clone() for each in results]
        for result, each in zip(replayed, scan_and_gradients(leaves), strict=True):
            assert torch.equal(result, each)


def test_gradients_are_right(cuda):
    scan = make_scan((2, 4, 33, 40), "left_to_right", "float64", groups=2)
    inputs = [tensor(each, device=cuda, requires_grad=True) for each in (scan.x, scan.weight, scan.lam)]
    wanted = gspn2_cupy.line_scan_backward(
        scan.dh, scan.x, scan.weight, scan.lam, direction="left_to_right", chunk=40, needs=("x", "weight", "lam")
    )
    h = adapter.line_scan(*inputs, direction="left_to_right", chunk=40)
    for gradient, each in zip(torch.autograd.grad(h, inputs, tensor(scan.dh, device=cuda)), wanted, strict=False):
        torch.testing.assert_close(gradient.cpu(), tensor(each), rtol=1e-11, atol=1e-11)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # Inductor's own
def test_compiled_is_eager(cuda):
    for function in ("normalize_weights", "propagate"):
        on_device(function)
    torch.compiler.reset()
    compiled = torch.compile(network, fullgraph=True, backend="aot_eager")
    for actual, each in zip(loss_and_gradients(compiled, cuda), loss_and_gradients(network, cuda), strict=True):
        assert torch.equal(actual, each)
    torch.compiler.reset()


def test_empty_tensors(cuda):
    x = torch.zeros(2, 3, 0, 4, device=cuda, requires_grad=True)
    weight = torch.zeros(2, 1, 3, 0, 4, device=cuda, requires_grad=True)
    h, h_last = adapter.line_scan(x, weight, direction="top_to_bottom", return_last=True)
    assert_same_bits(numpy(h_last), numpy(torch.zeros(2, 3, 4)))
    (h.sum() + h_last.sum()).backward()
    assert weight.grad.shape == weight.shape


def test_tensors_of_another_device(cuda):
    if torch.cuda.device_count() < 2:
        pytest.skip("one CUDA device only")
    other = torch.device("cuda", 1 - cuda.index)
    wanted = scan_and_gradients(scan_inputs(cuda))
    for result, each in zip(scan_and_gradients(scan_inputs(other)), wanted, strict=True):
        assert result.device == other
        assert torch.equal(result.cpu(), each.cpu())
