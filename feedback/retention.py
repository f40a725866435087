"""What was kept for long enough goes: events from log and state, dead letters, snapshots' files.

Events expire by topic, each by its own time, and what was derived from them is derived anew from what is
left: a log that expired alike gives the same state again. The log lets go of nothing that the pipeline, or
the forwarder, has not read. Every step may be repeated; nothing here needs the others to stop.
"""

from collections.abc import Mapping
from contextlib import closing
from datetime import datetime, timedelta
from pathlib import Path

import msgspec
import sqlalchemy as sa
import structlog
from prometheus_client import Counter

from feedback import codec, database, forgetting, snapshots, store
from feedback.config import Deployment, Retention
from feedback.embedded import EmbeddedLog
from feedback.eventlog import EventLog, Topic, topic_of_type
from feedback.forward import CURSOR

EXPIRED = Counter(
    "ratchet_feedback_expired_total", "Events, dead letters and snapshots whose days were over", ["kind"]
)

_log = structlog.get_logger()


class Expired(msgspec.Struct, frozen=True, kw_only=True):
    """What went."""

    snapshots: tuple[str, ...] = ()
    events: Mapping[Topic, int] = {}
    """Events removed from the state."""
    dead_letters: int = 0

    @property
    def numbers(self) -> dict[str, int]:
        """How many of each kind."""
        events = {str(topic): number for topic, number in self.events.items()}
        return {**events, "dead_letters": self.dead_letters, "snapshots": len(self.snapshots)}


class Holdings(msgspec.Struct, frozen=True, kw_only=True):
    """What is held, and for how long."""

    deployment: Deployment
    log: EventLog
    state: sa.Engine
    retention: Retention
    retry_window_s: float
    """See `implicit.infer`."""


def expire(held: Holdings, now: datetime) -> Expired:
    """Let everything go whose days are over at `now`.

    Raises: StateUnavailable, LogUnavailable, SnapshotError; run it again then.
    """
    kept = held.retention
    cutoffs = {topic: now - timedelta(days=days) for topic, days in _days(kept).items()}
    gone = Expired(
        snapshots=_from_snapshots(held.deployment.snapshots_dir, kept.snapshots_days, now),
        events=_from_state(held.state, cutoffs, held.retry_window_s),
        dead_letters=_from_dead_letters(held.state, kept.dead_letters_days, now),
    )
    for topic, before in cutoffs.items():
        _from_log(held, topic, before)
    for kind, number in gone.numbers.items():
        EXPIRED.labels(kind).inc(number)
    return gone


def tidy(held: Holdings, now: datetime) -> None:
    """`expire`, and a line for the operator if anything went."""
    gone = expire(held, now)
    if any(gone.numbers.values()):
        _log.info("expired", **gone.numbers)


def _days(config: Retention) -> dict[Topic, float]:
    """The topics that expire, and after how many days."""
    days = {Topic.TURNS: config.turns_days, Topic.SIGNALS: config.signals_days}
    return {topic: kept for topic, kept in days.items() if kept}


def _from_snapshots(folder: Path, days: float, now: datetime) -> tuple[str, ...]:
    if not days:
        return ()
    with snapshots.alone(folder):
        return tuple(snapshots.expire(folder, now - timedelta(days=days), now))


def _from_state(
    state: sa.Engine, cutoffs: Mapping[Topic, datetime], retry_window_s: float
) -> dict[Topic, int]:
    """Returns: how many events of each topic went. One look through the state serves all topics."""
    number = dict.fromkeys(cutoffs, 0)
    found: dict[str, tuple[str, ...]] = {}
    if not cutoffs:
        return number
    with database.reading(state) as tx:
        for event_id, conversation_id, payload in store.stored_events(tx, before=max(cutoffs.values())):
            written = codec.read(payload)
            topic = topic_of_type(written.type)
            if topic in cutoffs and written.time < cutoffs[topic]:
                found[conversation_id] = (*found.get(conversation_id, ()), event_id)
                number[topic] += 1
    forgetting.forget_all(state, found, retry_window_s=retry_window_s)
    return number


def _from_dead_letters(state: sa.Engine, days: float, now: datetime) -> int:
    if not days:
        return 0
    with database.writing(state) as tx:
        return store.remove_dead_letters_before(tx, now - timedelta(days=days))


def _from_log(held: Holdings, topic: Topic, before: datetime) -> None:
    with database.reading(held.state) as tx:
        folded = store.load_offsets(tx)
    for partition in held.log.partitions(topic):
        held.log.expire(topic, partition, before=before, below=folded.get((topic, partition), 0))
    if held.deployment.log == "kafka" and held.deployment.log_path.exists():
        with closing(EmbeddedLog(held.deployment.log_path)) as outbox:
            outbox.expire(topic, 0, before=before, below=outbox.cursor(CURSOR, topic))
