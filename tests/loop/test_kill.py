"""Invariants 1 and 2 under SIGKILL: what a client was promised is in the log, and replay is identity."""

import sqlite3
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial, reduce
from operator import add
from pathlib import Path
from random import Random
from typing import Any

import pytest

from feedback import database, pipeline, snapshots, store
from feedback.admission import SOURCES
from feedback.config import Deployment, Pipeline
from feedback.embedded import EmbeddedLog
from feedback.eventlog import EventLog, Topic
from feedback.events import Event, TurnRecorded
from feedback.forward import CURSOR
from feedback.keyring import KeyRing
from feedback.logs import open_log
from ops.registry import Registry
from ops.traffic import TrafficTable
from serving.auth import Keys, Role
from tests.feedback.builders import copy_keys
from tests.kafka_broker import Broker
from tests.loop.clients import Received, converse
from tests.loop.conftest import Launch
from tests.loop.echo_engine import echo_engine
from tests.loop.processes import Process, ready, wait_until, write_config
from tests.serving.conftest import serving

NOON = datetime(2026, 3, 2, 12, 0, tzinfo=UTC)
STABLE = "base-00000000"
CLIENTS = 4
PIPELINE = Pipeline(retry_window_s=0.0, snapshot_every_s=1.0, poll_s=0.05, metrics_port=0)

pytestmark = pytest.mark.slow


@dataclass
class Site:
    """One deployment: its configuration, an API key, and where the gateway listens."""

    config: Path
    deployment: Deployment
    url: str
    key: str


@pytest.fixture
def engine_url() -> Iterator[str]:
    with serving(echo_engine) as url:
        yield url


def test_kills_lose_nothing_on_the_embedded_log(
    launch: Launch, engine_url: str, tmp_path: Path, free_port: int
) -> None:
    """The log on one machine: gateway and pipeline killed in turn, while people chat."""
    site = make_site(tmp_path, engine_url, free_port)
    gateway, folding = (launch(site.config, verb) for verb in ("gateway", "pipeline"))
    received, killed = load_and_kill(site, gateway, [gateway, folding], kills=14, seed=11)

    with closing(open_log(site.deployment)) as log:
        turns, signals = check_promises(site, log, received)
        check_replay(site, log, folding, tmp_path)
        report("embedded", killed, received, turns, signals)
    assert set(turns.values()) | set(signals.values()) == {1}, "an event lies in the log twice"


@pytest.mark.kafka
def test_kills_lose_nothing_on_kafka(
    launch: Launch, engine_url: str, tmp_path: Path, free_port: int, kafka_broker: Broker
) -> None:
    """The outbox, the forwarder and the broker: at least once in Kafka, once after dropping repeated ids."""
    kafka = {"log": "kafka", "kafka_servers": kafka_broker.servers, "kafka_prefix": f"kill-{free_port}"}
    site = make_site(tmp_path, engine_url, free_port, **kafka)
    gateway, folding, forwarder = (launch(site.config, v) for v in ("gateway", "pipeline", "forward"))
    received, killed = load_and_kill(site, gateway, [gateway, folding, forwarder], kills=15, seed=12)

    with closing(EmbeddedLog(site.deployment.log_path)) as outbox, closing(open_log(site.deployment)) as log:
        wait_until(lambda: not any(outbox.backlog(CURSOR, t).events for t in Topic), "the outbox drains")
        turns, signals = check_promises(site, log, received)
        check_replay(site, log, folding, tmp_path)
        report("kafka", killed, received, turns, signals)


def make_site(folder: Path, engine_url: str, port: int, **deployment: str) -> Site:
    """A deployment whose one replica is `engine_url`, ready with the stable adapter."""
    placed = Deployment(data_dir=folder / "data", **deployment)
    config = write_config(
        folder,
        deployment={"data_dir": placed.data_dir, **deployment},
        gateway={"port": port},
        pipeline={f: getattr(PIPELINE, f) for f in PIPELINE.__struct_fields__},
        forward={"metrics_port": 0},
    )
    with closing(Registry(placed.state)) as registry:
        registry.set_traffic(TrafficTable(revision=1, stable=STABLE), expected_revision=0, at=NOON)
        registry.report_replica(engine_url, {STABLE: "probe"}, NOON)
    with closing(Keys(placed.state)) as keys:
        return Site(config, placed, f"http://127.0.0.1:{port}", keys.create("acme", Role.CHAT, NOON))


def load_and_kill(
    site: Site, gateway: Process, victims: Sequence[Process], *, kills: int, seed: int
) -> tuple[Received, Counter[str]]:
    """Chat all the while; kill each victim as often as the others, in random order, at random moments."""
    chance, stop, killed = Random(seed), threading.Event(), Counter[str]()
    order = [victims[n % len(victims)] for n in range(kills)]
    chance.shuffle(order)
    wait_until(lambda: ready(site.url), "the gateway is ready")
    with ThreadPoolExecutor(CLIENTS) as threads:
        talking = [threads.submit(converse, site.url, site.key, n, stop) for n in range(CLIENTS)]
        try:
            for victim in order:
                wait_until(partial(at_work, victim), f"{victim.name} works again", else_show=victim.tail)
                time.sleep(chance.uniform(0.05, 0.8))
                moment = chance.choice((nullcontext, commits_wait, just_committed))
                with moment(written_by(victim, site.deployment)):
                    victim.kill()
                victim.start()
                killed[victim.name] += 1
                wait_until(lambda: ready(site.url), "the gateway is ready again", else_show=gateway.tail)
            time.sleep(0.5)
        finally:
            stop.set()
        received = reduce(add, (client.result() for client in talking))
    assert all(victim.running for victim in victims)
    return received, killed


def at_work(victim: Process) -> bool:
    """A pipeline that is killed while it still starts has nothing to lose."""
    return victim.name != "pipeline" or victim.output.read_text().count("pipeline_ready") == victim.starts


def written_by(victim: Process, deployment: Deployment) -> Path:
    """The SQLite file that a process commits to."""
    return deployment.data_dir / "state.db" if victim.name == "pipeline" else deployment.log_path


@contextmanager
def commits_wait(file: Path) -> Iterator[None]:
    """The disk is slow for a moment: what is promised before it is durable will be lost."""
    with closing(sqlite3.connect(file, timeout=10, isolation_level=None)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        time.sleep(0.3)
        yield
        connection.execute("ROLLBACK")


@contextmanager
def just_committed(file: Path) -> Iterator[None]:
    """A commit is over this instant: what belongs together and was committed apart will be torn."""
    deadline = time.monotonic() + 1.0
    with closing(sqlite3.connect(file, timeout=10, isolation_level=None)) as connection:
        before = connection.execute("PRAGMA data_version").fetchone()
        while connection.execute("PRAGMA data_version").fetchone() == before:
            if time.monotonic() > deadline:
                break
        yield


def check_promises(site: Site, log: EventLog, received: Received) -> tuple[Counter[str], Counter[str]]:
    """Everything that a client holds is in the log, word for word; returns how often each entry is there."""
    with closing(KeyRing(site.deployment.state)) as ring:
        turns, signals = entries(log, ring, Topic.TURNS), entries(log, ring, Topic.SIGNALS)
    recorded = {event.id: event.data for event in turns}
    for response_id, (question, reply) in received.replies.items():
        turn = recorded.get(f"turn-{response_id}")
        assert isinstance(turn, TurnRecorded), f"reply {response_id} was received whole and is not in the log"
        assert turn.messages[-1]["content"] == question
        assert turn.reply["content"] == reply
    missing = {f"signal-{s}" for s in received.signals} - {event.id for event in signals}
    assert not missing, f"{len(missing)} acknowledged signals are not in the log"
    return Counter(e.id for e in turns), Counter(e.id for e in signals)


def entries(log: EventLog, ring: KeyRing, topic: Topic) -> list[Event]:
    """Every entry of a topic, repeated ones included."""
    found: list[Event] = []
    for partition in log.partitions(topic):
        offset, end = 0, log.end(topic, partition)
        while offset < end:
            records = log.read(topic, partition, offset, timeout_s=5.0)
            found += [ring.decode(record.value) for record in records]
            offset = records[-1].position.offset + 1
    return found


def check_replay(site: Site, log: EventLog, folding: Process, tmp_path: Path) -> None:
    """The state that lived through the kills gives the same snapshot as one made from zero in one go."""
    state = store.open_state(site.deployment.state)
    wait_until(lambda: folded(state) == ends(log), "the pipeline catches up", else_show=folding.tail)
    assert folding.stop() == 0
    survived = snapshots.build_from(state, tmp_path / "survived", PIPELINE, NOON)
    with database.reading(state) as tx:
        assert store.load_dead_letters(tx) == []
    fresh = store.open_state(f"sqlite:///{tmp_path / 'fresh.db'}")
    copy_keys(state, fresh)
    state.dispose()
    while pipeline.step(log, fresh, PIPELINE, now=datetime.now(UTC)).records:
        pass
    replayed = snapshots.build_from(fresh, tmp_path / "replayed", PIPELINE, NOON)
    fresh.dispose()
    assert min(replayed.rows.values()) > 0, replayed.rows
    assert survived.rows == replayed.rows
    assert survived.hash == replayed.hash
    for manifest in snapshots.listed(site.deployment.snapshots_dir):  # those built while it was being killed
        snapshots.load(site.deployment.snapshots_dir / manifest.name)


def folded(state: Any) -> dict[tuple[str, int], int]:
    with database.reading(state) as tx:
        return store.load_offsets(tx)


def ends(log: EventLog) -> dict[tuple[str, int], int]:
    """The end of every partition that holds anything."""
    every = {(topic, p): log.end(topic, p) for topic in SOURCES for p in log.partitions(topic)}
    return {place: end for place, end in every.items() if end}


def report(
    log: str, killed: Counter[str], received: Received, turns: Counter[str], signals: Counter[str]
) -> None:
    """One line of what was counted; also: that there was load, and that kills hit it."""
    repeated = turns.total() + signals.total() - len(turns) - len(signals)
    kills = ", ".join(f"{name} {n}" for name, n in sorted(killed.items()))
    print(
        f"\n{log}: {killed.total()} kills ({kills}); {len(received.replies)} whole replies "
        f"({received.streamed} streamed), {len(received.signals)} acknowledged signals, "
        f"{received.interrupted} requests cut off; in the log {len(turns)} turns, {len(signals)} signals, "
        f"{repeated} repeated; lost 0"
    )
    assert received.interrupted >= killed["gateway"]
    assert 0 < received.streamed < len(received.replies)
    assert len(received.signals) > 20
