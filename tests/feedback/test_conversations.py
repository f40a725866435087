"""Folding: one conversation from the set of its events, whatever their order."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from feedback.conversations import fold, prompt_digest
from feedback.events import SignalKind, TurnStatus
from tests.feedback.builders import assistant, of_conversation, signal, system, thumb, turn, user

QUESTION = "How do I reset my password?"
FIRST = turn("r1", QUESTION, "Open settings.")
SECOND = turn("r2", [user(QUESTION), assistant("Open settings."), user("And then?")], "Press reset.", at=30)
EVENTS = [FIRST, SECOND, thumb(FIRST, True, at=40), thumb(FIRST, False, at=50), thumb(SECOND, True, at=45)]


@given(st.lists(st.sampled_from(EVENTS)).map(lambda extra: extra + EVENTS).flatmap(st.permutations))
def test_order_and_duplicates_do_not_change_a_conversation(events):
    """Kafka may deliver twice, and signals lie in another topic than turns."""
    assert fold(events) == fold(EVENTS)


def test_turns_come_in_order_of_time():
    assert [t.response_id for t in fold([SECOND, FIRST]).turns] == ["r1", "r2"]


def test_the_last_thumb_of_a_user_counts():
    """People change their minds; a second thumb is no second opinion."""
    signals = fold([FIRST, thumb(FIRST, True, at=40), thumb(FIRST, False, at=50)]).signals
    assert [s.value for s in signals] == [0.0]


def test_two_users_thumbs_both_count():
    signals = fold([FIRST, thumb(FIRST, True), thumb(FIRST, False, who="bob")]).signals
    assert {(s.user, s.value) for s in signals} == {("ann", 1.0), ("bob", 0.0)}


def test_a_thumb_without_a_value_takes_the_earlier_one_back():
    assert fold([FIRST, thumb(FIRST, True, at=40), thumb(FIRST, None, at=50)]).signals == ()


def test_a_retraction_can_itself_be_overtaken():
    events = [FIRST, thumb(FIRST, True, at=40), thumb(FIRST, None, at=50), thumb(FIRST, True, at=60)]
    assert [s.value for s in fold(events).signals] == [1.0]


def test_a_comparison_is_the_same_whichever_reply_is_named_first():
    """The client may send (a, b) and correct itself with (b, a)."""
    one = signal(FIRST, SignalKind.COMPARISON, at=40, value=1.0, other_response_id="r2")
    other = signal(SECOND, SignalKind.COMPARISON, at=50, value=1.0, other_response_id="r1")
    assert [s.response_id for s in fold([FIRST, SECOND, one, other]).signals] == ["r2"]


def test_a_copy_of_value_zero_takes_the_copy_back():
    copies = [signal(FIRST, SignalKind.COPY, at=40), signal(FIRST, SignalKind.COPY, at=50, value=0.0)]
    assert fold([FIRST, *copies]).signals == ()


def test_values_out_of_range_are_brought_into_it():
    """The gateway refuses them; a foreign producer on Kafka may not."""
    assert fold([FIRST, signal(FIRST, SignalKind.RATING, value=7.0)]).signals[0].value == 1.0


def test_whitespace_and_markdown_do_not_change_a_prompt_state():
    """Clients normalise what they resend."""
    assert prompt_digest([user("Is  **this**\nit?")]) == prompt_digest([user("Is this it? ")])


def test_a_system_message_changes_the_prompt_state_but_not_the_place_in_the_dialogue():
    """Products put the time of day there; replies to different instructions still cannot be compared."""
    morning = fold([turn("r1", [system("It is 9:00."), user(QUESTION)], "A")]).turns[0]
    noon = fold([turn("r2", [system("It is 12:00."), user(QUESTION)], "A")]).turns[0]
    assert morning.digest != noon.digest
    assert morning.thread == noon.thread


def test_who_said_it_is_part_of_the_prompt_state():
    assert prompt_digest([user("Hi"), assistant("Hello")]) != prompt_digest([user("Hi"), user("Hello")])


def test_text_parts_are_a_text():
    """The OpenAI protocol allows a list of parts in the place of a string."""
    parts = {"role": "user", "content": [{"type": "text", "text": QUESTION}]}
    seen = fold([turn("r1", [parts], "A")]).turns[0]
    assert seen.prompt == (user(QUESTION),)
    assert seen.digest == FIRST_SEEN.digest


def test_a_prompt_with_an_image_is_not_used():
    """Text alone would be another prompt than the one that was answered."""
    image = {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:"}}]}
    assert not fold([turn("r1", [image], "A cat.")]).turns[0].usable


def test_a_reply_that_calls_a_tool_is_not_used():
    call = {"role": "assistant", "content": "Looking.", "tool_calls": [{"id": "1"}]}
    assert not fold([turn("r1", QUESTION, call)]).turns[0].usable


def test_what_was_not_served_whole_or_without_consent_is_not_used():
    for fields in ({"status": TurnStatus.ABORTED}, {"status": TurnStatus.FAILED}, {"learn": False}):
        assert not fold([turn("r1", QUESTION, "Half a rep", **fields)]).turns[0].usable
    assert FIRST_SEEN.usable


FIRST_SEEN = fold([FIRST]).turns[0]


BROKEN = turn("r3", [user("And if not?")], "Then", at=50, status=TurnStatus.ABORTED)


@pytest.mark.parametrize(
    ("at", "about"),
    [
        (0.5, ""),  # the first reply is still on its way: it ends at 1
        (1, "r1"),
        (30.5, "r1"),  # the second one ends at 31
        (31, "r2"),
        (60, "r2"),  # the third broke off
    ],
)
def test_a_word_about_the_conversation_is_about_its_last_complete_reply_then(at, about):
    """Nobody can have judged what was not there yet."""
    said = of_conversation(FIRST, SignalKind.OUTCOME, at=at, value=1.0)
    (found,) = fold([FIRST, SECOND, BROKEN, said]).signals
    assert (found.response_id, found.of_conversation) == (about, True)


def test_the_last_word_about_a_conversation_counts_whichever_reply_it_fell_on():
    """One user has one opinion of a conversation; one about a reply is another matter."""
    early = of_conversation(FIRST, SignalKind.THUMB, at=10, value=1.0)
    late = of_conversation(FIRST, SignalKind.THUMB, at=40, value=0.0)
    events = [FIRST, SECOND, early, late, thumb(FIRST, True, at=20)]
    assert [(s.response_id, s.value) for s in fold(events).signals] == [("r2", 0.0), ("r1", 1.0)]
    taken_back = of_conversation(FIRST, SignalKind.THUMB, at=50, value=None)
    assert [s.response_id for s in fold([*events, taken_back]).signals] == ["r1"]


def test_only_some_kinds_can_be_about_a_conversation():
    """An edit of a whole conversation has no text to replace; a foreign producer may send one."""
    (found,) = fold([FIRST, of_conversation(FIRST, SignalKind.EDIT, text="Open it.")]).signals
    assert (found.response_id, found.of_conversation) == ("", False)


def test_dimensions_are_brought_into_range_and_unknown_ones_left_out():
    """A snapshot has a fixed set of columns, whatever a foreign producer sends."""
    said = signal(
        FIRST, SignalKind.RATING, value=0.5, dimensions={"honest": 1.5, "helpful": 0.25, "brave": 1.0}
    )
    assert fold([FIRST, said]).signals[0].dimensions == {"helpful": 0.25, "honest": 1.0}
