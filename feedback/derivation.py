"""From one conversation's events to everything a snapshot needs of it: one pure function."""

from collections.abc import Iterable

import msgspec

from feedback.comparisons import Comparison, compared
from feedback.conversations import Conversation, fold
from feedback.events import Draw, Event, Message
from feedback.grades import grade
from feedback.implicit import infer
from feedback.pairs import demonstrate, pair
from feedback.records import Demonstration, Grade, Pair
from feedback.review import Item, items

VERSION = 7
"""Raise it whenever the same events would give other rows: the pipeline then derives everything anew."""


class Asked(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A prompt state that one user asked in this conversation."""

    prompt_digest: str
    user: str
    prompt: tuple[Message, ...]
    response_ids: tuple[str, ...]


class Derived(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    grades: tuple[Grade, ...] = ()
    pairs: tuple[Pair, ...] = ()
    demonstrations: tuple[Demonstration, ...] = ()
    asked: tuple[Asked, ...] = ()
    comparisons: tuple[Comparison, ...] = ()
    items: tuple[Item, ...] = ()


def derive(events: Iterable[Event], *, retry_window_s: float) -> Derived:
    """Order, duplicates and the way the events were batched do not matter.

    Args: retry_window_s, see `implicit.infer`.
    """
    return derived_from(fold(events), retry_window_s=retry_window_s)


def derived_from(conversation: Conversation, *, retry_window_s: float) -> Derived:
    """As `derive`, for who has the conversation."""
    alone = len(conversation.turns) < 2  # what the traffic shows is about a reply before it
    inferred = [] if alone else infer(conversation, retry_window_s=retry_window_s)
    signals = [*conversation.signals, *inferred]
    return Derived(
        grades=tuple(grade(conversation, signals)),
        pairs=tuple(pair(conversation, signals)),
        demonstrations=tuple(demonstrate(conversation, signals)),
        asked=tuple(_asked(conversation)),
        comparisons=tuple(compared(conversation, signals)),
        items=tuple(items(conversation, conversation.signals)),
    )


def _asked(conversation: Conversation) -> Iterable[Asked]:
    by_state: dict[tuple[str, str], Asked] = {}
    for turn in conversation.turns:
        second = turn.exposure is not None and turn.exposure.draw is not Draw.ASSIGNED
        if second or not turn.usable:
            continue
        earlier = by_state.get((turn.digest, turn.user))
        by_state[turn.digest, turn.user] = Asked(
            prompt_digest=turn.digest,
            user=turn.user,
            prompt=earlier.prompt if earlier else turn.prompt,
            response_ids=(*(earlier.response_ids if earlier else ()), turn.response_id),
        )
    return by_state.values()
