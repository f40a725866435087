"""Fitted accuracies: what gold says of each kind of signal, and the priors where it says nothing."""

import random

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from feedback import accuracy
from feedback.events import SignalKind
from feedback.records import Grade, Pair
from tests.feedback.builders import NOON, user


def grade(
    n: int, *, about: int, reply: str, up: bool, who: str, kind: SignalKind = SignalKind.THUMB
) -> Grade:
    return Grade(
        grade_id=f"grade-{n}",
        prompt_digest=f"d{about}",
        prompt=(user(f"Question {about}?"),),
        reply=reply,
        response_id=f"r{n}",
        adapter="base",
        user=who,
        kind=kind,
        inferred=False,
        p=0.9 if up else 0.1,
        weight=0.5,
        reason="",
        event_ids=(f"e{n}",),
        at=NOON,
    )


def preferred(
    n: int,
    *,
    about: int,
    chosen: str = "Good.",
    rejected: str = "Bad.",
    p: float = 1.0,
    who: str = "judge",
    kind: SignalKind = SignalKind.COMPARISON,
    by_design: bool = True,
) -> Pair:
    return Pair(
        pair_id=f"pair-{n}",
        prompt_digest=f"d{about}",
        prompt=(user(f"Question {about}?"),),
        chosen=chosen,
        rejected=rejected,
        chosen_response_id=f"c{n}",
        rejected_response_id=f"x{n}",
        user=who,
        kind=kind,
        p=p,
        weight=1.0,
        by_design=by_design and kind is SignalKind.COMPARISON,
        reason="",
        event_ids=(f"g{n}",),
        at=NOON,
    )


def of(fit: accuracy.Fit, kind: SignalKind, tier: accuracy.Tier = "new") -> accuracy.Accuracy:
    return next(a for a in fit if (a.kind, a.tier) == (kind, tier))


def simulated(right: float, signals: int, seed: int = 7) -> tuple[list[Grade], list[Pair]]:
    """Thumbs of as many accounts, right with this probability, each on a reply of a gold pair of its own."""
    chance = random.Random(seed)
    gold = [preferred(n, about=n, who=f"judge{n}") for n in range(signals)]
    thumbs = []
    for n in range(signals):
        good = chance.random() < 0.5
        up = good == (chance.random() < right)
        thumbs.append(grade(n, about=n, reply="Good." if good else "Bad.", up=up, who=f"u{n}"))
    return thumbs, gold


@pytest.mark.parametrize("right", [0.65, 0.8, 0.95])
def test_a_known_accuracy_is_recovered(right):
    """2000 answers: standard deviation below 0.011; the prior (20 of 2020) pulls by less than 0.003."""
    found = of(accuracy.fit(*simulated(right, 2000)), SignalKind.THUMB)
    assert found.mean == pytest.approx(right, abs=0.035)
    assert found.agreed + found.disagreed == 2000


def test_without_gold_the_priors_hold():
    thumbs, _ = simulated(0.6, 50)
    fit = accuracy.fit(thumbs, [])
    assert {(a.kind, a.mean) for a in fit} == set(accuracy.PRIORS.items())
    assert accuracy.relabel_grades(thumbs, fit, accuracy.tiers_of(thumbs)) == thumbs


def test_little_gold_moves_the_prior_by_its_share():
    """Prior 20 * 0.9 = 18; one answer agrees, two do not: 19 / 23 = 0.826087."""
    gold = [preferred(n, about=n) for n in range(3)]
    thumbs = [grade(n, about=n, reply="Good.", up=n == 0, who=f"u{n}") for n in range(3)]
    assert of(accuracy.fit(thumbs, gold), SignalKind.THUMB).mean == 0.826087


def test_what_gold_says_of_a_reply_counts_once():
    """A reply that lost one comparison and has twenty thumbs up is one answer: (18 + 1) / 22 = 0.863636."""
    gold = [preferred(n, about=n, who=f"judge{n}") for n in range(2)]
    thumbs = [grade(n, about=0, reply="Bad.", up=True, who=f"u{n}") for n in range(20)]
    thumbs.append(grade(20, about=1, reply="Good.", up=True, who="u20"))
    assert of(accuracy.fit(thumbs, gold), SignalKind.THUMB).mean == 0.863636


def test_outcomes_are_fitted_by_their_own_prior():
    """Five right, five wrong: (20 * 0.8 + 5) / 30 = 0.7, so 0.8 becomes 0.5 + 0.3 * 0.4 / 0.6 = 0.7."""
    gold = [preferred(n, about=n, who=f"judge{n}") for n in range(10)]
    said = [
        grade(n, about=n, reply="Good.", up=n < 5, who=f"u{n}", kind=SignalKind.OUTCOME) for n in range(10)
    ]
    outcomes = [msgspec.structs.replace(g, p=0.8 if g.p > 0.5 else 0.2) for g in said]
    fit = accuracy.fit(outcomes, gold)
    assert of(fit, SignalKind.OUTCOME).mean == 0.7
    relabelled = accuracy.relabel_grades(outcomes, fit, accuracy.tiers_of(outcomes))
    assert [g.p for g in relabelled] == [0.7] * 5 + [0.3] * 5


def test_nobody_is_measured_by_their_own_gold():
    """Otherwise an account proves itself right."""
    gold, thumb = preferred(1, about=1, who="ann"), grade(1, about=1, reply="Good.", up=True, who="ann")
    assert of(accuracy.fit([thumb], [gold]), SignalKind.THUMB).agreed == 0.0
    bobs = msgspec.structs.replace(thumb, user="bob")
    assert of(accuracy.fit([bobs], [gold]), SignalKind.THUMB).agreed == 1.0


def test_gold_of_one_account_weighs_a_handful_of_answers():
    """Fifty rigged comparisons by one account, and a thumb on each: 50 * 5 / 50 = 5 disagree, not 50."""
    gold = [preferred(n, about=n, chosen="Bad.", rejected="Good.", who="rigger") for n in range(50)]
    thumbs = [grade(n, about=n, reply="Good.", up=True, who=f"u{n}") for n in range(50)]
    assert of(accuracy.fit(thumbs, gold), SignalKind.THUMB).disagreed == pytest.approx(5.0)


def test_volunteered_comparisons_are_no_gold():
    """Who chooses what to compare would choose what everybody else is measured by."""
    volunteered = [preferred(n, about=n, chosen="Bad.", rejected="Good.", by_design=False) for n in range(9)]
    thumbs = [grade(n, about=n, reply="Good.", up=True, who=f"u{n}") for n in range(9)]
    assert of(accuracy.fit(thumbs, volunteered), SignalKind.THUMB).disagreed == 0.0


def test_volunteered_comparisons_are_measured_and_those_by_design_are_not():
    """The same answer, once asked for and once not: 20 * 0.9 / 21 = 0.857143 of the volunteered ones."""
    asked_for = preferred(1, about=1)
    volunteered = preferred(2, about=1, chosen="Bad.", rejected="Good.", p=0.9, who="ann", by_design=False)
    rows = [asked_for, volunteered]
    fit = accuracy.fit([], rows)
    found = of(fit, SignalKind.COMPARISON)
    assert (found.agreed, found.disagreed, found.mean) == (0.0, 1.0, 0.857143)
    labelled = accuracy.relabel_pairs(rows, fit, accuracy.tiers_of(rows))
    assert [p.p for p in labelled] == [1.0, 0.857143]


def test_labels_are_gold_for_single_replies():
    label = msgspec.structs.replace(
        grade(1, about=1, reply="Good.", up=True, who="reviewer", kind=SignalKind.LABEL), p=0.0
    )
    found = accuracy.fit([label, grade(2, about=1, reply="Good.", up=True, who="ann")], [])
    assert (of(found, SignalKind.THUMB).agreed, of(found, SignalKind.THUMB).disagreed) == (0.0, 1.0)


def test_pairs_are_measured_by_gold_on_the_same_two_replies():
    gold = [preferred(1, about=1, p=0.85)]
    kept = preferred(
        2, about=1, chosen="Bad.", rejected="Good.", who="ann", p=0.75, kind=SignalKind.REGENERATION
    )
    found = of(accuracy.fit([], [*gold, kept]), SignalKind.REGENERATION)
    assert (found.agreed, found.disagreed) == (0.0, pytest.approx(0.7))  # 2 * 0.85 - 1


def test_tiers_are_fitted_apart():
    """Twenty signals make an account established."""
    gold = [preferred(n, about=n) for n in range(21)]
    old = [grade(n, about=n, reply="Good.", up=True, who="old") for n in range(20)]
    new = [grade(20, about=20, reply="Good.", up=False, who="new")]
    fit = accuracy.fit([*old, *new], gold)
    assert of(fit, SignalKind.THUMB, "established").agreed == pytest.approx(20 * 5 / 21)
    assert of(fit, SignalKind.THUMB, "new").disagreed == pytest.approx(5 / 21)


@pytest.mark.parametrize(
    ("p", "mean", "expected"),
    [(0.9, 0.9, 0.9), (0.1, 0.7, 0.3), (0.5, 0.7, 0.5), (0.9, 0.3, 0.5), (0.7, 0.7, 0.6)],
)
def test_soft_labels_stretch_and_never_cross_over(p, mean, expected):
    """Prior 0.9, so the stretch is (2 mean - 1) / 0.8: 0.5 for 0.7, nothing for 0.3."""
    assert accuracy.soft_label(p, 0.9, mean) == pytest.approx(expected)


@pytest.mark.slow
@given(st.randoms(use_true_random=False))
def test_the_same_rows_in_any_order_give_the_same_hash(chance):
    thumbs, gold = simulated(0.8, 40)
    expected = accuracy.hash_of(accuracy.fit(thumbs, gold))
    found = accuracy.fit(chance.sample(thumbs, len(thumbs)), chance.sample(gold, len(gold)))
    assert accuracy.hash_of(found) == expected
    assert accuracy.hash_of(accuracy.fit(thumbs[1:], gold)) != expected
