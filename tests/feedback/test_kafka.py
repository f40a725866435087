"""What the Kafka log promises beyond the contract: its topics, and a bounded time for everything."""

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from concurrent.futures import wait as wait_for
from contextlib import closing
from uuid import uuid4

import pytest
from kafka import KafkaAdminClient
from kafka.admin import ConfigResource
from kafka.producer.sender import Sender

from feedback.errors import ConfigError, LogUnavailable
from feedback.eventlog import Position, Topic
from feedback.kafka import KafkaLog
from tests.kafka_broker import Broker

_WAIT_S = 30.0


@pytest.fixture
def prefix() -> str:
    return f"test-{uuid4().hex[:8]}"


@pytest.fixture
def log(kafka_broker: Broker, prefix: str) -> Iterator[KafkaLog]:
    with closing(KafkaLog(kafka_broker.servers, prefix, 4, timeout_s=5.0)) as log:
        yield log


def until(condition: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + _WAIT_S
    while not condition():
        assert time.monotonic() < deadline_s, "waited in vain"


def errors(futures: "list[Future[Position | None]]", timeout_s: float) -> list[BaseException | None]:
    wait_for(futures, timeout_s)
    return [f.exception(0) for f in futures]


@pytest.mark.kafka
def test_topics_are_made_with_their_partitions_and_kept_for_ever(
    log: KafkaLog, kafka_broker: Broker, prefix: str
) -> None:
    """Kafka drops events after a week by default: replaying from zero would give less than there was."""
    assert {topic: log.partitions(topic) for topic in Topic} == dict.fromkeys(Topic, (0, 1, 2, 3))
    with closing(KafkaAdminClient(bootstrap_servers=kafka_broker.servers)) as admin:
        names = {f"{prefix}.{topic}" for topic in ("turns", "signals", "adapters", "dead-letters")}
        assert names <= set(admin.list_topics())
        wanted = [ConfigResource("topic", name) for name in names]
        for config in admin.describe_configs(wanted, config_filter="all")["topic"].values():
            assert config["retention.ms"]["value"] == "-1"
            assert config["cleanup.policy"]["value"] == "delete"


@pytest.mark.kafka
def test_topics_that_exist_keep_their_partitions(log: KafkaLog, kafka_broker: Broker, prefix: str) -> None:
    """Another count would send a conversation's later events elsewhere."""
    log.partitions(Topic.TURNS)
    with closing(KafkaLog(kafka_broker.servers, prefix, 9)) as second:
        assert second.partitions(Topic.TURNS) == (0, 1, 2, 3)


@pytest.mark.kafka
def test_keys_go_where_every_kafka_client_would_put_them(log: KafkaLog) -> None:
    """Kafka's own hash (murmur2), so that other consumers and producers agree with ours.

    murmur2(key) & 0x7fffffff, modulo 4 partitions (hashes from Kafka's UtilsTest):
    21: -973932308 & 0x7fffffff = 1173551340, % 4 = 0; foobar: -790332482 & 0x7fffffff = 1357151166, % 4 = 2.
    """
    places = [log.append(Topic.TURNS, key, key, b"v").result(_WAIT_S) for key in ("21", "foobar")]
    assert [place and place.partition for place in places] == [0, 2]


@pytest.mark.kafka
def test_reading_goes_round_idle_partitions_quickly(log: KafkaLog) -> None:
    """The pipeline polls every partition in turn: no consumer per call, no waiting fetch for each."""
    partitions = [(t, p) for t in (Topic.TURNS, Topic.SIGNALS) for p in log.partitions(t)]
    for topic, partition in partitions:
        log.read(topic, partition, 0)
    started_s = time.monotonic()
    for _ in range(5):
        for topic, partition in partitions:
            assert log.read(topic, partition, 0) == []
    assert time.monotonic() - started_s < 2  # 40 reads


@pytest.mark.kafka
def test_members_of_a_group_share_the_partitions_and_leave_them_to_each_other(log: KafkaLog) -> None:
    """Half of four for each of two, the same numbers of both topics; all for whoever stays."""
    topics = (Topic.TURNS, Topic.SIGNALS)
    one, two = log.share("workers", topics), log.share("workers", topics)
    until(lambda: one.partitions() == {0, 1, 2, 3})
    until(lambda: sorted(map(len, (one.partitions(), two.partitions()))) == [2, 2])
    assert one.partitions() | two.partitions() == {0, 1, 2, 3}
    one.close()
    until(lambda: two.partitions() == {0, 1, 2, 3})
    two.close()


@pytest.mark.kafka
def test_groups_do_not_take_partitions_from_each_other(log: KafkaLog) -> None:
    """Two states that read the same topics each see everything."""
    one, other = (log.share(group, (Topic.TURNS,)) for group in ("workers", "others"))
    with closing(one), closing(other):
        until(lambda: one.partitions() == other.partitions() == {0, 1, 2, 3})


@pytest.mark.kafka
def test_topics_with_different_numbers_of_partitions_are_no_share(
    kafka_broker: Broker, log: KafkaLog, prefix: str
) -> None:
    """A conversation's words would go to one worker and its turns to another."""
    log.partitions(Topic.TURNS)
    with closing(KafkaAdminClient(bootstrap_servers=kafka_broker.servers)) as admin:
        admin.create_partitions({f"{prefix}.signals": 6})
    with closing(KafkaLog(kafka_broker.servers, prefix, 4)) as wider:
        until(lambda: len(wider.partitions(Topic.SIGNALS)) == 6)
        share = wider.share("workers", (Topic.TURNS, Topic.SIGNALS))
        with pytest.raises(ConfigError, match=rf"{prefix}.turns 4, {prefix}.signals 6"):
            share.partitions()


@pytest.mark.kafka
@pytest.mark.slow
def test_a_killed_broker_fails_appends_in_time_then_takes_them_again(
    kafka_broker: Broker, log: KafkaLog
) -> None:
    """An outage is an error within the promised time, never a hang, and its end needs no restart of ours."""
    before = log.append(Topic.TURNS, "k", "before", b"v").result(_WAIT_S)
    assert before is not None
    kafka_broker.kill()
    started_s = time.monotonic()
    futures = [log.append(Topic.TURNS, "k", f"during-{i}", b"v") for i in range(200)]
    assert time.monotonic() - started_s < 1.0
    assert all(isinstance(e, LogUnavailable) for e in errors(futures, 12))  # 2 × timeout_s, and a little
    with pytest.raises(LogUnavailable):
        log.end(Topic.TURNS, before.partition)
    kafka_broker.start()
    deadline_s = time.monotonic() + 60
    while isinstance(log.append(Topic.TURNS, "k", "after", b"v").exception(_WAIT_S), LogUnavailable):
        assert time.monotonic() < deadline_s, "Kafka is back, the log is not"
    found = [r.event_id for r in log.read(Topic.TURNS, before.partition, 0, timeout_s=10)]
    assert found[0] == "before"
    assert "after" in found


@pytest.mark.kafka
@pytest.mark.slow
def test_a_producer_that_loses_what_it_was_given_is_replaced(
    kafka_broker: Broker, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """kafka-python's sender can go round for ever after an outage, neither acknowledging nor failing."""
    with closing(KafkaLog(kafka_broker.servers, prefix, 2, timeout_s=1.5)) as log:
        assert log.append(Topic.TURNS, "k", "before", b"v").result(_WAIT_S) is not None
        with monkeypatch.context() as stuck:
            stuck.setattr(Sender, "run_once", lambda self: time.sleep(0.05))
            lost = [log.append(Topic.TURNS, "k", f"lost-{n}", b"v") for n in range(3)]
            assert all(isinstance(e, LogUnavailable) for e in errors(lost, 5))  # 2 × timeout_s, and a little
        assert log.append(Topic.TURNS, "k", "after", b"v").result(_WAIT_S) is not None


@pytest.mark.kafka
@pytest.mark.slow
def test_a_broker_that_comes_late_is_found(kafka_broker: Broker, prefix: str) -> None:
    """Kafka and ratchet start together; whoever is first must not matter."""
    kafka_broker.stop()
    with closing(KafkaLog(kafka_broker.servers, prefix, 2, timeout_s=2.0)) as log:
        early = log.append(Topic.TURNS, "k", "early", b"v")
        assert isinstance(early.exception(_WAIT_S), LogUnavailable)
        kafka_broker.start()
        deadline_s = time.monotonic() + 60
        while log.append(Topic.TURNS, "k", "late", b"v").exception(_WAIT_S) is not None:
            assert time.monotonic() < deadline_s


_APPEND_FOR_EVER = """
import sys
from collections import deque
from feedback.kafka import KafkaLog
from feedback.eventlog import Topic

log, first, waiting = KafkaLog(sys.argv[1], sys.argv[2], 4), int(sys.argv[3]), deque()
while True:
    for i in range(first, first + 7):
        waiting.append((i, log.append(Topic.TURNS, f"k{i % 5}", f"e{i}", b"v" * (i % 3000))))
    first += 7
    while len(waiting) > 21:
        i, future = waiting.popleft()
        if future.exception() is None:
            sys.stdout.write(f"{i}\\n")
            sys.stdout.flush()
"""


@pytest.mark.kafka
@pytest.mark.slow
def test_killing_writer_and_broker_loses_nothing_acknowledged(kafka_broker: Broker, prefix: str) -> None:
    """Invariant 1 on Kafka: the writer dies twice and the broker once, under load."""
    acknowledged: set[str] = set()
    for round_, broker_dies in enumerate((False, True, False)):
        kafka_broker.start()
        writer = subprocess.Popen(
            [
                sys.executable,
                "-W",
                "ignore",
                "-c",
                _APPEND_FOR_EVER,
                kafka_broker.servers,
                prefix,
                f"{round_}000000",
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        assert writer.stdout is not None
        acknowledged.add(f"e{writer.stdout.readline().strip()}")
        time.sleep(0.4)
        if broker_dies:
            kafka_broker.kill()
        writer.kill()
        acknowledged |= {f"e{line}" for line in writer.stdout.read().split("\n")[:-1]}
        writer.wait()
        writer.stdout.close()
    kafka_broker.start()
    assert len(acknowledged) > 30
    with closing(KafkaLog(kafka_broker.servers, prefix, 4, timeout_s=20.0)) as log:
        found: set[str] = set()
        for partition in log.partitions(Topic.TURNS):
            offset = 0
            while records := log.read(Topic.TURNS, partition, offset, timeout_s=1.0):
                found |= {r.event_id for r in records}
                offset = records[-1].position.offset + 1
    assert acknowledged <= found


@pytest.mark.slow
def test_without_a_broker_nothing_blocks_and_everything_fails_in_time(free_port: int, prefix: str) -> None:
    """Making the log does no I/O, appending returns at once, and closing does not wait for a broker."""
    started_s = time.monotonic()
    log = KafkaLog(f"127.0.0.1:{free_port}", prefix, 4, timeout_s=1.0)
    futures = [log.append(Topic.TURNS, "k", f"e{i}", b"v") for i in range(100)]
    assert time.monotonic() - started_s < 1.0
    assert all(isinstance(e, LogUnavailable) for e in errors(futures, 4))
    with pytest.raises(LogUnavailable, match=str(free_port)):
        log.read(Topic.TURNS, 0, 0)
    last = log.append(Topic.TURNS, "k", "last", b"v")
    log.close()
    assert time.monotonic() - started_s < 8
    assert isinstance(last.exception(0), LogUnavailable)


@pytest.mark.slow
def test_more_than_may_be_under_way_is_refused_at_once(free_port: int, prefix: str) -> None:
    """kafka-python buffers without bound; this is the bound."""
    with closing(KafkaLog(f"127.0.0.1:{free_port}", prefix, 4, timeout_s=1.0, max_pending=5)) as log:
        futures = [log.append(Topic.TURNS, "k", f"e{i}", b"v") for i in range(8)]
        assert ["already on their way" in str(f.exception(0)) for f in futures[5:]] == [True, True, True]
        assert all(isinstance(e, LogUnavailable) for e in errors(futures[:5], 4))


@pytest.mark.parametrize("servers", ["", "broker", "broker:", ":9092", "broker:kafka", "one:9092,two"])
def test_servers_that_are_none_are_refused_at_once(servers: str) -> None:
    """A typing error in the configuration is said at the start, with the value."""
    with pytest.raises(ConfigError, match="host:port"):
        KafkaLog(servers, "ratchet", 4)
