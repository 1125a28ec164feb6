"""Reservations as rows, counters in memory: exact under any concurrency, because one lock is held to decide."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Iterable, Sequence
from typing import Final

from tokenweir.core.clock import Clock
from tokenweir.core.errors import DiskFullError, UnavailableError
from tokenweir.core.quota import Amounts, Limit
from tokenweir.ports.quota import (
    Denied,
    Granted,
    Headroom,
    OpenReservation,
    Reserve,
    Reserved,
    Settle,
)
from tokenweir.stores.gateway.reporting import LOG
from tokenweir.stores.gateway.sqlite.counters import Counters, Unwritten, decode_limits, encode_limits
from tokenweir.stores.gateway.sqlite.database import Database

_INSERT: Final = (
    "INSERT INTO gateway_reservations (request, key_id, user_id, team_id, model, limits, at, expires_at,"
    " requests, tokens, cost) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
)
_CLOSE: Final = (
    "DELETE FROM gateway_reservations WHERE request = ?"
    " RETURNING key_id, user_id, team_id, model, at, requests, tokens, cost"
)
_GRACE_S: Final = 0.01
"""How long a held reservation waits to be written: one that is settled by then is written as its end alone."""
_AGAIN_S: Final = 0.5


class SqliteQuota:
    """The embedded quota store, and its upkeep."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock
        self.counters = Counters()
        self._flush: asyncio.TimerHandle | None = None
        database.on_end(self.counters.ended)

    def hold(self, wanted: Reserve) -> Reserved | None:
        """Decide at once and write soon; ``None`` where a counter has to be counted first.

        The counters are the same that the writing thread uses, so that both decide exactly. The row is written
        within some hundredths of a second, unless the request has ended by then.
        """
        at = self._clock.wall_ns()
        left = self.counters.hold(wanted, at)
        if left is None:
            return None
        if isinstance(left, Headroom):
            return Denied(request=wanted.request, short=left)
        if self._flush is None:
            self._flush = asyncio.get_running_loop().call_later(_GRACE_S, self._write_soon)
        return Granted(request=wanted.request, at=at, headroom=left)

    def held(self, request: bytes) -> bool:
        """Whether what was held for a request is not written yet."""
        return self.counters.pending(request)

    async def keep(self, request: bytes) -> None:
        """Return once what was held for a request would outlive the process."""
        if self.counters.pending(request):
            await self._database.write(self._write_unwritten)

    def _write_soon(self) -> None:
        loop = asyncio.get_running_loop()
        self._flush = None

        def written(done: asyncio.Future[None]) -> None:
            failure = done.exception() if not done.cancelled() else None
            if isinstance(failure, UnavailableError | DiskFullError):
                LOG.warning("reservations wait for their store", reason=str(failure))
                if self._flush is None:
                    self._flush = loop.call_later(_AGAIN_S, self._write_soon)

        if self.counters.any_pending:
            self._database.post(self._write_unwritten).add_done_callback(written)

    def _write_unwritten(self, connection: sqlite3.Connection) -> None:
        connection.executemany(_INSERT, _rows(self.counters.write_all()))

    async def reserve(self, batch: Sequence[Reserve]) -> Sequence[Reserved]:
        """Reserve for each in order; the same request again gives the first answer and counts once."""
        return await self._database.write(lambda connection: self.reserve_now(connection, batch))

    def reserve_now(self, connection: sqlite3.Connection, batch: Sequence[Reserve]) -> list[Reserved]:
        """Reserve within the transaction at hand, in the writing thread."""
        at = self._clock.wall_ns()
        return [self._reserve(connection, wanted, at) for wanted in batch]

    def _reserve(self, connection: sqlite3.Connection, wanted: Reserve, at: int) -> Reserved:
        standing = connection.execute(
            "SELECT at FROM gateway_reservations WHERE request = ?1"
            " UNION ALL SELECT at FROM gateway_ledger WHERE request = ?1",
            (wanted.request,),
        ).fetchone()
        unwritten = self.counters.unwritten(wanted.request)
        stood_at = unwritten.at if unwritten is not None else standing and standing[0]
        if stood_at is not None:
            return Granted(
                request=wanted.request,
                at=stood_at,
                headroom=self._left(connection, wanted.limits, at),
            )
        short = self.counters.take(connection, wanted, at)
        if short is not None:
            return Denied(
                request=wanted.request, short=short, headroom=self._left(connection, wanted.limits, at)
            )
        connection.executemany(_INSERT, _rows([Unwritten(wanted, at)]))
        return Granted(request=wanted.request, at=at, headroom=self._left(connection, wanted.limits, at))

    def _left(self, connection: sqlite3.Connection, limits: Sequence[Limit], at: int) -> tuple[Headroom, ...]:
        return tuple(self.counters.headroom(connection, limit, at) for limit in limits)

    async def settle(self, batch: Sequence[Settle]) -> Sequence[bool]:
        """Settle each; ``False`` where it was settled before or is unknown, which changes nothing."""
        return await self._database.write(
            lambda connection: [self.close_now(connection, each.request, each.actual) for each in batch]
        )

    def close_now(self, connection: sqlite3.Connection, request: bytes, actual: Amounts) -> bool:
        """Replace a reservation by what was used, within the transaction at hand."""
        unwritten = self.counters.write(request)
        if unwritten is not None:
            wanted = unwritten.reserve
            subjects, model, at, estimate = (
                (wanted.key, wanted.user, wanted.team),
                wanted.model,
                unwritten.at,
                wanted.estimate,
            )
        else:
            row = connection.execute(_CLOSE, (request,)).fetchone()
            if row is None:
                return False
            *subjects, model, at, requests, tokens, cost = row
            estimate = Amounts(requests=requests, tokens=tokens, cost=cost)
        change = Amounts(
            requests=actual.requests - estimate.requests,
            tokens=actual.tokens - estimate.tokens,
            cost=actual.cost - estimate.cost,
        )
        self.counters.add((subjects[0], subjects[1], subjects[2]), model, at, change)
        return True

    async def renew(self, requests: Sequence[bytes], lease_ns: int) -> None:
        """Let open reservations stand for ``lease_ns`` from now."""
        until = self._clock.wall_ns() + lease_ns
        rows = [(until, request) for request in requests]

        def put_off(connection: sqlite3.Connection) -> None:
            self._write_unwritten(connection)
            connection.executemany("UPDATE gateway_reservations SET expires_at = ? WHERE request = ?", rows)

        await self._database.write(put_off)

    async def expired(self, limit: int) -> Sequence[OpenReservation]:
        """Return up to ``limit`` open reservations whose lease has run out, oldest first.

        That of an accepted request stands until the request has ended, however long it waits for its turn.
        """
        now = self._clock.wall_ns()

        def find(connection: sqlite3.Connection) -> list[OpenReservation]:
            rows = connection.execute(
                "SELECT request, key_id, user_id, team_id, model, limits, at, expires_at, requests, tokens, cost"
                " FROM gateway_reservations r WHERE expires_at <= ? AND NOT EXISTS"
                " (SELECT 1 FROM gateway_requests q WHERE q.request = r.request AND q.ended_at IS NULL)"
                " ORDER BY expires_at LIMIT ?",
                (now, limit),
            )
            return [_open(row) for row in rows]

        return await self._database.read(find)

    async def open_reservations(self) -> int:
        """Return how many there are."""

        def count(connection: sqlite3.Connection) -> int:
            return int(connection.execute("SELECT COUNT(*) FROM gateway_reservations").fetchone()[0])

        # Those that nobody has written yet have been open for some hundredths of a second.
        return await self._database.read(count)

    async def rebuild(self) -> int:
        """Count everything anew and return the number of counters."""

        def count(connection: sqlite3.Connection) -> int:
            keys = [key for key, _, _ in self.counters.compared(connection)]
            self.counters.forget()
            return sum(1 for key in keys if self.counters.used(connection, key) >= 0)

        return await self._database.write(count)

    async def verify(self) -> Sequence[str]:
        """Return a line for each counter that differs from ledger plus open reservations; empty is proof."""

        def compare(connection: sqlite3.Connection) -> list[str]:
            return [
                f"{key.scope} {key.subject.hex()} {key.model or 'all models'}: {key.unit} in the {key.window}"
                f" from {key.start_at}: the counter says {used}, the ledger {truth}"
                for key, used, truth in self.counters.compared(connection)
                if used != truth
            ]

        return await self._database.write(compare)

    async def use(self, limits: Sequence[Limit]) -> Sequence[Headroom]:
        """Return what is left of each limit now."""
        at = self._clock.wall_ns()
        return await self._database.write(lambda connection: self._left(connection, limits, at))


def _open(row: tuple[bytes, bytes, bytes, bytes, str, bytes, int, int, int, int, int]) -> OpenReservation:
    request, key, user, team, model, limits, at, expires_at, requests, tokens, cost = row
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


def _rows(reservations: Iterable[Unwritten]) -> Iterable[tuple[object, ...]]:
    for each in reservations:
        wanted, estimate = each.reserve, each.reserve.estimate
        yield (
            wanted.request,
            wanted.key,
            wanted.user,
            wanted.team,
            wanted.model,
            encode_limits(wanted.limits),
            each.at,
            each.at + wanted.lease_ns,
            estimate.requests,
            estimate.tokens,
            estimate.cost,
        )
