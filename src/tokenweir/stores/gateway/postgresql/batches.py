"""Batches in PostgreSQL, for all processes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import asyncpg

from tokenweir.ports.batches import BatchRecord
from tokenweir.stores.gateway.postgresql.database import NOW, PostgresqlDatabase

_COLUMNS: Final = "batch, user_id, key_id, at, digest, state, coalesce(idempotency, ''), cancel_at, ended_at"
_INSERT: Final = (
    "INSERT INTO gateway_batches (batch, user_id, key_id, at, digest, state, idempotency, lease_until)"
    " VALUES ($1, $2, $3, $4, $5, $6, $7, 0) ON CONFLICT DO NOTHING RETURNING batch"
)
_RENEW: Final = f"""
UPDATE gateway_batches SET lease_until = {NOW} + $2 WHERE worker = $1 AND ended_at IS NULL RETURNING {_COLUMNS}
"""  # noqa: S608 - own words
_TAKE: Final = f"""
UPDATE gateway_batches SET worker = $1, lease_until = {NOW} + $2 WHERE batch IN (
    SELECT batch FROM gateway_batches
    WHERE ended_at IS NULL AND worker IS DISTINCT FROM $1 AND lease_until <= {NOW}
    ORDER BY at LIMIT $3 FOR UPDATE SKIP LOCKED)
RETURNING {_COLUMNS}
"""  # noqa: S608 - own words


class PostgresqlBatches:
    """The batches that all processes share."""

    def __init__(self, database: PostgresqlDatabase) -> None:
        self._database = database

    async def create(self, record: BatchRecord) -> BatchRecord:
        """Keep a batch durably; returns it, or the one that its idempotency key has already."""
        rows = await self._database.fetch(
            _INSERT,
            record.batch,
            record.user,
            record.key,
            record.at,
            record.digest,
            record.state,
            record.idempotency or None,
        )
        if rows:
            return record
        query = f"SELECT {_COLUMNS} FROM gateway_batches WHERE user_id = $1 AND idempotency = $2"  # noqa: S608
        return _record((await self._database.fetch(query, record.user, record.idempotency))[0])

    async def get(self, batch: bytes) -> BatchRecord | None:
        """Return a batch, or ``None``."""
        query = f"SELECT {_COLUMNS} FROM gateway_batches WHERE batch = $1"  # noqa: S608 - own words
        rows = await self._database.fetch(query, batch)
        return _record(rows[0]) if rows else None

    async def listed(self, user: bytes, *, after: bytes | None, limit: int) -> Sequence[BatchRecord]:
        """Return a user's batches, newest first, those older than ``after``."""
        query = (
            f"SELECT {_COLUMNS} FROM gateway_batches WHERE user_id = $1 AND batch < $2"  # noqa: S608 - own words
            " ORDER BY batch DESC LIMIT $3"
        )
        return [_record(row) for row in await self._database.fetch(query, user, after or b"\xff" * 17, limit)]

    async def cancel(self, batch: bytes, at: int) -> None:
        """Ask that a batch be stopped; whoever works on it obeys."""
        query = "UPDATE gateway_batches SET cancel_at = coalesce(cancel_at, $1) WHERE batch = $2"
        await self._database.fetch(query, at, batch)

    async def open(self) -> int:
        """Return how many batches have not ended."""
        query = "SELECT count(*) FROM gateway_batches WHERE ended_at IS NULL"
        return int((await self._database.fetch(query))[0][0])

    async def claim(self, worker: bytes, *, lease_ns: int, most: int) -> Sequence[BatchRecord]:
        """Return the batches that a worker holds from here: its own, and up to ``most`` in all."""
        # Its own first, waiting for whoever is changing them: one that was passed over would be taken for lost.
        rows = await self._database.fetch(_RENEW, worker, lease_ns)
        if len(rows) < most:
            rows += await self._database.fetch(_TAKE, worker, lease_ns, most - len(rows))
        return [_record(row) for row in rows]

    async def save(self, record: BatchRecord, worker: bytes) -> bool:
        """Store state and end of a batch; ``False``: another worker holds it, and nothing was stored."""
        query = "UPDATE gateway_batches SET state = $1, ended_at = $2 WHERE batch = $3 AND worker = $4 RETURNING batch"
        return bool(await self._database.fetch(query, record.state, record.ended_at, record.batch, worker))

    async def release(self, worker: bytes) -> None:
        """Let go of all that a worker holds."""
        query = "UPDATE gateway_batches SET worker = NULL, lease_until = 0 WHERE worker = $1"
        await self._database.fetch(query, worker)

    async def unlike(self, prefix: bytes, limit: int) -> Sequence[tuple[bytes, bytes]]:
        """Return up to ``limit`` states, as (batch, state), that do not begin with ``prefix``."""
        query = "SELECT batch, state FROM gateway_batches WHERE substr(state, 1, $1) <> $2 LIMIT $3"
        rows = await self._database.fetch(query, len(prefix), prefix, limit)
        return [(row[0], row[1]) for row in rows]

    async def replace(self, batch: Sequence[tuple[bytes, bytes, bytes]]) -> None:
        """Store states, as (batch, state before, state), where the state is that one still."""
        query = (
            "UPDATE gateway_batches b SET state = g.state"
            " FROM unnest($1::bytea[], $2::bytea[], $3::bytea[]) AS g (batch, before, state)"
            " WHERE b.batch = g.batch AND b.state = g.before"
        )
        columns = zip(*sorted(batch), strict=True)
        await self._database.fetch(query, *(list(column) for column in columns))


def _record(row: asyncpg.Record) -> BatchRecord:
    return BatchRecord(**dict(zip(BatchRecord.__struct_fields__, row.values(), strict=True)))
