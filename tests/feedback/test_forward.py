"""The forwarder: outbox to Kafka, the cursor only after acknowledgement."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from uuid import uuid4

import httpx
import pytest
from prometheus_client import REGISTRY
from structlog.testing import capture_logs

from feedback.embedded import EmbeddedLog
from feedback.errors import LogError, LogFull, LogUnavailable
from feedback.eventlog import EventLog, Position, Record, Topic
from feedback.forward import CURSOR, forward_once, observe, run
from feedback.kafka import KafkaLog
from tests.kafka_broker import Broker

_WAIT_S = 30.0


class Scripted:
    """A log that answers each append as told (None: acknowledged), and keeps what it acknowledged."""

    def __init__(self, answers: Sequence[LogError | None]) -> None:
        self._answers = list(answers)
        self.taken: list[str] = []

    def append(self, topic: Topic, key: str, event_id: str, value: bytes) -> "Future[Position | None]":
        future: Future[Position | None] = Future()
        answer = self._answers.pop(0) if self._answers else None
        if answer is None:
            self.taken.append(event_id)
            future.set_result(None)
        else:
            future.set_exception(answer)
        return future

    def partitions(self, topic: Topic) -> Sequence[int]:
        return (0,)

    def read(
        self, topic: Topic, partition: int, offset: int, *, limit: int = 500, timeout_s: float = 0.0
    ) -> list[Record]:
        return []

    def end(self, topic: Topic, partition: int) -> int:
        return len(self.taken)

    def close(self) -> None:
        pass


@pytest.fixture
def outbox(tmp_path: Path) -> Iterator[EmbeddedLog]:
    with closing(EmbeddedLog(tmp_path / "log.db")) as outbox:
        yield outbox


@pytest.fixture
def kafka(kafka_broker: Broker) -> Iterator[KafkaLog]:
    with closing(KafkaLog(kafka_broker.servers, f"test-{uuid4().hex[:8]}", 3, timeout_s=5.0)) as log:
        yield log


def fill(outbox: EmbeddedLog, n: int, topic: Topic = Topic.TURNS) -> None:
    for f in [outbox.append(topic, f"k{i % 5}", f"e{i}", f"v{i}".encode()) for i in range(n)]:
        f.result(_WAIT_S)


def on(log: EventLog, topic: Topic) -> list[Record]:
    found: list[Record] = []
    for partition in log.partitions(topic):
        offset = 0
        while records := log.read(topic, partition, offset):
            found += records
            offset = records[-1].position.offset + 1
    return found


def gauge(name: str, topic: Topic) -> float | None:
    return REGISTRY.get_sample_value(name, {"topic": str(topic)})


def forwarded(topic: Topic) -> float:
    return gauge("ratchet_feedback_forwarded_total", topic) or 0.0


def test_a_failure_stops_the_cursor_at_the_first_entry_that_was_not_acknowledged(outbox: EmbeddedLog) -> None:
    """Entries beyond it may be on Kafka already; they go again and readers drop them. None is skipped."""
    fill(outbox, 5)
    down = LogUnavailable("down")
    log = Scripted([None, None, down, None, down])
    with pytest.raises(LogUnavailable, match="down"):
        forward_once(outbox, log)
    assert outbox.cursor(CURSOR, Topic.TURNS) == 2
    assert forward_once(outbox, log) == 3
    assert outbox.cursor(CURSOR, Topic.TURNS) == 5
    assert log.taken == ["e0", "e1", "e3", "e2", "e3", "e4"]


def test_a_full_kafka_is_waited_for_like_one_that_is_down(outbox: EmbeddedLog) -> None:
    """Space comes back; the entry must still be next then."""
    fill(outbox, 1)
    with pytest.raises(LogFull):
        forward_once(outbox, Scripted([LogFull("full")]))
    assert outbox.cursor(CURSOR, Topic.TURNS) == 0


def test_an_entry_that_kafka_never_takes_is_reported_and_passed(outbox: EmbeddedLog) -> None:
    """It would otherwise hold up every later one for ever. It stays in the outbox, at the offset logged."""
    fill(outbox, 3)
    before = gauge("ratchet_feedback_forward_refused_total", Topic.TURNS) or 0.0
    log = Scripted([None, LogError("too large"), None])
    with capture_logs() as logs:
        assert forward_once(outbox, log) == 3
    assert log.taken == ["e0", "e2"]
    assert gauge("ratchet_feedback_forward_refused_total", Topic.TURNS) == before + 1
    assert [(e["event"], e["offset"]) for e in logs] == [("forward_refused", 1)]


def test_an_acknowledgement_that_never_comes_is_a_failure(outbox: EmbeddedLog) -> None:
    """The forwarder's own limit: a log that keeps no promise must not hang it."""
    fill(outbox, 1)

    class Silent(Scripted):
        def append(self, topic: Topic, key: str, event_id: str, value: bytes) -> "Future[Position | None]":
            return Future()

    with pytest.raises(LogUnavailable, match="e0"):
        forward_once(outbox, Silent([]), timeout_s=0.1)
    assert outbox.cursor(CURSOR, Topic.TURNS) == 0


def test_each_topic_has_its_own_cursor_and_is_moved(outbox: EmbeddedLog) -> None:
    """Signals must not wait until all turns have gone."""
    for n, topic in enumerate(Topic, start=1):
        fill(outbox, n, topic)
    log = Scripted([])
    assert forward_once(outbox, log) == 1 + 2 + 3 + 4 + 5
    assert [outbox.cursor(CURSOR, topic) for topic in Topic] == [1, 2, 3, 4, 5]
    assert forward_once(outbox, log) == 0


def test_the_gauges_show_how_much_waits_and_since_when(tmp_path: Path) -> None:
    """What an alert on a stuck forwarder is written on."""
    noon = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
    with closing(EmbeddedLog(tmp_path / "log.db", clock=noon.timestamp)) as outbox:
        fill(outbox, 3)
        observe(outbox, datetime(2026, 3, 1, 12, 1, 30, tzinfo=UTC))
        assert gauge("ratchet_feedback_outbox_events", Topic.TURNS) == 3
        assert gauge("ratchet_feedback_outbox_oldest_seconds", Topic.TURNS) == 90
        forward_once(outbox, Scripted([]))
        observe(outbox, datetime(2026, 3, 1, 12, 2, tzinfo=UTC))
        assert gauge("ratchet_feedback_outbox_events", Topic.TURNS) == 0
        assert gauge("ratchet_feedback_outbox_oldest_seconds", Topic.TURNS) == 0


@pytest.mark.slow
def test_running_goes_on_after_failures_and_stops_when_told(outbox: EmbeddedLog) -> None:
    """An outage is waited out; stopping does not wait for the next look."""
    fill(outbox, 4)
    log = Scripted([LogUnavailable("down")] * 4)  # the whole first batch
    stop = threading.Event()
    with capture_logs() as logs:
        thread = threading.Thread(target=run, args=(outbox, log, stop), kwargs={"poll_s": 0.01})
        thread.start()
        deadline_s = time.monotonic() + _WAIT_S
        while outbox.cursor(CURSOR, Topic.TURNS) < 4 and time.monotonic() < deadline_s:
            time.sleep(0.01)
        fill(outbox, 2, Topic.SIGNALS)
        while outbox.cursor(CURSOR, Topic.SIGNALS) < 2 and time.monotonic() < deadline_s:
            time.sleep(0.01)
        stop.set()
        thread.join(2)
    assert not thread.is_alive()
    assert log.taken == ["e0", "e1", "e2", "e3", "e0", "e1"]
    assert [e["event"] for e in logs] == ["forward_failed"]


def test_a_backlog_is_moved_without_pauses(outbox: EmbeddedLog) -> None:
    """Only an empty outbox is waited for; and even that wait ends when told to stop."""
    fill(outbox, 1200)  # three batches
    log, stop = Scripted([]), threading.Event()
    thread = threading.Thread(target=run, args=(outbox, log, stop), kwargs={"poll_s": 60.0})
    thread.start()
    deadline_s = time.monotonic() + 15
    while len(log.taken) < 1200 and time.monotonic() < deadline_s:
        time.sleep(0.01)
    stop.set()
    thread.join(5)
    assert not thread.is_alive()
    assert len(log.taken) == 1200


@pytest.mark.slow
def test_a_log_that_stays_down_is_asked_less_and_less_often(outbox: EmbeddedLog) -> None:
    """Half a second, then twice as long each time; the wait ends at once when told to stop."""
    fill(outbox, 1)
    stop = threading.Event()
    with capture_logs() as logs:
        thread = threading.Thread(target=run, args=(outbox, Scripted([LogUnavailable("down")] * 9), stop))
        thread.start()
        deadline_s = time.monotonic() + _WAIT_S
        while len(logs) < 2 and time.monotonic() < deadline_s:
            time.sleep(0.01)
        stop.set()
        thread.join(0.9)  # it would wait a second
    assert not thread.is_alive()
    assert [e["retry_s"] for e in logs] == [0.5, 1.0]


@pytest.mark.slow
def test_the_process_shows_what_waits_while_kafka_is_down(
    outbox: EmbeddedLog, tmp_path: Path, free_port: int
) -> None:
    """An outage is when somebody looks: the metrics port opens without a broker."""
    fill(outbox, 3)
    environment = {
        **os.environ,
        "RATCHET_DEPLOYMENT_DATA_DIR": str(tmp_path),
        "RATCHET_DEPLOYMENT_LOG": "kafka",
        "RATCHET_DEPLOYMENT_KAFKA_SERVERS": "127.0.0.1:9",  # nobody listens on the discard port
        "RATCHET_FORWARD_METRICS_PORT": str(free_port),
    }
    command = [sys.executable, "-m", "feedback", "forward"]
    with subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL) as process:
        try:
            shown = 'ratchet_feedback_outbox_events{topic="turns"} 3.0'
            deadline_s = time.monotonic() + _WAIT_S
            while shown not in metrics(free_port):
                assert time.monotonic() < deadline_s, metrics(free_port)
                time.sleep(0.1)
            process.send_signal(signal.SIGTERM)
            assert process.wait(_WAIT_S) == 0
        finally:
            process.kill()


def metrics(port: int) -> str:
    """What the process on `port` shows; nothing while nobody answers."""
    try:
        return httpx.get(f"http://127.0.0.1:{port}/metrics", timeout=5).text
    except httpx.TransportError:
        return ""


@pytest.mark.kafka
def test_everything_reaches_kafka_in_order(outbox: EmbeddedLog, kafka: KafkaLog) -> None:
    """Key, id and bytes as they were; a conversation's entries in the order of the outbox."""
    fill(outbox, 1200)
    fill(outbox, 30, Topic.SIGNALS)
    before = forwarded(Topic.TURNS)
    while forward_once(outbox, kafka):
        pass
    assert forwarded(Topic.TURNS) == before + 1200
    turns = on(kafka, Topic.TURNS)
    assert sorted(r.event_id for r in turns) == sorted(f"e{i}" for i in range(1200))
    for k in range(5):
        assert [r.value for r in turns if r.key == f"k{k}"] == [f"v{i}".encode() for i in range(k, 1200, 5)]
    assert len(on(kafka, Topic.SIGNALS)) == 30


@pytest.mark.kafka
@pytest.mark.slow
def test_a_kafka_outage_loses_nothing_and_drains_by_itself(
    outbox: EmbeddedLog, kafka: KafkaLog, kafka_broker: Broker
) -> None:
    """The broker is killed in mid-stream and comes back: the outbox holds meanwhile, and empties after."""
    stop = threading.Event()
    thread = threading.Thread(target=run, args=(outbox, kafka, stop))
    thread.start()
    try:
        acknowledged = []
        for i in range(3000):
            acknowledged.append(outbox.append(Topic.TURNS, f"k{i % 5}", f"e{i}", b"v" * 500))
            if i == 1500:
                acknowledged[-1].result(_WAIT_S)
                kafka_broker.kill()
        for f in acknowledged:  # the chat's side never notices
            f.result(_WAIT_S)
        assert outbox.backlog(CURSOR, Topic.TURNS).events > 0
        kafka_broker.start()
        deadline_s = time.monotonic() + 90
        while outbox.backlog(CURSOR, Topic.TURNS).events and time.monotonic() < deadline_s:
            time.sleep(0.1)
    finally:
        stop.set()
        thread.join()
    assert outbox.backlog(CURSOR, Topic.TURNS).events == 0
    assert {r.event_id for r in on(kafka, Topic.TURNS)} == {f"e{i}" for i in range(3000)}
