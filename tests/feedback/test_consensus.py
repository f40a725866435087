"""Agreement and reliability of raters, against figures worked by hand and raters who are simulated."""

from collections import Counter
from itertools import product
from random import Random

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from feedback import consensus
from feedback.consensus import Label
from feedback.events import SignalKind
from feedback.records import Grade, Pair
from tests.feedback.builders import NOON, user

# --- agreement


def test_alpha_of_five_answers_worked_by_hand():
    """a: 1, 1. b: 0, 1/2. c: 1 alone, which says nothing.
    D_o = (0 + 2 · 0.25) / 4 = 0.125. D_e = 2 (2 · 1 + 2 · 0.25 + 0.25) / (4 · 3) = 5.5 / 12. 1 - 1.5 / 5.5"""
    said = [("a", "x", 1.0), ("a", "y", 1.0), ("b", "x", 0.0), ("b", "y", 0.5), ("c", "x", 1.0)]
    found = consensus.alpha(Label(*one) for one in said)
    assert found.alpha == pytest.approx(8 / 11, abs=1e-6)
    assert (found.items, found.answers) == (2, 5)


def test_perfect_agreement_is_one_and_nothing_to_compare_is_none():
    agreed = [Label(item, rater, value) for item, value in (("a", 1.0), ("b", 0.0)) for rater in "xy"]
    assert consensus.alpha(agreed).alpha == 1.0
    assert consensus.alpha([]).alpha is None
    assert consensus.alpha([Label("a", "x", 1.0), Label("b", "y", 0.0)]).alpha is None
    assert consensus.alpha([Label("a", "x", 1.0), Label("a", "y", 1.0)]).alpha is None


def test_contradiction_counts_four_times_a_tie():
    """a is agreed on; b: 1 and 1/2, or 1 and 0. D_o = 2 d² / 4; D_e = 2 (2 + 2 d'² …) by hand:
    tie: values 0, 0, 1, 1/2: 1 - (0.5 / 4) / (2 · (2 + 0.5 + 0.25) / 12); contradiction: 0, 0, 1, 0."""
    agreed = [Label("a", "x", 0.0), Label("a", "y", 0.0)]
    tie = consensus.alpha([*agreed, Label("b", "x", 1.0), Label("b", "y", 0.5)])
    contradiction = consensus.alpha([*agreed, Label("b", "x", 1.0), Label("b", "y", 0.0)])
    assert tie.alpha == pytest.approx(1 - 0.125 / (5.5 / 12), abs=1e-6)
    assert contradiction.alpha == pytest.approx(1 - 0.5 / (6 / 12), abs=1e-6)


_VALUES = st.sampled_from((0.0, 0.5, 1.0))


@settings(max_examples=50, deadline=None)
@given(st.lists(st.lists(_VALUES, min_size=1, max_size=4), min_size=1, max_size=8))
def test_alpha_is_its_definition_and_the_same_turned_round(units):
    labels = [Label(f"i{u}", f"r{r}", v) for u, values in enumerate(units) for r, v in enumerate(values)]
    found = consensus.alpha(labels).alpha
    several = [values for values in units if len(values) > 1]
    pool = [v for values in several for v in values]
    expected = sum((a - b) ** 2 for a, b in product(pool, pool)) / max(1, len(pool) * (len(pool) - 1))
    observed = sum(
        sum((a - b) ** 2 for a, b in product(values, values)) / (len(values) - 1) for values in several
    ) / max(1, len(pool))
    assert found == (pytest.approx(1.0 - observed / expected, abs=1e-6) if expected else None)
    turned = consensus.alpha(label._replace(value=1.0 - label.value) for label in labels).alpha
    assert found is None or turned == pytest.approx(found, abs=1e-9)


def test_the_interval_of_alpha_holds_the_truth_19_times_of_20():
    """Two raters, each right 4 times of 5, contradict each other 0.32 of the time, by chance it would be half
    of the time: 1 - 0.32 / 0.5 = 0.36."""
    rng = Random(5)
    held = 0
    for _ in range(60):
        truths = [rng.choice((0.0, 1.0)) for _ in range(100)]
        said = ((i, r, t if rng.random() < 0.8 else 1.0 - t) for i, t in enumerate(truths) for r in "xy")
        found = consensus.alpha(Label(f"i{i}", rater, value) for i, rater, value in said)
        assert found.low is not None and found.high is not None
        held += found.low < 0.36 < found.high
    assert 52 <= held <= 60


# --- reliability


def test_one_round_worked_by_hand():
    """One rater, one answer: 1. So first (0, 0, 1), and then
    habits when 1 is true (2 · prior + 1 seen, of 9): 0.8, 1.2, 7; when neither is: 1.6, 4.8, 1.6 of 8;
    shares, with 0 and 1 exchangeable: 3, 2, 3; posterior ∝ 3 · 0.8 / 9, 2 · 1.6 / 8, 3 · 7 / 9."""
    found = consensus.dawid_skene([Label("a", "x", 1.0)], rounds=1)
    expected = np.array([2.4 / 9, 3.2 / 8, 21 / 9])
    assert found.posteriors["a"] == pytest.approx(expected / expected.sum())


def people(accuracy: dict[str, float], n: int, seed: int) -> tuple[dict[str, float], list[Label]]:
    """The truth of n items, a tenth of them ties, and what raters of these accuracies say."""
    rng = Random(seed)
    truth = {f"i{i}": rng.choice((0.0, 1.0)) if i % 10 else 0.5 for i in range(n)}
    labels = []
    for item, true in truth.items():
        for rater, right in accuracy.items():
            wrong = rng.choice([v for v in (0.0, 0.5, 1.0) if v != true])
            labels.append(Label(item, rater, true if rng.random() < right else wrong))
    return truth, labels


def test_simulated_raters_are_recovered():
    accuracy = {"expert": 0.95, "fair": 0.8, "careless": 0.6, "coin": 0.34}
    _, labels = people(accuracy, 600, seed=3)
    found = {r.rater: r for r in consensus.dawid_skene(labels).raters}
    for rater, right in accuracy.items():
        assert found[rater].right == pytest.approx(right, abs=0.06)
        assert found[rater].opposite == pytest.approx((1 - right) / 2, abs=0.06)
    assert {r.answers for r in found.values()} == {600}


def test_reliability_beats_the_majority():
    """Three careless raters outvote an expert and a fair one; weighed by what they are worth, they do not."""
    accuracy = {"expert": 0.97, "fair": 0.85, "c1": 0.45, "c2": 0.45, "c3": 0.45}
    truth, labels = people(accuracy, 400, seed=4)
    posteriors = consensus.dawid_skene(labels).posteriors
    right = sum((0.0, 0.5, 1.0)[int(posteriors[i].argmax())] == t for i, t in truth.items())
    votes = {i: [label.value for label in labels if label.item == i] for i in list(truth)}
    majority = sum(max((0.0, 0.5, 1.0), key=votes[i].count) == t for i, t in truth.items())
    assert right / 400 > 0.93 and right > majority + 30


def test_somebody_who_always_says_the_contrary_still_informs():
    truth, labels = people({"x": 0.9, "y": 0.9, "contrary": 0.02}, 300, seed=6)
    found = consensus.dawid_skene(labels)
    contrary = next(r for r in found.raters if r.rater == "contrary")
    assert contrary.right < 0.1
    assert sum((found.posteriors[i][2] > 0.5) == (t == 1.0) for i, t in truth.items()) > 280


def test_known_answers_decide_and_measure():
    """Two raters who always contradict each other: one known item tells whom to believe."""
    labels = [Label(f"i{n}", r, float(r == "x")) for n in range(10) for r in "xy"]
    open_, told = consensus.dawid_skene(labels), consensus.dawid_skene(labels, {"i0": 0.0})
    assert open_.posteriors["i1"][0] == pytest.approx(open_.posteriors["i1"][2])
    assert told.posteriors["i0"] == pytest.approx([1.0, 0.0, 0.0])
    assert told.posteriors["i1"][0] > 0.9


def test_which_reply_comes_first_decides_nothing():
    _, labels = people({"x": 0.9, "y": 0.7, "z": 0.6}, 60, seed=7)
    found = consensus.dawid_skene(labels)
    turned = consensus.dawid_skene(label._replace(value=1.0 - label.value) for label in labels)
    for item, posterior in found.posteriors.items():
        assert turned.posteriors[item] == pytest.approx(posterior[::-1], abs=1e-6)


def test_certainty_is_one_for_a_sure_tie_and_nothing_for_no_idea():
    assert consensus.certainty(np.array([0.0, 1.0, 0.0])) == pytest.approx(1.0)
    assert consensus.certainty(np.array([1, 1, 1]) / 3) == pytest.approx(0.0)
    assert consensus.certainty(np.array([0.5, 0.0, 0.5])) == pytest.approx(1 - np.log(2) / np.log(3))


# --- one pair from many answers


def said(
    rater: str,
    value: float,
    *,
    one: str = "r1",
    other: str = "r2",
    kind=SignalKind.REVIEW,
    **dimensions: float,
) -> Pair:
    """P(`one` is better) = `value`, also by dimension."""
    chosen, rejected = (one, other) if value >= 0.5 else (other, one)
    turned = chosen != one
    return Pair(
        pair_id=f"pair-{rater}-{one}-{other}",
        prompt_digest="d",
        prompt=(user("How?"),),
        chosen=f"text of {chosen}",
        rejected=f"text of {rejected}",
        chosen_response_id=chosen,
        rejected_response_id=rejected,
        user=rater,
        kind=kind,
        p=max(value, 1.0 - value),
        dimensions={d: 1.0 - v if turned else v for d, v in dimensions.items()},
        weight=1.0,
        reason="review",
        event_ids=(f"e-{rater}",),
        at=NOON,
    )


def test_answers_about_two_replies_become_one_pair():
    (pair,), _, report = consensus.settle(
        [said("x", 1.0, honest=0.0), said("y", 1.0), said("z", 0.0, honest=0.0)]
    )
    assert (pair.chosen_response_id, pair.chosen, pair.raters) == ("r1", "text of r1", ("x", "y", "z"))
    assert 0.6 < pair.p < 0.95 and 0.1 < pair.weight < 0.9
    assert [(v.rater, v.p, v.dimensions) for v in pair.votes] == [
        ("x", 1.0, {"honest": 0.0}),
        ("y", 1.0, {}),
        ("z", 0.0, {"honest": 0.0}),
    ]
    assert pair.dimensions["honest"] < 0.2 and set(pair.dimensions) == {"honest"}
    assert pair.reason == "reviewed: 2 for it, 0 for neither, 1 against"
    assert pair.event_ids == ("e-x", "e-y", "e-z")
    assert [a.dimension for a in report.agreement] == ["overall", "helpful", "honest", "harmless"]


def test_more_agreeing_raters_make_a_surer_and_heavier_pair():
    (one,), *_ = consensus.settle([said("x", 1.0)])
    (three,), *_ = consensus.settle([said(r, 1.0) for r in "xyz"])
    assert 0.5 < one.p < three.p and one.weight < three.weight <= 1.0


def test_a_sure_tie_has_weight_and_one_half():
    (pair,), *_ = consensus.settle([said(r, 0.5) for r in "xyz"])
    assert pair.p == pytest.approx(0.5, abs=1e-6) and pair.weight > 0.4


def test_the_pair_keeps_its_name_when_the_consensus_turns():
    """A diff between two snapshots then says that it was re-labelled, not that another came."""
    (before,), *_ = consensus.settle([said("x", 1.0)])
    (after,), *_ = consensus.settle([said("x", 1.0), *(said(r, 0.0) for r in "yz")])
    assert (before.chosen_response_id, after.chosen_response_id) == ("r1", "r2")
    assert before.pair_id == after.pair_id


def test_the_ones_whose_lead_nobody_chose_is_shown_the_right_way_round():
    """A known label says r2, and the only rater said r1: the row's texts must follow its label."""
    label = said("ola", 0.0, kind=SignalKind.LABEL)
    (pair,), *_ = consensus.settle([said("x", 1.0)], [label])
    assert (pair.chosen_response_id, pair.chosen, pair.rejected) == ("r2", "text of r2", "text of r1")
    assert (pair.p, [v.p for v in pair.votes]) == (1.0, [0.0])


def test_the_order_of_answers_does_not_matter():
    answers = [said(r, v, one=f"a{n}", other=f"b{n}") for n in range(5) for r, v in (("x", 1.0), ("y", 0.5))]
    assert consensus.settle(answers) == consensus.settle(reversed(answers))


def bad(rater: str, **sides: str) -> tuple[Pair, list[Grade]]:
    """What a rater's "both bad" makes: a tie, and a bad grade of each reply."""
    answer = msgspec.structs.replace(said(rater, 0.5, **sides), reason="review, both bad")
    grades = [
        Grade(
            grade_id=f"grade-{rater}-{response_id}",
            prompt_digest=answer.prompt_digest,
            prompt=answer.prompt,
            reply=f"text of {response_id}",
            response_id=response_id,
            adapter="base",
            user=rater,
            kind=SignalKind.REVIEW,
            inferred=False,
            p=0.0,
            weight=1.0,
            reason="review: both bad",
            event_ids=(f"e-{rater}",),
            at=NOON,
        )
        for response_id in (answer.chosen_response_id, answer.rejected_response_id)
    ]
    return answer, grades


def test_both_bad_of_a_minority_is_said_in_the_reason():
    """One of two ties: the pair stays, and nobody's grade counts."""
    answer, grades = bad("x")
    (pair,), none, _ = consensus.settle([answer, said("y", 0.5)], grades=grades)
    assert none == [] and pair.reason.endswith("1 call both bad")


def test_two_bad_replies_make_bad_grades_and_no_pair():
    """All three of one mind: p = (1 - P(neither)) / 2, and the pair's weight in three parts."""
    answers, grades = zip(*(bad(r) for r in "xyz"), strict=True)
    (tie,), *_ = consensus.settle([said(r, 0.5) for r in "xyz"])
    pairs, found, _ = consensus.settle(answers, grades=[g for both in grades for g in both])
    assert pairs == []
    assert Counter(g.response_id for g in found) == {"r1": 3, "r2": 3}
    assert {g.weight for g in found} == {round(tie.weight / 3, 6)}
    (p,) = {g.p for g in found}
    assert 0.0 < p < 0.1


def test_a_rater_who_preferred_one_is_no_witness_that_both_are_bad():
    """Two call both bad, the third prefers one: theirs alone are grades, a bit less sure."""
    answers, grades = zip(*(bad(r) for r in "xy"), strict=True)
    sure = consensus.settle(answers, grades=[g for both in grades for g in both]).grades
    pairs, found, _ = consensus.settle(
        [*answers, said("z", 1.0)], grades=[*grades[0], *grades[1], *bad("z")[1]]
    )
    assert pairs == [] and {g.user for g in found} == {"x", "y"}
    assert found[0].p > sure[0].p
