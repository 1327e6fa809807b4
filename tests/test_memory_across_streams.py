"""Memory across streams without a GPU: what is said to CUDA when arrays are lent, given back and kept.

That it holds on a GPU is shown by test_gpu_memory.py.
"""

import sys
from contextlib import nullcontext
from types import SimpleNamespace

import ml_dtypes
import numpy as np
import pytest

from gspn2_cupy import _arrays, _streams

OURS, THEIRS = 7, 9  # streams


class Cuda:
    """Stands for CuPy: writes down what is recorded on and waited for by streams."""

    class CUDARuntimeError(Exception):
        pass

    def __init__(self):
        self.log, self.capturing, self.refusing = [], set(), set()
        self.done = set()
        runtime = SimpleNamespace(
            CUDARuntimeError=self.CUDARuntimeError,
            streamIsCapturing=self.is_capturing,
            eventRecord=lambda event, stream: self.log.append(("record", stream)),
            streamWaitEvent=lambda stream, event: self.log.append(("wait", stream)),
        )
        self.cuda = SimpleNamespace(
            runtime=runtime,
            Device=lambda index: nullcontext(),
            Event=self.event,
            get_current_stream=lambda device=0: SimpleNamespace(ptr=OURS),
            UnownedMemory=lambda address, size, owner, device: owner,
            MemoryPointer=lambda memory, offset: memory,
        )

    def is_capturing(self, stream):
        if stream in self.refusing:
            raise self.CUDARuntimeError
        return stream in self.capturing

    def event(self, disable_timing):
        cuda = self

        class Event:
            ptr = 0
            record = staticmethod(lambda: None)
            done = property(lambda self: self in cuda.done)

        return Event()

    def ndarray(self, shape, dtype, memory, strides):
        return SimpleNamespace(memory=memory)


@pytest.fixture
def cuda(monkeypatch):
    cuda = Cuda()
    monkeypatch.setitem(sys.modules, "cupy", cuda)
    monkeypatch.setattr(_streams, "_stranded", [])
    monkeypatch.setattr(_streams, "_retained", [])
    return cuda


def array(size=4):
    data = SimpleNamespace(ptr=4096, device_id=0)
    return SimpleNamespace(
        shape=(size,), dtype=None, strides=(4,), size=size, nbytes=4 * size, data=data, device=nullcontext()
    )


def test_our_stream_waits_for_theirs_when_a_loan_comes_back(cuda):
    lent = _streams.lend(array(), THEIRS)
    assert cuda.log == []
    del lent
    assert cuda.log == [("record", THEIRS), ("wait", OURS)]
    assert _streams._stranded == []


def test_nothing_is_lent_on_one_stream_or_without_memory(cuda, monkeypatch):
    same, empty = array(), array(0)
    assert _streams.lend(same, OURS) is same
    assert _streams.lend(empty, THEIRS) is empty
    monkeypatch.setattr(cuda.cuda, "get_current_stream", lambda device: SimpleNamespace(ptr=0))
    assert _streams.lend(same, 1) is same  # both name the legacy default stream


@pytest.mark.parametrize("streams", [{OURS}, {THEIRS}])
@pytest.mark.parametrize("how", ["capturing", "refusing"])
def test_what_comes_back_during_a_capture_is_kept(cuda, streams, how):
    kept = array()
    lent = _streams.lend(kept, THEIRS)
    getattr(cuda, how).update(streams)
    del lent
    assert cuda.log == []
    assert _streams._stranded == [kept]


def test_what_is_retained_is_let_go_once_it_is_done(cuda):
    for owner in "abc":
        _streams.retain(owner, 0)
    assert [owner for _, owner in _streams._retained] == ["a", "b", "c"]
    cuda.done.add(_streams._retained[1][0])
    _streams.retain("d", 0)
    assert [owner for _, owner in _streams._retained] == ["a", "c", "d"]
    cuda.capturing.add(OURS)
    _streams.retain("e", 0)
    assert _streams._stranded == ["e"]


# --- tensors of PyTorch -----------------------------------------------------------------------------------------------


class Tensor:
    """Stands for a CUDA tensor."""

    device = SimpleNamespace(index=1)
    dtype = np.dtype("float32")
    shape = (2, 3)
    nbytes = 24

    def stride(self):
        return (5, 1)

    def data_ptr(self):
        return 4096


class WithoutMemory(Tensor):
    def data_ptr(self):
        raise RuntimeError("Cannot access data pointer of Tensor that doesn't have storage")


class Subclass(Tensor):
    pass


class Parameter(Tensor):
    dtype = np.dtype(ml_dtypes.bfloat16)


class Integers(Tensor):
    dtype = np.dtype("int32")


@pytest.fixture
def torch(cuda, monkeypatch):
    def ndarray(shape, dtype, memory, strides):
        return SimpleNamespace(shape=shape, dtype=dtype, strides=strides, owner=memory)

    def stream_of(device):
        return SimpleNamespace(ptr=OURS if device == 1 else 0)

    monkeypatch.setattr(cuda, "ndarray", ndarray)
    monkeypatch.setattr(cuda.cuda, "get_current_stream", stream_of)
    monkeypatch.setattr(cuda.cuda, "UnownedMemory", lambda *given: given)
    torch = SimpleNamespace(
        Tensor=Tensor,
        nn=SimpleNamespace(Parameter=Parameter),
        from_dlpack=lambda given: given,
        _C=SimpleNamespace(_cuda_getCurrentRawStream=lambda device: OURS if device == 1 else THEIRS),
    )
    monkeypatch.setitem(sys.modules, "torch", torch)
    return torch


def test_a_tensor_of_our_stream_is_described_as_an_array(torch):
    tensor = Tensor()
    array, device = _arrays._same_memory(tensor)
    assert (array.shape, array.dtype, array.strides, device) == ((2, 3), np.float32, [20, 4], ("cuda", 1))
    assert array.owner == (4096, 24, tensor, 1)  # kept while the array is


def test_a_parameter_of_bfloat16_is(torch):
    array, _ = _arrays._same_memory(Parameter())
    assert (array.dtype, array.strides) == (ml_dtypes.bfloat16, [10, 2])


@pytest.mark.parametrize(("theirs", "asked"), [(OURS, {"stream": -1}), (THEIRS, None)])
def test_a_result_for_pytorch_on_one_stream_asks_for_no_order(torch, theirs, asked):
    torch._C._cuda_getCurrentRawStream = lambda device: theirs
    result = SimpleNamespace(
        data=SimpleNamespace(device_id=1), device=nullcontext(), dtype=np.dtype("float32"), __dlpack__=lambda **how: how
    )
    assert _arrays._restore_torch(result, None) == (result if asked is None else asked)


def test_a_tensor_of_another_stream_is_not(torch):
    torch._C._cuda_getCurrentRawStream = lambda device: THEIRS
    assert _arrays._same_memory(Tensor()) is None


@pytest.mark.parametrize("kind", [WithoutMemory, Subclass, Integers])
def test_an_unusual_tensor_is_not(torch, monkeypatch, kind):
    if kind is WithoutMemory:
        monkeypatch.setattr(torch, "Tensor", WithoutMemory)
    if kind is Integers:
        monkeypatch.setattr(torch, "Tensor", Integers)
    assert _arrays._same_memory(kind()) is None


def test_without_cupy_it_is_not(torch, monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", None)
    assert _arrays._same_memory(Tensor()) is None


def test_the_stream_where_pytorch_has_no_quick_answer(torch):
    torch._C = SimpleNamespace()
    torch.cuda = SimpleNamespace(current_stream=lambda device: SimpleNamespace(cuda_stream=device + 20))
    assert _streams.torch_stream(1) == 21
