"""Writing to lanes: what gathers while a lane's last record is on its way is packed into its next one."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any, Final, cast

import msgspec

from tokenweir.core.errors import UnavailableError
from tokenweir.stores.gateway.kafka.connection import MESSAGE_BYTES, KafkaServers
from tokenweir.stores.gateway.kafka.records import Packing, Piece, packed

_RECORD_EVENTS: Final = 4096
_WAITING_EVENTS: Final = 262_144


class _Lane:
    __slots__ = ("filled", "pieces", "sent")

    def __init__(self) -> None:
        self.pieces: list[Piece] = []
        self.filled: asyncio.Future[int] | None = None
        self.sent: asyncio.Future[int] | None = None


class LaneWriter:
    """One producer with at most one record on its way for each lane, so that there is order and no timer."""

    def __init__(self, servers: KafkaServers, topic: str, packing: Packing, *, partitions: int) -> None:
        self._servers = servers
        self._topic = topic
        self._packing: Packing = packing
        self._producer: Any = None
        self._lanes = [_Lane() for _ in range(partitions)]
        self._waiting = 0
        self._group: asyncio.TaskGroup | None = None

    async def start(self, group: asyncio.TaskGroup) -> None:
        """Connect. ``group`` holds the sending while it lasts. Raises UnavailableError."""
        self._group = group
        self._producer = self._servers.producer()
        with self._servers.explained():
            await self._producer.start()

    async def stop(self) -> None:
        """Send what was given and close."""
        if self._producer is not None:
            await self._producer.stop()

    async def write(self, pieces: Mapping[int, Sequence[Piece]]) -> Mapping[int, int]:
        """Write pieces by lane, and return the offset at which each lane then stands, once it is durable.

        Raises:
            UnavailableError: some of it may not have been written; to write it again does no harm.
        """
        if self._waiting > _WAITING_EVENTS:
            raise UnavailableError(
                f"{self._waiting} events wait for the event log {self._servers.name!r}",
                mend="try again shortly",
            )
        futures = {lane: self._put(lane, some) for lane, some in pieces.items()}
        return {lane: await asyncio.shield(future) for lane, future in futures.items()}

    def _put(self, number: int, pieces: Sequence[Piece]) -> asyncio.Future[int]:
        lane = self._lanes[number]
        lane.pieces.extend(pieces)
        self._waiting += sum(len(piece.events) for piece in pieces)
        if lane.filled is None:
            lane.filled = asyncio.get_running_loop().create_future()
            # Whoever waited may be gone when it fails.
            lane.filled.add_done_callback(_looked_at)
        future = lane.filled
        if lane.sent is None and self._group is not None:
            lane.sent = future
            self._group.create_task(self._send(number))
        return future

    async def _send(self, number: int) -> None:
        """Send a lane's pieces, record after record, until none waits."""
        lane = self._lanes[number]
        # All that is given in this turn of the loop goes together.
        await asyncio.sleep(0)
        while lane.filled is not None:
            future, lane.filled = lane.filled, None
            pieces, lane.pieces = lane.pieces, []
            try:
                offset = await self._send_all(number, pieces)
            except Exception as error:  # noqa: BLE001 - it is told to all who wait for it
                future.set_exception(error)
            else:
                future.set_result(offset)
            self._waiting -= sum(len(piece.events) for piece in pieces)
        lane.sent = None

    async def _send_all(self, number: int, pieces: Sequence[Piece]) -> int:
        offset = -1
        with self._servers.explained():
            for part in _parts(pieces):
                records = packed(part, self._packing)
                if len(records) == 1 and len(records[0][1]) > MESSAGE_BYTES - 65_536 and len(part) > 1:
                    records = [record for piece in part for record in packed([piece], self._packing)]
                sending = [
                    cast("asyncio.Future[Any]", await self._producer.send(self._topic, value, key, number))
                    for key, value in records
                ]
                for future in sending:
                    offset = (await future).offset
        return offset


def _parts(pieces: Sequence[Piece]) -> list[list[Piece]]:
    """Return pieces in portions that a record may hold; one of very many events is divided."""
    parts: list[list[Piece]] = [[]]
    room = _RECORD_EVENTS
    for piece in pieces:
        for first in range(0, max(1, len(piece.events)), _RECORD_EVENTS):
            some = msgspec.structs.replace(piece, events=piece.events[first : first + _RECORD_EVENTS])
            if len(some.events) > room:
                parts.append([])
                room = _RECORD_EVENTS
            parts[-1].append(some)
            room -= len(some.events)
    return parts


def _looked_at(future: asyncio.Future[int]) -> None:
    if not future.cancelled():
        future.exception()
