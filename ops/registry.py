"""The adapter registry: what exists, in which state, who gets what, and who decided. SQLite or PostgreSQL.

Every change is compare-and-swap on a revision and writes its audit row first, in the same transaction.
It decides nothing: `ops.gates` and `ops.rollout` do.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import msgspec
from sqlalchemy import (
    Column,
    Connection,
    Integer,
    LargeBinary,
    MetaData,
    Table,
    Text,
    insert,
    select,
    update,
)
from sqlalchemy.exc import IntegrityError

from feedback import database
from feedback.errors import StateUnavailable
from ops import evaluation
from ops.adapters import TRANSITIONS, Adapter, AdapterState, Change, learned_from
from ops.errors import (
    InvalidAdapter,
    RegistryUnavailable,
    RevisionConflict,
    TransitionRefused,
    UnknownAdapter,
)
from ops.evaluation import EvalReport
from ops.traffic import TrafficTable

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,119}")

_tables = MetaData()
_adapters = Table(
    "adapters",
    _tables,
    Column("name", Text, primary_key=True),
    Column("sha256", Text, nullable=False),
    Column("path", Text, nullable=False),
    Column("base_sha256", Text, nullable=False),
    Column("run_id", Text, nullable=False),
    Column("parent", Text),
    Column("snapshot", Text),
    Column("reward_model", Text),
    Column("state", Text, nullable=False, index=True),
    Column("revision", Integer, nullable=False),
    Column("report", Text),
    Column("reason", Text, nullable=False),
    Column("created_at", Text, nullable=False),
    Column("changed_at", Text, nullable=False),
)
_audit = Table(
    "adapter_audit",
    _tables,
    Column("number", Integer, primary_key=True, autoincrement=True),
    Column("at", Text, nullable=False),
    Column("by", Text, nullable=False),
    Column("subject", Text, nullable=False, index=True),
    Column("before", Text, nullable=False),
    Column("after", Text, nullable=False),
    Column("revision", Integer, nullable=False),
    Column("reason", Text, nullable=False),
)
_traffic = Table(
    "traffic",
    _tables,
    Column("id", Integer, primary_key=True),
    Column("revision", Integer, nullable=False),
    Column("document", Text, nullable=False),
)
_replicas = Table(
    "replicas",
    _tables,
    Column("url", Text, primary_key=True),
    Column("adapters", Text, nullable=False),
    Column("at", Text, nullable=False),
)
_memos = Table(
    "controller_memos",
    _tables,
    Column("key", Text, primary_key=True),
    Column("value", LargeBinary, nullable=False),
)
_erased = Table(
    "erased_snapshots",
    _tables,
    Column("snapshot", Text, primary_key=True),
    Column("at", Text, nullable=False),
    Column("by", Text, nullable=False),
)


class AuditEntry(msgspec.Struct, frozen=True, kw_only=True):
    """One change, as it was about to happen. `subject` is an adapter's name or `traffic`."""

    number: int
    at: datetime
    by: str
    subject: str
    before: str
    after: str
    revision: int
    """The subject's revision after the change."""
    reason: str


class Registry:
    """One deployment's registry. Safe to use from several threads and processes.

    Every method raises RegistryUnavailable when the database is out of reach.
    """

    def __init__(self, url: str) -> None:
        with _translated():
            self._engine = database.connect(url, _tables)

    def register(self, adapter: Adapter, *, by: str = "learner") -> Adapter:
        """Add a candidate in state `registered`. The same name and hash again changes nothing.

        Raises: InvalidAdapter for a name that is malformed, lacks the hash or belongs to other weights.
        """
        _check_identity(adapter)
        fresh = msgspec.structs.replace(
            adapter, state=AdapterState.REGISTERED, revision=0, changed_at=adapter.created_at
        )
        try:
            with self._write() as c:
                known = c.execute(select(_adapters).where(_adapters.c.name == adapter.name)).first()
                if known is None:
                    _record(c, fresh.created_at, by, fresh.name, "", fresh.state, 0, fresh.reason)
                    c.execute(insert(_adapters).values(_row(fresh)))
        except IntegrityError:  # another process registered it in between
            return self._same_weights(self.get(adapter.name), adapter)
        return fresh if known is None else self._same_weights(_adapter(known), adapter)

    @staticmethod
    def _same_weights(known: Adapter, wanted: Adapter) -> Adapter:
        if known.sha256 != wanted.sha256:
            raise InvalidAdapter(f"name {known.name!r} belongs to other weights ({known.sha256[:16]}…)")
        return known

    def get(self, name: str) -> Adapter:
        """Raises: UnknownAdapter."""
        with self._read() as c:
            row = c.execute(select(_adapters).where(_adapters.c.name == name)).first()
        if row is None:
            raise UnknownAdapter(f"no adapter named {name!r} is registered")
        return _adapter(row)

    def list(self, states: frozenset[AdapterState] | None = None) -> Sequence[Adapter]:
        """All adapters, or those in `states`; oldest first."""
        query = select(_adapters).order_by(_adapters.c.created_at, _adapters.c.name)
        if states is not None:
            query = query.where(_adapters.c.state.in_([s.value for s in states]))
        with self._read() as c:
            return [_adapter(row) for row in c.execute(query)]

    def transition(
        self,
        name: str,
        to: AdapterState,
        *,
        revision: int,
        by: str,
        reason: str,
        at: datetime,
        report: EvalReport | None = None,
    ) -> Adapter:
        """Move one adapter on. Raises as `apply` does."""
        self.apply([Change(name=name, revision=revision, to=to, reason=reason, report=report)], by=by, at=at)
        return self.get(name)

    def traffic(self) -> TrafficTable | None:
        """The current split; None before the first adapter serves."""
        with self._read() as c:
            row = c.execute(select(_traffic.c.document)).first()
        return None if row is None else msgspec.json.decode(row.document, type=TrafficTable)

    def set_traffic(
        self,
        table: TrafficTable,
        *,
        expected_revision: int,
        by: str = "operator",
        reason: str = "",
        at: datetime | None = None,
    ) -> TrafficTable:
        """Replace the split if it is still at `expected_revision` (0: none yet). Raises as `apply` does."""
        moment = at or table.changed_at
        if moment is None:
            raise ValueError("a traffic change needs its time: `at` or `table.changed_at`")
        return (
            self.apply([], table=table, expected_revision=expected_revision, by=by, reason=reason, at=moment)
            or table
        )

    def apply(
        self,
        changes: Sequence[Change],
        *,
        by: str,
        at: datetime,
        table: TrafficTable | None = None,
        expected_revision: int = 0,
        reason: str = "",
    ) -> TrafficTable | None:
        """Make all changes and the new split, or none of them, in one transaction.

        Returns: the split as stored (its revision is `expected_revision + 1`), None without one.
        Raises: UnknownAdapter; RevisionConflict when anything moved in between; TransitionRefused for a
        change that the state machine does not know.
        """
        stored = None if table is None else msgspec.structs.replace(table, revision=expected_revision + 1)
        try:
            with self._write() as c:
                for change in sorted(changes, key=lambda change: change.name):  # one lock order
                    _transition(c, change, by, at)
                if stored is not None:
                    _set_traffic(c, stored, expected_revision, by, reason, at)
        except IntegrityError as e:
            raise RevisionConflict("the traffic table was created by somebody else first") from e
        return stored

    def note(
        self,
        name: str,
        *,
        revision: int,
        by: str,
        reason: str,
        at: datetime,
        report: EvalReport | None = None,
    ) -> Adapter:
        """Say why an adapter stays where it is, or attach evidence. Counts as a revision.

        Raises: UnknownAdapter, RevisionConflict.
        """
        with self._write() as c:
            known = _locked(c, name, revision)
            stay = Change(name=name, revision=revision, to=known.state, reason=reason, report=report)
            _move(c, known, stay, by, at, changed_at=known.changed_at)
        return self.get(name)

    def flag_snapshots(self, snapshots: Sequence[str], *, by: str, at: datetime) -> dict[str, str]:
        """Note snapshots whose rows were erased; those noted before stay as they are.

        Returns: `flags` as they are now. Each adapter that is flagged by this gets an audit row first.
        """
        with self._write() as c:
            known = set(c.scalars(select(_erased.c.snapshot)))
            fresh = [s for s in snapshots if s not in known]
            before = _flags(c)
            rows = [{"snapshot": s, "at": at.isoformat(), "by": by} for s in fresh]
            if rows:
                c.execute(insert(_erased), rows)
            flags = _flags(c)
            for adapter in map(_adapter, c.execute(select(_adapters)).all()):
                if flags.get(adapter.name, "") != before.get(adapter.name, ""):
                    state = adapter.state.value
                    reason = f"flagged: {flags[adapter.name]}"
                    _record(c, at, by, adapter.name, state, state, adapter.revision, reason)
        return flags

    def flags(self) -> dict[str, str]:
        """Adapters that learned from what was erased since, themselves or through a parent, and why."""
        with self._read() as c:
            return _flags(c)

    def report_replica(self, url: str, adapters: Mapping[str, str], at: datetime) -> None:
        """Replace what `url` has loaded and probed: adapter name → fingerprint. Empty: it is down."""
        document = msgspec.json.encode(dict(adapters)).decode()
        with self._write() as c:
            values = {"adapters": document, "at": at.isoformat()}
            if not c.execute(update(_replicas).where(_replicas.c.url == url).values(values)).rowcount:
                c.execute(insert(_replicas).values(url=url, **values))

    def forget_replica(self, url: str) -> None:
        """Drop a replica that is no longer configured."""
        with self._write() as c:
            c.execute(_replicas.delete().where(_replicas.c.url == url))

    def fingerprints(self) -> dict[str, dict[str, str]]:
        """Per replica: adapter name → fingerprint, as last reported."""
        with self._read() as c:
            rows = c.execute(select(_replicas.c.url, _replicas.c.adapters)).all()
        return {row.url: msgspec.json.decode(row.adapters, type=dict[str, str]) for row in rows}

    def readiness(self) -> dict[str, frozenset[str]]:
        """Per replica: the adapters it may be sent requests for."""
        return {url: frozenset(names) for url, names in self.fingerprints().items()}

    def audit(self, subject: str | None = None, *, after: int = 0) -> Sequence[AuditEntry]:
        """Every change after number `after`, in order; or those of one adapter (or `traffic`) only."""
        query = select(_audit).where(_audit.c.number > after).order_by(_audit.c.number)
        if subject is not None:
            query = query.where(_audit.c.subject == subject)
        with self._read() as c:
            rows = c.execute(query).all()
        return [msgspec.convert(_plain(row), AuditEntry, strict=False) for row in rows]

    def recall(self, key: str) -> bytes | None:
        """What the controller kept under `key`."""
        with self._read() as c:
            row = c.execute(select(_memos.c.value).where(_memos.c.key == key)).first()
        return None if row is None else bytes(row.value)

    def remember(self, key: str, value: bytes) -> None:
        """Keep a small value for the controller's next start. One writer."""
        with self._write() as c:
            if not c.execute(update(_memos).where(_memos.c.key == key).values(value=value)).rowcount:
                c.execute(insert(_memos).values(key=key, value=value))

    def close(self) -> None:
        self._engine.dispose()

    @contextmanager
    def _read(self) -> Iterator[Connection]:
        with _translated(), database.reading(self._engine) as c:
            yield c

    @contextmanager
    def _write(self) -> Iterator[Connection]:
        with _translated(), database.writing(self._engine) as c:
            yield c


@contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except StateUnavailable as e:
        raise RegistryUnavailable(str(e)) from e


def _check_identity(adapter: Adapter) -> None:
    if not _NAME.fullmatch(adapter.name) or not adapter.name.endswith(adapter.sha256[:8]):
        raise InvalidAdapter(
            f"adapter name {adapter.name!r}: lower-case letters, digits, '.', '_' and '-', at most 120, "
            f"ending in the first 8 hex digits of its sha256 ({adapter.sha256[:8]})"
        )
    if len(adapter.sha256) != 64 or not Path(adapter.path).is_absolute():
        raise InvalidAdapter(
            f"{adapter.name}: needs a full sha256 and an absolute path, got {adapter.path!r}"
        )


def _flags(c: Connection) -> dict[str, str]:
    """Found anew each time: an adapter may be registered after its snapshot was erased."""
    erased = {row.snapshot: row.at[:10] for row in c.execute(select(_erased))}
    if not erased:
        return {}
    adapters = [_adapter(row) for row in c.execute(select(_adapters))]
    return {
        name: "learned from " + ", ".join(f"{s}, erased on {erased[s]}" for s in taught if s in erased)
        for name, taught in learned_from(adapters).items()
        if not erased.keys().isdisjoint(taught)
    }


def _transition(c: Connection, change: Change, by: str, at: datetime) -> None:
    known = _locked(c, change.name, change.revision)
    if change.to not in TRANSITIONS[known.state]:
        allowed = ", ".join(sorted(TRANSITIONS[known.state])) or "nothing"
        raise TransitionRefused(f"{change.name} is {known.state}: it can become {allowed}, not {change.to}")
    _move(c, known, change, by, at, changed_at=at)


def _locked(c: Connection, name: str, revision: int) -> Adapter:
    row = c.execute(select(_adapters).where(_adapters.c.name == name).with_for_update()).first()
    if row is None:
        raise UnknownAdapter(f"no adapter named {name!r} is registered")
    known = _adapter(row)
    if known.revision != revision:
        raise RevisionConflict(f"{name} is at revision {known.revision} ({known.state}), not {revision}")
    return known


def _move(
    c: Connection, known: Adapter, change: Change, by: str, at: datetime, *, changed_at: datetime
) -> None:
    """The audit row, then its effect."""
    _record(c, at, by, known.name, known.state, change.to, known.revision + 1, change.reason)
    values: dict[str, Any] = {
        "state": change.to.value,
        "revision": known.revision + 1,
        "reason": change.reason,
        "changed_at": changed_at.isoformat(),
    }
    if change.report is not None:
        values["report"] = evaluation.encode(change.report).decode()
    c.execute(update(_adapters).where(_adapters.c.name == known.name).values(values))


def _set_traffic(
    c: Connection, table: TrafficTable, expected: int, by: str, reason: str, at: datetime
) -> None:
    row = c.execute(select(_traffic).with_for_update()).first()
    current = 0 if row is None else row.revision
    if current != expected:
        raise RevisionConflict(f"the traffic table is at revision {current}, not {expected}: read it again")
    document = msgspec.json.encode(table).decode()
    before = "" if row is None else row.document
    _record(c, at, by, "traffic", before, document, table.revision, reason)
    values = {"revision": table.revision, "document": document}
    c.execute(insert(_traffic).values(id=1, **values) if row is None else update(_traffic).values(values))


def _record(
    c: Connection, at: datetime, by: str, subject: str, before: str, after: str, revision: int, reason: str
) -> None:
    entry = {"before": before, "after": after, "revision": revision, "reason": reason}
    c.execute(insert(_audit).values(at=at.isoformat(), by=by, subject=subject, **entry))


def _row(adapter: Adapter) -> dict[str, Any]:
    return {
        **msgspec.structs.asdict(adapter),
        "state": adapter.state.value,
        "report": None if adapter.report is None else evaluation.encode(adapter.report).decode(),
        "created_at": adapter.created_at.isoformat(),
        "changed_at": adapter.changed_at.isoformat(),
    }


def _adapter(row: Any) -> Adapter:
    values = _plain(row)
    if values["report"] is not None:
        values["report"] = evaluation.decode(values["report"])
    return msgspec.convert(values, Adapter, strict=False)


def _plain(row: Any) -> dict[str, Any]:
    """Column name → value; SQLAlchemy's own keys are a subclass of str, which msgspec refuses."""
    return {str.__str__(name): value for name, value in zip(row._fields, row, strict=True)}
