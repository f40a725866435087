"""Agreement with people and position bias: figures worked out by hand."""

import pytest

from feedback.events import SignalKind, SignalReceived
from learner.agreement import Compared, measure
from tests.feedback.builders import NOON


def judged(
    n: int,
    value: float | None,
    people: float | None,
    *,
    gap: float = 0.0,
    judge: str = "judge-a",
    **dimensions: float,
) -> Compared:
    judgement = SignalReceived(
        signal_id=f"{judge}-{n}",
        response_id=f"r{n}",
        other_response_id=f"s{n}",
        conversation_id="c",
        principal="ratchet",
        user=judge,
        kind=SignalKind.JUDGEMENT,
        value=value,
        reasons=("constitution 1", "judge m", "more"),
        dimensions=dimensions,
        position_gaps={"overall": gap} if value is not None else {},
        received_at=NOON,
    )
    return Compared(judgement=judgement, people=people)


def test_agreement_counts_decided_answers_on_pairs_that_people_decided():
    """Three agree, one does not; a tie of the judge, one of the people, and a pair nobody saw do not count.

    Wilson for 3 of 4: centre (0.75 + 0.4802) / 1.9604 = 0.6276, half 1.96 / 1.9604 * 0.3279 = 0.3278.
    """
    found = [
        judged(1, 0.9, 1.0),
        judged(2, 0.2, 0.3),
        judged(3, 0.6, 0.7),
        judged(4, 0.9, 0.0),
        judged(5, 0.5, 1.0),
        judged(6, 0.9, 0.5),
        judged(7, 0.9, None),
    ]
    (overall,) = measure(found)
    assert (overall.principle, overall.answers) == ("overall", 7)
    assert (overall.with_people, overall.agreed, overall.share) == (4, 3, 0.75)
    assert (overall.low, overall.high) == pytest.approx((0.3006, 0.9544), abs=1e-3)
    assert overall.reasons == ("constitution 1", "judge m")


def test_a_flip_is_an_answer_that_follows_the_order():
    """0.7 with gap 0.5: 0.95 and 0.45, on both sides of one half. 0.7 with gap 0.3: 0.85 and 0.55."""
    (overall,) = measure([judged(1, 0.7, None, gap=0.5), judged(2, 0.7, None, gap=0.3), judged(3, 0.3, None)])
    assert (overall.flips, overall.mean_gap) == (1, pytest.approx(0.8 / 3))


def test_unusable_answers_are_counted_and_agree_with_nobody():
    (overall,) = measure([judged(1, None, 1.0), judged(2, 0.9, 1.0)])
    assert (overall.answers, overall.unusable, overall.with_people) == (1, 1, 1)


def test_each_principle_is_measured_on_its_own():
    """A judge may be right on the whole and wrong about honesty."""
    found = [judged(1, 0.9, 1.0, helpful=0.9, honest=0.2), judged(2, 0.8, 1.0, helpful=0.8)]
    figures = {a.principle: (a.answers, a.unusable, a.agreed) for a in measure(found)}
    assert figures == {"overall": (2, 0, 2), "helpful": (2, 0, 2), "honest": (1, 1, 0)}


def test_judges_are_measured_apart():
    found = measure([judged(1, 0.9, 1.0), judged(1, 0.1, 1.0, judge="judge-b")])
    assert [(a.judge, a.agreed) for a in found] == [("judge-a", 1), ("judge-b", 0)]
