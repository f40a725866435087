"""Where a row comes from, and where a reply's or a user's words went: events, rows, snapshots.

Which adapters learned from a snapshot is the registry's business: ask it with the names that
`snapshots_with` returns. Erases nothing.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping
from datetime import datetime
from pathlib import Path

import msgspec

from feedback import codec, database, snapshots, store
from feedback.conversations import turn_of
from feedback.errors import NothingFound, SnapshotError
from feedback.events import Event, SignalReceived, TurnRecorded
from feedback.records import Demonstration, Grade, Pair, Split
from feedback.snapshots import IDS, TABLES, Manifest, id_of

ROWS = ("pair-", "grade-", "demonstration-")
"""How the ids of rows begin that have events behind them."""


class Lineage(msgspec.Struct, frozen=True, kw_only=True):
    """A row of a snapshot and the events behind it, in order of time."""

    snapshot: str
    table: str
    split: Split
    row: Pair | Grade | Demonstration
    events: list[bytes]


class Holding(msgspec.Struct, frozen=True, kw_only=True):
    """What one snapshot holds of somebody or something."""

    snapshot: str
    created_at: datetime
    rows: dict[str, list[str]]
    """Ids by table, in order; tables without any are left out."""


class Trail(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that is known of one reply or one user, and every snapshot that learned of it."""

    subject: str
    """`response …` or `user …`, the latter by pseudonym."""
    events: list[bytes]
    """In order of time."""
    holdings: list[Holding]
    """Oldest snapshot first."""


class Ancestry(msgspec.Struct, frozen=True, kw_only=True):
    """What a snapshot was made of, and what came after it."""

    manifest: Manifest
    ancestors: list[str]
    """Its parent, its parent's parent and so on, as far as they are still there."""
    descendants: list[str]
    """Every snapshot that has it among its ancestors, oldest first."""
    events: int
    """Events that its rows name."""
    users: int
    """Accounts whose word its rows are."""


def of_row(state_url: str, snapshots_dir: Path, row_id: str) -> Lineage:
    """The newest snapshot's pair, grade or demonstration of that id, back to its events.

    Raises: SnapshotError when no snapshot holds it; StateUnavailable.
    """
    table = row_id.partition("-")[0] + "s"
    for manifest in reversed(snapshots.listed(snapshots_dir)):
        if not any(row.id == row_id for row in _evidence(snapshots_dir / manifest.name, table)):
            continue
        snapshot = snapshots.load(snapshots_dir / manifest.name)
        row = next(row for row in snapshot.rows if id_of(row) == row_id)
        with store.opened(state_url) as state, database.reading(state) as tx:
            events = store.payloads(tx, row.event_ids)
        return Lineage(
            snapshot=manifest.name, table=table, split=snapshot.split_of(row), row=row, events=events
        )
    raise SnapshotError(f"no snapshot in {snapshots_dir} holds a {table[:-1]} {row_id!r}")


def of_response(state_url: str, snapshots_dir: Path, response_id: str) -> Trail:
    """One reply: its turn, what was said of it, and every row whose evidence it is.

    Later turns resend a reply as history: those are their own rows' evidence, not this one's.
    Raises: NothingFound for a reply that no turn recorded; StateUnavailable; SnapshotError.
    """
    turn_id = f"turn-{response_id}"
    with store.opened(state_url) as state, database.reading(state) as tx:
        payloads = store.payloads(tx, [turn_id])
        keys = [codec.decode(raw).key for raw in payloads]
        around = [raw for found in store.payloads_of(tx, keys).values() for raw in found]
    if not payloads:
        raise NothingFound(f"no turn recorded a reply {response_id!r}: not folded yet, erased or mistyped")
    about = [e for e in map(_Read.of, around) if response_id in _responses(e.event)]
    return Trail(
        subject=f"response {response_id}",
        events=_in_order(about),
        holdings=snapshots_with(snapshots_dir, event_ids=[turn_id]),
    )


def of_user(state_url: str, snapshots_dir: Path, user: str) -> Trail:
    """One pseudonymous user: what they asked and said, and every row that it is in.

    A prompt counts as theirs even where others asked the same in the same words. Reads through all events of
    the state. Raises: NothingFound; StateUnavailable; SnapshotError.
    """
    with store.opened(state_url) as state, database.reading(state) as tx:
        naming = [_Read.of(raw) for raw in store.payloads_naming(tx, user)]
    said = [read for read in naming if getattr(read.event.data, "user", None) == user]
    turns = [(read.event.id, read.event.data) for read in said]
    holdings = snapshots_with(
        snapshots_dir,
        event_ids=[event_id for event_id, _ in turns],
        users=[user],
        prompt_digests={turn_of(i, turn).digest for i, turn in turns if isinstance(turn, TurnRecorded)},
    )
    if not said and not holdings:
        raise NothingFound(f"no event and no snapshot knows a user {user!r}")
    return Trail(subject=f"user {user}", events=_in_order(said), holdings=holdings)


def of_snapshot(snapshots_dir: Path, name: str) -> Ancestry:
    """One snapshot among the others. Raises: SnapshotError."""
    manifest = snapshots.read_manifest(snapshots_dir / name)
    parents = {m.name: m.parent for m in snapshots.listed(snapshots_dir)}
    rows = [row for table in TABLES for row in _evidence(snapshots_dir / name, table)]
    return Ancestry(
        manifest=manifest,
        ancestors=list(_ancestors(name, parents)),
        descendants=[other for other in parents if name in _ancestors(other, parents)],
        events=len({event_id for row in rows for event_id in row.events}),
        users=len({user for row in rows for user in row.users}),
    )


def snapshots_with(
    snapshots_dir: Path,
    *,
    event_ids: Collection[str] = (),
    users: Collection[str] = (),
    prompt_digests: Collection[str] = (),
) -> list[Holding]:
    """Every snapshot with a row that any of these events or users stand behind, or with any of these prompts.

    Returns: oldest first. Reads four columns of each file, and checks no hash. Raises: SnapshotError.
    """
    events, accounts, digests = frozenset(event_ids), frozenset(users), frozenset(prompt_digests)
    found = []
    for manifest in snapshots.listed(snapshots_dir):
        held = {
            table: [
                row.id
                for row in _evidence(snapshots_dir / manifest.name, table)
                if row.events & events or row.users & accounts or (table == "prompts" and row.id in digests)
            ]
            for table in TABLES
        }
        if rows := {table: ids for table, ids in held.items() if ids}:
            found.append(Holding(snapshot=manifest.name, created_at=manifest.created_at, rows=rows))
    return found


class _Read(msgspec.Struct, frozen=True):
    """An event and its bytes."""

    event: Event
    raw: bytes

    @classmethod
    def of(cls, raw: bytes) -> "_Read":
        return cls(codec.decode(raw), raw)


class _Evidence(msgspec.Struct, frozen=True):
    """A row's id and who and what stands behind it."""

    id: str
    events: frozenset[str]
    users: frozenset[str]


def _in_order(reads: Iterable[_Read]) -> list[bytes]:
    return [r.raw for r in sorted(reads, key=lambda r: (r.event.time, r.event.id))]


def _responses(event: Event) -> tuple[str | None, ...]:
    data = event.data
    if isinstance(data, SignalReceived):
        return (data.response_id, data.other_response_id)
    return (data.response_id,) if isinstance(data, TurnRecorded) else ()


def _ancestors(name: str, parents: Mapping[str, str | None]) -> Iterator[str]:
    while (parent := parents.get(name)) is not None and parent in parents:
        yield parent
        name = parent


def _evidence(snapshot: Path, table: str) -> Iterator[_Evidence]:
    """Raises: SnapshotError."""
    wanted = (IDS[table], "event_ids", "user", "raters")
    found = snapshots.read_columns(snapshot / f"{table}.parquet", wanted)
    for row in found:
        users = frozenset(filter(None, (row.get("user"), *row.get("raters", ()))))
        yield _Evidence(row[IDS[table]], frozenset(row.get("event_ids", ())), users)
