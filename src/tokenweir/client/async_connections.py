"""Connections of the client for programs on asyncio."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import time
from functools import cached_property
from typing import Final, Self

from tokenweir.client.exchange import BrokenError, Exchange, Head, Part, Question, Tunnel
from tokenweir.client.options import Options, Origin, Proxy

_PIECE: Final = 1 << 16
_IDLE_MOST_NS: Final = 30_000_000_000
_NS: Final = 1_000_000_000


class Connection:
    """A connection to a gateway."""

    def __init__(self, origin: Origin, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self.origin = origin
        self.exchange = Exchange(origin)
        self.idle_since_ns = 0
        self.fresh = True

    @classmethod
    async def open(cls, origin: Origin, options: Options, context: ssl.SSLContext | None) -> Self:
        """Raises OSError, and BrokenError for a proxy that refuses."""
        async with asyncio.timeout(options.connect_ns / _NS):
            if options.proxy is not None:
                return await cls._through(Proxy.parse(options.proxy), origin, context)
            reader, writer = await asyncio.open_connection(origin.host, origin.port, ssl=context)
        return cls(origin, reader, writer)

    @classmethod
    async def _through(cls, proxy: Proxy, origin: Origin, context: ssl.SSLContext | None) -> Self:
        reader, writer = await asyncio.open_connection(proxy.host, proxy.port)
        try:
            tunnel = Tunnel(proxy, origin)
            writer.write(tunnel.ask())
            # A byte at a time: what follows the head is not the proxy's.
            while not tunnel.feed(await reader.read(1)):
                pass
            if context is not None:
                await writer.start_tls(context, server_hostname=origin.host)
        except BaseException:
            writer.transport.abort()
            raise
        return cls(origin, reader, writer)

    async def send(self, question: Question, limit_ns: int) -> None:
        """Send a request. Raises OSError."""
        async with asyncio.timeout(limit_ns / _NS):
            self._writer.write(self.exchange.ask(question))
            await self._writer.drain()

    async def head(self, limit_ns: int) -> Head:
        """Return the head of the answer. Raises OSError, BrokenError."""
        heard = await self._next(limit_ns)
        if not isinstance(heard, Head):
            raise BrokenError("what came is no answer")
        return heard

    async def piece(self, limit_ns: int) -> bytes:
        """Return the next piece of the body; b"" is its end. Raises OSError, BrokenError."""
        heard = await self._next(limit_ns)
        return heard if isinstance(heard, bytes) else b""

    async def _next(self, limit_ns: int) -> Head | bytes | Part:
        while (heard := self.exchange.heard()) is Part.MORE:
            async with asyncio.timeout(limit_ns / _NS):
                self.exchange.feed(await self._reader.read(_PIECE))
        return heard

    def say(self, data: bytes) -> None:
        """Have bytes of another protocol than HTTP sent."""
        self._writer.write(data)

    async def hear(self, limit_ns: int) -> bytes:
        """Return bytes of another protocol than HTTP; b"" is the end. Raises OSError."""
        async with asyncio.timeout(limit_ns / _NS):
            return await self._reader.read(_PIECE)

    def abort(self) -> None:
        """Let go of it at once."""
        self._writer.transport.abort()

    async def close(self) -> None:
        """Let go of it."""
        self._writer.close()
        with contextlib.suppress(OSError):
            await self._writer.wait_closed()


class Pool:
    """Connections that wait for another request."""

    def __init__(self, options: Options) -> None:
        self.options = options
        self._idle: list[Connection] = []

    @cached_property
    def _context(self) -> ssl.SSLContext:
        return self.options.tls.context()

    async def take(self, origin: Origin) -> Connection:
        """Return a connection to a gateway. Raises OSError, and InputError for certificates that cannot be used."""
        now_ns = time.monotonic_ns()
        for place in reversed(range(len(self._idle))):
            if now_ns - self._idle[place].idle_since_ns > _IDLE_MOST_NS:
                self._idle.pop(place).abort()
            elif self._idle[place].origin == origin:
                return self._idle.pop(place)
        return await self.fresh(origin)

    async def fresh(self, origin: Origin) -> Connection:
        """Return a new connection. Raises as :meth:`take`."""
        return await Connection.open(origin, self.options, self._context if origin.secure else None)

    def give_back(self, connection: Connection) -> None:
        """Keep a connection whose answer was read, if it can carry another."""
        if not connection.exchange.again():
            connection.abort()
            return
        connection.fresh = False
        connection.idle_since_ns = time.monotonic_ns()
        self._idle.append(connection)

    async def close(self) -> None:
        """Let go of all."""
        while self._idle:
            await self._idle.pop().close()
