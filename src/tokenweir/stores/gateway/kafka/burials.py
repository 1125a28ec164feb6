"""Dead letters in a compacted topic: the last record of a request says whether it is dead."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, Mapping
from typing import Any, Final

import msgspec
from aiokafka.errors import KafkaError
from aiokafka.structs import TopicPartition

from tokenweir.core.errors import UnavailableError
from tokenweir.ports.queue import Job
from tokenweir.stores.gateway.kafka.connection import KafkaServers
from tokenweir.stores.gateway.reporting import LOG

_WAIT_MS: Final = 100
_SILENT_S: Final = 10.0
_AFRESH_S: Final = 3_600.0
"""Compaction forgets after a day that a letter was taken away: who has not looked for long begins anew."""

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Job).decode


class Burials:
    """The dead letters of a topic of one partition, as far as they were read; each look reads on to its end."""

    def __init__(self, servers: KafkaServers, topic: str) -> None:
        self._servers = servers
        self._topic = topic
        self._place = TopicPartition(topic, 0)
        self._consumer: Any = None
        self._looking = asyncio.Lock()
        self._dead: dict[bytes, Job] = {}
        self._position = -1
        self._looked_at = 0.0

    async def make(self) -> None:
        """Make the topic. Raises UnavailableError, ConfigError."""
        await self._servers.make_topic(self._topic, partitions=1, retention_ms=-1, compacted=True)

    async def stop(self) -> None:
        """Close."""
        consumer, self._consumer = self._consumer, None
        if consumer is not None:
            with contextlib.suppress(KafkaError, OSError):
                await consumer.stop()

    async def write(self, producer: Any, request: bytes, job: Job | None) -> None:  # noqa: ANN401 - the client's types are unknown
        """Write that a request's job is dead, or with ``None`` that it is not any more."""
        value = None if job is None else _encode(job)
        with self._servers.explained():
            await producer.send_and_wait(self._topic, value, request, 0)

    @contextlib.asynccontextmanager
    async def looking(self) -> AsyncGenerator[Mapping[bytes, Job]]:
        """Give what is dead now by request, oldest first; one looks at a time.

        Raises:
            UnavailableError: Kafka cannot be reached.
        """
        async with self._looking:
            try:
                with self._servers.explained():
                    await self._read_on()
            except BaseException:
                # It may have ended inside; the next one is new.
                await self.stop()
                raise
            yield self._dead

    async def _read_on(self) -> None:
        now = time.monotonic()
        if self._position < 0 or now - self._looked_at > _AFRESH_S:
            self._dead.clear()
            self._position = -1
        self._looked_at = now
        if self._consumer is None:
            self._consumer = self._servers.consumer(wait_ms=_WAIT_MS)
            await self._consumer.start()
            self._consumer.assign([self._place])
        consumer = self._consumer
        end = (await consumer.end_offsets([self._place]))[self._place]
        if self._position < 0:
            self._position = (await consumer.beginning_offsets([self._place]))[self._place]
        consumer.seek(self._place, self._position)
        consumer.resume(self._place)
        heard_at = time.monotonic()
        while self._position < end:
            found = await consumer.getmany(self._place, timeout_ms=1_000)
            for record in found.get(self._place, ()):
                self._take(record)
            now, before = time.monotonic(), self._position
            # Past the end of what was compacted there is a position, and no record.
            self._position = max(self._position, await consumer.position(self._place))
            if self._position > before:
                heard_at = now
            elif now - heard_at > _SILENT_S:
                raise UnavailableError(
                    f"Kafka {self._servers.name!r} does not give its dead letters", mend="try again"
                )
        consumer.pause(self._place)

    def _take(self, record: Any) -> None:  # noqa: ANN401 - the client's types are unknown
        request = record.key or b""
        self._dead.pop(request, None)
        if record.value:
            try:
                self._dead[request] = _decode(record.value)
            except (msgspec.MsgspecError, ValueError) as error:
                LOG.error("a dead letter cannot be read", offset=record.offset, reason=str(error))
