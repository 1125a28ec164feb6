"""Taking jobs out of a topic: one member of the group, what it holds of each partition, and how far that is done.

Kafka commits a partition up to an offset, and jobs are done out of order: what is committed is the lowest offset that
is still held. A partition that another member is given is forgotten here, and what was held of it is delivered there.
"""

from __future__ import annotations

import asyncio
import contextlib
import heapq
import itertools
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final, cast

import msgspec
from aiokafka.abc import ConsumerRebalanceListener
from aiokafka.errors import KafkaError
from aiokafka.structs import TopicPartition

from tokenweir.core.errors import UnavailableError
from tokenweir.ports.queue import Job
from tokenweir.stores.gateway.kafka.connection import KafkaServers
from tokenweir.stores.gateway.reporting import LOG

BUFFERED: Final = 2_048
"""Jobs that wait in a process for a free hand; among them a higher priority goes first."""

_LATER: Final = 16_384
"""Jobs that wait in a process until they fall due; beyond it nothing more is read."""
_POLL_MS: Final = 25
_LOOK_MS: Final = 1_000
_AGAIN_S: Final = 0.5
_COMMIT_S: Final = 0.1
_CLOSE_S: Final = 5.0
_JOIN_S: Final = 60.0
POSTPONE_NS: Final = 60_000_000_000
"""A job that is not due after that long goes to the end of the log, so that what was done after it can be committed."""

Floors = Callable[[], Awaitable[dict[int, int]]]
"""Returns what the group has committed, by partition."""


class Queued(msgspec.Struct, frozen=True, array_like=True):
    """A job on its way, when it was queued, and when it may be worked on (Unix ns)."""

    job: Job
    queued_at: int
    due_at: int = 0


_decode = msgspec.msgpack.Decoder(Queued).decode


class _Partition:
    """What this member holds of a partition: offsets below ``position`` that are not done, in order."""

    __slots__ = ("committed", "held", "lost", "position")

    def __init__(self) -> None:
        self.position = 0
        self.held: OrderedDict[int, None] = OrderedDict()
        self.committed = -1
        self.lost = False

    @property
    def done(self) -> int:
        """All below this offset is done."""
        return next(iter(self.held), self.position)

    def raise_to(self, floor: int) -> None:
        """Forget what others have done."""
        for offset in [offset for offset in self.held if offset < floor]:
            del self.held[offset]
        self.position = max(self.position, floor)
        self.committed = max(self.committed, floor)


class Held:
    """A job out of a partition, from when it is read until it is done."""

    __slots__ = ("offset", "partition", "queued")

    def __init__(self, queued: Queued, partition: _Partition, offset: int) -> None:
        self.queued = queued
        self.partition = partition
        self.offset = offset


class Member(ConsumerRebalanceListener):
    """A member of a topic's group. ``changed`` is set whenever :meth:`next` may have something, or it has ended."""

    def __init__(
        self,
        servers: KafkaServers,
        topic: str,
        floors: Floors,
        postpone: Callable[[Sequence[Queued]], Awaitable[None]],
        *,
        postpone_ns: int = POSTPONE_NS,
    ) -> None:
        self._servers = servers
        self._topic = topic
        self._floors = floors
        self._postpone = postpone
        self._postpone_ns = postpone_ns
        self._consumer: Any = None
        self._partitions: dict[int, _Partition] = {}
        self._numbers = itertools.count()
        self._ready: list[tuple[int, int, Held]] = []
        # By when to look at it again.
        self._later: list[tuple[int, int, Held]] = []
        self._moving = False
        self._acknowledged = asyncio.Event()
        self._room = asyncio.Event()
        self._delayed = asyncio.Event()
        self._work: asyncio.Task[None] | None = None
        self.changed = asyncio.Event()
        self.ended: UnavailableError | None = None

    async def start(self, group: asyncio.TaskGroup) -> None:
        """Join the group. ``group`` holds the reading while it lasts. Raises UnavailableError."""
        self._consumer = self._servers.member(self._topic, wait_ms=_POLL_MS)
        self._consumer.subscribe([self._topic], listener=self)
        try:
            with self._servers.explained():
                async with asyncio.timeout(_JOIN_S):
                    await self._consumer.start()
        except BaseException:
            await self._leave()
            raise
        self._work = group.create_task(self._run())

    async def stop(self) -> None:
        """Commit what is done and leave the group: what is not done goes to others."""
        if self._work is not None:
            self._work.cancel()
            await asyncio.wait([self._work])
        await self._commit_soon()
        for partition in self._partitions.values():
            partition.lost = True
        await self._leave()

    async def _leave(self) -> None:
        with contextlib.suppress(KafkaError, OSError, TimeoutError):
            async with asyncio.timeout(_CLOSE_S):
                await self._consumer.stop()

    def next(self) -> Held | None:
        """Return the job to work on next, if there is one."""
        if self._moving or self.ended is not None or not self._ready:
            return None
        held = heapq.heappop(self._ready)[2]
        self._room.set()
        return held

    def done(self, held: Held) -> None:
        """Count a job as done, so that it is committed; in a partition that went to others it counts for nothing."""
        if held.partition.held.pop(held.offset, self) is not self:
            self._acknowledged.set()

    async def _run(self) -> None:
        """Read, commit, and look at what falls due, until cancelled or Kafka fails."""
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._read())
                group.create_task(self._commit_all())
                group.create_task(self._watch())
        except* (UnavailableError, KafkaError, OSError) as errors:
            self.ended = UnavailableError(f"the jobs in Kafka {self._servers.name!r}: {errors.exceptions[0]}")
            self.changed.set()

    async def _read(self) -> None:
        while True:
            room = min(BUFFERED - len(self._ready), _LATER - len(self._later))
            if room <= 0:
                self._room.clear()
                await self._room.wait()
                continue
            found = await self._consumer.getmany(timeout_ms=_LOOK_MS, max_records=room)
            for partition, records in found.items():
                self._take(partition.partition, records)
            if found:
                self.changed.set()

    def _take(self, number: int, records: Sequence[Any]) -> None:
        partition = self._partitions.setdefault(number, _Partition())
        now = time.time_ns()
        for record in records:
            # After the group has moved, what is held here is read again.
            if record.offset < partition.position:
                continue
            partition.position = record.offset + 1
            try:
                queued = _decode(record.value or b"")
            except (msgspec.MsgspecError, ValueError) as error:
                LOG.error("a job cannot be read", topic=self._topic, offset=record.offset, reason=str(error))
                self._acknowledged.set()
                continue
            partition.held[record.offset] = None
            self._put(Held(queued, partition, record.offset), now)

    def _put(self, held: Held, now: int) -> None:
        due_at, number = held.queued.due_at, next(self._numbers)
        if due_at > now:
            heapq.heappush(self._later, (min(due_at, now + self._postpone_ns), number, held))
            self._delayed.set()
        else:
            heapq.heappush(self._ready, (-held.queued.job.priority, number, held))

    async def _watch(self) -> None:
        """Hand on what falls due, and put off what will not for long."""
        while True:
            now, waits_on = time.time_ns(), list[Held]()
            while self._later and self._later[0][0] <= now:
                held = heapq.heappop(self._later)[2]
                if held.queued.due_at <= now:
                    self._put(held, now)
                    self.changed.set()
                else:
                    waits_on.append(held)
            if waits_on:
                await self._put_off(waits_on, now)
            self._room.set()
            self._delayed.clear()
            waits_s = (self._later[0][0] - time.time_ns()) / 1e9 if self._later else None
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(waits_s):
                    await self._delayed.wait()

    async def _put_off(self, waits_on: Sequence[Held], now: int) -> None:
        """Queue jobs at the end of the log, and count them as done here."""
        try:
            await self._postpone([held.queued for held in waits_on if not held.partition.lost])
        except UnavailableError as error:
            LOG.warning("delayed jobs stay where they are", jobs=len(waits_on), reason=str(error))
            for held in waits_on:
                self._put(held, now)
            return
        for held in waits_on:
            self.done(held)

    async def _commit_all(self) -> None:
        while True:
            await self._acknowledged.wait()
            self._acknowledged.clear()
            await self._commit()
            # Those of a moment go together; what is not committed when a worker dies is delivered again.
            await asyncio.sleep(_COMMIT_S)

    async def _commit(self) -> None:
        """Commit what is done of each partition. What cannot be committed now is later, or is delivered again."""
        wanted = {
            number: partition.done
            for number, partition in self._partitions.items()
            if partition.done > partition.committed
        }
        if not wanted:
            return
        try:
            await self._consumer.commit(
                {TopicPartition(self._topic, number): offset for number, offset in wanted.items()}
            )
        except KafkaError as error:
            # The group moves, or has moved.
            LOG.info("jobs that are done are not committed yet", topic=self._topic, reason=str(error))
            self._acknowledged.set()
            return
        for number, offset in wanted.items():
            if number in self._partitions:
                self._partitions[number].committed = max(self._partitions[number].committed, offset)

    async def _commit_soon(self) -> None:
        with contextlib.suppress(KafkaError, OSError, TimeoutError):
            async with asyncio.timeout(_CLOSE_S):
                await self._commit()

    # The client awaits what it is given.
    async def on_partitions_revoked(self, revoked: object) -> None:  # type: ignore[override]
        """Commit before the group moves; what it then gives others is forgotten."""
        del revoked
        self._moving = True
        await self._commit_soon()

    # The client awaits what it is given.
    async def on_partitions_assigned(self, assigned: object) -> None:  # type: ignore[override]
        """Keep what is held of partitions that stay here, and forget the others."""
        kept = {partition.partition for partition in cast("set[TopicPartition]", assigned)}
        stays = kept & set(self._partitions)
        floors: dict[int, int] = {}
        if stays:
            try:
                floors = await self._floors()
            except Exception as error:  # noqa: BLE001 - the client would only log it, and this member wait for ever
                # Reading them again is safe; committing what others have gone beyond is not.
                LOG.warning("jobs in hand are read again", topic=self._topic, reason=str(error))
                self.ended = UnavailableError(f"what is done of {self._topic!r} is not known: {error}")
        for number in set(self._partitions) - kept:
            self._partitions.pop(number).lost = True
        for number in stays:
            self._partitions[number].raise_to(floors.get(number, 0))
        self._ready = [each for each in self._ready if _still(each[2])]
        self._later = [each for each in self._later if _still(each[2])]
        heapq.heapify(self._ready)
        heapq.heapify(self._later)
        self._moving = False
        self._acknowledged.set()
        self._room.set()
        self.changed.set()


def _still(held: Held) -> bool:
    return not held.partition.lost and held.offset in held.partition.held
