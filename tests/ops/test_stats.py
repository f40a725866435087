"""Confidence intervals over clustered values."""

import pytest

from ops.simulation.stats import clustered


def test_the_mean_weighs_values_not_clusters() -> None:
    assert clustered([1.0, 0.0, 0.0, 0.0], ["a", "b", "b", "b"]).mean == 0.25


def test_copies_of_a_cluster_do_not_narrow_the_interval() -> None:
    """A hundred replies to one question are one piece of evidence about questions, not a hundred."""
    once = clustered([0.0, 1.0, 0.0, 1.0], ["a", "b", "c", "d"])
    often = clustered([0.0, 1.0, 0.0, 1.0] * 100, ["a", "b", "c", "d"] * 100)
    assert (often.low, often.high) == (once.low, once.high)
    apart = clustered([0.0, 1.0, 0.0, 1.0] * 100, range(400))
    assert apart.high - apart.low < (often.high - often.low) / 5


def test_the_interval_is_as_wide_as_the_standard_error_says() -> None:
    """400 coin tosses: standard error 0.025, so 95 % lie within 0.049 of the mean."""
    interval = clustered([0.0, 1.0] * 200, range(400))
    assert interval.low == pytest.approx(0.451, abs=0.004)
    assert interval.high == pytest.approx(0.549, abs=0.004)


def test_the_same_seed_gives_the_same_interval() -> None:
    values = [0.1, 0.7, 0.4, 0.9]
    assert clustered(values, range(4), seed=3) == clustered(values, range(4), seed=3)


@pytest.mark.parametrize(("values", "clusters"), [([], []), ([1.0], ["a", "b"])])
def test_holes_are_refused(values: list[float], clusters: list[str]) -> None:
    with pytest.raises(ValueError, match="as many of both"):
        clustered(values, clusters)
