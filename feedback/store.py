"""The pipeline's state in SQL: events, offsets, what was derived, dead letters. Decides nothing.

Functions of a connection; whoever opens the transaction decides what is atomic. SQLite or PostgreSQL.
`database` opens it and makes its transactions.
"""

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import Any, Literal
from uuid import uuid4

import msgspec
import sqlalchemy as sa

from feedback import database, keyring
from feedback.comparisons import Comparison
from feedback.derivation import Asked, Derived
from feedback.events import Event, SignalKind
from feedback.records import Demonstration, Grade, Pair
from feedback.review import Item

What = Literal["grade", "pair", "demonstration", "asked", "comparison", "item"]
Offsets = dict[tuple[str, int], int]
"""Next offset to read, by topic and partition."""
Kinds = Counter[tuple[str, str]]
"""Number of derived rows by what they are and by signal kind."""

Place = tuple[str, int, int]
"""Topic, partition and offset of a record."""

_CHUNK = 500

metadata = sa.MetaData()
events = sa.Table(
    "feedback_events",
    metadata,
    sa.Column("event_id", sa.Text, primary_key=True),
    sa.Column("conversation_id", sa.Text, nullable=False, index=True),
    sa.Column("at_us", sa.BigInteger, nullable=False, comment="event time, microseconds since 1970"),
    sa.Column("payload", sa.LargeBinary, nullable=False, comment="the event as it lay in the log"),
)
offsets = sa.Table(
    "feedback_offsets",
    metadata,
    sa.Column("topic", sa.Text, primary_key=True),
    sa.Column("partition", sa.Integer, primary_key=True),
    sa.Column("next_offset", sa.BigInteger, nullable=False),
)
derived = sa.Table(
    "feedback_derived",
    metadata,
    sa.Column("conversation_id", sa.Text, primary_key=True),
    sa.Column("what", sa.Text, primary_key=True),
    sa.Column("row_id", sa.Text, primary_key=True),
    sa.Column("kind", sa.Text, nullable=False),
    sa.Column("weight", sa.Float, nullable=False),
    sa.Column("payload", sa.LargeBinary, nullable=False),
    sa.Index("feedback_derived_weight", "what", "kind", "weight"),
)
dead_letters = sa.Table(
    "feedback_dead_letters",
    metadata,
    sa.Column("topic", sa.Text, primary_key=True),
    sa.Column("partition", sa.Integer, primary_key=True),
    sa.Column("offset", sa.BigInteger, primary_key=True),
    sa.Column("reason", sa.Text, nullable=False),
    sa.Column("at", sa.Text, nullable=False),
    sa.Column("value", sa.LargeBinary, nullable=False),
)
snapshots = sa.Table(
    "feedback_snapshots",
    metadata,
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("created_at", sa.Text, nullable=False),
    sa.Column("arrived_weight", sa.Float, nullable=False),
)
scores = sa.Table(
    "feedback_review_scores",
    metadata,
    sa.Column("item_id", sa.Text, primary_key=True),
    sa.Column("disagreement", sa.Float, nullable=False, comment="of the reward ensemble, 0 to 1"),
    sa.Column("run", sa.Text, nullable=False),
)
derivations = sa.Table(
    "feedback_derivations",
    metadata,
    sa.Column("rules", sa.Text, primary_key=True, comment="version and settings that made feedback_derived"),
)

identities = sa.Table(
    "feedback_identity",
    metadata,
    sa.Column("only", sa.Integer, primary_key=True, comment="1: there is one row"),
    sa.Column("name", sa.Text, nullable=False, comment="names this state, wherever it is reached from"),
)
_FOLDING = 0x72617463
"""First key of PostgreSQL's advisory locks on partitions; the second is the partition's number."""

_is_row = sa.and_(
    derived.c.conversation_id == sa.bindparam("c"),
    derived.c.what == sa.bindparam("w"),
    derived.c.row_id == sa.bindparam("r"),
)

_encode = msgspec.json.Encoder().encode
_DECODERS: dict[str, Any] = {
    "grade": msgspec.json.Decoder(Grade),
    "pair": msgspec.json.Decoder(Pair),
    "demonstration": msgspec.json.Decoder(Demonstration),
    "asked": msgspec.json.Decoder(Asked),
    "comparison": msgspec.json.Decoder(Comparison),
    "item": msgspec.json.Decoder(Item),
}


class DeadLetter(msgspec.Struct, frozen=True, kw_only=True):
    """A record that could not be folded, as it lay in the log."""

    topic: str
    partition: int
    offset: int
    reason: str
    """Name of the error and what it said."""
    value: bytes
    at: datetime | None = None
    """When it was last found wanting; None before it is stored."""

    @property
    def place(self) -> "Place":
        return (self.topic, self.partition, self.offset)

    @property
    def kind(self) -> str:
        return self.reason.partition(":")[0]


class Entry(msgspec.Struct, frozen=True, gc=False):
    """An event and its bytes."""

    event: Event
    payload: bytes


def open_state(url: str, *, durable: bool = False) -> sa.Engine:
    """The pipeline's part of the state database. The log has all that a power failure takes from it.

    Raises: StateUnavailable.
    """
    return database.connect(url, metadata, keyring.metadata, durable=durable)


@contextmanager
def opened(url: str) -> Iterator[sa.Engine]:
    """`open_state` for the length of a block. Raises: StateUnavailable."""
    state = open_state(url)
    try:
        yield state
    finally:
        state.dispose()


def identity(tx: sa.Connection) -> str:
    """What this state is called; named when first asked."""
    query = sa.select(identities.c.name)
    if tx.scalar(query) is None:
        made = {"only": 1, "name": uuid4().hex}
        tx.execute(database.insert(tx, identities).on_conflict_do_nothing(), [made])
    return str(tx.execute(query).scalar_one())  # another worker's, if that was first


def hold(tx: sa.Connection, partitions: Collection[int] | None = None) -> None:
    """Until the transaction ends, nobody else stores or derives what lies in these partitions; None: in any.

    What was committed there before can be read from now on. SQLite's writers wait for one another anyway.
    """
    if tx.dialect.name != "postgresql":
        return
    if partitions is None:
        tx.execute(sa.select(sa.func.pg_advisory_xact_lock(_FOLDING)))
        return
    tx.execute(sa.select(sa.func.pg_advisory_xact_lock_shared(_FOLDING)))
    for number in sorted(partitions):
        tx.execute(sa.select(sa.func.pg_advisory_xact_lock(_FOLDING, number)))


def load_offsets(tx: sa.Connection) -> Offsets:
    return {(row.topic, row.partition): row.next_offset for row in tx.execute(sa.select(offsets))}


def save_offsets(tx: sa.Connection, positions: Mapping[tuple[str, int], int]) -> None:
    if positions:
        statement = database.insert(tx, offsets)
        tx.execute(
            statement.on_conflict_do_update(
                index_elements=["topic", "partition"],
                set_={"next_offset": statement.excluded.next_offset},
            ),
            [{"topic": t, "partition": p, "next_offset": n} for (t, p), n in positions.items()],
        )


def known_events(tx: sa.Connection, event_ids: Collection[str]) -> set[str]:
    """Those of the ids that are stored."""
    column = events.c.event_id
    return {
        row[0] for ids in _chunks(event_ids) for row in tx.execute(sa.select(column).where(column.in_(ids)))
    }


def add_events(tx: sa.Connection, entries: Collection[Entry]) -> None:
    """Store events; one that is stored already stays as it is."""
    rows = [(e.event.id, conversation_of(e.event), _microseconds(e.event.time), e.payload) for e in entries]
    database.insert_all(tx, events, rows)


def stored_events(tx: sa.Connection, *, before: datetime | None = None) -> Iterator[tuple[str, str, bytes]]:
    """Event id, conversation and payload of all events, or of those from before a moment.

    In no particular order; memory stays flat.
    """
    query = sa.select(events.c.event_id, events.c.conversation_id, events.c.payload)
    if before is not None:
        query = query.where(events.c.at_us < _microseconds(before))
    for row in tx.execute(query, execution_options={"yield_per": _CHUNK}):
        yield row.event_id, row.conversation_id, row.payload


def remove_events(tx: sa.Connection, event_ids: Collection[str]) -> None:
    for ids in _chunks(event_ids):
        tx.execute(sa.delete(events).where(events.c.event_id.in_(ids)))


def asked_in(tx: sa.Connection, conversation_ids: Collection[str]) -> Iterator[Asked]:
    """The prompt states that were asked in these conversations."""
    for ids in _chunks(conversation_ids):
        among = sa.and_(derived.c.what == "asked", derived.c.conversation_id.in_(ids))
        for (payload,) in tx.execute(sa.select(derived.c.payload).where(among)):
            yield _DECODERS["asked"].decode(payload)


def conversation_of(event: Event) -> str:
    """The conversation an event belongs to, which is also its partitioning key."""
    return event.key


def event_ids_of(tx: sa.Connection, conversation_ids: Collection[str]) -> dict[str, list[str]]:
    """The ids of each conversation's stored events, in no particular order."""
    found: dict[str, list[str]] = {}
    for ids in _chunks(conversation_ids):
        query = sa.select(events.c.conversation_id, events.c.event_id).where(
            events.c.conversation_id.in_(ids)
        )
        for conversation_id, event_id in tx.execute(query):
            found.setdefault(conversation_id, []).append(event_id)
    return found


def payloads_by_id(tx: sa.Connection, event_ids: Collection[str]) -> dict[str, bytes]:
    """Stored events; unknown ids are left out."""
    columns = (events.c.event_id, events.c.payload)
    return {
        event_id: payload
        for ids in _chunks(event_ids)
        for event_id, payload in tx.execute(sa.select(*columns).where(events.c.event_id.in_(ids)))
    }


def payloads_of(tx: sa.Connection, conversation_ids: Collection[str]) -> dict[str, list[bytes]]:
    """The stored events of each conversation, in no particular order."""
    found: dict[str, list[bytes]] = {}
    for ids in _chunks(conversation_ids):
        query = sa.select(events.c.conversation_id, events.c.payload).where(events.c.conversation_id.in_(ids))
        for conversation_id, payload in tx.execute(query):
            found.setdefault(conversation_id, []).append(payload)
    return found


def payloads(tx: sa.Connection, event_ids: Collection[str]) -> list[bytes]:
    """Stored events by id, in order of time; unknown ids are left out."""
    found = [
        tuple(row)
        for ids in _chunks(event_ids)
        for row in tx.execute(
            sa.select(events.c.at_us, events.c.event_id, events.c.payload).where(events.c.event_id.in_(ids))
        )
    ]
    return [payload for _, _, payload in sorted(found)]


def payloads_naming(tx: sa.Connection, name: str) -> Iterator[bytes]:
    """Stored events whose bytes hold `name` anywhere, in no particular order; reads through all of them."""
    sought = name.encode()
    rows = tx.execute(sa.select(events.c.payload).execution_options(yield_per=_CHUNK))
    return (payload for (payload,) in rows if sought in payload)


def conversation_ids(tx: sa.Connection, after: str, limit: int) -> list[str]:
    """Conversations in order of id, for walking through all of them."""
    column = events.c.conversation_id
    return list(tx.scalars(sa.select(column).distinct().where(column > after).order_by(column).limit(limit)))


def conversations_with(tx: sa.Connection, what: What, kinds: Collection[SignalKind]) -> list[str]:
    """Conversations that gave rows of these kinds, in order of id."""
    column = derived.c.conversation_id
    among = (derived.c.what == what, derived.c.kind.in_([kind.value for kind in kinds]))
    return list(tx.scalars(sa.select(column).distinct().where(*among).order_by(column)))


def replace_derived(
    tx: sa.Connection, by_conversation: Mapping[str, Derived], *, fresh: Collection[str] = ()
) -> Kinds:
    """Put what was derived of conversations in the place of what was there; returns the change in numbers.

    Args: fresh, conversations that are known to have nothing yet.
    """
    rows = {
        row[:3]: row
        for conversation_id, made in by_conversation.items()
        for row in _derived_rows(conversation_id, made)
    }
    change: Kinds = Counter()
    gone = []
    for ids in _chunks([c for c in by_conversation if c not in fresh]):
        for old in map(tuple, tx.execute(sa.select(derived).where(derived.c.conversation_id.in_(ids)))):
            if rows.get(old[:3]) == old:
                del rows[old[:3]]
            else:
                gone.append(dict(zip("cwr", old[:3], strict=True)))
                change[old[1], old[3]] -= 1
    if gone:
        tx.execute(sa.delete(derived).where(_is_row), gone)
    database.insert_all(tx, derived, list(rows.values()))
    change.update((what, kind) for _, what, _, kind, _, _ in rows.values())
    return change


def count_derived(tx: sa.Connection) -> Kinds:
    return _count(tx, sa.true())


def derived_rows(tx: sa.Connection, what: What, kind: SignalKind | None = None) -> Iterator[Any]:
    """Every grade, pair, demonstration, asked prompt, comparison or review item, in no particular order.

    Args: kind, of grades and pairs: those of this kind alone.
    """
    decode = _DECODERS[what].decode
    among = derived.c.what == what if kind is None else _of_kind(what, kind)
    for (payload,) in tx.execute(sa.select(derived.c.payload).where(among)):
        yield decode(payload)


def _of_kind(what: What, kind: SignalKind) -> sa.ColumnElement[bool]:
    return sa.and_(derived.c.what == what, derived.c.kind == kind.value)


def items(tx: sa.Connection, stages: Iterable[str], limit: int) -> list[tuple[str, Item]]:
    """Items of the review queue in these stages with their conversations, the smallest lots first."""
    decode = _DECODERS["item"].decode
    query = (
        sa.select(derived.c.conversation_id, derived.c.payload)
        .where(derived.c.what == "item", derived.c.kind.in_(list(stages)))
        .order_by(derived.c.weight)
        .limit(limit)
    )
    return [(conversation_id, decode(payload)) for conversation_id, payload in tx.execute(query)]


def item_stages(tx: sa.Connection) -> dict[str, int]:
    """How many items of the review queue are in each stage."""
    counts = _count(tx, derived.c.what == "item")
    return {stage: number for (_, stage), number in counts.items()}


def disagreements(tx: sa.Connection, item_ids: Collection[str]) -> dict[str, float]:
    """How far the reward ensemble disagrees, of those items that it has scored."""
    return {
        item_id: disagreement
        for ids in _chunks(item_ids)
        for item_id, disagreement in tx.execute(
            sa.select(scores.c.item_id, scores.c.disagreement).where(scores.c.item_id.in_(ids))
        )
    }


def replace_disagreements(tx: sa.Connection, run: str, found: Mapping[str, float]) -> None:
    """What one run of the learner found takes the place of what all earlier ones did."""
    tx.execute(sa.delete(scores))
    if found:
        tx.execute(
            sa.insert(scores), [{"item_id": i, "disagreement": d, "run": run} for i, d in found.items()]
        )


def arrived_weight(tx: sa.Connection) -> float:
    """Weight of all grades and pairs so far that come from people, before caps."""
    query = sa.select(sa.func.sum(derived.c.weight)).where(
        derived.c.what.in_(("grade", "pair")), derived.c.kind != SignalKind.JUDGEMENT.value
    )
    return float(tx.scalar(query) or 0.0)


def add_dead_letters(tx: sa.Connection, letters: Iterable[DeadLetter], now: datetime) -> None:
    rows = [{**msgspec.structs.asdict(letter), "at": now.isoformat()} for letter in letters]
    if rows:
        tx.execute(database.insert(tx, dead_letters).on_conflict_do_nothing(), rows)


def load_dead_letters(tx: sa.Connection) -> list[DeadLetter]:
    """All of them, in order of topic, partition and offset."""
    return list(each_dead_letter(tx, dead_letter_places(tx)))


def dead_letter_places(tx: sa.Connection) -> list[Place]:
    """Where the dead letters lay, in order."""
    columns = (dead_letters.c.topic, dead_letters.c.partition, dead_letters.c.offset)
    return [(t, p, n) for t, p, n in tx.execute(sa.select(*columns).order_by(*columns))]


def count_dead_letters(tx: sa.Connection) -> int:
    return tx.scalar(sa.select(sa.func.count()).select_from(dead_letters)) or 0


def each_dead_letter(tx: sa.Connection, places: Iterable[Place]) -> Iterator[DeadLetter]:
    """The dead letters of these places that are still there, one by one: each may be megabytes."""
    for place in places:
        for row in tx.execute(sa.select(dead_letters).where(_lies_at(place))).mappings():
            yield DeadLetter(**{**row, "at": datetime.fromisoformat(row["at"])})


def remove_dead_letters(tx: sa.Connection, places: Iterable[Place]) -> None:
    for place in places:
        tx.execute(sa.delete(dead_letters).where(_lies_at(place)))


def remove_dead_letters_before(tx: sa.Connection, moment: datetime) -> int:
    """Those that were last found wanting before then; returns how many."""
    gone = tx.execute(sa.delete(dead_letters).where(dead_letters.c.at < moment.isoformat()))
    return gone.rowcount


def _lies_at(place: Place) -> sa.ColumnElement[bool]:
    topic, partition, offset = place
    return sa.and_(
        dead_letters.c.topic == topic, dead_letters.c.partition == partition, dead_letters.c.offset == offset
    )


def note_snapshot(tx: sa.Connection, name: str, created_at: datetime, weight: float) -> None:
    row = {"name": name, "created_at": created_at.isoformat(), "arrived_weight": weight}
    tx.execute(database.insert(tx, snapshots).on_conflict_do_nothing(), [row])


def latest_snapshot(tx: sa.Connection) -> str | None:
    query = sa.select(snapshots.c.name).order_by(snapshots.c.created_at.desc(), snapshots.c.name).limit(1)
    return tx.scalar(query)


def snapshot_weight(tx: sa.Connection, name: str) -> float | None:
    """`arrived_weight` when the snapshot was built; None for one that was not built from this state."""
    return tx.scalar(sa.select(snapshots.c.arrived_weight).where(snapshots.c.name == name))


def derivation_rules(tx: sa.Connection) -> str | None:
    return tx.scalar(sa.select(derivations.c.rules))


def save_derivation_rules(tx: sa.Connection, rules: str) -> None:
    tx.execute(sa.delete(derivations))
    tx.execute(sa.insert(derivations), [{"rules": rules}])


def _derived_rows(conversation_id: str, made: Derived) -> Iterator[tuple[str, What, str, str, float, bytes]]:
    """In the order of the table's columns."""
    for grade in made.grades:
        yield conversation_id, "grade", grade.grade_id, grade.kind.value, grade.weight, _encode(grade)
    for pair in made.pairs:
        yield conversation_id, "pair", pair.pair_id, pair.kind.value, pair.weight, _encode(pair)
    for shown in made.demonstrations:
        yield conversation_id, "demonstration", shown.demonstration_id, "edit", shown.weight, _encode(shown)
    for asked in made.asked:
        yield conversation_id, "asked", f"{asked.prompt_digest} {asked.user}", "", 0.0, _encode(asked)
    for compared in made.comparisons:
        yield conversation_id, "comparison", compared.comparison_id, "", 0.0, _encode(compared)
    for item in made.items:
        yield conversation_id, "item", item.item_id, item.stage, item.lot, _encode(item)


def _count(tx: sa.Connection, condition: sa.ColumnElement[bool]) -> Kinds:
    query = (
        sa.select(derived.c.what, derived.c.kind, sa.func.count())
        .where(condition)
        .group_by(derived.c.what, derived.c.kind)
    )
    return Counter({(what, kind): number for what, kind, number in tx.execute(query)})


def _chunks(values: Collection[str]) -> Iterator[Sequence[str]]:
    ordered = list(values)
    for start in range(0, len(ordered), _CHUNK):
        yield ordered[start : start + _CHUNK]


def _microseconds(at: datetime) -> int:
    return int(at.timestamp() * 1_000_000)
