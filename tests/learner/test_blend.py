"""Blending: what two scorers know together, and neither of them alone."""

import numpy as np
import pytest

from learner import blend


def test_the_weights_are_those_of_the_truth() -> None:
    """Labels drawn from σ(2a + ½b): the fit finds 2 and ½, whatever the scale that b comes in."""
    chance = np.random.default_rng(0)
    a, b = chance.normal(size=(2, 20_000))
    p = (chance.random(20_000) < 1 / (1 + np.exp(-(2 * a + 0.5 * b)))).astype(float)
    found = blend.weights({"a": a, "b": 100 * b}, p, np.ones(20_000))
    assert found["a"] == pytest.approx(2.0, abs=0.1)
    assert found["b"] == pytest.approx(0.005, abs=0.0005)
    np.testing.assert_allclose(blend.margins(found, {"a": a, "b": b}), found["a"] * a + found["b"] * b)


def test_a_scorer_that_is_wrong_is_left_out_and_not_turned_round() -> None:
    """A weight below 0 would be a fit to chance: scorers were trained the right way round."""
    right = np.array([1.0, 2.0, -0.5, 1.5] * 5)
    found = blend.weights({"right": right, "wrong": -right, "silent": 0 * right}, np.ones(20), np.ones(20))
    assert found["right"] > 0
    assert found["wrong"] == found["silent"] == 0.0
