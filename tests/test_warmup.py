"""warmup: compiles all that calls will launch, launches nothing, and says what it does."""

import re
import sys

import numpy as np
import pytest
from conftest import NO_GPU
from emulator import LIMITS, emulated, require
from helpers import DTYPES, HORIZONTAL, make_scan, make_unit

import gspn2_cupy
from gspn2_cupy import ALL_DIRECTIONS, LineScanGrads, PropagateGrads, _launch

SHAPE = (2, 4, 5, 6)
TILES = (2, 4, 16, 24)  # rows of whole vectors of 16 bytes


@pytest.fixture
def device():
    require()
    with emulated() as device:
        yield device


class Idle:
    """A device whose kernels are neither built nor run."""

    def __init__(self, prepared, launched):
        self.limits, self.prepared, self.launched = LIMITS, prepared, launched

    def compile(self, spec):
        return IdleKernel(spec, self)

    def empty(self, shape, dtype):
        return np.zeros(shape, dtype)

    zeros = empty


class IdleKernel:
    def __init__(self, spec, device):
        self.spec, self.device = spec, device

    def prepare(self, shared_bytes, cooperative=False):
        self.device.prepared.add((self.spec, cooperative))

    def __call__(self, grid, block, shared_bytes, args, cooperative=False):
        self.device.launched.add((self.spec, cooperative))


def entries(device):
    return {spec.entry for spec in device._kernels}


def call_everything(shape, dtype, *, groups, directions, lam, u, normalize, chunk):
    """All that `warmup` with these options prepares for, and what its options leave open: merge, states, needs, h0."""
    for direction in directions:
        for h0 in (False, True):
            scan = make_scan(shape, direction, dtype, groups=groups, lam=lam, h0=h0, dh_last=h0)
            arrays, options = (scan.x, scan.weight, scan.lam), scan.options(chunk)
            h, _ = gspn2_cupy.line_scan(*arrays, **options, return_last=True)
            for needs in (None, *((name,) for name in LineScanGrads._fields)):
                for given in (None, h):
                    gspn2_cupy.line_scan_backward(scan.dh, *arrays, given, **options, dh_last=scan.dh_last, needs=needs)
        if normalize is not None:
            gspn2_cupy.normalize_weights(scan.weight, direction=direction, method=normalize)
            gspn2_cupy.normalize_weights_backward(scan.weight, scan.weight, direction=direction, method=normalize)
    for merge in (False, True):
        unit = make_unit(shape, directions, dtype, groups=groups, lam=lam, u=u, merge=merge, normalize=normalize)
        arrays, options = (unit.x, unit.weight, unit.lam, unit.u), unit.options(chunk)
        gspn2_cupy.propagate(*arrays, **options)
        _, states = gspn2_cupy.propagate(*arrays, **options, return_states=True)
        pairs = [("x", "u"), ("x", "merge"), ("lam", "u"), ("weight", "merge"), ("x", "weight")]
        for needs in (None, *((name,) for name in PropagateGrads._fields), *pairs):
            for given in (None, states):
                gspn2_cupy.propagate_backward(unit.dy, *arrays, **options, states=given, needs=needs)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("shape", "options"),
    [
        (
            SHAPE,
            {"groups": 1, "directions": ALL_DIRECTIONS, "lam": True, "u": True, "normalize": "sigmoid", "chunk": None},
        ),
        (
            SHAPE,
            {"groups": 4, "directions": ("bottom_to_top",), "lam": False, "u": False, "normalize": None, "chunk": 2},
        ),
        (
            SHAPE,
            {"groups": 2, "directions": HORIZONTAL, "lam": True, "u": False, "normalize": "softmax", "chunk": None},
        ),
        (TILES, {"groups": 2, "directions": ALL_DIRECTIONS, "lam": True, "u": False, "normalize": None, "chunk": None}),
    ],
    ids=["everything", "one plain direction", "horizontal", "whole tiles"],
)
def test_calls_compile_nothing_more(dtype, shape, options):
    prepared, launched = set(), set()
    with _launch.use(Idle(prepared, launched)):
        gspn2_cupy.warmup(shape, dtype, **options, progress=False)
        assert prepared
        assert not launched
        call_everything(shape, dtype, **options)
    assert launched
    assert launched <= prepared


def test_only_what_is_asked_for(device):
    gspn2_cupy.warmup(SHAPE, directions=["left_to_right"], backward=False, progress=False)
    assert entries(device) == {"line_scan_slices", "merge"}
    gspn2_cupy.warmup(SHAPE, directions=["left_to_right"], normalize="softmax", backward=False, progress=False)
    assert entries(device) == {"line_scan_slices", "merge", "normalize"}
    assert all(dict(spec.defines).get("METHOD") != "Sigmoid" for spec in device._kernels)


def test_says_what_it_compiles(device, capsys):
    gspn2_cupy.warmup(SHAPE)
    captured = capsys.readouterr()
    lines = captured.err.splitlines()
    assert captured.out == ""
    for line in lines:
        assert re.fullmatch(r"gspn2_cupy compiles \w+<[^>]+> \d+\.\d\d s", line)
    assert len(lines) == len(set(lines)) == len(device._kernels)
    gspn2_cupy.warmup(SHAPE, progress=False)
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("shape", [(0, 4, 5, 6), (2, 0, 5, 6), (2, 4, 0, 6), (2, 4, 5, 0)])
def test_empty_images_launch_nothing(device, shape):
    gspn2_cupy.warmup(shape)
    assert not device._kernels


def test_takes_no_memory_for_the_arrays(device):
    # over 8 TB in each array of several directions: far beyond what a host has
    gspn2_cupy.warmup((64, 512, 8192, 8192), "float32", normalize="sigmoid", progress=False)
    assert {"line_scan_tiles", "line_scan_gradients", "normalize"} <= entries(device)
    assert {dict(spec.defines).get("ADJOINT") for spec in device._kernels if spec.entry == "line_scan_tiles"} == {
        "0",
        "1",
    }


def test_its_arrays_refuse_to_be_written():
    from gspn2_cupy._warmup import array_without_memory

    array = array_without_memory((2, 3, 4), np.float16)
    assert array.flags.c_contiguous
    assert array.strides == np.empty(array.shape, array.dtype).strides
    with pytest.raises(ValueError, match="read-only"):
        array[...] = 0


def test_without_cupy(monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", None)  # makes `import cupy` raise ImportError
    expected = (
        'warmup needs a CUDA device and CuPy; CuPy is not installed (pip install "gspn2_cupy[cuda13]", or cuda12)'
    )
    with pytest.raises(RuntimeError, match=f"^{re.escape(expected)}$"):
        gspn2_cupy.warmup(SHAPE)


@pytest.mark.skipif(NO_GPU is None, reason="there is a device")
def test_without_a_device():
    pytest.importorskip("cupy")
    with pytest.raises(RuntimeError, match=r"^warmup needs a CUDA device; CUDA says .*cuda\w+:"):
        gspn2_cupy.warmup(SHAPE)


@pytest.mark.gpu
@pytest.mark.skipif(NO_GPU is not None, reason=str(NO_GPU))
@pytest.mark.parametrize("dtype", DTYPES)
def test_on_a_gpu(dtype, capsys):
    gspn2_cupy.warmup(SHAPE, dtype, u=True, normalize="sigmoid")
    assert "gspn2_cupy compiles line_scan_" in capsys.readouterr().err
