"""The client for programs on asyncio."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Mapping, Sequence
from types import TracebackType
from typing import Final, Self, TypeVar

from tokenweir.client.async_connections import Connection, Pool
from tokenweir.client.async_sockets import AsyncSocket
from tokenweir.client.batches import Batch, BatchEndpoint, BatchPlanner, BatchResult, batch_name
from tokenweir.client.exchange import BrokenError
from tokenweir.client.options import Options
from tokenweir.client.plans import name_of
from tokenweir.client.results import BatchItem, check, concerns_all, item_key, lost, read_timeout
from tokenweir.client.steps import Answer, Ask, Came, Hear, Plan, Rest, Step, Tell
from tokenweir.core.errors import ProtocolError, WeirError
from tokenweir.core.events import Event
from tokenweir.core.ids import new_id
from tokenweir.core.status import RequestStatus, Submitted

T = TypeVar("T")

_OK: Final = 200
_BODY_MOST: Final = 256 << 20
_NS: Final = 1_000_000_000


class _Doing:
    """Does the steps of one plan."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._connection: Connection | None = None

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
        self._pool = Pool(self._planner.options)

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

    def socket(self) -> AsyncSocket:
        """Return a WebSocket that many requests, and tasks, share. See :meth:`tokenweir.client.Client.socket`."""
        return AsyncSocket(self._planner.dialogue(), self._pool)

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
