"""Judgements: what there is to judge, what becomes of an answer, how far it counts beside people's word."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from feedback import accuracy, judgements
from feedback.conversations import fold
from feedback.events import Event, SignalKind, TurnStatus
from feedback.pairs import pair
from feedback.records import Pair
from tests.feedback.builders import NOON, offered, preferred, signal, thumb, turn, user

QUESTION = "How do I reset my password?"
BAD = "Click around until something happens."
GOOD = "Open the settings, choose security and press reset."
FIRST = turn("r1", QUESTION, BAD)
SECOND = turn("r2", QUESTION, GOOD, at=20)


def judgement(value: float | None, **fields) -> Event:
    """Of FIRST against SECOND, unless `text` is a revision."""
    other = {} if "text" in fields else {"other_response_id": "r2"}
    return signal(FIRST, SignalKind.JUDGEMENT, who="judge-1", value=value, **{**other, **fields})


def pairs(*events: Event) -> list[Pair]:
    conversation = fold(events)
    return pair(conversation, conversation.signals)


# --- from an answer to a pair


@pytest.mark.parametrize(
    ("value", "chosen", "p", "weight"),
    [(0.0, "r2", 0.7, 0.3), (0.25, "r2", 0.6, 0.15), (0.9, "r1", 0.66, 0.24)],
)
def test_a_judgement_is_a_pair_by_its_lean(value, chosen, p, weight):
    """p = 0.5 + 0.2 |2 value - 1|, weight = 0.3 |2 value - 1|."""
    (found,) = pairs(FIRST, SECOND, judgement(value))
    assert (found.kind, found.chosen_response_id, found.user) == (SignalKind.JUDGEMENT, chosen, "judge-1")
    assert (found.p, found.weight) == (pytest.approx(p), pytest.approx(weight))


@pytest.mark.parametrize("value", [None, 0.5, 0.46, 0.54])
def test_a_judge_that_does_not_lean_makes_no_pair(value):
    """None: there was no usable answer. Near a half: it followed the order, or sees no difference."""
    assert pairs(FIRST, SECOND, judgement(value)) == []


def test_a_revision_beats_the_reply_and_never_the_other_way_round():
    (found,) = pairs(FIRST, judgement(0.1, text=GOOD))
    assert (found.chosen, found.chosen_response_id, found.rejected_response_id) == (GOOD, "", "r1")
    assert pairs(FIRST, judgement(0.9, text=GOOD)) == []
    assert pairs(FIRST, judgement(0.1, text=f"**{BAD}**")) == []


def test_judgements_of_unusable_turns_make_no_pair():
    for fields in ({"learn": False}, {"status": TurnStatus.ABORTED}):
        first = turn("r1", QUESTION, BAD, **fields)
        assert pairs(first, SECOND, judgement(0.1)) == pairs(first, judgement(0.1, text=GOOD)) == []


# --- what there is to judge


def test_two_replies_to_one_prompt_state_are_rivals():
    elsewhere = turn("r3", "Where are my invoices?", GOOD, at=60)
    (found,) = judgements.rivals(fold([FIRST, SECOND, elsewhere]))
    assert (found.one.response_id, found.other.response_id, found.people) == ("r1", "r2", None)


@pytest.mark.parametrize(
    "second",
    [
        turn("r2", QUESTION, f"  {BAD}", at=20),
        turn("r2", QUESTION, GOOD, at=20, status=TurnStatus.FAILED),
        turn("r2", QUESTION, GOOD, at=20, learn=False),
    ],
    ids=["the same words", "broken off", "no consent"],
)
def test_no_rivals(second):
    assert judgements.rivals(fold([FIRST, second])) == []


def test_rivals_of_one_prompt_state_are_bounded_and_those_with_gold_come_first():
    replies = [turn(f"r{n}", QUESTION, f"{GOOD} Variant {n}.", at=20 * n) for n in range(1, 6)]
    said = signal(replies[4], SignalKind.LABEL, value=0.9, other_response_id="r4")
    found = judgements.rivals(fold([*replies, said]))
    assert [(r.one.response_id, r.other.response_id) for r in found] == [
        ("r4", "r5"),
        ("r1", "r2"),
        ("r1", "r3"),
    ]
    assert [r.people for r in found] == [pytest.approx(0.1), None, None]


def people(*events: Event) -> list[float | None]:
    return [r.people for r in judgements.rivals(fold(events))]


def test_peoples_word_is_the_mean_of_golds_answers_either_way_round():
    """(0.8 + (1 - 0.4)) / 2 = 0.7; a judgement is no person's."""
    one = signal(FIRST, SignalKind.LABEL, who="ann", value=0.8, other_response_id="r2")
    other = signal(SECOND, SignalKind.LABEL, who="bob", value=0.4, other_response_id="r1")
    assert people(FIRST, SECOND, one, other, judgement(0.0)) == [pytest.approx(0.7)]
    assert people(FIRST, SECOND, judgement(0.0)) == [None]


def test_a_comparison_by_design_measures_the_judge_and_one_that_came_too_fast_does_not():
    """Ten words take a second to read, and were shown after two."""
    bad, good = offered("r1", QUESTION, BAD, GOOD)
    assert people(bad, good, preferred(good, bad, at=30)) == [0.0]
    assert people(bad, good, preferred(good, bad, at=2.1)) == [None]


def test_two_replies_that_somebody_compared_unasked_are_no_work_for_a_judge():
    """A person has spoken, so a machine has nothing to add; but whoever picks what to compare is no
    ruler for it either."""
    assert people(FIRST, SECOND, preferred(SECOND, FIRST)) == []


def test_only_replies_that_nobody_liked_are_disliked():
    def found(*events: Event) -> list[str]:
        conversation = fold([FIRST, *events])
        return [t.response_id for t in judgements.disliked(conversation, conversation.signals)]

    assert found(thumb(FIRST, False)) == ["r1"]
    assert found(thumb(FIRST, False), thumb(FIRST, True, who="bob")) == []
    assert found() == []


# --- beside people's word


def made(n: int, *, kind: SignalKind = SignalKind.JUDGEMENT, p: float = 0.7, weight: float = 0.3) -> Pair:
    return Pair(
        pair_id=f"pair-{kind}-{n}",
        prompt_digest=f"d{n}",
        prompt=(user(QUESTION),),
        chosen=GOOD,
        rejected=BAD,
        chosen_response_id=f"c{n}",
        rejected_response_id=f"x{n}",
        user="judge-1" if kind is SignalKind.JUDGEMENT else f"u{n}",
        kind=kind,
        p=p,
        weight=weight,
        reason="",
        event_ids=(f"e{n}",),
        at=NOON,
    )


def test_a_judge_is_no_gold():
    """It is measured by people and measures nobody."""
    thumbs = made(1, kind=SignalKind.REGENERATION)
    assert all(a.agreed == a.disagreed == 0.0 for a in accuracy.fit([], [thumbs, made(1)]))


def test_a_judges_accuracy_is_fitted_against_gold():
    """Prior 20 * 0.7 = 14; three agree, seven do not: 17 / 30."""
    judged = [made(n) for n in range(10)]
    gold = [made(n, kind=SignalKind.LABEL, p=1.0) for n in range(10)]
    gold[3:] = [msgspec.structs.replace(g, chosen=BAD, rejected=GOOD) for g in gold[3:]]
    fit = accuracy.fit([], [*judged, *gold])
    found = next(a for a in fit if (a.kind, a.tier) == (SignalKind.JUDGEMENT, "new"))
    assert found.mean == pytest.approx(17 / 30, abs=1e-6)
    (relabelled, *_) = accuracy.relabel_pairs(judged, fit, accuracy.tiers_of(judged))
    assert relabelled.p == pytest.approx(17 / 30, abs=1e-6)


def test_a_judgement_on_what_people_compared_is_not_learned_from():
    """Also when they compared the same wordings elsewhere, and whichever they preferred."""
    said = msgspec.structs.replace(made(1, kind=SignalKind.LABEL), chosen=BAD, rejected=f"**{GOOD}**")
    assert judgements.instructive([made(1), made(2)], [said]) == [made(2)]
    assert judgements.instructive([made(1)], [made(1, kind=SignalKind.REGENERATION)]) == [made(1)]


def test_a_judgement_that_has_faded_to_a_coin_is_not_learned_from():
    assert judgements.instructive([made(1, p=0.5)], []) == []


def test_judgements_are_held_to_their_share():
    """6.0 against 7.0 of people: 0.3 * 7 / 0.7 = 3.0, so each weighs half."""
    judged = [made(n) for n in range(20)]
    assert [p.weight for p in judgements.cap(judged, 7.0, 0.3)] == pytest.approx([0.15] * 20)


@pytest.mark.parametrize(
    ("others", "share", "weights"), [(14.0, 0.3, [0.3] * 20), (0.0, 1.0, [0.3] * 20), (0.0, 0.3, [])]
)
def test_below_their_share_they_keep_their_weight_and_without_people_they_have_none(others, share, weights):
    assert [p.weight for p in judgements.cap([made(n) for n in range(20)], others, share)] == weights


@given(st.lists(st.floats(0.01, 1.0), min_size=1, max_size=30), st.floats(0.0, 100.0), st.floats(0.01, 0.99))
def test_the_cap_holds_whatever_the_weights(weights, others, share):
    """Weights are rounded to 1e-6, each up by half of that at most."""
    capped = judgements.cap([made(n, weight=w) for n, w in enumerate(weights)], others, share)
    total = sum(p.weight for p in capped)
    assert total <= share * (total + others) + 1e-6 * len(weights)
