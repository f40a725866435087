"""The event log as its users see it: what it promises, its topics, its keys. No I/O here.

Two implementations keep this contract and pass the same tests (`tests/feedback/test_eventlog.py`):
`feedback.embedded.EmbeddedLog` (one SQLite file) and `feedback.kafka.KafkaLog`.
"""

from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import Future
from datetime import datetime
from enum import StrEnum
from typing import Protocol

import msgspec

from feedback.events import AdapterTransitioned, Event, SignalReceived, TurnRecorded, UserErased

MAX_ENTRY_BYTES = 16 << 20
"""Largest value that a log takes; the same everywhere, so that whatever is in one fits into the other."""


MAX_READ_BYTES = 2 * MAX_ENTRY_BYTES
"""What one read may hold in memory, however many entries it was asked for."""


class Topic(StrEnum):
    TURNS = "turns"
    SIGNALS = "signals"
    ADAPTERS = "adapters"
    USERS = "users"
    DEAD_LETTERS = "dead-letters"


_TOPIC_OF = {
    TurnRecorded: Topic.TURNS,
    SignalReceived: Topic.SIGNALS,
    AdapterTransitioned: Topic.ADAPTERS,
    UserErased: Topic.USERS,
}


_TOPIC_OF_TYPE = {str(data.__struct_config__.tag): topic for data, topic in _TOPIC_OF.items()}


def topic_of(event: Event) -> Topic:
    return _TOPIC_OF[type(event.data)]


Place = tuple[Topic, int]
"""A topic's partition."""


def topic_of_type(name: str) -> Topic:
    """Of the event type `name`, as CloudEvents have it."""
    return _TOPIC_OF_TYPE[name]


class Position(msgspec.Struct, frozen=True, order=True, gc=False):
    topic: str
    partition: int
    offset: int


class Record(msgspec.Struct, frozen=True, gc=False):
    """One entry as it lies in the log. `value` may be undecodable: that is the reader's business."""

    position: Position
    key: str
    value: bytes
    event_id: str = ""
    """Empty when whoever wrote the entry gave none."""


class EventLog(Protocol):
    def append(self, topic: Topic, key: str, event_id: str, value: bytes) -> "Future[Position | None]":
        """Queue one entry; the future resolves once it is durable, and not before.

        Never blocks on I/O. Appending the same `event_id` to the same topic again is harmless: the embedded
        log drops the second, Kafka may keep both and readers drop it. The position may be None when the
        backend does not tell. The future fails with LogFull or LogUnavailable; then nothing was promised. Any
        other LogError means this entry will never be taken: too large, or its key or id is no valid text.
        """
        ...

    def partitions(self, topic: Topic) -> Sequence[int]: ...

    def read(
        self, topic: Topic, partition: int, offset: int, *, limit: int = 500, timeout_s: float = 0.0
    ) -> list[Record]:
        """Up to `limit` entries from `offset` (inclusive) on, in order; waits up to `timeout_s` for one.

        Fewer, but at least one, where they are large: not more than MAX_READ_BYTES and one entry.
        Reading from an expired offset on gives what follows the expired ones.
        """
        ...

    def end(self, topic: Topic, partition: int) -> int:
        """The offset that the next entry will get; never less than it was, whatever expired."""
        ...

    def expire(self, topic: Topic, partition: int, *, before: datetime, below: int) -> int:
        """Delete the first entries, up to the first appended at `before` or later, or with offset `below`.

        Returns: the offset that the partition begins at now. Raises: LogUnavailable; run it again then.
        """
        ...

    def ends(self, places: Collection[Place]) -> Mapping[Place, int]:
        """`end` of many partitions, for the price of one."""
        ...

    def share(self, group: str, topics: Collection[Topic]) -> "Share":
        """A worker's share of these topics: all workers of the same group have all of them between them."""
        ...

    def close(self) -> None:
        """Everything queued is durable or its future has failed when this returns."""
        ...


class Share(Protocol):
    """A worker's share of the log: partitions by number, each with all topics of that number.

    A key has the same number in every topic, so all that is said in a conversation goes to one worker. A
    share is a wish, not a lock: whoever commits checks that nobody else has (`feedback.pipeline.fold`).
    """

    def partitions(self) -> frozenset[int]:
        """What is this worker's now; to be asked before every batch. Raises: LogUnavailable."""
        ...

    def close(self) -> None:
        """Leave the share to others."""
        ...


class Whole:
    """The share of a worker that is alone."""

    def __init__(self, partitions: Collection[int]) -> None:
        self._partitions = frozenset(partitions)

    def partitions(self) -> frozenset[int]:
        return self._partitions

    def close(self) -> None:
        pass
