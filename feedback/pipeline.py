"""The stream's shell: records → stored events → what their conversations show. Offsets move last.

One transaction holds a batch's events, everything derived from the conversations they touch, the dead letters
and the offsets. So a crash between any two steps repeats the batch, and repeating a batch changes nothing.
The same transaction first checks that the offsets are where the batch began: of two workers that take a
partition for theirs only one moves on, whatever either believes, and the other reads again.
"""

import threading
import time
from collections import Counter as Tally
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from math import ceil
from pathlib import Path

import msgspec
import sqlalchemy as sa
import structlog
from prometheus_client import Counter, Gauge

from feedback import admission, codec, consensus, database, erasure, keyring, snapshots, store
from feedback.admission import SOURCES, Bounds, Limits
from feedback.config import Pipeline
from feedback.conversations import hear, of_all_heard
from feedback.derivation import VERSION, Derived, derive, derived_from
from feedback.errors import (
    KeyErased,
    LogError,
    SnapshotError,
    StateUnavailable,
)
from feedback.eventlog import EventLog, Place, Position, Record, Share, Topic
from feedback.events import Event, SignalKind
from feedback.recent import Known, Recent
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
PARTITIONS = Gauge("ratchet_feedback_partitions", "Partitions that this worker folds.")
REBALANCES = Counter("ratchet_feedback_rebalances_total", "Times that this worker's partitions changed.")
OVERTAKEN = Counter(
    "ratchet_feedback_overtaken_batches_total", "Batches dropped because another worker had folded them."
)

_STALL_S = 1.0
_MEASURED_EVERY_S = 60.0
_RECOUNTED_AFTER_S = 60.0
_COUNTING_SHARE = 0.01
"""Largest share of the time that goes into counting the state's rows anew."""
_REDERIVED_TOGETHER = 200
_REPLAYED_TOGETHER = 200

_log = structlog.get_logger()


class Batch(msgspec.Struct, frozen=True, kw_only=True):
    """What was read to be folded in one transaction."""

    offsets: Mapping[Place, int]
    """Where it begins, for every place that any of it lies in."""
    records: tuple[Record, ...]

    @property
    def partitions(self) -> frozenset[int]:
        return frozenset(partition for _, partition in self.offsets)


class Folded(msgspec.Struct, frozen=True, kw_only=True):
    """What one transaction did."""

    records: int = 0
    new: Mapping[Topic, int] = {}
    repeated: Mapping[Topic, int] = {}
    erased: Mapping[Topic, int] = {}
    dead: Mapping[Topic, int] = {}
    change: Mapping[tuple[str, str], int] = {}
    newest: datetime | None = None
    known: tuple[Known, ...] = ()
    """The conversations that it touched, to be noted once it is committed."""


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
    share: Share,
    snapshots_dir: Path,
    expire: Callable[[datetime], object] | None = None,
    expire_every_s: float = 3600.0,
    clock: Callable[[], datetime] = lambda: datetime.now(UTC),
) -> None:
    """Fold this worker's share until `stop`. A log or state out of reach is waited for, never given up on.

    Of several workers one builds snapshots and lets things expire: who has the first partition.
    Args: `expire`, called with the time at the start and every `expire_every_s` seconds from then on.
    """
    newest: datetime | None = None
    snapshot_at = measured_at = expire_at = clock()
    prepared, reviewed = False, True
    mine, recent = _Mine(share), Recent()
    while not stop.is_set():
        try:
            prepared = prepared or _prepare(state, config)
            partitions = mine.look(state)
            folded = step(log, state, config, now=clock(), partitions=partitions, recent=recent)
            if _snapshot_due(config, partitions, clock() - snapshot_at):
                snapshot_at = clock()
                _snapshot(state, snapshots_dir, config, clock())
            reviewed = reviewed or ("pair", SignalKind.REVIEW.value) in folded.change
            if reviewed and (clock() - measured_at).total_seconds() >= _MEASURED_EVERY_S:
                _measure_agreement(state)
                reviewed, measured_at = False, clock()
            if expire is not None and clock() >= expire_at and 0 in partitions:
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


def step(
    log: EventLog,
    state: sa.Engine,
    config: Pipeline,
    *,
    now: datetime,
    partitions: Collection[int] | None = None,
    recent: Recent | None = None,
) -> Folded:
    """Read what is new on these partitions (None: on all) and fold it in one transaction.

    Raises: LogError or StateUnavailable; then nothing has changed.
    """
    return fold(gather(log, state, config, partitions), state, config, now=now, recent=recent)


def gather(
    log: EventLog, state: sa.Engine, config: Pipeline, partitions: Collection[int] | None = None
) -> Batch:
    """Read what is new on these partitions. Changes nothing. Raises: LogError, StateUnavailable."""
    with database.reading(state) as tx:
        offsets = store.load_offsets(tx)
        WAITING.set(store.count_dead_letters(tx))
    places = [(t, p) for t in SOURCES for p in log.partitions(t) if partitions is None or p in partitions]
    begins = {place: offsets.get(place, 0) for place in places}
    ends = log.ends(places)
    waiting = {place: ends[place] - begins[place] for place in places if begins[place] < ends[place]}
    records = tuple(
        record
        for place, limit in _shares(waiting, config.batch_records).items()
        for record in log.read(*place, begins[place], limit=limit)
    )
    after = _after(records)
    _observe_lag({place: after.get(place, begin) for place, begin in begins.items()}, ends)
    return Batch(offsets={place: begin for place, begin in begins.items() if place in after}, records=records)


def _shares(waiting: Mapping[Place, int], together: int) -> dict[Place, int]:
    """How many records to read of each place: as large a share of all as of what waits, and at least one.

    So a backlog's topics move on at one pace, and what is said of a turn comes with it.
    """
    most = min(1.0, together / max(1, sum(waiting.values())))
    return {place: ceil(most * number) for place, number in waiting.items()}


def fold(
    batch: Batch, state: sa.Engine, config: Pipeline, *, now: datetime, recent: Recent | None = None
) -> Folded:
    """Fold a batch in one transaction, unless another worker has folded any of it.

    Args: recent, what this worker need not read again; it grows by this batch.
    Raises: StateUnavailable; then nothing has changed.
    """
    if not batch.records:
        return Folded()
    with database.writing(state) as tx:
        store.hold(tx, None if _erases(batch) else batch.partitions)
        at = store.load_offsets(tx)
        if moved := [place for place, begin in batch.offsets.items() if at.get(place, 0) != begin]:
            OVERTAKEN.inc()
            _log.info("batch_overtaken", partitions=sorted({partition for _, partition in moved}))
            return Folded()
        folded = fold_records(
            tx,
            batch.records,
            retry_window_s=config.retry_window_s,
            now=now,
            limits=Limits.of(config),
            recent=recent,
        )
    if recent is not None:
        recent.note(folded.known, now)
    _observe(folded)
    return folded


def fold_records(
    tx: sa.Connection,
    records: Sequence[Record],
    *,
    retry_window_s: float,
    now: datetime,
    limits: Limits = Limits(),  # noqa: B008 (frozen)
    recent: Recent | None = None,
) -> Folded:
    """Fold one batch inside the caller's transaction; the offsets are the last thing written."""
    recent = Recent() if recent is None else recent
    folded, letters = _fold(tx, records, retry_window_s=retry_window_s, now=now, limits=limits, recent=recent)
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
            store.hold(tx)
            waiting = list(store.each_dead_letter(tx, places[start : start + _REPLAYED_TOGETHER]))
            replayed += _replay(tx, waiting, config, now)
    return replayed


def _replay(tx: sa.Connection, waiting: Sequence[DeadLetter], config: Pipeline, now: datetime) -> Replayed:
    records = [Record(Position(w.topic, w.partition, w.offset), "", w.value) for w in waiting]
    folded, letters = _fold(
        tx,
        records,
        retry_window_s=config.retry_window_s,
        now=now,
        limits=Limits.of(config),
        recent=Recent(),
    )
    store.remove_dead_letters(tx, [w.place for w in waiting])
    store.add_dead_letters(tx, letters, now)
    new = sum(folded.new.values())
    return Replayed(folded=new, repeated=len(waiting) - new - len(letters), failed=tuple(letters))


def _fold(
    tx: sa.Connection,
    records: Sequence[Record],
    *,
    retry_window_s: float,
    now: datetime,
    limits: Limits,
    recent: Recent,
) -> tuple[Folded, list[DeadLetter]]:
    """Store the records' new events and derive the conversations they touch; what cannot be is returned."""
    letters = _follow_erasures(tx, [r for r in records if r.position.topic == Topic.USERS], retry_window_s)
    spoken = [r for r in records if r.position.topic != Topic.USERS]
    arrived, bad_records, erased = _admit(tx, spoken, limits, now)
    stored = store.known_events(tx, arrived.keys())
    new = [one for event_id, one in arrived.items() if event_id not in stored]
    touched = _derive_touched(tx, new, retry_window_s, recent)
    letters += [*bad_records, *touched.letters]
    bad = {letter.place for letter in touched.letters}
    kept = [one for one in new if _place(one.record) not in bad]
    store.add_events(tx, [one.entry for one in kept])
    folded = Folded(
        records=len(records),
        new=Tally(one.topic for one in kept),
        repeated=Tally(arrived[event_id].topic for event_id in stored),
        erased=erased,
        dead=Tally(Topic(letter.topic) for letter in letters),
        change=store.replace_derived(tx, touched.derived, fresh=touched.fresh),
        newest=max((one.event.time for one in kept), default=None),
        known=tuple(touched.known),
    )
    return folded, letters


def rederive(state: sa.Engine, *, retry_window_s: float) -> int:
    """Derive every stored conversation anew, after the rules of derivation changed; returns how many."""
    after, done = "", 0
    while True:
        with database.writing(state) as tx:
            store.hold(tx)
            if store.derivation_rules(tx) == _rules(retry_window_s):  # another worker was first
                return done
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
    """Bring what was derived up to this release's rules."""
    with database.reading(state) as tx:
        rules = store.derivation_rules(tx)
    if rules != _rules(config.retry_window_s):
        conversations = rederive(state, retry_window_s=config.retry_window_s)
        _log.info("pipeline_rederived", conversations=conversations, before=rules)
    _log.info("pipeline_ready")
    return True


class _Mine:
    """The partitions that this worker had when it last looked, and when it counts the state's rows again."""

    def __init__(self, share: Share) -> None:
        self._share = share
        self._partitions: frozenset[int] | None = None
        self._count_at_s = 0.0
        """Monotonic clock."""

    def look(self, state: sa.Engine) -> frozenset[int]:
        """Raises: LogUnavailable, StateUnavailable."""
        partitions = self._share.partitions()
        changed = partitions != self._partitions
        if changed or time.monotonic() >= self._count_at_s:
            begun_s = time.monotonic()
            _recount(state)
            took_s = time.monotonic() - begun_s
            self._count_at_s = begun_s + max(_RECOUNTED_AFTER_S, took_s / _COUNTING_SHARE)
        if changed:
            _log.info("partitions_changed", partitions=sorted(partitions))
            if self._partitions is not None:
                REBALANCES.inc()
            PARTITIONS.set(len(partitions))
            self._partitions = partitions
        return partitions


def _recount(state: sa.Engine) -> None:
    with database.reading(state) as tx:
        counted = store.count_derived(tx)
    GRADES.clear()
    PAIRS.clear()
    REVIEW_ITEMS.clear()
    DEMONSTRATIONS.set(0)
    _count(counted)


def _snapshot_due(config: Pipeline, partitions: Collection[int], since: timedelta) -> bool:
    return 0 < config.snapshot_every_s <= since.total_seconds() and 0 in partitions


def _erases(batch: Batch) -> bool:
    """Whether it speaks of erased users, whose words may lie in anybody's partitions."""
    return any(topic == Topic.USERS for topic, _ in batch.offsets)


def _rules(retry_window_s: float) -> str:
    return f"version={VERSION} retry_window_s={retry_window_s}"


def _follow_erasures(tx: sa.Connection, records: Iterable[Record], retry_window_s: float) -> list[DeadLetter]:
    """Erase here too whom the log says was erased: a state restored from a backup still has their keys."""
    letters = []
    for record in records:
        try:
            told = admission.erasure_in(record, codec.decode(record.value))
        except Exception as e:  # the same rule as in _admit
            letters.append(_dead(record, e))
            continue
        if erasure.follow(tx, told, retry_window_s=retry_window_s):
            _log.warning("user_erased_elsewhere", user=told.user, finish="ratchet data erase --pseudonym")
    return letters


class _Arrived(msgspec.Struct, frozen=True, gc=False):
    """A record that holds a proper event."""

    record: Record
    event: Event
    key_id: str | None
    """The data key that it is sealed under."""

    @property
    def topic(self) -> Topic:
        return Topic(self.record.position.topic)

    @property
    def entry(self) -> Entry:
        return Entry(self.event, self.record.value)

    def known(self) -> Known:
        return Known(hear(self.event), self.key_id, len(self.record.value))


def _admit(
    tx: sa.Connection, records: Iterable[Record], limits: Limits, now: datetime
) -> tuple[dict[str, _Arrived], list[DeadLetter], Tally[Topic]]:
    """Records that hold a proper event, by event id; those that do not; how many belong to erased users."""
    read: list[tuple[Record, codec.Written]] = []
    letters = []
    for record in records:
        try:
            admission.check_size(record, limits)
            written = codec.read(record.value)
            admission.check_written(written)
            read.append((record, written))
        except Exception as e:  # a bad record must never stop the stream: it becomes a dead letter
            letters.append(_dead(record, e))
    keys = keyring.keys_of(tx, {written.key_id for _, written in read if written.key_id})
    bounds = Bounds(limits, now)
    arrived: dict[str, _Arrived] = {}
    erased: Tally[Topic] = Tally()
    for record, written in read:
        try:
            event = codec.opened(written, keys)
            admission.check_event(record, event, bounds)
        except KeyErased:
            erased[Topic(record.position.topic)] += 1
        except Exception as e:  # as above
            letters.append(_dead(record, e))
        else:
            arrived.setdefault(event.id, _Arrived(record, event, written.key_id))
    return arrived, letters, erased


class _Touched(msgspec.Struct, frozen=True):
    """What became of the conversations that got new events."""

    derived: dict[str, Derived]
    fresh: set[str]
    """Those that nothing was stored of before."""
    known: list[Known]
    letters: list[DeadLetter]


def _derive_touched(
    tx: sa.Connection, new: Iterable[_Arrived], retry_window_s: float, recent: Recent
) -> _Touched:
    """Derive the conversations that got new events, without the events that cannot be derived from."""
    arrived: dict[str, list[_Arrived]] = {}
    for one in new:
        arrived.setdefault(store.conversation_of(one.event), []).append(one)
    stored = _stored(tx, arrived, recent)
    derived: dict[str, Derived] = {}
    known: list[Known] = []
    letters: list[DeadLetter] = []
    for conversation_id, said in arrived.items():
        before = stored.get(conversation_id, [])
        made = _attempt(before, said, retry_window_s)
        if isinstance(made, Exception):
            made, blamed = _one_by_one(before, said, retry_window_s)
            letters += blamed
        derived[conversation_id] = made.derived
        known += made.known
    return _Touched(derived, arrived.keys() - stored.keys(), known, letters)


def _stored(tx: sa.Connection, conversation_ids: Collection[str], recent: Recent) -> dict[str, list[Known]]:
    """What is stored of these conversations and may still be read; none of which nothing is stored."""
    stored = store.event_ids_of(tx, conversation_ids)
    event_ids = [event_id for ids in stored.values() for event_id in ids]
    known = recent.among(event_ids)
    raws = store.payloads_by_id(tx, [event_id for event_id in event_ids if event_id not in known])
    written = {event_id: codec.read(raw) for event_id, raw in raws.items()}
    sealed = {one.key_id for one in known.values()} | {one.key_id for one in written.values()}
    keys = keyring.keys_of(tx, {key_id for key_id in sealed if key_id})
    for event_id, one in written.items():
        with suppress(KeyErased):
            event = codec.opened(one, keys)
            known[event_id] = Known(hear(event), one.key_id, len(raws[event_id]))
    legible = {i for i, one in known.items() if one.key_id is None or keys.get(one.key_id) is not None}
    return {c: [known[i] for i in ids if i in legible] for c, ids in stored.items()}


class _Made(msgspec.Struct, frozen=True):
    """What was derived, and from which events."""

    derived: Derived
    known: list[Known]


def _attempt(
    before: Iterable[Known], arrived: Iterable[_Arrived], retry_window_s: float
) -> _Made | Exception:
    try:
        known = [*before, *(one.known() for one in arrived)]
        conversation = of_all_heard(one.heard for one in known)
        return _Made(derived_from(conversation, retry_window_s=retry_window_s), known)
    except Exception as e:  # the same rule as in _admit, for what only shows in the conversation
        return e


def _one_by_one(
    before: list[Known], arrived: Iterable[_Arrived], retry_window_s: float
) -> tuple[_Made, list[DeadLetter]]:
    """Find which of the new events it is that derivation fails on."""
    conversation = of_all_heard(one.heard for one in before)
    best = _Made(derived_from(conversation, retry_window_s=retry_window_s), before)
    letters = []
    for one in arrived:
        made = _attempt(best.known, [one], retry_window_s)
        if isinstance(made, Exception):
            letters.append(_dead(one.record, made))
        else:
            best = made
    return best, letters


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
        *_, report = consensus.settle(store.derived_rows(tx, "pair", SignalKind.REVIEW))
    for found in report.agreement:
        if found.alpha is not None:
            REVIEW_ALPHA.labels(found.dimension).set(found.alpha)


def _observe_lag(read_to: Mapping[Place, int], ends: Mapping[Place, int]) -> None:
    for topic in SOURCES:
        LAG.labels(topic).set(sum(max(0, end - read_to[t, p]) for (t, p), end in ends.items() if t == topic))
