"""The events of the loop: frozen, versioned values. Serialising them is `codec`'s work.

A new field gets a default, so that old bytes still decode; a changed meaning gets a new event type.
Times are aware UTC datetimes; durations are seconds; users are pseudonyms (`feedback.privacy`).
"""

from datetime import datetime
from enum import StrEnum
from typing import Any, Literal

import msgspec

Message = dict[str, Any]
"""One message of the OpenAI chat protocol: `role`, `content` and whatever else the client sent."""


class SignalKind(StrEnum):
    THUMB = "thumb"
    RATING = "rating"
    COMMENT = "comment"
    EDIT = "edit"
    REGENERATION = "regeneration"
    REPHRASE = "rephrase"
    CORRECTION = "correction"
    COPY = "copy"
    CONTINUATION = "continuation"
    THANKS = "thanks"
    BRANCH = "branch"
    """The question was changed and asked again in the place of the one that was answered."""
    COMPARISON = "comparison"
    LABEL = "label"
    OUTCOME = "outcome"
    """How the user's task ended."""
    JUDGEMENT = "judgement"
    """A machine's comparison under a written constitution; no client can send it."""
    REVIEW = "review"
    """A rater's answer about two replies of the review queue; only for a ticket that the queue gave out."""


VALUED = frozenset(
    {
        SignalKind.THUMB,
        SignalKind.RATING,
        SignalKind.COMPARISON,
        SignalKind.LABEL,
        SignalKind.OUTCOME,
        SignalKind.JUDGEMENT,
        SignalKind.REVIEW,
    }
)
"""Kinds that say something by their value. Without one, a signal takes the earlier of its kind back."""
OF_CONVERSATIONS = frozenset({SignalKind.THUMB, SignalKind.RATING, SignalKind.COMMENT, SignalKind.OUTCOME})
"""Kinds that may be about a whole conversation."""
DIMENSIONS = ("helpful", "honest", "harmless")
"""What a rating may tell apart. Source: Askell et al., arXiv:2112.00861."""
BOTH_BAD = "both bad"
"""The reason that goes with a review that prefers neither of two replies since neither will do."""


class TurnStatus(StrEnum):
    COMPLETE = "complete"
    ABORTED = "aborted"
    """The client went away before the last byte; `reply` holds what was sent."""
    FAILED = "failed"
    """The engine broke off in mid-stream; `reply` holds what was sent."""


class IdentitySource(StrEnum):
    """How the gateway knew which conversation a turn belongs to; decides what may be inferred from it."""

    EXPLICIT = "explicit"
    """A header or `metadata.conversation_id` named it."""
    USER = "user"
    """Same end user and same first message."""
    HISTORY = "history"
    """No user given: same key and same first message, which many end users may share."""


class Sampling(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How the reply was sampled, as the engine was told."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    max_tokens: int | None = None
    seed: int | None = None
    stop: tuple[str, ...] = ()
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    repetition_penalty: float = 1.0


class Draw(StrEnum):
    """Where one of two replies shown side by side came from."""

    ASSIGNED = "assigned"
    """The traffic split gave it: it would have been served alone."""
    OTHER_ARM = "other_arm"
    """From the other arm of the split, while there is a canary."""
    RESAMPLED = "resampled"
    """From the same adapter, with another seed."""


class Exposure(msgspec.Struct, frozen=True, kw_only=True):
    """How the gateway put a reply beside another one to the same request."""

    partner: str
    """Response id of the other reply."""
    side: Literal["left", "right"]
    """Drawn by the gateway, each side with probability 1/2."""
    draw: Draw
    """Where this reply came from: `assigned`, `other_arm` or `resampled`."""
    propensity: float
    """Probability with which the turn was drawn for a comparison."""
    shown_at: datetime
    """When both replies were there to be read."""


class Drawn(StrEnum):
    """Why the review queue asked this rater about these replies."""

    SAMPLED = "sampled"
    """Nobody had answered; drawn from all such pairs by priority sampling (`feedback.review`)."""
    SHARED = "shared"
    """Others had been asked before, and more raters were wanted."""
    CALIBRATION = "calibration"
    """The answer was known: it measures the rater."""


class Review(msgspec.Struct, frozen=True, kw_only=True):
    """How a rater was shown two replies of the review queue."""

    side: Literal["left", "right"]
    """Where the reply of `response_id` stood; drawn for each rater, either side with probability 1/2."""
    drawn: Drawn
    size: float
    """sampled: the pair's size in the drawing, 0..1. Otherwise 1."""
    threshold: float
    """sampled: the largest priority among the pairs not drawn; min(1, size / threshold) is the probability
    with which this one was. Otherwise 0."""
    disagreement: float | None = None
    """How far the reward ensemble disagreed about the pair, 0..1; None when it had not scored it."""
    shown_at: datetime


class TurnRecorded(
    msgspec.Struct, frozen=True, kw_only=True, gc=False, tag="ratchet.turn.recorded.v1", tag_field="type"
):
    """One served reply with all that made it."""

    response_id: str
    conversation_id: str
    identity: IdentitySource
    principal: str
    """Id of the API key's owner."""
    user: str
    """Pseudonym of the end user; of the principal when the client named none."""
    adapter: str
    arm: str
    """`stable`, `canary`, or `pinned` when the client asked for an adapter by name."""
    propensity: float
    """Probability with which this arm was chosen for this unit."""
    messages: tuple[Message, ...]
    reply: Message
    """The assistant message that was served."""
    prompt_token_ids: tuple[int, ...] = ()
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[float, ...] = ()
    """Log-probability of each sampled token at the sampling temperature (nats)."""
    sampling: Sampling = Sampling()
    finish_reason: str = "stop"
    status: TurnStatus = TurnStatus.COMPLETE
    started_at: datetime
    first_token_s: float | None = None
    duration_s: float = 0.0
    learn: bool = True
    """False when the client withheld consent (`store: false`): served, counted, never learned from."""
    exposure: Exposure | None = None
    """Set on both replies when the gateway offered two of them side by side."""


class SignalReceived(
    msgspec.Struct, frozen=True, kw_only=True, gc=False, tag="ratchet.signal.received.v1", tag_field="type"
):
    """What somebody did about a turn, as a client told us."""

    signal_id: str
    response_id: str
    """Empty: the signal is about the conversation."""
    conversation_id: str
    principal: str
    user: str
    kind: SignalKind
    value: float | None = None
    """thumb: 1 up, 0 down. rating, label: 0..1. outcome: 0..1, 1 when the user's task was done. comparison,
    judgement, review: probability that `response_id` is the better one. None takes back what the same user
    said in one of these kinds; of a judgement, it says that the judge was asked and gave nothing to go by; of
    a review with a reason, that the rater passed."""
    text: str | None = None
    """comment: its text. edit: the reply as the user would have it. judgement: the machine's revision of the
    reply, when that is what it was compared with."""
    reasons: tuple[str, ...] = ()
    """Short labels; of a judgement, the constitution and the judge's model."""
    other_response_id: str | None = None
    """comparison, judgement, review: the other reply. regeneration: the one that came instead of
    `response_id`'s."""
    dimensions: dict[str, float] = {}
    """rating: 0..1 by some or all of `helpful`, `honest`, `harmless`; `value` sums them up. judgement: by
    principle, the probability that `response_id` is the better one, mean of both orders. review: the same by
    some or all of the dimensions of a rating."""
    position_gaps: dict[str, float] = {}
    """judgement: by principle and `overall`, that probability with `response_id` shown first, less with it
    shown second."""
    review: Review | None = None
    """Set on every review, and on nothing else."""
    received_at: datetime


class AdapterTransitioned(
    msgspec.Struct,
    frozen=True,
    kw_only=True,
    gc=False,
    tag="ratchet.adapter.transitioned.v1",
    tag_field="type",
):
    """The registry moved an adapter from one state to another."""

    adapter: str
    from_state: str
    to_state: str
    by: str
    reason: str
    at: datetime


class UserErased(
    msgspec.Struct, frozen=True, kw_only=True, gc=False, tag="ratchet.user.erased.v1", tag_field="type"
):
    """An end user's data keys were destroyed: nobody can read what was sealed under them any more."""

    user: str
    """Pseudonym."""
    keys: tuple[str, ...]
    """Ids of the data keys."""
    by: str
    at: datetime


Data = TurnRecorded | SignalReceived | AdapterTransitioned | UserErased


class Event(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A CloudEvents 1.0 envelope. `id` is deterministic: the same fact always has the same id."""

    id: str
    source: str
    time: datetime
    key: str
    """Partitioning key: the conversation id, so that one partition sees a conversation in order."""
    data: Data


def turn_event(turn: TurnRecorded, source: str = "ratchet/gateway") -> Event:
    return Event(
        id=f"turn-{turn.response_id}",
        source=source,
        time=turn.started_at,
        key=turn.conversation_id,
        data=turn,
    )


def signal_event(signal: SignalReceived, source: str = "ratchet/gateway") -> Event:
    return Event(
        id=f"signal-{signal.signal_id}",
        source=source,
        time=signal.received_at,
        key=signal.conversation_id,
        data=signal,
    )


def adapter_event(transition: AdapterTransitioned, source: str = "ratchet/controller") -> Event:
    return Event(
        id=f"adapter-{transition.adapter}-{transition.to_state}-{transition.at.isoformat()}",
        source=source,
        time=transition.at,
        key=transition.adapter,
        data=transition,
    )


def erased_event(erased: UserErased, source: str = "ratchet/operator") -> Event:
    return Event(
        id=f"erased-{erased.user}-{erased.at.isoformat()}",
        source=source,
        time=erased.at,
        key=erased.user,
        data=erased,
    )
