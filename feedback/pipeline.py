"""The stream's shell: records → stored events → what their conversations show. Offsets move last.

One transaction holds a batch's events, everything derived from the conversations they touch, the dead letters
and the offsets. So a crash between any two steps repeats the batch, and repeating a batch changes nothing.
"""

import threading
from collections import Counter as Tally
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import msgspec
import sqlalchemy as sa
import structlog
from prometheus_client import Counter, Gauge

from feedback import codec, consensus, database, erasure, keyring, snapshots, store
from feedback.config import Pipeline
from feedback.derivation import VERSION, Derived, derive
from feedback.errors import (
    CodecError,
    KeyErased,
    LimitExceeded,
    LogError,
    SnapshotError,
    StateUnavailable,
)
from feedback.eventlog import MAX_ENTRY_BYTES, EventLog, Position, Record, Topic
from feedback.events import Event, SignalKind, SignalReceived, TurnRecorded, UserErased
from feedback.store import DeadLetter, Entry, Kinds, Offsets

EVENTS = Counter("ratchet_feedback_events_total", "Events folded for the first time.", ["topic"])
REPEATED = Counter("ratchet_feedback_repeated_events_total", "Events that were folded before.", ["topic"])
ERASED = Counter("ratchet_feedback_erased_events_total", "Events of users who were erased.", ["topic"])
DEAD_LETTERS = Counter("ratchet_feedback_dead_letters_total", "Records that could not be folded.", ["topic"])
WAITING = Gauge("ratchet_feedback_dead_letters_waiting", "Dead letters that wait to be replayed.")
GRADES = Gauge("ratchet_feedback_grades", "Grades in the state, by signal kind.", ["kind"])
PAIRS = Gauge("ratchet_feedback_pairs", "Pairs shown by single conversations, by signal kind.", ["kind"])
DEMONSTRATIONS = Gauge("ratchet_feedback_demonstrations", "Edited replies to learn from.")
REVIEW_ITEMS = Gauge(
    "ratchet_feedback_review_items",
    "Pairs of replies in the review queue, by number of answers, or `known` or `given up`.",
    ["stage"],
)
REVIEW_ALPHA = Gauge(
    "ratchet_feedback_review_alpha_ratio", "Krippendorff's alpha of the raters' answers.", ["dimension"]
)
LAG = Gauge("ratchet_feedback_lag_records", "Records in the log that are not folded yet.", ["topic"])
LAST_EVENT = Gauge(
    "ratchet_feedback_seconds_since_last_event", "Age of the newest event folded; 0 before the first."
)
STALLS = Counter("ratchet_feedback_stalls_total", "Times that log or state were out of reach.")

SOURCES: dict[Topic, type] = {
    Topic.TURNS: TurnRecorded,
    Topic.SIGNALS: SignalReceived,
    Topic.USERS: UserErased,
}
"""What is read, and the one type of event that belongs there."""
_STALL_S = 1.0
_MEASURED_EVERY_S = 60.0
_REDERIVED_TOGETHER = 200
_REPLAYED_TOGETHER = 200

_log = structlog.get_logger()


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """What an event may be; one beyond them is poisonous, whatever it says."""

    max_bytes: int = MAX_ENTRY_BYTES
    not_before: date = date.min
    max_ahead_s: float = 86_400.0

    @classmethod
    def of(cls, config: Pipeline) -> "Limits":
        return cls(
            max_bytes=config.max_event_bytes, not_before=config.not_before, max_ahead_s=config.max_ahead_s
        )


class Folded(msgspec.Struct, frozen=True, kw_only=True):
    """What one transaction did."""

    records: int = 0
    new: Mapping[Topic, int] = {}
    repeated: Mapping[Topic, int] = {}
    erased: Mapping[Topic, int] = {}
    dead: Mapping[Topic, int] = {}
    change: Mapping[tuple[str, str], int] = {}
    newest: datetime | None = None


class Replayed(msgspec.Struct, frozen=True, kw_only=True):
    """What became of the dead letters."""

    folded: int = 0
    repeated: int = 0
    """Letters whose event had come by another way: nothing was left to do."""
    failed: tuple[DeadLetter, ...] = ()
    """What stays a dead letter, with the reason of this try."""

    def __add__(self, more: "Replayed") -> "Replayed":
        return Replayed(
            folded=self.folded + more.folded,
            repeated=self.repeated + more.repeated,
            failed=self.failed + more.failed,
        )


def run(
    log: EventLog,
    state: sa.Engine,
    config: Pipeline,
    stop: threading.Event,
    *,
    snapshots_dir: Path,
    expire: Callable[[datetime], object] | None = None,
    expire_every_s: float = 3600.0,
    clock: Callable[[], datetime] = lambda: datetime.now(UTC),
) -> None:
    """Fold until `stop`. A log or state out of reach is waited for, never given up on.

    Args: `expire`, called with the time at the start and every `expire_every_s` seconds from then on.
    """
    newest: datetime | None = None
    snapshot_at = measured_at = expire_at = clock()
    prepared, reviewed = False, True
    while not stop.is_set():
        try:
            prepared = prepared or _prepare(state, config)
            folded = step(log, state, config, now=clock())
            if config.snapshot_every_s and (clock() - snapshot_at).total_seconds() >= config.snapshot_every_s:
                snapshot_at = clock()
                _snapshot(state, snapshots_dir, config, clock())
            reviewed = reviewed or ("pair", SignalKind.REVIEW.value) in folded.change
            if reviewed and (clock() - measured_at).total_seconds() >= _MEASURED_EVERY_S:
                _measure_agreement(state)
                reviewed, measured_at = False, clock()
            if expire is not None and clock() >= expire_at:
                expire(clock())
                expire_at = clock() + timedelta(seconds=expire_every_s)
        except (LogError, StateUnavailable) as e:
            STALLS.inc()
            _log.warning("pipeline_stalled", error=str(e))
            stop.wait(_STALL_S)
            continue
        newest = max(filter(None, (newest, folded.newest)), default=None)
        LAST_EVENT.set((clock() - newest).total_seconds() if newest else 0.0)
        if not folded.records:
            stop.wait(config.poll_s)


def step(log: EventLog, state: sa.Engine, config: Pipeline, *, now: datetime) -> Folded:
    """Read what is new on every partition and fold it in one transaction.

    Raises: LogError or StateUnavailable; then nothing has changed.
    """
    with database.reading(state) as tx:
        offsets = store.load_offsets(tx)
        WAITING.set(store.count_dead_letters(tx))
    records = [
        record
        for topic in SOURCES
        for partition in log.partitions(topic)
        for record in log.read(
            topic, partition, offsets.get((topic, partition), 0), limit=config.batch_records
        )
    ]
    _observe_lag(log, offsets, records)
    if not records:
        return Folded()
    with database.writing(state) as tx:
        folded = fold_records(
            tx, records, retry_window_s=config.retry_window_s, now=now, limits=Limits.of(config)
        )
    _observe(folded)
    return folded


def fold_records(
    tx: sa.Connection,
    records: Sequence[Record],
    *,
    retry_window_s: float,
    now: datetime,
    limits: Limits = Limits(),  # noqa: B008 (frozen)
) -> Folded:
    """Fold one batch inside the caller's transaction; the offsets are the last thing written."""
    folded, letters = _fold(tx, records, retry_window_s=retry_window_s, now=now, limits=limits)
    for letter in letters:
        topic, partition, offset = letter.place
        _log.warning("record_dead", topic=topic, partition=partition, offset=offset, error=letter.kind)
    store.add_dead_letters(tx, letters, now)
    store.save_offsets(tx, _after(records))
    return folded


def replay_dead_letters(state: sa.Engine, config: Pipeline, *, now: datetime) -> Replayed:
    """Fold the dead letters that this release can, each once, by the same path as the stream.

    A letter leaves in the transaction that folds it; one that still fails stays, with its newest reason.
    Raises: StateUnavailable; what was replayed before that stays replayed.
    """
    with database.reading(state) as tx:
        places = store.dead_letter_places(tx)
    replayed = Replayed()
    for start in range(0, len(places), _REPLAYED_TOGETHER):
        with database.writing(state) as tx:
            waiting = list(store.each_dead_letter(tx, places[start : start + _REPLAYED_TOGETHER]))
            replayed += _replay(tx, waiting, config, now)
    return replayed


def _replay(tx: sa.Connection, waiting: Sequence[DeadLetter], config: Pipeline, now: datetime) -> Replayed:
    records = [Record(Position(w.topic, w.partition, w.offset), "", w.value) for w in waiting]
    folded, letters = _fold(
        tx, records, retry_window_s=config.retry_window_s, now=now, limits=Limits.of(config)
    )
    store.remove_dead_letters(tx, [w.place for w in waiting])
    store.add_dead_letters(tx, letters, now)
    new = sum(folded.new.values())
    return Replayed(folded=new, repeated=len(waiting) - new - len(letters), failed=tuple(letters))


def _fold(
    tx: sa.Connection, records: Sequence[Record], *, retry_window_s: float, now: datetime, limits: Limits
) -> tuple[Folded, list[DeadLetter]]:
    """Store the records' new events and derive the conversations they touch; what cannot be is returned."""
    letters = _follow_erasures(tx, [r for r in records if r.position.topic == Topic.USERS], retry_window_s)
    spoken = [r for r in records if r.position.topic != Topic.USERS]
    entries, bad_records, erased = _admit(tx, spoken, limits, now)
    known = store.known_events(tx, entries.keys())
    new = {event_id: at for event_id, at in entries.items() if event_id not in known}
    derived, failed = _derive_touched(tx, new, retry_window_s)
    letters += [*bad_records, *failed]
    bad = {letter.place for letter in failed}
    kept = [entry for record, entry in new.values() if _place(record) not in bad]
    store.add_events(tx, kept)
    folded = Folded(
        records=len(records),
        new=Tally(_topic_of(entry.event) for entry in kept),
        repeated=Tally(_topic_of(entries[event_id][1].event) for event_id in known),
        erased=erased,
        dead=Tally(Topic(letter.topic) for letter in letters),
        change=store.replace_derived(tx, derived),
        newest=max((entry.event.time for entry in kept), default=None),
    )
    return folded, letters


def rederive(state: sa.Engine, *, retry_window_s: float) -> int:
    """Derive every stored conversation anew, after the rules of derivation changed; returns how many."""
    after, done = "", 0
    while True:
        with database.writing(state) as tx:
            ids = store.conversation_ids(tx, after, _REDERIVED_TOGETHER)
            if not ids:
                store.save_derivation_rules(tx, _rules(retry_window_s))
                return done
            stored = store.payloads_of(tx, ids)
            store.replace_derived(
                tx,
                {c: derive(keyring.opened(tx, stored[c]), retry_window_s=retry_window_s) for c in ids},
            )
        after, done = ids[-1], done + len(ids)


def _prepare(state: sa.Engine, config: Pipeline) -> bool:
    """Bring what was derived up to this release's rules, and the gauges up to the state."""
    with database.reading(state) as tx:
        rules = store.derivation_rules(tx)
    if rules != _rules(config.retry_window_s):
        conversations = rederive(state, retry_window_s=config.retry_window_s)
        _log.info("pipeline_rederived", conversations=conversations, before=rules)
    with database.reading(state) as tx:
        _count(store.count_derived(tx))
    _log.info("pipeline_ready")
    return True


def _rules(retry_window_s: float) -> str:
    return f"version={VERSION} retry_window_s={retry_window_s}"


def _follow_erasures(tx: sa.Connection, records: Iterable[Record], retry_window_s: float) -> list[DeadLetter]:
    """Erase here too whom the log says was erased: a state restored from a backup still has their keys."""
    letters = []
    for record in records:
        try:
            told = codec.decode(record.value).data
            _expect(told, record)
        except Exception as e:  # the same rule as in _admit
            letters.append(_dead(record, e))
            continue
        if isinstance(told, UserErased) and erasure.follow(tx, told, retry_window_s=retry_window_s):
            _log.warning("user_erased_elsewhere", user=told.user, finish="ratchet data erase --pseudonym")
    return letters


def _admit(
    tx: sa.Connection, records: Iterable[Record], limits: Limits, now: datetime
) -> tuple[dict[str, tuple[Record, Entry]], list[DeadLetter], Tally[Topic]]:
    """Records that hold a proper event, by event id; those that do not; how many belong to erased users."""
    read: list[tuple[Record, codec.Written]] = []
    letters = []
    for record in records:
        try:
            _check_size(record, limits)
            read.append((record, codec.read(record.value)))
        except Exception as e:  # a bad record must never stop the stream: it becomes a dead letter
            letters.append(_dead(record, e))
    keys = keyring.keys_of(tx, {written.key_id for _, written in read if written.key_id})
    entries: dict[str, tuple[Record, Entry]] = {}
    erased: Tally[Topic] = Tally()
    for record, written in read:
        try:
            event = _proper(record, codec.opened(written, keys), limits, now)
        except KeyErased:
            erased[Topic(record.position.topic)] += 1
        except Exception as e:  # as above
            letters.append(_dead(record, e))
        else:
            entries.setdefault(event.id, (record, Entry(event, record.value)))
    return entries, letters, erased


def _check_size(record: Record, limits: Limits) -> None:
    if len(record.value) > limits.max_bytes:
        raise LimitExceeded(f"{len(record.value)} bytes, [pipeline] max_event_bytes is {limits.max_bytes}")


def _proper(record: Record, event: Event, limits: Limits, now: datetime) -> Event:
    data = event.data
    _expect(data, record)
    if "\0" in event.id + event.key:
        raise CodecError(f"{event.id!r} with key {event.key!r}: no database takes a NUL in a name")
    if isinstance(data, TurnRecorded | SignalReceived) and event.key != data.conversation_id:
        raise CodecError(f"{event.id!r} has key {event.key!r} but belongs to {data.conversation_id!r}")
    if isinstance(data, TurnRecorded | SignalReceived):
        for name, at in _times(event.time, data):
            _check_time(f"{event.id!r}: {name}", at, limits, now)
    return event


def _expect(data: object, record: Record) -> None:
    topic = Topic(record.position.topic)
    if not isinstance(data, SOURCES[topic]):
        raise CodecError(
            f"{record.event_id!r} is a {type(data).__name__}; {topic} takes {SOURCES[topic].__name__}"
        )


def _times(time: datetime, data: TurnRecorded | SignalReceived) -> Iterable[tuple[str, datetime]]:
    """Every moment that derivation reads."""
    yield "time", time
    if isinstance(data, SignalReceived):
        yield "received_at", data.received_at
    else:
        yield "started_at", data.started_at
        yield "the reply's end", data.started_at + timedelta(seconds=data.duration_s)


def _check_time(name: str, at: datetime, limits: Limits, now: datetime) -> None:
    if at.tzinfo is None:
        raise CodecError(f"{name} {at.isoformat()} has no time zone")
    if at > now + timedelta(seconds=limits.max_ahead_s):
        raise LimitExceeded(
            f"{name} {at.isoformat()} is in the future, more than [pipeline] max_ahead_s"
            f" ({limits.max_ahead_s:g}) after {now.isoformat(timespec='seconds')}"
        )
    if at.astimezone(UTC).date() < limits.not_before:
        raise LimitExceeded(f"{name} {at.isoformat()} is before [pipeline] not_before ({limits.not_before})")


def _derive_touched(
    tx: sa.Connection, new: Mapping[str, tuple[Record, Entry]], retry_window_s: float
) -> tuple[dict[str, Derived], list[DeadLetter]]:
    """Derive the conversations that got new events, without the events that cannot be derived from."""
    touched: dict[str, list[tuple[Record, Event]]] = {}
    for record, entry in new.values():
        touched.setdefault(store.conversation_of(entry.event), []).append((record, entry.event))
    stored = store.payloads_of(tx, touched.keys())
    derived: dict[str, Derived] = {}
    letters: list[DeadLetter] = []
    for conversation_id, arrived in touched.items():
        before = keyring.opened(tx, stored.get(conversation_id, ()))
        made = _attempt([*before, *(event for _, event in arrived)], retry_window_s)
        if isinstance(made, Derived):
            derived[conversation_id] = made
        else:
            derived[conversation_id], blamed = _one_by_one(before, arrived, retry_window_s)
            letters += blamed
    return derived, letters


def _one_by_one(
    before: Sequence[Event], arrived: Iterable[tuple[Record, Event]], retry_window_s: float
) -> tuple[Derived, list[DeadLetter]]:
    """Find which of the new events it is that derivation fails on."""
    good = list(before)
    derived = derive(good, retry_window_s=retry_window_s)
    letters = []
    for record, event in arrived:
        made = _attempt([*good, event], retry_window_s)
        if isinstance(made, Derived):
            good.append(event)
            derived = made
        else:
            letters.append(_dead(record, made))
    return derived, letters


def _attempt(events: Sequence[Event], retry_window_s: float) -> Derived | Exception:
    try:
        return derive(events, retry_window_s=retry_window_s)
    except Exception as e:  # the same rule as in _admit, for what only shows in the conversation
        return e


def _dead(record: Record, error: Exception) -> DeadLetter:
    topic, partition, offset = _place(record)
    return DeadLetter(
        topic=topic,
        partition=partition,
        offset=offset,
        reason=f"{type(error).__name__}: {error}".replace("\0", "\\0"),
        value=record.value,
    )


def _place(record: Record) -> tuple[str, int, int]:
    return (str(record.position.topic), record.position.partition, record.position.offset)


def _topic_of(event: Event) -> Topic:
    return Topic.TURNS if isinstance(event.data, TurnRecorded) else Topic.SIGNALS


def _after(records: Iterable[Record]) -> Offsets:
    after: Offsets = {}
    for topic, partition, offset in map(_place, records):
        after[topic, partition] = max(offset + 1, after.get((topic, partition), 0))
    return after


def _snapshot(state: sa.Engine, snapshots_dir: Path, config: Pipeline, now: datetime) -> None:
    try:
        manifest = snapshots.build_from(state, snapshots_dir, config, now)
    except SnapshotError as e:
        _log.info("snapshot_skipped", reason=str(e))
    else:
        _log.info("snapshot_built", snapshot=manifest.name, **manifest.rows)


def _observe(folded: Folded) -> None:
    for counter, tally in (
        (EVENTS, folded.new),
        (REPEATED, folded.repeated),
        (ERASED, folded.erased),
        (DEAD_LETTERS, folded.dead),
    ):
        for topic, number in tally.items():
            counter.labels(topic).inc(number)
    _count(folded.change)


def _count(change: Mapping[tuple[str, str], int] | Kinds) -> None:
    for (what, kind), number in change.items():
        if what == "grade":
            GRADES.labels(kind).inc(number)
        elif what == "pair":
            PAIRS.labels(kind).inc(number)
        elif what == "demonstration":
            DEMONSTRATIONS.inc(number)
        elif what == "item":
            REVIEW_ITEMS.labels(kind).inc(number)


def _measure_agreement(state: sa.Engine) -> None:
    with database.reading(state) as tx:
        _, report = consensus.settle(store.derived_rows(tx, "pair", SignalKind.REVIEW))
    for found in report.agreement:
        if found.alpha is not None:
            REVIEW_ALPHA.labels(found.dimension).set(found.alpha)


def _observe_lag(log: EventLog, offsets: Offsets, records: Sequence[Record]) -> None:
    folded = {**offsets, **_after(records)}
    for topic in SOURCES:
        LAG.labels(topic).set(
            sum(max(0, log.end(topic, p) - folded.get((topic, p), 0)) for p in log.partitions(topic))
        )
