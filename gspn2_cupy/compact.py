"""GSPN-2's compact channel propagation: project to a few proxy channels, propagate these, project back.

What :mod:`gspn2_cupy.ops` says of its functions holds for these too: arrays of any library go in and come back as they
were, inputs are never written to, results are bitwise reproducible, and wrong input raises before anything runs.

The unit is made of the operator and of projections, 1×1 convolutions. On CUDA arrays these are kernels of this package:
neither cuBLAS nor cuDNN is needed.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

import numpy as np

from gspn2_cupy import _checks, _compact_parameters
from gspn2_cupy._compact_parameters import CompactParameters
from gspn2_cupy.ops import backend_of
from gspn2_cupy.reference import ALL_DIRECTIONS

__all__ = [
    "CompactGrads",
    "CompactParameters",
    "compact_parameters",
    "compact_propagate",
    "compact_propagate_backward",
]


class CompactGrads(NamedTuple):
    """Gradients of :func:`compact_propagate`; None for those not asked for.

    ``x`` is an array and ``parameters`` a :class:`CompactParameters` of gradients.
    """

    x: Any
    parameters: Any


def compact_parameters(
    channels: int,
    proxy_channels: int,
    *,
    groups: int = 1,
    directions: Sequence[str] = ALL_DIRECTIONS,
    dtype: Any = "float32",
    seed: int = 0,
) -> CompactParameters:
    """Draw initial parameters for :func:`compact_propagate`.

    The matrices begin uniform in ±√(3/n) for n summands, which hands the variance of a signal on; those of λ and u in a
    tenth of that. Biases begin at 0, those of λ and u at 1, and ``merge`` at 1/D, the mean of the directions.

    Parameters
    ----------
    channels, proxy_channels : int
        C and P, at least 1.
    groups : int
        G; divides P. 1 is one weight matrix per direction, shared by all proxy channels (GSPN-2), P a matrix for each.
    directions : sequence of str
        As they will be given to :func:`compact_propagate`.
    dtype : data type or its name
        float32, float16, bfloat16 or float64.
    seed : int
        The same seed gives the same parameters, rounded to ``dtype``.

    Returns
    -------
    CompactParameters
        NumPy arrays. For a GPU: ``CompactParameters(*map(cupy.asarray, parameters))``.

    Raises
    ------
    TypeError, ValueError
        For example ``ValueError: groups must divide proxy_channels=8; got 3``.

    Examples
    --------
    >>> import gspn2_cupy
    >>> parameters = gspn2_cupy.compact_parameters(16, 4)
    >>> parameters.logits_weight.shape
    (4, 1, 3, 4)
    >>> sum(array.size for array in parameters)
    372
    """
    made = _checks.compact_options(channels, proxy_channels, groups=groups, directions=directions)
    numpy_dtype, seed = _checks.compact_parameters(dtype, seed)
    random, count = np.random.default_rng(seed), len(made.directions)
    shapes = _compact_parameters.shapes(made.channels, made.proxy_channels, made.groups, count)
    values = _compact_parameters.initial_values(made.channels, made.proxy_channels, count)
    return CompactParameters(
        *(
            random.uniform(centre - reach, centre + reach, shape).astype(numpy_dtype)
            for shape, (centre, reach) in zip(shapes, values, strict=True)
        )
    )


def compact_propagate(
    x: Any,
    parameters: CompactParameters,
    *,
    directions: Sequence[str] = ALL_DIRECTIONS,
    normalize: str = "sigmoid",
    chunk: int | None = None,
) -> Any:
    """Project to proxy channels, propagate these in several directions, project back.

    A map applies a matrix and a bias of ``parameters`` to the channels of each pixel, ``reduce_weight`` and
    ``reduce_bias`` for example::

        p       = reduce(x)                              C → P channels
        z, λ, u = logits(p), lam(p), u(p)                P → D·G·3, D·P, D·P
        q       = Σ_d merge_d · u_d ⊙ h_d,               h_d = line scan of p in direction d with λ_d
                                                               and with weights normalised from z_d
        y       = expand(q)                              P → C

    Parameters
    ----------
    x : array (B, C, H, W)
        The signal.
    parameters : CompactParameters
        Arrays of the library, device and data type of ``x``; :class:`CompactParameters` has their shapes, from which P
        and G follow.
    directions : sequence of str
        One to four of ``ALL_DIRECTIONS``, each at most once, in any order; axis D of the parameters follows it.
    normalize : {"sigmoid", "softmax"}
        How logits become row-stochastic weights: :func:`normalize_weights`.
    chunk : int, optional
        The scans restart on every line whose index in scan order is a multiple of ``chunk``. None is the global scan.

    Returns
    -------
    y : array like ``x``

    Raises
    ------
    TypeError, ValueError
        For example ``ValueError: parameters.reduce_weight must have shape (P, 6) with a column for each channel of x;
        got (2, 8)``.

    Notes
    -----
    Each projection and the propagation compute in the state's type, float32 (float64 for float64), and round once, on
    their way to the next: p, z, λ, u and q are arrays of the data type of ``x``. They take (2 + 2·D)·P + 3·D·G channels
    of memory while the call runs, and its workspace up to 2·P + 3·G more in the state's type. On CUDA arrays all work
    is queued on CuPy's current stream, and only parameters that are not contiguous are copied. :func:`warmup` compiles
    the kernels of the propagation; those of the projections are
    compiled when they are first called.

    Examples
    --------
    >>> import numpy, gspn2_cupy
    >>> parameters = gspn2_cupy.compact_parameters(16, 4)
    >>> gspn2_cupy.compact_propagate(numpy.ones((1, 16, 8, 8), "float32"), parameters).shape
    (1, 16, 8, 8)

    Source: GSPN-2 (arXiv 2512.07884), section 3, compact channel propagation.
    """
    call = _checks.compact_propagate(x, parameters, directions=directions, normalize=normalize, chunk=chunk)
    backend = backend_of(call)
    p = _proxies(backend, call)
    q = backend.propagate(p, *_gates(backend, call, p), **_options(call))
    return call.restore(backend.project(q, call.parameters.expand_weight, call.parameters.expand_bias))


def compact_propagate_backward(
    dy: Any,
    x: Any,
    parameters: CompactParameters,
    *,
    directions: Sequence[str] = ALL_DIRECTIONS,
    normalize: str = "sigmoid",
    chunk: int | None = None,
    needs: Collection[str] | None = None,
) -> CompactGrads:
    """Gradients of :func:`compact_propagate` for an upstream gradient ``dy``.

    ::

        dq = expand_weightᵀ·dy                and from it dp', dz, dλ, du, dmerge as propagate_backward gives them
        dp = dp' + logits_weightᵀ·dz + lam_weightᵀ·dλ + u_weightᵀ·du
        dx = reduce_weightᵀ·dp

    and for each map, which makes b from the channels a of a pixel::

        dweight = Σ db·aᵀ        dbias = Σ db         over the pixels of all images

    Parameters
    ----------
    dy : array like ``x``
        Upstream gradient of ``y``.
    x, parameters, directions, normalize, chunk
        As given to :func:`compact_propagate`.
    needs : collection of {"x", "parameters"}, optional
        The gradients wanted; None means both.

    Returns
    -------
    CompactGrads(x, parameters)
        ``parameters`` is a :class:`CompactParameters` of gradients. None for what was not asked for.

    Raises
    ------
    TypeError, ValueError
        As :func:`compact_propagate` does; and ``ValueError: dy must have shape (1, 6, 8, 8); got (1, 8, 8, 8)``.

    Notes
    -----
    What the forward made is made anew. Sums over pixels are carried in double on CUDA arrays, in the state's type by
    NumPy, and rounded once, in an order that follows from the shapes. In float32 and float64 the hidden lines (B, D, P,
    H, W) are kept from the recomputed forward; in the 16-bit types they would be rounded, and are scanned once more.

    Examples
    --------
    >>> import numpy, gspn2_cupy
    >>> x, parameters = numpy.ones((1, 16, 8, 8), "float32"), gspn2_cupy.compact_parameters(16, 4)
    >>> grads = gspn2_cupy.compact_propagate_backward(x, x, parameters)
    >>> grads.x.shape, grads.parameters.merge.shape
    ((1, 16, 8, 8), (4,))
    """
    call = _checks.compact_propagate_backward(
        dy, x, parameters, directions=directions, normalize=normalize, chunk=chunk, needs=needs
    )
    if not call.needs:
        return CompactGrads(None, None)
    backend, given = backend_of(call), call.parameters
    p = _proxies(backend, call)
    gates, options = _gates(backend, call, p), _options(call)
    dq = backend.project_back([(call.dy, given.expand_weight)])
    states = dexpand = None
    if "parameters" in call.needs:
        if call.dtype is call.dtype.state:
            q, states = backend.propagate(p, *gates, **options, return_states=True)
        else:
            q = backend.propagate(p, *gates, **options)
        dexpand = backend.project_gradients(call.dy, q)
        del q
    inner = backend.propagate_backward(
        dq, p, *gates, **options, states=states, needs=None if dexpand else ("x", "weight", "lam", "u")
    )
    maps = (given.logits_weight, given.lam_weight, given.u_weight)
    dp = backend.project_back(list(zip(inner[1:4], maps, strict=True)), before=inner.x)
    dx = backend.project_back([(dp, given.reduce_weight)]) if "x" in call.needs else None
    if dexpand is None:
        return CompactGrads(call.restore(dx), None)
    dreduce = backend.project_gradients(dp, call.x)
    dgates = [each for dgate in inner[1:4] for each in backend.project_gradients(dgate, p)]
    gradients = (*dreduce, *dgates, inner.merge, *dexpand)
    return CompactGrads(call.restore(dx), CompactParameters._make(map(call.restore, gradients)))


# --- the parts of the unit --------------------------------------------------------------------------------------------


def _proxies(backend: Any, call: _checks.Call) -> Any:
    """Make p (B, P, H, W)."""
    return backend.project(call.x, call.parameters.reduce_weight, call.parameters.reduce_bias)


def _gates(backend: Any, call: _checks.Call, p: Any) -> tuple[Any, Any, Any]:
    """Make the logits (B, D, G, 3, H, W), λ and u (B, D, P, H, W)."""
    given = call.parameters
    return (
        backend.project(p, given.logits_weight, given.logits_bias),
        backend.project(p, given.lam_weight, given.lam_bias),
        backend.project(p, given.u_weight, given.u_bias),
    )


def _options(call: _checks.Call) -> dict[str, Any]:
    """Return the options of the propagation, and the weights of its directions."""
    return {
        "directions": call.directions,
        "merge": call.parameters.merge,
        "normalize": call.normalize,
        "chunk": call.chunk,
    }
