"""Jobs in a topic that workers share as a group, and their dead letters in a compacted one beside it."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from typing import Any, Final, cast

import msgspec
from aiokafka.admin import AIOKafkaAdminClient, RecordsToDelete
from aiokafka.errors import KafkaError
from aiokafka.structs import TopicPartition

from tokenweir.core.errors import UnavailableError
from tokenweir.ports.queue import Delivery, Job, QueueDepth
from tokenweir.stores.gateway.kafka.burials import Burials
from tokenweir.stores.gateway.kafka.connection import KafkaServers
from tokenweir.stores.gateway.kafka.consuming import POSTPONE_NS, Held, Member, Queued
from tokenweir.stores.gateway.reporting import LOG

PROMPTS: Final = "prompts"
RESULTS: Final = "results"
PARTITIONS: Final = 64
"""As many processes can take jobs at once."""

_TIDY_S: Final = 600.0
_RECONNECT_S: Final = 0.5
_KNOWN_S: Final = 1.0
_OLDEST_S: Final = 1.0
_LOOK_MS: Final = 200
_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Queued).decode


class KafkaQueue:
    """The jobs of a topic and their dead letters; used inside :meth:`open`.

    A job goes to a partition by its request's id, so that the many jobs of one user are everybody's work. One that is
    not due after ``postpone_ns`` goes to the end of the log.
    """

    def __init__(
        self,
        servers: KafkaServers,
        name: str = PROMPTS,
        *,
        partitions: int = PARTITIONS,
        postpone_ns: int = POSTPONE_NS,
    ) -> None:
        self.name = name
        self._servers = servers
        self._topic = f"{servers.prefix}{name}"
        self._partitions = partitions
        self._postpone_ns = postpone_ns
        self._producer: Any = None
        self._looker: Any = None
        self._admin: Any = None
        self._looking = asyncio.Lock()
        self._burials = Burials(servers, f"{self._topic}.dead")
        self._group: asyncio.TaskGroup | None = None
        self._numbers = itertools.count()
        self._members: set[Member] = set()
        self._out: dict[str, tuple[Member, Held, set[str]]] = {}
        self._known: tuple[float, QueueDepth] | None = None

    @contextlib.asynccontextmanager
    async def open(self) -> AsyncGenerator[None]:
        """Make the topics, connect, and read on while the block runs. Raises UnavailableError, ConfigError."""
        # A job is kept until it is done, however long nobody takes it.
        await self._servers.make_topic(self._topic, partitions=self._partitions, retention_ms=-1)
        await self._burials.make()
        async with contextlib.AsyncExitStack() as stack:
            stack.push_async_callback(self._close_lookers)
            stack.push_async_callback(self._burials.stop)
            self._producer = self._servers.producer()
            stack.push_async_callback(self._producer.stop)
            with self._servers.explained():
                await self._producer.start()
            self._group = await stack.enter_async_context(asyncio.TaskGroup())
            stack.push_async_callback(self._leave)
            tidying = self._group.create_task(self._tidy_up())
            yield
            tidying.cancel()

    async def _leave(self) -> None:
        self._group = None
        for member in list(self._members):
            await self._end(member)

    async def _tidy_up(self) -> None:
        while True:
            await asyncio.sleep(_TIDY_S)
            try:
                await self.tidy()
            except UnavailableError as error:
                LOG.info("jobs that are done are let go of later", queue=self.name, reason=str(error))

    async def tidy(self) -> None:
        """Let Kafka drop what the group has committed; any process does, every 10 minutes. Raises UnavailableError."""
        async with self._looking:
            floors = await self._floors()
            done = {
                TopicPartition(self._topic, number): RecordsToDelete(offset)
                for number, offset in floors.items()
                if offset > 0
            }
            try:
                with self._servers.explained():
                    if done:
                        await self._admin.delete_records(done)
            except BaseException:
                await self._close_admin()
                raise

    async def publish(self, batch: Sequence[Job], *, delay_ns: int = 0) -> None:
        """Queue jobs durably, to be delivered after ``delay_ns``; returns once all replicas in sync have them."""
        now = time.time_ns()
        due_at = now + delay_ns if delay_ns > 0 else 0
        await self._send([Queued(job, now, due_at) for job in batch])

    async def _send(self, batch: Sequence[Queued]) -> None:
        with self._servers.explained():
            sending = [
                cast(
                    "asyncio.Future[Any]",
                    await self._producer.send(self._topic, _encode(queued), None, self._number(queued.job)),
                )
                for queued in batch
            ]
            if sending:
                await asyncio.wait(sending)
            for future in sending:
                future.result()

    def _number(self, job: Job) -> int:
        return int.from_bytes(job.request[-4:], "big") % self._partitions

    async def deliveries(self, *, prefetch: int) -> AsyncGenerator[Delivery]:
        """Yield jobs, at most ``prefetch`` unacknowledged; closing it gives back what is not acknowledged.

        What was yielded of a partition that another worker was given is delivered there again.
        """
        out: set[str] = set()
        while (group := self._group) is not None:
            member = Member(
                self._servers, self._topic, self._floors, self._send, postpone_ns=self._postpone_ns
            )
            try:
                await member.start(group)
            except UnavailableError as error:
                LOG.warning("a worker waits for the queue", queue=self.name, reason=str(error))
                await asyncio.sleep(_RECONNECT_S)
                continue
            self._members.add(member)
            try:
                while member.ended is None:
                    held = member.next() if len(out) < prefetch else None
                    if held is None:
                        await member.changed.wait()
                        member.changed.clear()
                        continue
                    tag = f"{next(self._numbers)}"
                    out.add(tag)
                    self._out[tag] = (member, held, out)
                    yield Delivery(job=held.queued.job, tag=tag)
                LOG.warning("a worker has lost the queue", queue=self.name, reason=str(member.ended))
                await asyncio.sleep(_RECONNECT_S)
            finally:
                await self._end(member)

    async def _end(self, member: Member) -> None:
        self._members.discard(member)
        try:
            await member.stop()
        finally:
            for tag in [tag for tag, (owner, _, _) in self._out.items() if owner is member]:
                _, _, out = self._out.pop(tag)
                out.discard(tag)

    async def acknowledge(self, batch: Sequence[Delivery]) -> None:
        """Done with these: they are never delivered again.

        The group hears of it a moment later, and once all before them in their partition are done: what a lost worker
        had not told is delivered again all the same; its request is claimed by an attempt, once.
        """
        for delivery in batch:
            found = self._out.pop(str(delivery.tag), None)
            if found is not None:
                member, held, out = found
                out.discard(str(delivery.tag))
                member.done(held)
                member.changed.set()

    async def bury(self, delivery: Delivery, error: str) -> None:
        """Give a job up: it goes to the dead letters with its errors."""
        job = msgspec.structs.replace(delivery.job, errors=(*delivery.job.errors, error))
        await self._burials.write(self._producer, job.request, job)
        await self.acknowledge([delivery])
        self._known = None

    async def depth(self) -> QueueDepth:
        """Return how the queue stood within the last second; what is out is known of this process alone.

        ``ready`` is what the group has not committed: also what other workers have in hand, or have just done.
        """
        async with self._looking:
            known = self._known
            if known is None or known[0] < time.monotonic():
                async with self._burials.looking() as buried:
                    dead = len(buried)
                try:
                    with self._servers.explained():
                        depth = await self._look(dead)
                except BaseException:
                    await self._close_lookers()
                    raise
                known = self._known = (time.monotonic() + _KNOWN_S, depth)
        return known[1]

    async def _look(self, dead: int) -> QueueDepth:
        places = [TopicPartition(self._topic, number) for number in range(self._partitions)]
        if self._looker is None:
            self._looker = self._servers.consumer(wait_ms=_LOOK_MS, bytes_each=32_768)
            await self._looker.start()
        # Asked for in this order, nothing is committed beyond the end.
        floors = await self._floors()
        first = cast("Mapping[TopicPartition, int]", await self._looker.beginning_offsets(places))
        ends = cast("Mapping[TopicPartition, int]", await self._looker.end_offsets(places))
        left = {place: max(first[place], floors.get(place.partition, 0)) for place in places}
        left = {place: offset for place, offset in left.items() if offset < ends[place]}
        waiting = sum(ends[place] - offset for place, offset in left.items())
        out = sum(not held.partition.lost for _, held, _ in self._out.values())
        return QueueDepth(
            ready=max(0, waiting - out),
            unacknowledged=len(self._out),
            oldest_ns=await self._oldest(left) if left else 0,
            dead=dead,
        )

    async def _oldest(self, left: Mapping[TopicPartition, int]) -> int:
        """Return how long ago the first of what is left was queued, as far as Kafka says so within a second."""
        looker, now = self._looker, time.time_ns()
        oldest, unseen = now, set(left)
        looker.assign(list(left))
        for place, offset in left.items():
            looker.seek(place, offset)
        until = time.monotonic() + _OLDEST_S
        while unseen and time.monotonic() < until:
            found = await looker.getmany(*unseen, timeout_ms=_LOOK_MS)
            for place, records in found.items():
                unseen.discard(place)
                looker.pause(place)
                with contextlib.suppress(msgspec.MsgspecError, ValueError):
                    oldest = min(oldest, _decode(records[0].value or b"").queued_at)
        # Without an assignment the client's reading would end for good.
        looker.pause(*left)
        return max(0, now - oldest)

    async def _floors(self) -> dict[int, int]:
        """Return what the group has committed, by partition."""
        with self._servers.explained():
            if self._admin is None:
                admin = cast("Any", AIOKafkaAdminClient)(**self._servers.reached())
                try:
                    await admin.start()
                except BaseException:
                    await admin.close()
                    raise
                self._admin = admin
            try:
                found = cast(
                    "Mapping[TopicPartition, Any]",
                    await self._admin.list_consumer_group_offsets(self._topic),
                )
            except BaseException:
                await self._close_admin()
                raise
        return {place.partition: int(told.offset) for place, told in found.items()}

    async def _close_admin(self) -> None:
        admin, self._admin = self._admin, None
        if admin is not None:
            with contextlib.suppress(KafkaError, OSError):
                await admin.close()

    async def _close_lookers(self) -> None:
        await self._close_admin()
        looker, self._looker = self._looker, None
        if looker is not None:
            with contextlib.suppress(KafkaError, OSError):
                await looker.stop()

    async def dead(self, *, limit: int) -> Sequence[Job]:
        """Return dead jobs, oldest first."""
        async with self._burials.looking() as buried:
            return list(itertools.islice(buried.values(), limit))

    async def replay(self, request: bytes) -> bool:
        """Queue a dead job again with a fresh attempt; ``False``: there is none."""
        return await self._take(request, again=True)

    async def drop(self, request: bytes) -> bool:
        """Forget a dead job; ``False``: there is none."""
        return await self._take(request, again=False)

    async def _take(self, request: bytes, *, again: bool) -> bool:
        async with self._burials.looking() as buried:
            job = buried.get(request)
            if job is None:
                return False
            if again:
                await self.publish([msgspec.structs.replace(job, attempt=job.attempt + 1, log=b"")])
            await self._burials.write(self._producer, request, None)
            self._known = None
            return True
