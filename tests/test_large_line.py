"""Long scans stay within the contract's tolerances in every data type, forward and backward.

Too long for the loops: the truth is the NumPy reference on the same inputs upcast to float64, itself tested against the
loops at small sizes.
"""

import numpy as np
import pytest
from helpers import DTYPES, assert_close, image_shape, make_scan, make_unit, state_type

import gspn2_cupy
from gspn2_cupy import reference

every_dtype = pytest.mark.parametrize("dtype", DTYPES)

# 4096 lines: the contract's longest. Kernels, 80 times slower when emulated, get 600: 19 tiles of 32 lines, not whole.
LENGTHS = {"reference": 4096, "emulator": 600, "cuda": 4096}


def upcast(*arrays):
    return [None if a is None else a.astype(np.float64) for a in arrays]


@pytest.mark.functions("line_scan", "line_scan_backward")
@every_dtype
@pytest.mark.parametrize("direction", ["left_to_right", "bottom_to_top"])  # one of each axis and of each sense
@pytest.mark.parametrize("chunk", [None, 250])  # 250 divides neither length
def test_line_scan(backend, dtype, direction, chunk):
    shape = image_shape(1, 2, (LENGTHS[backend.name], 3), direction)
    case = make_scan(shape, direction, dtype, h0=True, dh_last=True)
    inputs = (case.x, case.weight, case.lam)
    h, h_last = backend(gspn2_cupy.line_scan, *inputs, **case.options(chunk), return_last=True)
    (h0, dh_last) = upcast(case.h0, case.dh_last)
    options = {"direction": direction, "chunk": chunk, "h0": h0}
    h_truth, last_truth = reference.line_scan(*upcast(*inputs), **options, return_last=True)
    assert_close(h, h_truth, case.x.dtype)
    assert_close(h_last, last_truth, state_type(case.x.dtype))

    arrays = (case.dh, *inputs, h)
    grads = backend(gspn2_cupy.line_scan_backward, *arrays, **case.options(chunk), dh_last=case.dh_last)
    truth = reference.line_scan_backward(*upcast(*arrays), **options, dh_last=dh_last)
    for name, actual, expected in zip(grads._fields, grads, truth, strict=True):
        assert_close(actual, expected, state_type(case.x.dtype) if name == "h0" else case.x.dtype)


@pytest.mark.functions("propagate", "propagate_backward")
@every_dtype
@pytest.mark.parametrize("normalize", ["sigmoid", "softmax"])
def test_propagate(backend, dtype, normalize):
    directions = ("right_to_left", "top_to_bottom")
    unit = make_unit((1, 2, 3, LENGTHS[backend.name]), directions, dtype, normalize=normalize)
    inputs = (unit.x, unit.weight, unit.lam, unit.u)
    options = unit.options()
    truth_options = {**options, "merge": unit.merge.astype(np.float64)}
    y, states = backend(gspn2_cupy.propagate, *inputs, **options, return_states=True)
    y_truth, states_truth = reference.propagate(*upcast(*inputs), **truth_options, return_states=True)
    assert_close(y, y_truth, unit.x.dtype)
    assert_close(states, states_truth, unit.x.dtype)

    arrays = (unit.dy, *inputs)
    for saved in (None, states):
        grads = backend(gspn2_cupy.propagate_backward, *arrays, **options, states=saved)
        saved_truth = None if saved is None else saved.astype(np.float64)
        truth = reference.propagate_backward(*upcast(*arrays), **truth_options, states=saved_truth)
        hidden = states_truth if saved is None else saved_truth
        size = np.sum(np.abs(unit.dy.astype(np.float64)[:, None] * unit.u.astype(np.float64) * hidden), (0, 2, 3, 4))
        for name, actual, expected in zip(grads._fields, grads, truth, strict=True):
            assert_close(actual, expected, unit.x.dtype, scale=size if name == "merge" else None)
