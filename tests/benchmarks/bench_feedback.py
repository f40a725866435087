"""What a pipeline worker does in a second, and what of it each stage costs, beside a loop that only counts.

The stream is `tests.benchmarks.stream`'s: sealed turns of about 3 kB and thumbs, a thousand conversations
open at once, read as a backlog. "Per core" is per second of the process's CPU time; everything runs in one
thread. The bare loops read the same entries from the same log and count them.
"""

import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from contextlib import closing
from itertools import islice
from pathlib import Path
from uuid import uuid4

import sqlalchemy as sa
from kafka import KafkaConsumer, TopicPartition

from feedback import codec, pipeline, store
from feedback.config import Pipeline
from feedback.derivation import derive
from feedback.embedded import EmbeddedLog
from feedback.eventlog import EventLog, Place, Topic
from feedback.events import Event
from feedback.kafka import KafkaLog
from feedback.recent import Recent
from feedback.sealing import DataKey
from tests.benchmarks import stream
from tests.kafka_broker import home, running

Row = dict[str, object]
Keys = Mapping[str, DataKey]

EVENTS = 20_000
NOW = stream.START.replace(year=2027)
CONFIG = Pipeline()
_WRITTEN_TOGETHER = 5000
"""Fewer than a Kafka log takes before the first is acknowledged."""


def rows() -> list[Row]:
    with tempfile.TemporaryDirectory(prefix="bench-feedback-") as folder:
        with store.opened(f"sqlite:///{folder}/state.db") as state:
            keys = stream.users_keys(state)
            found = _stages(keys) + _embedded(Path(folder), state, keys)
        broker_home = home()
        if isinstance(broker_home, str):
            print(f"bench-feedback: no Kafka rows: {broker_home}")
            return found
        with (
            running(broker_home, Path(folder) / "kafka") as broker,
            store.opened(f"sqlite:///{folder}/state-kafka.db") as state,
        ):
            return found + _kafka(broker.servers, state, stream.users_keys(state))


def _stages(keys: Keys) -> list[Row]:
    """Without log and state."""
    raws = [raw for _, _, _, raw in stream.entries(EVENTS // 4, keys)]
    by_id = {key.id: key for key in keys.values()}
    decoding = _per_s(len(raws), lambda: [codec.decode(raw, by_id) for raw in raws])
    folding = max(_folded_per_s(seed, keys, by_id) for seed in range(3))
    return [
        _row("decode only, per core", decoding, "events/s"),
        _row("fold and derive, a conversation at once, per core", folding, "events/s"),
    ]


def _folded_per_s(seed: int, keys: Keys, by_id: Keys) -> float:
    """Per second of CPU, of events that nobody has seen before."""
    conversations: dict[str, list[Event]] = defaultdict(list)
    for _, key, _, raw in stream.entries(EVENTS // 4, keys, seed=seed):
        conversations[key].append(codec.decode(raw, by_id))

    def fold() -> None:
        for events in conversations.values():
            derive(events, retry_window_s=CONFIG.retry_window_s)

    return EVENTS // 4 / _clocked(fold)[1]


def _embedded(folder: Path, state: sa.Engine, keys: Keys) -> list[Row]:
    with closing(EmbeddedLog(folder / "log.db")) as log:
        _write(log, keys)
        bare = _per_s(EVENTS, lambda: _count_embedded(log))
        wall_s, cpu_s = _folded(log, state)
    peer = "a loop over the embedded log that counts"
    ours = EVENTS / cpu_s
    return [
        _row("end to end, embedded, per core", ours, "events/s", ">= 10000", peer, bare),
        _row("end to end, embedded, share of the bare loop", ours / bare, "ratio"),
        _row("end to end, embedded, by the clock", EVENTS / wall_s, "events/s"),
    ]


def _kafka(servers: str, state: sa.Engine, keys: Keys) -> list[Row]:
    prefix = f"bench-{uuid4().hex[:8]}"
    with closing(KafkaLog(servers, prefix, 4, timeout_s=30.0)) as log:
        _write(log, keys)
        bare = EVENTS / _clocked(lambda: _count_kafka(servers, prefix, log))[0]
        reading = EVENTS / _clocked(lambda: _count_log(log))[0]
    with closing(KafkaLog(servers, prefix, 4, timeout_s=30.0)) as log:
        wall_s, _ = _folded(log, state)
    peer = "kafka-python consumer that counts"
    return [
        _row("read through the Kafka log", reading, "events/s", f">= {0.6 * bare:.0f}", peer, bare),
        _row("end to end, Kafka", EVENTS / wall_s, "events/s", f">= {0.6 * bare:.0f}", peer, bare),
        _row("end to end, Kafka, share of the bare consumer", EVENTS / wall_s / bare, "ratio", ">= 0.6"),
    ]


def _write(log: EventLog, keys: Keys) -> None:
    entries = stream.entries(EVENTS, keys)
    while together := list(islice(entries, _WRITTEN_TOGETHER)):
        for future in [log.append(*entry) for entry in together]:
            future.result(60)


def _folded(log: EventLog, state: sa.Engine) -> tuple[float, float]:
    """Seconds by the clock and of CPU that the whole log takes."""
    recent = Recent()

    def fold() -> int:
        done = 0
        while (folded := pipeline.step(log, state, CONFIG, now=NOW, recent=recent)).records:
            done += sum(folded.new.values())
        return done

    return _clocked(fold)


def _count_embedded(log: EmbeddedLog) -> int:
    return sum(_count(log, (topic, 0)) for topic in (Topic.TURNS, Topic.SIGNALS))


def _count_log(log: EventLog) -> int:
    return sum(
        _count(log, (topic, p)) for topic in (Topic.TURNS, Topic.SIGNALS) for p in log.partitions(topic)
    )


def _count(log: EventLog, place: Place) -> int:
    done = 0
    while records := log.read(*place, done, limit=CONFIG.batch_records):
        done = records[-1].position.offset + 1
    return done


def _count_kafka(servers: str, prefix: str, log: KafkaLog) -> int:
    consumer = KafkaConsumer(bootstrap_servers=servers, auto_offset_reset="earliest", metrics_enabled=False)
    with closing(consumer):
        topics = (Topic.TURNS, Topic.SIGNALS)
        consumer.assign([TopicPartition(f"{prefix}.{t}", p) for t in topics for p in log.partitions(t)])
        done = 0
        while done < EVENTS:
            done += sum(map(len, consumer.poll(timeout_ms=1000).values()))
        return done


def _per_s(count: int, work: Callable[[], object]) -> float:
    """Best of three, per second of CPU."""
    return count / min(_clocked(work)[1] for _ in range(3))


def _clocked(work: Callable[[], object]) -> tuple[float, float]:
    """Seconds by the clock and of CPU."""
    wall_s, cpu_s = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - wall_s, time.process_time() - cpu_s


def _row(
    figure: str,
    value: float,
    unit: str,
    goal: str | None = None,
    peer: str | None = None,
    peer_value: float | None = None,
) -> Row:
    return {
        "figure": figure, "value": value, "unit": unit, "goal": goal, "peer": peer, "peer_value": peer_value
    }  # fmt: skip
