"""What counters of use are counted from: the ledger, open reservations, and the epoch under which both stand."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from typing import Final, Literal

import asyncpg
import msgspec

from tokenweir.core.quota import Amounts, window_start
from tokenweir.ports.quota import OpenReservation, Reserve
from tokenweir.stores.gateway.postgresql.database import Connection, PostgresqlDatabase
from tokenweir.stores.gateway.postgresql.requests import decode_limits

Fate = Literal["open", "settled", "unknown"]

_REBUILDING: Final = 0x7765_6972_71
"""PostgreSQL's advisory lock of whoever counts anew."""
_PAGE: Final = 5000
_USE: Final = """
SELECT key_id, user_id, team_id, model,
    count(*), sum(input_tokens + output_tokens)::bigint, sum(cost)::bigint,
    count(*) FILTER (WHERE at >= $2), coalesce(sum(input_tokens + output_tokens) FILTER (WHERE at >= $2), 0)::bigint,
    coalesce(sum(cost) FILTER (WHERE at >= $2), 0)::bigint,
    count(*) FILTER (WHERE at >= $3), coalesce(sum(input_tokens + output_tokens) FILTER (WHERE at >= $3), 0)::bigint,
    coalesce(sum(cost) FILTER (WHERE at >= $3), 0)::bigint
FROM gateway_ledger WHERE at >= $1 AND at < $4 AND NOT (request = ANY($5::bytea[]))
GROUP BY key_id, user_id, team_id, model
"""


class Used(msgspec.Struct, frozen=True, kw_only=True):
    """What was settled of one key, user, team and model in the windows that hold an instant."""

    key: bytes
    user: bytes
    team: bytes
    model: str
    month: Amounts
    day: Amounts
    minute: Amounts


class Settled(msgspec.Struct, frozen=True, kw_only=True):
    """A row of the ledger, as the counters see it."""

    request: bytes
    at: int
    amounts: Amounts


class View:
    """The tables as they were at one instant; a rebuild counts from it."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    async def used(self, now: int, *, but: Sequence[bytes] = ()) -> Sequence[Used]:
        """Return what the ledger holds of the windows at ``now``, without the requests in ``but``."""
        rows = await self._connection.fetch(
            _USE, *(window_start(window, now) for window in ("month", "day", "minute")), 2**63 - 1, list(but)
        )
        return [
            Used(
                key=row[0],
                user=row[1],
                team=row[2],
                model=row[3],
                month=Amounts(requests=row[4], tokens=row[5], cost=row[6]),
                day=Amounts(requests=row[7], tokens=row[8], cost=row[9]),
                minute=Amounts(requests=row[10], tokens=row[11], cost=row[12]),
            )
            for row in rows
        ]

    async def reservations(self) -> AsyncIterator[Sequence[OpenReservation]]:
        """Yield the open reservations of accepted requests."""
        last = b""
        while True:
            rows = await self._connection.fetch(
                "SELECT request, key_id, user_id, team_id, model, limits, at, expires_at, requests, tokens, cost"
                " FROM gateway_reservations WHERE request > $1 ORDER BY request LIMIT $2",
                last,
                _PAGE,
            )
            yield [_open(row) for row in rows]
            if len(rows) < _PAGE:
                return
            last = rows[-1][0]

    async def settled(self, requests: Sequence[bytes]) -> Mapping[bytes, Settled]:
        """Return those of ``requests`` that the ledger holds."""
        rows = await self._connection.fetch(
            "SELECT request, at, input_tokens + output_tokens, cost FROM gateway_ledger"
            " WHERE request = ANY($1::bytea[])",
            list(requests),
        )
        return {
            row[0]: Settled(request=row[0], at=row[1], amounts=Amounts(tokens=row[2], cost=row[3]))
            for row in rows
        }

    async def settled_since(self, instant: int) -> AsyncIterator[Sequence[tuple[bytes, int]]]:
        """Yield (request, at) of the rows that were written since an instant."""
        cursor = self._connection.cursor(
            "SELECT request, at FROM gateway_ledger WHERE settled_at >= $1", instant, prefetch=_PAGE
        )
        page: list[tuple[bytes, int]] = []
        async for row in cursor:
            page.append((row[0], row[1]))
            if len(page) == _PAGE:
                yield page
                page = []
        yield page


class PostgresqlUse:
    """Gives counters what they are counted from."""

    def __init__(self, database: PostgresqlDatabase) -> None:
        self._database = database

    @contextlib.asynccontextmanager
    async def rebuilding(self) -> AsyncGenerator[None]:
        """Be the only one that counts anew, while the block runs. Raises UnavailableError."""
        async with self._database.connection() as connection:
            await connection.execute("SELECT pg_advisory_lock($1)", _REBUILDING)
            try:
                yield
            finally:
                if not connection.is_closed():
                    await connection.execute("SELECT pg_advisory_unlock($1)", _REBUILDING)

    async def next_epoch(self) -> int:
        """Begin an epoch: what is still to be written under an earlier one will be refused."""
        (row,) = await self._database.fetch("UPDATE gateway_epoch SET epoch = epoch + 1 RETURNING epoch")
        return int(row[0])

    @contextlib.asynccontextmanager
    async def view(self) -> AsyncGenerator[View]:
        """Give the tables as they are now. Raises UnavailableError."""
        async with (
            self._database.connection() as connection,
            connection.transaction(isolation="repeatable_read", readonly=True),
        ):
            yield View(connection)

    async def fates(self, requests: Sequence[bytes]) -> Mapping[bytes, Fate]:
        """Return what the tables know of requests that intake began to take on."""
        rows = await self._database.fetch(
            "SELECT g.request, EXISTS (SELECT 1 FROM gateway_ledger l WHERE l.request = g.request),"
            " EXISTS (SELECT 1 FROM gateway_requests q WHERE q.request = g.request AND q.ended_at IS NULL)"
            " FROM unnest($1::bytea[]) AS g (request)",
            list(requests),
        )
        return {
            request: "settled" if settled else "open" if standing else "unknown"
            for request, settled, standing in (row.values() for row in rows)
        }


def _open(row: asyncpg.Record) -> OpenReservation:
    request, key, user, team, model, limits, at, expires_at, requests, tokens, cost = row.values()
    return OpenReservation(
        reserve=Reserve(
            request=request,
            key=key,
            user=user,
            team=team,
            model=model,
            limits=decode_limits(limits),
            estimate=Amounts(requests=requests, tokens=tokens, cost=cost),
            lease_ns=expires_at - at,
        ),
        at=at,
        expires_at=expires_at,
    )
