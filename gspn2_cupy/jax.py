"""The array functions on JAX arrays, under ``jit`` and ``grad``.

``import gspn2_cupy.jax`` where JAX transforms the call. The functions mirror those of :mod:`gspn2_cupy.ops`, where the
equations stand; what they add:

- First derivatives in reverse mode (``jax.custom_vjp``), of those inputs only that are differentiated. Hidden lines are
  recomputed in the backward, unrounded, unless ``save_states=True``.
- On the CPU they run the NumPy reference, through ``jax.pure_callback``; on CUDA devices the CUDA kernels on XLA's
  stream and buffers, through ``jax.experimental.buffer_callback``, without synchronising the host. All results there
  but ``h`` and ``y`` are copied once, into XLA's buffers.
- Arguments are checked when the call is traced, with the errors of the array functions.

What raises ``NotImplementedError``: ``vmap``, second and forward-mode derivatives, and several devices outside
``jax.shard_map``. (Where XLA is the one to find several devices, JAX reports it inside its own ``JaxRuntimeError``;
``jax.jvp`` of the forward is JAX's own ``TypeError``.)
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np

from gspn2_cupy import _checks
from gspn2_cupy._jax_operations import Task, apply, varying_alike
from gspn2_cupy.reference import ALL_DIRECTIONS, HORIZONTAL

__all__ = ["ALL_DIRECTIONS", "line_scan", "normalize_weights", "propagate"]

Array = Any


# --- checking ---------------------------------------------------------------------------------------------------------


def _stand_ins(**arrays: Array) -> dict[str, Any]:
    """Make NumPy arrays of the same shapes and types, without memory: a call is checked on them while it is traced."""
    return {name: _stand_in(name, array) for name, array in arrays.items()}


def _stand_in(name: str, array: Array) -> Any:
    if array is None and name in _checks.OPTIONAL_ARRAYS:
        return None
    if not isinstance(array, jax.Array):
        raise TypeError(f"{name} must be a JAX array; got {type(array).__module__}.{type(array).__name__}")
    if not isinstance(array, jax.core.Tracer) and len(array.devices()) > 1:
        raise NotImplementedError(
            f"{name} must lie on one device; got a JAX array on {len(array.devices())} devices: call gspn2_cupy.jax "
            "inside jax.shard_map, where each device scans images of its own"
        )
    return np.broadcast_to(np.empty((), array.dtype), array.shape)


# --- derivatives ------------------------------------------------------------------------------------------------------


class _Function(NamedTuple):
    """An array function with its options and the kind of its results: what is static in a differentiable call."""

    name: str  # its backward has the name with _backward behind
    inputs: tuple[str, ...]
    upstream: tuple[str, ...]  # what the backward calls the gradients of the results that have one
    saved: str  # what the backward calls the hidden lines; "" if there are none
    options: tuple[tuple[str, Any], ...]
    results: tuple[jax.ShapeDtypeStruct, ...]
    save_states: bool = False
    return_states: bool = False  # hidden lines are a result of their own, the last

    def forward(self, inputs: Sequence[Array | None], *, saving: bool) -> list[Array]:
        """Run it; ``saving`` for a backward that is to find the hidden lines."""
        states = saving and self.return_states
        options = {**dict(self.options), **({"return_states": True} if states else {})}
        if len(self.upstream) > 1:
            options["return_last"] = True
        results = self.results if states or not self.return_states else self.results[:-1]
        names, arrays = _there(dict(zip(self.inputs, inputs, strict=True)))
        task = Task(self.name, names, tuple(options.items()), results, takes_out="x" in names)
        return apply(task, *arrays)

    def backward(self, arrays: dict[str, Array], needs: Collection[str]) -> list[Array]:
        """Run the backward for the gradients of some inputs."""
        names, given = _there(arrays)
        options = self.options if self.inputs == ("logits",) else (*self.options, ("needs", tuple(needs)))
        results = tuple(jax.ShapeDtypeStruct(arrays[name].shape, arrays[name].dtype) for name in needs)
        return apply(Task(f"{self.name}_backward", names, options, results), *given)


def _there(arrays: dict[str, Array]) -> tuple[tuple[str, ...], list[Array]]:
    """Return the names and the values of the arrays that are there."""
    present = {name: array for name, array in arrays.items() if array is not None}
    return tuple(present), list(present.values())


def _call(function: _Function, *inputs: Array | None) -> tuple[Array, ...]:
    """Call a function on its inputs, None where one is absent."""
    results: tuple[Array, ...] = _differentiable(function, *varying_alike(inputs, inputs))
    return results


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _differentiable(function: _Function, *inputs: Array | None) -> tuple[Array, ...]:
    return tuple(function.forward(inputs, saving=False))


def _forward(function: _Function, *inputs: Any) -> Any:
    """Call, and save what the backward needs: inputs, hidden lines if wanted, the names of what is differentiated."""
    values = [None if each is None else each.value for each in inputs]
    saving = function.save_states
    results = function.forward(values, saving=saving)
    states = results.pop() if saving and function.return_states else results[0] if saving else None
    pairs = zip(function.inputs, inputs, strict=True)
    needs = {name: None for name, each in pairs if each is not None and each.perturbed}
    return tuple(results), (values, states, needs)  # a dict's keys are static to JAX, which sorts them


def _backward(function: _Function, saved: Any, upstream: Sequence[Any]) -> tuple[Array, ...]:
    values, states, needs = saved
    needed = tuple(name for name in function.inputs if name in needs)
    zero = jax.custom_derivatives.SymbolicZero
    known = {
        name: None if isinstance(gradient, zero) else gradient
        for name, gradient in zip(function.upstream, upstream, strict=True)
    }
    if all(gradient is None for gradient in known.values()):
        return (None,) * len(values)
    leading = function.upstream[0]
    if known[leading] is None:
        known[leading] = jax.numpy.zeros_like(values[0])
    arrays = {**known, **dict(zip(function.inputs, values, strict=True))}
    if states is not None:
        arrays[function.saved] = states
    gradients = dict(zip(needed, function.backward(arrays, needed), strict=True))
    return tuple(gradients.get(name) for name in function.inputs)


_differentiable.defvjp(_forward, _backward, symbolic_zeros=True)


# --- the public functions ---------------------------------------------------------------------------------------------


def normalize_weights(logits: Array, *, direction: str, method: str = "sigmoid") -> Array:
    """Turn unconstrained logits into row-stochastic weights, as :func:`gspn2_cupy.normalize_weights` does.

    Parameters
    ----------
    logits : jax.Array (..., 3, H, W)
        Unconstrained; usually (B, G, 3, H, W).
    direction : str
        One of ``ALL_DIRECTIONS``.
    method : {"sigmoid", "softmax"}
        GSPN's normalisation, or the exponential one.

    Returns
    -------
    weight : jax.Array like ``logits``

    Raises
    ------
    TypeError, ValueError
        As :func:`gspn2_cupy.normalize_weights` does.

    Examples
    --------
    >>> import jax, gspn2_cupy.jax
    >>> logits = jax.numpy.zeros((1, 1, 3, 2, 2))
    >>> gspn2_cupy.jax.normalize_weights(logits, direction="left_to_right").sum(axis=2)[0, 0]
    Array([[1., 1.],
           [1., 1.]], dtype=float32)
    """
    call = _checks.normalize_weights(**_stand_ins(logits=logits), direction=direction, method=method)
    options = (("direction", call.direction), ("method", call.method))
    results = (jax.ShapeDtypeStruct(logits.shape, logits.dtype),)
    return _call(_Function("normalize_weights", ("logits",), ("dweight",), "", options, results), logits)[0]


def line_scan(
    x: Array,
    weight: Array,
    lam: Array | None = None,
    *,
    direction: str,
    chunk: int | None = None,
    h0: Array | None = None,
    return_last: bool = False,
    save_states: bool = False,
) -> Any:
    """Scan an image line by line in one direction, as :func:`gspn2_cupy.line_scan` does.

    ::

        h[t,i] = w0[t,i]·h[t-1,i-1] + w1[t,i]·h[t-1,i] + w2[t,i]·h[t-1,i+1] + λ[t,i]·x[t,i],    h[-1] = h0 or 0

    Parameters
    ----------
    x : jax.Array (B, C, H, W)
        The signal.
    weight : jax.Array (B, G, 3, H, W)
        G divides C.
    lam : jax.Array (B, C, H, W), optional
        λ; None means 1.
    direction : str
        One of ``ALL_DIRECTIONS``.
    chunk : int, optional
        The scan restarts on every line whose index in scan order is a multiple of ``chunk``. None is the global scan.
    h0 : jax.Array (B, C, H) for horizontal, (B, C, W) for vertical scans, optional
        The line before the first, float32 (float64 for float64).
    return_last : bool
        Also return the last line in scan order, to hand on as ``h0`` of the next piece; gradients flow back through it.
    save_states : bool
        Save ``h``, rounded, for the gradient of ``weight``, which otherwise scans once more.

    Returns
    -------
    h : jax.Array like ``x``
    h_last : jax.Array like ``h0``
        Only with ``return_last=True``.

    Raises
    ------
    TypeError, ValueError
        As :func:`gspn2_cupy.line_scan` does, when the call is traced.

    Examples
    --------
    >>> import jax, gspn2_cupy.jax
    >>> x, weight = jax.numpy.ones((1, 1, 2, 2)), jax.numpy.full((1, 1, 3, 2, 2), 0.5)
    >>> def total(x):
    ...     return gspn2_cupy.jax.line_scan(x, weight, direction="top_to_bottom").sum()
    >>> jax.jit(jax.grad(total))(x)[0, 0]
    Array([[2., 2.],
           [1., 1.]], dtype=float32)

    Source: GSPN-2 (arXiv 2512.07884), section 3; GSPN (arXiv 2501.12381), equation 1.
    """
    call = _checks.line_scan(
        **_stand_ins(x=x, weight=weight, lam=lam, h0=h0),
        direction=direction,
        chunk=chunk,
        out=None,
        return_last=return_last,
    )
    (save_states,) = _checks.options(save_states=save_states)
    batch, channels, height, width = x.shape
    line = (batch, channels, height if call.direction in HORIZONTAL else width)
    results = (jax.ShapeDtypeStruct(x.shape, x.dtype), jax.ShapeDtypeStruct(line, call.dtype.state.numpy_dtype))
    count = 1 + call.return_last
    function = _Function(
        "line_scan",
        ("x", "weight", "lam", "h0"),
        ("dh", "dh_last")[:count],
        "h",
        (("direction", call.direction), ("chunk", call.chunk)),
        results[:count],
        save_states=save_states,
    )
    found = _call(function, x, weight, lam, h0)
    return found if call.return_last else found[0]


def propagate(
    x: Array,
    weight: Array,
    lam: Array | None = None,
    u: Array | None = None,
    *,
    directions: Sequence[str] = ALL_DIRECTIONS,
    merge: Array | None = None,
    normalize: str | None = None,
    chunk: int | None = None,
    save_states: bool = False,
) -> Array:
    """The GSPN-2 unit: line scans in several directions, modulated and merged, as :func:`gspn2_cupy.propagate`.

    ::

        y = Σ_d m_d · u_d ⊙ h_d,    h_d = line scan of x in direction d with weight_d, λ_d

    Parameters
    ----------
    x : jax.Array (B, C, H, W)
        The signal.
    weight : jax.Array (B, D, G, 3, H, W)
        Weights of each direction, or logits when ``normalize`` names a method.
    lam, u : jax.Array (B, D, C, H, W), optional
        λ and the output modulation of each direction; None means 1.
    directions : sequence of str
        One to four of ``ALL_DIRECTIONS``, each at most once; axis D follows it.
    merge : jax.Array (D,), optional
        m; None means all ones.
    normalize : {None, "sigmoid", "softmax"}
        Normalise ``weight`` inside, without rounding in between.
    chunk : int, optional
        As in :func:`line_scan`.
    save_states : bool
        Save the hidden lines (B, D, C, H, W), rounded to the type of ``x``, for the backward, which otherwise
        recomputes them.

    Returns
    -------
    y : jax.Array like ``x``

    Raises
    ------
    TypeError, ValueError
        As :func:`gspn2_cupy.propagate` does, when the call is traced.

    Examples
    --------
    >>> import jax, gspn2_cupy.jax
    >>> x, logits = jax.numpy.ones((1, 2, 8, 8)), jax.numpy.zeros((1, 4, 1, 3, 8, 8))
    >>> def total(logits):
    ...     return gspn2_cupy.jax.propagate(x, logits, normalize="sigmoid").sum()
    >>> jax.jit(jax.grad(total))(logits).shape
    (1, 4, 1, 3, 8, 8)

    Source: GSPN-2 (arXiv 2512.07884), section 3.
    """
    call = _checks.propagate(
        **_stand_ins(x=x, weight=weight, lam=lam, u=u, merge=merge),
        directions=directions,
        normalize=normalize,
        chunk=chunk,
        out=None,
        return_states=False,
    )
    (save_states,) = _checks.options(save_states=save_states)
    batch, *image = x.shape
    states = (batch, len(call.directions), *image)
    function = _Function(
        "propagate",
        ("x", "weight", "lam", "u", "merge"),
        ("dy",),
        "states",
        (("directions", call.directions), ("normalize", call.normalize), ("chunk", call.chunk)),
        (jax.ShapeDtypeStruct(x.shape, x.dtype), jax.ShapeDtypeStruct(states, x.dtype)),
        save_states=save_states,
        return_states=True,
    )
    return _call(function, x, weight, lam, u, merge)[0]
