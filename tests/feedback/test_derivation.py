"""Derivation: what a conversation's events say together, whatever their order."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from feedback.derivation import derive
from feedback.events import Event, SignalKind
from tests.feedback.builders import signal, thumb, turn

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


@given(st.permutations(STANDS + TAKEN_BACK))
def test_a_conversation_with_retracted_signals_is_one_without_them(events: list[Event]) -> None:
    """Grades, pairs and the events behind them; other users' and other replies' signals stay."""
    assert derive(events, retry_window_s=2.0) == derive(STANDS, retry_window_s=2.0)


@pytest.mark.parametrize("given", TAKEN_BACK[::2], ids=lambda e: str(e.data.kind))
def test_each_of_them_counts_until_it_is_taken_back(given: Event) -> None:
    """Else the law above would hold for signals that say nothing."""
    assert derive([*STANDS, given], retry_window_s=2.0) != derive(STANDS, retry_window_s=2.0)
