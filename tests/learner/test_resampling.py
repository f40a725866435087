"""Soft labels and weights as repeated rows: as often as they should be, with as little chance as can be."""

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from learner.resampling import halves, systematic


def test_whole_shares_are_drawn_exactly() -> None:
    """Masses 1, 0, 2, 1 of 4 in 8 draws: 2, 0, 4, 2, whatever the seed."""
    for seed in range(5):
        assert Counter(systematic([1.0, 0.0, 2.0, 1.0], 8, seed)) == {0: 2, 2: 4, 3: 2}


@settings(max_examples=40)
@given(
    st.lists(st.tuples(st.floats(0.5, 1.0), st.floats(0.0, 1.0)), min_size=1, max_size=30),
    st.integers(1, 60),
    st.integers(0, 99),
)
def test_no_row_is_drawn_once_more_or_less_than_its_share(
    rows: list[tuple[float, float]], draws: int, seed: int
) -> None:
    """Neither a half nor both halves of a soft row together."""
    masses = halves([p for p, _ in rows], [w for _, w in rows])
    if sum(masses) <= 0:
        return
    counts = Counter(systematic(masses, draws, seed))
    assert counts.total() == draws
    share = [draws * mass / sum(masses) for mass in masses]
    for i in range(len(masses)):
        assert abs(counts[i] - share[i]) < 1 + 1e-6
    for i in range(0, len(masses), 2):
        assert abs(counts[i] + counts[i + 1] - share[i] - share[i + 1]) < 1 + 1e-6


def test_counts_are_right_in_the_mean() -> None:
    """p 0.9, weight 0.5 beside p 0.5, weight 1: masses 0.45, 0.05, 0.5, 0.5, three draws.

    Shares 0.9, 0.1, 1, 1; the mean of 200 seeds lies within 0.06 (three standard errors of a coin of 0.1).
    """
    masses = halves([0.9, 0.5], [0.5, 1.0])
    assert masses == pytest.approx([0.45, 0.05, 0.5, 0.5])
    counts = Counter(i for seed in range(200) for i in systematic(masses, 3, seed))
    assert [counts[i] / 200 for i in range(4)] == pytest.approx([0.9, 0.1, 1.0, 1.0], abs=0.06)


def test_copies_of_a_row_are_not_neighbours_for_ever() -> None:
    """The order is shuffled, by the seed alone."""
    drawn = systematic([1.0] * 50, 100, 3)
    assert drawn == systematic([1.0] * 50, 100, 3)
    assert drawn != sorted(drawn)
    assert drawn != systematic([1.0] * 50, 100, 4)
