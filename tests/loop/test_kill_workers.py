"""Workers of the pipeline come, go and are killed on real Kafka: nothing is lost, no pair comes twice."""

import json
import threading
from collections.abc import Sequence
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from random import Random
from uuid import uuid4

import pytest
import sqlalchemy as sa

from feedback import codec, database, pipeline, snapshots, store
from feedback.admission import SOURCES
from feedback.config import Deployment, Pipeline
from feedback.eventlog import EventLog, topic_of
from feedback.events import Event, SignalKind
from feedback.logs import open_log
from tests.feedback.builders import signal, thumb, turn
from tests.kafka_broker import Broker
from tests.loop.conftest import Launch
from tests.loop.processes import Process, wait_until, write_config

PARTITIONS = 6
NOON = datetime(2026, 3, 2, 12, 0, tzinfo=UTC)
PIPELINE = Pipeline(batch_records=20, poll_s=0.05, metrics_port=0)

pytestmark = [pytest.mark.slow, pytest.mark.kafka]


@pytest.mark.parametrize("kind", ["sqlite", pytest.param("postgresql", marks=pytest.mark.postgres)])
def test_one_worker_three_and_two_again_lose_nothing(
    launch: Launch, tmp_path: Path, kafka_broker: Broker, request: pytest.FixtureRequest, kind: str
) -> None:
    """Under load: two join, one is killed with its transaction, comes back, another is told to go."""
    deployment = Deployment(
        data_dir=tmp_path / "data",
        log="kafka",
        kafka_servers=kafka_broker.servers,
        kafka_prefix=f"workers-{uuid4().hex[:8]}",
        kafka_partitions=PARTITIONS,
        state_url=request.getfixturevalue("postgres_url") if kind == "postgresql" else "",
    )
    configs = [configure(tmp_path / f"worker-{n}", deployment) for n in range(3)]
    state = store.open_state(deployment.state)
    with closing(open_log(deployment)) as log:
        people = People(log)
        try:
            first = launch(configs[0], "pipeline")
            wait_until(lambda: shared_by([first]), "one worker has it all", else_show=first.tail)
            wait_until(lambda: stored(state) > 100, "it folds", else_show=first.tail)
            second, third = (launch(config, "pipeline") for config in configs[1:])
            wait_until(lambda: shared_by([first, second, third]), "three share", else_show=third.tail)
            at_work(state)
            second.kill()
            wait_until(lambda: shared_by([first, third]), "two have the dead one's", else_show=third.tail)
            at_work(state)
            second.start()
            wait_until(lambda: shared_by([first, second, third]), "three share again", else_show=second.tail)
            at_work(state)
            assert first.stop() == 0
            wait_until(lambda: shared_by([second, third]), "two have the other's", else_show=third.tail)
            at_work(state)
            third.kill()
            third.start()
        finally:
            said = people.stop()
        wait_until(lambda: folded(state) == ends(log), "all is folded", else_show=second.tail)
        assert (second.stop(), third.stop()) == (0, 0)
        check(state, log, said, tmp_path)
    state.dispose()


class People:
    """They talk all the while, in no order, and Kafka has some of it twice."""

    def __init__(self, log: EventLog) -> None:
        self._log = log
        self._stop = threading.Event()
        self._said: set[str] = set()
        self._thread = threading.Thread(target=self._talk)
        self._thread.start()

    def stop(self) -> set[str]:
        """Ids of all that they said."""
        self._stop.set()
        self._thread.join(30)
        return self._said

    def _talk(self) -> None:
        chance, number = Random(5), 0
        while not self._stop.wait(0.05):
            events = [event for n in range(3) for event in conversation(f"c{number + n}")]
            number += 3
            chance.shuffle(events)
            again = chance.choices(events, k=2)
            for future in [
                self._log.append(topic_of(e), e.key, e.id, codec.encode(e)) for e in [*events, *again]
            ]:
                future.result(30)
            self._said |= {event.id for event in events}


def conversation(name: str) -> list[Event]:
    first = turn(f"{name}-1", f"Where is order {name}?", "No idea.", conversation=name, who=name)
    second = turn(f"{name}-2", f"Where is order {name}?", "In Bremen.", at=20, conversation=name, who=name)
    edit = signal(second, SignalKind.EDIT, at=90, text="It is in Bremen.")
    return [first, second, thumb(first, False), thumb(second, True, at=70), edit]


def configure(folder: Path, deployment: Deployment) -> Path:
    folder.mkdir()
    return write_config(
        folder,
        deployment={
            f: str(v) if isinstance(v := getattr(deployment, f), Path) else v
            for f in ("data_dir", "log", "kafka_servers", "kafka_prefix", "kafka_partitions", "state_url")
        },
        pipeline={"batch_records": PIPELINE.batch_records, "poll_s": PIPELINE.poll_s, "metrics_port": 0},
    )


def shared_by(workers: Sequence[Process]) -> bool:
    """Whether these workers have every partition, each one of them, and as many as the others."""
    held = [partitions_of(worker) for worker in workers]
    return (
        sorted(p for some in held for p in some) == list(range(PARTITIONS)) and len(set(map(len, held))) == 1
    )


def partitions_of(worker: Process) -> list[int]:
    """What the worker last said is its own."""
    said = [json.loads(line) for line in worker.output.read_text().splitlines() if line.startswith("{")]
    changes = [line["partitions"] for line in said if line["event"] == "partitions_changed"]
    return changes[-1] if changes and worker.running else []


def stored(state: sa.Engine) -> int:
    with database.reading(state) as tx:
        return tx.scalar(sa.select(sa.func.count()).select_from(store.events)) or 0


def at_work(state: sa.Engine) -> None:
    before = stored(state)
    wait_until(lambda: stored(state) > before + 50, "they fold")


def folded(state: sa.Engine) -> dict[tuple[str, int], int]:
    with database.reading(state) as tx:
        return store.load_offsets(tx)


def ends(log: EventLog) -> dict[tuple[str, int], int]:
    places = [(topic, p) for topic in SOURCES for p in log.partitions(topic)]
    return {place: end for place, end in log.ends(places).items() if end}


def check(state: sa.Engine, log: EventLog, said: set[str], folder: Path) -> None:
    """Each event once, and of them the snapshot that one worker makes in one go."""
    with database.reading(state) as tx:
        assert {event_id for event_id, _, _ in store.stored_events(tx)} == said
        assert store.load_dead_letters(tx) == []
    survived = snapshots.build_from(state, folder / "survived", PIPELINE, NOON)
    fresh = store.open_state(f"sqlite:///{folder / 'fresh.db'}")
    while pipeline.step(log, fresh, PIPELINE, now=datetime.now(UTC)).records:
        pass
    replayed = snapshots.build_from(fresh, folder / "replayed", PIPELINE, NOON)
    fresh.dispose()
    print(f"{len(said)} events, {survived.rows}")
    assert min(survived.rows.values()) > 0
    assert (survived.rows, survived.hash) == (replayed.rows, replayed.hash)
