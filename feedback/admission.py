"""What an event must be to be taken for one: of its topic and conversation, of a size, from our time."""

from datetime import UTC, date, datetime, timedelta
from datetime import time as time_of_day

import msgspec

from feedback.codec import Written
from feedback.config import Pipeline
from feedback.errors import CodecError, LimitExceeded
from feedback.eventlog import MAX_ENTRY_BYTES, Record, Topic
from feedback.events import Event, SignalReceived, TurnRecorded, UserErased

SOURCES: dict[Topic, type] = {
    Topic.TURNS: TurnRecorded,
    Topic.SIGNALS: SignalReceived,
    Topic.USERS: UserErased,
}
"""What is read, and the one type of event that belongs there."""
MAX_NAME_BYTES = 1000
"""Longest event id, key or user: PostgreSQL's indexes take rows of 2704 bytes, of two names and a digest."""


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """What an event may be; one beyond them is poisonous, whatever it says."""

    max_bytes: int = MAX_ENTRY_BYTES
    not_before: date = date.min
    max_ahead_s: float = 86_400.0

    @classmethod
    def of(cls, config: Pipeline) -> "Limits":
        return cls(
            max_bytes=config.max_event_bytes, not_before=config.not_before, max_ahead_s=config.max_ahead_s
        )


def check_size(record: Record, limits: Limits) -> None:
    """Before it is decoded. Raises: LimitExceeded."""
    if len(record.value) > limits.max_bytes:
        raise LimitExceeded(f"{len(record.value)} bytes, [pipeline] max_event_bytes is {limits.max_bytes}")


def check_written(written: Written) -> None:
    """Before its key is looked up. Raises: CodecError, LimitExceeded."""
    _check_names(written.key_id or "")


def check_event(record: Record, event: Event, bounds: "Bounds") -> None:
    """Raises: CodecError, LimitExceeded; OverflowError for times that no calendar has."""
    data = event.data
    _expect(data, record)
    _check_names(event.id, event.key)
    if isinstance(data, (TurnRecorded, SignalReceived)):
        _check_names(data.user)
        if event.key != data.conversation_id:
            raise CodecError(f"{event.id!r} has key {event.key!r} but belongs to {data.conversation_id!r}")
        for name, at in _times(event.time, data):
            bounds.check(event.id, name, at)


def erasure_in(record: Record, event: Event) -> UserErased:
    """Raises: CodecError, LimitExceeded."""
    told = event.data
    _expect(told, record)
    assert isinstance(told, UserErased)
    _check_names(told.user, told.by, *told.keys)
    return told


def _expect(data: object, record: Record) -> None:
    topic = Topic(record.position.topic)
    if not isinstance(data, SOURCES[topic]):
        raise CodecError(
            f"{record.event_id!r} is a {type(data).__name__}; {topic} takes {SOURCES[topic].__name__}"
        )


def _check_names(*names: str) -> None:
    """What becomes a key in the state must be one that every database takes, else it stalls them all."""
    for name in names:
        if "\0" in name:
            raise CodecError(f"{name[:80]!r}: no database takes a NUL in a name")
        if (size := len(name if name.isascii() else name.encode())) > MAX_NAME_BYTES:
            raise LimitExceeded(f"a name of {size} bytes, {name[:40]!r}…: at most {MAX_NAME_BYTES}")


def _times(time: datetime, data: TurnRecorded | SignalReceived) -> tuple[tuple[str, datetime], ...]:
    """Every moment that derivation reads."""
    if isinstance(data, SignalReceived):
        return ("time", time), ("received_at", data.received_at)
    ended_at = data.started_at + timedelta(seconds=data.duration_s)
    return ("time", time), ("started_at", data.started_at), ("the reply's end", ended_at)


class Bounds:
    """Between which moments an event may lie that is read now."""

    def __init__(self, limits: Limits, now: datetime) -> None:
        self._limits, self._now = limits, now
        self._first = datetime.combine(limits.not_before, time_of_day.min, UTC)
        self._last = now + timedelta(seconds=limits.max_ahead_s)

    def check(self, event_id: str, name: str, at: datetime) -> None:
        """Raises: CodecError, LimitExceeded."""
        if at.tzinfo is None:
            raise CodecError(f"{event_id!r}: {name} {at.isoformat()} has no time zone")
        if at > self._last:
            raise LimitExceeded(
                f"{event_id!r}: {name} {at.isoformat()} is in the future, more than [pipeline] max_ahead_s"
                f" ({self._limits.max_ahead_s:g}) after {self._now.isoformat(timespec='seconds')}"
            )
        if at < self._first:
            raise LimitExceeded(
                f"{event_id!r}: {name} {at.isoformat()} is before [pipeline] not_before"
                f" ({self._limits.not_before})"
            )
