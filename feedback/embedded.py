"""The event log in one SQLite file: the default log and every gateway's outbox.

A table per topic, one partition (0), offsets without gaps; entries leave only from the front, when they
expire. Any number of processes may read and write the same file. Each process has one writer thread: whatever
waits while a commit is on its way to the disk goes into the next one together (group commit), so a thousand
waiting callers cost one fsync.
"""

import errno
import os
import sqlite3
import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import structlog
from prometheus_client import Counter, Histogram

from feedback.errors import LogError, LogFull, LogUnavailable
from feedback.eventlog import MAX_ENTRY_BYTES, MAX_READ_BYTES, Place, Position, Record, Share, Topic, Whole

COMMITS = Counter(
    "ratchet_feedback_log_commits_total",
    "Group commits (one fsync each) of the embedded log, by outcome",
    ["outcome"],
)
COMMIT_SECONDS = Histogram(
    "ratchet_feedback_log_commit_seconds",
    "Time of one group commit of the embedded log, seconds",
    buckets=(0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 1, 5),
)

FORMAT = 4
"""Version of the file's layout, kept in its `user_version`.

2: turns can be looked up by their key. 3: the topic `users`. 4: offsets outlive the
entries that expire."""
FIRST_TURN = f'SELECT value FROM "{Topic.TURNS}" WHERE key = ? ORDER BY offset LIMIT 1'

_EXPIRED = "expired"
"""Name of the cursor that stands where a topic begins."""
_END = (
    'SELECT max(coalesce((SELECT max(offset) + 1 FROM "{topic}"), 0),'
    f" coalesce((SELECT offset FROM cursors WHERE name = '{_EXPIRED}' AND topic = '{{topic}}'), 0))"
)
_GROUP = 1024
_CHECKPOINT_EVENTS = 2000
_LOOK_AGAIN_S = 0.01
_FULL = frozenset({"SQLITE_FULL", "SQLITE_IOERR_SHMSIZE"})

_log = structlog.get_logger()

_Offsets = dict[Topic, dict[str, int]]
"""Where the entries of a group lie: topic → event id → offset."""


class _Entry(msgspec.Struct, frozen=True, eq=False):
    topic: Topic
    key: str
    event_id: str
    value: bytes
    appended_at: float
    future: "Future[Position | None]"


class _Advance(msgspec.Struct, frozen=True, eq=False):
    name: str
    topic: Topic
    offset: int
    future: "Future[None]"


class Backlog(msgspec.Struct, frozen=True):
    """What lies in a topic beyond a cursor."""

    events: int
    oldest_at: datetime | None
    """When the first of them was appended; None when there is none."""


class EmbeddedLog:
    """`feedback.eventlog.EventLog` on the SQLite file `path`.

    Nothing is opened before it is used, so a log out of reach fails futures and reads, never the constructor.

    Args: `lock_timeout_s`, how long another process may hold the file until a call fails with LogUnavailable;
    `max_pending`, entries that may wait for the disk until further ones are refused; `clock`, Unix seconds.
    """

    def __init__(
        self,
        path: Path,
        *,
        lock_timeout_s: float = 5.0,
        max_pending: int = 100_000,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._path = path
        self._lock_timeout_s = lock_timeout_s
        self._max_pending = max_pending
        self._clock = clock
        self._queue: deque[_Entry | _Advance] = deque()
        self._queued = threading.Condition()
        self._reading = threading.Lock()
        self._reader: sqlite3.Connection | None = None
        self._closed = False
        self._writer = threading.Thread(target=self._write, name="embedded-log", daemon=True)
        self._writer.start()

    def append(self, topic: Topic, key: str, event_id: str, value: bytes) -> "Future[Position | None]":
        entry = _Entry(topic, key, event_id, value, self._clock(), Future())
        self._submit(entry, _fault(entry))
        return entry.future

    def partitions(self, topic: Topic) -> Sequence[int]:
        return (0,)

    def read(
        self, topic: Topic, partition: int, offset: int, *, limit: int = 500, timeout_s: float = 0.0
    ) -> list[Record]:
        _check(topic, partition)
        deadline = time.monotonic() + timeout_s
        while True:
            rows = self._query(
                f'SELECT offset, event_id, key, value FROM "{topic}"'
                " WHERE offset >= ? ORDER BY offset LIMIT ?",
                (offset, limit),
                take=_some,
            )
            left_s = deadline - time.monotonic()
            if rows or left_s <= 0:
                return [
                    Record(Position(topic, 0, at), key, value, event_id) for at, event_id, key, value in rows
                ]
            time.sleep(
                min(left_s, _LOOK_AGAIN_S)
            )  # looking costs 20 µs, and writers are mostly other processes

    def end(self, topic: Topic, partition: int) -> int:
        _check(topic, partition)
        return int(self._query(_END.format(topic=topic))[0][0])

    def expire(self, topic: Topic, partition: int, *, before: datetime, below: int) -> int:
        """As the protocol says; what was deleted is overwritten. Others can append in between."""
        _check(topic, partition)
        try:
            with closing(_open(self._path, self._lock_timeout_s)) as connection:
                connection.execute("PRAGMA secure_delete=ON")
                begin = _first_kept(connection, topic, before, min(below, _end(connection, topic)))
                while _expired(connection, topic, begin):
                    connection.execute("PRAGMA wal_checkpoint(PASSIVE)")
                return begin
        except (sqlite3.Error, OSError) as e:
            raise _translated(e, self._path) from e

    def ends(self, places: Collection[Place]) -> Mapping[Place, int]:
        return {(topic, partition): self.end(topic, partition) for topic, partition in places}

    def share(self, group: str, topics: Collection[Topic]) -> Share:
        return Whole([0])

    def find(self, topic: Topic, event_id: str) -> bytes | None:
        """The value appended under `event_id`, if there is one."""
        rows = self._query(f'SELECT value FROM "{topic}" WHERE event_id = ?', (event_id,))
        return bytes(rows[0][0]) if rows else None

    def first_turn(self, key: str) -> bytes | None:
        """The value of the first turn under `key`, if there is one: a look-up in an index, not a scan."""
        rows = self._query(FIRST_TURN, (key,))
        return bytes(rows[0][0]) if rows else None

    def cursor(self, name: str, topic: Topic) -> int:
        """The offset that the reader called `name` goes on from; 0 at first."""
        rows = self._query("SELECT offset FROM cursors WHERE name = ? AND topic = ?", (name, topic))
        return int(rows[0][0]) if rows else 0

    def advance(self, name: str, topic: Topic, offset: int) -> "Future[None]":
        """Move a cursor forward, durably; it never moves back."""
        work = _Advance(name, topic, offset, Future())
        self._submit(work, None)
        return work.future

    def backlog(self, name: str, topic: Topic) -> Backlog:
        """What the reader called `name` has not passed yet."""
        cursor = self.cursor(name, topic)
        rows = self._query(
            f'SELECT appended_at FROM "{topic}" WHERE offset >= ? ORDER BY offset LIMIT 1', (cursor,)
        )
        if not rows:
            return Backlog(0, None)
        return Backlog(self.end(topic, 0) - cursor, datetime.fromtimestamp(rows[0][0], UTC))

    def close(self) -> None:
        with self._queued:
            self._closed = True
            self._queued.notify()
        self._writer.join()
        with self._reading:
            self._drop_reader()

    def _query(
        self, sql: str, args: Sequence[object] = (), take: Callable[[Iterable[Any]], list[Any]] = list
    ) -> list[Any]:
        with self._reading:
            if self._closed:
                raise LogUnavailable(f"the log {self._path} is closed")
            try:
                if self._reader is None:
                    self._reader = _open(self._path, self._lock_timeout_s)
                with closing(self._reader.execute(sql, args)) as rows:
                    return take(rows)
            except (sqlite3.Error, OSError) as e:
                self._drop_reader()
                raise _translated(e, self._path) from e

    def _drop_reader(self) -> None:
        if self._reader is not None:
            self._reader.close()
            self._reader = None

    def _submit(self, work: _Entry | _Advance, refusal: LogError | None) -> None:
        """Queue `work`, or fail its future at once."""
        work.future.set_running_or_notify_cancel()  # a caller that goes away does not take its entry along
        with self._queued:
            if self._closed:
                refusal = LogUnavailable(f"the log {self._path} is closed")
            elif len(self._queue) >= self._max_pending:
                refusal = LogUnavailable(f"{len(self._queue)} entries already wait for {self._path}")
            if refusal is None:
                self._queue.append(work)
                self._queued.notify()
        if refusal is not None:
            work.future.set_exception(refusal)

    def _take(self) -> list[_Entry | _Advance]:
        """The next group; waits for one, and is empty once the log is closed and drained."""
        with self._queued:
            while not self._queue and not self._closed:
                self._queued.wait()
            return [self._queue.popleft() for _ in range(min(len(self._queue), _GROUP))]

    def _write(self) -> None:
        """The writer thread."""
        file = _Writing(self._path, self._lock_timeout_s)
        group: list[_Entry | _Advance] = []
        try:
            while group := self._take():
                _settle(group, file.commit(group))
                file.checkpoint_when_due()
        finally:  # empty unless a defect ended the thread: then nobody may wait for ever
            with self._queued:
                self._closed = True
                left = [*group, *self._queue]
            _settle(
                [work for work in left if not work.future.done()], LogUnavailable("the log's writer stopped")
            )
            file.close()


def _some(rows: Iterable[tuple[int, str, str, bytes]]) -> list[tuple[int, str, str, bytes]]:
    """As many as fit into memory; the value is the last column."""
    taken, size = [], 0
    for row in rows:
        taken.append(row)
        size += len(row[-1])
        if size >= MAX_READ_BYTES:
            break
    return taken


def rewrite(
    path: Path,
    topic: Topic,
    holding: bytes,
    change: Callable[[bytes], bytes | None],
    *,
    timeout_s: float = 30.0,
) -> int:
    """Put `change(value)` in the place of every value of `topic` that holds these bytes and that it does not
    leave alone (None), and wipe what was there; returns how many.

    The one thing that may alter an entry: to erase a person from a log that was written before its entries
    were sealed. Raises: LogUnavailable when others read what was there for longer than `timeout_s`.
    """
    deadline_s = time.monotonic() + timeout_s
    try:
        with closing(_open(path, timeout_s)) as connection:
            connection.execute("PRAGMA secure_delete=ON")
            connection.execute("BEGIN IMMEDIATE")
            rows = connection.execute(
                f'SELECT offset, value FROM "{topic}" WHERE instr(value, ?) > 0', (holding,)
            )
            changed = [(new, at) for at, value in rows if (new := change(bytes(value))) is not None]
            connection.executemany(f'UPDATE "{topic}" SET value = ? WHERE offset = ?', changed)
            connection.execute("COMMIT")
            if changed:
                _empty_write_ahead_log(connection, deadline_s)
            return len(changed)
    except (sqlite3.Error, OSError) as e:
        raise _translated(e, path) from e


def _empty_write_ahead_log(connection: sqlite3.Connection, deadline_s: float) -> None:
    while connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]:
        if time.monotonic() > deadline_s:
            raise sqlite3.OperationalError("others still read what was there before: run it again")
        time.sleep(_LOOK_AGAIN_S)


def _end(connection: sqlite3.Connection, topic: Topic) -> int:
    return int(connection.execute(_END.format(topic=topic)).fetchone()[0])


def _first_kept(connection: sqlite3.Connection, topic: Topic, before: datetime, below: int) -> int:
    """The offset of the first entry that is not to expire; `below` where all before it are."""
    young = f'SELECT min(offset) FROM "{topic}" WHERE appended_at >= ?'
    (found,) = connection.execute(young, (before.timestamp(),)).fetchone()
    return below if found is None else min(below, int(found))


def _expired(connection: sqlite3.Connection, topic: Topic, begin: int) -> int:
    """Delete some of the entries under `begin`, so few that no append waits for long; returns how many.

    The last offset outlives its entry: it is kept as a cursor.
    """
    connection.execute("BEGIN IMMEDIATE")
    _advance(connection, _Advance(_EXPIRED, topic, begin, Future()))
    oldest = f'SELECT offset FROM "{topic}" WHERE offset < ? ORDER BY offset LIMIT {_GROUP}'
    gone = connection.execute(f'DELETE FROM "{topic}" WHERE offset IN ({oldest})', (begin,)).rowcount
    connection.execute("COMMIT")
    return gone


class _Writing:
    """The writer thread's side of the file. What goes wrong with the file comes back as outcomes."""

    def __init__(self, path: Path, lock_timeout_s: float) -> None:
        self._path = path
        self._lock_timeout_s = lock_timeout_s
        self._connection: sqlite3.Connection | None = None
        self._identity: tuple[int, int] | None = None
        self._since_checkpoint = 0

    def commit(self, group: Sequence[_Entry | _Advance]) -> "_Offsets | LogError":
        """Everything in one transaction: where each entry lies, or why nothing was written."""
        started = time.perf_counter()
        try:
            offsets = _transact(self._connected(), group)
        except (sqlite3.Error, OSError) as e:
            error = _translated(e, self._path)
            COMMITS.labels("full" if isinstance(error, LogFull) else "unavailable").inc()
            self.close()  # which rolls back; after a failed fsync only a fresh connection knows what is true
            return error
        COMMITS.labels("durable").inc()
        COMMIT_SECONDS.observe(time.perf_counter() - started)
        self._since_checkpoint += len(group)
        return offsets

    def checkpoint_when_due(self) -> None:
        """Copy the write-ahead log into the database: between groups, so that no caller waits for it.

        SQLite's automatic checkpoints are off. A FULL one holds the write lock: no other process can commit
        meanwhile, which in releases before 3.51.3 could corrupt the file (SQLite's "WAL-reset bug").
        """
        if self._connection is None or self._since_checkpoint < _CHECKPOINT_EVENTS:
            return
        self._since_checkpoint = 0
        try:
            self._connection.execute("PRAGMA wal_checkpoint(FULL)").fetchall()
        except (
            sqlite3.Error
        ) as e:  # nothing is lost: the entries stay in the write-ahead log until the next one
            _log.warning("log_checkpoint_failed", path=str(self._path), error=str(e))

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _connected(self) -> sqlite3.Connection:
        """A connection to the file that was there at first; what goes into a deleted one is lost."""
        if self._identity is not None:
            found = os.stat(self._path)
            if (found.st_dev, found.st_ino) != self._identity:
                raise FileNotFoundError(f"{self._path} was replaced by another file; restart to use that one")
        if self._connection is None:
            self._connection = _open(self._path, self._lock_timeout_s)
            found = os.stat(self._path)
            self._identity = (found.st_dev, found.st_ino)
        return self._connection


def _open(path: Path, lock_timeout_s: float) -> sqlite3.Connection:
    """A connection to the log in `path`, which is made if it is not there. Raises: sqlite3.Error, OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    connection = sqlite3.connect(path, timeout=lock_timeout_s, isolation_level=None, check_same_thread=False)
    try:
        connection.execute("PRAGMA synchronous=FULL")
        connection.execute("PRAGMA wal_autocheckpoint=0")
        _prepare(connection, time.monotonic() + lock_timeout_s)
    except sqlite3.Error:
        connection.close()
        raise
    return connection


def _prepare(connection: sqlite3.Connection, deadline_s: float) -> None:
    """Check the format; lay out a new file, or one of an earlier release.

    SQLite does not wait for others that do so: we do.
    """
    while True:
        try:
            (found,) = connection.execute("PRAGMA user_version").fetchone()
            if found > FORMAT:
                raise sqlite3.DatabaseError(
                    f"its format is {found}, the latest known here is {FORMAT}: upgrade"
                )
            if found < FORMAT:
                _lay_out(connection)
            return
        except sqlite3.OperationalError as e:
            if e.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > deadline_s:
                raise
            time.sleep(_LOOK_AGAIN_S)


def _lay_out(connection: sqlite3.Connection) -> None:
    """The tables and the index, in one transaction: several processes may come here at once."""
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("BEGIN IMMEDIATE")
    for topic in Topic:
        connection.execute(
            f'CREATE TABLE IF NOT EXISTS "{topic}" ('
            "offset INTEGER PRIMARY KEY, event_id TEXT NOT NULL UNIQUE, key TEXT NOT NULL,"
            " value BLOB NOT NULL, appended_at REAL NOT NULL)"
        )
    connection.execute(
        "CREATE TABLE IF NOT EXISTS cursors (name TEXT, topic TEXT, offset INTEGER NOT NULL,"
        " PRIMARY KEY (name, topic)) WITHOUT ROWID"
    )
    connection.execute(f'CREATE INDEX IF NOT EXISTS turns_by_key ON "{Topic.TURNS}" (key)')
    connection.execute(f"PRAGMA user_version={FORMAT}")
    connection.execute("COMMIT")


def _transact(connection: sqlite3.Connection, group: Sequence[_Entry | _Advance]) -> _Offsets:
    """A few statements for the whole group: each gives up the interpreter lock and waits to have it back."""
    offsets: _Offsets = {}
    connection.execute("BEGIN IMMEDIATE")
    for topic in Topic:
        if entries := [w for w in group if isinstance(w, _Entry) and w.topic == topic]:
            offsets[topic] = _insert(connection, topic, entries)
    for work in group:
        if isinstance(work, _Advance):
            _advance(connection, work)
    connection.execute("COMMIT")
    return offsets


def _insert(connection: sqlite3.Connection, topic: Topic, entries: Sequence[_Entry]) -> dict[str, int]:
    """The offset of every event id; of events that are in the log already, where they are."""
    firsts: dict[str, _Entry] = {}
    for entry in entries:
        firsts.setdefault(entry.event_id, entry)
    marks = ",".join("?" * len(firsts))
    offsets: dict[str, int] = dict(
        connection.execute(
            f'SELECT event_id, offset FROM "{topic}" WHERE event_id IN ({marks})', tuple(firsts)
        ).fetchall()
    )
    new = [e for e in firsts.values() if e.event_id not in offsets]
    if new:
        end = _end(connection, topic)
        rows = [(end + n, e.event_id, e.key, e.value, e.appended_at) for n, e in enumerate(new)]
        marks = ",".join(["(?, ?, ?, ?, ?)"] * len(rows))
        connection.execute(f'INSERT INTO "{topic}" VALUES {marks}', [field for row in rows for field in row])
        offsets |= {row[1]: row[0] for row in rows}
    return offsets


def _advance(connection: sqlite3.Connection, work: _Advance) -> None:
    connection.execute(
        "INSERT INTO cursors VALUES (?, ?, ?)"
        " ON CONFLICT DO UPDATE SET offset = max(offset, excluded.offset)",
        (work.name, work.topic, work.offset),
    )


def _settle(group: Sequence[_Entry | _Advance], outcome: _Offsets | LogError) -> None:
    for work in group:
        if isinstance(outcome, LogError):
            work.future.set_exception(outcome)
        elif isinstance(work, _Entry):
            work.future.set_result(Position(work.topic, 0, outcome[work.topic][work.event_id]))
        else:
            work.future.set_result(None)


def _fault(entry: _Entry) -> LogError | None:
    """What is wrong with the entry itself: found before it can spoil the transaction of others."""
    if len(entry.value) > MAX_ENTRY_BYTES:
        said = f"{len(entry.value)} bytes, the limit is {MAX_ENTRY_BYTES}"
    elif not (entry.key.isascii() or _encodable(entry.key)):
        said = f"its key {entry.key!r} is no valid text"
    elif not (entry.event_id.isascii() or _encodable(entry.event_id)):
        said = "its id is no valid text"
    else:
        return None
    return LogError(f"{entry.topic} entry {entry.event_id!r} cannot be stored: {said}")


def _encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _translated(error: sqlite3.Error | OSError, path: Path) -> LogError:
    if isinstance(error, OSError):
        full, code = error.errno in (errno.ENOSPC, errno.EDQUOT), ""
    else:
        code = getattr(error, "sqlite_errorname", "")
        full = code in _FULL
    if full:
        return LogFull(
            f"no space left for the log {path}: nothing was written; it goes on when there is space"
        )
    return LogUnavailable(f"the log {path} is out of reach: {error} {code}".rstrip())


def _check(topic: Topic, partition: int) -> None:
    if partition != 0:
        raise LogError(f"{topic} has no partition {partition}, only 0")
