"""The held-out set itself: new to the rules, every label in it, and drawn the same each time.

None of these tests asks what `feedback.implicit` makes of it.
"""

import random
import re
from collections import defaultdict
from collections.abc import Iterator
from itertools import pairwise

import pytest

from feedback.events import SignalKind, TurnRecorded
from tests.feedback.builders import assistant, user
from tests.feedback.measured import SETS, labelled
from tests.feedback.released import RELEASED
from tests.feedback.third import THIRD
from tests.feedback.traffic import Record, traffic
from tests.feedback.unseen import UNSEEN
from tests.feedback.unseen_clients import CLIENTS, answered, edited, html, typed, words_of
from tests.feedback.wordings import DEVELOPMENT, Material

CHATS = 400
LABELS = {
    SignalKind.REGENERATION,
    SignalKind.EDIT,
    SignalKind.REPHRASE,
    SignalKind.CORRECTION,
    SignalKind.THANKS,
    SignalKind.CONTINUATION,
    SignalKind.BRANCH,
}
HABITS = [pytest.param(make, id=f"client {n}") for n, (make, _) in enumerate(CLIENTS)]


def texts(value: object) -> Iterator[str]:
    """Every text of a set, however deep."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, tuple):
        for part in value:
            yield from texts(part)


def said(material: Material) -> set[str]:
    """What is left of each text without case, punctuation and placeholders; two words are nobody's own."""
    bare = (re.sub(r"\{\w+\}", "", text) for text in texts(material))
    return {words_of(text) for text in bare if len(text.split()) > 2}


def reactions(record: Record) -> dict[SignalKind, set[str]]:
    """The distinct messages that a label was given for: the next one of the same chat's history."""
    labels = defaultdict(set)
    for kind, response_id in record.truth:
        labels[response_id].add(kind)
    turns = [e.data for e in record.events if isinstance(e.data, TurnRecorded)]
    found = defaultdict(set)
    for turn, following in pairwise(turns):
        for kind in labels[turn.response_id]:
            found[kind].add(following.messages[-1]["content"])
    return found


@pytest.mark.parametrize("other", [DEVELOPMENT, RELEASED, THIRD], ids=["development", "released", "third"])
def test_no_text_is_known_from_development(other):
    """A phrase that the rules were fitted to would be measured as if it had been guessed."""
    assert said(UNSEEN) & said(other) == set()


def test_every_label_is_given():
    """And no other: what nobody does cannot be missed."""
    assert {kind for kind, _ in labelled("unseen", CHATS).truth} == LABELS


@pytest.mark.parametrize("kind", [SignalKind.CORRECTION, SignalKind.REPHRASE, SignalKind.THANKS])
def test_no_reaction_is_a_handful_of_templates(kind):
    """Forty ways of saying it at least, among 400 chats already."""
    assert len(reactions(labelled("unseen", CHATS))[kind]) >= 40


def test_the_same_seed_draws_the_same_chats():
    """Figures that nobody can draw again are no figures."""
    material, manners, seed = SETS["unseen"]
    first, second, other = (traffic(material, manners, seed=s, chats=40) for s in (seed, seed, seed + 1))
    assert drawn(first) == drawn(second)
    assert drawn(first) != drawn(other)


def drawn(record: Record) -> tuple[object, ...]:
    turns = [(e.data.response_id, e.data.messages, e.data.started_at) for e in record.events]
    return turns, record.truth, record.traps


@pytest.mark.parametrize("make", HABITS)
def test_clients_end_with_the_question(make):
    """Whatever they do to a history: what is asked comes last, and an answer would be one to it."""
    rng = random.Random(7)
    history = []
    for topic in UNSEEN.topics[:5]:
        history += [user(topic.asked[0]), assistant(answered(rng, UNSEEN, topic))]
    sent = make(rng, UNSEEN).resend([*history, user("And how warm?")], topic.asked[0])
    assert sent[-1]["role"] == "user"
    assert "And how warm?" in sent[-1]["content"]


@pytest.mark.parametrize("make", [habit for habit in HABITS if habit.id != "client 0"])
def test_habits_show_in_what_is_sent(make):
    """A hard negative that changes nothing is an easy one."""
    rng = random.Random(7)
    client = make(rng, UNSEEN)
    served, kept = [], []
    for topic in UNSEEN.topics:
        reply = answered(rng, UNSEEN, topic)
        served += [user(topic.asked[0]), assistant(client.served(reply))]
        kept += [user(topic.asked[0]), assistant(client.rewrite(client.served(reply)))]
    asked = user("And how warm?")
    altered = client.resend([*kept, asked], topic.asked[0]) != [*served, asked]
    assert altered or client.errand or client.tools


def test_tidying_changes_no_word():
    """Else it would be an edit, if not one of the user's."""
    rng = random.Random(3)
    for topic in UNSEEN.topics:
        reply = answered(rng, UNSEEN, topic)
        assert words_of(re.sub(r"<[^>]+>|&nbsp;", "", html(reply))) == words_of(reply)


def test_edits_change_words_or_figures():
    """An edit of the layout alone has no label that annotators agree about."""
    rng = random.Random(3)
    for topic in UNSEEN.topics * 5:
        reply = answered(rng, UNSEEN, topic)
        assert words_of(edited(rng, reply, UNSEEN, topic)) != words_of(reply)


def test_slips_of_the_keyboard_leave_the_words_readable():
    """One letter at most is another, and nothing else but case and marks changes."""
    rng = random.Random(3)
    for text in texts(UNSEEN.topics):
        written, meant = words_of(typed(rng, text)), words_of(text)
        assert len(written) == len(meant)
        assert sum(a != b for a, b in zip(written, meant, strict=True)) <= 1
