"""The client for programs that block."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from types import TracebackType
from typing import Final, Self, TypeVar

from tokenweir.client.batches import Batch, BatchEndpoint, BatchPlanner, BatchResult, batch_name
from tokenweir.client.connections import Connection, Pool
from tokenweir.client.exchange import BrokenError
from tokenweir.client.options import Options
from tokenweir.client.plans import name_of
from tokenweir.client.results import BatchItem, check, concerns_all, item_key, lost, read_timeout
from tokenweir.client.sockets import Socket
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

    def do(self, step: Step) -> Came:
        """Do a step and return what came of it."""
        try:
            match step:
                case Ask():
                    return self._ask(step)
                case Hear():
                    return self._hear(step)
                case Rest():
                    time.sleep(step.rest_ns / _NS)
                case Tell():
                    pass
        except (OSError, BrokenError) as error:
            self.close()
            return lost(error)
        return None

    def _ask(self, step: Ask) -> Answer:
        self.close()
        connection = self._connection = self._pool.take(step.origin)
        try:
            connection.send(step.question, step.limit_ns)
            head = connection.head()
        except TimeoutError:
            raise
        except (OSError, BrokenError):
            if connection.fresh:
                raise
            # The gateway may close a connection that waits at any moment; this says nothing of the gateway.
            connection.close()
            connection = self._connection = self._pool.fresh(step.origin)
            connection.send(step.question, step.limit_ns)
            head = connection.head()
        if step.streamed and head.status == _OK:
            return Answer(head.status, head.headers)
        pieces: list[bytes] = []
        size = 0
        while piece := connection.piece(step.limit_ns):
            pieces.append(piece)
            size += len(piece)
            if size > _BODY_MOST:
                raise ProtocolError(f"the answer is longer than {_BODY_MOST} bytes")
        self._over()
        return Answer(head.status, head.headers, b"".join(pieces))

    def _hear(self, step: Hear) -> bytes:
        if self._connection is None:
            return b""
        piece = self._connection.piece(step.limit_ns)
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
            connection.close()


class Client:
    """A client of one gateway, or of several of one service. Threads may share it; close it, or use it in ``with``.

    A lost connection is made again, at another gateway where there are several, and streams go on where they
    stopped. Whatever is submitted is submitted once. Raises errors of :mod:`tokenweir.core.errors`.
    """

    def __init__(self, url: str | Sequence[str], key: str, *, options: Options | None = None) -> None:
        """Raises InputError for a URL or key that cannot be used; nothing is connected yet."""
        self._planner = BatchPlanner(url, key, options or Options())
        check(self._planner.options)
        self._pool = Pool(self._planner.options)

    def submit(
        self,
        body: Mapping[str, object] | None = None,
        /,
        *,
        idempotency_key: str | None = None,
        **fields: object,
    ) -> Submitted:
        """Have a request taken on: ``model``, ``messages`` (or ``prompt``, ``input``), ``mode`` and OpenAI's fields.

        They are given as one mapping, by name, or both.
        Without ``idempotency_key`` the client makes one for this call. With the same one, and the same body, a
        later call gives the same request.

        Raises:
            ParameterError, InputError: the body cannot be used.
            ConflictError: the idempotency key was used with another body.
            UnauthorizedError, ForbiddenError, NotFoundError: this key may not, or there is no such model.
            QuotaExceededError: a limit is reached, for longer than the client is patient.
            OverloadedError, UnavailableError, UnreachableError: no gateway took it on within that time.
        """
        return self._run(self._planner.submit({**(body or {}), **fields}, idempotency_key))

    def status(self, request: str | Submitted) -> RequestStatus:
        """Return how a request stands. Raises NotFoundError, and what :meth:`submit` raises of the connection."""
        return self._run(self._planner.status(name_of(request)))

    def cancel(self, request: str | Submitted) -> RequestStatus:
        """Have a request stopped; what had come is kept, and charged. Raises as :meth:`status`."""
        return self._run(self._planner.cancel(name_of(request)))

    def wait(self, request: str | Submitted, *, timeout: str | int | None = None) -> RequestStatus:
        """Return a request's status once it has ended, well or not; ``timeout`` is as ``"30s"``, or ns.

        Raises DeadlineError when it has not ended by then: it goes on. Raises else as :meth:`status`.
        """
        return self._run(self._planner.wait(name_of(request), read_timeout(timeout)))

    def stream(self, request: str | Submitted, *, after: int = -1) -> Generator[Event]:
        """Yield each event above ``after`` once, in order, up to the end. Raises as :meth:`status`."""
        return self._events(self._planner.follow(name_of(request), after))

    def history(self, *, page: int = 50) -> Iterator[RequestStatus]:
        """Yield one's own requests, newest first, without their results; asks for ``page`` of them at a time."""
        cursor = None
        while True:
            found = self._run(self._planner.page(cursor, page))
            yield from found.data
            cursor = found.next_cursor
            if cursor is None:
                return

    def batch(
        self, bodies: Iterable[Mapping[str, object]], *, at_once: int = 64, key: str | None = None
    ) -> Generator[BatchItem]:
        """Have many requests answered, at most ``at_once`` at a time; yield each once it has ended, in order.

        With ``key`` the same batch can be run again after a crash of the caller: what was taken on is not taken on
        again. A body that is refused gives an item with its error; what concerns all, as a key that is not valid, is
        raised.
        """
        name = key or new_id("batch")
        coming: deque[tuple[int, Submitted | WeirError]] = deque()
        for index, body in enumerate(bodies):
            if len(coming) >= at_once:
                yield self._item(*coming.popleft())
            try:
                plan = self._planner.submit(body, item_key(name, index))
                coming.append((index, self._run(plan)))
            except WeirError as error:
                if concerns_all(error):
                    raise
                coming.append((index, error))
        while coming:
            yield self._item(*coming.popleft())

    def submit_batch(
        self,
        bodies: Iterable[Mapping[str, object]],
        *,
        endpoint: BatchEndpoint = "/v1/chat/completions",
        metadata: Mapping[str, str] | None = None,
        key: str | None = None,
    ) -> Batch:
        """Have many requests taken on as one batch, which the gateway works on when there is room, within a day.

        All are sent at once, and nobody need wait for them. With ``key`` the same bodies give the same batch.
        Raises as :meth:`submit`.
        """
        return self._run(self._planner.submit_batch(bodies, endpoint, metadata=metadata, key=key))

    def batch_status(self, batch: str | Batch) -> Batch:
        """Return how a batch stands. Raises as :meth:`status`."""
        return self._run(self._planner.batch_status(batch_name(batch)))

    def wait_batch(self, batch: str | Batch, *, timeout: str | int | None = None) -> Batch:
        """Return a batch once it has ended, well or not. Raises DeadlineError; else as :meth:`status`."""
        return self._run(self._planner.wait_batch(batch_name(batch), read_timeout(timeout)))

    def cancel_batch(self, batch: str | Batch) -> Batch:
        """Have a batch stopped; what had come is kept, and charged. Raises as :meth:`status`."""
        return self._run(self._planner.cancel_batch(batch_name(batch)))

    def batch_results(self, batch: str | Batch) -> list[BatchResult]:
        """Return what became of the requests of a batch that has ended, in the order of the bodies.

        Those that were not sent, since it was cancelled or its lines were wrong, are not among them.
        """
        return self._run(self._planner.results(batch_name(batch)))

    def socket(self) -> Socket:
        """Return a WebSocket that many requests share; close it, or use it in ``with``. Nothing is connected yet."""
        return Socket(self._planner.dialogue(), self._pool)

    def close(self) -> None:
        """Let go of connections that wait."""
        self._pool.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _item(self, index: int, taken: Submitted | WeirError) -> BatchItem:
        if isinstance(taken, WeirError):
            return BatchItem(index=index, error=taken)
        return BatchItem(index=index, status=self.wait(taken))

    def _run(self, plan: Plan[T]) -> T:
        """Do a plan and return its result."""
        came: Came = None
        with closing(_Doing(self._pool)) as doing:
            while True:
                try:
                    step = plan.send(came)
                except StopIteration as done:
                    return done.value
                came = doing.do(step)

    def _events(self, plan: Plan[None]) -> Generator[Event]:
        """Do a plan and yield what it tells."""
        came: Came = None
        with closing(_Doing(self._pool)) as doing:
            while True:
                try:
                    step = plan.send(came)
                except StopIteration:
                    return
                if isinstance(step, Tell):
                    came = None
                    yield step.event
                else:
                    came = doing.do(step)
