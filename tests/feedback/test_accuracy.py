"""Fitted accuracies: what gold says of each kind of signal, and the priors where it says nothing."""

import random

import msgspec
import pytest
from hypothesis import given, settings
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


def labelled(n: int, *, about: int, reply: str, good: bool) -> Grade:
    """An operator's word about a reply as such."""
    label = grade(5000 + n, about=about, reply=reply, up=good, who="operator", kind=SignalKind.LABEL)
    return msgspec.structs.replace(label, p=float(good), weight=1.0)


def of(fit: accuracy.Fit, kind: SignalKind, tier: accuracy.Tier = "new") -> accuracy.Accuracy:
    return next(a for a in fit if (a.kind, a.tier) == (kind, tier))


def simulated(
    right: float, signals: int, seed: int = 7, *, good: float = 0.5, likes: float | None = None
) -> tuple[list[Grade], list[Pair]]:
    """Thumbs of as many accounts, each on a reply of a gold pair of its own.

    Replies are good with probability `good`. Gold prefers the good one, or either of two alike. A thumb
    says what is true with probability `right`, or is up with probability `likes` whatever the reply is.
    """
    chance = random.Random(seed)
    thumbs, gold = [], []
    for n in range(signals):
        one, other = chance.random() < good, chance.random() < good
        wins = one if one != other else chance.random() < 0.5
        sides = ("One.", "Other.") if wins else ("Other.", "One.")
        gold.append(preferred(n, about=n, chosen=sides[0], rejected=sides[1], who=f"judge{n}"))
        up = one == (chance.random() < right) if likes is None else chance.random() < likes
        thumbs.append(grade(n, about=n, reply="One.", up=up, who=f"u{n}"))
    return thumbs, gold


def marked(right: float, good: float) -> float:
    """The mean of how often ups and how often downs are true."""
    up, down = good * right, (1.0 - good) * right
    return (up / (up + (1.0 - good) * (1.0 - right)) + down / (down + good * (1.0 - right))) / 2.0


@pytest.mark.parametrize(("right", "good"), [(1.0, 0.9), (0.8, 0.5), (0.8, 0.8)])
def test_a_known_accuracy_is_recovered_whatever_the_base_rate(right, good):
    """To count how often thumbs and gold agree gives 1/2 + good (1 - good) (2 right - 1): 0.59 for thumbs
    that are always right about replies of which nine in ten are good."""
    found = of(accuracy.fit(*simulated(right, 3000, good=good)), SignalKind.THUMB)
    assert found.mean == pytest.approx(marked(right, good), abs=0.04)


def test_thumbs_that_are_up_by_habit_are_not_taken_for_right():
    """Nine in ten up whatever the reply is: 1/2, and the prior's part. A base rate of 0.9 would explain as
    many ups of good thumbs."""
    found = of(accuracy.fit(*simulated(0.5, 2000, likes=0.9)), SignalKind.THUMB)
    assert found.mean < 0.6


def test_one_kind_tells_the_base_rate_that_another_is_measured_by():
    """Thumbs show that nine in ten replies are good, so corrections that are always right lose almost always;
    those of replies picked at random lose half the time: gold does not bear them out (a = 0.1)."""
    thumbs, gold = simulated(1.0, 1500, good=0.9)
    lost = [p for p in gold if p.rejected == "One."][:100]
    won = [p for p in gold if p.chosen == "One."][:100]

    def corrected(pairs: list[Pair]) -> accuracy.Accuracy:
        said = [
            grade(
                9000 + n,
                about=int(p.prompt_digest[1:]),
                reply="One.",
                up=False,
                who="c",
                kind=SignalKind.CORRECTION,
            )
            for n, p in enumerate(pairs)
        ]
        return of(accuracy.fit([*thumbs, *said], gold), SignalKind.CORRECTION, "established")

    assert corrected(lost).mean > 0.9
    assert corrected([*lost, *won]).mean < 0.35
    assert corrected(lost).base_rate == pytest.approx(0.9, abs=0.05)


def test_one_answer_by_hand():
    """An up on a reply that won: the likelihood is 1 + a - π, in the mean of all π 1/2 + a. With
    E a = 0.9 and E a² = 18 · 19 / (20 · 21): (0.45 + 0.814286) / 1.4 = 0.903061, and
    21 · 0.903061 - 18 = 0.964286 of it agrees."""
    found = of(
        accuracy.fit([grade(0, about=0, reply="Good.", up=True, who="u")], [preferred(0, about=0)]),
        SignalKind.THUMB,
    )
    assert (found.mean, found.agreed, found.disagreed) == (0.903061, 0.964286, 0.035714)


def test_without_gold_the_priors_hold():
    thumbs, _ = simulated(0.6, 50)
    fit = accuracy.fit(thumbs, [])
    assert {(a.kind, a.mean) for a in fit} == set(accuracy.PRIORS.items())
    assert {(a.agreed, a.disagreed, a.base_rate) for a in fit} == {(0.0, 0.0, 0.5)}
    assert accuracy.relabel_grades(thumbs, fit, accuracy.tiers_of(thumbs)) == thumbs


def test_little_gold_moves_the_prior_by_its_share():
    """Prior 20 * 0.9 = 18; one answer agrees, two do not: 19 / 23 = 0.826087."""
    labels = [labelled(n, about=n, reply="Good.", good=True) for n in range(3)]
    thumbs = [grade(n, about=n, reply="Good.", up=n == 0, who=f"u{n}") for n in range(3)]
    assert of(accuracy.fit([*labels, *thumbs], []), SignalKind.THUMB).mean == 0.826087


def test_what_gold_says_of_a_reply_counts_once():
    """A reply that is labelled as bad and has twenty thumbs up is one answer: (18 + 1) / 22 = 0.863636."""
    labels = [labelled(n, about=n, reply="It.", good=n == 1) for n in range(2)]
    thumbs = [grade(n, about=n // 20, reply="It.", up=True, who=f"u{n}") for n in range(21)]
    assert of(accuracy.fit([*labels, *thumbs], []), SignalKind.THUMB).mean == 0.863636


def test_outcomes_are_fitted_by_their_own_prior():
    """Five right, five wrong: (20 * 0.8 + 5) / 30 = 0.7, so 0.8 becomes 0.5 + 0.3 * 0.4 / 0.6 = 0.7."""
    labels = [labelled(n, about=n, reply="Good.", good=True) for n in range(10)]
    said = [
        grade(n, about=n, reply="Good.", up=n < 5, who=f"u{n}", kind=SignalKind.OUTCOME) for n in range(10)
    ]
    outcomes = [msgspec.structs.replace(g, p=0.8 if g.p > 0.5 else 0.2) for g in said]
    fit = accuracy.fit([*outcomes, *labels], [])
    assert of(fit, SignalKind.OUTCOME).mean == 0.7
    relabelled = accuracy.relabel_grades(outcomes, fit, accuracy.tiers_of(outcomes))
    assert [g.p for g in relabelled] == [0.7] * 5 + [0.3] * 5


def test_nobody_is_measured_by_their_own_gold():
    """Otherwise an account proves itself right."""
    gold, thumb = preferred(1, about=1, who="ann"), grade(1, about=1, reply="Good.", up=True, who="ann")
    assert of(accuracy.fit([thumb], [gold]), SignalKind.THUMB).agreed == 0.0
    bobs = msgspec.structs.replace(thumb, user="bob")
    assert of(accuracy.fit([bobs], [gold]), SignalKind.THUMB).agreed > 0.9


def test_gold_of_one_account_weighs_a_handful_of_answers():
    """Fifty rigged comparisons by one account, and a thumb on each, move the fit as five of five accounts
    do."""
    gold = [preferred(n, about=n, chosen="Bad.", rejected="Good.", who="rigger") for n in range(50)]
    thumbs = [grade(n, about=n, reply="Good.", up=True, who=f"u{n}") for n in range(50)]
    handful = [msgspec.structs.replace(p, user=f"rigger{n}") for n, p in enumerate(gold[:5])]
    many = [msgspec.structs.replace(p, user=f"rigger{n}") for n, p in enumerate(gold)]
    by_one, by_five, by_fifty = (
        of(accuracy.fit(thumbs, rigged), SignalKind.THUMB).mean for rigged in (gold, handful, many)
    )
    assert by_one == pytest.approx(by_five, abs=0.02)
    assert by_fifty < by_one - 0.1


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
        grade(1, about=1, reply="Good.", up=True, who="reviewer", kind=SignalKind.LABEL), p=0.0, weight=1.0
    )
    found = accuracy.fit([label, grade(2, about=1, reply="Good.", up=True, who="ann")], [])
    assert (of(found, SignalKind.THUMB).agreed, of(found, SignalKind.THUMB).disagreed) == (0.0, 1.0)


def test_pairs_are_measured_by_gold_on_the_same_two_replies():
    """Gold is sure of the contrary by 2 · 0.85 - 1 = 0.7: the likelihood is 1 - 0.7 (2a - 1). With E a =
    0.75 and E a² = 15 · 16 / (20 · 21): (1.7 · 0.75 - 1.4 · 0.571429) / (1.7 - 1.4 · 0.75) = 0.730769."""
    gold = [preferred(1, about=1, p=0.85)]
    kept = preferred(
        2, about=1, chosen="Bad.", rejected="Good.", who="ann", p=0.75, kind=SignalKind.REGENERATION
    )
    found = of(accuracy.fit([], [*gold, kept]), SignalKind.REGENERATION)
    assert (found.mean, found.agreed, found.disagreed) == (0.730769, 0.346154, 0.653846)


def test_tiers_are_fitted_apart():
    """Twenty signals make an account established."""
    labels = [labelled(n, about=n, reply="Good.", good=True) for n in range(21)]
    old = [grade(n, about=n, reply="Good.", up=True, who="old") for n in range(20)]
    new = [grade(20, about=20, reply="Good.", up=False, who="new")]
    fit = accuracy.fit([*old, *new, *labels], [])
    assert of(fit, SignalKind.THUMB, "established").agreed == 20.0
    assert of(fit, SignalKind.THUMB, "new").disagreed == 1.0


@pytest.mark.parametrize(
    ("p", "mean", "expected"),
    [(0.9, 0.9, 0.9), (0.1, 0.7, 0.3), (0.5, 0.7, 0.5), (0.9, 0.3, 0.5), (0.7, 0.7, 0.6)],
)
def test_soft_labels_stretch_and_never_cross_over(p, mean, expected):
    """Prior 0.9, so the stretch is (2 mean - 1) / 0.8: 0.5 for 0.7, nothing for 0.3."""
    assert accuracy.soft_label(p, 0.9, mean) == pytest.approx(expected)


@pytest.mark.slow
@settings(max_examples=20, deadline=None)
@given(st.randoms(use_true_random=False))
def test_the_same_rows_in_any_order_give_the_same_hash(chance):
    thumbs, gold = simulated(0.8, 40)
    expected = accuracy.hash_of(accuracy.fit(thumbs, gold))
    found = accuracy.fit(chance.sample(thumbs, len(thumbs)), chance.sample(gold, len(gold)))
    assert accuracy.hash_of(found) == expected
    assert accuracy.hash_of(accuracy.fit(thumbs[1:], gold)) != expected
