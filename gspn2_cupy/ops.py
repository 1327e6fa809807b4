"""The public functions: arrays in, arrays out, every forward with its explicit backward.

What holds for all of them:

- Arrays may come from NumPy, CuPy, PyTorch, JAX or any library that speaks DLPack; results come back in the same
  library. CPU arrays run the NumPy reference, CUDA arrays the CUDA kernels. All arrays of a call come from one library
  and one device.
- Data types: float32, float16, bfloat16 and float64, one for all arrays of a call. The recurrence is carried in the
  *state's type*, float32 (float64 for float64), and rounded once, on the way out. ``h0``, ``h_last``, ``dh_last`` and
  ``dh0`` have the state's type.
- Images keep their layout (B, C, H, W), whatever the direction. ``weight[..., k, :, :]`` is the weight of neighbour
  k − 1 in image coordinates: above, same, below for horizontal scans; left, same, right for vertical ones. A weight
  whose neighbour is outside the image, or that stands on a line without a previous line, is never used, and its
  gradient is 0.
- On CUDA arrays work is queued on CuPy's current stream of the arrays' device; the host never waits.
- Inputs are never written to, results are bitwise reproducible, and wrong input raises ``TypeError`` or ``ValueError``
  before anything runs.

Source: Wang et al., "GSPN-2: Efficient Parallel Sequence Modeling", arXiv 2512.07884 (NeurIPS 2025), on "Parallel
Sequence Modeling via Generalized Spatial Propagation Network", arXiv 2501.12381 (CVPR 2025).
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from gspn2_cupy import _checks, _device, _repeats, reference
from gspn2_cupy.reference import ALL_DIRECTIONS, LineScanGrads, PropagateGrads

__all__ = [
    "ALL_DIRECTIONS",
    "LineScanGrads",
    "PropagateGrads",
    "affinity_matrix",
    "line_scan",
    "line_scan_backward",
    "normalize_weights",
    "normalize_weights_backward",
    "propagate",
    "propagate_backward",
    "warmup",
]


def backend_of(call: Any) -> Any:
    """Return the module that runs a call: the NumPy reference, or the kernels."""
    return _device if call.on_device else reference


def normalize_weights(logits: Any, *, direction: str, method: str = "sigmoid") -> Any:
    """Turn unconstrained logits into row-stochastic weights (the Stability–Context Condition).

    Over the neighbours j of a pixel that are inside the image::

        "sigmoid":  w_k = σ(z_k) / Σ_j σ(z_j)       (logits below −40 count as −40)
        "softmax":  w_k = exp(z_k) / Σ_j exp(z_j)

    and 0 for a neighbour outside. Rows sum to 1 for any finite logits.

    Parameters
    ----------
    logits : array (..., 3, H, W)
        Unconstrained; usually (B, G, 3, H, W).
    direction : str
        One of ``ALL_DIRECTIONS``; decides which neighbours exist.
    method : {"sigmoid", "softmax"}
        GSPN's normalisation, or the exponential one.

    Returns
    -------
    weight : array like ``logits``
        Computed in the state's type, rounded once. A NaN logit makes the weights of its pixel NaN.

    Raises
    ------
    TypeError, ValueError
        For example ``ValueError: method must be one of "sigmoid", "softmax"; got "relu"``.

    Examples
    --------
    >>> import numpy, gspn2_cupy
    >>> logits = numpy.zeros((1, 1, 3, 2, 2), "float32")
    >>> gspn2_cupy.normalize_weights(logits, direction="left_to_right")[0, 0, :, 0, 0]
    array([0. , 0.5, 0.5], dtype=float32)

    Source: GSPN (arXiv 2501.12381), Stability–Context Condition.
    """
    call = _checks.normalize_weights(logits, direction=direction, method=method)
    return call.restore(backend_of(call).normalize_weights(call.logits, direction=call.direction, method=call.method))


def normalize_weights_backward(dweight: Any, logits: Any, *, direction: str, method: str = "sigmoid") -> Any:
    """Gradient of :func:`normalize_weights` with respect to the logits.

    ::

        "sigmoid":  dz_k = w_k·(1 − σ(z_k))·(dw_k − Σ_j w_j·dw_j),   0 for logits below −40
        "softmax":  dz_k = w_k·(dw_k − Σ_j w_j·dw_j)

    and 0 for neighbours outside the image.

    Parameters
    ----------
    dweight : array like ``logits``
        Upstream gradient of the weights.
    logits, direction, method
        As given to :func:`normalize_weights`.

    Returns
    -------
    dlogits : array like ``logits``
    """
    call = _checks.normalize_weights_backward(dweight, logits, direction=direction, method=method)
    return call.restore(
        backend_of(call).normalize_weights_backward(
            call.dweight, call.logits, direction=call.direction, method=call.method
        )
    )


def line_scan(
    x: Any,
    weight: Any,
    lam: Any = None,
    *,
    direction: str,
    chunk: int | None = None,
    h0: Any = None,
    out: Any = None,
    return_last: bool = False,
) -> Any:
    """Scan an image line by line in one direction.

    With t along the scan and i across it::

        h[t,i] = w0[t,i]·h[t-1,i-1] + w1[t,i]·h[t-1,i] + w2[t,i]·h[t-1,i+1] + λ[t,i]·x[t,i],    h[-1] = h0 or 0

    Parameters
    ----------
    x : array (B, C, H, W)
        The signal.
    weight : array (B, G, 3, H, W)
        G divides C; channel c uses group c // (C/G). G = C is a matrix per channel (GSPN-1), G = 1 one matrix shared by
        all channels (GSPN-2).
    lam : array (B, C, H, W), optional
        λ; None means 1.
    direction : str
        One of ``ALL_DIRECTIONS``.
    chunk : int, optional
        The scan restarts on every line whose index in scan order is a multiple of ``chunk`` (GSPN's local variant). It
        need not divide the length. None is the global scan.
    h0 : array (B, C, H) for horizontal, (B, C, W) for vertical scans, optional
        The line before the first, in the state's type. It enters the first chunk only.
    out : array like ``x``, optional
        Receives the result; must not overlap an input.
    return_last : bool
        Also return the last line in scan order, unrounded, to hand on as ``h0`` of the next piece.

    Returns
    -------
    h : array like ``x``
    h_last : array like ``h0``
        Only with ``return_last=True``. A scan of no lines gives ``h0`` or zeros.

    Raises
    ------
    TypeError, ValueError
        For example ``ValueError: weight must have shape (2, G, 3, 8, 8) with G dividing C=6; got (2, 4, 3, 8, 8)``.

    Notes
    -----
    With ``chunk=None`` a scan done in pieces, each handing ``h_last`` on as ``h0``, is bitwise equal to the whole.

    Examples
    --------
    >>> import numpy, gspn2_cupy
    >>> x = numpy.zeros((1, 1, 3, 4), "float32")
    >>> x[0, 0, 1, 0] = 1
    >>> weight = numpy.full((1, 1, 3, 3, 4), 0.25, "float32")
    >>> gspn2_cupy.line_scan(x, weight, direction="left_to_right")[0, 0, :, 1]
    array([0.25, 0.25, 0.25], dtype=float32)

    Source: GSPN-2 (arXiv 2512.07884), section 3; GSPN (arXiv 2501.12381), equation 1.
    """
    given = (x, weight, lam, h0, out, direction, chunk, return_last)
    key = _repeats.key_of(*given)
    results = _repeats.line_scan(key, *given)
    if results is None:
        call = _checks.line_scan(
            x, weight, lam, direction=direction, chunk=chunk, h0=h0, out=out, return_last=return_last
        )
        result = backend_of(call).line_scan(
            call.x,
            call.weight,
            call.lam,
            direction=call.direction,
            chunk=call.chunk,
            h0=call.h0,
            out=call.out,
            return_last=call.return_last,
        )
        h, h_last = result if call.return_last else (result, None)
        results = call.restore(h), call.restore(h_last)
        if call.on_device:
            _repeats.remember(key, *given, results)
    return results if return_last else results[0]


def line_scan_backward(
    dh: Any,
    x: Any,
    weight: Any,
    lam: Any = None,
    h: Any = None,
    *,
    direction: str,
    chunk: int | None = None,
    h0: Any = None,
    dh_last: Any = None,
    needs: Collection[str] | None = None,
) -> LineScanGrads:
    """Gradients of :func:`line_scan` for an upstream gradient ``dh``.

    With A[t] the tridiagonal matrix of step t, and the carry rounded to the state's type::

        carry[t]  = A[t+1]ᵀ·g[t+1]; 0 across a chunk boundary
        g[t]      = dh[t] + carry[t];          on the last line g[T-1] = dh[T-1] + dh_last
        dx[t]     = λ[t]·g[t]                  dλ[t] = x[t]·g[t]
        dw_k[t,i] = Σ over the group's channels of g[t,i]·h[t-1, i+k-1];   0 where there is no previous line
        dh0       = A[0]ᵀ·g[0]

    Parameters
    ----------
    dh : array like ``x``
        Upstream gradient of ``h``.
    x, weight, lam, direction, chunk, h0
        As given to :func:`line_scan`.
    h : array like ``x``, optional
        The result of :func:`line_scan`. None means: recompute it, unrounded.
    dh_last : array like ``h0``, optional
        Upstream gradient of ``h_last``, in the state's type.
    needs : collection of {"x", "weight", "lam", "h0"}, optional
        The gradients wanted; None means all.

    Returns
    -------
    LineScanGrads(x, weight, lam, h0)
        None for gradients not asked for and for inputs that were None.

    Notes
    -----
    With ``chunk=None`` the backward of a scan done in pieces, each handing its ``dh0`` back as ``dh_last``, is bitwise
    equal to that of the whole. (In the 16-bit types the seam line's ``dw`` uses the unrounded ``h0``.)

    Examples
    --------
    >>> import numpy, gspn2_cupy
    >>> x, weight = numpy.ones((1, 1, 2, 2)), numpy.full((1, 1, 3, 2, 2), 0.5)
    >>> gspn2_cupy.line_scan_backward(x, x, weight, direction="top_to_bottom", needs=["x"]).x[0, 0]
    array([[2., 2.],
           [1., 1.]])
    """
    call = _checks.line_scan_backward(
        dh, x, weight, lam, h, direction=direction, chunk=chunk, h0=h0, dh_last=dh_last, needs=needs
    )
    grads = backend_of(call).line_scan_backward(
        call.dh,
        call.x,
        call.weight,
        call.lam,
        call.h,
        direction=call.direction,
        chunk=call.chunk,
        h0=call.h0,
        dh_last=call.dh_last,
        needs=call.needs,
    )
    return LineScanGrads(*map(call.restore, grads))


def propagate(
    x: Any,
    weight: Any,
    lam: Any = None,
    u: Any = None,
    *,
    directions: Sequence[str] = ALL_DIRECTIONS,
    merge: Any = None,
    normalize: str | None = None,
    chunk: int | None = None,
    out: Any = None,
    return_states: bool = False,
) -> Any:
    """The GSPN-2 unit: line scans in several directions, modulated and merged.

    ::

        y = Σ_d m_d · u_d ⊙ h_d,    h_d = line scan of x in direction d with weight_d, λ_d

    Parameters
    ----------
    x : array (B, C, H, W)
        The signal.
    weight : array (B, D, G, 3, H, W)
        Weights of each direction, or logits when ``normalize`` names a method.
    lam, u : array (B, D, C, H, W), optional
        λ and the output modulation of each direction; None means 1.
    directions : sequence of str
        One to four of ``ALL_DIRECTIONS``, each at most once, in any order; axis D follows it.
    merge : array (D,), optional
        m; None means all ones.
    normalize : {None, "sigmoid", "softmax"}
        Normalise ``weight`` as :func:`normalize_weights` does, without rounding in between.
    chunk : int, optional
        As in :func:`line_scan`.
    out : array like ``x``, optional
        Receives ``y``; must not overlap an input.
    return_states : bool
        Also return the hidden lines, which :func:`propagate_backward` otherwise recomputes.

    Returns
    -------
    y : array like ``x``
    states : array (B, D, C, H, W)
        Only with ``return_states=True``: the hidden lines h_d, rounded to the type of ``x``.

    Notes
    -----
    Normalised weights, hidden lines and the sum over directions stay in the state's type; only ``y`` and ``states`` are
    rounded. GSPN-1's extra term D_d ⊙ x per direction is Σ_d m_d·D_d, one elementwise map on x.

    Examples
    --------
    >>> import numpy, gspn2_cupy
    >>> x, logits = numpy.ones((1, 2, 8, 8), "float32"), numpy.zeros((1, 4, 1, 3, 8, 8), "float32")
    >>> gspn2_cupy.propagate(x, logits, normalize="sigmoid").shape
    (1, 2, 8, 8)

    Source: GSPN-2 (arXiv 2512.07884), section 3.
    """
    call = _checks.propagate(
        x,
        weight,
        lam,
        u,
        directions=directions,
        merge=merge,
        normalize=normalize,
        chunk=chunk,
        out=out,
        return_states=return_states,
    )
    result = backend_of(call).propagate(
        call.x,
        call.weight,
        call.lam,
        call.u,
        directions=call.directions,
        merge=call.merge,
        normalize=call.normalize,
        chunk=call.chunk,
        out=call.out,
        return_states=call.return_states,
    )
    if call.return_states:
        return call.restore(result[0]), call.restore(result[1])
    return call.restore(result)


def propagate_backward(
    dy: Any,
    x: Any,
    weight: Any,
    lam: Any = None,
    u: Any = None,
    *,
    directions: Sequence[str] = ALL_DIRECTIONS,
    merge: Any = None,
    normalize: str | None = None,
    chunk: int | None = None,
    states: Any = None,
    needs: Collection[str] | None = None,
) -> PropagateGrads:
    """Gradients of :func:`propagate` for an upstream gradient ``dy``.

    With ``dh_d = m_d·u_d ⊙ dy`` each direction's gradients follow :func:`line_scan_backward`, and::

        du_d = m_d·dy ⊙ h_d        dm_d = Σ over all pixels of dy ⊙ u_d ⊙ h_d

    Parameters
    ----------
    dy : array like ``x``
        Upstream gradient of ``y``.
    x, weight, lam, u, directions, merge, normalize, chunk
        As given to :func:`propagate`.
    states : array (B, D, C, H, W), optional
        The hidden lines that :func:`propagate` returned. None means: recompute them, unrounded.
    needs : collection of {"x", "weight", "lam", "u", "merge"}, optional
        The gradients wanted; None means all.

    Returns
    -------
    PropagateGrads(x, weight, lam, u, merge)
        ``weight`` is the gradient of the logits when ``normalize`` names a method. None for gradients not asked for and
        for inputs that were None.
    """
    call = _checks.propagate_backward(
        dy,
        x,
        weight,
        lam,
        u,
        directions=directions,
        merge=merge,
        normalize=normalize,
        chunk=chunk,
        states=states,
        needs=needs,
    )
    grads = backend_of(call).propagate_backward(
        call.dy,
        call.x,
        call.weight,
        call.lam,
        call.u,
        directions=call.directions,
        merge=call.merge,
        normalize=call.normalize,
        chunk=call.chunk,
        states=call.states,
        needs=call.needs,
    )
    return PropagateGrads(*map(call.restore, grads))


def affinity_matrix(
    weight: Any,
    lam: Any = None,
    u: Any = None,
    *,
    directions: Sequence[str] = ALL_DIRECTIONS,
    merge: Any = None,
    chunk: int | None = None,
) -> Any:
    """The dense matrix A of :func:`propagate`, ``y = A·x`` for each image and channel; for small images.

    Parameters
    ----------
    weight : array (B, D, G, 3, H, W)
        Weights (not logits).
    lam, u, directions, merge, chunk
        As given to :func:`propagate`. C comes from ``lam`` or ``u``, and is G if both are None.

    Returns
    -------
    A : array (B, C, H·W, H·W)
        Row p holds what pixel p receives from every pixel, pixels in row-major order. Takes (H·W)² elements per
        channel.

    Examples
    --------
    >>> import numpy, gspn2_cupy
    >>> gspn2_cupy.affinity_matrix(numpy.full((1, 4, 1, 3, 4, 4), 0.25)).shape
    (1, 1, 16, 16)
    """
    call = _checks.affinity_matrix(weight, lam, u, directions=directions, merge=merge, chunk=chunk)
    return call.restore(
        backend_of(call).affinity_matrix(
            call.weight, call.lam, call.u, directions=call.directions, merge=call.merge, chunk=call.chunk
        )
    )


def warmup(
    shape: Sequence[int],
    dtype: Any = "float32",
    *,
    groups: int = 1,
    directions: Sequence[str] = ALL_DIRECTIONS,
    lam: bool = True,
    u: bool = False,
    normalize: str | None = None,
    chunk: int | None = None,
    backward: bool = True,
    progress: bool = True,
) -> None:
    """Compile ahead of use the kernels that such calls will launch on the current CUDA device.

    Parameters
    ----------
    shape : (B, C, H, W)
        The shape of ``x``.
    dtype : data type or its name
        float32, float16, bfloat16 or float64.
    groups : int
        G; divides C.
    directions, normalize, chunk
        As they will be given.
    lam, u : bool
        Whether λ and u will be given.
    backward : bool
        Also compile the backward.
    progress : bool
        Show on standard error which kernel is being compiled.

    Notes
    -----
    Compiled kernels stay in CuPy's disk cache, so this costs time once per machine. The kernels of :func:`line_scan`,
    :func:`propagate` and, with ``normalize``, :func:`normalize_weights` are compiled, with and without ``merge`` and
    states. Without a CUDA device it raises ``RuntimeError``.
    """
    call = _checks.warmup(
        shape,
        dtype,
        groups=groups,
        directions=directions,
        lam=lam,
        u=u,
        normalize=normalize,
        chunk=chunk,
        backward=backward,
        progress=progress,
    )
    from gspn2_cupy import _warmup

    _warmup.warmup(call)
