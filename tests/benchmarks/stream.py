"""A made-up site's events as its gateway writes them: sealed, conversations interleaved, any number of them.

A conversation has three turns (each resends the history), of which one may be a second try, and on average
one and a half signals. Memory holds the conversations that are open at once, and the users' keys.
"""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from random import Random

import sqlalchemy as sa

from feedback import codec, database, keyring
from feedback.eventlog import Topic, topic_of
from feedback.events import (
    Event,
    IdentitySource,
    Message,
    SignalKind,
    SignalReceived,
    TurnRecorded,
    signal_event,
    turn_event,
)
from feedback.sealing import DataKey

START = datetime(2026, 3, 2, 9, 0, tzinfo=UTC)
OPEN_AT_ONCE = 1000
USERS = 2000
EVENTS_PER_CONVERSATION = 4.5

Entry = tuple[Topic, str, str, bytes]
"""Topic, key, event id and bytes."""

_THINGS = (
    "invoice parcel password printer contract router refund booking ticket licence sensor ladder".split()
)
_ASKED = "How do I change the {0} that came with my {1}, number {2}?"
_SAID = (
    "Open the page of your {1}, choose the {0} and follow the three steps that it shows. It takes a minute,"
    " and you can take it back for {2} days. If the {0} is not listed there, write to us with its number, and"
    " somebody who knows your {1} will look at it today."
)


def entries(count: int, keys: dict[str, DataKey], *, seed: int = 7) -> Iterator[Entry]:
    """`count` events in the order of a busy site: the next one comes from any of the open conversations."""
    chance = Random(seed)
    names = (f"c{seed}-{n}" for n in range(10**9))
    open_ones = [_conversation(next(names), chance) for _ in range(min(OPEN_AT_ONCE, count // 4 + 1))]
    for _ in range(count):
        at = chance.randrange(len(open_ones))
        event = next(open_ones[at], None)
        while event is None:
            open_ones[at] = _conversation(next(names), chance)
            event = next(open_ones[at], None)
        assert isinstance(event.data, TurnRecorded | SignalReceived)
        yield topic_of(event), event.key, event.id, codec.encode(event, keys[event.data.user])


def users_keys(state: sa.Engine) -> dict[str, DataKey]:
    """A key for every user, in the state as the gateway puts it there."""
    with database.writing(state) as tx:
        return {user: keyring.obtain(tx, user, START) for user in (f"u-{n:032x}" for n in range(USERS))}


def _conversation(name: str, chance: Random) -> Iterator[Event]:
    user = f"u-{chance.randrange(USERS):032x}"
    words = (chance.choice(_THINGS), chance.choice(_THINGS), chance.randrange(1000))
    at = START + timedelta(seconds=chance.randrange(10**6))
    history: list[Message] = []
    for number in range(3):
        again = number == 1 and chance.random() < 0.3
        if not again:
            history.append({"role": "user", "content": f"{number + 1}. {_ASKED.format(*words)}"})
        reply = f"{'Or else. ' if again else ''}{_SAID.format(*words)}"
        turn = _turn(f"r-{name}-{number}", name, user, tuple(history), reply, at, chance)
        yield turn_event(turn)
        if chance.random() < 0.5:
            yield signal_event(_thumb(turn, at + timedelta(seconds=30), chance.random() < 0.7))
        if not again:
            history.append(turn.reply)
        at += timedelta(seconds=60)


def _turn(
    response_id: str,
    conversation: str,
    user: str,
    messages: tuple[Message, ...],
    reply: str,
    at: datetime,
    chance: Random,
) -> TurnRecorded:
    prompt_tokens = sum(len(str(m["content"])) for m in messages) // 5
    tokens = len(reply) // 5
    return TurnRecorded(
        response_id=response_id,
        conversation_id=conversation,
        identity=IdentitySource.EXPLICIT,
        principal="acme",
        user=user,
        adapter="lora-3f2a9c10",
        arm="stable",
        propensity=0.95,
        messages=messages,
        reply={"role": "assistant", "content": reply},
        prompt_token_ids=_token_ids(prompt_tokens),
        token_ids=_token_ids(tokens),
        logprobs=_logprobs(tokens, chance.randrange(8)),
        started_at=at,
        first_token_s=0.05,
        duration_s=1.5,
    )


def _thumb(turn: TurnRecorded, at: datetime, up: bool) -> SignalReceived:
    return SignalReceived(
        signal_id=f"thumb-{turn.response_id}",
        response_id=turn.response_id,
        conversation_id=turn.conversation_id,
        principal=turn.principal,
        user=turn.user,
        kind=SignalKind.THUMB,
        value=float(up),
        received_at=at,
    )


@lru_cache(maxsize=1024)
def _token_ids(count: int) -> tuple[int, ...]:
    return tuple(17 + 31 * n % 30_000 for n in range(count))


@lru_cache(maxsize=1024)
def _logprobs(count: int, seed: int) -> tuple[float, ...]:
    chance = Random(seed)
    return tuple(-chance.expovariate(2.0) for _ in range(count))
