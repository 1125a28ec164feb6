"""Files in PostgreSQL, in pieces, for all processes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import asyncpg

from tokenweir.ports.files import Earlier, Filed, FileRecord, Kept
from tokenweir.stores.gateway.postgresql.database import PostgresqlDatabase

_COLUMNS: Final = "file, user_id, name, purpose, size, at, digest, expires_at, coalesce(idempotency, '')"
_REMOVE: Final = """
WITH gone AS (DELETE FROM gateway_file_pieces WHERE file = ANY($1::bytea[]))
DELETE FROM gateway_files WHERE file = ANY($1::bytea[]) RETURNING file
"""
_KEEP: Final = (
    "UPDATE gateway_files SET name = $2, purpose = $3, size = $4, at = $5, digest = $6, expires_at = $7,"
    " idempotency = $8, kept = true WHERE file = $1"
)


class PostgresqlFiles:
    """The files that all processes share."""

    def __init__(self, database: PostgresqlDatabase) -> None:
        self._database = database

    async def begin(self, file: bytes, user: bytes, at: int) -> None:
        """Begin a file anew: nothing of it is there any more, if there was."""
        await self.remove(file)
        await self._database.fetch(
            "INSERT INTO gateway_files (file, user_id, name, purpose, size, at, digest, kept)"
            " VALUES ($1, $2, '', '', 0, $3, '', false)",
            file,
            user,
            at,
        )

    async def append(self, file: bytes, place: int, data: bytes) -> None:
        """Write the next piece, ``place`` counted from 0."""
        await self._database.fetch(
            "INSERT INTO gateway_file_pieces (file, place, data) VALUES ($1, $2, $3)", file, place, data
        )

    async def keep(self, record: FileRecord) -> Filed:
        """Make a file durable and seen."""
        try:
            await self._database.fetch(
                _KEEP,
                record.file,
                record.name,
                record.purpose,
                record.size,
                record.at,
                record.digest,
                record.expires_at,
                record.idempotency or None,
            )
        except asyncpg.UniqueViolationError:
            query = f"SELECT {_COLUMNS} FROM gateway_files WHERE user_id = $1 AND idempotency = $2"  # noqa: S608
            rows = await self._database.fetch(query, record.user, record.idempotency)
            if not rows:
                # It was removed meanwhile.
                return await self.keep(record)
            await self.remove(record.file)
            earlier = _record(rows[0])
            return Earlier(record=earlier, same=earlier.digest == record.digest)
        return Kept(record=record)

    async def get(self, file: bytes) -> FileRecord | None:
        """Return a file, or ``None``."""
        query = f"SELECT {_COLUMNS} FROM gateway_files WHERE file = $1 AND kept"  # noqa: S608 - own words
        rows = await self._database.fetch(query, file)
        return _record(rows[0]) if rows else None

    async def piece(self, file: bytes, place: int) -> bytes | None:
        """Return a piece as it was written; ``None`` behind the last."""
        rows = await self._database.fetch(
            "SELECT data FROM gateway_file_pieces WHERE file = $1 AND place = $2", file, place
        )
        return rows[0][0] if rows else None

    async def listed(
        self, user: bytes, *, purpose: str = "", after: bytes | None = None, newest: bool = True, limit: int
    ) -> Sequence[FileRecord]:
        """Return a user's files in the order of their ids, those that follow ``after``."""
        beyond, order = ("<", "DESC") if newest else (">", "ASC")
        query = (
            f"SELECT {_COLUMNS} FROM gateway_files WHERE user_id = $1 AND kept AND ($2 = '' OR purpose = $2)"  # noqa: S608
            f" AND file {beyond} $3 ORDER BY file {order} LIMIT $4"
        )
        start = after if after is not None else b"\xff" * 17 if newest else b""
        return [_record(row) for row in await self._database.fetch(query, user, purpose, start, limit)]

    async def stored(self, user: bytes) -> int:
        """Return how many bytes a user's files have."""
        query = "SELECT coalesce(sum(size), 0)::bigint FROM gateway_files WHERE user_id = $1 AND kept"
        return (await self._database.fetch(query, user))[0][0]

    async def remove(self, file: bytes) -> bool:
        """Remove a file, kept or not; ``False``: there is none."""
        return bool(await self._database.fetch(_REMOVE, [file]))

    async def sweep(self, *, now: int, begun_before: int) -> int:
        """Remove files that have expired, and those begun before an instant and never kept; returns how many."""
        query = "SELECT file FROM gateway_files WHERE (kept AND expires_at <= $1) OR (NOT kept AND at < $2) LIMIT 100"
        rows = await self._database.fetch(query, now, begun_before)
        if rows:
            await self._database.fetch(_REMOVE, [row[0] for row in rows])
        return len(rows)

    async def unlike(self, prefix: bytes, limit: int) -> Sequence[tuple[bytes, int, bytes]]:
        """Return up to ``limit`` pieces, as (file, place, data), that do not begin with ``prefix``."""
        query = "SELECT file, place, data FROM gateway_file_pieces WHERE substr(data, 1, $1) <> $2 LIMIT $3"
        rows = await self._database.fetch(query, len(prefix), prefix, limit)
        return [(row[0], row[1], row[2]) for row in rows]

    async def replace(self, batch: Sequence[tuple[bytes, int, bytes]]) -> None:
        """Store pieces in the place of what is there."""
        query = (
            "UPDATE gateway_file_pieces p SET data = g.data"
            " FROM unnest($1::bytea[], $2::int[], $3::bytea[]) AS g (file, place, data)"
            " WHERE p.file = g.file AND p.place = g.place"
        )
        columns = zip(*sorted(batch), strict=True)
        await self._database.fetch(query, *(list(column) for column in columns))


def _record(row: asyncpg.Record) -> FileRecord:
    return FileRecord(**dict(zip(FileRecord.__struct_fields__, row.values(), strict=True)))
