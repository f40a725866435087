"""What held-out pairs say of a scorer, by hand, and the card that shows it."""

import json
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import pytest

from learner import findings, model_card
from learner.findings import Judged


def judged(margins: list[float], lengths: list[float], p: float = 1.0, kinds: str = "") -> Judged:
    return Judged(
        margin_B=np.array(margins),
        p_B=np.full(len(margins), p),
        kinds=list(kinds) or ["edit"] * len(margins),
        conversations=[f"{i}" for i in range(len(margins))],
        length_difference_B=np.array(lengths),
        unit="tokens",
    )


def test_accuracy_is_told_by_kind_and_by_length() -> None:
    """Wilson's interval for 3 of 4 is 0.301 to 0.954."""
    found = findings.find(judged([1.0, 2.0, -1.0, 3.0], [-5.0, -2.0, -1.0, 9.0], kinds="aabb"))
    assert (found.accuracy.accuracy, found.accuracy.pairs) == (0.75, 4)
    assert (found.accuracy.low, found.accuracy.high) == pytest.approx((0.3006, 0.9544), abs=1e-4)
    assert {s.name: s.accuracy for s in found.by_kind} == {"a": 1.0, "b": 0.5}
    assert [(s.name, s.accuracy) for s in found.by_length_difference] == [
        ("-5 to -5", 1.0),
        ("-2 to -2", 1.0),
        ("-1 to -1", 0.0),
        ("+9 to +9", 1.0),
    ]
    assert found.shorter_is_better.accuracy == 0.75


def test_accuracy_is_told_by_dimension() -> None:
    """The reward takes the first of both; raters find it more harmless once, and never more honest."""
    said = [{"harmless": 0.9, "honest": 0.2}, {"harmless": 0.5, "honest": 0.0}]
    found = findings.find(replace(judged([1.0, 2.0], [0.0, 0.0]), dimensions=said))
    shares = [(s.name, s.pairs, s.accuracy) for s in found.by_dimension]
    assert shares == [("harmless", 1, 1.0), ("honest", 2, 0.0)]


def test_ties_are_in_no_accuracy() -> None:
    """Nobody can be right about them."""
    assert findings.find(judged([1.0, 1.0], [1.0, 2.0], p=0.5)).accuracy.pairs == 0


def test_a_temperature_undoes_overconfidence() -> None:
    """Three of four right at margin 8: their log-odds is ln 3 = 1.0986, so T = 8 / 1.0986 = 7.28."""
    found = findings.find(judged([8.0, 8.0, 8.0, -8.0] * 50, [0.0] * 200))
    assert found.temperature == pytest.approx(7.28, rel=0.03)
    assert found.raw.error == pytest.approx(0.25, abs=0.01)


def test_scaled_calibration_is_that_of_the_true_log_odds() -> None:
    """Right with probability σ(z), margin 5z: the error is gone, the Brier score that of σ(z) itself."""
    chance = np.random.default_rng(0)
    z = np.abs(chance.normal(size=2000))
    right = np.where(chance.random(2000) < 1 / (1 + np.exp(-z)), 1.0, -1.0)
    found = findings.find(judged(list(5 * z * right), [0.0] * 2000))
    truth = float(np.mean((1 / (1 + np.exp(-z * right)) - 1.0) ** 2))
    assert found.raw.error > 0.15
    assert found.scaled.error < 0.05
    assert found.scaled.brier == pytest.approx(truth, abs=0.002)


def test_reported_calibration_never_saw_the_pairs_it_is_of() -> None:
    """Conversations 0, 2, … would have their margins halved, 1, 3, … tenfold: each gets the other's."""
    even_odd = np.array([4.0, 1.0] * 40)
    right = np.array([1.0, 1.0, 1.0, 1.0, 1.0, 1.0, -1.0, -1.0] * 10)
    scaled = findings.cross_fitted(judged(list(even_odd * right), [0.0] * 80))
    index = np.unique([f"{i}" for i in range(80)], return_inverse=True)[1]
    for half in (index % 2 == 0, index % 2 == 1):
        fitted = findings.temperature((even_odd * right)[~half], np.ones((~half).sum()))
        np.testing.assert_allclose(scaled[half], (even_odd * right)[half] / fitted)


def test_length_correlation_is_one_for_a_scorer_of_length() -> None:
    found = findings.find(judged([2.0, -4.0, 6.0], [1.0, -2.0, 3.0]))
    assert found.length_correlation == pytest.approx(1.0)
    assert found.label_length_correlation == pytest.approx(2.0 / np.sqrt(3 * 14))


def test_no_pair_says_nothing() -> None:
    found = findings.find(judged([], []))
    assert (found.accuracy.pairs, found.accuracy.low, found.accuracy.high) == (0, 0.0, 1.0)
    assert found.temperature == 1.0


@pytest.mark.slow
def test_a_card_says_where_a_model_comes_from(tmp_path: Path) -> None:
    """For people as Markdown with pictures, for programs as JSON."""
    origin = model_card.Origin(
        name="reward model of run-0003",
        data="snap-0003",
        parents={"base model": "abc"},
        train_pairs=7,
        settings={"epochs": 2},
    )
    honest = findings.Share(name="honest", pairs=4, accuracy=0.75, low=0.3, high=0.95)
    found = msgspec.structs.replace(findings.find(judged([1.0, -1.0], [2.0, -3.0])), by_own_head=(honest,))
    made = model_card.card(origin, found, ["a note"])
    model_card.write(made, tmp_path)
    text = (tmp_path / "card.md").read_text()
    for said in (
        "run-0003",
        "snap-0003",
        "abc",
        "0.500 [0.095, 0.905]",
        "epochs",
        "a note",
        "code",
        "| honest | 4 | 0.750",
    ):
        assert said in text, said
    assert json.loads((tmp_path / "card.json").read_bytes())["origin"]["train_pairs"] == 7
    for picture in ("calibration.png", "length.png"):
        assert picture in text
        assert (tmp_path / picture).read_bytes().startswith(b"\x89PNG")
