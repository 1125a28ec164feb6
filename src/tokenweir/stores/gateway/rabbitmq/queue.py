"""Jobs in quorum queues: by class of priority, delayed by queues whose messages expire, buried in one for the dead.

RabbitMQ before 4.0 has no priorities in quorum queues, so there is a queue for each class, and a worker that has a
choice takes the higher one. A message is a job; ``docs/stores.md`` names the queues.
"""

from __future__ import annotations

import asyncio
import contextlib
import heapq
import itertools
import time
from collections.abc import AsyncGenerator, Sequence
from typing import Any, Final, cast

import msgspec
from aiormq import Channel
from aiormq.abc import AbstractChannel, DeliveredMessage
from pamqp.common import FieldTable

from tokenweir.core.errors import UnavailableError
from tokenweir.ports.queue import Delivery, Job, QueueDepth
from tokenweir.stores.gateway.rabbitmq.connection import RabbitConnection
from tokenweir.stores.gateway.rabbitmq.publishing import Message, publish
from tokenweir.stores.gateway.reporting import LOG

REQUESTS: Final = "inference_requests"
RESULTS: Final = "inference_results"

_CLASSES: Final = ((7, ".urgent"), (4, ".high"), (0, ""))
"""The lowest priority of a class, and what its queue's name ends with; highest first."""
_DELAYS_S: Final = (0.5, 2, 8, 32, 128, 512, 2048, 8192)
"""Delayed messages leave their queue in order, so those of like delay share one."""
_CONFIRM_S: Final = 30.0
_RECONNECT_S: Final = 0.5
_FIRST_S: Final = 0.5
_QUORUM: Final[FieldTable] = {
    "x-queue-type": "quorum",
    # RabbitMQ 4 would give a job up by itself after 20 deliveries; giving up is the worker's to decide.
    "x-delivery-limit": 1_000_000_000,
}


class _Message(msgspec.Struct, frozen=True, array_like=True):
    """A job on its way, and when it was queued (Unix ns)."""

    job: Job
    queued_at: int


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(_Message).decode


class _Consumer:
    """One worker's deliveries on one channel."""

    def __init__(self, channel: AbstractChannel) -> None:
        self.channel = channel
        self.arrived: list[tuple[int, int, str, Job]] = []
        self.changed = asyncio.Event()
        self.out: set[str] = set()
        closing = cast("asyncio.Future[object]", cast("Any", channel).closing)
        closing.add_done_callback(lambda _: self.changed.set())


class RabbitQueue:
    """The jobs of ``name`` and their dead letters. Opened with :meth:`declare`."""

    def __init__(
        self, publishing: RabbitConnection, consuming: RabbitConnection, name: str = REQUESTS
    ) -> None:
        self.name = name
        self._publishing = publishing
        self._consuming = consuming
        self._publisher: Channel | None = None
        self._looker: AbstractChannel | None = None
        self._opening = asyncio.Lock()
        self._looking = asyncio.Lock()
        self._numbers = itertools.count()
        # By our own tag: the consumer and the channel's tag.
        self._out: dict[str, tuple[_Consumer, int]] = {}

    @property
    def _dead(self) -> str:
        return f"{self.name}.dead"

    def _class_of(self, priority: int) -> str:
        return self.name + next(suffix for lowest, suffix in _CLASSES if priority >= lowest)

    async def declare(self) -> None:
        """Make the queues; those that are there stay as they are. Raises UnavailableError."""
        async with self._publishing.using() as channel:
            for name in (*(self.name + suffix for _, suffix in _CLASSES), self._dead):
                await channel.queue_declare(name, durable=True, arguments=dict(_QUORUM))
            for delay in _DELAYS_S:
                name = f"{self.name}.delay.{round(delay * 1000)}"
                arguments: FieldTable = {
                    **_QUORUM,
                    # Expired messages go where their routing key says: to the queue of their class.
                    "x-dead-letter-exchange": "",
                    "x-dead-letter-strategy": "at-least-once",
                    "x-overflow": "reject-publish",
                }
                await channel.queue_declare(name, durable=True, arguments=arguments)
                await channel.exchange_declare(name, exchange_type="fanout", durable=True)
                await channel.queue_bind(name, name)

    async def publish(self, batch: Sequence[Job], *, delay_ns: int = 0) -> None:
        """Queue jobs durably, to be delivered after ``delay_ns``; returns once the queue has confirmed all."""
        messages = [(self._class_of(job.priority), job) for job in batch]
        exchange, expiration = "", None
        if delay_ns > 0:
            delay = next((each for each in _DELAYS_S if each * 1e9 >= delay_ns), _DELAYS_S[-1])
            exchange = f"{self.name}.delay.{round(delay * 1000)}"
            expiration = str(max(1, -(-delay_ns // 1_000_000)))
        await self._send(exchange, messages, expiration)

    async def _send(
        self, exchange: str, messages: Sequence[tuple[str, Job]], expiration: str | None = None
    ) -> None:
        at = time.time_ns()
        wanted = [
            Message(key, f"{job.request.hex()}-{job.attempt}", _encode(_Message(job, at)))
            for key, job in messages
        ]
        channel = await self._publishing_channel()
        with self._publishing.explained():
            async with asyncio.timeout(_CONFIRM_S):
                await publish(channel, exchange, wanted, expiration=expiration)

    async def _publishing_channel(self) -> Channel:
        async with self._opening:
            if self._publisher is None or self._publisher.is_closed:
                self._publisher = cast("Channel", await self._publishing.channel())
            return self._publisher

    async def deliveries(self, *, prefetch: int) -> AsyncGenerator[Delivery]:
        """Yield jobs, at most ``prefetch`` unacknowledged; closing it gives back what is not acknowledged.

        Each class is prefetched by itself, so that a worker may hold some more of a lower class than it is given.
        """
        while True:
            try:
                consumer = _Consumer(await self._consuming.channel())
            except UnavailableError as error:
                LOG.warning("a worker waits for the queue", queue=self.name, reason=str(error))
                await asyncio.sleep(_RECONNECT_S)
                continue
            try:
                await self._consume(consumer, prefetch)
                while not consumer.channel.is_closed:
                    if consumer.arrived and len(consumer.out) < prefetch:
                        _, _, tag, job = heapq.heappop(consumer.arrived)
                        consumer.out.add(tag)
                        yield Delivery(job=job, tag=tag)
                    else:
                        await consumer.changed.wait()
                        consumer.changed.clear()
            except UnavailableError as error:
                LOG.warning("a worker has lost the queue", queue=self.name, reason=str(error))
                await asyncio.sleep(_RECONNECT_S)
            finally:
                await self._end(consumer)

    async def _consume(self, consumer: _Consumer, prefetch: int) -> None:
        with self._consuming.explained():
            await consumer.channel.basic_qos(prefetch_count=prefetch)
            for rank, (_, suffix) in enumerate(_CLASSES):
                name = self.name + suffix
                found = await consumer.channel.queue_declare(name, passive=True)
                before = len(consumer.arrived)

                async def arrive(message: DeliveredMessage, rank: int = rank) -> None:
                    self._arrive(consumer, message, rank)

                await consumer.channel.basic_consume(name, arrive)
                # What waits in a higher class comes before any of a lower one is asked for.
                await _until(consumer, before + min(prefetch, found.message_count or 0))

    def _arrive(self, consumer: _Consumer, message: DeliveredMessage, rank: int) -> None:
        number = next(self._numbers)
        tag = f"{number}"
        self._out[tag] = (consumer, message.delivery_tag or 0)
        heapq.heappush(consumer.arrived, (rank, number, tag, _decode(message.body).job))
        consumer.changed.set()

    async def _end(self, consumer: _Consumer) -> None:
        for tag in [tag for tag, (owner, _) in self._out.items() if owner is consumer]:
            del self._out[tag]
        if not consumer.channel.is_closed:
            with self._consuming.explained():
                await consumer.channel.close()

    async def acknowledge(self, batch: Sequence[Delivery]) -> None:
        """Done with these: they are never delivered again.

        One whose channel was lost is delivered again all the same; its request is claimed by an attempt, once.
        """
        for delivery in batch:
            held = self._out.pop(str(delivery.tag), None)
            if held is None:
                continue
            consumer, tag = held
            consumer.out.discard(str(delivery.tag))
            consumer.changed.set()
            if not consumer.channel.is_closed:
                with self._consuming.explained():
                    await consumer.channel.basic_ack(tag, wait=False)

    async def bury(self, delivery: Delivery, error: str) -> None:
        """Give a job up: it goes to the dead letters with its errors."""
        job = delivery.job
        await self._send("", [(self._dead, msgspec.structs.replace(job, errors=(*job.errors, error)))])
        await self.acknowledge([delivery])

    async def depth(self) -> QueueDepth:
        """Return how the queue stands; what is out is known of this process alone."""
        async with self._looking, self._consuming.using() as channel:
            ready, oldest = 0, time.time_ns()
            for _, suffix in _CLASSES:
                name = self.name + suffix
                found = await channel.queue_declare(name, passive=True)
                if found.message_count:
                    ready += found.message_count
                    # Given back, it is the first again.
                    head = await channel.basic_get(name)
                    if head.delivery_tag is not None:
                        oldest = min(oldest, _decode(head.body).queued_at)
                        await channel.basic_nack(head.delivery_tag, requeue=True)
            dead = (await channel.queue_declare(self._dead, passive=True)).message_count or 0
        return QueueDepth(
            ready=ready, unacknowledged=len(self._out), oldest_ns=max(0, time.time_ns() - oldest), dead=dead
        )

    async def dead(self, *, limit: int) -> Sequence[Job]:
        """Return dead jobs, oldest first; they are looked at one by one and given back."""
        jobs: list[Job] = []
        async with self._burials() as channel:
            while len(jobs) < limit:
                message = await channel.basic_get(self._dead)
                if message.delivery_tag is None:
                    break
                jobs.append(_decode(message.body).job)
        return jobs

    async def replay(self, request: bytes) -> bool:
        """Queue a dead job again with a fresh attempt; ``False``: there is none."""
        return await self._take(request, again=True)

    async def drop(self, request: bytes) -> bool:
        """Forget a dead job; ``False``: there is none."""
        return await self._take(request, again=False)

    async def _take(self, request: bytes, *, again: bool) -> bool:
        async with self._burials() as channel:
            while True:
                message = await channel.basic_get(self._dead)
                if message.delivery_tag is None:
                    return False
                job = _decode(message.body).job
                if job.request == request:
                    if again:
                        await self.publish([msgspec.structs.replace(job, attempt=job.attempt + 1, log=b"")])
                    await channel.basic_ack(message.delivery_tag)
                    return True

    @contextlib.asynccontextmanager
    async def _burials(self) -> AsyncGenerator[AbstractChannel]:
        """Give the one channel of all looks at the dead, and give back after the block what it took out.

        A quorum queue takes things back in its own time; only on the same channel a later look comes after that.
        """
        async with self._looking:
            with self._consuming.explained():
                if self._looker is None or self._looker.is_closed:
                    self._looker = await self._consuming.channel()
                channel = self._looker
                try:
                    yield channel
                    await channel.basic_nack(0, multiple=True, requeue=True)
                except BaseException:
                    if not channel.is_closed:
                        await channel.close()
                    raise


async def _until(consumer: _Consumer, count: int) -> None:
    try:
        async with asyncio.timeout(_FIRST_S):
            while len(consumer.arrived) < count:
                await consumer.changed.wait()
                consumer.changed.clear()
    except TimeoutError:
        return
