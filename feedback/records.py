"""What the pipeline makes of events: grades, pairs, demonstrations, prompts. Frozen values, no logic.

A *prompt state* is the list of messages up to and including the one that is answered; `prompt_digest`
names it, so replies to the same prompt state can be compared whoever asked.
"""

from datetime import datetime
from typing import Literal

import msgspec

from feedback.events import Message, SignalKind

Split = Literal["train", "heldout"]


class Grade(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """What one signal says of one reply."""

    grade_id: str
    prompt_digest: str
    prompt: tuple[Message, ...]
    reply: str
    response_id: str
    adapter: str
    user: str
    """Pseudonym of the one who gave the signal."""
    kind: SignalKind
    inferred: bool
    """True when the traffic showed it, False when a client said it."""
    p: float
    """Probability that the reply is a good one, 0..1."""
    weight: float
    propensity: float = 1.0
    """Probability with which the traffic split gave this user this adapter's reply."""
    reason: str
    dimensions: dict[str, float] = {}
    """What a rating told apart, 0..1 by name (`events.DIMENSIONS`), as the rater said it: not calibrated."""
    event_ids: tuple[str, ...]
    at: datetime


class Vote(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """What one rater of the review queue said of a pair."""

    rater: str
    p: float
    """1: `chosen` is the better one; 0: `rejected` is; 1/2: neither."""
    dimensions: dict[str, float] = {}
    """The same by those of `events.DIMENSIONS` that the rater answered."""


class Pair(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """Two replies to one prompt state; `chosen` is the likelier better one."""

    pair_id: str
    prompt_digest: str
    prompt: tuple[Message, ...]
    chosen: str
    rejected: str
    chosen_response_id: str
    """Empty when the text is a user's edit and was never served."""
    rejected_response_id: str
    user: str
    raters: tuple[str, ...] = ()
    """Everyone whose signals made a pair across conversations, `user` among them; empty: `user` alone."""
    kind: SignalKind
    p: float
    """Probability that `chosen` is better than `rejected`, 0.5..1."""
    dimensions: dict[str, float] = {}
    """review: the probability that `chosen` is the better one by name (`events.DIMENSIONS`), 0..1."""
    votes: tuple[Vote, ...] = ()
    """review: what each rater said."""
    weight: float
    propensity: float = 1.0
    """Probability with which the traffic split led to these replies; 1 when they were put side by side."""
    by_design: bool = False
    """The gateway put the two side by side, by lot, and the one it showed them to chose."""
    reason: str
    event_ids: tuple[str, ...]
    at: datetime


class Demonstration(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A reply as a user would have it: a target for supervised fine-tuning."""

    demonstration_id: str
    prompt_digest: str
    prompt: tuple[Message, ...]
    reply: str
    user: str
    weight: float
    event_ids: tuple[str, ...]
    at: datetime


class PromptState(msgspec.Struct, frozen=True, kw_only=True):
    """A prompt that users really asked, for PPO to sample replies to."""

    prompt_digest: str
    prompt: tuple[Message, ...]
    count: int
    split: Split
