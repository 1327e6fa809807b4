"""The parameters of the compact unit: their names, shapes and initial values, for NumPy and for PyTorch alike."""

from __future__ import annotations

import math
from typing import Any, NamedTuple


class CompactParameters(NamedTuple):
    """The parameters of :func:`gspn2_cupy.compact_propagate`, arrays of one library, device and data type.

    With C channels, P proxy channels, D directions and G groups of proxy channels, G a divisor of P:

    =============  ============  ===============================================
    reduce_weight  (P, C)        from the channels to the proxies
    reduce_bias    (P,)
    logits_weight  (D, G, 3, P)  from the proxies to the logits of the weights
    logits_bias    (D, G, 3)
    lam_weight     (D, P, P)     from the proxies to λ
    lam_bias       (D, P)
    u_weight       (D, P, P)     from the proxies to the output modulation u
    u_bias         (D, P)
    merge          (D,)          the share of each direction
    expand_weight  (C, P)        from the proxies back to the channels
    expand_bias    (C,)
    =============  ============  ===============================================

    They are also what ``gspn2_cupy.torch.CompactPropagation.load_compact_parameters`` takes.
    """

    reduce_weight: Any
    reduce_bias: Any
    logits_weight: Any
    logits_bias: Any
    lam_weight: Any
    lam_bias: Any
    u_weight: Any
    u_bias: Any
    merge: Any
    expand_weight: Any
    expand_bias: Any


def shapes(channels: int, proxy_channels: int, groups: int, directions: int) -> CompactParameters:
    """Return the shape of each parameter."""
    return CompactParameters(
        reduce_weight=(proxy_channels, channels),
        reduce_bias=(proxy_channels,),
        logits_weight=(directions, groups, 3, proxy_channels),
        logits_bias=(directions, groups, 3),
        lam_weight=(directions, proxy_channels, proxy_channels),
        lam_bias=(directions, proxy_channels),
        u_weight=(directions, proxy_channels, proxy_channels),
        u_bias=(directions, proxy_channels),
        merge=(directions,),
        expand_weight=(channels, proxy_channels),
        expand_bias=(channels,),
    )


def initial_values(channels: int, proxy_channels: int, directions: int) -> CompactParameters:
    """Return (centre, reach) of each parameter: at first its values are uniform in centre ± reach.

    A reach of √(3/n) for n summands hands the variance of a signal on. Logits begin as varied as the proxies, λ and u
    within a tenth of 1, and the unit with the mean of its directions.
    """
    from_channels, from_proxies = math.sqrt(3 / channels), math.sqrt(3 / proxy_channels)
    return CompactParameters(
        reduce_weight=(0, from_channels),
        reduce_bias=(0, 0),
        logits_weight=(0, from_proxies),
        logits_bias=(0, 0),
        lam_weight=(0, 0.1 * from_proxies),
        lam_bias=(1, 0),
        u_weight=(0, 0.1 * from_proxies),
        u_bias=(1, 0),
        merge=(1 / directions, 0),
        expand_weight=(0, from_proxies),
        expand_bias=(0, 0),
    )
