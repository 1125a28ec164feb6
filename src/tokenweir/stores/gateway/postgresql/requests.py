"""Accepted requests in PostgreSQL: written by batches under a quota epoch, found, claimed, and never forgotten."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import asyncpg
import msgspec

from tokenweir.core.quota import Limit
from tokenweir.ports.intake import Acceptance
from tokenweir.ports.requests import RequestRecord
from tokenweir.stores.gateway.postgresql.database import NOW, PostgresqlDatabase

encode_limits = msgspec.msgpack.Encoder().encode
decode_limits = msgspec.msgpack.Decoder(tuple[Limit, ...]).decode

_COLUMNS: Final = (
    "request, key_id, user_id, team_id, model, mode, lane, route, at, body, body_hash,"
    " coalesce(idempotency, ''), priority, deadline_at, webhook, attempt, lease_until, cancel_at, ended_at,"
    " last_seq, log, first_offset"
    f", greatest(0, lease_until - {NOW}), deadline_at - {NOW}"
)
_UNFILED: Final = _COLUMNS.replace(" log,", " ''::bytea,")
_LISTED: Final = _UNFILED.replace("body, body_hash", "''::bytea, body_hash")
_GIVEN: Final = {
    "request": "bytea",
    "key_id": "bytea",
    "user_id": "bytea",
    "team_id": "bytea",
    "model": "text",
    "mode": "text",
    "lane": "smallint",
    "route": "text",
    "at": "bigint",
    "body": "bytea",
    "body_hash": "bytea",
    "idempotency": "text",
    "priority": "smallint",
    "deadline_at": "bigint",
    "webhook": "text",
    "lease": "bigint",
    "limits": "bytea",
    "requests": "bigint",
    "tokens": "bigint",
    "cost": "bigint",
}
# The epoch's row is locked against its next change until the commit: a rebuild of the counters either sees what this
# writes, or makes this write nothing.
_INSERT: Final = f"""
WITH standing AS MATERIALIZED (SELECT epoch FROM gateway_epoch WHERE one = 1 FOR SHARE),
given AS (
    SELECT * FROM unnest({", ".join(f"${place}::{kind}[]" for place, kind in enumerate(_GIVEN.values(), 2))})
    AS g ({", ".join(_GIVEN)})
), taken AS (
    INSERT INTO gateway_requests (request, key_id, user_id, team_id, model, mode, lane, route, at, body, body_hash,
        idempotency, priority, deadline_at, webhook, published, attempt, lease_until, last_seq, log)
    SELECT request, key_id, user_id, team_id, model, mode, lane, route, at, body, body_hash,
        idempotency, priority, deadline_at, webhook, mode = 'direct', 0, {NOW} + lease, -1, ''
    FROM given WHERE (SELECT epoch FROM standing) = $1 ON CONFLICT DO NOTHING RETURNING request
), reserved AS (
    INSERT INTO gateway_reservations (request, key_id, user_id, team_id, model, limits, at, expires_at, requests,
        tokens, cost, epoch)
    SELECT request, key_id, user_id, team_id, model, limits, at, at + lease, requests, tokens, cost, $1
    FROM given JOIN taken USING (request) ON CONFLICT DO NOTHING
)
SELECT (SELECT epoch FROM standing), array(SELECT request FROM taken)
"""  # noqa: S608 - own words
_EARLIER: Final = """
SELECT g.n, q.request, q.body_hash
FROM unnest($1::bytea[], $2::bytea[], $3::text[]) WITH ORDINALITY AS g (request, user_id, idempotency, n)
JOIN gateway_requests q ON q.request = g.request
    OR (g.idempotency <> '' AND q.user_id = g.user_id AND q.idempotency = g.idempotency)
"""
_QUEUED_NS: Final = 120_000_000_000
_STEADY_NS: Final = 5_000_000_000
"""How old an acceptance is before its job counts as unpublished: until then its process is about to publish it."""


class Written(msgspec.Struct, frozen=True, kw_only=True):
    """What became of a batch: the ``epoch`` that stands, and the requests that were written under it."""

    epoch: int
    taken: frozenset[bytes]


class PostgresqlRequests:
    """Finds accepted requests, says who works on them, and writes those that intake takes on."""

    def __init__(self, database: PostgresqlDatabase) -> None:
        self._database = database

    async def write(self, batch: Sequence[tuple[Acceptance, int]], *, epoch: int) -> Written:
        """Write acceptances with the instants of their reservations, in one transaction.

        Nothing is written when another epoch stands; requests and idempotency keys that are there are left out.
        """
        order = sorted(
            batch, key=lambda each: (each[0].reserve.user, each[0].idempotency, each[0].reserve.request)
        )
        columns = zip(*(_values(wanted, at) for wanted, at in order), strict=True)
        (row,) = await self._database.fetch(_INSERT, epoch, *(list(column) for column in columns))
        return Written(epoch=row[0], taken=frozenset(row[1]))

    async def earlier(self, batch: Sequence[Acceptance]) -> Mapping[int, tuple[bytes, bytes]]:
        """Return request and body hash of what was accepted before under the same id or key, by place in the batch."""
        if not batch:
            return {}
        rows = await self._database.fetch(
            _EARLIER,
            [wanted.reserve.request for wanted in batch],
            [wanted.reserve.user for wanted in batch],
            [wanted.idempotency for wanted in batch],
        )
        return {row[0] - 1: (row[1], row[2]) for row in rows}

    async def published(self, requests: Sequence[bytes]) -> None:
        """Note that the queue has confirmed the jobs of requests."""
        await self._database.fetch(
            "UPDATE gateway_requests SET published = true WHERE request = ANY($1::bytea[])", sorted(requests)
        )

    async def attempts(self, requests: Sequence[bytes]) -> Mapping[bytes, int]:
        """Return the last attempt claimed of each request that is known."""
        rows = await self._database.fetch(
            "SELECT request, attempt FROM gateway_requests WHERE request = ANY($1::bytea[])", list(requests)
        )
        return {row[0]: row[1] for row in rows}

    async def began(self, request: bytes) -> int | None:
        """Return when a request was taken on by the stores' clock (Unix ns), once somebody has claimed it."""
        query = "SELECT at FROM gateway_requests WHERE request = $1 AND attempt > 0"
        rows = await self._database.fetch(query, request)
        return int(rows[0][0]) if rows else None

    async def get(self, request: bytes) -> RequestRecord | None:
        """Return a request, or ``None``."""
        query = f"SELECT {_COLUMNS} FROM gateway_requests WHERE request = $1"  # noqa: S608 - own words
        return _only(await self._database.fetch(query, request))

    async def find(self, requests: Sequence[bytes]) -> Mapping[bytes, RequestRecord]:
        """Return those of the requests that are known; their filed logs are left empty."""
        query = f"SELECT {_UNFILED} FROM gateway_requests WHERE request = ANY($1::bytea[])"  # noqa: S608 - own words
        rows = await self._database.fetch(query, list(requests))
        return {record.request: record for record in map(_record, rows)}

    async def history(self, user: bytes, *, before: bytes | None, limit: int) -> Sequence[RequestRecord]:
        """Return a user's requests, newest first, older than ``before``; bodies and logs are left empty."""
        query = (
            f"SELECT {_LISTED} FROM gateway_requests WHERE user_id = $1 AND request < $2"  # noqa: S608 - own words
            " ORDER BY request DESC LIMIT $3"
        )
        rows = await self._database.fetch(query, user, before or b"\xff" * 17, limit)
        return [_record(row) for row in rows]

    async def claim(self, request: bytes, *, attempt: int, lease_ns: int) -> RequestRecord | None:
        """Become the writer as ``attempt`` by compare-and-set; ``None``: somebody else is."""
        query = (
            f"UPDATE gateway_requests SET attempt = $1, lease_until = {NOW} + $2"  # noqa: S608 - own words
            f" WHERE request = $3 AND attempt = $1 - 1 AND ended_at IS NULL RETURNING {_COLUMNS}"
        )
        return _only(await self._database.fetch(query, attempt, lease_ns, request))

    async def cancel(self, request: bytes) -> RequestRecord | None:
        """Ask that a request be stopped; the lease holder obeys. Returns the request, or ``None``."""
        query = (
            f"UPDATE gateway_requests SET cancel_at = coalesce(cancel_at, {NOW}) WHERE request = $1"  # noqa: S608
            f" RETURNING {_COLUMNS}"
        )
        return _only(await self._database.fetch(query, request))

    async def renew(self, requests: Sequence[tuple[bytes, int]], lease_ns: int) -> Sequence[bytes]:
        """Extend leases of (request, attempt); returns those lost or cancelled, whose work must stop."""
        query = (
            f"UPDATE gateway_requests q SET lease_until = {NOW} + $3"  # noqa: S608 - own words
            " FROM unnest($1::bytea[], $2::int[]) AS g (request, attempt) WHERE q.request = g.request"
            " AND q.attempt = g.attempt AND q.ended_at IS NULL AND q.cancel_at IS NULL RETURNING q.request"
        )
        ordered = sorted(requests)
        rows = await self._database.fetch(
            query, [request for request, _ in ordered], [attempt for _, attempt in ordered], lease_ns
        )
        kept = {row[0] for row in rows}
        return [request for request, _ in requests if request not in kept]

    async def unpublished(self, limit: int) -> Sequence[RequestRecord]:
        """Return accepted requests whose job the queue has not confirmed, though their process had time to ask."""
        return await self.waiting(limit, older_than_ns=_STEADY_NS)

    async def waiting(self, limit: int, *, older_than_ns: int) -> Sequence[RequestRecord]:
        """Return accepted requests without a confirmed job that are older than that."""
        query = (
            f"SELECT {_COLUMNS} FROM gateway_requests WHERE ended_at IS NULL AND NOT published"  # noqa: S608
            f" AND at <= {NOW} - $2 ORDER BY at LIMIT $1"
        )
        return [_record(row) for row in await self._database.fetch(query, limit, older_than_ns)]

    async def abandoned(self, limit: int) -> Sequence[RequestRecord]:
        """Return requests that have neither ended nor a lease that stands, and no job.

        One that was never claimed waits in the queue, which delivers it again if a worker is lost before it claims;
        so does one whose worker was lost, or which is to be tried again later, for as long as that may take. One that
        is answered directly has no job: whoever took it on was lost before it was claimed, or after.
        """
        query = (
            f"SELECT {_COLUMNS} FROM gateway_requests WHERE ended_at IS NULL"  # noqa: S608
            " AND (attempt > 0 OR mode = 'direct')"
            f" AND lease_until <= {NOW} - CASE mode WHEN 'direct' THEN 0 ELSE $2::bigint END"
            " ORDER BY lease_until LIMIT $1"
        )
        return [_record(row) for row in await self._database.fetch(query, limit, _QUEUED_NS)]

    async def unlike(self, prefix: bytes, limit: int) -> Sequence[RequestRecord]:
        """Return up to ``limit`` requests whose body, or log where it is not empty, does not begin with ``prefix``."""
        query = (
            f"SELECT {_COLUMNS} FROM gateway_requests WHERE substr(body, 1, $1) <> $2"  # noqa: S608 - own words
            " OR (length(log) > 0 AND substr(log, 1, $1) <> $2) LIMIT $3"
        )
        return [_record(row) for row in await self._database.fetch(query, len(prefix), prefix, limit)]

    async def replace(self, batch: Sequence[tuple[bytes, bytes, bytes]]) -> None:
        """Store (request, body, log) for requests; an empty log leaves the stored one as it is."""
        query = (
            "UPDATE gateway_requests q SET body = g.body,"
            " log = CASE WHEN length(g.log) > 0 THEN g.log ELSE q.log END"
            " FROM unnest($1::bytea[], $2::bytea[], $3::bytea[]) AS g (request, body, log)"
            " WHERE q.request = g.request"
        )
        columns = zip(*sorted(batch), strict=True)
        await self._database.fetch(query, *(list(column) for column in columns))

    async def reseal(self, batch: Sequence[tuple[bytes, bytes, bytes, bytes]]) -> None:
        """Store (request, body before, body, log) as :meth:`replace` does, where the body is that one still."""
        query = (
            "UPDATE gateway_requests q SET body = g.body,"
            " log = CASE WHEN length(g.log) > 0 THEN g.log ELSE q.log END"
            " FROM unnest($1::bytea[], $2::bytea[], $3::bytea[], $4::bytea[]) AS g (request, before, body, log)"
            " WHERE q.request = g.request AND q.body = g.before"
        )
        columns = zip(*sorted(batch), strict=True)
        await self._database.fetch(query, *(list(column) for column in columns))


def _values(wanted: Acceptance, at: int) -> tuple[object, ...]:
    reserve = wanted.reserve
    estimate = reserve.estimate
    return (
        reserve.request,
        reserve.key,
        reserve.user,
        reserve.team,
        reserve.model,
        wanted.mode,
        wanted.lane,
        wanted.route,
        at,
        wanted.body,
        wanted.body_hash,
        wanted.idempotency or None,
        wanted.priority,
        None if wanted.deadline_ns is None else at + wanted.deadline_ns,
        wanted.webhook,
        reserve.lease_ns,
        encode_limits(reserve.limits),
        estimate.requests,
        estimate.tokens,
        estimate.cost,
    )


def _only(rows: Sequence[asyncpg.Record]) -> RequestRecord | None:
    return _record(rows[0]) if rows else None


def _record(row: asyncpg.Record) -> RequestRecord:
    return RequestRecord(**dict(zip(RequestRecord.__struct_fields__, row.values(), strict=True)))
