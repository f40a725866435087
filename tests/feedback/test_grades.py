"""Signals to grades: the table of priors, and when a signal says nothing."""

import pytest

from feedback.conversations import fold
from feedback.events import SignalKind, TurnStatus
from feedback.grades import grade, is_refusal
from feedback.implicit import infer
from feedback.records import Grade
from tests.feedback.builders import assistant, of_conversation, signal, thumb, turn, user

QUESTION = "How do I reset my password?"
FIRST = turn("r1", QUESTION, "Open settings.")
GOES_ON = turn("r2", [user(QUESTION), assistant("Open settings."), user("Great, next?")], "Yes.", at=30)
OBJECTS = turn("r2", [user(QUESTION), assistant("Open settings."), user("That is wrong.")], "Sorry.", at=30)


def grades(*events) -> list[Grade]:
    conversation = fold(events)
    return grade(conversation, [*conversation.signals, *infer(conversation)])


@pytest.mark.parametrize(
    ("kind", "fields", "p", "weight"),
    [
        (SignalKind.THUMB, {"value": 1.0}, 0.9, 0.5),
        (SignalKind.THUMB, {"value": 0.0}, 0.1, 0.7),
        (SignalKind.RATING, {"value": 0.75}, 0.7, 0.6),  # 0.1 + 0.8 * 0.75
        (SignalKind.COMMENT, {"value": 0.0, "text": "bad"}, 0.1, 0.6),
        (SignalKind.LABEL, {"value": 0.3}, 0.3, 1.0),
        (SignalKind.OUTCOME, {"value": 1.0}, 0.8, 0.5),
        (SignalKind.OUTCOME, {"value": 0.0}, 0.2, 0.5),
        (SignalKind.OUTCOME, {"value": 0.25}, 0.35, 0.5),  # 0.2 + 0.6 * 0.25
        (SignalKind.CORRECTION, {}, 0.2, 0.5),
        (SignalKind.REPHRASE, {}, 0.25, 0.3),
    ],
)
def test_each_signal_has_its_prior(kind, fields, p, weight):
    (made,) = grades(FIRST, signal(FIRST, kind, **fields))
    assert (made.p, made.weight) == pytest.approx((p, weight), abs=1e-12)
    assert (made.reply, made.response_id, made.inferred) == ("Open settings.", "r1", False)
    assert set(made.event_ids) >= {"turn-r1"} and len(made.event_ids) == 2


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        (SignalKind.COMMENT, {"text": "hm"}),
        (SignalKind.COMMENT, {"text": "hm", "reasons": ("wrong", "too long")}),
        (SignalKind.EDIT, {"text": "Open the settings."}),
        (SignalKind.REGENERATION, {}),
        (SignalKind.COMPARISON, {"value": 1.0, "other_response_id": "r2"}),
    ],
)
def test_some_signals_say_nothing_of_one_reply_alone(kind, fields):
    """Two replies are a pair's business, and words without a value would have to be understood."""
    assert grades(FIRST, signal(FIRST, kind, **fields)) == []


def test_weak_positives_never_stand_alone():
    """Most conversations go on; that alone would drown every real judgement."""
    assert grades(FIRST, GOES_ON) == []
    assert grades(FIRST, signal(FIRST, SignalKind.COPY)) == []
    assert grades(FIRST, signal(FIRST, SignalKind.THANKS)) == []


def test_a_branch_says_nothing_of_the_reply():
    """People change their question for their own reasons."""
    assert grades(FIRST, signal(FIRST, SignalKind.BRANCH), thumb(FIRST, True))[0].kind is SignalKind.THUMB


def test_weak_positives_count_beside_another_signal():
    found = {g.kind.value: (g.p, g.weight) for g in grades(FIRST, GOES_ON, thumb(FIRST, True))}
    assert found == {"thumb": (0.9, 0.5), "continuation": (0.65, 0.2)}


def test_an_inferred_correction_speaks_against_the_earlier_reply():
    (made,) = grades(FIRST, OBJECTS)
    assert (made.kind, made.response_id, made.inferred, made.p) == (SignalKind.CORRECTION, "r1", True, 0.2)
    assert made.event_ids == ("turn-r1", "turn-r2")


def test_what_a_client_says_replaces_what_the_traffic_showed():
    """One correction must not count twice."""
    (made,) = grades(FIRST, OBJECTS, signal(FIRST, SignalKind.CORRECTION))
    assert not made.inferred


def test_arguing_with_a_refusal_proves_nothing():
    """The refusal may have been right."""
    refused = turn("r1", QUESTION, "I'm sorry, but I can't share that.")
    again = turn(
        "r2",
        [user(QUESTION), assistant("I'm sorry, but I can't share that."), user("That is wrong.")],
        "No.",
        at=30,
    )
    assert grades(refused, again) == []
    assert len(grades(refused, thumb(refused, False))) == 1


@pytest.mark.parametrize(
    ("reply", "refuses"),
    [
        ("I can't help with that.", True),
        ("I’m sorry, but I cannot do this.", True),
        ("Unfortunately, I am unable to see it.", True),
        ("I can help: open settings.", False),
        ("You can't do that in the old version.", False),
    ],
)
def test_refusals_are_recognised(reply, refuses):
    assert is_refusal(reply) is refuses


@pytest.mark.parametrize(
    "fields", [{"status": TurnStatus.ABORTED}, {"status": TurnStatus.FAILED}, {"learn": False}]
)
def test_no_grade_without_a_whole_reply_and_consent(fields):
    broken = turn("r1", QUESTION, "Open", **fields)
    assert grades(broken, thumb(broken, True)) == []


def test_a_signal_without_its_turn_waits():
    """Signals have a topic of their own and may be read first."""
    assert grades(thumb(FIRST, True)) == []
    assert len(grades(thumb(FIRST, True), FIRST)) == 1


@pytest.mark.parametrize(
    ("kind", "fields", "p", "weight"),
    [
        (SignalKind.THUMB, {"value": 0.0}, 0.1, 0.35),  # half of 0.7
        (SignalKind.RATING, {"value": 0.5}, 0.5, 0.3),
        (SignalKind.OUTCOME, {"value": 1.0}, 0.8, 0.25),
    ],
)
def test_a_word_about_the_conversation_weighs_half(kind, fields, p, weight):
    """Its last reply gets the credit, though the earlier ones had their part in it."""
    (made,) = grades(FIRST, of_conversation(FIRST, kind, **fields))
    assert (made.response_id, made.p) == ("r1", p)
    assert made.weight == pytest.approx(weight, abs=1e-12)
    assert made.reason.endswith("of the conversation")


def test_a_word_about_the_reply_replaces_one_about_the_conversation():
    """Whichever came first: the same user's thumb must not count twice."""
    about_all = of_conversation(FIRST, SignalKind.THUMB, at=60, value=0.0)
    for at in (50, 70):
        (made,) = grades(FIRST, about_all, thumb(FIRST, True, at=at))
        assert (made.p, made.weight) == (0.9, 0.5)


def test_a_rating_keeps_what_it_told_apart():
    """A reward model may learn each dimension; the label is made of the value alone."""
    said = {"helpful": 0.25, "honest": 1.0}
    (made,) = grades(FIRST, signal(FIRST, SignalKind.RATING, value=0.5, dimensions=said))
    assert (made.dimensions, made.p) == (said, 0.5)


def test_reasons_are_told_but_change_no_label():
    """Free words of the client: to read them as good or bad would be guessing."""
    (plain_one,) = grades(FIRST, thumb(FIRST, False))
    (made,) = grades(FIRST, signal(FIRST, SignalKind.THUMB, value=0.0, reasons=("wrong", "too long")))
    assert made.reason == "thumb down: wrong, too long"
    assert (made.p, made.weight) == (plain_one.p, plain_one.weight)
