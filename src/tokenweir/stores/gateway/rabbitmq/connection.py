"""A connection to RabbitMQ that is made anew when it was lost, and what its errors mean."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Generator
from typing import Final

import aiormq
from aiormq.abc import AbstractChannel, AbstractConnection
from aiormq.exceptions import AMQPError, ChannelInvalidStateError

from tokenweir.core.errors import ConfigError, UnavailableError

_TIMEOUT_S: Final = 10.0
_SCHEMES: Final = ("amqp://", "amqps://")


class RabbitConnection:
    """One connection to ``amqp://…``, opened when it is first needed."""

    def __init__(self, url: str) -> None:
        if not url.startswith(_SCHEMES):
            raise ConfigError(f"{url!r} names no RabbitMQ", mend=f"write {' or '.join(_SCHEMES)}…")
        self._url = url
        self.name = url.rpartition("@")[2]
        self._connection: AbstractConnection | None = None
        self._opening = asyncio.Lock()

    async def close(self) -> None:
        """Close the connection and all of its channels."""
        connection, self._connection = self._connection, None
        if connection is not None and not connection.is_closed:
            await connection.close()

    async def channel(self) -> AbstractChannel:
        """Return a new channel, whose publishing is confirmed. Raises UnavailableError."""
        with self.explained():
            async with asyncio.timeout(_TIMEOUT_S), self._opening:
                if self._connection is None or self._connection.is_closed:
                    self._connection = await aiormq.connect(self._url)
                # Without on_return_raises, what no queue takes is confirmed all the same.
                return await self._connection.channel(publisher_confirms=True, on_return_raises=True)

    @contextlib.asynccontextmanager
    async def using(self) -> AsyncGenerator[AbstractChannel]:
        """Give a channel for the block; what it has been given and not acknowledged is queued again after it."""
        channel = await self.channel()
        try:
            with self.explained():
                yield channel
        finally:
            if not channel.is_closed:
                with self.explained():
                    await channel.close()

    @contextlib.contextmanager
    def explained(self) -> Generator[None]:
        """Raise what goes wrong with the broker as UnavailableError."""
        try:
            yield
        except (AMQPError, ChannelInvalidStateError, OSError, TimeoutError) as error:
            raise UnavailableError(
                f"the queue {self.name!r} cannot be used: {error or type(error).__name__}",
                mend="see that RabbitMQ runs and can be reached",
            ) from error
