"""A machine's judgements: what there is to judge in a conversation, how far they count in a snapshot.

Asks no judge; that is `learner.judge`'s work.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from hashlib import blake2b
from itertools import combinations
from math import fsum

import msgspec

from feedback.conversations import Conversation, Signal, Turn
from feedback.events import SignalKind
from feedback.grades import grade
from feedback.pairs import comparable
from feedback.raters import WEIGHT_DIGITS
from feedback.records import Pair
from feedback.text import canonical, plain

MAX_RIVALS_PER_PROMPT = 3
"""Pairs of replies to one prompt state that are worth a judge's time."""
_PEOPLES = (SignalKind.COMPARISON, SignalKind.LABEL)


class Rivals(msgspec.Struct, frozen=True, kw_only=True):
    """Two replies to one prompt state; `one` has the smaller response id."""

    one: Turn
    other: Turn
    people: float | None
    """Probability that `one` is the better one, as people said it on average; None when nobody was asked."""


def rivals(conversation: Conversation) -> list[Rivals]:
    """What can be compared in a conversation, at most MAX_RIVALS_PER_PROMPT pairs a prompt state.

    Pairs that people compared come first, then by response ids.
    """
    said = peoples_word(conversation.signals)
    by_state: dict[str, list[Turn]] = defaultdict(list)
    for turn in conversation.turns:
        if turn.usable:
            by_state[turn.digest].append(turn)
    return [pair for turns in by_state.values() for pair in _of_one_state(turns, said)]


def peoples_word(signals: Iterable[Signal]) -> dict[tuple[str, str], float]:
    """By two response ids in order: the mean probability that the first is better, as people said it."""
    values: dict[tuple[str, str], list[float]] = defaultdict(list)
    for signal in signals:
        if signal.kind in _PEOPLES and signal.other_response_id and signal.value is not None:
            replies = ordered(signal.response_id, signal.other_response_id)
            values[replies].append(signal.value if replies[0] == signal.response_id else 1.0 - signal.value)
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
    settled = {_wordings(p) for p in people if p.kind in _PEOPLES}
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


def _wordings(pair: Pair) -> tuple[str, frozenset[str]]:
    return pair.prompt_digest, frozenset((plain(pair.chosen), plain(pair.rejected)))


def _of_one_state(turns: Sequence[Turn], said: dict[tuple[str, str], float]) -> list[Rivals]:
    by_id = sorted({t.response_id: t for t in turns}.values(), key=lambda t: t.response_id)
    found = [
        Rivals(one=one, other=other, people=said.get((one.response_id, other.response_id)))
        for one, other in combinations(by_id, 2)
        if comparable(one, other)
    ]
    return sorted(found, key=lambda r: r.people is None)[:MAX_RIVALS_PER_PROMPT]
