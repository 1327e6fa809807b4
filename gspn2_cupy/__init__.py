"""GSPN-2's line-scan propagation as CUDA kernels for CuPy, with a NumPy reference for every machine.

The public functions take and return arrays of the caller's own library; :mod:`gspn2_cupy.ops` documents them, and
:mod:`gspn2_cupy.compact` the compact unit made of them.
"""

from gspn2_cupy.compact import (
    CompactGrads,
    CompactParameters,
    compact_parameters,
    compact_propagate,
    compact_propagate_backward,
)
from gspn2_cupy.ops import (
    ALL_DIRECTIONS,
    LineScanGrads,
    PropagateGrads,
    affinity_matrix,
    line_scan,
    line_scan_backward,
    normalize_weights,
    normalize_weights_backward,
    propagate,
    propagate_backward,
    warmup,
)

__version__ = "0.1.0"

__all__ = [
    "ALL_DIRECTIONS",
    "CompactGrads",
    "CompactParameters",
    "LineScanGrads",
    "PropagateGrads",
    "affinity_matrix",
    "compact_parameters",
    "compact_propagate",
    "compact_propagate_backward",
    "line_scan",
    "line_scan_backward",
    "normalize_weights",
    "normalize_weights_backward",
    "propagate",
    "propagate_backward",
    "warmup",
]
