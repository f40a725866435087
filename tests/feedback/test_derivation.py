"""Derivation: what a conversation's events say together, whatever their order."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from feedback.derivation import derive
from feedback.events import Event, SignalKind, TurnRecorded
from tests.feedback.builders import offered, signal, thumb, turn

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
