"""The event log in Kafka: appended through lanes, read and followed from what this process has at hand of them."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import defaultdict
from collections.abc import AsyncGenerator, Mapping, Sequence
from typing import Final, Protocol

from tokenweir.core.events import Event
from tokenweir.ports.eventlog import LANES, Append
from tokenweir.stores.gateway.kafka.connection import MESSAGE_BYTES, KafkaServers
from tokenweir.stores.gateway.kafka.reader import AT_HAND, LaneReader
from tokenweir.stores.gateway.kafka.records import FORGOTTEN, Packing, Piece, piece_of
from tokenweir.stores.gateway.kafka.writer import LaneWriter

TOPIC: Final = "tokens"
_RETENTION_MS: Final = 7 * 86_400_000
_TRUSTED_S: Final = 1.0
"""How long a writer is taken for the request's writer without asking again."""
_KNOWN: Final = 65_536
_MOST_BYTES: Final = MESSAGE_BYTES - 65_536
_JSON_LONGER: Final = 3
"""How much longer an event may be as JSON than as MessagePack."""


class Attempts(Protocol):
    """Says who writes."""

    async def attempts(self, requests: Sequence[bytes]) -> Mapping[bytes, int]:
        """Return the last attempt claimed of each request that is known."""
        ...

    async def began(self, request: bytes) -> int | None:
        """Return when a request was taken on by the stores' clock (Unix ns), once somebody has claimed it."""
        ...


class KafkaEventLog:
    """Opened with :meth:`open`. ``attempts`` fences writers whose request another has claimed.

    Each lane is a partition; with fewer ``partitions`` some share one.
    """

    def __init__(
        self,
        servers: KafkaServers,
        attempts: Attempts,
        *,
        packing: Packing = "lane",
        at_hand: int = AT_HAND,
        partitions: int = LANES,
    ) -> None:
        self._servers = servers
        self._topic = f"{servers.prefix}{TOPIC}"
        self._attempts = attempts
        self._writer = LaneWriter(servers, self._topic, packing, partitions=partitions)
        self._reader = LaneReader(
            servers, self._topic, attempts.began, at_hand=at_hand, partitions=partitions
        )
        # Up to where this process has written, by lane: its own readers see at least that.
        self._written = [0] * partitions
        self._partitions = partitions
        self._packing: Packing = packing
        self._trusted: dict[tuple[bytes, int], float] = {}

    @contextlib.asynccontextmanager
    async def open(self) -> AsyncGenerator[None]:
        """Make the topic, connect, and read on while the block runs. Raises UnavailableError, ConfigError."""
        await self._servers.make_topic(self._topic, partitions=self._partitions, retention_ms=_RETENTION_MS)
        async with contextlib.AsyncExitStack() as stack:
            stack.push_async_callback(self._reader.stop)
            await self._reader.start()
            sending = await stack.enter_async_context(asyncio.TaskGroup())
            stack.push_async_callback(self._writer.stop)
            await self._writer.start(sending)
            async with asyncio.TaskGroup() as group:
                reading = group.create_task(self._reader.run())
                yield
                reading.cancel()

    @property
    def most_bytes(self) -> int:
        """The most bytes that the events of one append may have as MessagePack: a record holds no more."""
        return _MOST_BYTES if self._packing == "lane" else _MOST_BYTES // _JSON_LONGER

    async def append(self, batch: Sequence[Append]) -> None:
        """Write all durably and wake followers. A seq that is there already is ignored."""
        await self._look_up(batch)
        pieces: dict[int, list[Piece]] = defaultdict(list)
        for append in batch:
            if (append.request, append.attempt) in self._trusted:
                pieces[append.lane % self._partitions].append(piece_of(append))
        await self._write(pieces)

    async def _write(self, pieces: Mapping[int, Sequence[Piece]]) -> None:
        for lane, offset in (await self._writer.write(pieces)).items():
            self._written[lane] = max(self._written[lane], offset + 1)

    async def _look_up(self, batch: Sequence[Append]) -> None:
        """Ask who may write, where that is not known or was asked a while ago."""
        now, trusted = time.monotonic(), self._trusted
        if all(trusted.get((append.request, append.attempt), 0.0) > now for append in batch):
            return
        # Asking for all at once, they need not be asked for one after another.
        asked = {(append.request, append.attempt) for append in batch}
        last = await self._attempts.attempts([request for request, _ in asked])
        for writer in asked:
            self._trusted.pop(writer, None)
            if writer[1] >= last.get(writer[0], 0):
                self._trusted[writer] = now + _TRUSTED_S
        while len(self._trusted) > _KNOWN:
            del self._trusted[next(iter(self._trusted))]

    async def read(self, request: bytes, lane: int, *, after: int = -1) -> Sequence[Event]:
        """Return the events with a seq above ``after`` that are there now, in order, without gaps.

        What another process has written may be seen some milliseconds later; what this one has, at once.
        """
        events, _ = await self._read(request, lane, after)
        return events

    async def _read(self, request: bytes, lane: int, after: int) -> tuple[Sequence[Event], bool]:
        number = lane % self._partitions
        reached = self._written[number]
        fold = self._reader.at_hand_of(request, number, after=after, reached=reached)
        if fold is None:
            fold = await self._reader.read(request, number, after=after, reached=reached)
        if fold.first > after + 1:
            return [], fold.ended
        return fold.events[after + 1 - fold.first :], fold.ended

    async def follow(self, request: bytes, lane: int, *, after: int = -1) -> AsyncGenerator[Sequence[Event]]:
        """Yield events above ``after`` as they come, those there first; ends after an ending event.

        It also ends when the log is forgotten: then it is filed with the request.
        """
        last = after
        with self._reader.following(lane % self._partitions, request) as changed:
            while True:
                changed.clear()
                events, ended = await self._read(request, lane, last)
                if events:
                    last = events[-1].seq
                    yield events
                if ended:
                    return
                if not events:
                    await changed.wait()

    async def forget(self, requests: Sequence[tuple[bytes, int]]) -> None:
        """Drop the events of (request, lane): their log is filed with the request."""
        pieces: dict[int, list[Piece]] = defaultdict(list)
        for request, lane in requests:
            pieces[lane % self._partitions].append(Piece(request, FORGOTTEN))
        await self._write(pieces)
