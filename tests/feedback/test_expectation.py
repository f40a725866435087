"""Expectation: ridge logistic regression on words, and nobody predicted from their own votes."""

from math import exp, log

import numpy as np
import pytest

from feedback.expectation import FOLDS, expected, features, fit, habit

PEOPLE = tuple(f"u{n}" for n in range(40))


def ones(n: int) -> np.ndarray:
    return np.ones(n)


def test_one_word_gets_the_coefficient_that_balances_votes_and_penalty():
    """Four votes, three up: the gradient 3 σ(-β) - σ(β) - ridge β is zero at the optimum, ridge 1."""
    x = features(["a", "b", "c", "d"], [{"good": 1.0}] * 4)
    (beta,) = fit(x, np.array([1.0, 1.0, 1.0, -1.0]), ones(4), np.zeros(4), ridge=1.0)
    up = 1.0 / (1.0 + exp(-beta))
    assert 3.0 * (1.0 - up) - up - beta == pytest.approx(0.0, abs=1e-3)
    assert beta > 0.4


def test_an_offset_that_explains_the_votes_leaves_nothing_to_the_words():
    """Half of the votes are up where the offset is 0: no word is good or bad."""
    x = features(["a", "b", "c", "d"], [{"good": 1.0}] * 4)
    (beta,) = fit(x, np.array([1.0, -1.0, 1.0, -1.0]), ones(4), np.zeros(4), ridge=1.0)
    assert beta == pytest.approx(0.0, abs=1e-6)
    (lower,) = fit(x, np.array([1.0, -1.0, 1.0, -1.0]), ones(4), np.full(4, 3.0), ridge=1.0)
    assert lower < -0.5


def test_nobody_has_a_say_in_what_is_expected_of_them():
    """u0 turns round all of its thousand votes: what others would say of its replies stays the same."""
    accounts = [*PEOPLE, *["u0"] * 1000]
    x = features(accounts, [{"good": 1.0}] * len(accounts))
    side_V = ones(len(accounts))
    turned_V = np.where(np.array(accounts) == "u0", -1.0, 1.0)
    before, after = (
        expected(x, s, ones(len(accounts)), np.zeros(len(accounts)), 1.0) for s in (side_V, turned_V)
    )
    assert after[0] == before[0] > 1.0
    assert (after[1:40] < before[1:40]).any()


def test_words_of_one_account_alone_are_left_out():
    x = features(["a", "a", "b"], [{"mine": 1.0, "ours": 1.0}, {"mine": 1.0}, {"ours": -1.0}])
    assert (x.number, x.vote_N.tolist(), x.sign_N.tolist()) == (1, [0, 2], [1.0, -1.0])


def test_habit_is_the_log_odds_of_an_up_on_single_replies():
    """Three ups and a down, one of each added: ln(4 / 2). Comparisons have no ups."""
    graded_V, side_V = np.array([1.0, 1.0, 1.0, 1.0, 0.0]), np.array([1.0, 1.0, 1.0, -1.0, 1.0])
    assert habit(graded_V, side_V, ones(5)).tolist() == pytest.approx([log(2.0)] * 4 + [0.0])


def test_folds_are_parts_of_the_accounts_and_stay():
    x = features(PEOPLE, [{"good": 1.0}] * 40)
    assert set(x.fold_V.tolist()) == set(range(FOLDS))
    assert features(PEOPLE[::-1], [{"good": 1.0}] * 40).fold_V.tolist() == x.fold_V.tolist()[::-1]
