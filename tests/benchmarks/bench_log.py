"""What durability costs: appends per second and added latency of both logs, beside the bare libraries.

The peers do the same work without us: SQLite with one synced commit per event, and kafka-python's producer
called directly. The disk is the one that holds the temporary folder.
"""

import asyncio
import sqlite3
import statistics
import tempfile
import threading
import time
from collections.abc import Awaitable, Callable
from contextlib import closing
from pathlib import Path
from uuid import uuid4

import uvloop
from kafka import KafkaProducer

from feedback.embedded import EmbeddedLog
from feedback.eventlog import EventLog, Topic
from feedback.kafka import KafkaLog
from tests.kafka_broker import home, running

Row = dict[str, object]

VALUE = b"v" * 2000
"""About a turn of a short conversation, in bytes."""

_SECONDS = 2.0
_BULK = 10_000


def rows() -> list[Row]:
    with tempfile.TemporaryDirectory(prefix="bench-log-") as folder:
        found = [row for writers in (1, 32, 256) for row in _embedded_rows(Path(folder), writers)]
        broker_home = home()
        if isinstance(broker_home, str):
            print(f"bench-log: no Kafka rows: {broker_home}")
            return found
        with running(broker_home, Path(folder) / "kafka") as broker:
            return found + _kafka_rows(broker.servers)


def _embedded_rows(folder: Path, writers: int) -> list[Row]:
    with closing(EmbeddedLog(folder / f"log-{writers}.db")) as log:
        ours = uvloop.run(_awaited(log, writers))
    peer = _bare_sqlite(folder / f"bare-{writers}.db", writers)
    return _pair(
        f"embedded log, {writers} writers", ours, "sqlite3, a commit per event", peer, _GOALS[writers]
    )


_GOALS = {1: ("> 500", None, "< 20"), 32: ("> 3000", None, "< 50"), 256: ("> 5000", None, "< 200")}
"""Events/s, p50 and p99 (ms) on a busy machine of two cores."""


def _kafka_rows(servers: str) -> list[Row]:
    with closing(KafkaLog(servers, f"bench-{uuid4().hex[:8]}", 4)) as log:
        log.append(Topic.TURNS, "warm", "up", VALUE).result(30)
        alone = uvloop.run(_awaited(log, 1))
        bulk_per_s = _bulk(lambda i: log.append(Topic.TURNS, f"k{i % 50}", f"bulk-{i}", VALUE).result)
        name = log._cluster.name(Topic.TURNS)
        with closing(KafkaProducer(bootstrap_servers=servers, metrics_enabled=False)) as producer:
            producer.send(name, value=VALUE, key=b"warm").get(30)
            bare = _looped(lambda i: producer.send(name, value=VALUE, key=b"k").get(30))
            bare_bulk_per_s = _bulk(lambda i: producer.send(name, value=VALUE, key=b"k%d" % (i % 50)).get)
        read_per_s = _read(log)
    peer = "kafka-python producer"
    return [
        *_pair("Kafka log, 1 writer", alone, peer, bare, (None, None, "< 50")),
        _row("Kafka log, all at once", bulk_per_s, "events/s", "> 2000", peer, bare_bulk_per_s),
        _row("Kafka log, read back", read_per_s, "events/s", "> 5000"),
    ]


def _pair(
    what: str,
    ours: list[float],
    peer: str,
    theirs: list[float],
    goals: tuple[str | None, str | None, str | None],
) -> list[Row]:
    """Rows from the latencies (seconds) of what was appended in `_SECONDS`."""
    return [
        _row(what, len(ours) / _SECONDS, "events/s", goals[0], peer, len(theirs) / _SECONDS),
        _row(f"{what}: p50", _percentile(ours, 50), "ms", goals[1], peer, _percentile(theirs, 50)),
        _row(f"{what}: p99", _percentile(ours, 99), "ms", goals[2], peer, _percentile(theirs, 99)),
    ]


def _row(
    figure: str,
    value: float,
    unit: str,
    goal: str | None,
    peer: str | None = None,
    peer_value: float | None = None,
) -> Row:
    return {
        "figure": figure, "value": value, "unit": unit, "goal": goal, "peer": peer, "peer_value": peer_value
    }  # fmt: skip


def _percentile(latencies_s: list[float], percent: int) -> float:
    return statistics.quantiles(latencies_s, n=100)[percent - 1] * 1000


async def _awaited(log: EventLog, writers: int) -> list[float]:
    """Latencies as the gateway has them: so many tasks, each waiting for its own event."""
    until_s = time.perf_counter() + _SECONDS
    latencies: list[float] = []

    async def write(writer: int) -> None:
        n = 0
        while (started_s := time.perf_counter()) < until_s:
            await asyncio.wrap_future(log.append(Topic.TURNS, f"k{writer}", f"{writers}-{writer}-{n}", VALUE))
            latencies.append(time.perf_counter() - started_s)
            n += 1

    tasks: list[Awaitable[None]] = [write(w) for w in range(writers)]
    await asyncio.gather(*tasks)
    return latencies


def _bare_sqlite(path: Path, writers: int) -> list[float]:
    """The same table and settings, a synced commit for each event, callers one after the other."""
    connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=FULL")
    connection.execute(
        "CREATE TABLE turns (offset INTEGER PRIMARY KEY, event_id TEXT UNIQUE, key TEXT, value BLOB)"
    )
    lock = threading.Lock()
    latencies: list[float] = []
    until_s = time.perf_counter() + _SECONDS

    def write(writer: int) -> None:
        n = 0
        while (started_s := time.perf_counter()) < until_s:
            with lock:
                connection.execute("INSERT INTO turns VALUES (NULL, ?, ?, ?)", (f"{writer}-{n}", "k", VALUE))
            latencies.append(time.perf_counter() - started_s)
            n += 1

    threads = [threading.Thread(target=write, args=(w,)) for w in range(writers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    connection.close()
    return latencies


def _looped(append: Callable[[int], object]) -> list[float]:
    until_s = time.perf_counter() + _SECONDS
    latencies: list[float] = []
    while (started_s := time.perf_counter()) < until_s:
        append(len(latencies))
        latencies.append(time.perf_counter() - started_s)
    return latencies


def _bulk(append: Callable[[int], Callable[[float], object]]) -> float:
    """Events per second when all are queued at once and then waited for."""
    started_s = time.perf_counter()
    for acknowledged in [append(i) for i in range(_BULK - 100)]:
        acknowledged(60)
    return (_BULK - 100) / (time.perf_counter() - started_s)


def _read(log: KafkaLog) -> float:
    count, started_s = 0, time.perf_counter()
    for partition in log.partitions(Topic.TURNS):
        offset = 0
        while records := log.read(Topic.TURNS, partition, offset):
            count += len(records)
            offset = records[-1].position.offset + 1
    return count / (time.perf_counter() - started_s)
