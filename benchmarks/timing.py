"""From samples to a median with its spread; no GPU needed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Timing:
    """Seconds of one call: median and 10th and 90th percentile over samples, each the mean of ``calls`` calls."""

    median: float
    p10: float
    p90: float
    samples: int
    calls: int
    how: str  # "graph": replays of a captured graph; "eager": calls one by one; "host": the host's clock

    @classmethod
    def of(cls, samples: Sequence[float], calls: int, how: str) -> Timing:
        """Summarise samples, each in seconds per call."""
        p10, median, p90 = (float(value) for value in np.percentile(samples, (10, 50, 90)))
        return cls(median, p10, p90, len(samples), calls, how)

    def record(self) -> dict[str, Any]:
        """Return plain values for a results file."""
        return asdict(self)


@dataclass(frozen=True)
class Batches:
    """How to spend a time limit: ``samples`` batches of ``calls`` calls."""

    calls: int
    samples: int


def batches(seconds_per_call: float, limit: float, sets: int, most_calls: int = 400) -> Batches:
    """Choose 1 to 30 batches of some 2 ms that visit all sets of buffers equally often, within a limit."""
    calls = max(1, min(math.ceil(2e-3 / max(seconds_per_call, 1e-7)), most_calls, int(limit / seconds_per_call)))
    if sets * seconds_per_call < limit / 3:
        calls = -(-calls // sets) * sets
    return Batches(calls, max(1, min(30, int(limit / (calls * seconds_per_call)))))
