"""The event log on Kafka, and its consumer groups: the only file that imports the client. At least once.

Topics are `<prefix>.<topic>`, made on first use; a key keeps its partition; every call has a time limit.
Kafka does not tell a full disk from any other trouble, so this log raises LogUnavailable for both.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import Future
from datetime import datetime
from functools import partial
from typing import Any, TypeVar

import msgspec
import structlog
from kafka import ConsumerRebalanceListener, KafkaAdminClient, KafkaConsumer, KafkaProducer, TopicPartition
from kafka.coordinator.assignors.range import RangePartitionAssignor
from kafka.errors import (
    InvalidRecordError,
    KafkaError,
    KafkaTimeoutError,
    MessageSizeTooLargeError,
    RecordListTooLargeError,
    TopicAlreadyExistsError,
)

from feedback.errors import ConfigError, LogError, LogUnavailable
from feedback.eventlog import MAX_ENTRY_BYTES, MAX_READ_BYTES, Place, Position, Record, Topic

_TOPIC_CONFIG = {
    "retention.ms": "-1",  # the log is the source of truth: replaying it from zero must give everything
    "retention.bytes": "-1",
    "max.message.bytes": str(MAX_ENTRY_BYTES + (1 << 16)),
}
_HEADERS = [("content-type", b"application/cloudevents+json; charset=UTF-8")]
_EVENT_ID = "ce_id"
_NEVER_TAKEN = (InvalidRecordError, MessageSizeTooLargeError, RecordListTooLargeError, UnicodeEncodeError)
_FETCH_WAIT_MS = 100
_FETCHED_BYTES = 4 << 20
"""Of one partition at once; the client's own 1 MiB makes a batch of three times as many round trips."""
_READ_AHEAD = 2000
_RETRY_S = 0.2
_SESSION_MS = 10_000
"""A worker that is silent for so long has died, and the others get its partitions."""
_LONGEST_BATCH_MS = 600_000
"""A worker that folds, or builds a snapshot, for longer than this loses its partitions until it is done."""
_JOIN_MS = 500
_LEAVE_MS = 2000

_log = structlog.get_logger()

T = TypeVar("T")
Names = Mapping[Topic, tuple[int, ...]]


class _Entry(msgspec.Struct, frozen=True, eq=False):
    topic: Topic
    key: str
    event_id: str
    value: bytes
    future: "Future[Position | None]"
    queued_s: float
    """Monotonic clock."""


class KafkaLog:
    """`feedback.eventlog.EventLog` on the brokers `servers` (comma-separated). No I/O before first use.

    Args: `partitions` of each topic that this log makes (existing ones keep theirs); `timeout_s` for every
    call and, twice over, for the future of an append; `max_pending`, appends on their way until more are
    refused. Raises: ConfigError for `servers` that are not host:port.
    """

    def __init__(
        self,
        servers: str,
        prefix: str,
        partitions: int,
        *,
        timeout_s: float = 10.0,
        max_pending: int = 10_000,
    ) -> None:
        _check_servers(servers)
        self._cluster = _Cluster(servers, prefix, partitions, timeout_s)
        self._sending = _Sending(self._cluster, timeout_s, max_pending)
        self._reading = _Reading(self._cluster, timeout_s)

    def append(self, topic: Topic, key: str, event_id: str, value: bytes) -> "Future[Position | None]":
        return self._sending.append(topic, key, event_id, value)

    def partitions(self, topic: Topic) -> Sequence[int]:
        return self._cluster.partitions(topic)

    def read(
        self, topic: Topic, partition: int, offset: int, *, limit: int = 500, timeout_s: float = 0.0
    ) -> list[Record]:
        """As the protocol says. One read at a time: another thread's waits until this one is over."""
        return self._reading.read(topic, partition, offset, limit, timeout_s)

    def end(self, topic: Topic, partition: int) -> int:
        return self._reading.end(topic, partition)

    def ends(self, places: Collection[Place]) -> Mapping[Place, int]:
        return self._reading.ends(places)

    def share(self, group: str, topics: Collection[Topic]) -> "Member":
        """As the protocol says. No I/O before its first use; not for several threads."""
        return Member(self._cluster, self._reading, group, topics)

    def expire(self, topic: Topic, partition: int, *, before: datetime, below: int) -> int:
        """As the protocol says; a segment's bytes go once Kafka has deleted the whole segment."""
        return self._reading.expire(topic, partition, before, below)

    def close(self) -> None:
        self._sending.close()
        self._reading.close()


class Member:
    """`feedback.eventlog.Share` by a consumer group: Kafka hands the partitions out and notices who died.

    The group's consumer only says what is whose. It fetches nothing and commits nothing: entries are read by
    offset, and the offsets lie with what was made of the entries. The client's own thread sends heartbeats.
    """

    def __init__(
        self, cluster: "_Cluster", reading: "_Reading", group: str, topics: Collection[Topic]
    ) -> None:
        self._cluster = cluster
        self._reading = reading
        self._group = group
        self._topics = tuple(topics)
        self._consumer: KafkaConsumer | None = None
        self._listener = _Assigned()

    def partitions(self) -> frozenset[int]:
        """Raises: LogUnavailable; ConfigError when the topics' partitions differ in number."""
        mine = _translated(self._look, self._cluster.servers)
        self._reading.keep({(topic, number) for topic in self._topics for number in mine})
        return mine

    def close(self) -> None:
        """The others get the partitions at once, not only when the session has timed out."""
        if self._consumer is not None:
            self._consumer.close(timeout_ms=_LEAVE_MS)
            self._consumer = None

    def _look(self) -> frozenset[int]:
        if self._consumer is None:
            self._consumer = self._join()
        self._consumer.poll(timeout_ms=0 if self._listener.assigned else _JOIN_MS)
        assigned = self._listener.assigned
        names = [self._cluster.name(topic) for topic in self._topics]
        return frozenset(
            number
            for number in {at.partition for at in assigned}
            if all(TopicPartition(name, number) in assigned for name in names)
        )

    def _join(self) -> KafkaConsumer:
        self._check_partitions()
        consumer = KafkaConsumer(
            **self._cluster.settings(),
            group_id=self._group,
            partition_assignment_strategy=[RangePartitionAssignor],  # the same numbers of every topic
            session_timeout_ms=_SESSION_MS,
            heartbeat_interval_ms=_SESSION_MS // 4,
            max_poll_interval_ms=_LONGEST_BATCH_MS,
            enable_auto_commit=False,
            auto_offset_reset="earliest",
            metrics_enabled=False,
        )
        self._listener = _Assigned(consumer)
        consumer.subscribe([self._cluster.name(topic) for topic in self._topics], listener=self._listener)
        return consumer

    def _check_partitions(self) -> None:
        counts = {self._cluster.name(t): len(self._cluster.partitions(t)) for t in self._topics}
        if len(set(counts.values())) > 1:
            said = ", ".join(f"{name} {count}" for name, count in counts.items())
            raise ConfigError(
                f"topics of one log must have as many partitions each, these have: {said}. Words about a"
                " conversation would lie elsewhere than its turns; raise the lower numbers (kafka-topics.sh)"
            )


class _Assigned(ConsumerRebalanceListener):  # type: ignore[misc]
    """Told by the client's thread what is ours; keeps it from fetching any of it."""

    def __init__(self, consumer: KafkaConsumer | None = None) -> None:
        self._consumer = consumer
        self.assigned: frozenset[TopicPartition] = frozenset()

    def on_partitions_revoked(self, revoked: Collection[TopicPartition]) -> None:
        self.assigned = frozenset()

    def on_partitions_assigned(self, assigned: Collection[TopicPartition]) -> None:
        assert self._consumer is not None
        self._consumer.pause(*assigned)
        self.assigned = frozenset(assigned)


class _Cluster:
    """Where the brokers are and what the topics are called; makes the topics once."""

    def __init__(self, servers: str, prefix: str, partitions: int, timeout_s: float) -> None:
        self.servers = servers
        self._prefix = prefix
        self._partitions = partitions
        self._timeout_ms = int(timeout_s * 1000)
        self._lock = threading.Lock()
        self._found: Names = {}

    def name(self, topic: Topic) -> str:
        return f"{self._prefix}.{topic}"

    def partitions(self, topic: Topic) -> tuple[int, ...]:
        """Raises: LogUnavailable."""
        return self.topics()[topic]

    def topics(self) -> Names:
        """Every topic's partitions; missing topics are made first. Raises: LogUnavailable."""
        with self._lock:
            if not self._found:
                self._found = _translated(self._make_topics, self.servers)
            return self._found

    def at(self, topic: Topic, partition: int) -> TopicPartition:
        """Raises: LogError if there is no such partition; LogUnavailable."""
        if partition not in (there := self.partitions(topic)):
            raise LogError(f"{self.name(topic)} has no partition {partition}, only {list(there)}")
        return TopicPartition(self.name(topic), partition)

    def delete(self, at: TopicPartition, below: int) -> None:
        """Delete the entries under an offset. Raises: LogUnavailable."""

        def delete() -> None:
            admin = KafkaAdminClient(**self.settings())
            try:
                if below > 0:
                    admin.delete_records({at: below}, timeout_ms=self._timeout_ms)
            finally:
                admin.close()

        _translated(delete, self.servers)

    def settings(self) -> dict[str, Any]:
        """What all clients share. Reconnecting stays quick: a broker is back within seconds of a restart."""
        return {
            "bootstrap_servers": self.servers.split(","),
            "request_timeout_ms": self._timeout_ms // 2,
            "bootstrap_timeout_ms": self._timeout_ms // 2,
            "reconnect_backoff_max_ms": 1000,
        }

    def _make_topics(self) -> Names:
        admin = KafkaAdminClient(**self.settings())
        try:
            names = [self.name(topic) for topic in Topic]
            missing = set(names) - set(admin.list_topics())
            wanted = {
                n: {"num_partitions": self._partitions, "configs": _TOPIC_CONFIG} for n in sorted(missing)
            }
            for name, options in wanted.items():
                try:
                    admin.create_topics({name: options}, timeout_ms=self._timeout_ms)
                except TopicAlreadyExistsError:  # another process was first
                    continue
            admin.wait_for_topics(names, timeout_ms=self._timeout_ms)
            found = {
                t["name"]: sorted(p["partition_index"] for p in t["partitions"])
                for t in admin.describe_topics(names)
            }
            return {topic: tuple(found[self.name(topic)]) for topic in Topic}
        finally:
            admin.close()


class _Sending:
    """Appends: queued by callers, handed to the producer by one thread, resolved by the producer's own."""

    def __init__(self, cluster: _Cluster, timeout_s: float, max_pending: int) -> None:
        self._cluster = cluster
        self._timeout_s = timeout_s
        self._max_pending = max_pending
        self._queue: deque[_Entry] = deque()
        self._changed = threading.Condition()  # reentrant
        self._pending: dict[Future[Position | None], float] = {}
        """Since when, monotonic clock; the oldest first."""
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="kafka-log", daemon=True)
        self._thread.start()

    def append(self, topic: Topic, key: str, event_id: str, value: bytes) -> "Future[Position | None]":
        future: Future[Position | None] = Future()
        future.set_running_or_notify_cancel()  # a caller that goes away does not take its entry along
        with self._changed:
            refusal = self._refusal(topic, event_id, value)
            if refusal is None:
                now_s = time.monotonic()
                self._pending[future] = now_s
                self._queue.append(_Entry(topic, key, event_id, value, future, now_s))
                self._changed.notify()
        if refusal is not None:
            future.set_exception(refusal)
        return future

    def _refusal(self, topic: Topic, event_id: str, value: bytes) -> LogError | None:
        if self._closed:
            return LogUnavailable("the Kafka log is closed")
        if len(self._pending) >= self._max_pending:
            return LogUnavailable(f"{len(self._pending)} entries are already on their way to Kafka")
        if len(value) > MAX_ENTRY_BYTES:
            return LogError(
                f"{topic} entry {event_id!r} has {len(value)} bytes, the limit is {MAX_ENTRY_BYTES}"
            )
        return None

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()

    def _run(self) -> None:
        """The sending thread: ends when the log is closed and every entry acknowledged, failed or expired."""
        producer: KafkaProducer | None = None
        try:
            while self._wait():
                if producer is not None and self._overdue():
                    self._give_up(producer)
                    producer = None
                producer = producer or self._connect()
                if producer is None:
                    self._expire()
                    time.sleep(_RETRY_S)
                else:
                    self._send_queued(producer)
        finally:
            if producer is not None:
                self._close(producer)
            with self._changed:
                self._closed = True
                left = list(self._pending)
            for future in left:
                self._settle(future, LogUnavailable("the Kafka log stopped before this was acknowledged"))

    def _wait(self) -> bool:
        """True as soon as there is something to do, False once the log is closed and nothing is queued."""
        with self._changed:
            while not self._queue and not self._closed and not self._overdue():
                self._changed.wait(self._patience_s())
            return bool(self._queue) or not self._closed

    def _patience_s(self) -> float | None:
        """How long the oldest entry may still take; the producer acknowledges or fails each in half of it."""
        with self._changed:
            oldest_s = next(iter(self._pending.values()), None)
        return None if oldest_s is None else oldest_s + 2 * self._timeout_s - time.monotonic()

    def _overdue(self) -> bool:
        patience_s = self._patience_s()
        return patience_s is not None and patience_s <= 0

    def _give_up(self, producer: KafkaProducer) -> None:
        """Part with a producer that has lost entries: seen of kafka-python 3.0 as a broker came back."""
        with self._changed:
            queued = {entry.future for entry in self._queue}
            lost = [future for future in self._pending if future not in queued]
        _log.warning("kafka_producer_stuck", servers=self._cluster.servers, entries=len(lost))
        producer._sender.force_close()  # close() would wait for what is lost, then leave its thread running
        for future in lost:
            self._settle(future, LogUnavailable("the Kafka producer has lost this entry: append it again"))

    def _close(self, producer: KafkaProducer) -> None:
        """Wait for what is under way, for so long."""
        try:
            producer.close(timeout=self._timeout_s + 1)
        except KafkaTimeoutError:
            producer._sender.force_close()

    def _connect(self) -> KafkaProducer | None:
        try:
            names = [self._cluster.name(topic) for topic in self._cluster.topics()]
            producer = KafkaProducer(
                **self._cluster.settings(),
                delivery_timeout_ms=int(self._timeout_s * 1000),
                max_block_ms=int(self._timeout_s * 1000),
                max_request_size=MAX_ENTRY_BYTES + (1 << 16),
                metrics_enabled=False,
            )
            for name in names:  # now, so that no later send has to wait for it
                producer.partitions_for(name)
        except (LogUnavailable, KafkaError) as e:
            _log.warning("kafka_unreachable", servers=self._cluster.servers, error=str(e))
            return None
        return producer

    def _expire(self) -> None:
        """Fail what has been queued for too long."""
        with self._changed:
            oldest_s = time.monotonic() - self._timeout_s
            late = []
            while self._queue and self._queue[0].queued_s < oldest_s:
                late.append(self._queue.popleft())
        for entry in late:
            self._settle(entry.future, LogUnavailable(f"no answer from Kafka at {self._cluster.servers}"))

    def _send_queued(self, producer: KafkaProducer) -> None:
        with self._changed:
            entries = deque(self._queue)
            self._queue.clear()
        while entries:
            entry = entries.popleft()
            try:
                sent = producer.send(
                    self._cluster.name(entry.topic),
                    value=entry.value,
                    key=entry.key.encode(),
                    headers=[*_HEADERS, (_EVENT_ID, entry.event_id.encode())],
                )
            except KafkaTimeoutError as e:  # the others would wait as long, one after the other
                for each in (entry, *entries):
                    self._failed(each, e)
                return
            except (KafkaError, UnicodeEncodeError) as e:
                self._failed(entry, e)
            else:
                sent.add_callback(partial(self._acknowledged, entry))
                sent.add_errback(partial(self._failed, entry))

    def _acknowledged(self, entry: _Entry, at: Any) -> None:
        self._settle(entry.future, Position(entry.topic, at.partition, at.offset))

    def _failed(self, entry: _Entry, error: Exception) -> None:
        said = f"{entry.topic} entry {entry.event_id!r}: {error}"
        self._settle(
            entry.future, LogError(said) if isinstance(error, _NEVER_TAKEN) else LogUnavailable(said)
        )

    def _settle(self, future: "Future[Position | None]", outcome: Position | LogError) -> None:
        with self._changed:
            if self._pending.pop(future, None) is None:
                return  # by the thread that gave up on a producer, or by that producer after all
        if isinstance(outcome, LogError):
            future.set_exception(outcome)
        else:
            future.set_result(outcome)


class _Reading:
    """Reads by offset through one consumer that keeps every partition it was ever asked for assigned.

    What it fetches for the others stays here, in order, until they are asked for: reading many partitions in
    turn then costs one fetch for all of them.
    """

    def __init__(self, cluster: _Cluster, timeout_s: float) -> None:
        self._cluster = cluster
        self._timeout_s = timeout_s
        self._lock = threading.Lock()
        self._consumer: KafkaConsumer | None = None
        self._ahead: dict[TopicPartition, deque[Any]] = {}
        self._next: dict[TopicPartition, int] = {}
        self._asking = threading.Lock()
        self._asker: KafkaConsumer | None = None  # its own connection: a waiting fetch would hold `end` up
        self._closed = False

    def end(self, topic: Topic, partition: int) -> int:
        at = self._cluster.at(topic, partition)
        with self._asking:
            return _translated(partial(self._end, at), self._cluster.servers)

    def ends(self, places: Collection[Place]) -> Mapping[Place, int]:
        at = {self._cluster.at(*place): place for place in places}
        with self._asking:
            found = _translated(partial(self._ends, list(at)), self._cluster.servers)
        return {at[partition]: end for partition, end in found.items()}

    def keep(self, places: Collection[Place]) -> None:
        """Fetch nothing any more of what is not among these places, and drop what was."""
        kept = {self._cluster.at(*place) for place in places}
        with self._lock:
            if self._consumer is None or self._ahead.keys() <= kept:
                return
            self._ahead = {at: records for at, records in self._ahead.items() if at in kept}
            self._next = {at: offset for at, offset in self._next.items() if at in kept}
            self._consumer.assign(list(self._ahead))

    def read(self, topic: Topic, partition: int, offset: int, limit: int, timeout_s: float) -> list[Record]:
        at = self._cluster.at(topic, partition)
        deadline_s = time.monotonic() + timeout_s
        with self._lock:
            found = _translated(partial(self._fetched, at, offset, limit, deadline_s), self._cluster.servers)
        return [_record(topic, r) for r in found]

    def expire(self, topic: Topic, partition: int, before: datetime, below: int) -> int:
        at = self._cluster.at(topic, partition)
        with self._asking:
            young = _translated(partial(self._first_since, at, before), self._cluster.servers)
        begin = min(below, young)
        self._cluster.delete(at, begin)
        return begin

    def close(self) -> None:
        with self._lock, self._asking:
            self._closed = True
            for consumer in (self._consumer, self._asker):
                if consumer is not None:
                    consumer.close(timeout_ms=1000)
            self._consumer = self._asker = None

    def _fetched(self, at: TopicPartition, offset: int, limit: int, deadline_s: float) -> list[Any]:
        consumer = self._positioned(at, offset)
        ahead = self._ahead[at]
        if not self._holds(at, limit):
            self._poll(consumer, 0)  # mostly it is here already, and the end need not be asked for
        if not self._holds(at, limit):
            self._fill(consumer, at, limit, deadline_s)
        found: list[Any] = []
        size = 0
        while ahead and len(found) < limit and size < MAX_READ_BYTES:
            found.append(ahead.popleft())
            size += len(found[-1].value or b"")
        if found:
            self._next[at] = found[-1].offset + 1
        consumer.resume(at)
        return found

    def _positioned(self, at: TopicPartition, offset: int) -> KafkaConsumer:
        if self._consumer is None:
            self._consumer = self._connect()
        if at not in self._ahead:
            self._ahead[at] = deque()
            self._consumer.assign(list(self._ahead))
        if self._next.get(at) != offset:
            self._ahead[at].clear()
            self._consumer.seek(at, offset)
            self._next[at] = offset
        return self._consumer

    def _holds(self, at: TopicPartition, limit: int) -> bool:
        """Whether as much of `at` is here as one read takes."""
        ahead = self._ahead[at]
        return len(ahead) >= limit or sum(len(r.value or b"") for r in ahead) >= MAX_READ_BYTES

    def _fill(self, consumer: KafkaConsumer, at: TopicPartition, limit: int, deadline_s: float) -> None:
        """Fetch until one read's worth of `at` is here, or all there is.

        Waits past the deadline only for what the log already has.
        Raises: LogUnavailable when nothing of that comes in time.
        """
        with self._asking:
            end = self._end(at)
        give_up_s = time.monotonic() + self._timeout_s
        while not self._holds(at, limit):
            now_s = time.monotonic()
            if self._next[at] >= end or (consumer.position(at, timeout_ms=self._timeout_ms) or 0) >= end:
                until_s = deadline_s
                if self._ahead[at] or now_s >= until_s:
                    return
            else:
                until_s = max(give_up_s, deadline_s)
                if now_s >= until_s and self._ahead[at]:
                    return
                if now_s >= until_s:
                    raise LogUnavailable(f"Kafka at {self._cluster.servers} did not give {at} in time")
            consumer.resume(at)
            self._poll(consumer, max(1, int((until_s - now_s) * 1000)))

    def _poll(self, consumer: KafkaConsumer, timeout_ms: int) -> None:
        for partition, records in consumer.poll(timeout_ms=timeout_ms).items():
            self._ahead[partition].extend(records)
            if len(self._ahead[partition]) >= _READ_AHEAD:
                consumer.pause(partition)

    @property
    def _timeout_ms(self) -> int:
        return int(self._timeout_s * 1000)

    def _first_since(self, at: TopicPartition, moment: datetime) -> int:
        """The offset of the first entry that was appended then or later; the end if there is none."""
        end = self._end(at)
        asker = self._asker
        assert asker is not None
        found = asker.offsets_for_times({at: int(moment.timestamp() * 1000)}, timeout_ms=self._timeout_ms)
        return end if found[at] is None else int(found[at].offset)

    def _end(self, at: TopicPartition) -> int:
        return self._ends([at])[at]

    def _ends(self, of: Sequence[TopicPartition]) -> dict[TopicPartition, int]:
        if self._asker is None:
            self._asker = self._connect()
        return dict(self._asker.end_offsets(of, timeout_ms=self._timeout_ms))

    def _connect(self) -> KafkaConsumer:
        if self._closed:
            raise LogUnavailable("the Kafka log is closed")
        return KafkaConsumer(
            **self._cluster.settings(),
            group_id=None,
            enable_auto_commit=False,
            auto_offset_reset="earliest",
            fetch_max_wait_ms=_FETCH_WAIT_MS,
            max_partition_fetch_bytes=_FETCHED_BYTES,
            max_poll_records=_READ_AHEAD,
            metrics_enabled=False,
        )


def _check_servers(servers: str) -> None:
    for server in servers.split(","):
        host, _, port = server.strip().rpartition(":")
        if not host or not port.isdecimal():
            raise ConfigError(f"kafka_servers holds {server!r}, which is not host:port")


def _record(topic: Topic, found: Any) -> Record:
    event_id = next((v for k, v in found.headers if k == _EVENT_ID), b"")
    return Record(
        Position(topic, found.partition, found.offset),
        (found.key or b"").decode(errors="replace"),
        found.value or b"",
        event_id.decode(errors="replace"),
    )


def _translated(call: Callable[[], T], servers: str) -> T:
    try:
        return call()
    except KafkaError as e:
        raise LogUnavailable(f"Kafka at {servers}: {e}") from e
