"""The data keys of end users in the state database, and who was erased: destroying a key erases a user.

Functions of a connection for whoever folds or erases; `KeyRing` for a process that seals single events.
"""

import threading
from collections.abc import Collection, Iterable
from contextlib import suppress
from datetime import UTC, datetime

import msgspec
import sqlalchemy as sa

from feedback import codec, database
from feedback.codec import Keys
from feedback.errors import KeyErased
from feedback.events import Event
from feedback.sealing import DataKey, fresh_key

CACHED_KEYS = 100_000
"""Keys that one process holds in memory, about 40 MB; then it starts anew."""
_CHUNK = 500

metadata = sa.MetaData()
_keys = sa.Table(
    "user_keys",
    metadata,
    sa.Column("key_id", sa.Text, primary_key=True),
    sa.Column("user", sa.Text, nullable=False, index=True),
    sa.Column("secret", sa.LargeBinary, comment="32 bytes; NULL since the user was erased"),
    sa.Column("made_at", sa.Text, nullable=False),
    sa.Column("erased_at", sa.Text),
)
_live = sa.Index(
    "user_keys_live",
    _keys.c.user,
    unique=True,
    sqlite_where=_keys.c.erased_at.is_(None),
    postgresql_where=_keys.c.erased_at.is_(None),
)
_erasures = sa.Table(
    "user_erasures",
    metadata,
    sa.Column("number", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("user", sa.Text, nullable=False, index=True),
    sa.Column("by", sa.Text, nullable=False),
    sa.Column("requested_at", sa.Text, nullable=False),
    sa.Column("finished_at", sa.Text),
)


class Erasure(msgspec.Struct, frozen=True, kw_only=True):
    """Who was erased, when and by whom. Until it is finished, some files may still hold their text."""

    number: int
    user: str
    by: str
    requested_at: datetime
    finished_at: datetime | None = None


def keys_of(tx: sa.Connection, key_ids: Collection[str]) -> Keys:
    """Those that this state knows; None for the erased.

    On PostgreSQL they stay as they are until the caller's transaction ends, so that what it derives from an
    event cannot outlive an erasure.
    """
    found: dict[str, DataKey | None] = {}
    ordered = list(key_ids)
    for start in range(0, len(ordered), _CHUNK):
        among = _keys.c.key_id.in_(ordered[start : start + _CHUNK])
        query = sa.select(_keys.c.key_id, _keys.c.secret).where(among).with_for_update(read=True)
        for key_id, secret in tx.execute(query):
            found[key_id] = None if secret is None else DataKey(key_id, secret)
    return found


def opened(tx: sa.Connection, raws: Iterable[bytes]) -> list[Event]:
    """Stored events, without those of users who were erased. Raises: CodecError, KeyUnknown."""
    written = [codec.read(raw) for raw in raws]
    keys = keys_of(tx, {w.key_id for w in written if w.key_id})
    events = []
    for one in written:
        with suppress(KeyErased):
            events.append(codec.opened(one, keys))
    return events


def obtain(tx: sa.Connection, user: str, now: datetime) -> DataKey:
    """The user's key, made if there is none."""
    query = sa.select(_keys.c.key_id, _keys.c.secret).where(_keys.c.user == user, _keys.c.erased_at.is_(None))
    row = tx.execute(query).first()
    if row is None:
        made = fresh_key()
        values = {"key_id": made.id, "user": user, "secret": made.secret, "made_at": now.isoformat()}
        tx.execute(database.insert(tx, _keys).on_conflict_do_nothing(), [values])
        row = tx.execute(query).one()  # another process may have been first
    return DataKey(row.key_id, row.secret)


def is_known(tx: sa.Connection, user: str) -> bool:
    """Whether there ever was a key of this user, or an erasure."""
    return any(
        tx.execute(sa.select(table.c.user).where(table.c.user == user).limit(1)).first()
        for table in (_keys, _erasures)
    )


def note_erasure(tx: sa.Connection, user: str, by: str, now: datetime) -> Erasure:
    """Write down that somebody is to be erased, before anything is done about it."""
    values = {"user": user, "by": by, "requested_at": now.isoformat()}
    number = tx.execute(sa.insert(_erasures).values(values).returning(_erasures.c.number)).scalar_one()
    return Erasure(number=number, user=user, by=by, requested_at=now)


def destroy(tx: sa.Connection, user: str, now: datetime, key_ids: Collection[str] | None = None) -> int:
    """Overwrite the user's keys, or those of the ids only; returns how many there were."""
    condition = sa.and_(_keys.c.user == user, _keys.c.erased_at.is_(None))
    if key_ids is not None:
        condition = sa.and_(condition, _keys.c.key_id.in_(list(key_ids)))
    gone = {"secret": None, "erased_at": now.isoformat()}
    return tx.execute(sa.update(_keys).where(condition).values(gone)).rowcount


def bury(tx: sa.Connection, user: str, now: datetime) -> DataKey:
    """A key that is destroyed from the start: what the caller seals under it, nobody ever opens."""
    key = fresh_key()
    at = now.isoformat()
    values = {"key_id": key.id, "user": user, "secret": None, "made_at": at, "erased_at": at}
    tx.execute(sa.insert(_keys).values(values))
    return key


def erased_keys(tx: sa.Connection, user: str) -> tuple[str, ...]:
    """Ids of the user's keys that are destroyed, in order."""
    query = sa.select(_keys.c.key_id).where(_keys.c.user == user, _keys.c.erased_at.is_not(None))
    return tuple(sorted(tx.scalars(query)))


def finish(tx: sa.Connection, erasure: Erasure, now: datetime) -> Erasure:
    """This erasure is done, and with it those of the same user that were begun before it."""
    begun = sa.and_(_erasures.c.user == erasure.user, _erasures.c.number <= erasure.number)
    done = sa.update(_erasures).where(begun, _erasures.c.finished_at.is_(None))
    tx.execute(done.values(finished_at=now.isoformat()))
    return msgspec.structs.replace(erasure, finished_at=now)


def erasures(tx: sa.Connection) -> list[Erasure]:
    """All of them, in the order in which they were asked for."""
    rows = tx.execute(sa.select(_erasures).order_by(_erasures.c.number))
    return [
        Erasure(
            number=row.number,
            user=row.user,
            by=row.by,
            requested_at=datetime.fromisoformat(row.requested_at),
            finished_at=datetime.fromisoformat(row.finished_at) if row.finished_at else None,
        )
        for row in rows
    ]


class KeyRing:
    """Keys in memory. Blocking but for `of`; safe to use from several threads."""

    def __init__(self, url: str) -> None:
        """Raises: StateUnavailable, as every method but `of` does."""
        self._engine = database.connect(url, metadata)
        self._lock = threading.Lock()
        self._by_user: dict[str, DataKey] = {}
        self._seen = 0

    def of(self, user: str) -> DataKey | None:
        """The user's key, if it is in memory."""
        return self._by_user.get(user)

    def obtain(self, user: str) -> DataKey:
        """The user's key, durably made if there is none."""
        with self._lock:  # so that `refresh` sees every key that was read before an erasure
            with database.writing(self._engine) as tx:
                key = obtain(tx, user, datetime.now(UTC))
            if len(self._by_user) >= CACHED_KEYS:
                self._by_user.clear()
            self._by_user[user] = key
            return key

    def decode(self, raw: bytes) -> Event:
        """Raises: KeyErased, KeyUnknown, CodecError."""
        written = codec.read(raw)
        if written.key_id is None:
            return codec.opened(written, {})
        cached = self._by_user.get(written.user)
        if cached is not None and cached.id == written.key_id:
            return codec.opened(written, {cached.id: cached})
        with database.reading(self._engine) as tx:
            keys = keys_of(tx, [written.key_id])
        return codec.opened(written, keys)

    def find(self, raw: bytes) -> Event | None:
        """As `decode`, but None for an event whose user was erased."""
        try:
            return self.decode(raw)
        except KeyErased:
            return None

    def refresh(self) -> None:
        """Forget the keys of users who were erased since the last time."""
        with self._lock:
            news = sa.select(_erasures.c.number, _erasures.c.user).where(_erasures.c.number > self._seen)
            with database.reading(self._engine) as tx:
                found = tx.execute(news).all()
            for number, user in found:
                self._by_user.pop(user, None)
                self._seen = max(self._seen, number)

    def close(self) -> None:
        self._engine.dispose()
