"""Several pipeline workers on one log and one state: whatever happens to them, the state is one worker's."""

import threading
import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
import sqlalchemy as sa
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy.pool import StaticPool

from feedback import codec, database, pipeline, store
from feedback.config import Pipeline
from feedback.eventlog import Place, Position, Record, Topic, topic_of
from feedback.events import Event, SignalKind
from feedback.pipeline import Batch, Folded
from feedback.recent import Recent
from tests.feedback.builders import NOON, signal, thumb, turn, user

CONFIG = Pipeline(batch_records=3, heldout_fraction=0.0, metrics_port=0)
PARTITIONS = 3


class Shelf:
    """A log of several partitions in memory: what `gather` needs of one."""

    def __init__(self, events: Iterable[Event]):
        self._records: dict[Place, list[Record]] = {}
        for event in events:
            place = (topic_of(event), ord(event.key[0]) % PARTITIONS)
            there = self._records.setdefault(place, [])
            there.append(Record(Position(*place, len(there)), event.key, codec.encode(event), event.id))

    def partitions(self, topic: Topic) -> Sequence[int]:
        return range(PARTITIONS)

    def ends(self, places: Collection[Place]) -> Mapping[Place, int]:
        return {place: len(self._records.get(place, ())) for place in places}

    def read(self, topic: Topic, partition: int, offset: int, *, limit: int) -> list[Record]:
        return self._records.get((topic, partition), [])[offset : offset + limit]


def conversation(name: str) -> list[Event]:
    """Two tries at one question, thumbs, an edit and a thumb taken back."""
    first = turn(f"{name}-1", "How do I reset it?", "Click around.", conversation=name, who=name)
    second = turn(f"{name}-2", "How do I reset it?", "Open the settings.", at=20, conversation=name, who=name)
    history = [user("How do I reset it?"), {"role": "assistant", "content": "Open the settings."}]
    third = turn(f"{name}-3", [*history, user("thanks!")], "Welcome.", at=40, conversation=name, who=name)
    return [
        first,
        second,
        third,
        thumb(first, False),
        thumb(second, True),
        thumb(third, True, at=70),
        thumb(third, None, at=80),
        signal(second, SignalKind.EDIT, at=90, text="Open the settings and press reset."),
    ]


EVENTS = [event for name in ("ann", "bob", "cid", "dan", "eve") for event in conversation(name)]
Step = tuple[int, str]
"""A worker, and what it does next."""


@contextmanager
def memory() -> Iterator[sa.Engine]:
    """A state that one connection sees: steps follow one another, and each transaction is whole."""
    engine = sa.create_engine("sqlite://", poolclass=StaticPool)
    with database.writing(engine) as tx:
        store.metadata.create_all(tx)
    yield engine
    engine.dispose()


def rows(state: sa.Engine) -> dict[str, list[tuple[Any, ...]]]:
    """What was stored and derived; offsets follow from the order in the log."""
    with database.reading(state) as tx:
        return {
            table.name: sorted(map(tuple, tx.execute(sa.select(table))))
            for table in (store.events, store.derived, store.dead_letters)
        }


class Killed(Exception):
    pass


def work(shelf: Shelf, state: sa.Engine, schedule: Iterable[Step], shares: Sequence[Collection[int]]) -> None:
    """Let workers read and fold as scheduled. What one has read may be folded by another in between."""
    read: dict[int, Batch] = {}
    remembered = [Recent() for _ in shares]
    for worker, what in schedule:
        if what == "read":
            read[worker] = pipeline.gather(shelf, state, CONFIG, shares[worker])
        elif what == "fold" and worker in read:
            pipeline.fold(read.pop(worker), state, CONFIG, now=NOON, recent=remembered[worker])
        elif what == "die" and worker in read:
            killed_at_the_end(read.pop(worker), state)
            remembered[worker] = Recent()


def killed_at_the_end(batch: Batch, state: sa.Engine) -> None:
    """SIGKILL before the commit: the transaction is not."""

    def kill(connection: Any, cursor: Any, statement: str, *_: Any) -> None:
        if "INTO feedback_offsets" in statement:
            raise Killed

    sa.event.listen(state, "before_cursor_execute", kill)
    try:
        pipeline.fold(batch, state, CONFIG, now=NOON)
    except Killed:
        pass
    finally:
        sa.event.remove(state, "before_cursor_execute", kill)


def finish(shelf: Shelf, state: sa.Engine) -> None:
    while pipeline.step(shelf, state, CONFIG, now=NOON).records:
        pass


@pytest.fixture(scope="module")
def alone() -> dict[str, list[tuple[Any, ...]]]:
    """What one worker makes of the events in order."""
    with memory() as state:
        finish(Shelf(EVENTS), state)
        found = rows(state)
    assert len(found["feedback_events"]) == len(EVENTS)
    return found


# a worker's wish: any partitions, also the same as another's, as while a group has not noticed a death
SHARES = st.lists(st.frozensets(st.integers(0, PARTITIONS - 1)), min_size=3, max_size=3)
STEPS = st.lists(
    st.tuples(st.integers(0, 2), st.sampled_from(["read", "fold", "die", "fold", "read"])), max_size=40
)


@pytest.mark.slow
@settings(max_examples=60)
@given(events=st.permutations(EVENTS), again=st.lists(st.sampled_from(EVENTS)), shares=SHARES, schedule=STEPS)
def test_any_order_share_and_death_gives_what_one_worker_makes(alone, events, again, shares, schedule):
    """Duplicated, reordered, read twice, killed before the commit: the same rows, each once."""
    shelf = Shelf([*events, *again])
    with memory() as state:
        work(shelf, state, schedule, shares)
        finish(shelf, state)
        assert rows(state) == alone


def test_a_worker_that_was_overtaken_commits_nothing():
    """It lost the partition while it paused, and does not know."""
    shelf = Shelf(EVENTS)
    with memory() as state:
        late = pipeline.gather(shelf, state, CONFIG)
        finish(shelf, state)
        with database.writing(state) as tx:
            store.remove_events(tx, [EVENTS[0].id])  # would come back with the late batch
        before = rows(state)
        assert late.records
        assert pipeline.fold(late, state, CONFIG, now=NOON) == Folded()
        assert rows(state) == before


def test_of_two_readers_of_one_partition_one_moves_on():
    """And the other is in time for the rest: nothing is skipped."""
    shelf = Shelf(EVENTS)
    with memory() as state:
        one, two = (pipeline.gather(shelf, state, CONFIG) for _ in range(2))
        assert pipeline.fold(one, state, CONFIG, now=NOON).records == len(one.records)
        assert pipeline.fold(two, state, CONFIG, now=NOON).records == 0
        three = pipeline.gather(shelf, state, CONFIG)
        assert {r.event_id for r in three.records}.isdisjoint(r.event_id for r in one.records)


def test_a_worker_reads_its_own_partitions_alone():
    shelf = Shelf(EVENTS)
    with memory() as state:
        batch = pipeline.gather(shelf, state, CONFIG, {1})
        assert {record.position.partition for record in batch.records} == {1}
        assert batch.partitions == {1}


def test_a_state_has_one_name():
    """It is what its workers' consumer group is called by."""
    with memory() as state:
        with database.writing(state) as tx:
            first = store.identity(tx)
        with database.writing(state) as tx:
            assert store.identity(tx) == first
    with memory() as other, database.writing(other) as tx:
        assert store.identity(tx) != first


@pytest.mark.postgres
def test_on_postgresql_a_conversation_is_derived_by_one_at_a_time(postgres_url):
    """Two workers that both take a partition for theirs: one has the turn, the other the thumb.

    Neither would see the other's event, and whoever commits last would leave no grade.
    """
    asked = turn("r1", "How?", "So.", conversation="ann")
    shelf = Shelf([asked, thumb(asked, True)])
    state = store.open_state(postgres_url)
    both = pipeline.gather(shelf, state, CONFIG)
    batches = [
        Batch(offsets={place: begin}, records=tuple(r for r in both.records if r.position.topic == place[0]))
        for place, begin in both.offsets.items()
    ]
    assert [len(batch.records) for batch in batches] == [1, 1]

    def slowly(connection: Any, cursor: Any, statement: str, *_: Any) -> None:
        if "INTO feedback_offsets" in statement:
            time.sleep(0.5)

    sa.event.listen(state, "before_cursor_execute", slowly)
    workers = [
        threading.Thread(target=pipeline.fold, args=(batch, state, CONFIG), kwargs={"now": NOON})
        for batch in batches
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(20)
    with database.reading(state) as tx:
        assert [g.reason for g in store.derived_rows(tx, "grade")] == ["thumb up"]
    state.dispose()
