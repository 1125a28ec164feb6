"""The job queue in SQLite: jobs are rows, and the one process that writes them hands them out from memory."""

from __future__ import annotations

import asyncio
import heapq
import sqlite3
from collections.abc import AsyncGenerator, Sequence
from typing import Final

import msgspec

from tokenweir.core.clock import Clock
from tokenweir.ports.queue import Delivery, Job, QueueDepth
from tokenweir.stores.gateway.sqlite.database import Database

_INSERT: Final = (
    "INSERT INTO gateway_jobs (request, lane, attempt, priority, queued_at, due_at, dead, errors)"
    " VALUES (?, ?, ?, ?, ?, ?, 0, ?)"
    " ON CONFLICT (request) DO UPDATE SET attempt = excluded.attempt, priority = excluded.priority,"
    " due_at = excluded.due_at, dead = 0, errors = excluded.errors"
)
_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(tuple[str, ...]).decode


class SqliteQueue:
    """The embedded job queue, and its dead letters. Opened with :meth:`load`; used from one event loop."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock
        # (due, −priority, order, job): what is due is handed out by priority, then in order.
        self._later: list[tuple[int, int, Job]] = []
        self._ready: list[tuple[int, int, Job]] = []
        self._out: set[bytes] = set()
        self._order = 0
        self._changed = asyncio.Event()

    async def load(self) -> None:
        """Take up the jobs that an earlier process left."""
        rows = await self._database.read(
            lambda connection: connection.execute(
                "SELECT request, lane, attempt, priority, errors, due_at FROM gateway_jobs WHERE NOT dead"
                " ORDER BY queued_at"
            ).fetchall()
        )
        for request, lane, attempt, priority, errors, due_at in rows:
            job = Job(request=request, lane=lane, attempt=attempt, priority=priority, errors=_decode(errors))
            self._put(job, due_at)
        self._changed.set()

    async def publish(self, batch: Sequence[Job], *, delay_ns: int = 0) -> None:
        """Queue jobs durably, to be delivered after ``delay_ns``."""
        due_at = self._clock.wall_ns() + delay_ns

        def insert(connection: sqlite3.Connection) -> None:
            for job in batch:
                self.insert_now(connection, job, due_at=due_at)

        await self._database.write(insert, durable=True)
        for job in batch:
            # The same request may be out with an earlier attempt, which this one replaces.
            self._out.discard(job.request)
            self._put(job, due_at)
        self._changed.set()

    def insert_now(self, connection: sqlite3.Connection, job: Job, *, due_at: int) -> None:
        """Write a job within the transaction at hand; :meth:`offer` it after the commit."""
        connection.execute(
            _INSERT,
            (
                job.request,
                job.lane,
                job.attempt,
                job.priority,
                self._clock.wall_ns(),
                due_at,
                _encode(job.errors),
            ),
        )

    def offer(self, jobs: Sequence[Job]) -> None:
        """Hand out jobs whose rows are committed."""
        for job in jobs:
            self._put(job, 0)
        if jobs:
            self._changed.set()

    def _put(self, job: Job, due_at: int) -> None:
        self._order += 1
        if due_at > self._clock.wall_ns():
            heapq.heappush(self._later, (due_at, self._order, job))
        else:
            heapq.heappush(self._ready, (-job.priority, self._order, job))

    async def deliveries(self, *, prefetch: int) -> AsyncGenerator[Delivery]:
        """Yield jobs, at most ``prefetch`` unacknowledged; closing it gives back what is not acknowledged."""
        mine: dict[bytes, Job] = {}
        try:
            while True:
                for request in [request for request in mine if request not in self._out]:
                    del mine[request]
                job = self._next() if len(mine) < prefetch else None
                if job is None:
                    await self._wait()
                    continue
                mine[job.request] = job
                self._out.add(job.request)
                yield Delivery(job=job, tag=job.attempt)
        finally:
            for request, job in mine.items():
                if request in self._out:
                    self._out.discard(request)
                    self._put(job, 0)
            self._changed.set()

    def _next(self) -> Job | None:
        now = self._clock.wall_ns()
        while self._later and self._later[0][0] <= now:
            _, order, job = heapq.heappop(self._later)
            heapq.heappush(self._ready, (-job.priority, order, job))
        return heapq.heappop(self._ready)[2] if self._ready else None

    async def _wait(self) -> None:
        """Wait until something changes or a delayed job falls due."""
        changed = self._changed
        if changed.is_set():
            # Others may wait for the same change: each looks again once.
            self._changed = asyncio.Event()
            await asyncio.sleep(0)
            return
        delay = (self._later[0][0] - self._clock.wall_ns()) / 1e9 if self._later else None
        try:
            async with asyncio.timeout(delay):
                await changed.wait()
        except TimeoutError:
            return

    async def acknowledge(self, batch: Sequence[Delivery]) -> None:
        """Done with these: they are never delivered again."""
        rows = [(delivery.job.request, delivery.job.attempt) for delivery in batch]
        await self._database.write(
            lambda connection: connection.executemany(
                "DELETE FROM gateway_jobs WHERE request = ? AND attempt = ? AND NOT dead", rows
            )
        )
        self._release(batch)

    async def bury(self, delivery: Delivery, error: str) -> None:
        """Give a job up: it goes to the dead letters with its errors."""
        job = delivery.job
        errors = _encode((*job.errors, error))
        await self._database.write(
            lambda connection: connection.execute(
                "UPDATE gateway_jobs SET dead = 1, errors = ? WHERE request = ? AND attempt = ?",
                (errors, job.request, job.attempt),
            ),
            durable=True,
        )
        self._release([delivery])

    def _release(self, batch: Sequence[Delivery]) -> None:
        for delivery in batch:
            self._out.discard(delivery.job.request)
        self._changed.set()

    async def depth(self) -> QueueDepth:
        """Return how the queue stands."""
        row = await self._database.read(
            lambda connection: connection.execute(
                "SELECT count(*) FILTER (WHERE NOT dead), count(*) FILTER (WHERE dead),"
                " min(queued_at) FILTER (WHERE NOT dead) FROM gateway_jobs"
            ).fetchone()
        )
        alive, dead, oldest = row
        age = 0 if oldest is None else max(0, self._clock.wall_ns() - oldest)
        out = len(self._out)
        return QueueDepth(ready=max(0, alive - out), unacknowledged=out, oldest_ns=age, dead=dead)

    async def dead(self, *, limit: int) -> Sequence[Job]:
        """Return dead jobs, oldest first."""
        rows = await self._database.read(
            lambda connection: connection.execute(
                "SELECT request, lane, attempt, priority, errors FROM gateway_jobs WHERE dead"
                " ORDER BY queued_at LIMIT ?",
                (limit,),
            ).fetchall()
        )
        return [
            Job(request=request, lane=lane, attempt=attempt, priority=priority, errors=_decode(errors))
            for request, lane, attempt, priority, errors in rows
        ]

    async def replay(self, request: bytes) -> bool:
        """Queue a dead job again with a fresh attempt; ``False``: there is none."""
        for job in await self.dead(limit=2**31):
            if job.request == request:
                await self.publish([msgspec.structs.replace(job, attempt=job.attempt + 1)])
                return True
        return False

    async def drop(self, request: bytes) -> bool:
        """Forget a dead job; ``False``: there is none."""
        return await self._database.write(
            lambda connection: (
                connection.execute("DELETE FROM gateway_jobs WHERE request = ? AND dead", (request,)).rowcount
                > 0
            )
        )
