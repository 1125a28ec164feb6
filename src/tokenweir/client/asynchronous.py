"""The client for programs on asyncio."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import time
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Mapping, Sequence
from functools import cached_property
from types import TracebackType
from typing import Final, Self, TypeVar

from tokenweir.client.batches import Batch, BatchEndpoint, BatchPlanner, BatchResult, batch_name
from tokenweir.client.exchange import BrokenError, Exchange, Head, Part, Question, Tunnel
from tokenweir.client.options import Options, Origin, Proxy
from tokenweir.client.plans import Answer, Ask, Came, Hear, Plan, Rest, Step, Tell, name_of
from tokenweir.client.results import BatchItem, check, concerns_all, item_key, lost, read_timeout
from tokenweir.core.errors import ProtocolError, WeirError
from tokenweir.core.events import Event
from tokenweir.core.ids import new_id
from tokenweir.core.status import RequestStatus, Submitted

T = TypeVar("T")

_PIECE: Final = 1 << 16
_OK: Final = 200
_BODY_MOST: Final = 256 << 20
_IDLE_MOST_NS: Final = 30_000_000_000
_NS: Final = 1_000_000_000


class _Connection:
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

    def abort(self) -> None:
        """Let go of it at once."""
        self._writer.transport.abort()

    async def close(self) -> None:
        """Let go of it."""
        self._writer.close()
        with contextlib.suppress(OSError):
            await self._writer.wait_closed()


class _Pool:
    """Connections that wait for another request."""

    def __init__(self, options: Options) -> None:
        self.options = options
        self._idle: list[_Connection] = []

    @cached_property
    def _context(self) -> ssl.SSLContext:
        return self.options.tls.context()

    async def take(self, origin: Origin) -> _Connection:
        """Return a connection to a gateway. Raises OSError, and InputError for certificates that cannot be used."""
        now_ns = time.monotonic_ns()
        for place in reversed(range(len(self._idle))):
            if now_ns - self._idle[place].idle_since_ns > _IDLE_MOST_NS:
                self._idle.pop(place).abort()
            elif self._idle[place].origin == origin:
                return self._idle.pop(place)
        return await self.fresh(origin)

    async def fresh(self, origin: Origin) -> _Connection:
        """Return a new connection. Raises as :meth:`take`."""
        return await _Connection.open(origin, self.options, self._context if origin.secure else None)

    def give_back(self, connection: _Connection) -> None:
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


class _Doing:
    """Does the steps of one plan."""

    def __init__(self, pool: _Pool) -> None:
        self._pool = pool
        self._connection: _Connection | None = None

    async def do(self, step: Step) -> Came:
        """Do a step and return what came of it."""
        try:
            match step:
                case Ask():
                    return await self._ask(step)
                case Hear():
                    return await self._hear(step)
                case Rest():
                    await asyncio.sleep(step.rest_ns / _NS)
                case Tell():
                    pass
        except (OSError, BrokenError) as error:
            self.close()
            return lost(error)
        return None

    async def _ask(self, step: Ask) -> Answer:
        self.close()
        connection = self._connection = await self._pool.take(step.origin)
        try:
            await connection.send(step.question, step.limit_ns)
            head = await connection.head(step.limit_ns)
        except TimeoutError:
            raise
        except (OSError, BrokenError):
            if connection.fresh:
                raise
            # The gateway may close a connection that waits at any moment; this says nothing of the gateway.
            connection.abort()
            connection = self._connection = await self._pool.fresh(step.origin)
            await connection.send(step.question, step.limit_ns)
            head = await connection.head(step.limit_ns)
        if step.streamed and head.status == _OK:
            return Answer(head.status, head.headers)
        pieces: list[bytes] = []
        size = 0
        while piece := await connection.piece(step.limit_ns):
            pieces.append(piece)
            size += len(piece)
            if size > _BODY_MOST:
                raise ProtocolError(f"the answer is longer than {_BODY_MOST} bytes")
        self._over()
        return Answer(head.status, head.headers, b"".join(pieces))

    async def _hear(self, step: Hear) -> bytes:
        if self._connection is None:
            return b""
        piece = await self._connection.piece(step.limit_ns)
        if not piece:
            self._over()
        return piece

    def _over(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            self._pool.give_back(connection)

    def close(self) -> None:
        """Let go of a connection amid an answer."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.abort()


class AsyncClient:
    """:class:`tokenweir.client.Client` for asyncio: the same calls, awaited. Tasks of one loop may share it."""

    def __init__(self, url: str | Sequence[str], key: str, *, options: Options | None = None) -> None:
        """Raises InputError for a URL or key that cannot be used; nothing is connected yet."""
        self._planner = BatchPlanner(url, key, options or Options())
        check(self._planner.options)
        self._pool = _Pool(self._planner.options)

    async def submit(
        self,
        body: Mapping[str, object] | None = None,
        /,
        *,
        idempotency_key: str | None = None,
        **fields: object,
    ) -> Submitted:
        """Have a request taken on. See :meth:`tokenweir.client.Client.submit`."""
        return await self._run(self._planner.submit({**(body or {}), **fields}, idempotency_key))

    async def status(self, request: str | Submitted) -> RequestStatus:
        """Return how a request stands."""
        return await self._run(self._planner.status(name_of(request)))

    async def cancel(self, request: str | Submitted) -> RequestStatus:
        """Have a request stopped; what had come is kept, and charged."""
        return await self._run(self._planner.cancel(name_of(request)))

    async def wait(self, request: str | Submitted, *, timeout: str | int | None = None) -> RequestStatus:  # noqa: ASYNC109 - as the blocking client has it
        """Return a request's status once it has ended, well or not. Raises DeadlineError."""
        return await self._run(self._planner.wait(name_of(request), read_timeout(timeout)))

    def stream(self, request: str | Submitted, *, after: int = -1) -> AsyncGenerator[Event]:
        """Yield each event above ``after`` once, in order, up to the end."""
        return self._events(self._planner.follow(name_of(request), after))

    async def history(self, *, page: int = 50) -> AsyncIterator[RequestStatus]:
        """Yield one's own requests, newest first, without their results."""
        cursor = None
        while True:
            found = await self._run(self._planner.page(cursor, page))
            for status in found.data:
                yield status
            cursor = found.next_cursor
            if cursor is None:
                return

    async def batch(
        self, bodies: Iterable[Mapping[str, object]], *, at_once: int = 64, key: str | None = None
    ) -> AsyncGenerator[BatchItem]:
        """Have many requests answered. See :meth:`tokenweir.client.Client.batch`."""
        name = key or new_id("batch")
        coming: deque[tuple[int, Submitted | WeirError]] = deque()
        for index, body in enumerate(bodies):
            if len(coming) >= at_once:
                yield await self._item(*coming.popleft())
            try:
                plan = self._planner.submit(body, item_key(name, index))
                coming.append((index, await self._run(plan)))
            except WeirError as error:
                if concerns_all(error):
                    raise
                coming.append((index, error))
        while coming:
            yield await self._item(*coming.popleft())

    async def submit_batch(
        self,
        bodies: Iterable[Mapping[str, object]],
        *,
        endpoint: BatchEndpoint = "/v1/chat/completions",
        metadata: Mapping[str, str] | None = None,
        key: str | None = None,
    ) -> Batch:
        """Have many requests taken on as one batch. See :meth:`tokenweir.client.Client.submit_batch`."""
        return await self._run(self._planner.submit_batch(bodies, endpoint, metadata=metadata, key=key))

    async def batch_status(self, batch: str | Batch) -> Batch:
        """Return how a batch stands."""
        return await self._run(self._planner.batch_status(batch_name(batch)))

    async def wait_batch(self, batch: str | Batch, *, timeout: str | int | None = None) -> Batch:  # noqa: ASYNC109 - as the blocking client has it
        """Return a batch once it has ended, well or not. Raises DeadlineError."""
        return await self._run(self._planner.wait_batch(batch_name(batch), read_timeout(timeout)))

    async def cancel_batch(self, batch: str | Batch) -> Batch:
        """Have a batch stopped; what had come is kept, and charged."""
        return await self._run(self._planner.cancel_batch(batch_name(batch)))

    async def batch_results(self, batch: str | Batch) -> list[BatchResult]:
        """Return what became of the requests of a batch. See :meth:`tokenweir.client.Client.batch_results`."""
        return await self._run(self._planner.results(batch_name(batch)))

    async def aclose(self) -> None:
        """Let go of connections that wait."""
        await self._pool.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def _item(self, index: int, taken: Submitted | WeirError) -> BatchItem:
        if isinstance(taken, WeirError):
            return BatchItem(index=index, error=taken)
        return BatchItem(index=index, status=await self.wait(taken))

    async def _run(self, plan: Plan[T]) -> T:
        """Do a plan and return its result."""
        came: Came = None
        with contextlib.closing(_Doing(self._pool)) as doing:
            while True:
                try:
                    step = plan.send(came)
                except StopIteration as done:
                    return done.value
                came = await doing.do(step)

    async def _events(self, plan: Plan[None]) -> AsyncGenerator[Event]:
        """Do a plan and yield what it tells."""
        came: Came = None
        with contextlib.closing(_Doing(self._pool)) as doing:
            while True:
                try:
                    step = plan.send(came)
                except StopIteration:
                    return
                if isinstance(step, Tell):
                    came = None
                    yield step.event
                else:
                    came = await doing.do(step)
