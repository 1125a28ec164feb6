"""A WebSocket for programs on asyncio: many requests over one connection, made again when it is lost."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Mapping
from types import TracebackType
from typing import Final, Self

from tokenweir.client.async_connections import Connection, Pool
from tokenweir.client.dialogue import Dialogue, Move, Open, Said
from tokenweir.client.exchange import BrokenError
from tokenweir.client.plans import checked_key, encoded, name_of
from tokenweir.client.results import lost
from tokenweir.client.steps import Came, Hear, Rest
from tokenweir.core.errors import ProtocolError
from tokenweir.core.events import Event
from tokenweir.core.ids import new_id
from tokenweir.core.status import Submitted

_NS: Final = 1_000_000_000


class AsyncSocket:
    """:class:`tokenweir.client.Socket` for asyncio: the same calls, awaited. Tasks of one loop may share it.

    Whichever task waits for something moves the bytes for all of them.
    """

    def __init__(self, dialogue: Dialogue, pool: Pool) -> None:
        """Nothing is connected yet."""
        self._dialogue = dialogue
        self._pool = pool
        self._connection: Connection | None = None
        self._moving = False
        self._moved = asyncio.Event()

    async def submit(
        self,
        body: Mapping[str, object] | None = None,
        /,
        *,
        idempotency_key: str | None = None,
        follow: bool = True,
        **fields: object,
    ) -> Submitted:
        """Have a request taken on, and its events sent. See :meth:`tokenweir.client.Socket.submit`."""
        key = checked_key(new_id("idem") if idempotency_key is None else idempotency_key)
        said = self._dialogue.submit(encoded({**(body or {}), **fields}), key, follow=follow)
        await self._finish(said)
        if said.submitted is None:
            raise ProtocolError("a submission was answered as something else", mend="report this as a bug")
        return said.submitted

    def follow(self, request: str | Submitted, *, after: int = -1) -> None:
        """Have the events of a request above ``after`` sent. Raises OverloadedError."""
        self._dialogue.follow(name_of(request), after)
        self._flush()

    async def cancel(self, request: str | Submitted) -> None:
        """Have a request stopped; what had come is kept, and charged. Raises NotFoundError."""
        await self._finish(self._dialogue.cancel(name_of(request)))

    async def events(self) -> AsyncGenerator[tuple[str, Event]]:
        """Yield the events of all that are followed, each after its ``req_…``, until all have ended.

        What another task takes with :meth:`stream` is left out. See :meth:`tokenweir.client.Socket.events`.
        """
        while True:
            await self._until(self._dialogue.has_any)
            taken = self._dialogue.take_any()
            self._flush()
            if taken is None:
                return
            yield taken

    async def stream(self, request: str | Submitted) -> AsyncGenerator[Event]:
        """Yield the events of one request, once each and in order, up to the end.

        Tasks may stream one request each. See :meth:`tokenweir.client.Socket.stream`.
        """
        name, dialogue = name_of(request), self._dialogue
        if not dialogue.follows(name):
            dialogue.follow(name, -1)
        dialogue.streamed(name, begins=True)
        try:
            while dialogue.follows(name):
                await self._until(lambda: dialogue.has(name))
                event = dialogue.take(name)
                self._flush()
                if event is not None:
                    yield event
        finally:
            dialogue.streamed(name, begins=False)

    async def aclose(self) -> None:
        """Let go of the connection. Requests go on; what is left of them can be followed over another."""
        last = self._dialogue.close()
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.say(last)
            await connection.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def _finish(self, said: Said) -> None:
        """Wait for an answer; say it again where a refusal asks for that. Raises what a refusal means."""
        try:
            while True:
                self._flush()
                await self._until(lambda: said.answered)
                rest_ns = self._dialogue.retry_ns(said)
                if rest_ns is None:
                    return
                await asyncio.sleep(rest_ns / _NS)
                self._dialogue.again(said)
        finally:
            self._dialogue.forget(said)

    async def _until(self, come: Callable[[], bool]) -> None:
        """Go on until something has come, or wait while another task does. Raises what ended the socket."""
        while not come():
            self._dialogue.check()
            if self._moving:
                await self._moved.wait()
                continue
            self._moving = True
            try:
                step = self._dialogue.step()
                self._dialogue.came(step, await self._do(step))
            finally:
                self._moving = False
                moved, self._moved = self._moved, asyncio.Event()
                moved.set()

    async def _do(self, step: Move) -> Came:
        try:
            match step:
                case Open():
                    self._drop()
                    self._connection = await self._pool.fresh(step.origin)
                case Hear():
                    self._flush()
                    return b"" if self._connection is None else await self._connection.hear(step.limit_ns)
                case Rest():
                    await asyncio.sleep(step.rest_ns / _NS)
        except (OSError, BrokenError) as error:
            self._drop()
            return lost(error)
        return None

    def _flush(self) -> None:
        """Have what was said sent, whichever task reads meanwhile."""
        if self._connection is not None:
            data = self._dialogue.outgoing()
            if data:
                self._connection.say(data)

    def _drop(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.abort()
