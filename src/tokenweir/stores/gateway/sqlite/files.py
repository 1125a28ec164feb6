"""Files in SQLite, in pieces."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from typing import Final

from tokenweir.ports.files import Earlier, Filed, FileRecord, Kept
from tokenweir.stores.gateway.sqlite.database import Database

_COLUMNS: Final = "file, user_id, name, purpose, size, at, digest, expires_at, coalesce(idempotency, '')"
_BEGIN: Final = (
    "INSERT INTO gateway_files (file, user_id, name, purpose, size, at, digest, kept)"
    " VALUES (?, ?, '', '', 0, ?, x'', 0)"
)
_KEEP: Final = (
    "UPDATE gateway_files SET name = ?, purpose = ?, size = ?, at = ?, digest = ?, expires_at = ?, idempotency = ?,"
    " kept = 1 WHERE file = ?"
)
# From here on it is not there; whatever comes between, the next sweep removes the rest.
_HIDE: Final = "UPDATE gateway_files SET kept = 0, at = 0, idempotency = NULL WHERE file = ?"
_DROP: Final = (
    "DELETE FROM gateway_file_pieces WHERE file = ?1 AND place IN"
    " (SELECT place FROM gateway_file_pieces WHERE file = ?1 LIMIT 16)"
)


class SqliteFiles:
    """The embedded files."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def begin(self, file: bytes, user: bytes, at: int) -> None:
        """Begin a file anew: nothing of it is there any more, if there was."""
        await self.remove(file)
        await self._database.write(lambda connection: connection.execute(_BEGIN, (file, user, at)))

    async def append(self, file: bytes, place: int, data: bytes) -> None:
        """Write the next piece, ``place`` counted from 0."""
        await self._database.write(
            lambda connection: connection.execute(
                "INSERT INTO gateway_file_pieces (file, place, data) VALUES (?, ?, ?)", (file, place, data)
            )
        )

    async def keep(self, record: FileRecord) -> Filed:
        """Make a file durable and seen."""

        def work(connection: sqlite3.Connection) -> Filed:
            if record.idempotency:
                row = connection.execute(
                    f"SELECT {_COLUMNS} FROM gateway_files WHERE user_id = ? AND idempotency = ? AND file <> ?",  # noqa: S608
                    (record.user, record.idempotency, record.file),
                ).fetchone()
                if row is not None:
                    earlier = _record(row)
                    return Earlier(record=earlier, same=earlier.digest == record.digest)
            connection.execute(
                _KEEP,
                (
                    record.name,
                    record.purpose,
                    record.size,
                    record.at,
                    record.digest,
                    record.expires_at,
                    record.idempotency or None,
                    record.file,
                ),
            )
            return Kept(record=record)

        filed = await self._database.write(work, durable=True)
        if isinstance(filed, Earlier):
            await self.remove(record.file)
        return filed

    async def get(self, file: bytes) -> FileRecord | None:
        """Return a file, or ``None``."""
        query = f"SELECT {_COLUMNS} FROM gateway_files WHERE file = ? AND kept"  # noqa: S608 - own words
        row = await self._database.read(lambda connection: connection.execute(query, (file,)).fetchone())
        return _record(row) if row else None

    async def piece(self, file: bytes, place: int) -> bytes | None:
        """Return a piece as it was written; ``None`` behind the last."""
        row = await self._database.read(
            lambda connection: connection.execute(
                "SELECT data FROM gateway_file_pieces WHERE file = ? AND place = ?", (file, place)
            ).fetchone()
        )
        return row[0] if row else None

    async def listed(
        self, user: bytes, *, purpose: str = "", after: bytes | None = None, newest: bool = True, limit: int
    ) -> Sequence[FileRecord]:
        """Return a user's files in the order of their ids, those that follow ``after``."""
        beyond, order = ("<", "DESC") if newest else (">", "ASC")
        query = (
            f"SELECT {_COLUMNS} FROM gateway_files WHERE user_id = ? AND kept AND (? = '' OR purpose = ?)"  # noqa: S608
            f" AND file {beyond} ? ORDER BY file {order} LIMIT ?"
        )
        start = after if after is not None else b"\xff" * 17 if newest else b""
        args = (user, purpose, purpose, start, limit)
        rows = await self._database.read(lambda connection: connection.execute(query, args).fetchall())
        return [_record(row) for row in rows]

    async def stored(self, user: bytes) -> int:
        """Return how many bytes a user's files have."""
        query = "SELECT coalesce(sum(size), 0) FROM gateway_files WHERE user_id = ? AND kept"
        (size,) = await self._database.read(lambda connection: connection.execute(query, (user,)).fetchone())
        return size

    async def remove(self, file: bytes) -> bool:
        """Remove a file, kept or not; ``False``: there is none."""
        hidden = await self._database.write(
            lambda connection: connection.execute(_HIDE, (file,)).rowcount,
        )
        if not hidden:
            return False
        # A few pieces at a time, so that nobody waits long for the one who writes.
        while await self._database.write(lambda connection: connection.execute(_DROP, (file,)).rowcount):
            pass
        await self._database.write(
            lambda connection: connection.execute("DELETE FROM gateway_files WHERE file = ?", (file,))
        )
        return True

    async def sweep(self, *, now: int, begun_before: int) -> int:
        """Remove files that have expired, and those begun before an instant and never kept; returns how many."""
        query = "SELECT file FROM gateway_files WHERE (kept AND expires_at <= ?) OR (NOT kept AND at < ?) LIMIT 100"
        args = (now, begun_before)
        rows = await self._database.read(lambda connection: connection.execute(query, args).fetchall())
        for (file,) in rows:
            await self.remove(file)
        return len(rows)

    async def unlike(self, prefix: bytes, limit: int) -> Sequence[tuple[bytes, int, bytes]]:
        """Return up to ``limit`` pieces, as (file, place, data), that do not begin with ``prefix``."""
        query = "SELECT file, place, data FROM gateway_file_pieces WHERE substr(data, 1, ?) <> ? LIMIT ?"
        args = (len(prefix), prefix, limit)
        return await self._database.read(lambda connection: connection.execute(query, args).fetchall())

    async def replace(self, batch: Sequence[tuple[bytes, int, bytes]]) -> None:
        """Store pieces in the place of what is there."""
        rows = [(data, file, place) for file, place, data in batch]
        await self._database.write(
            lambda connection: connection.executemany(
                "UPDATE gateway_file_pieces SET data = ? WHERE file = ? AND place = ?", rows
            ),
            durable=True,
        )


def _record(row: tuple[object, ...]) -> FileRecord:
    return FileRecord(**dict(zip(FileRecord.__struct_fields__, row, strict=True)))  # pyright: ignore[reportArgumentType]
