"""Accepted requests in SQLite, and the door through which they come: one durable transaction for a whole batch."""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping, Sequence
from typing import Final

import msgspec

from tokenweir.core.clock import Clock
from tokenweir.ports.intake import Acceptance, Conflict, Outcome, Repeated, Taken
from tokenweir.ports.queue import Job
from tokenweir.ports.quota import Denied
from tokenweir.ports.requests import RequestRecord
from tokenweir.stores.gateway.sqlite.database import Database
from tokenweir.stores.gateway.sqlite.queue import SqliteQueue
from tokenweir.stores.gateway.sqlite.quota import SqliteQuota

_COLUMNS: Final = (
    "request, key_id, user_id, team_id, model, mode, lane, route, at, body, body_hash,"
    " coalesce(idempotency, ''), priority, deadline_at, webhook, attempt, lease_until, cancel_at, ended_at,"
    " last_seq, log, first_offset"
)
_FIELDS: Final = RequestRecord.__struct_fields__[:-2]
_UNFILED: Final = _COLUMNS.replace(" log,", " x'',")
_LISTED: Final = _UNFILED.replace("body, body_hash", "x'', body_hash")
_INSERT: Final = (
    "INSERT INTO gateway_requests (request, key_id, user_id, team_id, model, mode, lane, route, at, body,"
    " body_hash, idempotency, priority, deadline_at, webhook, published, attempt, lease_until, last_seq, log)"
    " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, 1, 0, ?, -1, x'')"
)
_CLAIM: Final = (
    "UPDATE gateway_requests SET attempt = ?1, lease_until = ?2"  # noqa: S608 - own words
    " WHERE request = ?3 AND attempt = ?1 - 1 AND ended_at IS NULL"
    f" RETURNING {_COLUMNS}"
)
_REPLACE: Final = "UPDATE gateway_requests SET body = ?, log = CASE WHEN length(?) > 0 THEN ? ELSE log END"


class SqliteIntake:
    """Accepts in one durable transaction: the request, its reservation, its job."""

    def __init__(self, database: Database, clock: Clock, quota: SqliteQuota, queue: SqliteQueue) -> None:
        self._database = database
        self._clock = clock
        self._quota = quota
        self._queue = queue

    async def accept(self, batch: Sequence[Acceptance]) -> Sequence[Outcome]:
        """Take on each that fits, in one group commit; the outcomes are in order."""
        outcomes, jobs = await self._database.write(
            lambda connection: self._accept_all(connection, batch), durable=True
        )
        self._queue.offer(jobs)
        return outcomes

    def _accept_all(
        self, connection: sqlite3.Connection, batch: Sequence[Acceptance]
    ) -> tuple[list[Outcome], list[Job]]:
        outcomes: list[Outcome] = []
        jobs: list[Job] = []
        for wanted in batch:
            outcome = self._accept(connection, wanted)
            outcomes.append(outcome)
            if isinstance(outcome, Taken) and wanted.mode != "direct":
                job = Job(request=outcome.request, lane=wanted.lane, priority=wanted.priority)
                self._queue.insert_now(connection, job, due_at=outcome.at)
                jobs.append(job)
        return outcomes, jobs

    def _accept(self, connection: sqlite3.Connection, wanted: Acceptance) -> Outcome:
        reserve = wanted.reserve
        earlier = self._earlier(connection, wanted)
        if earlier is not None:
            return earlier
        (reserved,) = self._quota.reserve_now(connection, [reserve])
        if isinstance(reserved, Denied):
            return reserved
        deadline = None if wanted.deadline_ns is None else reserved.at + wanted.deadline_ns
        connection.execute(
            _INSERT,
            (
                reserve.request,
                reserve.key,
                reserve.user,
                reserve.team,
                reserve.model,
                wanted.mode,
                wanted.lane,
                wanted.route,
                reserved.at,
                wanted.body,
                wanted.body_hash,
                wanted.idempotency or None,
                wanted.priority,
                deadline,
                wanted.webhook,
                reserved.at + reserve.lease_ns,
            ),
        )
        return Taken(request=reserve.request, at=reserved.at, headroom=reserved.headroom)

    def _earlier(self, connection: sqlite3.Connection, wanted: Acceptance) -> Outcome | None:
        """Return what an earlier acceptance of the same request, or under the same key, means for this one."""
        row = connection.execute(
            "SELECT request, body_hash FROM gateway_requests WHERE request = ?", (wanted.reserve.request,)
        ).fetchone()
        if row is None and wanted.idempotency:
            row = connection.execute(
                "SELECT request, body_hash FROM gateway_requests WHERE user_id = ? AND idempotency = ?",
                (wanted.reserve.user, wanted.idempotency),
            ).fetchone()
        if row is None:
            return None
        request, body_hash = row
        return Repeated(request=request) if body_hash == wanted.body_hash else Conflict(request=request)


class SqliteRequests:
    """Finds accepted requests, and says who works on them."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock

    async def get(self, request: bytes) -> RequestRecord | None:
        """Return a request, or ``None``."""
        query = f"SELECT {_COLUMNS} FROM gateway_requests WHERE request = ?"  # noqa: S608 - own words
        row = await self._database.read(lambda connection: connection.execute(query, (request,)).fetchone())
        return self._record(row) if row else None

    async def find(self, requests: Sequence[bytes]) -> Mapping[bytes, RequestRecord]:
        """Return those of the requests that are known; their filed logs are left empty."""
        query = f"SELECT {_UNFILED} FROM gateway_requests WHERE request = ?"  # noqa: S608 - own words
        rows = await self._database.read(
            lambda connection: [connection.execute(query, (request,)).fetchone() for request in requests]
        )
        return {record.request: record for record in (self._record(row) for row in rows if row)}

    async def history(self, user: bytes, *, before: bytes | None, limit: int) -> Sequence[RequestRecord]:
        """Return a user's requests, newest first, older than ``before``; bodies and logs are left empty."""
        query = (
            f"SELECT {_LISTED} FROM gateway_requests WHERE user_id = ? AND request < ?"  # noqa: S608 - own words
            " ORDER BY request DESC LIMIT ?"
        )
        args = (user, before or b"\xff" * 17, limit)
        rows = await self._database.read(lambda connection: connection.execute(query, args).fetchall())
        return [self._record(row) for row in rows]

    async def claim(self, request: bytes, *, attempt: int, lease_ns: int) -> RequestRecord | None:
        """Become the writer as ``attempt`` by compare-and-set; ``None``: somebody else is."""
        args = (attempt, self._clock.wall_ns() + lease_ns, request)
        row = await self._database.write(lambda connection: connection.execute(_CLAIM, args).fetchone())
        return self._record(row) if row else None

    async def cancel(self, request: bytes) -> RequestRecord | None:
        """Ask that a request be stopped; the lease holder obeys. Returns the request, or ``None``."""
        now = self._clock.wall_ns()
        query = (
            "UPDATE gateway_requests SET cancel_at = coalesce(cancel_at, ?) WHERE request = ?"  # noqa: S608
            f" RETURNING {_COLUMNS}"
        )
        row = await self._database.write(
            lambda connection: connection.execute(query, (now, request)).fetchone()
        )
        return self._record(row) if row else None

    async def renew(self, requests: Sequence[tuple[bytes, int]], lease_ns: int) -> Sequence[bytes]:
        """Extend leases of (request, attempt); returns those lost or cancelled, whose work must stop."""
        until = self._clock.wall_ns() + lease_ns

        def extend(connection: sqlite3.Connection) -> list[bytes]:
            return [
                request
                for request, attempt in requests
                if connection.execute(
                    "UPDATE gateway_requests SET lease_until = ? WHERE request = ? AND attempt = ?"
                    " AND ended_at IS NULL AND cancel_at IS NULL",
                    (until, request, attempt),
                ).rowcount
                == 0
            ]

        return await self._database.write(extend)

    async def unpublished(self, limit: int) -> Sequence[RequestRecord]:
        """Return none: a request and its job are one transaction here."""
        del limit
        return ()

    async def abandoned(self, limit: int) -> Sequence[RequestRecord]:
        """Return requests that are neither ended nor leased though their lease ran out."""
        query = (
            f"SELECT {_COLUMNS} FROM gateway_requests WHERE ended_at IS NULL AND lease_until <= ?"  # noqa: S608 - own words
            " AND NOT EXISTS (SELECT 1 FROM gateway_jobs j WHERE j.request = gateway_requests.request)"
            " ORDER BY lease_until LIMIT ?"
        )
        args = (self._clock.wall_ns(), limit)
        rows = await self._database.read(lambda connection: connection.execute(query, args).fetchall())
        return [self._record(row) for row in rows]

    async def unlike(self, prefix: bytes, limit: int) -> Sequence[RequestRecord]:
        """Return up to ``limit`` requests whose body, or log where it is not empty, does not begin with ``prefix``."""
        query = (
            f"SELECT {_COLUMNS} FROM gateway_requests WHERE substr(body, 1, ?1) <> ?2"  # noqa: S608 - own words
            " OR (length(log) > 0 AND substr(log, 1, ?1) <> ?2) LIMIT ?3"
        )
        args = (len(prefix), prefix, limit)
        rows = await self._database.read(lambda connection: connection.execute(query, args).fetchall())
        return [self._record(row) for row in rows]

    async def replace(self, batch: Sequence[tuple[bytes, bytes, bytes]]) -> None:
        """Store (request, body, log) for requests; an empty log leaves the stored one as it is."""
        rows = [(body, log, log, request) for request, body, log in batch]
        await self._database.write(
            lambda connection: connection.executemany(f"{_REPLACE} WHERE request = ?", rows), durable=True
        )

    async def reseal(self, batch: Sequence[tuple[bytes, bytes, bytes, bytes]]) -> None:
        """Store (request, body before, body, log) as :meth:`replace` does, where the body is that one still."""
        rows = [(body, log, log, request, before) for request, before, body, log in batch]
        await self._database.write(
            lambda connection: connection.executemany(f"{_REPLACE} WHERE request = ? AND body = ?", rows),
            durable=True,
        )

    def _record(self, row: tuple[object, ...]) -> RequestRecord:
        record = RequestRecord(**dict(zip(_FIELDS, row, strict=True)))  # pyright: ignore[reportArgumentType]
        now, due = self._clock.wall_ns(), record.deadline_at
        return msgspec.structs.replace(
            record,
            lease_left_ns=max(0, record.lease_until - now),
            deadline_left_ns=None if due is None else due - now,
        )
