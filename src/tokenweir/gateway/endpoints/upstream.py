"""An HTTP/1.1 client for one model server: kept-alive connections, a bound on them, and answers taken as they come."""

from __future__ import annotations

import asyncio
import ssl
from collections import deque
from collections.abc import Sequence
from types import TracebackType
from typing import Final, Self
from urllib.parse import urlsplit

import msgspec

from tokenweir.asgi import tls as tls_of
from tokenweir.asgi.outbox import Outbox
from tokenweir.core.errors import ConfigError, OverloadedError, ProtocolError, UnreachableError
from tokenweir.gateway.endpoints.addresses import AddressRules
from tokenweir.gateway.endpoints.connection import Connection

_PORTS: Final = {"http": 80, "https": 443, "grpc": 50051, "grpcs": 443}
_SECOND_NS: Final = 1_000_000_000
_REDIRECTS: Final = range(300, 400)
_WHOLE_BYTES: Final = 64 << 20


class Origin(msgspec.Struct, frozen=True, kw_only=True):
    """Where a server is. ``base`` is the path before ``/v1``, without a slash at the end."""

    scheme: str
    host: str
    port: int
    base: str = ""

    @classmethod
    def parse(cls, url: str) -> Origin:
        """Read an endpoint's URL. Raises ConfigError."""
        try:
            parts = urlsplit(url)
            host, port = parts.hostname, parts.port
        except ValueError as error:
            raise ConfigError(f"the endpoint URL {url!r} is malformed: {error}") from error
        if parts.scheme not in _PORTS or not host or parts.username or parts.query or parts.fragment:
            raise ConfigError(
                f"the endpoint URL {url!r} cannot be used",
                mend="write http://, https:// or grpc://, host, port, and a path",
            )
        return cls(
            scheme=parts.scheme, host=host, port=port or _PORTS[parts.scheme], base=parts.path.rstrip("/")
        )

    @property
    def authority(self) -> str:
        """What the Host header says."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == _PORTS[self.scheme] else f"{host}:{self.port}"


class Timeouts(msgspec.Struct, frozen=True, kw_only=True):
    """How long a server may take: to connect, until its head comes, and between two reads of a body."""

    connect_ns: int = 5 * _SECOND_NS
    head_ns: int = 600 * _SECOND_NS
    idle_ns: int = 120 * _SECOND_NS


def _sweep_s(timeouts: Timeouts) -> float:
    """Return how often to look whether an answer is due: often against the shortest wait, seldom against a second."""
    return min(1.0, max(0.005, min(timeouts.head_ns, timeouts.idle_ns) / 16 / _SECOND_NS))


class Answer:
    """An answer whose head has come. Leaving its ``async with`` gives the connection back, or closes it."""

    def __init__(self, client: UpstreamClient, connection: Connection) -> None:
        self._client = client
        self._connection = connection
        self._left = False
        self.status = connection.status
        self.headers = connection.headers

    def header(self, name: bytes) -> bytes | None:
        """Return the first header of that lower-case name."""
        return next((value for key, value in self.headers if key == name), None)

    async def take(self) -> bytes:
        """Return what has come of the body, waiting for some; empty at its end.

        Raises:
            UnreachableError: the connection broke, or was silent for too long.
            ProtocolError: what came is not HTTP.
        """
        if self._connection.complete or self._connection.held:
            return await self._connection.take(0.0)
        try:
            return await self._connection.take(self._client.due(self._client.timeouts.idle_ns))
        except TimeoutError:
            raise UnreachableError(
                f"the server was silent for {self._client.timeouts.idle_ns / _SECOND_NS:g} s amid its answer"
            ) from None

    async def whole(self, limit: int = _WHOLE_BYTES) -> bytes:
        """Return the whole body. Raises ProtocolError when it is longer than ``limit`` bytes."""
        data = await self.take()
        if self._connection.complete and not self._connection.held:
            return data
        parts, size = [data], len(data)
        while data := await self.take():
            parts.append(data)
            size += len(data)
            if size > limit:
                raise ProtocolError(f"the server's answer is longer than {limit} bytes")
        return b"".join(parts)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.leave()

    def leave(self) -> None:
        """Be done: an answer that was not taken whole is cancelled by closing its connection."""
        if not self._left:
            self._left = True
            self._client.give_back(self._connection)


class UpstreamClient:
    """Connections to one server. At most ``connections`` are open; more requests than that wait, up to ``waiting``."""

    def __init__(
        self,
        origin: Origin,
        *,
        connections: int = 1024,
        waiting: int = 1024,
        timeouts: Timeouts | None = None,
        tls: ssl.SSLContext | None = None,
        rules: AddressRules | None = None,
    ) -> None:
        self.origin = origin
        self.timeouts = timeouts or Timeouts()
        self._tls = (tls or tls_of.client_context()) if origin.scheme == "https" else None
        self._rules = rules or AddressRules()
        self._most, self._most_waiting = connections, waiting
        self._idle: list[Connection] = []
        self._open = 0
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._busy: set[Connection] = set()
        self._outbox = Outbox(self._busy)
        self._sweep_s = _sweep_s(self.timeouts)
        self._sweeper: asyncio.TimerHandle | None = None
        self._closed = False

    async def send(self, head: bytes, body: bytes) -> Answer:
        """Send a request, whose head ends in an empty line, and wait for the answer's head.

        A kept-alive connection that the server closed just as it was used is replaced by a new one, once.

        Raises:
            UnreachableError: no connection, none in time, or no answer in time.
            OverloadedError: too many requests wait for a connection.
            ProtocolError: the answer is not HTTP.
        """
        while True:
            connection = await self._connect()
            fresh = not connection.used
            try:
                connection.begin(head + body)
                await connection.head(self.due(self.timeouts.head_ns))
            except UnreachableError:
                self.give_back(connection)
                if fresh or connection.begun:
                    raise
            except TimeoutError:
                self.give_back(connection)
                raise UnreachableError(
                    f"the server did not begin to answer within {self.timeouts.head_ns / _SECOND_NS:g} s"
                ) from None
            except BaseException:
                self.give_back(connection)
                raise
            else:
                if connection.status in _REDIRECTS:
                    status, connection.reusable = connection.status, False
                    self.give_back(connection)
                    raise ProtocolError(
                        f"{self.origin.authority} redirects ({status}), which is not followed",
                        mend="let the endpoint's URL be where it leads",
                    )
                return Answer(self, connection)

    def due(self, timeout_ns: int) -> float:
        """Return the instant, on the loop's clock, that is so far away; from now on somebody looks at that clock.

        One timer looks after all connections, because one for each wait costs more than a whole relayed chunk.
        A wait may take longer than allowed by a sixteenth.
        """
        loop = asyncio.get_running_loop()
        if self._sweeper is None:
            self._sweeper = loop.call_later(self._sweep_s, self._sweep)
        return loop.time() + timeout_ns / _SECOND_NS

    def _sweep(self) -> None:
        loop = asyncio.get_running_loop()
        now = loop.time()
        for connection in self._busy:
            if 0.0 < connection.due <= now:
                connection.expire()
        self._sweeper = loop.call_later(self._sweep_s, self._sweep) if self._busy else None

    async def _connect(self) -> Connection:
        if self._open < self._most:
            self._open += 1
        else:
            await self._turn()
        try:
            while self._idle:
                connection = self._idle.pop()
                if connection.open:
                    self._busy.add(connection)
                    return connection
            connection = await self._dial()
        except BaseException:
            self._release()
            raise
        self._busy.add(connection)
        return connection

    async def _turn(self) -> None:
        """Wait until one of the connections may be used."""
        if len(self._waiting) >= self._most_waiting:
            raise OverloadedError(
                f"{len(self._waiting)} requests wait for a connection to {self.origin.authority}",
                mend="try again shortly, or add an endpoint",
            )
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self._release()
            raise

    def _release(self) -> None:
        """Pass a place on to who waits longest, or free it."""
        while self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_result(None)
                return
        self._open -= 1

    async def _dial(self) -> Connection:
        origin = self.origin
        try:
            async with asyncio.timeout(self.timeouts.connect_ns / _SECOND_NS):
                connection = await self._first_of(await self._rules.resolve(origin.host, origin.port))
        except TimeoutError:
            raise UnreachableError(
                f"{origin.authority} did not take a connection within {self.timeouts.connect_ns / _SECOND_NS:g} s"
            ) from None
        except ssl.SSLError as error:
            raise UnreachableError(
                f"no TLS with {origin.authority}: {tls_of.why(error)}",
                mend="see the endpoint's tls table: its ca, certificate and key, and the endpoint's own",
            ) from error
        except OSError as error:
            raise UnreachableError(
                f"no connection to {origin.authority}: {error.strerror or error}",
                mend="see that the endpoint runs and its URL is right",
            ) from error
        return connection

    async def _first_of(self, addresses: Sequence[str]) -> Connection:
        """Connect to the first that listens. What was looked at is what is connected to: a name may change its mind."""
        loop = asyncio.get_running_loop()
        name = self.origin.host if self._tls is not None else None
        last = len(addresses) - 1
        for position, address in enumerate(addresses):
            try:
                _, connection = await loop.create_connection(
                    lambda: Connection(self._gone, self._outbox),
                    address,
                    self.origin.port,
                    ssl=self._tls,
                    server_hostname=name,
                )
            except ssl.SSLError:
                raise
            except OSError:
                if position == last:
                    raise
            else:
                return connection
        raise UnreachableError(f"{self.origin.authority} has no address")

    def _gone(self, connection: Connection) -> None:
        if connection in self._idle:
            self._idle.remove(connection)

    def give_back(self, connection: Connection) -> None:
        """Keep a connection whose answer was taken whole; close another."""
        self._busy.discard(connection)
        if connection.complete and connection.reusable and connection.open and not self._closed:
            self._idle.append(connection)
        else:
            connection.close()
        self._release()

    def close(self) -> None:
        """Close the idle connections, and the others when their answers end."""
        self._closed = True
        if self._sweeper is not None and not self._busy:
            self._sweeper.cancel()
        for connection in tuple(self._idle):
            connection.close()
        self._idle.clear()
