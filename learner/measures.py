"""How sure we are: intervals, calibration, clustered bootstrap. Pure, NumPy only."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from feedback import intervals
from ops.evaluation import Measure

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


def paired_change(after_N: Floats, before_N: Floats) -> Interval:
    """Change of a share from `before` to `after`, each unit answered by both, with Newcombe's 95 % interval.

        δ² = (p₁ − l₁)² − 2φ(p₁ − l₁)(u₂ − p₂) + (u₂ − p₂)²        low = p₁ − p₂ − δ

    and likewise above; l and u are Wilson's bounds, φ the correlation over units, corrected for continuity.
    Unlike a bootstrap it has a width where nothing changed. A unit may be a share itself (several replies to
    one prompt): then the interval is wider than it need be.

    Source: Newcombe 1998, method 10, doi:10.1002/(SICI)1097-0258(19981130)17:22<2635::AID-SIM954>3.0.CO;2-C.
    """
    n = len(after_N)
    if n == 0:
        return Interval(0.0, -1.0, 1.0)
    after, before = wilson(float(after_N.sum()), n), wilson(float(before_N.sum()), n)
    phi = _phi(after_N, before_N)
    change = after.value - before.value
    return Interval(
        change,
        change - _joined(after.value - after.low, before.high - before.value, phi),
        change + _joined(after.high - after.value, before.value - before.low, phi),
    )


def share_change(name: str, after_P: Floats, before_P: Floats) -> Measure:
    """The change of a share, prompt by prompt, candidate against baseline."""
    found = paired_change(after_P, before_P)
    return Measure(
        name=name,
        value=found.value,
        low=found.low,
        high=found.high,
        n=len(after_P),
        method="newcombe",
        candidate=float(after_P.mean()),
        baseline=float(before_P.mean()),
    )


def _phi(after_N: Floats, before_N: Floats) -> float:
    spread = float(after_N.std() * before_N.std())
    if spread == 0.0:
        return 0.0
    together = float((after_N * before_N).mean() - after_N.mean() * before_N.mean())
    if together > 0.0:
        together = max(0.0, together - 0.5 / len(after_N))
    return together / spread


def _joined(one: float, other: float, phi: float) -> float:
    return float(np.sqrt(max(0.0, one * one - 2.0 * phi * one * other + other * other)))


def excess(
    values_N: Floats, groups: Sequence[str], rng: np.random.Generator, draws: int = 2000, alpha: float = 0.05
) -> dict[str, Interval]:
    """By group, its mean less the mean of all other groups' values; intervals that hold for all at once.

    Half their width is the 1 − alpha quantile of the largest excess after random changes of the signs:
    what chance does where each value is a difference of two things alike. Wider than need be where all values
    moved together. {} with fewer than two groups.
    """
    names = sorted(set(groups))
    if len(names) < 2:
        return {}
    mine_GN = np.asarray(groups) == np.array(names)[:, None]
    weight_GN = mine_GN / mine_GN.sum(1, keepdims=True) - ~mine_GN / (~mine_GN).sum(1, keepdims=True)
    signs_DN = rng.choice([-1.0, 1.0], size=(draws, len(values_N)))
    chance_D = np.abs((signs_DN * values_N) @ weight_GN.T).max(axis=1)
    half = float(np.quantile(chance_D, 1.0 - alpha))
    found_G = weight_GN @ values_N
    return {
        name: Interval(float(v), float(v) - half, float(v) + half)
        for name, v in zip(names, found_G, strict=True)
    }
