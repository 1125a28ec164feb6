"""Reading lanes: one consumer for this process, and the events of the requests in its lanes at hand for all readers.

A lane is read while somebody needs it, from its end on. Events before that, and those that had to make room, are read
again from the lane's record on, as far as the reading at the end has come.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator, Sequence
from typing import Any, Final, cast

import msgspec
from aiokafka.errors import KafkaError
from aiokafka.structs import TopicPartition

from tokenweir.core.errors import UnavailableError
from tokenweir.stores.gateway.kafka.connection import KafkaServers
from tokenweir.stores.gateway.kafka.records import Fold, Piece, unpacked
from tokenweir.stores.gateway.reporting import LOG

AT_HAND: Final = 200_000
"""Events kept in memory over all lanes; beyond it the requests that were silent for longest are let go.

Of those that somebody follows the last ones are kept: a long answer is not read again from its beginning.
"""

_KEPT: Final = 256
"""Events kept of a request that is followed, where there is not room for all."""

_POLL_MS: Final = 25
_HISTORY_POLL_MS: Final = 100
_IDLE_S: Final = 60.0
_SKEW_MS: Final = 10_000
"""How far a gateway's clock may be before the broker's for a request to be found by its time at once."""
_AGAIN_S: Final = 0.5
_REACH_S: Final = 10.0
_SILENT_S: Final = 10.0
_READERS: Final = 2
_V7: Final = 7


Began = Callable[[bytes], Awaitable[int | None]]
"""Says when the stores took a request on (Unix ns) that somebody writes to; ``None``: nobody does."""


class Signal:
    """An event for one waiter. Unlike asyncio's it does not ask for the running loop each time it is waited for."""

    __slots__ = ("_loop", "_set", "_waiter")

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._set = False
        self._waiter: asyncio.Future[None] | None = None

    def clear(self) -> None:
        """Forget that it was set."""
        self._set = False

    def set(self) -> None:
        """Wake who waits."""
        self._set = True
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def wait(self) -> None:
        """Return once it is set."""
        if not self._set:
            self._waiter = self._loop.create_future()
            await self._waiter


class _Lane:
    """What this process knows of a lane: all records below ``position`` that came since it looks."""

    __slots__ = ("folds", "followers", "let_go", "moved", "opened", "opening", "position", "used_at")

    def __init__(self) -> None:
        self.opened = False
        self.opening = asyncio.Lock()
        self.position = 0
        self.folds: dict[bytes, Fold] = {}
        # Of requests whose events had to make room: the next seq, and the attempt that counts.
        self.let_go: dict[bytes, tuple[int, int]] = {}
        self.followers = 0
        self.moved = asyncio.Event()
        self.used_at = 0.0


class LaneReader:
    """Reads lanes for all readers of this process. :meth:`run` reads on, beside those that :meth:`read`."""

    def __init__(
        self, servers: KafkaServers, topic: str, began: Began, *, partitions: int, at_hand: int = AT_HAND
    ) -> None:
        self._servers = servers
        self._began = began
        self._partitions = [TopicPartition(topic, lane) for lane in range(partitions)]
        self._consumer: Any = None
        self._lookers: asyncio.Queue[Any] = asyncio.Queue()
        self._all: list[Any] = []
        self._lanes = [_Lane() for _ in range(partitions)]
        # What is set when there is more of a request, for each of its followers.
        self._followers: dict[bytes, list[Signal]] = {}
        self._count = 0
        self._most = at_hand

    async def start(self) -> None:
        """Connect. Raises UnavailableError."""
        for _ in range(_READERS):
            self._lookers.put_nowait(None)
        await self._connect()

    async def _connect(self) -> None:
        """Read with a new consumer, from where the last one was."""
        consumer = await self._started(_POLL_MS)
        consumer.assign(self._partitions)
        for lane, partition in zip(self._lanes, self._partitions, strict=True):
            consumer.seek(partition, lane.position)
            if not lane.opened:
                consumer.pause(partition)
        self._consumer = consumer

    async def _started(self, wait_ms: int) -> Any:  # noqa: ANN401 - the client's types are unknown
        consumer = self._servers.consumer(wait_ms=wait_ms)
        try:
            with self._servers.explained():
                await consumer.start()
        except BaseException:
            await consumer.stop()
            raise
        self._all.append(consumer)
        return consumer

    async def _ended(self, consumer: Any) -> None:  # noqa: ANN401 - the client's types are unknown
        self._all.remove(consumer)
        with contextlib.suppress(KafkaError, OSError):
            await consumer.stop()

    async def stop(self) -> None:
        """Close."""
        for consumer in list(self._all):
            await self._ended(consumer)

    @property
    def at_hand(self) -> int:
        """How many events are in memory."""
        return self._count

    @contextlib.contextmanager
    def following(self, number: int, request: bytes) -> Generator[Signal]:
        """Keep a lane open while the block runs, and yield what is set when there is more of a request in it.

        Cleared before :meth:`read`, it misses nothing.
        """
        lane, changed = self._lanes[number], Signal()
        lane.followers += 1
        self._followers.setdefault(request, []).append(changed)
        try:
            yield changed
        finally:
            lane.followers -= 1
            lane.used_at = time.monotonic()
            others = self._followers[request]
            others.remove(changed)
            if not others:
                del self._followers[request]

    def at_hand_of(self, request: bytes, number: int, *, after: int, reached: int) -> Fold | None:
        """Return what :meth:`read` would, where that has not to be waited for."""
        lane = self._lanes[number]
        fold = lane.folds.get(request)
        if fold is None or not lane.opened or lane.position < reached or _lacks(fold, after):
            return None
        lane.used_at = time.monotonic()
        return fold

    async def read(self, request: bytes, number: int, *, after: int, reached: int) -> Fold:
        """Return a request's events after a seq, at hand from there on; the lane is read at least up to ``reached``.

        Raises:
            UnavailableError: Kafka cannot be reached.
        """
        lane = await self._open(number)
        if lane.position < reached:
            await self._reach(lane, reached)
        fold = lane.folds.get(request)
        if fold is None or _lacks(fold, after):
            # What came before decides what counts: only whoever knows a request from its beginning can tell.
            fold = await self._history(request, number, lane)
        return fold

    async def _open(self, number: int) -> _Lane:
        lane = self._lanes[number]
        lane.used_at = time.monotonic()
        if not lane.opened:
            async with lane.opening:
                if not lane.opened:
                    partition = self._partitions[number]
                    async with self._looker() as looker:
                        ends = cast("dict[TopicPartition, int]", await looker.end_offsets([partition]))
                    lane.position = ends[partition]
                    lane.opened = True
                    self._consumer.seek(partition, lane.position)
                    self._consumer.resume(partition)
        return lane

    async def _reach(self, lane: _Lane, offset: int) -> None:
        try:
            async with asyncio.timeout(_REACH_S):
                while lane.position < offset:
                    await lane.moved.wait()
        except TimeoutError:
            raise UnavailableError(
                f"the event log {self._servers.name!r} does not give what was written", mend="try again"
            ) from None

    async def _history(self, request: bytes, number: int, lane: _Lane) -> Fold:
        """Read a request's events from the lane's records, and keep them at hand."""
        partition = self._partitions[number]
        async with self._looker() as looker:
            since_ms = _began_ms(request)
            fold = await self._fold(looker, request, number, await _start(looker, partition, since_ms))
            if since_ms is not None and (fold.empty or not fold.known):
                # Nobody has written yet, or the clock that made the id was before the broker's.
                at = await self._began(request)
                if at is not None and at // 1_000_000 - _SKEW_MS < since_ms:
                    start = await _start(looker, partition, max(0, at // 1_000_000 - _SKEW_MS))
                    fold = await self._fold(looker, request, number, start)
            if not fold.known:
                fold = await self._fold(looker, request, number, await _start(looker, partition, None))
        if fold.empty:
            return fold
        # Since this reading has come as far as the one at the end, no record was taken there.
        self._let_go(lane, request)
        lane.let_go.pop(request, None)
        if not fold.forgotten:
            lane.folds[request] = fold
            self._grow(len(fold.events))
        return fold

    async def _fold(
        self,
        looker: Any,  # noqa: ANN401 - the client's types are unknown
        request: bytes,
        number: int,
        position: int,
    ) -> Fold:
        fold, lane, partition = Fold(), self._lanes[number], self._partitions[number]
        looker.assign([partition])
        looker.seek(partition, position)
        heard_at = time.monotonic()
        try:
            # The reading at the end goes on meanwhile. What is taken here before it comes there is ignored there.
            while position < lane.position:
                found = await looker.getmany(partition, timeout_ms=1000)
                for record in found.get(partition, ()):
                    for piece in self._pieces(record):
                        if piece.request == request:
                            fold.take(piece)
                now, before = time.monotonic(), position
                position = await looker.position(partition)
                if position > before:
                    heard_at = now
                elif now - heard_at > _SILENT_S:
                    raise UnavailableError(
                        f"the event log {self._servers.name!r} does not give its records", mend="try again"
                    )
        finally:
            # Without an assignment the client's reading would end for good.
            looker.pause(partition)
        return fold

    @contextlib.asynccontextmanager
    async def _looker(self) -> AsyncGenerator[Any]:
        """Give a consumer for looking back; few do at once."""
        looker = await self._lookers.get()
        try:
            if looker is None:
                looker = await self._started(_HISTORY_POLL_MS)
            with self._servers.explained():
                yield looker
        except UnavailableError:
            # It may have ended inside; the next one is new.
            if looker is not None:
                broken, looker = looker, None
                await self._ended(broken)
            raise
        finally:
            self._lookers.put_nowait(looker)

    async def run(self) -> None:
        """Read on in the lanes that are open, until cancelled."""
        looked_at = time.monotonic()
        while True:
            try:
                with self._servers.explained():
                    found = cast(
                        "dict[TopicPartition, list[Any]]", await self._consumer.getmany(timeout_ms=1000)
                    )
            except UnavailableError as error:
                LOG.warning("the lanes of events cannot be read", reason=str(error))
                await asyncio.sleep(_AGAIN_S)
                await self._again()
                continue
            for partition, records in found.items():
                self._take(self._lanes[partition.partition], records)
            if time.monotonic() - looked_at > _IDLE_S / 6:
                looked_at = time.monotonic()
                self._close_idle(looked_at)

    async def _again(self) -> None:
        """Read with a new consumer: what has ended inside the client does not begin again."""
        before = self._consumer
        try:
            await self._connect()
        except UnavailableError as error:
            LOG.warning("the lanes of events cannot be read", reason=str(error))
        else:
            await self._ended(before)

    def _take(self, lane: _Lane, records: Sequence[Any]) -> None:
        touched: set[bytes] = set()
        for record in records:
            if record.offset < lane.position:
                continue
            for piece in self._pieces(record):
                fold = lane.folds.pop(piece.request, None)
                if fold is None and piece.request in lane.let_go:
                    fold = Fold(*lane.let_go.pop(piece.request))
                elif fold is None:
                    fold = Fold()
                    # Anything but the very first that is written of a request may follow what was not seen here.
                    fold.known = piece.attempt <= 1 and bool(piece.events) and piece.events[0].seq == 0
                # Last in the order: those that are silent come first.
                lane.folds[piece.request] = fold
                self._count += fold.take(piece)
                touched.add(piece.request)
                if fold.forgotten:
                    del lane.folds[piece.request]
            lane.position = record.offset + 1
        moved, lane.moved = lane.moved, asyncio.Event()
        moved.set()
        for request in touched:
            for changed in self._followers.get(request, ()):
                changed.set()
        self._grow(0)

    def _pieces(self, record: Any) -> Sequence[Piece]:  # noqa: ANN401 - the client's types are unknown
        """Return what a record holds. One that is not ours must not end the reading of all that are."""
        try:
            return unpacked(record.key, record.value)
        except (msgspec.MsgspecError, ValueError) as error:
            LOG.error("a record of the event log cannot be read", offset=record.offset, reason=str(error))
            return ()

    def _grow(self, count: int) -> None:
        """Count events at hand; where they are too many, let the longest silent requests of each lane go."""
        self._count += count
        while self._count > self._most:
            fullest = max(self._lanes, key=lambda lane: len(lane.folds))
            if not fullest.folds:
                return
            for request, fold in fullest.folds.items():
                if request not in self._followers:
                    self._let_go(fullest, request)
                    break
                if len(fold.events) > 2 * _KEPT:
                    self._count -= fold.trim(_KEPT)
                    break
            else:
                self._let_go(fullest, next(iter(fullest.folds)))

    def _let_go(self, lane: _Lane, request: bytes) -> None:
        fold = lane.folds.pop(request, None)
        if fold is not None:
            self._count -= len(fold.events)
            if fold.known:
                lane.let_go[request] = (fold.next_seq, fold.attempt)

    def _close_idle(self, now: float) -> None:
        for lane, partition in zip(self._lanes, self._partitions, strict=True):
            if lane.opened and not lane.followers and now - lane.used_at > _IDLE_S:
                lane.opened = False
                self._consumer.pause(partition)
                for request in list(lane.folds):
                    self._let_go(lane, request)
                lane.let_go.clear()


def _lacks(fold: Fold, after: int) -> bool:
    """Whether something before what is at hand has to be read first."""
    return not fold.known or (fold.first > after + 1 and not fold.forgotten)


async def _start(looker: Any, partition: TopicPartition, since_ms: int | None) -> int:  # noqa: ANN401
    """Return the first offset of a time, or of all."""
    if since_ms is not None:
        found = (await looker.offsets_for_times({partition: since_ms}))[partition]
        if found is not None:
            return int(found.offset)
        return int((await looker.end_offsets([partition]))[partition])
    return int((await looker.beginning_offsets([partition]))[partition])


def _began_ms(request: bytes) -> int | None:
    """Return when a request can have begun, in Unix ms: its id holds the time. ``None``: it does not."""
    if request[6] >> 4 != _V7:
        return None
    return max(0, int.from_bytes(request[:6], "big") - _SKEW_MS)
