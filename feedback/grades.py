"""What one signal says of one reply: soft label and weight, from one table of priors. Fits nothing.

Comparisons, regenerations and edits speak of two replies: they make pairs (`pairs`), not grades. So do
reviews, unless neither of the two will do: that is a bad grade of each.
"""

import re
from collections import defaultdict
from collections.abc import Iterable
from hashlib import blake2b
from typing import NamedTuple

from feedback.comparisons import hasty
from feedback.conversations import Conversation, Signal, Turn
from feedback.events import BOTH_BAD, SignalKind
from feedback.records import Grade
from feedback.text import plain


class Prior(NamedTuple):
    p: float
    """Probability that the reply is a good one; for pairs, that the chosen reply is the better one."""
    weight: float


# Source: shared design, learner.md §9. Downs weigh more than ups because people press up by habit.
THUMB_UP = Prior(0.9, 0.5)
THUMB_DOWN = Prior(0.1, 0.7)
RATING = (Prior(0.1, 0.6), Prior(0.9, 0.6))
"""The worst and the best rating; those between lie on the line."""
OUTCOME = (Prior(0.2, 0.5), Prior(0.8, 0.5))
"""A task that failed and one that was done. Nearer to even than a rating: more than one reply decides it."""
CONVERSATION_SHARE = 0.5
"""A word about a conversation weighs this much of the same word about a reply: it is credited to the last
reply, and the earlier ones had their part in it."""
LABEL_WEIGHT = 1.0
"""A human label's p is the label itself."""
COMPARISON_WEIGHT = 1.0
"""A comparison by design: its p is the stated strength of preference."""
REVIEW_WEIGHT = 1.0
"""What one rater's answer weighs before `consensus` puts them together."""
UNACCEPTABLE = Prior(0.0, REVIEW_WEIGHT)
"""One rater's word that a reply will not do, before `consensus` says how far it is shared."""
VOLUNTEERED = Prior(0.9, 0.7)
"""A comparison that nobody asked for, when stated surely: the rater chose what to compare, and knew which was
which."""
REGENERATION = Prior(0.75, 0.5)
EDIT_P = 0.9
JUDGEMENT = Prior(0.7, 0.3)
"""How often a machine that is sure of itself is taken to be right, and its pair's weight."""
CORRECTION = Prior(0.2, 0.5)
REPHRASE = Prior(0.25, 0.3)
COPY = Prior(0.65, 0.2)
CONTINUATION = Prior(0.65, 0.2)
THANKS = Prior(0.75, 0.25)
"""Somewhat more than going on, and as little alone: people also thank out of politeness."""

_SCALES = {SignalKind.RATING: RATING, SignalKind.COMMENT: RATING, SignalKind.OUTCOME: OUTCOME}
_WEAK = frozenset({SignalKind.COPY, SignalKind.CONTINUATION, SignalKind.THANKS})
"""Never alone: they count only beside another kind of signal on the same reply."""
_DEEDS = {
    SignalKind.CORRECTION: CORRECTION,
    SignalKind.REPHRASE: REPHRASE,
    SignalKind.COPY: COPY,
    SignalKind.CONTINUATION: CONTINUATION,
    SignalKind.THANKS: THANKS,
}
_REFUSAL = re.compile(
    r"^(i'?m sorry,? but i|sorry,? (but )?i|i apologi[sz]e,? but i|unfortunately,? i|i)"
    r" (can'?t|cannot|can not|won'?t|will not|am not able to|'?m not able to|am unable to)\b",
    re.IGNORECASE,
)


class _Said(NamedTuple):
    """What one signal says of one reply."""

    signal: Signal
    turn: Turn
    prior: Prior
    reason: str


def grade(conversation: Conversation, signals: Iterable[Signal]) -> list[Grade]:
    """One grade per user, reply and kind.

    A client's word replaces what the traffic suggested; one about the reply, one about the conversation.
    A rater's grades say nothing yet of anybody else's: `consensus`.
    """
    said: dict[tuple[SignalKind, str, str], _Said] = {}
    ordered = sorted(signals, key=lambda s: (not s.inferred, not s.of_conversation))
    for signal in ordered:
        turn = conversation.turn(signal.response_id)
        if turn is None or not turn.usable:
            continue
        if (found := verdict(signal, turn.reply)) is not None:
            said[signal.kind, signal.response_id, signal.user] = _Said(signal, turn, *found)
    reviewed = {
        (turn.response_id, signal.user): _Said(signal, turn, UNACCEPTABLE, "review")
        for signal in ordered
        for turn in _unacceptable(conversation, signal)
    }
    return [_grade(*one) for one in (*_without_lonely_weak_ones(said.values()), *reviewed.values())]


def verdict(signal: Signal, reply: str) -> tuple[Prior, str] | None:
    """What the signal says of the reply, and why; None when it says nothing of one reply alone."""
    kind, value = signal.kind, signal.value
    if kind is SignalKind.THUMB and value is not None:
        return (THUMB_UP, "thumb up") if value >= 0.5 else (THUMB_DOWN, "thumb down")
    if kind in _SCALES and value is not None:
        low, high = _SCALES[kind]
        return Prior(low.p + (high.p - low.p) * value, low.weight), f"{kind} {value:.2f}"
    if kind is SignalKind.LABEL and value is not None and not signal.other_response_id:
        return Prior(value, LABEL_WEIGHT), f"label {value:.2f}"
    if kind in (SignalKind.CORRECTION, SignalKind.REPHRASE) and is_refusal(reply):
        return None
    if kind in _DEEDS:
        return _DEEDS[
            kind
        ], f"{kind} {'seen in the next request' if signal.inferred else 'reported by the client'}"
    return None


def _unacceptable(conversation: Conversation, signal: Signal) -> list[Turn]:
    """Both replies of a review that found neither of them fit to be served."""
    one, other = conversation.turn(signal.response_id), conversation.turn(signal.other_response_id)
    if signal.kind is not SignalKind.REVIEW or BOTH_BAD not in signal.reasons or one is None or other is None:
        return []
    if not (one.usable and other.usable) or hasty(signal, one, other):
        return []
    return [one, other]


def is_refusal(reply: str) -> bool:
    """Whether the reply declines. People argue with right refusals too, so asking again proves nothing."""
    return bool(_REFUSAL.match(plain(reply)))


def _grade(signal: Signal, turn: Turn, prior: Prior, reason: str) -> Grade:
    if signal.of_conversation:
        prior, reason = (
            prior._replace(weight=prior.weight * CONVERSATION_SHARE),
            f"{reason}, of the conversation",
        )
    if signal.reasons:
        reason = f"{reason}: {', '.join(signal.reasons)}"
    key = f"{signal.kind}\x1f{turn.response_id}\x1f{signal.user}"
    return Grade(
        grade_id="grade-" + blake2b(key.encode(), digest_size=12).hexdigest(),
        prompt_digest=turn.digest,
        prompt=turn.prompt,
        reply=turn.reply,
        response_id=turn.response_id,
        adapter=turn.adapter,
        user=signal.user,
        kind=signal.kind,
        inferred=signal.inferred,
        p=prior.p,
        weight=prior.weight,
        propensity=turn.propensity,
        reason=reason,
        dimensions={} if signal.kind is SignalKind.REVIEW else signal.dimensions,  # a review's compare two
        event_ids=tuple(sorted({turn.event_id, *signal.event_ids})),
        at=signal.at,
    )


def _without_lonely_weak_ones(said: Iterable[_Said]) -> list[_Said]:
    by_reply: dict[str, list[_Said]] = defaultdict(list)
    for one in said:
        by_reply[one.signal.response_id].append(one)
    return [
        one
        for together in by_reply.values()
        for one in together
        if one.signal.kind not in _WEAK or len({o.signal.kind for o in together}) > 1
    ]
