"""What became of a reply's words on its way back: what programs do is told from what only people do."""

import pytest

from feedback.alterations import Way, alteration

REPLY = (
    "Open the settings, choose security and press reset. A mail with a link comes within a minute. Good luck!"
)


@pytest.mark.parametrize(
    "resent",
    [
        REPLY.replace(". ", ".\n\n* "),
        REPLY.replace("settings", "**settings**").replace("'", "\u2019"),
        REPLY.replace(". ", ".<br>\n"),
        "<p>" + REPLY.replace(", ", ",&nbsp;") + "</p>",
        REPLY.replace("link", "link [1]"),
        REPLY.replace("link", "[link](https://example.org/reset)"),
        "<think>They lost it.</think>" + REPLY,
        "They lost it.</think>" + REPLY,
        REPLY + " \U0001f600 :smile:",
        REPLY.upper(),
        REPLY.replace("choose security", "choose secu\u00adrity").replace(" a ", "\u00a0a\u200b "),
        "Good luck! " + REPLY.removesuffix(" Good luck!"),
    ],
)
def test_these_are_the_same_words(resent):
    assert alteration(REPLY, resent).way is Way.NONE


@pytest.mark.parametrize(
    ("resent", "way"),
    [
        (REPLY[:40], Way.CUT),
        (REPLY[:40] + "…", Way.CUT),
        (REPLY[:20] + " [... 40 characters truncated ...] " + REPLY[-20:], Way.CUT),
        ("Open the settings, choose security and press reset. Good luck!", Way.LESS),
        (REPLY.removesuffix(" Good luck!"), Way.LESS),
        (REPLY + "\n\nSent from my shop.", Way.MORE),
        ("Assistant: " + REPLY, Way.MORE),
        (REPLY.replace("a link", "[LINK]"), Way.MARKED),
        (REPLY.replace("a link", "████"), Way.MARKED),
        (REPLY.replace("reset.", "reset (see the handbook, p. 4)."), Way.MARKED),
        (REPLY.replace("link", "code"), Way.REWORDED),
        (REPLY.replace("A mail", "Wait a bit. A mail"), Way.REWORDED),
        (REPLY.replace("a minute", "an hour") + "\n\nSent from my shop.", Way.REWORDED),
    ],
)
def test_this_is_how_the_words_changed(resent, way):
    assert alteration(REPLY, resent).way is way


def test_a_letter_more_or_less_is_spelling():
    """Clients turn one English into the other."""
    assert alteration("The colours of the theatre", "The colors of the theater").way is Way.NONE
    assert alteration("It costs 12 dollars", "It costs 13 dollars").way is Way.REWORDED


def test_grouped_figures_and_accents_are_the_same():
    assert alteration("The café takes 1,500 guests", "The cafe takes 1500 guests").way is Way.NONE


@pytest.mark.parametrize(
    ("served", "resent"),
    [
        (
            "It holds 25 % at 3 cm and 20 °C.",
            "It holds 25 percent at three centimetres and 20 degrees Celsius",
        ),
        ("Run `logs <name>` first.", "Run `logs <name\\>` first\\."),
        ("So:\n```python\nx = 1\n```\nDone.", "So:\n#+begin_src python\nx = 1\n#+end_src\nDone."),
    ],
    ids=["a voice", "escaped for a messenger", "Org mode"],
)
def test_the_same_words_in_another_notation_are_the_same(served, resent):
    assert alteration(served, resent).way is Way.NONE
