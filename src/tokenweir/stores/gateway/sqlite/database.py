"""One SQLite file with one writing thread: whatever waits is committed together, and reads go beside it.

A group commit is one transaction for all that gathered while the last one was being written, so the cost of
making something durable is shared by those who wait for it, and nobody waits for a timer.
"""

from __future__ import annotations

import asyncio
import fcntl
import queue
import sqlite3
import threading
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO, Final, Generic, TypeVar, cast

import sqlalchemy as sa

from tokenweir.core.errors import ConfigError, DiskFullError, StoreHeldError, UnavailableError, WeirError
from tokenweir.stores.gateway.schema import BRANCH, SCRIPTS
from tokenweir.stores.migrate import upgrade
from tokenweir.stores.records import BUSY_TIMEOUT_MS, records_engine

T = TypeVar("T")
Work = Callable[[sqlite3.Connection], T]

_GROUP: Final = 1024
"""The most pieces of work in one transaction."""
_WAITING: Final = 65_536
"""The most pieces of work that may wait."""


class _Piece(Generic[T]):
    """Work that a thread does for a coroutine."""

    __slots__ = ("durable", "future", "loop", "outcome", "work")

    def __init__(self, work: Work[T], *, durable: bool) -> None:
        self.work = work
        self.durable = durable
        self.loop = asyncio.get_running_loop()
        self.future: asyncio.Future[T] = self.loop.create_future()
        self.outcome: T | Exception | None = None

    def do(self, connection: sqlite3.Connection) -> None:
        """Work, and keep what came of it."""
        self.outcome = self.work(connection)

    def tell(self) -> None:
        """Resolve the future; runs in its loop."""
        if self.future.done():
            return
        if isinstance(self.outcome, Exception):
            self.future.set_exception(self.outcome)
        else:
            self.future.set_result(cast("T", self.outcome))


class _Thread:
    """A thread with a connection of its own, fed through a bounded queue."""

    def __init__(self, path: Path, *, writes: bool, ended: Callable[[bool], None]) -> None:
        self._path = path
        self._writes = writes
        self._ended = ended
        self._pieces: queue.SimpleQueue[_Piece[object] | None] = queue.SimpleQueue()
        self._synchronous = ""
        self._opened: tuple[int, int] | None = None
        self._thread = threading.Thread(
            target=self._run, name="gateway-db-writer" if writes else "gateway-db-reader", daemon=True
        )
        self._thread.start()

    def post(self, work: Work[T], *, durable: bool = False) -> asyncio.Future[T]:
        """Have work done; the future is for what it returns."""
        if self._pieces.qsize() >= _WAITING:
            raise UnavailableError(
                f"{_WAITING} pieces of work wait for the database {str(self._path)!r}",
                mend="try again shortly; the disk is slower than what is asked of it",
            )
        piece = _Piece(work, durable=durable)
        self._pieces.put(cast("_Piece[object]", piece))
        return piece.future

    def close(self) -> None:
        """Finish what waits and end."""
        self._pieces.put(None)
        self._thread.join()

    def _run(self) -> None:
        connection = sqlite3.connect(self._path, timeout=BUSY_TIMEOUT_MS / 1000, isolation_level=None)
        try:
            self._opened = _identity(self._path)
            connection.execute("PRAGMA cache_size = -16384")
            if not self._writes:
                connection.execute("PRAGMA query_only = ON")
            while group := self._gather():
                self._commit(connection, group)
                _tell(group)
        finally:
            connection.close()

    def _gather(self) -> list[_Piece[object]]:
        """Wait for a piece of work and take what waits behind it; empty at the end."""
        first = self._pieces.get()
        group: list[_Piece[object]] = []
        while first is not None:
            group.append(first)
            if len(group) == _GROUP or self._pieces.empty():
                return group
            first = self._pieces.get()
        # The end was asked for: what came before it is still done.
        if group:
            self._pieces.put(None)
        return group

    def _commit(self, connection: sqlite3.Connection, group: list[_Piece[object]]) -> None:
        try:
            self._transact(connection, group)
        except Exception as failure:  # noqa: BLE001 - it is told to whoever asked for the work
            if len(group) == 1:
                group[0].outcome = _explained(failure, self._path)
                return
            # One piece spoils the transaction; alone, the others succeed.
            for piece in group:
                self._commit(connection, [piece])

    def _transact(self, connection: sqlite3.Connection, group: list[_Piece[object]]) -> None:
        if self._writes:
            self._need_file()
            self._set_durability("FULL" if any(piece.durable for piece in group) else "NORMAL", connection)
        connection.execute("BEGIN IMMEDIATE" if self._writes else "BEGIN")
        try:
            for piece in group:
                piece.do(connection)
            connection.execute("COMMIT")
        except BaseException:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            self._ended(False)  # noqa: FBT003 - its one argument
            raise
        self._ended(True)  # noqa: FBT003 - its one argument

    def _need_file(self) -> None:
        """Refuse to write to a file that is not there any more: it would take everything, and keep nothing."""
        if _identity(self._path) != self._opened:
            raise UnavailableError(
                f"the database {str(self._path)!r} was removed or replaced while it was open",
                mend="put it back where it was, or start the gateway anew",
            )

    def _set_durability(self, wanted: str, connection: sqlite3.Connection) -> None:
        if wanted != self._synchronous:
            connection.execute(f"PRAGMA synchronous = {wanted}")
            self._synchronous = wanted


def _tell(group: list[_Piece[object]]) -> None:
    """Resolve the futures of a group, with one wake-up for each loop."""
    by_loop: dict[asyncio.AbstractEventLoop, list[_Piece[object]]] = {}
    for piece in group:
        by_loop.setdefault(piece.loop, []).append(piece)
    for loop, pieces in by_loop.items():
        try:
            loop.call_soon_threadsafe(_tell_all, pieces)
        except RuntimeError:
            # The loop is closed: nobody waits any more.
            continue


def _tell_all(pieces: list[_Piece[object]]) -> None:
    for piece in pieces:
        piece.tell()


def _explained(failure: Exception, path: Path) -> Exception:
    if isinstance(failure, WeirError) or not isinstance(failure, sqlite3.Error):
        return failure
    if "disk is full" in str(failure):
        return DiskFullError(f"no room is left for {str(path)!r}", mend="free some space")
    return UnavailableError(
        f"the database {str(path)!r} cannot be used: {failure}", mend="see that the file can be written"
    )


def _identity(path: Path) -> tuple[int, int] | None:
    """Return what tells one file from another under the same name; ``None``: there is none."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _lock(path: Path) -> BinaryIO:
    """Take the file's lock: counters are kept in memory, so that a second writing process would miscount."""
    place = path.with_name(f"{path.name}.lock")
    file = place.open("ab")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise StoreHeldError(
            f"another process has the gateway's database {str(path)!r} open",
            mend="stop it, or set another with WEIR_HOME or stores.gateway",
        ) from None
    return file


class Database:
    """The gateway's SQLite file. ``write`` is serial; ``read`` sees what was committed before it was called.

    One process writes to a file; another that tries is told so. Without ``writes`` it is only read, beside the writer.
    """

    def __init__(self, url: str, *, writes: bool = True) -> None:
        """Open ``sqlite:///PATH`` and bring its tables to the newest revision. Raises ConfigError, RecordError."""
        engine = records_engine(url)
        name = sa.make_url(url).database
        if not url.startswith("sqlite:///") or not name or name == ":memory:":
            raise ConfigError(f"{url!r} names no SQLite file", mend="write sqlite:///PATH")
        self.path = Path(name).expanduser()
        self._lock = _lock(self.path) if writes else None
        try:
            upgrade(engine, scripts=SCRIPTS, branch=BRANCH)
        finally:
            engine.dispose()
        self._watchers: list[Callable[[bool], None]] = []
        self._writer = _Thread(self.path, writes=True, ended=self._ended) if writes else None
        self._reader = _Thread(self.path, writes=False, ended=lambda _: None)

    def on_end(self, ended: Callable[[bool], None]) -> None:
        """Have ``ended`` called, in the writing thread, after each transaction with whether it was committed.

        After one that was undone, what was cached of it is wrong.
        """
        self._watchers.append(ended)

    async def write(self, work: Work[T], *, durable: bool = False) -> T:
        """Do ``work`` in a transaction and return its result once it is committed.

        A ``durable`` commit survives a power failure, another the end of the process. ``work`` runs in the
        writing thread, may run a second time after an undone transaction, and must leave no other trace.

        Raises:
            UnavailableError: the database cannot be used; nothing was written.
            DiskFullError: no room is left; nothing was written.
        """
        if self._writer is None:
            raise UnavailableError(f"the database {str(self.path)!r} is open for reading alone")
        return await self._writer.post(work, durable=durable)

    def post(self, work: Work[T]) -> asyncio.Future[T]:
        """Do as :meth:`write`, and let the caller go on meanwhile."""
        if self._writer is None:
            raise UnavailableError(f"the database {str(self.path)!r} is open for reading alone")
        return self._writer.post(work)

    async def read(self, work: Work[T]) -> T:
        """Do ``work``, which reads, beside the writer. Raises UnavailableError."""
        return await self._reader.post(work)

    def close(self) -> None:
        """Finish what waits and close the file."""
        if self._writer is not None:
            self._writer.close()
        self._reader.close()
        if self._lock is not None:
            self._lock.close()

    def _ended(self, committed: bool) -> None:  # noqa: FBT001 - a callback's one argument
        for ended in self._watchers:
            ended(committed)
