"""The event log in SQLite: a row for each append, and the open requests' events at hand in memory for followers."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncGenerator, Sequence
from typing import Final

import msgspec

from tokenweir.core.events import Cancelled, Completed, Event, Failed
from tokenweir.ports.eventlog import Append
from tokenweir.stores.gateway.sqlite.database import Database

_INSERT: Final = (
    "INSERT INTO gateway_events (request, first_seq, last_seq, events) VALUES (?, ?, ?, ?)"
    " ON CONFLICT DO NOTHING"
)
_AT_HAND: Final = 200_000
"""Events of open requests kept in memory, over all requests; older requests' are read from the file."""

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(tuple[Event, ...]).decode


class _Tail:
    """The events of one open request since this process began to see it, and who waits for more."""

    __slots__ = ("changed", "events", "first", "forgotten")

    def __init__(self, first: int) -> None:
        self.first = first
        self.events: list[Event] = []
        self.changed = asyncio.Event()
        self.forgotten = False


class SqliteEventLog:
    """The embedded event log. Used from one event loop."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._tails: dict[bytes, _Tail] = {}
        self._at_hand = 0

    async def append(self, batch: Sequence[Append]) -> None:
        """Write all durably and wake followers. A seq that is there already is ignored."""
        written = await self._database.write(
            lambda connection: [self._append(connection, append) for append in batch]
        )
        for append, events in zip(batch, written, strict=True):
            if events:
                self._publish(append.request, events)

    def _append(self, connection: sqlite3.Connection, append: Append) -> tuple[Event, ...]:
        """Write what is new of the events, unless a later attempt has begun; return it."""
        if not append.events:
            return ()
        row = connection.execute(
            "SELECT (SELECT attempt FROM gateway_requests WHERE request = ?1),"
            " (SELECT max(last_seq) FROM gateway_events WHERE request = ?1)",
            (append.request,),
        ).fetchone()
        attempt, last = row
        if attempt is not None and append.attempt < attempt:
            return ()
        fresh = append.events
        if last is not None and fresh[0].seq <= last:
            fresh = tuple(event for event in fresh if event.seq > last)
        if fresh:
            connection.execute(_INSERT, (append.request, fresh[0].seq, fresh[-1].seq, _encode(fresh)))
        return fresh

    def _publish(self, request: bytes, events: Sequence[Event]) -> None:
        """Keep committed events at hand, and wake followers."""
        tail = self._tails.get(request)
        if tail is None:
            tail = self._tails[request] = _Tail(events[0].seq)
        # A tail that was made after the commit and before this begins behind these events.
        fresh = [event for event in events if event.seq >= tail.first + len(tail.events)]
        tail.events.extend(fresh)
        self._at_hand += len(fresh)
        changed, tail.changed = tail.changed, asyncio.Event()
        changed.set()
        while self._at_hand > _AT_HAND and len(self._tails) > 1:
            self._let_go(next(iter(self._tails)))

    def _let_go(self, request: bytes, *, forgotten: bool = False) -> None:
        tail = self._tails.pop(request, None)
        if tail is not None:
            tail.forgotten = forgotten
            self._at_hand -= len(tail.events)
            # Followers look again, and read from the file.
            tail.changed.set()

    async def read(self, request: bytes, lane: int, *, after: int = -1) -> Sequence[Event]:
        """Return the events with a seq above ``after`` that are there now, in order, without gaps."""
        del lane
        tail = self._tails.get(request)
        if tail is not None and after + 1 >= tail.first:
            return tail.events[after + 1 - tail.first :]
        rows = await self._database.read(
            lambda connection: connection.execute(
                "SELECT events FROM gateway_events WHERE request = ? AND last_seq > ? ORDER BY first_seq",
                (request, after),
            ).fetchall()
        )
        return [event for (packed,) in rows for event in _decode(packed) if event.seq > after]

    async def follow(self, request: bytes, lane: int, *, after: int = -1) -> AsyncGenerator[Sequence[Event]]:
        """Yield events above ``after`` as they come, those there first; ends after an ending event.

        It also ends when the events are forgotten: who has not seen the end yet finds it filed with the request.
        """
        last = after
        while True:
            # Taken before reading, so that what is appended meanwhile is not missed.
            tail = self._tails.get(request)
            if tail is None:
                # Another follower, or an append, may make it meanwhile.
                tail = self._tails.setdefault(request, _Tail(await self._next_seq(request)))
            changed, seen = tail.changed, tail
            events = await self.read(request, lane, after=last)
            if events:
                last = events[-1].seq
                yield events
                if isinstance(events[-1], Completed | Failed | Cancelled):
                    return
                continue
            if not seen.forgotten:
                await changed.wait()
            if seen.forgotten:
                return

    async def _next_seq(self, request: bytes) -> int:
        (last,) = await self._database.read(
            lambda connection: connection.execute(
                "SELECT max(last_seq) FROM gateway_events WHERE request = ?", (request,)
            ).fetchone()
        )
        return 0 if last is None else last + 1

    async def forget(self, requests: Sequence[tuple[bytes, int]]) -> None:
        """Drop the events of (request, lane): their log is filed with the request."""
        rows = [(request,) for request, _ in requests]
        await self._database.write(
            lambda connection: connection.executemany("DELETE FROM gateway_events WHERE request = ?", rows)
        )
        for request, _ in requests:
            self._let_go(request, forgotten=True)
