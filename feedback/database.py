"""The state database, SQLite or PostgreSQL: how its pipeline, its registry and its API keys connect to it."""

import re
import sqlite3
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from feedback.errors import StateUnavailable

_TIMEOUT_S = 30.0
_LOOK_AGAIN_S = 0.02
_CACHE_KIB = 16_384
"""Of a transaction whose pages do not fit into it SQLite writes many twice; its own default is 2000."""
_CREATE_LOCK = 0x7261746368657400
"""Advisory lock of PostgreSQL: processes that start together make the tables one after another."""
_WRITES = "ratchet_writes"


def connect(url: str, *tables: sa.MetaData, durable: bool = True) -> sa.Engine:
    """An engine for the database, all `tables` made if need be.

    `durable`: a commit outlives a power failure; without it SQLite may lose the last few.
    Raises: StateUnavailable.
    """
    try:
        parsed = sa.make_url(url)
        if parsed.get_backend_name() == "sqlite":
            if parsed.database:
                Path(parsed.database).parent.mkdir(parents=True, exist_ok=True)
            # pysqlite's own transactions never cover reads: ours begin in `on_begin`
            engine = sa.create_engine(parsed, connect_args={"isolation_level": None, "timeout": _TIMEOUT_S})
            _configure_sqlite(engine, "FULL" if durable else "NORMAL")
        else:
            engine = sa.create_engine(parsed, pool_pre_ping=True, pool_timeout=_TIMEOUT_S)
    except (sa.exc.ArgumentError, sa.exc.NoSuchModuleError, ModuleNotFoundError, OSError) as e:
        raise StateUnavailable(f"cannot use state_url {_redacted(url)!r}: {e}") from e
    with writing(engine) as tx:
        if tx.dialect.name == "postgresql":
            tx.execute(sa.select(sa.func.pg_advisory_xact_lock(_CREATE_LOCK)))
        for made in tables:
            made.create_all(tx)
    return engine


@contextmanager
def writing(engine: sa.Engine) -> Iterator[sa.Connection]:
    """One transaction that writes; SQLite's writers queue up.

    Raises: StateUnavailable, and then nothing was written; sqlalchemy.exc.IntegrityError.
    """
    with _translated(engine), engine.execution_options(**{_WRITES: True}).begin() as tx:
        yield tx


@contextmanager
def reading(engine: sa.Engine) -> Iterator[sa.Connection]:
    """One transaction that sees a single moment of the state. Raises: StateUnavailable."""
    level = {} if engine.dialect.name == "sqlite" else {"isolation_level": "REPEATABLE READ"}
    with _translated(engine), engine.execution_options(**level).begin() as tx:
        yield tx


def scrub(engine: sa.Engine, *tables: sa.MetaData) -> None:
    """Rewrite the database's files without what was deleted from `tables`, else it stays in them for long.

    Waits for readers of older moments. Raises: StateUnavailable when they do not end in time.
    """
    if engine.dialect.name == "postgresql":
        with _translated(engine), engine.execution_options(isolation_level="AUTOCOMMIT").connect() as tx:
            for table in (table for made in tables for table in made.sorted_tables):
                tx.exec_driver_sql(f'VACUUM FULL "{table.name}"')
            return
    with _translated(engine), engine.connect() as tx:
        connection: Any = tx.connection.dbapi_connection
        try:
            scrub_sqlite(connection, time.monotonic() + _TIMEOUT_S)
        except sqlite3.OperationalError as e:
            raise StateUnavailable(
                f"the state database is in use, and was not rewritten: {e}; run it again"
            ) from e


def scrub_sqlite(connection: sqlite3.Connection, deadline_s: float) -> None:
    """Rewrite an SQLite file and empty its write-ahead log, outside of any transaction.

    Raises: sqlite3.OperationalError after `deadline_s` on the monotonic clock.
    """
    while True:
        try:
            connection.execute("VACUUM")
            (blocked, *_) = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
            if not blocked:
                return
            trouble = sqlite3.OperationalError("others still read what was there before")
        except sqlite3.OperationalError as e:
            if e.sqlite_errorcode & 0xFF not in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
                raise
            trouble = e
        if time.monotonic() > deadline_s:
            raise trouble
        time.sleep(_LOOK_AGAIN_S)


def insert(tx: sa.Connection, table: sa.Table) -> Any:
    """INSERT with an ON CONFLICT clause, which SQLite and PostgreSQL share and the standard lacks."""
    return (postgresql if tx.dialect.name == "postgresql" else sqlite).insert(table)


def insert_all(tx: sa.Connection, table: sa.Table, rows: Sequence[tuple[Any, ...]]) -> None:
    """Insert rows as tuples in the order of the table's columns; one whose key is there stays as it is.

    Past SQLAlchemy's parameters, which cost more than SQLite does.
    """
    if rows:
        mark = "?" if tx.dialect.name == "sqlite" else "%s"
        marks = ", ".join([mark] * len(table.columns))
        tx.exec_driver_sql(f'INSERT INTO "{table.name}" VALUES ({marks}) ON CONFLICT DO NOTHING', list(rows))


@contextmanager
def _translated(engine: sa.Engine) -> Iterator[None]:
    try:
        yield
    except sa.exc.IntegrityError:
        raise
    except (sa.exc.DBAPIError, sa.exc.TimeoutError) as e:
        reason = str(getattr(e, "orig", None) or e).strip().splitlines()[0]
        where = engine.url.render_as_string(hide_password=True)
        raise StateUnavailable(f"the state database {where} does not answer: {reason}") from e


def _configure_sqlite(engine: sa.Engine, synchronous: str) -> None:
    @sa.event.listens_for(engine, "connect")
    def on_connect(connection: Any, _: Any) -> None:
        _use_wal(connection)
        connection.execute(f"PRAGMA synchronous = {synchronous}")
        connection.execute(f"PRAGMA cache_size = {-_CACHE_KIB}")

    @sa.event.listens_for(engine, "begin")
    def on_begin(connection: sa.Connection) -> None:
        """Writers take the lock at once: a read lock upgraded later can deadlock, and SQLite gives up."""
        writes = connection.get_execution_options().get(_WRITES, False)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


def _use_wal(connection: Any) -> None:
    """SQLite does not wait for the lock here, so processes that open a new database at once must."""
    deadline = time.monotonic() + _TIMEOUT_S
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.OperationalError as e:
            if e.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                raise
            time.sleep(_LOOK_AGAIN_S)


def _redacted(url: str) -> str:
    return re.sub(r"://[^@/]*@", "://…@", url)
