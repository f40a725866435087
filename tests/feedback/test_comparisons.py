"""Comparisons by design: which answers are gold, which came too fast, and what else may have decided them."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from feedback.comparisons import TOO_FAST, Comparison, Wins, by_design, compared, tally
from feedback.conversations import fold
from feedback.events import Draw, Event
from tests.feedback.builders import offered, preferred, thumb, turn

QUESTION = "How do I reset my password?"
SHORT = "Press reset."
LONG = "Open the settings, choose security and press reset password there."
"""Ten words: one second at the fastest reading."""


def found(*events: Event) -> list[Comparison]:
    conversation = fold(events)
    return compared(conversation, conversation.signals)


def without(event: Event, **fields: object) -> Event:
    return msgspec.structs.replace(event, data=msgspec.structs.replace(event.data, **fields))


def test_an_answer_is_kept_with_how_it_was_shown() -> None:
    """The first reply on the right, whole after 1 s; the second, longer, on the left after 1.5 s."""
    one, other = offered(
        "r1", QUESTION, SHORT, LONG, side="right", draw=Draw.OTHER_ARM, other_fields={"duration_s": 1.5}
    )
    answer = preferred(one, other, value=0.8, at=12)
    (kept,) = found(one, other, answer)
    assert kept == Comparison(
        comparison_id=answer.id,
        left="r1x",
        right="r1",
        left_better=pytest.approx(0.2),
        longer="left",
        sooner="right",
        asked_for="right",
        draw=Draw.OTHER_ARM,
        decided_s=10.0,
    )


@pytest.mark.parametrize("side", ["left", "right"])
def test_it_does_not_matter_which_reply_the_client_names_first(side: str) -> None:
    one, other = offered("r1", QUESTION, SHORT, LONG, side=side)  # type: ignore[arg-type]
    (said,) = found(one, other, preferred(one, other, value=0.75))
    (contrary,) = found(one, other, preferred(other, one, value=0.25))
    assert said == msgspec.structs.replace(contrary, comparison_id=said.comparison_id)
    assert said.left_better == (0.75 if side == "left" else 0.25)


def test_only_the_one_they_were_shown_to_gives_gold() -> None:
    """Whoever may name users in feedback could else invent as many raters as it takes."""
    one, other = offered("r1", QUESTION, SHORT, LONG, who="ann")
    assert found(one, other, preferred(one, other, who="bob")) == []
    assert len(found(one, other, preferred(one, other, who="ann"))) == 1


def test_replies_that_were_not_offered_together_are_not_compared_by_design() -> None:
    one, other = offered("r1", QUESTION, SHORT, LONG)
    third, fourth = offered("r2", QUESTION, SHORT, LONG, at=100)
    plain = turn("r3", QUESTION, LONG, at=200)
    for a, b in ((one, third), (one, fourth), (one, plain), (plain, one)):
        assert found(one, other, third, fourth, plain, preferred(a, b, at=300)) == []


def test_one_exposure_without_the_other_proves_nothing() -> None:
    one, other = offered("r1", QUESTION, SHORT, LONG)
    assert found(one, without(other, exposure=None), preferred(one, other)) == []
    assert found(without(one, exposure=None), other, preferred(one, other)) == []
    assert found(one, preferred(one, other)) == []


def test_other_signals_are_no_comparisons() -> None:
    one, other = offered("r1", QUESTION, SHORT, LONG)
    assert found(one, other, thumb(one, True), preferred(one, other, value=0.9, at=70))[1:] == []
    conversation = fold([one, other, thumb(one, True)])
    assert by_design(conversation, conversation.signals[0]) is None


@pytest.mark.parametrize(("at", "why"), [(2.99, TOO_FAST), (3.01, "")])
def test_an_answer_before_the_second_reply_can_have_been_read_is_dropped(at: float, why: str) -> None:
    """Ten words, ten a second, shown at second 2. The first reply's words were read while they came."""
    one, other = offered("r1", QUESTION, f"{LONG} " * 9, LONG)
    (kept,) = found(one, other, preferred(one, other, at=at))
    assert kept.dropped == why


def test_what_may_have_decided_is_counted_apart() -> None:
    """Ann takes the left, short, first one; ben the right, long, second one; cat neither; dan in no time."""
    events: list[Event] = []
    for who, value, at in (("ann", 1.0, 30), ("ben", 0.1, 31), ("cat", 0.5, 32), ("dan", 1.0, 2.1)):
        one, other = offered(
            who, QUESTION, SHORT, LONG, who=who, conversation=who, other_fields={"duration_s": 1.9}
        )
        events += [one, other, preferred(one, other, value=value, at=at)]
    told = tally(found(*events))
    assert (told.counted, told.ties, told.dropped) == (3, 1, {TOO_FAST: 1})
    assert told.wins == {
        "left": Wins(1, 2),
        "longer": Wins(1, 2),
        "sooner": Wins(1, 2),
        "asked for": Wins(1, 2),
    }


def test_replies_alike_in_length_say_nothing_of_length() -> None:
    one, other = offered("r1", QUESTION, "Press the button.", "Ask a friend.")
    told = tally(found(one, other, preferred(one, other)))
    assert told.wins["longer"] == told.wins["sooner"] == Wins(0, 0)
    assert told.wins["left"] == Wins(1, 1)


def test_a_taste_for_the_left_shows() -> None:
    """60 of 80: Wilson's interval is (0.75 + 0.024010 ± 0.097877) / 1.048020 = 0.6451 to 0.8319."""
    low, high = Wins(60, 80).interval
    assert (low, high) == (pytest.approx(0.6451, abs=1e-4), pytest.approx(0.8319, abs=1e-4))
    assert Wins(0, 0).interval == (0.0, 1.0)


ANSWERED = [
    e
    for n in range(4)
    for one, other in [offered(f"r{n}", QUESTION, SHORT, LONG, conversation=f"c{n}", at=n)]
    for e in (one, other, preferred(one, other, value=n / 3, at=60))
]


@given(st.permutations(ANSWERED))
def test_the_tally_does_not_depend_on_order(events: list[Event]) -> None:
    assert tally(found(*events)) == tally(found(*ANSWERED))
