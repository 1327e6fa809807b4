"""Every wrong argument of a public function raises before anything runs, with a message that says what to do.

Each case is a call that is right but for one argument, and the whole text a user then reads. That the cases are
complete is itself a test: every `raise` of `_checks` must be reached by them.
"""

import ast
import contextlib
import inspect
import sys
from functools import partial
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from stand_ins import CudaArray

import gspn2_cupy
from gspn2_cupy import _arrays, _checks

ARRAY = "be an array of NumPy, CuPy, PyTorch, JAX or another library with __dlpack__"
DIRECTIONS = '"left_to_right", "right_to_left", "top_to_bottom", "bottom_to_top"'
DATA_TYPES = "float32, float16, bfloat16 or float64"
GROUPS = "with G dividing C=6"
OVERLAP = "out must not overlap an input; got memory shared with"
CHUNK = "chunk must be None or an integer of at least 1"
NAMES = f"directions must be a tuple or list of names among {DIRECTIONS}"
ONCE = "directions must hold one to four directions, each at most once"
SCAN_NEEDS = 'needs must be None or a tuple, list or set of names among "x", "weight", "lam", "h0"'
UNIT_NEEDS = 'needs must be None or a tuple, list or set of names among "x", "weight", "lam", "u", "merge"'
COMPACT = "for P=4 proxy channels and D=4 directions"
COMPACT_NEEDS = 'needs must be None or a tuple, list or set of names among "x", "parameters"'


def zeros(*shape, dtype="float32"):
    return np.zeros(shape, dtype)


# Right arguments of every function: B, C, H, W = 2, 6, 8, 9, two groups, float32.
X, WEIGHT, LINE = zeros(2, 6, 8, 9), zeros(2, 2, 3, 8, 9), zeros(2, 6, 8)
EACH, WEIGHTS = zeros(2, 4, 6, 8, 9), zeros(2, 4, 2, 3, 8, 9)
PARAMETERS = gspn2_cupy.compact_parameters(6, 4, groups=2)
RIGHT = {
    "normalize_weights": {"logits": WEIGHT, "direction": "left_to_right"},
    "normalize_weights_backward": {"dweight": WEIGHT, "logits": WEIGHT, "direction": "left_to_right"},
    "line_scan": {"x": X, "weight": WEIGHT, "lam": X, "direction": "left_to_right", "h0": LINE},
    "line_scan_backward": {
        "dh": X,
        "x": X,
        "weight": WEIGHT,
        "lam": X,
        "h": X,
        "direction": "left_to_right",
        "h0": LINE,
        "dh_last": LINE,
    },
    "propagate": {"x": X, "weight": WEIGHTS, "lam": EACH, "u": EACH, "merge": zeros(4)},
    "propagate_backward": {
        "dy": X,
        "x": X,
        "weight": WEIGHTS,
        "lam": EACH,
        "u": EACH,
        "merge": zeros(4),
        "states": EACH,
    },
    "affinity_matrix": {"weight": zeros(2, 4, 2, 3, 2, 2), "lam": zeros(2, 4, 6, 2, 2), "u": zeros(2, 4, 6, 2, 2)},
    "warmup": {"shape": (2, 6, 8, 9)},
    "compact_parameters": {"channels": 6, "proxy_channels": 4},
    "compact_propagate": {"x": X, "parameters": PARAMETERS},
    "compact_propagate_backward": {"dy": X, "x": X, "parameters": PARAMETERS},
}


def read_only(array):
    array.flags.writeable = False
    return array


def case(function, message, **changes):
    return pytest.param(function, changes, message, id=f"{function}: {message}")


normalize = partial(case, "normalize_weights")
normalize_backward = partial(case, "normalize_weights_backward")
scan = partial(case, "line_scan")
scan_backward = partial(case, "line_scan_backward")
unit = partial(case, "propagate")
unit_backward = partial(case, "propagate_backward")
affinity = partial(case, "affinity_matrix")
warmup = partial(case, "warmup")
parameters = partial(case, "compact_parameters")
compact = partial(case, "compact_propagate")
compact_backward = partial(case, "compact_propagate_backward")


def given(**arrays):
    """The compact unit's parameters, one or more of them wrong."""
    return PARAMETERS._replace(**arrays)


MASKED = np.ma.masked_array(X, X > 0)
BUFFER = zeros(2, 12, 8, 9)

CASES = [
    # not an array
    scan(f"TypeError: x must {ARRAY}; got None", x=None),
    scan(f"TypeError: x must {ARRAY}; got list", x=[[1.0]]),
    scan(f"TypeError: x must {ARRAY}; got float", x=1.0),
    scan(f"TypeError: x must {ARRAY}; got numpy.float32", x=np.float32(1)),
    scan(f"TypeError: weight must {ARRAY}; got None", weight=None),
    scan(f"TypeError: lam must {ARRAY}; got float", lam=1.0),
    scan(f"TypeError: h0 must {ARRAY}; got int", h0=0),
    scan(f"TypeError: out must {ARRAY}; got list", out=[]),
    scan_backward(f"TypeError: dh must {ARRAY}; got None", dh=None),
    unit(f"TypeError: merge must {ARRAY}; got list", merge=[1.0] * 4),
    unit_backward(f"TypeError: states must {ARRAY}; got str", states="no"),
    scan(f"TypeError: x must be a plain array, not of a subclass; got {type(MASKED).__module__}.MaskedArray", x=MASKED),
    # data types
    scan(f"TypeError: x must be {DATA_TYPES}; got int64", x=zeros(2, 6, 8, 9, dtype="int64")),
    scan(f"TypeError: x must be {DATA_TYPES}; got bool", x=zeros(2, 6, 8, 9, dtype=bool)),
    scan(f"TypeError: x must be {DATA_TYPES}; got complex128", x=zeros(2, 6, 8, 9, dtype=complex)),
    scan(f"TypeError: x must be {DATA_TYPES}; got object", x=zeros(2, 6, 8, 9, dtype=object)),
    scan(f"TypeError: x must be {DATA_TYPES}; got >f4", x=zeros(2, 6, 8, 9, dtype=">f4")),
    scan(f"TypeError: x must be {DATA_TYPES}; got float8_e4m3fn", x=zeros(2, 6, 8, 9, dtype=ml_dtypes.float8_e4m3fn)),
    normalize(f"TypeError: logits must be {DATA_TYPES}; got int64", logits=zeros(2, 3, 8, 9, dtype="int64")),
    scan("TypeError: weight must be float32 like x; got float64", weight=WEIGHT.astype(float)),
    scan("TypeError: lam must be float32 like x; got float16", lam=X.astype("float16")),
    scan("TypeError: out must be float32 like x; got float64", out=X.astype("float64")),
    scan("TypeError: h0 must be float32, the state's type of float32; got int64", h0=LINE.astype("int64")),
    scan(
        "TypeError: h0 must be float32, the state's type of float16; got float16",
        x=X.astype("f2"),
        weight=WEIGHT.astype("f2"),
        lam=None,
        h0=LINE.astype("f2"),
    ),
    scan_backward(
        "TypeError: dh_last must be float32, the state's type of float32; got float64", dh_last=LINE.astype(float)
    ),
    scan_backward("TypeError: h must be float32 like x; got float64", h=X.astype(float)),
    normalize_backward("TypeError: dweight must be float32 like logits; got float64", dweight=WEIGHT.astype(float)),
    unit("TypeError: merge must be float32 like x; got float64", merge=zeros(4, dtype=float)),
    affinity("TypeError: u must be float32 like weight; got float64", lam=None, u=zeros(1, dtype=float)),
    # libraries and devices
    scan("TypeError: weight must be an array of NumPy like x; got one of CuPy", weight=CudaArray(2, 2, 3, 8, 9)),
    scan(
        "TypeError: lam must be an array of CuPy like x; got one of NumPy",
        x=CudaArray(2, 6, 8, 9),
        weight=CudaArray(2, 2, 3, 8, 9),
    ),
    scan(
        "ValueError: weight must lie on cuda:0 like x; got cuda:1",
        x=CudaArray(2, 6, 8, 9),
        weight=CudaArray(2, 2, 3, 8, 9, device=1),
    ),
    # shapes
    scan("ValueError: x must have shape (B, C, H, W); got (6, 8, 9)", x=zeros(6, 8, 9)),
    scan("ValueError: x must have shape (B, C, H, W); got ()", x=zeros()),
    scan(
        f"ValueError: weight must have shape (2, G, 3, 8, 9) {GROUPS}; got (2, 4, 3, 8, 9)", weight=zeros(2, 4, 3, 8, 9)
    ),
    scan(
        f"ValueError: weight must have shape (2, G, 3, 8, 9) {GROUPS}; got (2, 0, 3, 8, 9)", weight=zeros(2, 0, 3, 8, 9)
    ),
    scan(
        f"ValueError: weight must have shape (2, G, 3, 8, 9) {GROUPS}; got (2, 2, 3, 9, 8)", weight=zeros(2, 2, 3, 9, 8)
    ),
    scan(f"ValueError: weight must have shape (2, G, 3, 8, 9) {GROUPS}; got (3, 8, 9)", weight=zeros(3, 8, 9)),
    scan("ValueError: lam must have shape (2, 6, 8, 9); got (2, 1, 8, 9)", lam=zeros(2, 1, 8, 9)),
    scan("ValueError: out must have shape (2, 6, 8, 9); got (2, 6, 8)", out=zeros(2, 6, 8)),
    scan('ValueError: h0 must have shape (2, 6, 8) for direction "left_to_right"; got (2, 6, 9)', h0=zeros(2, 6, 9)),
    scan(
        'ValueError: h0 must have shape (2, 6, 9) for direction "bottom_to_top"; got (2, 6, 8)',
        direction="bottom_to_top",
    ),
    scan_backward("ValueError: dh must have shape (2, 6, 8, 9); got (2, 6, 9, 8)", dh=zeros(2, 6, 9, 8)),
    scan_backward("ValueError: h must have shape (2, 6, 8, 9); got (1,)", h=zeros(1)),
    scan_backward(
        'ValueError: dh_last must have shape (2, 6, 8) for direction "left_to_right"; got (2, 6)', dh_last=zeros(2, 6)
    ),
    normalize("ValueError: logits must have shape (..., 3, H, W); got (3, 9)", logits=zeros(3, 9)),
    normalize("ValueError: logits must have shape (..., 3, H, W); got (2, 8, 9)", logits=zeros(2, 8, 9)),
    normalize_backward("ValueError: dweight must have shape (2, 2, 3, 8, 9); got (3, 8, 9)", dweight=zeros(3, 8, 9)),
    unit("ValueError: x must have shape (B, C, H, W); got (2, 6, 72)", x=zeros(2, 6, 72)),
    unit(
        f"ValueError: weight must have shape (2, 4, G, 3, 8, 9) for D=4 directions {GROUPS}; got (2, 2, 3, 8, 9)",
        weight=WEIGHT,
    ),
    unit(
        f"ValueError: weight must have shape (2, 1, G, 3, 8, 9) for D=1 directions {GROUPS}; got (2, 4, 2, 3, 8, 9)",
        directions=("left_to_right",),
    ),
    unit("ValueError: lam must have shape (2, 4, 6, 8, 9) for D=4 directions; got (2, 6, 8, 9)", lam=X),
    unit("ValueError: u must have shape (2, 4, 6, 8, 9) for D=4 directions; got (2, 6, 8, 9)", u=X),
    unit("ValueError: merge must have shape (4,) for D=4 directions; got (2,)", merge=zeros(2)),
    unit("ValueError: out must have shape (2, 6, 8, 9); got (2, 4, 6, 8, 9)", out=EACH),
    unit_backward("ValueError: dy must have shape (2, 6, 8, 9); got (2, 4, 6, 8, 9)", dy=EACH),
    unit_backward("ValueError: states must have shape (2, 4, 6, 8, 9) for D=4 directions; got (2, 6, 8, 9)", states=X),
    affinity(
        "ValueError: weight must have shape (B, 4, G, 3, H, W) for D=4 directions; got (2, 2, 3, 8, 9)", weight=WEIGHT
    ),
    affinity(
        "ValueError: lam must have shape (2, 4, C, 2, 2) for D=4 directions with G=2 dividing C; got (2, 4, 5, 2, 2)",
        lam=zeros(2, 4, 5, 2, 2),
    ),
    affinity(
        "ValueError: u must have shape (2, 4, 6, 2, 2) for D=4 directions with G=2 dividing C; got (2, 4, 4, 2, 2)",
        u=zeros(2, 4, 4, 2, 2),
    ),
    affinity(
        "ValueError: u must have shape (2, 4, C, 2, 2) for D=4 directions with G=2 dividing C; got (4, 2, 2)",
        lam=None,
        u=zeros(4, 2, 2),
    ),
    affinity("ValueError: merge must have shape (4,) for D=4 directions; got (3,)", merge=zeros(3)),
    # the memory of out
    scan("ValueError: out must be writable; got a read-only array", out=read_only(zeros(2, 6, 8, 9))),
    scan(f"ValueError: {OVERLAP} x", out=X),
    scan(f"ValueError: {OVERLAP} x", out=X[..., ::-1]),
    scan(f"ValueError: {OVERLAP} lam", lam=BUFFER[:, :6], out=BUFFER[:, 5:11]),
    scan(f"ValueError: {OVERLAP} h0", h0=BUFFER[:, :6, :, 3], out=BUFFER[:, :6]),
    scan(
        "ValueError: out must hold each element in a place of its own; got strides (0, 4, 0, 0)",
        out=np.lib.stride_tricks.as_strided(zeros(6), (2, 6, 8, 9), (0, 4, 0, 0)),
    ),
    unit(f"ValueError: {OVERLAP} lam", out=EACH[:, 2], u=None),
    unit(f"ValueError: {OVERLAP} merge", merge=BUFFER.ravel()[-4:], out=BUFFER[:, 6:]),
    # options
    scan(f'ValueError: direction must be one of {DIRECTIONS}; got "up"', direction="up"),
    scan(f"TypeError: direction must be one of {DIRECTIONS}; got None", direction=None),
    scan(f"TypeError: direction must be one of {DIRECTIONS}; got 0", direction=0),
    scan(f"TypeError: direction must be one of {DIRECTIONS}; got numpy.ndarray", direction=X),
    scan(f"TypeError: direction must be one of {DIRECTIONS}; got ('left_to_right',)", direction=("left_to_right",)),
    normalize(f'ValueError: direction must be one of {DIRECTIONS}; got "Left_to_right"', direction="Left_to_right"),
    scan(f"ValueError: {CHUNK}; got 0", chunk=0),
    scan(f"ValueError: {CHUNK}; got -3", chunk=-3),
    scan(f"TypeError: {CHUNK}; got 1.0", chunk=1.0),
    scan(f"TypeError: {CHUNK}; got True", chunk=True),
    scan(f'TypeError: {CHUNK}; got "4"', chunk="4"),
    scan(f"TypeError: {CHUNK}; got np.float64(4.0)", chunk=np.float64(4)),
    scan(f"TypeError: {CHUNK}; got numpy.ndarray", chunk=np.ones(2)),
    unit(f"ValueError: {CHUNK}; got 0", chunk=0),
    affinity(f"TypeError: {CHUNK}; got 2.5", chunk=2.5),
    scan("TypeError: return_last must be True or False; got 1", return_last=1),
    unit("TypeError: return_states must be True or False; got None", return_states=None),
    unit(f'TypeError: {NAMES}; got "left_to_right"', directions="left_to_right"),
    unit(f"TypeError: {NAMES}; got {{'left_to_right'}}", directions={"left_to_right"}),
    unit(f"TypeError: {NAMES}; got None", directions=None),
    unit(f"ValueError: {ONCE}; got ()", directions=()),
    unit(f"ValueError: {ONCE}; got ['top_to_bottom', 'top_to_bottom']", directions=["top_to_bottom"] * 2),
    unit(f'ValueError: directions[1] must be one of {DIRECTIONS}; got "up"', directions=("top_to_bottom", "up")),
    unit(f"TypeError: directions[0] must be one of {DIRECTIONS}; got 0", directions=(0,)),
    normalize('ValueError: method must be one of "sigmoid", "softmax"; got "relu"', method="relu"),
    normalize('TypeError: method must be one of "sigmoid", "softmax"; got None', method=None),
    unit('ValueError: normalize must be None or one of "sigmoid", "softmax"; got "relu"', normalize="relu"),
    unit('TypeError: normalize must be None or one of "sigmoid", "softmax"; got True', normalize=True),
    scan_backward(f'TypeError: {SCAN_NEEDS}; got "x"', needs="x"),
    scan_backward(f"TypeError: {SCAN_NEEDS}; got True", needs=True),
    scan_backward(f"ValueError: {SCAN_NEEDS}; got ('x', 'u')", needs=("x", "u")),
    unit_backward(f"ValueError: {UNIT_NEEDS}; got [['x']]", needs=[["x"]]),
    # warmup
    warmup("TypeError: shape must be a tuple or list (B, C, H, W); got 64", shape=64),
    warmup("ValueError: shape must be four extents (B, C, H, W); got (6, 8, 9)", shape=(6, 8, 9)),
    warmup("ValueError: shape[2] must be an integer of at least 0; got -8", shape=(2, 6, -8, 9)),
    warmup("TypeError: shape[1] must be an integer of at least 0; got 6.0", shape=(2, 6.0, 8, 9)),
    warmup(f'TypeError: dtype must be {DATA_TYPES}; got "int32"', dtype="int32"),
    warmup(f'TypeError: dtype must be {DATA_TYPES}; got "half a float"', dtype="half a float"),
    warmup(f"TypeError: dtype must be {DATA_TYPES}; got None", dtype=None),
    warmup("ValueError: groups must divide C=6; got 4", groups=4),
    warmup("ValueError: groups must divide C=6; got 0", groups=0),
    warmup('TypeError: groups must be an integer of at least 0; got "6"', groups="6"),
    warmup("TypeError: lam must be True or False; got numpy.ndarray", lam=X),
    warmup("TypeError: u must be True or False; got None", u=None),
    warmup("TypeError: backward must be True or False; got 1", backward=1),
    warmup("TypeError: progress must be True or False; got 0", progress=0),
    warmup(f"ValueError: {CHUNK}; got 0", chunk=0),
    warmup('ValueError: normalize must be None or one of "sigmoid", "softmax"; got "tanh"', normalize="tanh"),
    warmup(f'TypeError: {NAMES}; got "all"', directions="all"),
    # the compact unit
    parameters("ValueError: channels must be an integer of at least 1; got 0", channels=0),
    parameters("TypeError: proxy_channels must be an integer of at least 1; got 2.0", proxy_channels=2.0),
    parameters("ValueError: groups must divide proxy_channels=4; got 3", groups=3),
    parameters("ValueError: groups must be an integer of at least 1; got 0", groups=0),
    parameters(f"ValueError: {ONCE}; got ()", directions=()),
    parameters(f'TypeError: dtype must be {DATA_TYPES}; got "int8"', dtype="int8"),
    parameters("ValueError: seed must be an integer of at least 0; got -1", seed=-1),
    parameters("TypeError: seed must be an integer of at least 0; got None", seed=None),
    compact("TypeError: parameters must be gspn2_cupy.CompactParameters; got dict", parameters={}),
    compact("TypeError: parameters must be gspn2_cupy.CompactParameters; got tuple", parameters=tuple(PARAMETERS)),
    compact(f"TypeError: x must {ARRAY}; got None", x=None),
    compact(f"TypeError: parameters.u_bias must {ARRAY}; got None", parameters=given(u_bias=None)),
    compact("ValueError: x must have shape (B, C, H, W); got (6, 8, 9)", x=zeros(6, 8, 9)),
    compact(
        "ValueError: parameters.reduce_weight must have shape (P, 8) with a column for each channel of x; got (4, 6)",
        x=zeros(2, 8, 8, 9),
    ),
    compact(
        "ValueError: parameters.reduce_weight must have shape (P, 6) with a column for each channel of x; got ()",
        parameters=given(reduce_weight=zeros()),
    ),
    compact(
        f"ValueError: parameters.reduce_bias must have shape (4,) {COMPACT}; got (6,)",
        parameters=given(reduce_bias=zeros(6)),
    ),
    compact(
        f"ValueError: parameters.logits_weight must have shape (4, G, 3, 4) {COMPACT} with G dividing P; "
        "got (4, 3, 3, 4)",
        parameters=given(logits_weight=zeros(4, 3, 3, 4)),
    ),
    compact(
        f"ValueError: parameters.logits_weight must have shape (4, G, 3, 4) {COMPACT} with G dividing P; got (24, 4)",
        parameters=given(logits_weight=zeros(24, 4)),
    ),
    compact(
        "ValueError: parameters.logits_weight must have shape (1, G, 3, 4) for P=4 proxy channels and D=1 directions "
        "with G dividing P; got (4, 2, 3, 4)",
        directions=("left_to_right",),
    ),
    compact(
        f"ValueError: parameters.logits_bias must have shape (4, 2, 3) {COMPACT}; got (4, 1, 3)",
        parameters=given(logits_bias=zeros(4, 1, 3)),
    ),
    compact(
        f"ValueError: parameters.lam_weight must have shape (4, 4, 4) {COMPACT}; got (16, 4)",
        parameters=given(lam_weight=zeros(16, 4)),
    ),
    compact(f"ValueError: parameters.merge must have shape (4,) {COMPACT}; got (1,)", parameters=given(merge=zeros(1))),
    compact(
        f"ValueError: parameters.expand_weight must have shape (6, 4) {COMPACT}; got (4, 6)",
        parameters=given(expand_weight=zeros(4, 6)),
    ),
    compact(
        "TypeError: parameters.merge must be float32 like x; got float64", parameters=given(merge=zeros(4, dtype=float))
    ),
    compact("TypeError: parameters.reduce_weight must be float16 like x; got float32", x=X.astype("float16")),
    compact(
        "TypeError: parameters.expand_bias must be an array of NumPy like x; got one of CuPy",
        parameters=given(expand_bias=CudaArray(6)),
    ),
    compact('TypeError: normalize must be one of "sigmoid", "softmax"; got None', normalize=None),
    compact('ValueError: normalize must be one of "sigmoid", "softmax"; got "relu"', normalize="relu"),
    compact(f"ValueError: {CHUNK}; got 0", chunk=0),
    compact(f'TypeError: {NAMES}; got "left_to_right"', directions="left_to_right"),
    compact_backward("ValueError: dy must have shape (2, 6, 8, 9); got (2, 4, 8, 9)", dy=zeros(2, 4, 8, 9)),
    compact_backward("TypeError: dy must be float32 like x; got float64", dy=X.astype(float)),
    compact_backward(f"ValueError: {COMPACT_NEEDS}; got ('merge',)", needs=("merge",)),
    compact_backward("TypeError: parameters must be gspn2_cupy.CompactParameters; got None", parameters=None),
]


def call(function, changes):
    arguments = RIGHT[function] | changes
    if function == "warmup":  # what it does after its checks needs a GPU
        bound = inspect.signature(gspn2_cupy.warmup).bind(**arguments)
        bound.apply_defaults()
        return _checks.warmup(*bound.args, **bound.kwargs)
    return getattr(gspn2_cupy, function)(**arguments)


def said(error):
    return f"{type(error).__name__}: {error}"


@pytest.fixture
def no_ml_dtypes(monkeypatch):
    monkeypatch.setitem(sys.modules, "ml_dtypes", None)
    _arrays.bfloat16.cache_clear()
    yield
    _arrays.bfloat16.cache_clear()


@pytest.fixture
def immutable(monkeypatch):
    """An array of a library whose arrays cannot be written to, such as JAX."""
    stone = type("Stone", (), {"__module__": "quarry"})
    library = _arrays.Library("Quarry", lambda _: (X, _arrays.CPU), lambda array, _: array, mutable=False)
    monkeypatch.setitem(_arrays._KNOWN, ("quarry", "Stone"), library)
    return stone()


@pytest.mark.parametrize("function", RIGHT)
def test_the_call_that_each_case_changes_is_right(function):
    call(function, {})


@pytest.mark.parametrize(("function", "changes", "message"), CASES)
def test_message(function, changes, message):
    for _ in range(2):  # a refused call is not remembered as checked
        with pytest.raises((TypeError, ValueError)) as caught:
            call(function, changes)
        assert said(caught.value) == message


def test_bfloat16_without_ml_dtypes(no_ml_dtypes):
    with pytest.raises(ImportError) as caught:
        call("warmup", {"dtype": "bfloat16"})
    assert said(caught.value) == (
        "ImportError: dtype must not be bfloat16 unless ml_dtypes is installed (pip install ml_dtypes); got bfloat16"
    )


def test_out_of_an_immutable_library(immutable):
    with pytest.raises(TypeError) as caught:
        call("line_scan", {"out": immutable})
    assert said(caught.value) == "TypeError: out must be of a library with mutable arrays; got one of Quarry"


def test_an_equal_chunk_that_was_right_does_not_excuse_a_wrong_one():
    call("line_scan", {"chunk": 1})
    for equal in (True, 1.0):
        with pytest.raises(TypeError, match="chunk must be None or an integer"):
            call("line_scan", {"chunk": equal})


def test_every_raise_is_reached(no_ml_dtypes, immutable):
    """The cases are complete: a new check without a case fails here."""
    paths = {str(path) for path in Path(_checks.__file__).parent.glob("*.py")}
    raises = {
        tuple((path, line) for line in range(node.lineno, node.end_lineno + 1))
        for path in paths
        for node in ast.walk(ast.parse(Path(path).read_text(encoding="utf-8")))
        if isinstance(node, ast.Raise)
    }
    reached = set()

    def trace(frame, event, _):
        if frame.f_code.co_filename in paths:
            reached.add((frame.f_code.co_filename, frame.f_lineno))
            return trace
        return None

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        for parameters in [*CASES, warmup("", dtype="bfloat16"), scan("", out=immutable)]:
            with contextlib.suppress(TypeError, ValueError, ImportError):
                call(*parameters.values[:2])
    finally:
        sys.settrace(before)
    assert len(raises) > 20
    assert [lines[0] for lines in raises if reached.isdisjoint(lines)] == []
