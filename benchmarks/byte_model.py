"""The one byte model: every array of an operation crosses device memory once.

bytes = itemsize · Σ elements of the inputs and outputs. With N = B·C·H·W and P = B·H·W, G groups and D directions, the
kinds of :mod:`benchmarks.cases` have N, D·N, 3·P·G and 3·P·G·D elements. So a forward scan moves 3N + 3PG elements, a
backward one 6N + 6PG, the four-direction unit (2 + D)·N + 3PG·D. What our kernels move beyond that, workspace or an
array read twice, is not in the model: it shows as a lower score.
"""

from __future__ import annotations

import math

from benchmarks.cases import OPERATIONS, Case


def elements_moved(case: Case) -> int:
    """Return the elements that an ideal kernel reads and writes."""
    operation = OPERATIONS[case.operation]
    kinds = (*operation.inputs.values(), *operation.outputs.values())
    return sum(math.prod(case.shape_of(kind)) for kind in kinds)


def bytes_moved(case: Case) -> int:
    """Return the bytes that an ideal kernel reads and writes."""
    return elements_moved(case) * case.itemsize
