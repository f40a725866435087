"""How sure we are: intervals, calibration, clustered bootstrap. Pure, NumPy only."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from feedback import intervals

Floats = NDArray[np.float64]


class Interval(NamedTuple):
    """An estimate with its 95 % interval."""

    value: float
    low: float
    high: float


def wilson(successes: float, n: int) -> Interval:
    """A proportion with Wilson's 95 % interval; (0.5, 0, 1) from nothing."""
    share = successes / n if n else 0.5
    return Interval(share, *intervals.wilson(share, n, intervals.Z_TWO_SIDED_95))


def calibration_error(probabilities_N: Floats, outcomes_N: Floats, bins: int = 15) -> float:
    """Expected calibration error over bins of equal mass: Σ_b n_b/N·|mean probability − mean outcome|."""
    if len(probabilities_N) == 0:
        return 0.0
    order = np.argsort(probabilities_N, kind="stable")
    parts = np.array_split(order, min(bins, len(order)))
    gaps = [len(b) * abs(float(probabilities_N[b].mean() - outcomes_N[b].mean())) for b in parts]
    return sum(gaps) / len(order)


def brier(probabilities_N: Floats, outcomes_N: Floats) -> float:
    """Mean squared distance of probability and outcome; 0 from nothing."""
    return float(np.mean((probabilities_N - outcomes_N) ** 2)) if len(probabilities_N) else 0.0


def clustered_bootstrap(
    values_N: Floats, clusters: Sequence[str], rng: np.random.Generator, draws: int = 2000
) -> Interval:
    """Mean of `values_N` with a 95 % percentile interval from resampling whole clusters.

    Replies to one prompt are alike, so the prompt is the unit of evidence, not the reply.
    """
    names, index_N = np.unique(np.asarray(clusters), return_inverse=True)
    sums_C = np.bincount(index_N, weights=values_N, minlength=len(names))
    counts_C = np.bincount(index_N, minlength=len(names))
    picked_DC = rng.integers(0, len(names), size=(draws, len(names)))
    means_D = sums_C[picked_DC].sum(axis=1) / counts_C[picked_DC].sum(axis=1)
    low, high = np.quantile(means_D, [0.025, 0.975])
    return Interval(float(values_N.mean()), float(low), float(high))
