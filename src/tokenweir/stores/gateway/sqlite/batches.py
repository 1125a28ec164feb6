"""Batches in SQLite."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from typing import Final

from tokenweir.core.clock import Clock
from tokenweir.ports.batches import BatchRecord
from tokenweir.stores.gateway.sqlite.database import Database

_COLUMNS: Final = "batch, user_id, key_id, at, digest, state, coalesce(idempotency, ''), cancel_at, ended_at"
_INSERT: Final = (
    "INSERT INTO gateway_batches (batch, user_id, key_id, at, digest, state, idempotency, lease_until)"
    " VALUES (?, ?, ?, ?, ?, ?, ?, 0)"
)
_CLAIM: Final = (
    "UPDATE gateway_batches SET worker = ?1, lease_until = ?2 WHERE batch IN ("  # noqa: S608 - own words
    " SELECT batch FROM gateway_batches WHERE ended_at IS NULL AND (worker = ?1 OR lease_until <= ?3)"
    " ORDER BY worker IS ?1 DESC, at LIMIT ?4)"
    f" RETURNING {_COLUMNS}"
)


class SqliteBatches:
    """The embedded batches."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock

    async def free(self) -> None:
        """Say that nobody holds a batch: no other process has the file open, and this one has just begun."""
        await self._database.write(
            lambda connection: connection.execute("UPDATE gateway_batches SET worker = NULL, lease_until = 0")
        )

    async def create(self, record: BatchRecord) -> BatchRecord:
        """Keep a batch durably; returns it, or the one that its idempotency key has already."""

        def work(connection: sqlite3.Connection) -> BatchRecord:
            if record.idempotency:
                row = connection.execute(
                    f"SELECT {_COLUMNS} FROM gateway_batches WHERE user_id = ? AND idempotency = ?",  # noqa: S608
                    (record.user, record.idempotency),
                ).fetchone()
                if row is not None:
                    return _record(row)
            connection.execute(
                _INSERT,
                (
                    record.batch,
                    record.user,
                    record.key,
                    record.at,
                    record.digest,
                    record.state,
                    record.idempotency or None,
                ),
            )
            return record

        return await self._database.write(work, durable=True)

    async def get(self, batch: bytes) -> BatchRecord | None:
        """Return a batch, or ``None``."""
        query = f"SELECT {_COLUMNS} FROM gateway_batches WHERE batch = ?"  # noqa: S608 - own words
        row = await self._database.read(lambda connection: connection.execute(query, (batch,)).fetchone())
        return _record(row) if row else None

    async def listed(self, user: bytes, *, after: bytes | None, limit: int) -> Sequence[BatchRecord]:
        """Return a user's batches, newest first, those older than ``after``."""
        query = (
            f"SELECT {_COLUMNS} FROM gateway_batches WHERE user_id = ? AND batch < ?"  # noqa: S608 - own words
            " ORDER BY batch DESC LIMIT ?"
        )
        args = (user, after or b"\xff" * 17, limit)
        rows = await self._database.read(lambda connection: connection.execute(query, args).fetchall())
        return [_record(row) for row in rows]

    async def cancel(self, batch: bytes, at: int) -> None:
        """Ask that a batch be stopped; whoever works on it obeys."""
        await self._database.write(
            lambda connection: connection.execute(
                "UPDATE gateway_batches SET cancel_at = coalesce(cancel_at, ?) WHERE batch = ?", (at, batch)
            ),
            durable=True,
        )

    async def open(self) -> int:
        """Return how many batches have not ended."""
        query = "SELECT count(*) FROM gateway_batches WHERE ended_at IS NULL"
        return int((await self._database.read(lambda connection: connection.execute(query).fetchone()))[0])

    async def claim(self, worker: bytes, *, lease_ns: int, most: int) -> Sequence[BatchRecord]:
        """Return the batches that a worker holds from here: its own, and up to ``most`` in all."""
        now = self._clock.wall_ns()
        args = (worker, now + lease_ns, now, most)
        rows = await self._database.write(lambda connection: connection.execute(_CLAIM, args).fetchall())
        return [_record(row) for row in rows]

    async def save(self, record: BatchRecord, worker: bytes) -> bool:
        """Store state and end of a batch; ``False``: another worker holds it, and nothing was stored."""
        args = (record.state, record.ended_at, record.batch, worker)
        return await self._database.write(
            lambda connection: (
                connection.execute(
                    "UPDATE gateway_batches SET state = ?, ended_at = ? WHERE batch = ? AND worker = ?", args
                ).rowcount
                > 0
            ),
            durable=record.ended_at is not None,
        )

    async def release(self, worker: bytes) -> None:
        """Let go of all that a worker holds."""
        await self._database.write(
            lambda connection: connection.execute(
                "UPDATE gateway_batches SET worker = NULL, lease_until = 0 WHERE worker = ?", (worker,)
            )
        )

    async def unlike(self, prefix: bytes, limit: int) -> Sequence[tuple[bytes, bytes]]:
        """Return up to ``limit`` states, as (batch, state), that do not begin with ``prefix``."""
        query = "SELECT batch, state FROM gateway_batches WHERE substr(state, 1, ?) <> ? LIMIT ?"
        args = (len(prefix), prefix, limit)
        return await self._database.read(lambda connection: connection.execute(query, args).fetchall())

    async def replace(self, batch: Sequence[tuple[bytes, bytes, bytes]]) -> None:
        """Store states, as (batch, state before, state), where the state is that one still."""
        rows = [(state, name, before) for name, before, state in batch]
        await self._database.write(
            lambda connection: connection.executemany(
                "UPDATE gateway_batches SET state = ? WHERE batch = ? AND state = ?", rows
            ),
            durable=True,
        )


def _record(row: tuple[object, ...]) -> BatchRecord:
    return BatchRecord(**dict(zip(BatchRecord.__struct_fields__, row, strict=True)))  # pyright: ignore[reportArgumentType]
