"""The review queue: what can be asked, who is asked what, and that drawing by disagreement stays unbiased."""

from collections.abc import Sequence
from datetime import timedelta
from math import fsum
from statistics import fmean, stdev
from typing import Any, Literal

import msgspec
import pytest

from feedback import review
from feedback.conversations import fold
from feedback.events import Drawn, Event, Review, SignalKind, TurnStatus
from feedback.review import Answer, Item, Rules
from tests.feedback.builders import NOON, assistant, signal, turn, user

QUESTION = "How do I reset my password?"
BAD = "Click around until something happens."
GOOD = "Open the settings, choose security and press reset."
FIRST = turn("r1", QUESTION, BAD)
SECOND = turn("r2", QUESTION, GOOD, at=20)
READ_S = 1.4
"""Thirteen words take 1.3 s."""
RULES = Rules(raters=2, random=0.25, calibration=0.0)


def reviewed(
    rater: str,
    value: float | None,
    *,
    about: tuple[Event, str] = (FIRST, "r2"),
    at: float = 100.0,
    after_s: float = READ_S,
    side: Literal["left", "right"] = "left",
    reasons: tuple[str, ...] = (),
    **fields: Any,
) -> Event:
    """`rater` says so at `at` seconds after noon, `after_s` after the replies were shown."""
    shown = Review(
        side=side,
        drawn=Drawn.SAMPLED,
        size=0.5,
        threshold=1.0,
        shown_at=NOON + timedelta(seconds=at - after_s),
    )
    return signal(
        about[0],
        SignalKind.REVIEW,
        at=at,
        who=rater,
        value=value,
        other_response_id=about[1],
        reasons=reasons,
        review=shown,
        **fields,
    )


def items(*events: Event) -> list[Item]:
    conversation = fold(events)
    return review.items(conversation, conversation.signals)


# --- what can be asked


def test_two_replies_to_one_prompt_state_are_an_item_whatever_the_order():
    (item,) = items(SECOND, FIRST)
    assert (item.one, item.other, item.users, item.stage) == ("r1", "r2", ("ann",), "0")
    assert item.item_id == review.item_id("r2", "r1")


@pytest.mark.parametrize(
    "second",
    [
        turn("r2", QUESTION, f"  {BAD}", at=20),
        turn("r2", "Where are my invoices?", GOOD, at=20),
        turn("r2", QUESTION, GOOD, at=20, status=TurnStatus.ABORTED),
        turn("r2", QUESTION, GOOD, at=20, learn=False),
    ],
    ids=["the same words", "another question", "broken off", "no consent"],
)
def test_no_item(second):
    assert items(FIRST, second) == []


def test_what_came_after_a_withheld_turn_is_no_item():
    """Its words are not in the log, but the client resends them in the prompts of later turns."""
    said = [user("I am Ann from Bonn, and cannot log in."), assistant("Try again."), user(QUESTION)]
    one, other = turn("r1", said, BAD, at=60), turn("r2", said, GOOD, at=80)
    assert len(items(one, other)) == 1
    withheld = turn("r0", [], "", at=0, learn=False)
    assert items(withheld, one, other) == items(one, other, withheld) == []
    assert len(items(one, other, turn("r3", [], "", at=100, learn=False))) == 1


def test_items_of_one_prompt_state_are_bounded_and_those_with_answers_stay():
    replies = [turn(f"r{n}", QUESTION, f"{GOOD} Variant {n}.", at=20 * n) for n in range(1, 6)]
    said = reviewed("rae", 1.0, about=(replies[3], "r5"))
    assert [(i.one, i.other) for i in items(*replies, said)] == [("r4", "r5"), ("r1", "r2"), ("r1", "r3")]


def test_an_answer_is_turned_to_the_items_own_order():
    """r2 was called better and stood on the right, so r1 stood on the left and is the worse."""
    (item,) = items(FIRST, SECOND, reviewed("rae", 1.0, about=(SECOND, "r1"), side="right"))
    (answer,) = item.answers
    assert (answer.rater, answer.value, answer.side) == ("rae", 0.0, "left")


def test_the_last_answer_of_a_rater_counts_and_one_taken_back_does_not():
    before, after = reviewed("rae", 1.0, at=100), reviewed("rae", 0.0, at=200)
    taken_back = reviewed("rae", None, at=300)
    assert [a.value for i in items(FIRST, SECOND, before, after) for a in i.answers] == [0.0]
    assert [i.answers for i in items(FIRST, SECOND, before, after, taken_back)] == [()]


def test_a_pass_is_remembered_and_does_not_count():
    (item,) = items(FIRST, SECOND, reviewed("rae", None, reasons=("cannot tell",)))
    assert (item.stage, item.is_for("rae"), item.is_for("rob")) == ("0", False, True)


def test_an_item_that_three_raters_passed_is_given_up():
    passes = [reviewed(who, None, reasons=("broken",)) for who in ("rae", "rob", "roy")]
    assert items(FIRST, SECOND, *passes)[0].stage == "given up"
    assert items(FIRST, SECOND, *passes, reviewed("rik", 1.0))[0].stage == "1"


def test_an_answer_that_came_too_fast_is_kept_and_does_not_count():
    """Thirteen words at ten a second take 1.3 s."""
    hasty, read = reviewed("rae", 1.0, after_s=1.2), reviewed("rob", 1.0, after_s=1.5)
    (item,) = items(FIRST, SECOND, hasty, read)
    assert [(a.rater, a.counts) for a in item.answers] == [("rae", False), ("rob", True)]
    assert item.stage == "1"


def test_what_operators_labelled_is_known():
    """(0.9 + (1 - 0.3)) / 2 = 0.8"""
    one = signal(FIRST, SignalKind.LABEL, who="ola", value=0.9, other_response_id="r2")
    other = signal(SECOND, SignalKind.LABEL, who="ole", value=0.3, other_response_id="r1")
    (item,) = items(FIRST, SECOND, one, other)
    assert (item.known, item.stage) == (pytest.approx(0.8), "known")


# --- who is asked what


def made(n: int, *raters: str, known: float | None = None) -> Item:
    return Item(
        one=f"a{n}", other=f"b{n}", users=("ann",), known=known, answers=tuple(answer(r) for r in raters)
    )


def answer(rater: str, *, size: float = 1.0, threshold: float = 0.0, at_s: float = 0.0) -> Answer:
    return Answer(
        rater=rater,
        value=1.0,
        counts=True,
        side="left",
        drawn=Drawn.SAMPLED,
        size=size,
        threshold=threshold,
        at=NOON + timedelta(seconds=at_s),
    )


def waiting(*found: Item, d: Sequence[float | None] = ()) -> list[tuple[Item, float | None]]:
    return list(zip(found, d or [None] * len(found), strict=True))


def test_what_others_began_comes_first_and_what_lacks_least_before_all():
    begun = [made(1, "x"), made(2, "x", "y"), made(3)]
    asked = review.choose("rae", waiting(made(4), d=[1.0]), begun, [], RULES)
    assert asked is not None and (asked.item, asked.drawn) == (begun[1], Drawn.SHARED)


def test_nobody_is_asked_again_nor_about_replies_to_themselves():
    known = [made(3, "rae", known=1.0)]
    assert review.choose("rae", waiting(made(1, "rae")), [made(2, "rae")], known, RULES) is None
    assert review.choose("ann", waiting(made(1)), [made(2)], [made(3)], RULES) is None


def test_the_largest_priority_is_drawn_with_the_next_as_threshold():
    """w = 0.25 + 0.75 d over lots u; lots are fixed by the ids."""
    low, high = made(1), made(2)
    asked = review.choose("rae", waiting(low, high, d=[0.0, 1.0]), [], [], RULES)
    assert asked is not None
    priorities = {0.25 / low.lot: (low, 0.25, 0.0), 1.0 / high.lot: (high, 1.0, 1.0)}
    best, other = max(priorities), min(priorities)
    assert (asked.item, asked.size, asked.disagreement) == priorities[best]
    assert (asked.drawn, asked.threshold) == (Drawn.SAMPLED, pytest.approx(other))


def test_an_item_without_a_score_counts_as_an_average_one():
    """0.25 + 0.75 * (0.2 + 0.6) / 2 = 0.55; with no score at all, everything counts alike."""
    assert review.sizes([0.2, None, 0.6], 0.25) == pytest.approx([0.4, 0.55, 0.7])
    assert review.sizes([None, None], 0.25) == [0.25, 0.25]


@pytest.mark.slow
def test_disagreement_is_asked_about_more_often():
    """Half of the pairs have size 0.25, half size 1: four fifths of the first hundred draws."""
    pool = [(made(n), float(n % 2)) for n in range(2000)]
    drawn = []
    for _ in range(100):
        asked = review.choose("rae", pool, [], [], RULES)
        assert asked is not None
        pool = [(i, d) for i, d in pool if i != asked.item]
        drawn.append(asked.disagreement)
    assert fsum(d or 0.0 for d in drawn) / 100 == pytest.approx(0.8, abs=0.1)


def test_a_question_with_a_known_answer_comes_in_its_share_and_never_when_there_is_no_work():
    rules = msgspec.structs.replace(RULES, calibration=0.3)
    known = [made(0, known=1.0)]
    asked = [review.choose(f"r{n}", waiting(made(1)), [], known, rules) for n in range(1000)]
    tests = sum(q is not None and q.drawn is Drawn.CALIBRATION for q in asked)
    assert tests / 1000 == pytest.approx(0.3, abs=0.05)
    assert review.choose("rae", [], [], known, rules) is None


def test_operators_labels_test_before_other_raters_do():
    always = msgspec.structs.replace(RULES, calibration=1.0)
    settled, known = [made(n, "x", "y") for n in range(5)], made(9, known=0.0)
    asked = review.choose("rae", waiting(made(10)), [], [*settled, known], always)
    assert asked is not None and asked.item == known


def test_sides_are_drawn_for_each_rater_and_stay():
    sides = [review.side_of_one(made(1), f"r{n}", b"secret") for n in range(1000)]
    assert sides.count("left") / 1000 == pytest.approx(0.5, abs=0.05)
    assert sides == [review.side_of_one(made(1), f"r{n}", b"secret") for n in range(1000)]
    assert sides != [review.side_of_one(made(1), f"r{n}", b"other") for n in range(1000)]


# --- unbiased all the same


def test_a_propensity_follows_the_smallest_threshold_since():
    """The third drawing would have let the first item in at 0.4; the second was sure to come."""
    draws = [
        Item(one="a", other="b", users=(), answers=(answer("x", size=0.2, threshold=0.8, at_s=1),)),
        Item(one="c", other="d", users=(), answers=(answer("x", size=0.5, threshold=0.6, at_s=2),)),
        Item(one="e", other="f", users=(), answers=(answer("x", size=0.1, threshold=0.4, at_s=3),)),
    ]
    found = review.propensities(draws)
    assert [found[i.item_id] for i in draws] == pytest.approx([0.5, 1.0, 0.25])


def test_the_mean_over_all_pairs_is_estimated_without_bias():
    """Pairs the ensemble disagrees about are bad twice as often, and drawn more often. Weighed by their
    propensities, 8 drawn of 24 give the right mean of all; unweighed, they do not."""
    truth = [1.0 if n % 3 == 0 or n % 2 == 0 else 0.0 for n in range(24)]
    weighed, plain = [], []
    for seed in range(200):
        pool = [(made(seed * 24 + n), 1.0 if n % 2 == 0 else 0.0) for n in range(24)]
        values = {item.item_id: truth[n] for n, (item, _) in enumerate(pool)}
        drawn = []
        for at_s in range(8):
            asked = review.choose("rae", pool, [], [], RULES)
            assert asked is not None
            said = answer("rae", size=asked.size, threshold=asked.threshold, at_s=at_s)
            drawn.append(msgspec.structs.replace(asked.item, answers=(said,)))
            pool = [(i, d) for i, d in pool if i != asked.item]
        p = review.propensities(drawn)
        weighed.append(fsum(values[i.item_id] / p[i.item_id] for i in drawn) / 24)
        plain.append(fmean(values[i.item_id] for i in drawn))
    error = stdev(weighed) / 200**0.5
    assert fmean(weighed) == pytest.approx(fmean(truth), abs=3 * error)
    assert fmean(plain) > fmean(truth) + 0.1
