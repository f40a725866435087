"""Events for tests, in few words: `asked("How?", reply="So.")`, `thumb(turn, up=True)`.

Times are seconds after NOON. Everything has a default but what the test is about.
"""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

import msgspec

from feedback import codec
from feedback.eventlog import EventLog, topic_of
from feedback.events import (
    Draw,
    Event,
    Exposure,
    IdentitySource,
    Message,
    SignalKind,
    SignalReceived,
    TurnRecorded,
    TurnStatus,
    signal_event,
    turn_event,
)

NOON = datetime(2026, 3, 2, 12, 0, tzinfo=UTC)


def system(text: str) -> Message:
    return {"role": "system", "content": text}


def user(text: str) -> Message:
    return {"role": "user", "content": text}


def assistant(text: str) -> Message:
    return {"role": "assistant", "content": text}


def turn(
    response_id: str,
    messages: str | Sequence[Message],
    reply: str | Message,
    *,
    at: float = 0.0,
    conversation: str = "c1",
    who: str = "ann",
    **fields: Any,
) -> Event:
    """A turn served `at` seconds after noon, in one second. A string asks as the first message."""
    history = (user(messages),) if isinstance(messages, str) else tuple(messages)
    defaults: dict[str, Any] = {
        "identity": IdentitySource.USER,
        "principal": "acme",
        "adapter": "base-00000000",
        "arm": "stable",
        "propensity": 1.0,
        "status": TurnStatus.COMPLETE,
        "duration_s": 1.0,
    }
    return turn_event(
        TurnRecorded(
            response_id=response_id,
            conversation_id=conversation,
            user=who,
            messages=history,
            reply=assistant(reply) if isinstance(reply, str) else reply,
            started_at=NOON + timedelta(seconds=at),
            **{**defaults, **fields},
        )
    )


def offered(
    response_id: str,
    messages: str | Sequence[Message],
    reply: str,
    other: str,
    *,
    side: Literal["left", "right"] = "left",
    draw: Draw = Draw.RESAMPLED,
    at: float = 0.0,
    other_fields: dict[str, Any] | None = None,
    **fields: Any,
) -> tuple[Event, Event]:
    """Two replies side by side, shown two seconds after they were asked for: `reply` on `side`, and `other`,
    whose response id is `response_id` with an `x`."""
    beside = f"{response_id}x"

    def exposure(partner: str, side: Literal["left", "right"], draw: Draw) -> Exposure:
        shown_at = NOON + timedelta(seconds=at + 2.0)
        return Exposure(partner=partner, side=side, draw=draw, propensity=0.02, shown_at=shown_at)

    first = exposure(beside, side, Draw.ASSIGNED)
    second = exposure(response_id, "right" if side == "left" else "left", draw)
    return (
        turn(response_id, messages, reply, at=at, exposure=first, **fields),
        turn(beside, messages, other, at=at, exposure=second, **{**fields, **(other_fields or {})}),
    )


def preferred(
    better: Event, worse: Event, *, value: float = 1.0, at: float = 60.0, who: str | None = None
) -> Event:
    """A comparison: `better` is the better one with probability `value`."""
    assert isinstance(worse.data, TurnRecorded)
    return signal(
        better,
        SignalKind.COMPARISON,
        at=at,
        who=who,
        value=value,
        other_response_id=worse.data.response_id,
    )


def signal(
    about: Event, kind: SignalKind, *, at: float = 60.0, who: str | None = None, **fields: Any
) -> Event:
    """What somebody, by default who asked, did about a turn `at` seconds after noon."""
    assert isinstance(about.data, TurnRecorded)
    rater = who or about.data.user
    received_at = NOON + timedelta(seconds=at)
    return signal_event(
        SignalReceived(
            signal_id=f"{kind}-{about.data.response_id}-{rater}-{at:g}",
            response_id=about.data.response_id,
            conversation_id=about.data.conversation_id,
            principal=about.data.principal,
            user=rater,
            kind=kind,
            received_at=received_at,
            **fields,
        )
    )


def of_conversation(among: Event, kind: SignalKind, **how: Any) -> Event:
    """As `signal`, but about the conversation that the turn is in."""
    said = signal(among, kind, **how)
    assert isinstance(said.data, SignalReceived)
    return signal_event(msgspec.structs.replace(said.data, signal_id=f"c-{said.id}", response_id=""))


def thumb(about: Event, up: bool | None, *, at: float = 60.0, who: str | None = None) -> Event:
    """None takes the thumb back."""
    value = None if up is None else float(up)
    return signal(about, SignalKind.THUMB, at=at, who=who, value=value)


def append(log: EventLog, *events: Event) -> None:
    """Put events into a log and wait until they are durable."""
    for future in [log.append(topic_of(e), e.key, e.id, codec.encode(e)) for e in events]:
        future.result(timeout=30)
