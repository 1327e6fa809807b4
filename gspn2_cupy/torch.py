"""The array functions on PyTorch tensors, with derivatives.

``import gspn2_cupy.torch`` where a network is to be trained. The functions mirror those of :mod:`gspn2_cupy.ops`, where
the equations stand; what they add:

- Gradients, of those inputs only that require them. Nothing is saved for the backward but the inputs; hidden lines are
  recomputed, unrounded, unless ``save_states=True``. First derivatives only: differentiating a gradient raises
  ``NotImplementedError``.
- They are operators of PyTorch's dispatcher (``torch.ops.gspn2_cupy``), so ``torch.compile(fullgraph=True)``,
  activation checkpointing and ``torch.library.opcheck`` work on them.
- CPU tensors run the NumPy reference. CUDA tensors run the CUDA kernels on PyTorch's current stream and device, in
  PyTorch's own memory, without synchronising the host.
- Inside ``torch.autocast`` all tensors are cast to autocast's type, as for a matrix product; only the state line ``h0``
  is cast to float32, and float64 tensors stay as they are. Outside autocast nothing is cast: mixed types raise
  ``TypeError``. Whatever the type, the recurrence is carried in float32 (float64 for float64).
"""

from __future__ import annotations

from collections.abc import Sequence
from operator import attrgetter
from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd import forward_ad

from gspn2_cupy import _arrays, _checks, _compact_parameters, _torch_operators
from gspn2_cupy._compact_parameters import CompactParameters
from gspn2_cupy.reference import ALL_DIRECTIONS

__all__ = [
    "ALL_DIRECTIONS",
    "CompactPropagation",
    "GateRecurrent2dnoind",
    "line_scan",
    "normalize_weights",
    "propagate",
]


def _tensors(**given: Any) -> list[Any]:
    """Check that a call's arrays, the first of which leads it, are tensors, and apply the rule for autocast."""
    for name, tensor in given.items():
        if isinstance(tensor, Tensor):
            _refuse_forward_mode(name, tensor)
        elif not (tensor is None and name in _checks.OPTIONAL_ARRAYS):
            raise TypeError(f"{name} must be a PyTorch tensor; got {type(tensor).__module__}.{type(tensor).__name__}")
    leader = next(iter(given.values()))
    if leader.dtype is torch.float64 or not _in_autocast(leader):
        return [*given.values()]
    dtype = torch.get_autocast_dtype(leader.device.type)
    return [
        tensor
        if tensor is None or not tensor.is_floating_point() or tensor.dtype is torch.float64
        else tensor.to(torch.float32 if name == "h0" else dtype)
        for name, tensor in given.items()
    ]


def _in_autocast(tensor: Tensor) -> bool:
    """Tell whether autocast is on for a tensor's device."""
    device = tensor.device.type  # PyTorch 2.11's compiler cannot trace torch.amp.is_autocast_available
    return device in ("cpu", "cuda") and torch.is_autocast_enabled(device)


def _refuse_forward_mode(name: str, tensor: Tensor) -> None:
    """Refuse a tensor with a tangent, which PyTorch would drop without a word."""
    if not torch.compiler.is_compiling() and forward_ad.unpack_dual(tensor).tangent is not None:
        raise NotImplementedError(f"{name} must not carry a tangent: gspn2_cupy.torch has no forward-mode derivatives")


def _will_differentiate(*tensors: Tensor | None) -> bool:
    """Tell whether a backward may follow."""
    return torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in tensors)


def normalize_weights(logits: Tensor, *, direction: str, method: str = "sigmoid") -> Tensor:
    """Turn unconstrained logits into row-stochastic weights, as :func:`gspn2_cupy.normalize_weights` does.

    Parameters
    ----------
    logits : Tensor (..., 3, H, W)
        Unconstrained; usually (B, G, 3, H, W).
    direction : str
        One of ``ALL_DIRECTIONS``.
    method : {"sigmoid", "softmax"}
        GSPN's normalisation, or the exponential one.

    Returns
    -------
    weight : Tensor like ``logits``
        Differentiable once.

    Raises
    ------
    TypeError, ValueError
        As :func:`gspn2_cupy.normalize_weights` does.

    Examples
    --------
    >>> import torch, gspn2_cupy.torch
    >>> logits = torch.zeros(1, 1, 3, 2, 2, requires_grad=True)
    >>> weight = gspn2_cupy.torch.normalize_weights(logits, direction="left_to_right")
    >>> weight.sum(dim=2).detach()[0, 0]
    tensor([[1., 1.],
            [1., 1.]])
    """
    direction, method = _checks.options(direction=direction, method=method)
    (logits,) = _tensors(logits=logits)
    return _torch_operators.normalize_weights(logits, direction, method)


def line_scan(
    x: Tensor,
    weight: Tensor,
    lam: Tensor | None = None,
    *,
    direction: str,
    chunk: int | None = None,
    h0: Tensor | None = None,
    return_last: bool = False,
    save_states: bool = False,
) -> Any:
    """Scan an image line by line in one direction, as :func:`gspn2_cupy.line_scan` does.

    ::

        h[t,i] = w0[t,i]·h[t-1,i-1] + w1[t,i]·h[t-1,i] + w2[t,i]·h[t-1,i+1] + λ[t,i]·x[t,i],    h[-1] = h0 or 0

    Parameters
    ----------
    x : Tensor (B, C, H, W)
        The signal.
    weight : Tensor (B, G, 3, H, W)
        G divides C.
    lam : Tensor (B, C, H, W), optional
        λ; None means 1.
    direction : str
        One of ``ALL_DIRECTIONS``.
    chunk : int, optional
        The scan restarts on every line whose index in scan order is a multiple of ``chunk``. None is the global scan.
    h0 : Tensor (B, C, H) for horizontal, (B, C, W) for vertical scans, optional
        The line before the first, float32 (float64 for float64).
    return_last : bool
        Also return the last line in scan order, to hand on as ``h0`` of the next piece; gradients flow back through it.
    save_states : bool
        Save ``h`` for the gradient of ``weight``, which otherwise scans once more. It costs no memory where ``h`` lives
        on anyway. In the 16-bit types ``h`` is rounded, and the gradient feels it.

    Returns
    -------
    h : Tensor like ``x``
    h_last : Tensor like ``h0``
        Only with ``return_last=True``. Both differentiable once.

    Raises
    ------
    TypeError, ValueError
        As :func:`gspn2_cupy.line_scan` does.

    Examples
    --------
    >>> import torch, gspn2_cupy.torch
    >>> x = torch.ones(1, 1, 2, 2, requires_grad=True)
    >>> weight = torch.full((1, 1, 3, 2, 2), 0.5)
    >>> gspn2_cupy.torch.line_scan(x, weight, direction="top_to_bottom").sum().backward()
    >>> x.grad[0, 0]
    tensor([[2., 2.],
            [1., 1.]])

    Source: GSPN-2 (arXiv 2512.07884), section 3; GSPN (arXiv 2501.12381), equation 1.
    """
    direction, chunk, return_last, save_states = _checks.options(
        direction=direction, chunk=chunk, return_last=return_last, save_states=save_states
    )
    x, weight, lam, h0 = _tensors(x=x, weight=weight, lam=lam, h0=h0)
    results = _torch_operators.line_scan(x, weight, lam, h0, direction, chunk, return_last, save_states)
    return tuple(results) if return_last else results[0]


def propagate(
    x: Tensor,
    weight: Tensor,
    lam: Tensor | None = None,
    u: Tensor | None = None,
    *,
    directions: Sequence[str] = ALL_DIRECTIONS,
    merge: Tensor | None = None,
    normalize: str | None = None,
    chunk: int | None = None,
    save_states: bool = False,
) -> Tensor:
    """The GSPN-2 unit: line scans in several directions, modulated and merged, as :func:`gspn2_cupy.propagate`.

    ::

        y = Σ_d m_d · u_d ⊙ h_d,    h_d = line scan of x in direction d with weight_d, λ_d

    Parameters
    ----------
    x : Tensor (B, C, H, W)
        The signal.
    weight : Tensor (B, D, G, 3, H, W)
        Weights of each direction, or logits when ``normalize`` names a method.
    lam, u : Tensor (B, D, C, H, W), optional
        λ and the output modulation of each direction; None means 1.
    directions : sequence of str
        One to four of ``ALL_DIRECTIONS``, each at most once; axis D follows it.
    merge : Tensor (D,), optional
        m; None means all ones.
    normalize : {None, "sigmoid", "softmax"}
        Normalise ``weight`` inside, without rounding in between.
    chunk : int, optional
        As in :func:`line_scan`.
    save_states : bool
        Save the hidden lines (B, D, C, H, W), rounded to the type of ``x``, for the backward, which otherwise
        recomputes them. Only where a backward may follow.

    Returns
    -------
    y : Tensor like ``x``
        Differentiable once.

    Raises
    ------
    TypeError, ValueError
        As :func:`gspn2_cupy.propagate` does.

    Examples
    --------
    >>> import torch, gspn2_cupy.torch
    >>> x, logits = torch.ones(1, 2, 8, 8), torch.zeros(1, 4, 1, 3, 8, 8, requires_grad=True)
    >>> gspn2_cupy.torch.propagate(x, logits, normalize="sigmoid").sum().backward()
    >>> logits.grad.shape
    torch.Size([1, 4, 1, 3, 8, 8])

    Source: GSPN-2 (arXiv 2512.07884), section 3.
    """
    directions, normalize, chunk, save_states = _checks.options(
        directions=directions, normalize=normalize, chunk=chunk, save_states=save_states
    )
    x, weight, lam, u, merge = _tensors(x=x, weight=weight, lam=lam, u=u, merge=merge)
    save_states = save_states and _will_differentiate(x, weight, lam, u, merge)
    return _torch_operators.propagate(x, weight, lam, u, merge, ",".join(directions), normalize, chunk, save_states)[0]


class GateRecurrent2dnoind(torch.nn.Module):
    """GSPN-1's recurrence by the name and interface of its published module, with true gradients.

    From left to right, in chunks of ``items_each_chunk`` columns that do not know of each other::

        H[n,c,i,t] = G1[n,c,i,t]·H[n,c,i-1,t-1] + G2[n,c,i,t]·H[n,c,i,t-1] + G3[n,c,i,t]·H[n,c,i+1,t-1]
                     + B[n,c,i,t]·X[n,c,i,t]

    Parameters
    ----------
    items_each_chunk : int
        Columns of a chunk; it need not divide the width. The scan is global when it reaches the width.
    backend : str
        Accepted and ignored: the tensors' device decides.

    Notes
    -----
    The three weights are copied once into one array (N, C, 3, H, W), which the kernels take: three reads and three
    writes of an image. The copy is what the backward keeps, not the three. Code that makes its weights as one tensor
    calls :func:`line_scan` without that copy.

    Source: the published module of GSPN (arXiv 2501.12381), equation 1 with a matrix per channel.
    """

    def __init__(self, items_each_chunk: int, backend: str = "cuda") -> None:
        super().__init__()
        (self.items_each_chunk,) = _checks.options(items_each_chunk=items_each_chunk)
        self.backend = backend

    def forward(self, X: Tensor, B: Tensor, G1: Tensor, G2: Tensor, G3: Tensor) -> Tensor:
        """Scan ``X`` scaled by ``B`` (λ), all five tensors (N, C, H, W) and of one type, and return H like ``X``."""
        X, B, *gates = tensors = _tensors(X=X, B=B, G1=G1, G2=G2, G3=G3)
        for name, tensor in zip(("B", "G1", "G2", "G3"), tensors[1:], strict=True):
            if tensor.dtype is not X.dtype:
                raise TypeError(f"{name} must be {X.dtype} like X; got {tensor.dtype}")
            if tensor.shape != X.shape:
                raise ValueError(f"{name} must have shape {tuple(X.shape)} like X; got {tuple(tensor.shape)}")
        weight = torch.stack(gates, dim=2)
        return line_scan(X, weight, B, direction="left_to_right", chunk=self.items_each_chunk)

    def extra_repr(self) -> str:
        """Show the arguments of the constructor."""
        return f"items_each_chunk={self.items_each_chunk}, backend={self.backend!r}"


class CompactPropagation(torch.nn.Module):
    """GSPN-2's compact channel propagation, the layer of :func:`gspn2_cupy.compact_propagate`.

    C channels become P proxy channels, which make their own weights, λ and u and are propagated in several directions;
    what comes out becomes C channels again. With ⋆ for a 1×1 convolution::

        p = reduce ⋆ x        z_d, λ_d, u_d = logits_d ⋆ p, lam_d ⋆ p, u_d ⋆ p
        q = Σ_d merge_d · u_d ⊙ h_d,    h_d = line scan of p in direction d with weights from z_d, and λ_d
        y = expand ⋆ q

    Maps (B, C, H, W) to (B, C, H, W); there is no residual connection, normalisation or activation inside.

    Parameters
    ----------
    channels, proxy_channels : int
        C and P.
    groups : int
        G; divides P. 1 is GSPN-2's: one weight matrix per direction, shared by all proxy channels.
    directions : sequence of str
        One to four of ``ALL_DIRECTIONS``, each at most once.
    chunk : int, optional
        The scans restart every ``chunk`` lines. None is the global scan.
    normalize : {"sigmoid", "softmax"}
        How logits become row-stochastic weights.
    device, dtype
        Of the parameters, as for any module of PyTorch's.

    Attributes
    ----------
    reduce, logits, lam, u, expand : torch.nn.Conv2d
        The 1×1 convolutions. Output channels of ``logits`` are (direction, group, neighbour), of ``lam`` and ``u``
        (direction, proxy channel), the last running fastest.
    merge : torch.nn.Parameter (D,)

    Notes
    -----
    The state dict has ``merge``, and ``weight`` and ``bias`` of each convolution, such as ``reduce.weight``.
    Initial values have the distribution of :func:`gspn2_cupy.compact_parameters`; ``compact_parameters()`` and
    ``load_compact_parameters(parameters)`` exchange parameters with the array functions. Projections are
    products of matrices, whose results are rounded once, as the array function's are; on CUDA devices those of float32
    use TF32 only where PyTorch's matrix products may. Those of the gates are one product, unless one of them has hooks.

    Examples
    --------
    >>> import torch, gspn2_cupy.torch
    >>> gspn2_cupy.torch.CompactPropagation(16, 2)(torch.randn(1, 16, 8, 8)).shape
    torch.Size([1, 16, 8, 8])

    Source: GSPN-2 (arXiv 2512.07884), section 3, compact channel propagation.
    """

    def __init__(
        self,
        channels: int,
        proxy_channels: int,
        *,
        groups: int = 1,
        directions: Sequence[str] = ALL_DIRECTIONS,
        chunk: int | None = None,
        normalize: str = "sigmoid",
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        checked = _checks.compact_options(
            channels, proxy_channels, groups=groups, directions=directions, chunk=chunk, normalize=normalize
        )
        self.channels, self.proxy_channels, self.groups = checked.channels, checked.proxy_channels, checked.groups
        self.directions, self.chunk, self.normalize = checked.directions, checked.chunk, checked.normalize
        count = len(self.directions)
        placed = {"device": device, "dtype": dtype}
        self.reduce = Projection(self.channels, self.proxy_channels, 1, **placed)
        self.logits = Projection(self.proxy_channels, count * self.groups * 3, 1, **placed)
        self.lam = Projection(self.proxy_channels, count * self.proxy_channels, 1, **placed)
        self.u = Projection(self.proxy_channels, count * self.proxy_channels, 1, **placed)
        self.merge = torch.nn.Parameter(torch.empty(count, **placed))
        self.expand = Projection(self.proxy_channels, self.channels, 1, **placed)
        self.reset_parameters()

    def _by_name(self) -> CompactParameters:
        """Return the parameters as they are, convolutions' weights (out, in, 1, 1)."""
        return CompactParameters(*(attrgetter(_state_name(name))(self) for name in CompactParameters._fields))

    def reset_parameters(self) -> None:
        """Draw the initial values anew, from PyTorch's generator."""
        values = _compact_parameters.initial_values(self.channels, self.proxy_channels, len(self.directions))
        for parameter, (centre, reach) in zip(self._by_name(), values, strict=True):
            torch.nn.init.uniform_(parameter, centre - reach, centre + reach)

    def _shapes(self) -> CompactParameters:
        return _compact_parameters.shapes(self.channels, self.proxy_channels, self.groups, len(self.directions))

    def compact_parameters(self) -> CompactParameters:
        """Return the parameters as :func:`gspn2_cupy.compact_propagate` takes them: detached, not copied."""
        parameters = zip(self._by_name(), self._shapes(), strict=True)
        return CompactParameters(*(parameter.detach().view(shape) for parameter, shape in parameters))

    @torch.no_grad()
    def load_compact_parameters(self, parameters: CompactParameters) -> None:
        """Copy parameters in: arrays of any one library and device, whose type is converted to the layer's."""
        if isinstance(parameters, CompactParameters):  # another layer's are copied, not differentiated
            parameters = CompactParameters(*(p.detach() if isinstance(p, Tensor) else p for p in parameters))
        arrays = _checks.adopted_parameters(parameters, self._shapes())
        for parameter, array in zip(self._by_name(), arrays, strict=True):
            tensor = _arrays.TORCH.restore(_arrays.TORCH.lend(array.copy()), None)
            parameter.copy_(tensor.view(parameter.shape))

    def forward(self, x: Tensor) -> Tensor:
        """Propagate ``x`` (B, C, H, W) and return y like it."""
        (x,) = _tensors(x=x)
        if x.ndim != 4 or x.shape[1] != self.channels:
            raise ValueError(f"x must have shape (B, {self.channels}, H, W); got {tuple(x.shape)}")
        own = self.merge.dtype
        if x.dtype is not own and not _in_autocast(x):
            raise TypeError(f"x must be {str(own)[6:]}, like the layer's parameters; got {str(x.dtype)[6:]}")
        count = len(self.directions)
        proxies = self.reduce(x)
        logits, lam, u = _side_by_side(proxies, self.logits, self.lam, self.u)
        propagated = propagate(
            proxies,
            logits.unflatten(1, (count, self.groups, 3)),
            lam.unflatten(1, (count, self.proxy_channels)),
            u.unflatten(1, (count, self.proxy_channels)),
            directions=self.directions,
            merge=self.merge,
            normalize=self.normalize,
            chunk=self.chunk,
        )
        return cast(Tensor, self.expand(propagated))

    def extra_repr(self) -> str:
        """Show the arguments of the constructor."""
        return (
            f"{self.channels}, {self.proxy_channels}, groups={self.groups}, directions={self.directions}, "
            f"chunk={self.chunk}, normalize={self.normalize!r}"
        )


class Projection(torch.nn.Conv2d):
    """A 1×1 convolution as a product of matrices, which rounds once.

    cuDNN's convolutions round 16-bit types before they add the bias and after, and float32 to TF32.
    """

    def matrices(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return weight and bias in the type of ``x``: autocast would convert the weight once for each image."""
        return self.weight.flatten(1).to(x.dtype), cast(Tensor, self.bias).to(x.dtype)

    def forward(self, x: Tensor) -> Tensor:
        """Project ``x`` (B, C, H, W)."""
        return _product(x, *self.matrices(x))


def _product(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    product = torch.baddbmm(bias[:, None], weight.expand(x.shape[0], -1, -1), x.flatten(2))
    return product.unflatten(2, x.shape[2:])


def _side_by_side(x: Tensor, *layers: Projection) -> list[Tensor]:
    """Apply projections to the same array in one product, so that the gradients of ``x`` are summed before rounding."""
    if any(map(_has_hooks, layers)):  # which see only what is called
        return [layer(x) for layer in layers]
    weights, biases = zip(*(layer.matrices(x) for layer in layers), strict=True)
    made = _product(x, torch.cat(weights), torch.cat(biases))
    return list(made.split([layer.out_channels for layer in layers], dim=1))


def _has_hooks(module: torch.nn.Module) -> bool:
    hooks = (module._forward_pre_hooks, module._forward_hooks, module._backward_pre_hooks, module._backward_hooks)
    return any(hooks)


def _state_name(name: str) -> str:
    """Return the name in the state dict of a parameter of the compact unit: reduce_weight is reduce.weight there."""
    return name.replace("_", ".")
