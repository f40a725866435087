"""Inverse-propensity weights: rare arms count as often as common ones, up to a limit."""

from collections.abc import Sequence

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from feedback.propensity import reweigh
from feedback.records import Grade
from tests.feedback.test_accuracy import grade


def rows(*given: tuple[float, float]) -> list[Grade]:
    """Grades of these weights and propensities."""
    return [
        msgspec.structs.replace(
            grade(n, about=n, reply="Good.", up=True, who=f"u{n}"), weight=weight, propensity=p
        )
        for n, (weight, p) in enumerate(given)
    ]


def weights(found: Sequence[Grade]) -> list[float]:
    return [g.weight for g in found]


def test_arms_of_an_uneven_split_weigh_alike() -> None:
    """Nine rows at 0.9 and one at 0.1, all of weight 1: factors 10/9 and 10, mean 2; so 5/9 and 5."""
    found = weights(reweigh(rows(*[(1.0, 0.9)] * 9, (1.0, 0.1)), clip=10.0))
    assert found == pytest.approx([5 / 9] * 9 + [5.0], abs=1e-6)


def test_the_clip_bounds_a_single_row() -> None:
    """One row of a thousandth: 4 rather than 1000, beside three at 1 (sum 4): 4 / 7 and 16 / 7."""
    found = weights(reweigh(rows((1.0, 1.0), (1.0, 1.0), (1.0, 1.0), (1.0, 0.001)), clip=4.0))
    assert found == pytest.approx([4 / 7] * 3 + [16 / 7], abs=1e-6)


def test_a_clip_of_one_changes_nothing() -> None:
    before = rows((0.5, 0.9), (0.7, 0.1))
    assert reweigh(before, clip=1.0) == before


@pytest.mark.parametrize("p", [1.0, 0.5, 0.3])
def test_rows_of_one_arm_keep_their_weights(p: float) -> None:
    before = rows((0.5, p), (0.7, p), (0.2, p))
    assert reweigh(before, clip=10.0) == before


def test_nothing_weighs_nothing() -> None:
    assert reweigh([], clip=10.0) == []
    before = rows((0.0, 0.1), (0.0, 0.0))
    assert reweigh(before, clip=10.0) == before


@pytest.mark.slow
@given(
    st.lists(st.tuples(st.floats(0.01, 1.0), st.floats(0.001, 1.0)), min_size=1, max_size=20),
    st.floats(1.0, 100.0),
)
def test_the_sum_of_weights_stays(given: list[tuple[float, float]], clip: float) -> None:
    """So that budgets and thresholds in units of weight mean the same with and without it."""
    before = rows(*given)
    after = reweigh(before, clip)
    assert sum(weights(after)) == pytest.approx(sum(weights(before)), abs=1e-5)
    ratios = [b.weight / a.weight for a, b in zip(before, after, strict=True)]
    assert max(ratios) <= clip * min(ratios) * 1.01 + 1e-3
