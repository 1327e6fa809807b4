"""gspn2_cupy.jax: the array functions under jit and grad, on the CPU and, under the marker `gpu`, on CUDA devices."""

import importlib.util
import os
import subprocess
import sys
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
from helpers import DTYPES, assert_same_bits, make_scan, make_unit

import gspn2_cupy
from gspn2_cupy import ALL_DIRECTIONS, _launch

os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # leave other tests some of a GPU's memory

jax = pytest.importorskip("jax", reason="JAX is not installed")

import gspn2_cupy.jax as adapter  # noqa: E402
from gspn2_cupy import _jax_operations  # noqa: E402

FUNCTIONS = ("normalize_weights", "line_scan", "propagate")
every_function = pytest.mark.parametrize("function", FUNCTIONS)


def why_no_gpu():
    if importlib.util.find_spec("cupy") is None:
        return "CuPy is not installed"
    import cupy

    try:
        with cupy.cuda.Device():  # and back to it: JAX leaves the last device current as it starts
            jax.devices("cuda")
    except RuntimeError as error:
        return f"JAX sees no CUDA device: {error}"
    return None


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request):
    if request.param == "cuda" and (reason := why_no_gpu()):
        pytest.skip(reason)
    device = jax.devices(request.param)[0]
    with jax.enable_x64(True), jax.default_device(device):
        yield device


def case(function, dtype="float32", *, optional=True, directions=("bottom_to_top", "right_to_left")):
    """A call of a function: its arrays in the order of their gradients, its options, and upstream gradients."""
    shape = (2, 4, 6, 7)  # neither side is a multiple of the chunk
    if function == "normalize_weights":
        scan = make_scan(shape, directions[0], dtype, groups=2)
        return SimpleNamespace(
            arrays={"logits": scan.weight}, options={"direction": directions[0]}, upstream={"dweight": scan.weight}
        )
    if function == "line_scan":
        scan = make_scan(shape, directions[0], dtype, groups=2, lam=optional, h0=optional, dh_last=True)
        return SimpleNamespace(
            arrays={"x": scan.x, "weight": scan.weight, "lam": scan.lam, "h0": scan.h0},
            options={"direction": directions[0], "chunk": 4},
            upstream={"dh": scan.dh, "dh_last": scan.dh_last},
        )
    unit = make_unit(shape, directions, dtype, groups=2, lam=optional, u=optional, merge=optional, normalize="sigmoid")
    return SimpleNamespace(
        arrays={"x": unit.x, "weight": unit.weight, "lam": unit.lam, "u": unit.u, "merge": unit.merge},
        options={"directions": directions, "normalize": "sigmoid", "chunk": 4},
        upstream={"dy": unit.dy},
    )


def on(device, arrays):
    return {name: None if array is None else jax.device_put(array, device) for name, array in arrays.items()}


def bound(function, call, **options):
    """The adapter's function of its arrays alone."""
    if function == "line_scan":
        options.setdefault("return_last", True)
    return partial(lambda inputs: getattr(adapter, function)(**inputs, **call.options, **options))


def expected(function, call, device, *, states=False):
    """Results and gradients of the array functions on the device's arrays."""
    kwargs = {"line_scan": {"return_last": True}, "propagate": {"return_states": True}}.get(function, {})
    arrays, upstream = on(device, call.arrays), on(device, call.upstream)
    results = getattr(gspn2_cupy, function)(**arrays, **call.options, **kwargs)
    results = results if isinstance(results, tuple) else (results,)
    saved = {"line_scan": {"h": results[0]}, "propagate": {"states": results[-1]}}[function] if states else {}
    grads = getattr(gspn2_cupy, f"{function}_backward")(**upstream, **arrays, **call.options, **saved)
    grads = {"logits": grads} if function == "normalize_weights" else grads._asdict()
    return results[: len(call.upstream)], grads


def check(function, call, device, **options):
    """Results and all gradients, under jit, are bitwise those of the array functions."""
    wanted, wanted_grads = expected(function, call, device, states=options.get("save_states", False))
    results, pull = jax.vjp(jax.jit(bound(function, call, **options)), on(device, call.arrays))
    upstream = tuple(on(device, call.upstream).values())
    (grads,) = jax.jit(pull)(upstream if isinstance(results, tuple) else upstream[0])
    for result, array in zip(results if isinstance(results, tuple) else (results,), wanted, strict=True):
        assert result.devices() == {device}
        assert_same_bits(np.asarray(result), np.asarray(array))
    for name, gradient in grads.items():
        if gradient is None:
            assert wanted_grads[name] is None
        else:
            assert_same_bits(np.asarray(gradient), np.asarray(wanted_grads[name]))


@pytest.mark.parametrize("dtype", DTYPES)
@every_function
def test_results_and_gradients_are_those_of_the_array_functions(device, function, dtype):
    for optional in (True, False):
        check(function, case(function, dtype, optional=optional), device)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("function", ["line_scan", "propagate"])
def test_saved_states_are_what_the_backward_gets(device, function, dtype):
    check(function, case(function, dtype), device, save_states=True)


@pytest.mark.parametrize("directions", [("left_to_right",), ("top_to_bottom", "right_to_left"), ALL_DIRECTIONS])
def test_directions(device, directions):
    for function in FUNCTIONS:
        check(function, case(function, directions=directions), device)


@every_function
def test_grad_under_jit_and_without(device, function):
    """jax.grad of a network around the function, with and without jit, is the chain rule on the explicit backward."""
    call = case(function, "float64")
    inputs = on(device, call.arrays)

    def loss(inputs):
        results = bound(function, call)(jax.tree.map(jax.numpy.tanh, inputs))
        return sum((each**2).sum() for each in jax.tree.leaves(results))

    squashed = SimpleNamespace(
        arrays={name: np.tanh(array) for name, array in call.arrays.items()}, options=call.options, upstream={}
    )
    results, _ = expected(function, SimpleNamespace(**{**vars(squashed), "upstream": call.upstream}), device)
    squashed.upstream = {name: 2 * np.asarray(each) for name, each in zip(call.upstream, results, strict=True)}
    _, grads = expected(function, squashed, device)
    for grad in (jax.jit(jax.grad(loss)), jax.grad(loss)):
        for name, gradient in grad(inputs).items():
            wanted = np.asarray(grads[name]) * (1 - squashed.arrays[name] ** 2)
            np.testing.assert_allclose(np.asarray(gradient), wanted, rtol=1e-12, atol=1e-12)


def test_a_gradient_of_the_last_line_alone(device):
    call = case("line_scan")
    grad = jax.jit(jax.grad(lambda inputs: bound("line_scan", call)(inputs)[1].sum()))(on(device, call.arrays))
    call.upstream = {"dh": np.zeros_like(call.upstream["dh"]), "dh_last": np.ones_like(call.upstream["dh_last"])}
    for name, wanted in expected("line_scan", call, device)[1].items():
        assert_same_bits(np.asarray(grad[name]), np.asarray(wanted))


@pytest.mark.parametrize("function", ["line_scan", "propagate"])
def test_only_the_gradients_asked_for_are_computed(function, monkeypatch):
    asked = []

    def recording(*args, needs, **kwargs):
        asked.append(needs)
        return original(*args, needs=needs, **kwargs)

    original = getattr(gspn2_cupy, f"{function}_backward")
    monkeypatch.setattr(_jax_operations.ops, f"{function}_backward", recording)
    call = case(function)
    inputs = on(jax.devices("cpu")[0], call.arrays)
    for name in call.arrays:
        others = {other: array for other, array in inputs.items() if other != name}

        def loss(array, name=name, others=others):
            return sum(each.sum() for each in jax.tree.leaves(bound(function, call)({**others, name: array})))

        jax.jit(jax.grad(loss))(inputs[name]).block_until_ready()
        jax.jit(loss)(inputs[name]).block_until_ready()
    assert asked == [(name,) for name in call.arrays]


def test_empty_arrays(device):
    x, weight = jax.numpy.zeros((2, 3, 0, 4)), jax.numpy.zeros((2, 1, 3, 0, 4))
    h, h_last = jax.jit(partial(adapter.line_scan, direction="top_to_bottom", return_last=True))(x, weight)
    assert h.shape == x.shape
    assert np.array_equal(h_last, np.zeros((2, 3, 4)))
    grad = jax.grad(lambda x: adapter.line_scan(x, weight, direction="top_to_bottom").sum())(x)
    assert grad.shape == x.shape


def test_inside_lax_map_and_checkpoint(device):
    scan = make_scan((3, 4, 6, 7), "left_to_right", "float64", groups=2)
    x, weight = jax.device_put((scan.x, scan.weight), device)

    def whole(x, weight):
        return adapter.line_scan(x, weight, direction="left_to_right")

    @jax.checkpoint
    def mapped(x, weight):
        return jax.lax.map(lambda each: whole(each[0][None], each[1][None])[0], (x, weight))

    def gradients(function):
        return jax.jit(jax.grad(lambda *given: (function(*given) ** 2).sum(), argnums=(0, 1)))(x, weight)

    for actual, wanted in zip(gradients(mapped), gradients(whole), strict=True):
        assert_same_bits(np.asarray(actual), np.asarray(wanted))


def test_a_call_is_compiled_once():
    call = case("line_scan")
    inputs = on(jax.devices("cpu")[0], call.arrays)
    bound("line_scan", call)(inputs)
    before = _jax_operations._operation.cache_info()
    bound("line_scan", call)(inputs)
    after = _jax_operations._operation.cache_info()
    assert (after.misses, after.hits) == (before.misses, before.hits + 1)


# --- what is refused --------------------------------------------------------------------------------------------------


@every_function
def test_vmap_is_refused(function):
    call = case(function)
    inputs = jax.tree.map(lambda array: array[None], on(jax.devices("cpu")[0], call.arrays))
    with pytest.raises(NotImplementedError, match=r"^gspn2_cupy.jax has no vmap: put the mapped axis into the batch"):
        jax.vmap(bound(function, call))(inputs)


@every_function
def test_second_derivatives_are_refused(function):
    call = case(function)
    inputs = on(jax.devices("cpu")[0], call.arrays)

    def loss(inputs):
        return sum((each**2).sum() for each in jax.tree.leaves(bound(function, call)(inputs)))

    def slope(inputs):
        return sum(each.sum() for each in jax.tree.leaves(jax.grad(loss)(inputs)))

    for derivative in (jax.grad(slope), jax.jit(jax.grad(slope)), jax.hessian(loss)):
        with pytest.raises(NotImplementedError, match=r"^gspn2_cupy.jax has first derivatives in reverse mode only"):
            derivative(inputs)


def test_forward_mode_is_refused_by_jax():
    call = case("line_scan")
    inputs = on(jax.devices("cpu")[0], call.arrays)
    with pytest.raises(TypeError, match="forward-mode"):
        jax.jvp(bound("line_scan", call), (inputs,), (inputs,))


@pytest.mark.parametrize(
    "changes",
    [
        {"weight": np.zeros((2, 4, 3, 6, 6), np.float32)},
        {"weight": np.zeros((2, 2, 3, 6, 7), np.float16)},
        {"x": np.zeros((2, 4, 6, 7), np.int32)},
        {"direction": "upwards"},
        {"chunk": 0},
    ],
)
def test_errors_are_those_of_the_array_functions_and_come_while_tracing(changes):
    call = case("line_scan")
    given = {**call.arrays, **call.options, **changes}
    with pytest.raises((TypeError, ValueError)) as wanted:
        gspn2_cupy.line_scan(**given)
    arrays = {name: value for name, value in given.items() if isinstance(value, np.ndarray)}
    options = {name: value for name, value in given.items() if name not in arrays}
    with pytest.raises(type(wanted.value)) as caught:
        jax.eval_shape(lambda arrays: adapter.line_scan(**arrays, **options), on(jax.devices("cpu")[0], arrays))
    assert str(caught.value) == str(wanted.value)


def test_only_jax_arrays_are_taken():
    call = case("line_scan")
    with pytest.raises(TypeError, match=r"^x must be a JAX array; got numpy.ndarray$"):
        adapter.line_scan(**call.arrays, **call.options)
    with pytest.raises(TypeError, match=r"^save_states must be True or False; got 2$"):
        bound("line_scan", call, save_states=2)(on(jax.devices("cpu")[0], call.arrays))


def test_several_devices_are_refused_but_inside_shard_map():
    code = """if True:
        import jax, numpy, gspn2_cupy.jax
        from functools import partial
        jax.config.update("jax_num_cpu_devices", 2)
        devices = numpy.array(jax.devices("cpu"))
        mesh, spec, everywhere = jax.sharding.Mesh(devices, "b"), jax.P("b"), jax.P()
        random = numpy.random.default_rng(0)
        plain = random.standard_normal((2, 3, 4, 5), "float32"), random.random((2, 1, 3, 4, 5), "float32") / 3
        sharded = jax.device_put(plain, jax.sharding.NamedSharding(mesh, spec))
        scan = partial(gspn2_cupy.jax.line_scan, direction="left_to_right")
        try:
            scan(*sharded)
        except NotImplementedError as error:
            print(error)
        try:
            jax.jit(scan)(*sharded)
        except jax.errors.JaxRuntimeError as error:
            print("gspn2_cupy.jax runs on one device: call it inside jax.shard_map" in str(error))
        mapped = jax.shard_map(scan, mesh=mesh, in_specs=(spec, spec), out_specs=spec)
        one = jax.device_put(plain, devices[0])
        print(numpy.array_equal(jax.jit(mapped)(*sharded), scan(*one)))
        shared = jax.shard_map(scan, mesh=mesh, in_specs=(spec, everywhere), out_specs=spec)

        def gradient(scan, x, weight):  # of a weight that all devices share: the sum of what each of them finds
            return jax.jit(jax.grad(lambda weight: scan(x, weight).sum()))(weight)

        whole = gradient(lambda x, w: scan(x, jax.numpy.broadcast_to(w, (2, *w.shape[1:]))), one[0], one[1][:1])
        parts = gradient(shared, sharded[0], jax.device_put(plain[1][:1], jax.sharding.NamedSharding(mesh, everywhere)))
        print(numpy.allclose(whole, parts, rtol=1e-6, atol=1e-6))
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.splitlines() == [
        "x must lie on one device; got a JAX array on 2 devices: call gspn2_cupy.jax inside jax.shard_map, where each "
        "device scans images of its own",
        "True",
        "True",
        "True",
    ], done.stderr


# --- the callbacks ----------------------------------------------------------------------------------------------------


@every_function
def test_the_emulated_kernels_serve_the_adapter(function, monkeypatch):
    from emulator import emulated, require

    require()
    with emulated() as emulator:
        monkeypatch.setattr(_launch, "override", lambda: emulator)  # XLA may call from a thread of its own
        check(function, case(function), jax.devices("cpu")[0])
        assert emulator.launches > 0


@every_function
def test_the_gpu_callback_fills_the_buffers_it_is_given(function, monkeypatch):
    """The way over buffer_callback, which works on the CPU too, with NumPy in the place of CuPy."""

    def on_buffers(task, *arrays):
        def callback(context, results, *buffers):
            _jax_operations._fill(task, [np.asarray(each) for each in results], [np.asarray(each) for each in buffers])

        return _jax_operations.buffer_callback(callback, task.results)(*arrays)

    monkeypatch.setattr(_jax_operations, "_on_cpu", on_buffers)
    _jax_operations._operation.cache_clear()
    try:
        for optional in (True, False):
            check(function, case(function, optional=optional), jax.devices("cpu")[0])
    finally:
        _jax_operations._operation.cache_clear()


@pytest.mark.gpu
def test_many_calls_in_flight_keep_their_memory():
    """XLA queues call after call while the host runs ahead; no workspace may be reused too early."""
    if reason := why_no_gpu():
        pytest.skip(reason)
    scan = make_scan((2, 16, 64, 96), "left_to_right", groups=2)
    cuda = jax.devices("cuda")[0]
    x, weight, lam = (jax.device_put(each, cuda) for each in (scan.x, scan.weight, scan.lam))

    @jax.jit
    def step(x):
        def loss(x):
            return (adapter.line_scan(x, weight, lam, direction="left_to_right") ** 2).sum()

        return x - 1e-3 * jax.grad(loss)(x)

    first = step(x)
    results = [step(x) for _ in range(50)]
    for result in results:
        assert_same_bits(np.asarray(result), np.asarray(first))
