"""The NumPy reference on the contract's example: four directions of a 512 x 512 image, forward.

    python -m pytest --benchmark-only benchmarks/test_reference.py

Goal: below 2 s on 2 cores. The result is checked before it is timed.
"""

import numpy as np
import pytest

import gspn2_cupy

SHAPE = (1, 3, 512, 512)
DIRECTIONS = len(gspn2_cupy.ALL_DIRECTIONS)


def arrays(normalize):
    """x, weight (or logits), lam and u; weights of a third each, whose rows sum to 1 away from the border."""
    rng = np.random.default_rng(0)
    batch, channels, height, width = SHAPE
    weight_shape = (batch, DIRECTIONS, 1, 3, height, width)
    weight = np.full(weight_shape, 1 / 3) if normalize is None else rng.standard_normal(weight_shape)
    per_direction = (batch, DIRECTIONS, channels, height, width)
    given = (
        rng.standard_normal(SHAPE),
        weight,
        rng.uniform(0.5, 1.5, per_direction),
        rng.uniform(0.5, 1.5, per_direction),
    )
    return [a.astype(np.float32) for a in given]


@pytest.mark.parametrize("normalize", [None, "sigmoid"])
def test_four_directions_forward(benchmark, normalize):
    given = arrays(normalize)
    y = gspn2_cupy.propagate(*given, normalize=normalize)
    truth = gspn2_cupy.propagate(*(a.astype(np.float64) for a in given), normalize=normalize)
    assert np.linalg.norm(y - truth) <= 5e-6 * np.linalg.norm(truth)
    benchmark.extra_info["shape"] = SHAPE
    benchmark.extra_info["goal_seconds"] = 2.0
    benchmark.pedantic(gspn2_cupy.propagate, given, {"normalize": normalize}, rounds=3, warmup_rounds=0)
