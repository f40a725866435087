"""The user's own words among what clients put around them."""

from feedback.conversations import fold
from feedback.frames import Frames
from feedback.implicit import infer
from tests.feedback.builders import assistant, turn, user

ASKED, THEN = "How do I prune roses?", "When do apple trees blossom?"
REPLY = "Cut above a bud that looks outwards, at a slant."


def own(*events) -> list[str]:
    """What is left of the user's messages in the last request."""
    turns = fold(events).turns
    frames = Frames(turns)
    return [frames.own(spoken) for spoken in turns[-1].dialogue if spoken.role == "user"]


def chat(wrap, *, resent=None) -> list:
    """Two questions, wrapped when they are asked; the first is resent as it was, or as `resent` makes it."""
    earlier = (resent or wrap)(ASKED)
    second = [user(earlier), assistant(REPLY), user(wrap(THEN))]
    return [turn("r1", wrap(ASKED), REPLY), turn("r2", second, "In May.", at=40)]


def test_a_message_without_context_is_the_users():
    assert own(*chat(str)) == [ASKED, THEN]


def test_what_all_messages_begin_or_end_with_is_the_clients():
    """Names, stamps, the state of an editor."""
    described = chat(lambda text: f"[09:4{len(text) % 10}] Kim: {text}\n\n<files>\nmain.py\n</files>")
    assert own(*described) == [ASKED, THEN]


def test_a_message_that_comes_back_barer_shows_what_was_put_around_it():
    """Retrieval wraps the newest question alone, each time with other passages."""

    def retrieved(text):
        return f"Use these:\n\n[1] On {text.split()[-1][:4]}\n\nQuestion:\n{text}"

    assert own(*chat(retrieved, resent=str)) == [ASKED, THEN]


def test_alike_beginnings_of_questions_are_the_users():
    """Without a mark that sets them apart they are part of the sentence."""
    assert own(
        turn("r1", "How do I prune roses?", REPLY),
        turn(
            "r2", [user("How do I prune roses?"), assistant(REPLY), user("How do I prune figs?")], "", at=40
        ),
    ) == ["How do I prune roses?", "How do I prune figs?"]


def test_nobody_is_left_without_words():
    """A question that another message repeats is no context."""
    again = [user(ASKED), assistant(REPLY), user(f"Again:\n{ASKED}")]
    assert own(turn("r1", ASKED, REPLY), turn("r2", again, "", at=40)) == [ASKED, f"Again:\n{ASKED}"]


def test_a_mail_quotes_what_it_answers():
    mail = f"{THEN}\n\nOn Tuesday the assistant wrote:\n> {REPLY}\n\n-- \nKim"
    second = [user(f"{ASKED}\n\n-- \nKim"), assistant(REPLY), user(mail)]
    assert own(turn("r1", ASKED, REPLY), turn("r2", second, "", at=40))[1].startswith(THEN)
    assert REPLY not in own(turn("r1", ASKED, REPLY), turn("r2", second, "", at=40))[1]


def test_context_makes_no_question_the_same():
    """Both were wrapped in the same passages; nothing else is alike."""
    wrapped = chat(lambda text: f"<context>\nRoses are pruned in spring above a bud.\n</context>\n{text}")
    assert [signal.kind for signal in infer(fold(wrapped))] == ["continuation"]
