"""Means with confidence intervals, for values that come in clusters. Pure."""

from collections.abc import Hashable, Sequence

import msgspec
import numpy as np


class Interval(msgspec.Struct, frozen=True):
    """A mean and its 95 % confidence interval."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.mean:.3f} [{self.low:.3f}, {self.high:.3f}]"


def clustered(
    values: Sequence[float], clusters: Sequence[Hashable], *, seed: int = 0, resamples: int = 2000
) -> Interval:
    """The mean of `values`, with a percentile bootstrap over whole clusters.

    Replies to one question resemble one another, so the question is drawn, not the reply: intervals over
    replies alone would be too narrow. The mean weighs every value alike.
    Raises: ValueError when there are no values, or not as many clusters as values.
    """
    if not values or len(values) != len(clusters):
        raise ValueError(
            f"{len(values)} values in {len(clusters)} clusters: as many of both, and at least one"
        )
    order = {cluster: i for i, cluster in enumerate(dict.fromkeys(clusters))}
    index = np.array([order[c] for c in clusters])
    sums = np.bincount(index, weights=np.asarray(values, dtype=float))
    sizes = np.bincount(index)
    drawn = np.random.default_rng(seed).integers(len(sizes), size=(resamples, len(sizes)))
    means = sums[drawn].sum(axis=1) / sizes[drawn].sum(axis=1)
    low, high = np.quantile(means, (0.025, 0.975))
    return Interval(float(sums.sum() / sizes.sum()), float(low), float(high))
