"""The records store: metadata that must survive, in SQLite by default, in PostgreSQL where one is shared."""

from __future__ import annotations

import sqlite3
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, cast

import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.exc import ArgumentError, DatabaseError, NoSuchModuleError
from sqlalchemy.pool import ConnectionPoolEntry

from tokenweir.core.errors import ConfigError, DiskFullError, MissingExtraError, RecordError

SCHEMES: Final = ("sqlite:///", "postgresql://")
BUSY_TIMEOUT_MS: Final = 30_000
_WRITES: Final = "tokenweir_writes"
_LOCK: Final = 0x7765_6972
"""PostgreSQL's advisory lock that a writing transaction holds."""


def records_engine(url: str) -> sa.Engine:
    """Return an engine for a records URL, ``sqlite:///PATH`` or ``postgresql://…``.

    The directory of a SQLite file is created. Connections to it use WAL, check foreign keys and wait up to
    ``BUSY_TIMEOUT_MS`` for another writer. Transactions begin as :func:`writing` says.

    Raises:
        ConfigError: the URL is malformed or its scheme unknown.
        MissingExtraError: the driver of that database is not installed.
        RecordError: the directory of the file cannot be made.
    """
    try:
        parsed = sa.make_url(url)
    except ArgumentError as error:
        raise ConfigError(
            f"the records URL {url!r} is malformed", mend=f"write {' or '.join(SCHEMES)}…"
        ) from error
    if parsed.drivername == "sqlite":
        return _sqlite(parsed)
    if parsed.drivername in {"postgresql", "postgresql+psycopg"}:
        return _postgresql(parsed.set(drivername="postgresql+psycopg"))
    raise ConfigError(
        f"no records store has the scheme {parsed.drivername!r}", mend=f"use one of {', '.join(SCHEMES)}"
    )


def absent_file(url: str) -> Path | None:
    """Return the SQLite file that a records URL names and that is not there; ``None`` for every other URL."""
    try:
        parsed = sa.make_url(url)
    except ArgumentError:
        # Whoever opens it tells what is wrong with it.
        return None
    if parsed.drivername != "sqlite" or not parsed.database or parsed.database == ":memory:":
        return None
    path = Path(parsed.database).expanduser()
    return None if path.exists() else path


@contextmanager
def reading(engine: sa.Engine) -> Generator[sa.Connection]:
    """Give a connection for a transaction that reads.

    Raises:
        RecordError: the store cannot be used.
    """
    with _explained(engine), engine.connect() as connection:
        yield connection


@contextmanager
def writing(engine: sa.Engine) -> Generator[sa.Connection]:
    """Give a connection for one transaction that writes, alone: committed at the end, undone by an error.

    It takes the store's write lock when it begins. One that has read before it finds the lock taken could not
    wait for it without losing its snapshot.

    Raises:
        RecordError: the store cannot be used.
        DiskFullError: no room is left for it.
    """
    with _explained(engine), engine.execution_options(**{_WRITES: True}).begin() as connection:
        yield connection


@contextmanager
def _explained(engine: sa.Engine) -> Generator[None]:
    try:
        yield
    except DatabaseError as error:
        name = engine.url.render_as_string(hide_password=True)
        reason = " ".join(str(error.orig).split())
        if "disk is full" in reason:
            raise DiskFullError(
                f"no room is left for the database {name!r}",
                mend="free some space, or name another database under [stores]",
            ) from error
        raise RecordError(
            f"the database {name!r} cannot be used: {reason}",
            mend="see that it can be reached and written, or name another under [stores]",
        ) from error


def _sqlite(url: sa.URL) -> sa.Engine:
    if url.database and url.database != ":memory:":
        path = Path(url.database).expanduser()
        try:
            # Prompts and who uses what are for their owner's eyes; SQLite's other files follow this one.
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            if not path.exists():
                path.touch(mode=0o600)
        except OSError as error:
            raise RecordError(
                f"the database {str(path)!r} cannot be made: {error.strerror}",
                mend="name a place that can be written under [stores]",
            ) from error
        url = url.set(database=str(Path(url.database).expanduser()))
    engine = sa.create_engine(url, connect_args={"timeout": BUSY_TIMEOUT_MS / 1000})
    event.listen(engine, "connect", _prepare)
    event.listen(engine, "begin", _begin)
    return engine


def _prepare(connection: object, _entry: ConnectionPoolEntry) -> None:
    """Set up one SQLite connection; the driver leaves transactions to :func:`_begin`."""
    database = cast("sqlite3.Connection", connection)
    database.isolation_level = None
    database.execute("PRAGMA foreign_keys = ON")
    database.execute("PRAGMA synchronous = NORMAL")
    (mode,) = database.execute("PRAGMA journal_mode").fetchone()
    if mode not in {"wal", "memory"}:
        # Changing the mode needs the file alone and does not wait for it as a transaction does. A refusal
        # loses nothing: whoever has the file makes the change, or the next connection does.
        try:
            database.execute("PRAGMA journal_mode = WAL")
        except sqlite3.OperationalError as error:
            if error.sqlite_errorname not in {"SQLITE_BUSY", "SQLITE_LOCKED", "SQLITE_BUSY_RECOVERY"}:
                raise


def _begin(connection: sa.Connection) -> None:
    writes = bool(connection.get_execution_options().get(_WRITES))
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


def _postgresql(url: sa.URL) -> sa.Engine:
    try:
        engine = sa.create_engine(url)
    except (ModuleNotFoundError, NoSuchModuleError) as error:
        raise MissingExtraError(
            "a postgresql:// records store needs the driver 'psycopg', which is not installed",
            mend="pip install 'psycopg[binary]', or use sqlite:///PATH",
        ) from error
    event.listen(engine, "begin", _lock)
    return engine


def _lock(connection: sa.Connection) -> None:
    if connection.get_execution_options().get(_WRITES):
        connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_LOCK)))
