"""A machine's judgements: what there is to judge in a conversation, how far they count in a snapshot.

Asks no judge; that is `learner.judge`'s work.
"""

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from hashlib import blake2b
from itertools import combinations
from math import fsum

import msgspec

from feedback.accuracy import gold
from feedback.conversations import Conversation, Signal, Turn
from feedback.events import SignalKind
from feedback.grades import grade
from feedback.pairs import comparable, pair
from feedback.raters import WEIGHT_DIGITS
from feedback.records import Pair
from feedback.text import canonical, plain

MAX_RIVALS_PER_PROMPT = 3
"""Pairs of replies to one prompt state that are worth a judge's time."""
PEOPLES = (SignalKind.COMPARISON, SignalKind.LABEL, SignalKind.REVIEW)
"""Kinds by which people compare two replies."""


class Rivals(msgspec.Struct, frozen=True, kw_only=True):
    """Two replies to one prompt state; `one` has the smaller response id."""

    one: Turn
    other: Turn
    people: float | None
    """Probability that `one` is the better one, as gold has it; None when nobody was asked."""


def rivals(conversation: Conversation) -> list[Rivals]:
    """What can be compared in a conversation, at most MAX_RIVALS_PER_PROMPT pairs a prompt state.

    Pairs with gold come first, then by response ids; those that somebody compared unasked are left out.
    """
    compared = [p for p in pair(conversation, conversation.signals) if p.kind in PEOPLES]
    said = peoples_word(compared)
    unasked = {_replies(p) for p in compared} - said.keys()
    by_state: dict[str, list[Turn]] = defaultdict(list)
    for turn in conversation.turns:
        if turn.usable:
            by_state[turn.digest].append(turn)
    return [r for turns in by_state.values() for r in _of_one_state(turns, said, unasked)]


def peoples_word(pairs: Iterable[Pair]) -> dict[tuple[str, str], float]:
    """By two response ids in order: the mean probability that the first is better, as gold has it."""
    values: dict[tuple[str, str], list[float]] = defaultdict(list)
    for said in pairs:
        if gold(said):
            replies = _replies(said)
            values[replies].append(said.p if replies[0] == said.chosen_response_id else 1.0 - said.p)
    return {replies: fsum(found) / len(found) for replies, found in values.items()}


def ordered(one: str, other: str) -> tuple[str, str]:
    return (one, other) if one <= other else (other, one)


def disliked(conversation: Conversation, signals: Iterable[Signal]) -> list[Turn]:
    """Replies that some grade calls bad and none calls good: those are worth a revision."""
    grades: dict[str, list[float]] = defaultdict(list)
    for made in grade(conversation, signals):
        grades[made.response_id].append(made.p)
    return [
        turn for turn in conversation.turns if turn.usable and max(grades[turn.response_id], default=1) < 0.5
    ]


def judgement_id(judge: str, response_id: str, against: str) -> str:
    """The same judge on the same replies is the same fact. `against`: a response id, or names a revision."""
    key = canonical([judge, response_id, against])
    return f"judgement-{blake2b(key, digest_size=16, person=b'judgement').hexdigest()}"


def apart(pairs: Iterable[Pair]) -> tuple[list[Pair], list[Pair]]:
    """A machine's pairs, and people's."""
    rows = list(pairs)
    return (
        [p for p in rows if p.kind is SignalKind.JUDGEMENT],
        [p for p in rows if p.kind is not SignalKind.JUDGEMENT],
    )


def instructive(judged: Iterable[Pair], people: Iterable[Pair]) -> list[Pair]:
    """Judgements to learn from.

    On two wordings that people compared, a judgement only measures the judge; and one whose label has faded
    to 1/2, because the judge is right no more often than a coin, says nothing.
    """
    settled = {_wordings(p) for p in people if p.kind in PEOPLES}
    return [p for p in judged if p.p > 0.5 and _wordings(p) not in settled]


def cap(judged: Sequence[Pair], others: float, share: float) -> list[Pair]:
    """The pairs with weights scaled down so that together they have at most `share` of the weight.

        scale = min(1, share * others / ((1 - share) * judged))        others, judged: sums of weights

    Pairs that keep no weight are left out; a share of 1 caps nothing.
    """
    total = fsum(p.weight for p in judged)
    if share >= 1.0 or total * (1.0 - share) <= share * others:
        return list(judged)
    scale = share * others / (1.0 - share) / total
    scaled = [msgspec.structs.replace(p, weight=round(p.weight * scale, WEIGHT_DIGITS)) for p in judged]
    return [p for p in scaled if p.weight > 0.0]


def _replies(compared: Pair) -> tuple[str, str]:
    return ordered(compared.chosen_response_id, compared.rejected_response_id)


def _wordings(compared: Pair) -> tuple[str, frozenset[str]]:
    return compared.prompt_digest, frozenset((plain(compared.chosen), plain(compared.rejected)))


def _of_one_state(
    turns: Sequence[Turn], said: Mapping[tuple[str, str], float], unasked: Collection[tuple[str, str]]
) -> list[Rivals]:
    by_id = sorted({t.response_id: t for t in turns}.values(), key=lambda t: t.response_id)
    found = [
        Rivals(one=one, other=other, people=said.get((one.response_id, other.response_id)))
        for one, other in combinations(by_id, 2)
        if comparable(one, other) and (one.response_id, other.response_id) not in unasked
    ]
    return sorted(found, key=lambda r: r.people is None)[:MAX_RIVALS_PER_PROMPT]
