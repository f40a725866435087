"""Derivation: what a conversation's events say together, whatever their order."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from feedback.derivation import derive
from feedback.events import OF_CONVERSATIONS, Event, SignalKind, TurnRecorded
from tests.feedback.builders import of_conversation, offered, signal, thumb, turn

QUESTION = "How do I reset my password?"
BAD = turn("r1", QUESTION, "Click around until something happens.")
GOOD = turn("r2", QUESTION, "Open settings, choose security and press reset.", at=20)
STANDS = [BAD, GOOD, thumb(GOOD, True, at=40), thumb(BAD, True, at=41, who="bob")]
TAKEN_BACK = [
    event
    for kind, other in (
        (SignalKind.THUMB, None),
        (SignalKind.RATING, None),
        (SignalKind.LABEL, None),
        (SignalKind.COMPARISON, "r2"),
    )
    for event in (
        signal(BAD, kind, at=50, value=0.0, other_response_id=other),
        signal(BAD, kind, at=60, value=None, other_response_id=other),
    )
]


SIDE_BY_SIDE = offered("s1", QUESTION, "Press reset in the settings.", "Ask an administrator to do it.")


def test_a_second_reply_to_compare_is_no_second_asking() -> None:
    """Prompts are sampled by how often people ask them."""
    (asked,) = derive(SIDE_BY_SIDE, retry_window_s=2.0).asked
    assert asked.response_ids == ("s1",)


@pytest.mark.parametrize("again_at", [10.0, 60.0])
def test_asking_again_after_two_replies_says_of_neither_that_it_was_bad(again_at: float) -> None:
    """Nor is the second reply itself a regeneration of the first, however the window is set."""
    again = turn("s2", QUESTION, "Open the settings, choose security and press reset.", at=again_at)
    liked = thumb(again, True, at=again_at + 20)
    assert derive([*SIDE_BY_SIDE, again, liked], retry_window_s=0.0).pairs == ()
    alone = [msgspec.structs.replace(e, data=without_exposure(e)) for e in SIDE_BY_SIDE[:1]]
    assert len(derive([*alone, again, liked], retry_window_s=0.0).pairs) == 1


def without_exposure(event: Event) -> TurnRecorded:
    assert isinstance(event.data, TurnRecorded)
    return msgspec.structs.replace(event.data, exposure=None)


@given(st.permutations(STANDS + TAKEN_BACK))
def test_a_conversation_with_retracted_signals_is_one_without_them(events: list[Event]) -> None:
    """Grades, pairs and the events behind them; other users' and other replies' signals stay."""
    assert derive(events, retry_window_s=2.0) == derive(STANDS, retry_window_s=2.0)


@pytest.mark.parametrize("given", TAKEN_BACK[::2], ids=lambda e: str(e.data.kind))
def test_each_of_them_counts_until_it_is_taken_back(given: Event) -> None:
    """Else the law above would hold for signals that say nothing."""
    assert derive([*STANDS, given], retry_window_s=2.0) != derive(STANDS, retry_window_s=2.0)


OTHER = {"other_response_id": "r2"}
WORDS = {
    SignalKind.THUMB: ({"value": 1.0}, {"value": None}),
    SignalKind.RATING: ({"value": 0.2, "dimensions": {"honest": 0.2}}, {"value": None}),
    SignalKind.OUTCOME: ({"value": 1.0}, {"value": None}),
    SignalKind.LABEL: ({"value": 0.1}, {"value": None}),
    SignalKind.COMMENT: ({"value": 0.0, "text": "bad"}, {"text": None}),
    SignalKind.EDIT: ({"text": "Click until the page opens."}, {"text": None}),
    SignalKind.COMPARISON: ({"value": 0.0, **OTHER}, {"value": None, **OTHER}),
    SignalKind.REGENERATION: (OTHER, {"value": 0.0, **OTHER}),
    SignalKind.CORRECTION: ({}, {"value": 0.0}),
    SignalKind.REPHRASE: ({}, {"value": 0.0}),
    SignalKind.COPY: ({}, {"value": 0.0}),
    SignalKind.CONTINUATION: ({}, {"value": 0.0}),
    SignalKind.THANKS: ({}, {"value": 0.0}),
}
"""Of each kind that clients send, a word that says something and one that takes it back."""
SAID = st.tuples(st.sampled_from(list(WORDS)), st.sampled_from(["ann", "bob"]), st.booleans())


def word(kind: SignalKind, whole: bool, **how: object) -> Event:
    """Of BAD, or of its whole conversation where there is such a word."""
    say = of_conversation if whole and kind in OF_CONVERSATIONS else signal
    return say(BAD, kind, **how)


@given(said=st.lists(SAID, max_size=12), data=st.data())
def test_whatever_was_said_and_taken_back_leaves_no_row(said, data) -> None:
    """Any kinds, by anybody, again and again, about a reply or the conversation, read in any order."""
    given = [
        word(kind, whole, at=60 + n, who=who, **WORDS[kind][0]) for n, (kind, who, whole) in enumerate(said)
    ]
    taken_back = [
        word(kind, whole, at=90 + n, who=who, **WORDS[kind][1]) for n, (kind, who, whole) in enumerate(said)
    ]
    events = data.draw(st.permutations([BAD, GOOD, *given, *taken_back]))
    assert derive(events, retry_window_s=2.0) == derive([BAD, GOOD], retry_window_s=2.0)
    assert derive([BAD, GOOD], retry_window_s=2.0).grades == ()


@pytest.mark.parametrize(
    ("kind", "whole"), [*((k, False) for k in WORDS), *((k, True) for k in WORDS if k in OF_CONVERSATIONS)]
)
def test_each_kind_leaves_rows_until_it_is_taken_back(kind, whole) -> None:
    """Else the law above would hold for words that say nothing; weak ones count beside another one."""
    others = [BAD, GOOD, thumb(GOOD, True, who="zoe"), thumb(BAD, False, who="zoe")]
    said = word(kind, whole, **WORDS[kind][0])
    assert derive([*others, said], retry_window_s=2.0) != derive(others, retry_window_s=2.0)
