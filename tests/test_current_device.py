"""A call leaves the device current that it found, whatever a library does in it: without a GPU.

JAX makes a device current in the calling thread when it works on it, or frees memory of it, and leaves it so. That this
holds on two devices is shown by test_gpu_devices.py.
"""

import sys
from contextlib import contextmanager
from functools import partial
from types import SimpleNamespace

import ml_dtypes
import numpy as np
import pytest
from conftest import device_kept

from gspn2_cupy import _arrays, _streams


class Machine:
    """Stands for CuPy and JAX on a machine of two devices, with the first one current."""

    def __init__(self):
        self.current, self.worked = 0, []
        self.event = SimpleNamespace(done=False, record=lambda: None)
        runtime = SimpleNamespace(CUDARuntimeError=RuntimeError, streamIsCapturing=lambda stream: False)
        self.cupy = SimpleNamespace(
            from_dlpack=self.of_jax("cupy.from_dlpack"),
            cuda=SimpleNamespace(
                runtime=runtime,
                Device=self.device,
                Event=lambda disable_timing: self.event,
                get_current_stream=lambda: SimpleNamespace(ptr=0),
            ),
        )
        names = ("from_dlpack", "array", "zeros")
        self.jax = SimpleNamespace(
            config=SimpleNamespace(jax_enable_x64=True),
            numpy=SimpleNamespace(bfloat16="bfloat16", **{name: self.of_jax(name) for name in names}),
            lax=SimpleNamespace(bitcast_convert_type=self.of_jax("bitcast_convert_type")),
        )

    @contextmanager
    def device(self, index):
        before, self.current = self.current, index
        yield
        self.current = before

    def of_jax(self, name):
        def work(*_, **options):
            self.worked.append(name)
            self.current = 1
            return name

        return work

    def array(self, values):
        """A CuPy array on the second device."""
        return SimpleNamespace(
            device=self.device(1), dtype=values.dtype, shape=values.shape, size=values.size, view=lambda dtype: None
        )


@pytest.fixture
def machine(monkeypatch):
    machine = Machine()
    monkeypatch.setitem(sys.modules, "cupy", machine.cupy)
    monkeypatch.setitem(sys.modules, "jax", machine.jax)
    monkeypatch.setattr(_streams, "_retained", [])
    return machine


@pytest.mark.parametrize(
    ("values", "last"),
    [
        (np.ones(3, np.float32), "array"),
        (np.ones(3, ml_dtypes.bfloat16), "bitcast_convert_type"),
        (np.ones(0, np.float32), "zeros"),
    ],
    ids=["float32", "bfloat16", "empty"],
)
def test_results_for_jax(machine, values, last):
    like = SimpleNamespace(devices=lambda: {"cuda:1"})
    assert _arrays.JAX.restore(machine.array(values), like) == last
    assert last in machine.worked
    assert machine.current == 0


def test_arrays_that_are_let_go(machine):
    class Owner:
        def __del__(self):
            machine.of_jax("free")()

    _streams.retain(Owner(), 1)
    assert machine.worked == []
    machine.event.done = True
    _streams.retain("of the next call", 0)
    assert machine.worked == ["free"]
    assert machine.current == 0


def test_a_test_that_leaves_another_device_is_caught():
    device = SimpleNamespace(current=1)
    runtime = SimpleNamespace(setDevice=partial(setattr, device, "current"), getDevice=lambda: device.current)
    with device_kept(runtime):
        assert device.current == 0
    with pytest.raises(AssertionError, match="left device 1 current"), device_kept(runtime):
        device.current = 1
    assert device.current == 0
