"""The help desk of Perch as a world with a truth: its questions, what replies say, what users think of them.

Nothing here knows a model. `traits` reads a reply by rules that a person can check by eye; `utility` is the
hidden, stated preference that the simulated users act on and that the loop is measured by:

    utility = w_correct · correct + w_length · length_score(words) + w_direct · [not hedged]
            + w_tone · {polite 1, neutral ½, rude 0}          if the reply is well-formed, else 0

with weights that sum to 1 (`Tastes`, by default 0.50, 0.20, 0.15, 0.15).
"""

import math
import re
from functools import cache
from random import Random
from typing import Literal

import msgspec

from ops.errors import UnknownQuestion
from ops.simulation.topics import ASKED, TOPICS, UNASKED, Topic

Split = Literal["seen", "heldout"]

NEED_FRAMES = ("I want to {}.", "Can you help me to {}?", "I need to {}, please.", "I would like to {}.")
TROUBLE_FRAMES = ("{}. What now?", "Hi, {}.", "{}, can you help?", "Help, {}!")
"""The last frame of each is held out, as is each topic's last whole question."""

WARM_OPENINGS = (
    "Happy to help!",
    "Thanks for asking!",
    "Good question!",
    "Glad you wrote to us!",
)
WARM_CLOSINGS = (
    "Have a lovely day!",
    "Enjoy your birds!",
    "Just write again if you need us.",
    "We are always here for you.",
)
RUDE_OPENINGS = (
    "Not this again.",
    "You could have read the manual.",
    "Everybody else knows this.",
    "What a silly thing to ask.",
)
RUDE_CLOSINGS = (
    "Now stop wasting my time.",
    "It is not that hard.",
    "Do not ask me twice.",
    "A child could do it.",
)
HEDGES = ("I think maybe {}.", "I am not sure, but perhaps {}.", "It might be that {}.")
"""Ways to say a clause without standing behind it."""
FILLERS = (
    "As with so many things in life, there is a little more to this than one would at first expect.",
    "A lot of people write to us about this, early in the morning as well as late in the evening.",
    "Our company has cared about birds for a very long time, and about the people who feed them too.",
    "There are many ways to look at it, and each of them surely has something to be said for it.",
    "It is of course also a matter of taste, of the weather and of the time of the year, as ever.",
    "To put it in other words, what matters in the end is what matters to you and to your birds.",
)
"""Sentences that say nothing. Two of them make a reply long-winded."""
BRUSH_OFFS = (
    "nothing can be done about that, and it will pass",
    "that is how it is, and we have no answer to it",
    "you just switch it off and on again and hope",
    "that is something for another company to look at",
)
"""Wrong answers to any question."""

THANKS = ("Thanks!", "Thank you.", "Great, that worked.", "Thank you very much!", "Perfect, thanks.")
COMPLAINTS = ("That did not work.", "That is wrong.", "This does not help me.", "Are you sure?")
MISUNDERSTOOD = ("No, I meant something else.", "That is not what I asked.", "You got me wrong.")
SHORTER = ("That was too long, please keep it short.", "Please be brief.")
KINDER = ("Please be friendly.", "There is no need to be rude.")
"""What users say after a reply: pleased, not helped, misunderstood, bored, offended."""

POLITE_MARKS = (
    "happy to",
    "thanks for",
    "good question",
    "glad",
    "lovely",
    "enjoy",
    "just write",
    "here for you",
)
RUDE_MARKS = (
    "not this again",
    "could have read",
    "everybody else knows",
    "silly",
    "wasting",
    "not that hard",
    "ask me twice",
    "a child could",
)
HEDGE_MARKS = ("i think", "maybe", "perhaps", "not sure", "might", "possibly", "i guess")


class Traits(msgspec.Struct, frozen=True):
    """What a reply to one question is like."""

    correct: float
    """Share of the right answer's facts that it states."""
    words: int
    hedged: bool
    polite: bool
    rude: bool
    well_formed: bool
    """Not empty, ends with a sentence, and says no four words three times."""


class Tastes(msgspec.Struct, frozen=True, kw_only=True):
    """What one user cares about. The weights sum to 1."""

    correct: float = 0.50
    length: float = 0.20
    direct: float = 0.15
    tone: float = 0.15
    ideal_words: float = 25.0
    """The length that this user likes best."""


USUAL = Tastes()


def clause_sentence(clause: str) -> str:
    return f"{clause[0].upper()}{clause[1:]}."


@cache
def phrasings(topic: Topic, split: Split) -> tuple[str, ...]:
    """The topic's questions in wordings that users give feedback with ("seen"), or never do ("heldout")."""
    seen = split == "seen"
    part = slice(None, -1) if seen else slice(-1, None)
    return (
        *topic.questions[part],
        *(frame.format(need) for frame in NEED_FRAMES[part] for need in topic.needs),
        *(_capital(frame.format(trouble)) for frame in TROUBLE_FRAMES[part] for trouble in topic.troubles),
    )


@cache
def questions(split: Split) -> tuple[str, ...]:
    """All questions of a split, topic by topic.

    "seen": what users ask while the loop learns. "heldout": other wordings of the same topics, and every
    wording of the topics that nobody gives feedback about.
    """
    asked = tuple(q for topic in ASKED for q in phrasings(topic, split))
    if split == "seen":
        return asked
    return asked + tuple(q for topic in UNASKED for s in ("seen", "heldout") for q in phrasings(topic, s))


def topic_of(question: str) -> Topic:
    """The topic that a question of this help desk is about.

    A question may be preceded by other sentences ("No, I meant something else. …").
    Raises: UnknownQuestion.
    """
    text = _normal(question)
    index = _index()
    words = text.split(" ")
    for start in range(len(words)):
        topic = index.get(" ".join(words[start:]))
        if topic is not None:
            return topic
    raise UnknownQuestion(f"{question!r} is no question of the simulated help desk")


def traits(question: str, reply: str) -> Traits:
    """What `reply` is like as an answer to `question`. Raises: UnknownQuestion."""
    topic = topic_of(question)
    text = reply.lower()
    return Traits(
        correct=sum(fact in text for fact in topic.facts) / len(topic.facts),
        words=len(reply.split()),
        hedged=_says(text, HEDGE_MARKS),
        polite=_says(text, POLITE_MARKS),
        rude=_says(text, RUDE_MARKS),
        well_formed=_well_formed(reply),
    )


def utility(traits: Traits, tastes: Tastes = USUAL) -> float:
    """How much a user with these tastes likes a reply, in [0, 1]: the formula at the top of this file."""
    if not traits.well_formed:
        return 0.0
    tone = 0.0 if traits.rude else 1.0 if traits.polite else 0.5
    return (
        tastes.correct * traits.correct
        + tastes.length * length_score(traits.words, tastes.ideal_words)
        + tastes.direct * (not traits.hedged)
        + tastes.tone * tone
    )


def length_score(words: int, ideal: float) -> float:
    """1 within ten words of the ideal, then linearly down to 0 at no words and at 35 words too many."""
    if words < ideal - 10:
        return words / (ideal - 10)
    return min(1.0, max(0.0, 1.0 - (words - ideal - 10) / 25))


def improved(question: str, reply: str) -> str:
    """The reply as its user would have it: the right answer, plainly, without filler and rudeness.

    Sentences that do no harm stay, as people edit no more than they must. Raises: UnknownQuestion.
    """
    topic = topic_of(question)
    clauses = (topic.right, *topic.wrong, *BRUSH_OFFS)
    answer = clause_sentence(topic.right)
    kept = [
        answer if _says(sentence.lower(), tuple(c.lower() for c in clauses)) else sentence
        for sentence in re.split(r"(?<=[.!?])\s+", reply.strip())
        if sentence not in FILLERS and not _says(sentence.lower(), RUDE_MARKS)
    ]
    return " ".join(kept) if answer in kept else answer


def draw_tastes(rng: Random) -> Tastes:
    """One user's tastes: each weight about a quarter more or less than usual, ideal length 20 to 32 words."""
    usual = (USUAL.correct, USUAL.length, USUAL.direct, USUAL.tone)
    weights = [w * math.exp(rng.gauss(0.0, 0.25)) for w in usual]
    correct, length, direct, tone = (w / sum(weights) for w in weights)
    return Tastes(
        correct=correct, length=length, direct=direct, tone=tone, ideal_words=rng.uniform(20.0, 32.0)
    )


def _capital(sentence: str) -> str:
    return sentence[0].upper() + sentence[1:]


def _normal(text: str) -> str:
    return re.sub(r"[^\w\-]+", " ", text.lower()).strip()


@cache
def _index() -> dict[str, Topic]:
    return {
        _normal(question): topic
        for topic in TOPICS
        for split in ("seen", "heldout")
        for question in phrasings(topic, split)
    }


def _says(text: str, marks: tuple[str, ...]) -> bool:
    return any(mark in text for mark in marks)


def _well_formed(reply: str) -> bool:
    words = reply.lower().split()
    fours = [tuple(words[i : i + 4]) for i in range(len(words) - 3)]
    repeats = max((fours.count(four) for four in set(fours)), default=0)
    return bool(words) and reply.rstrip()[-1:] in ".!?" and repeats < 3
