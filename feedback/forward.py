"""Moves the embedded log, each gateway's outbox, on to Kafka: at least once, in order within a topic.

A cursor in the outbox moves only past entries that Kafka acknowledged. A crash or an outage sends the last
entries again, and readers drop what they have seen by event id.
"""

import threading
from collections.abc import Sequence
from concurrent.futures import Future
from concurrent.futures import wait as wait_for
from datetime import UTC, datetime

import structlog
from prometheus_client import Counter, Gauge

from feedback.embedded import EmbeddedLog
from feedback.errors import LogError, LogFull, LogUnavailable
from feedback.eventlog import EventLog, Position, Record, Topic

CURSOR = "forward"
"""Name of the forwarder's cursor in the outbox."""

OUTBOX_EVENTS = Gauge("ratchet_feedback_outbox_events", "Entries of the outbox not yet on Kafka", ["topic"])
OUTBOX_OLDEST_SECONDS = Gauge(
    "ratchet_feedback_outbox_oldest_seconds",
    "Age of the oldest entry not yet on Kafka, seconds; 0 if none",
    ["topic"],
)
FORWARDED = Counter("ratchet_feedback_forwarded_total", "Entries that Kafka acknowledged", ["topic"])
REFUSED = Counter(
    "ratchet_feedback_forward_refused_total",
    "Entries that Kafka will never take; they stay in the outbox",
    ["topic"],
)
FAILURES = Counter(
    "ratchet_feedback_forward_failures_total", "Passes that ended early because a log was out of reach"
)

_FIRST_DELAY_S = 0.5
_LONGEST_DELAY_S = 15.0

_log = structlog.get_logger()


def run(
    outbox: EmbeddedLog, log: EventLog, stop: threading.Event, *, poll_s: float = 0.2, timeout_s: float = 30.0
) -> None:
    """Forward until `stop` is set; what Kafka cannot take now is tried again, less and less often."""
    delay_s = _FIRST_DELAY_S
    while not stop.is_set():
        try:
            moved = forward_once(outbox, log, timeout_s=timeout_s)
            observe(outbox, datetime.now(UTC))
        except LogError as e:
            FAILURES.inc()
            _log.warning("forward_failed", error=str(e), retry_s=delay_s)
            _observe_if_possible(outbox)
            stop.wait(delay_s)
            delay_s = min(2 * delay_s, _LONGEST_DELAY_S)
            continue
        delay_s = _FIRST_DELAY_S
        if not moved:
            stop.wait(poll_s)


def forward_once(outbox: EmbeddedLog, log: EventLog, *, limit: int = 500, timeout_s: float = 30.0) -> int:
    """Move up to `limit` entries of each topic; returns how many the cursors passed.

    Raises: LogUnavailable, LogFull when either log fails; the cursors then stand at the last success.
    """
    return sum(_forward_topic(outbox, log, topic, limit, timeout_s) for topic in Topic)


def observe(outbox: EmbeddedLog, now: datetime) -> None:
    """Set the outbox gauges."""
    for topic in Topic:
        backlog = outbox.backlog(CURSOR, topic)
        age_s = 0.0 if backlog.oldest_at is None else (now - backlog.oldest_at).total_seconds()
        OUTBOX_EVENTS.labels(topic).set(backlog.events)
        OUTBOX_OLDEST_SECONDS.labels(topic).set(max(0.0, age_s))


def _forward_topic(outbox: EmbeddedLog, log: EventLog, topic: Topic, limit: int, timeout_s: float) -> int:
    records = outbox.read(topic, 0, outbox.cursor(CURSOR, topic), limit=limit)
    if not records:
        return 0
    futures = [log.append(topic, r.key, r.event_id, r.value) for r in records]
    wait_for(futures, timeout=timeout_s)
    passed, trouble = _passed(topic, records, futures)
    if passed:
        outbox.advance(CURSOR, topic, records[passed - 1].position.offset + 1).result(timeout_s)
    if trouble is not None:
        raise trouble
    return passed


def _passed(
    topic: Topic, records: Sequence[Record], futures: "Sequence[Future[Position | None]]"
) -> tuple[int, LogError | None]:
    """How many entries from the first on are done with, and what stopped the next one."""
    for n, (record, future) in enumerate(zip(records, futures, strict=True)):
        if not future.done():
            return n, LogUnavailable(f"Kafka has not acknowledged {topic} entry {record.event_id!r} in time")
        error = future.exception()
        if error is None:
            FORWARDED.labels(topic).inc()
        elif isinstance(error, LogUnavailable | LogFull):
            return n, error
        elif isinstance(error, LogError):  # one entry must not hold up all the others for ever
            REFUSED.labels(topic).inc()
            _log.error("forward_refused", topic=topic, offset=record.position.offset, error=str(error))
        else:
            raise error
    return len(records), None


def _observe_if_possible(outbox: EmbeddedLog) -> None:
    try:
        observe(outbox, datetime.now(UTC))
    except LogError as e:
        _log.warning("outbox_unreadable", error=str(e))
