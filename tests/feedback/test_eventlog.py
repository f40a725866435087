"""The contract of `feedback.eventlog`, on both logs. What only one of them does is in its own tests."""

import itertools
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import uuid4

import pytest

from feedback.embedded import EmbeddedLog
from feedback.errors import LogError, LogUnavailable
from feedback.eventlog import MAX_ENTRY_BYTES, MAX_READ_BYTES, EventLog, Position, Record, Topic
from feedback.kafka import KafkaLog

Open = Callable[[], EventLog]

_WAIT_S = 20.0


@pytest.fixture(params=["embedded", pytest.param("kafka", marks=pytest.mark.kafka)])
def open_log(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Open]:
    """Opens a log that is new to this test; every call gives another handle on the same log."""
    opened: list[EventLog] = []
    if request.param == "kafka":
        servers, prefix = request.getfixturevalue("kafka_broker").servers, f"test-{uuid4().hex[:8]}"

    def open_log() -> EventLog:
        if request.param == "kafka":
            opened.append(KafkaLog(servers, prefix, 3))
        else:
            opened.append(EmbeddedLog(tmp_path / "log.db"))
        return opened[-1]

    yield open_log
    for log in opened:
        log.close()


@pytest.fixture
def log(open_log: Open) -> EventLog:
    return open_log()


def add(log: EventLog, n: int, *, topic: Topic = Topic.TURNS, key: str = "conversation") -> list[Position]:
    futures = [log.append(topic, key, f"event-{i}", f"value-{i}".encode()) for i in range(n)]
    positions = [f.result(_WAIT_S) for f in futures]
    assert None not in positions
    return [p for p in positions if p is not None]


def everything(log: EventLog, topic: Topic = Topic.TURNS) -> list[Record]:
    found: list[Record] = []
    for partition in log.partitions(topic):
        offset = 0
        while records := log.read(topic, partition, offset):
            found += records
            offset = records[-1].position.offset + 1
    return found


def test_an_entry_comes_back_as_it_was_given(log: EventLog) -> None:
    """Keys in any script and values that are not even text: what a reader makes of them is its business."""
    value = bytes(range(256))
    position = log.append(Topic.SIGNALS, "naïve 会話", "event-é", value).result(_WAIT_S)
    assert position is not None
    (record,) = log.read(Topic.SIGNALS, position.partition, position.offset)
    assert record == Record(position, "naïve 会話", value, "event-é")


def test_an_empty_value_is_a_value(log: EventLog) -> None:
    """An empty message is what Kafka could mistake for a deletion."""
    position = log.append(Topic.TURNS, "k", "e", b"").result(_WAIT_S)
    assert position is not None
    assert [r.value for r in log.read(Topic.TURNS, position.partition, 0)] == [b""]


def test_one_key_stays_in_one_partition_in_the_order_of_the_appends(log: EventLog) -> None:
    """A conversation is folded in order by whoever owns its partition."""
    positions = add(log, 50)
    assert len({p.partition for p in positions}) == 1
    assert [p.offset for p in positions] == sorted({p.offset for p in positions})
    assert [r.event_id for r in log.read(Topic.TURNS, positions[0].partition, 0)] == [
        f"event-{i}" for i in range(50)
    ]


def test_a_key_keeps_its_partition_in_another_process_and_another_topic(open_log: Open) -> None:
    """Turns and signals of a conversation meet in the partition of the same number, whoever wrote them."""
    one, other = open_log(), open_log()
    for key in ("a", "b", "c", "d"):
        positions = [
            (one if n % 2 else other).append(topic, key, f"{key}-{n}", b"").result(_WAIT_S)
            for n, topic in enumerate((Topic.TURNS, Topic.SIGNALS, Topic.TURNS, Topic.SIGNALS))
        ]
        partitions = [p.partition for p in positions if p is not None]
        assert len(partitions) == 4 and len(set(partitions)) == 1


def test_the_ends_of_many_partitions_are_those_of_each(log: EventLog) -> None:
    """A worker asks for all of its partitions before every batch."""
    add(log, 3)
    add(log, 2, topic=Topic.SIGNALS)
    places = [(topic, p) for topic in (Topic.TURNS, Topic.SIGNALS) for p in log.partitions(topic)]
    ends = log.ends(places)
    assert ends == {place: log.end(*place) for place in places}
    assert sorted(ends.values())[-2:] == [2, 3]
    assert log.ends([]) == {}


def test_a_read_of_large_entries_stops_before_memory_does(log: EventLog) -> None:
    """Two thousand of the largest would be 32 GB; what is left out comes next."""
    values = [bytes([n]) * MAX_ENTRY_BYTES for n in range(3)]
    first, *_ = [log.append(Topic.TURNS, "k", f"e{n}", v).result(_WAIT_S) for n, v in enumerate(values)]
    assert first is not None and MAX_READ_BYTES == 2 * MAX_ENTRY_BYTES
    found = log.read(Topic.TURNS, first.partition, 0, timeout_s=_WAIT_S)
    assert 0 < len(found) <= 2
    while len(found) < 3:
        found += log.read(Topic.TURNS, first.partition, len(found), timeout_s=_WAIT_S)
    assert [record.value for record in found] == values


def test_a_worker_that_is_alone_has_every_partition(log: EventLog) -> None:
    """On both logs: the pipeline asks for its share before it asks for entries."""
    with closing(log.share("workers", (Topic.TURNS, Topic.SIGNALS))) as share:
        deadline_s = time.monotonic() + _WAIT_S
        while share.partitions() != frozenset(log.partitions(Topic.TURNS)):
            assert time.monotonic() < deadline_s


def test_reading_goes_on_from_any_offset_and_stops_at_the_limit(log: EventLog) -> None:
    """Offsets are inclusive; a reader that comes back with last + 1 sees each entry once."""
    first = add(log, 10)[0]

    def offsets(offset: int, limit: int) -> list[int]:
        return [r.position.offset for r in log.read(Topic.TURNS, first.partition, offset, limit=limit)]

    assert offsets(0, 4) == [0, 1, 2, 3]
    assert offsets(4, 4) == [4, 5, 6, 7]
    assert offsets(8, 4) == [8, 9]
    assert offsets(2, 2) == [2, 3]  # backwards
    assert offsets(10, 4) == []
    assert offsets(11, 4) == []  # beyond the end


def test_partitions_read_in_turn_give_each_entry_once(log: EventLog) -> None:
    """The pipeline goes round all partitions with small limits; nothing may be skipped or repeated."""
    for key, n in itertools.product("abcdefgh", range(5)):
        log.append(Topic.TURNS, key, f"{key}-{n}", b"v").result(_WAIT_S)
    offsets = dict.fromkeys(log.partitions(Topic.TURNS), 0)
    seen: list[str] = []
    for _ in range(40):
        for partition in offsets:
            for record in log.read(Topic.TURNS, partition, offsets[partition], limit=3):
                assert record.position.offset == offsets[partition]
                offsets[partition] += 1
                seen.append(record.event_id)
    assert sorted(seen) == sorted(f"{key}-{n}" for key in "abcdefgh" for n in range(5))


def test_the_end_is_the_offset_of_the_next_entry(log: EventLog) -> None:
    """Lag is end minus position, so the end must be exact."""
    for partition in log.partitions(Topic.TURNS):
        assert log.end(Topic.TURNS, partition) == 0
    for _ in range(3):
        before = {p: log.end(Topic.TURNS, p) for p in log.partitions(Topic.TURNS)}
        position = log.append(Topic.TURNS, "k", f"e{before}", b"v").result(_WAIT_S)
        assert position is not None
        assert position.offset == before[position.partition]
        assert log.end(Topic.TURNS, position.partition) == position.offset + 1


def test_topics_do_not_see_each_other(log: EventLog) -> None:
    """The same event id in two topics is two entries."""
    for topic in Topic:
        log.append(topic, "k", "same-id", topic.encode()).result(_WAIT_S)
    for topic in Topic:
        assert [r.value for r in everything(log, topic)] == [topic.encode()]


def test_an_event_appended_twice_counts_once_for_readers_that_go_by_its_id(log: EventLog) -> None:
    """Clients and forwarders retry; the event id is what makes that harmless."""
    for _ in range(3):
        log.append(Topic.TURNS, "k", "event", b"v").result(_WAIT_S)
    assert {r.event_id for r in everything(log)} == {"event"}


def test_what_one_handle_has_appended_another_reads(open_log: Open) -> None:
    """Gateway, pipeline and forwarder are processes of their own."""
    writer, reader = open_log(), open_log()
    assert everything(reader) == []
    add(writer, 5)
    assert [r.event_id for r in everything(reader)] == [f"event-{i}" for i in range(5)]


def test_a_waiting_reader_wakes_up_when_something_arrives(open_log: Open) -> None:
    """The pipeline's delay is the log's, not the length of its poll."""
    writer, reader = open_log(), open_log()
    partition = add(writer, 1)[0].partition
    reader.read(Topic.TURNS, partition, 0)

    def late() -> None:
        time.sleep(0.3)
        writer.append(Topic.TURNS, "conversation", "late", b"v")

    thread = threading.Thread(target=late)
    thread.start()
    started_s = time.monotonic()
    records = reader.read(Topic.TURNS, partition, 1, timeout_s=15)
    waited_s = time.monotonic() - started_s
    thread.join()
    assert [r.event_id for r in records] == ["late"]
    assert 0.3 <= waited_s < 3


def test_a_reader_waits_no_longer_than_it_was_told(log: EventLog) -> None:
    """An empty log must not hold the pipeline's other work up."""
    partition = log.partitions(Topic.TURNS)[0]
    log.read(Topic.TURNS, partition, 0)
    started_s = time.monotonic()
    assert log.read(Topic.TURNS, partition, 0, timeout_s=0.4) == []
    assert 0.4 <= time.monotonic() - started_s < 2


def test_an_acknowledged_entry_is_there_for_a_reader_that_does_not_wait(log: EventLog) -> None:
    """`timeout_s=0` means: what is durable now, not: nothing."""
    for n in range(20):
        position = log.append(Topic.TURNS, "k", f"e{n}", b"v").result(_WAIT_S)
        assert position is not None
        assert [r.event_id for r in log.read(Topic.TURNS, position.partition, position.offset)] == [f"e{n}"]


def test_closing_leaves_nothing_undecided(open_log: Open) -> None:
    """A gateway that is told to stop must know of each turn whether it is in the log."""
    log = open_log()
    futures = [log.append(Topic.TURNS, f"k{i % 7}", f"e{i}", b"v" * 100) for i in range(500)]
    log.close()
    assert all(f.done() for f in futures)
    acknowledged = {f"e{i}" for i, f in enumerate(futures) if f.exception() is None}
    assert len(acknowledged) == 500
    assert {r.event_id for r in everything(open_log())} == acknowledged


def test_a_closed_log_refuses(open_log: Open) -> None:
    """Closing is for good, and closing twice is harmless."""
    log = open_log()
    add(log, 1)
    log.close()
    log.close()
    assert isinstance(log.append(Topic.TURNS, "k", "e", b"v").exception(_WAIT_S), LogUnavailable)
    with pytest.raises(LogUnavailable, match="closed"):
        log.read(Topic.TURNS, 0, 0)


def test_a_partition_that_is_not_there_is_an_error_not_an_empty_one(log: EventLog) -> None:
    """A wrong partition number would otherwise look like a quiet log."""
    with pytest.raises(LogError, match="no partition 99"):
        log.read(Topic.TURNS, 99, 0)
    with pytest.raises(LogError, match="no partition 99"):
        log.end(Topic.TURNS, 99)


def test_an_entry_that_cannot_be_stored_fails_alone(log: EventLog) -> None:
    """Half a surrogate pair is valid JSON and no valid UTF-8: it must not take its neighbours along."""
    before = log.append(Topic.TURNS, "k", "before", b"v")
    bad = log.append(Topic.TURNS, "\ud800", "bad", b"v")
    after = log.append(Topic.TURNS, "k", "after", b"v")
    assert type(bad.exception(_WAIT_S)) is LogError
    assert before.result(_WAIT_S) is not None
    assert after.result(_WAIT_S) is not None
    assert [r.event_id for r in everything(log)] == ["before", "after"]


def test_an_entry_of_the_largest_size_is_taken_and_a_larger_one_refused_for_good(log: EventLog) -> None:
    """Not LogUnavailable: trying again would never help. Kafka's own limit would be 1 MB."""
    largest = bytes(MAX_ENTRY_BYTES)
    position = log.append(Topic.TURNS, "k", "largest", largest).result(_WAIT_S)
    assert position is not None
    error = log.append(Topic.TURNS, "k", "larger", largest + b"v").exception(_WAIT_S)
    assert type(error) is LogError
    assert "larger" in str(error)
    assert [r.value == largest for r in log.read(Topic.TURNS, position.partition, 0)] == [True]


def test_a_caller_that_gives_up_does_not_take_its_entry_along(log: EventLog) -> None:
    """A client that hangs up cancels the task that waits, not the record of its turn."""
    future = log.append(Topic.TURNS, "k", "e", b"v")
    assert not future.cancel()
    future.result(_WAIT_S)
    assert [r.event_id for r in everything(log)] == ["e"]


def test_many_threads_append_at_once(log: EventLog) -> None:
    """Both logs are shared by all of a process's tasks and threads."""

    def work(name: str) -> None:
        for f in [log.append(Topic.TURNS, name, f"{name}-{i}", b"v") for i in range(50)]:
            f.result(_WAIT_S)

    threads = [threading.Thread(target=work, args=(f"t{i}",)) for i in range(8)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    by_key: dict[str, list[str]] = {}
    for r in everything(log):
        by_key.setdefault(r.key, []).append(r.event_id)
    assert by_key == {f"t{i}": [f"t{i}-{n}" for n in range(50)] for i in range(8)}


LATER = timedelta(hours=1)


def test_expired_entries_are_gone_and_their_offsets_are_never_used_again(open_log: Open) -> None:
    """A reader that stands behind them goes on; one that starts anew begins with what is left."""
    log = open_log()
    positions = add(log, 5)
    partition = positions[0].partition
    assert log.expire(Topic.TURNS, partition, before=datetime.now(UTC) + LATER, below=5) == 5
    assert everything(log) == []
    assert log.end(Topic.TURNS, partition) == 5
    again = open_log()
    (position,) = [again.append(Topic.TURNS, "conversation", "new", b"new").result(_WAIT_S)]
    assert position == Position(Topic.TURNS, partition, 5)
    assert [r.value for r in everything(open_log())] == [b"new"]


def test_what_nobody_has_read_yet_does_not_expire(log: EventLog) -> None:
    """However old it is: `below` is how far its readers have come."""
    partition = add(log, 5)[0].partition
    assert log.expire(Topic.TURNS, partition, before=datetime.now(UTC) + LATER, below=3) == 3
    assert [r.position.offset for r in everything(log)] == [3, 4]
    assert log.expire(Topic.TURNS, partition, before=datetime.now(UTC) + LATER, below=2) == 2
    assert [r.position.offset for r in everything(log)] == [3, 4]


def test_what_is_young_does_not_expire(log: EventLog) -> None:
    partition = add(log, 5)[0].partition
    assert log.expire(Topic.TURNS, partition, before=datetime.now(UTC) - LATER, below=5) == 0
    assert len(everything(log)) == 5


def test_nothing_expires_in_an_empty_topic(log: EventLog) -> None:
    (partition, *_) = log.partitions(Topic.SIGNALS)
    assert log.expire(Topic.SIGNALS, partition, before=datetime.now(UTC), below=0) == 0
    assert log.end(Topic.SIGNALS, partition) == 0
