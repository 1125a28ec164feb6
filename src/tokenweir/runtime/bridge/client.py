"""The server's end of the bridge: asyncio calls with timeouts, and notifications as they come."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Callable
from typing import Self, TypeAlias, TypeVar, cast

import msgspec

from tokenweir.core.errors import DeadlineError, EngineRestartedError, ProtocolError, WeirError
from tokenweir.core.units import format_duration
from tokenweir.runtime.bridge.envelope import (
    ANSWERS,
    METHOD_OF,
    NOTICE_OF,
    SERVER_NOTICES,
    Incoming,
    Notice,
    Request,
    frame,
    parse,
)
from tokenweir.runtime.bridge.faults import error_of
from tokenweir.runtime.bridge.framing import FrameReader
from tokenweir.runtime.bridge.messages import METHODS, Answer, Call, Cancel, Credit, Start, Stepped, Tune

_NS_PER_S = 1_000_000_000

AnswerT = TypeVar("AnswerT", bound=Answer)

Notification: TypeAlias = Start | Credit | Cancel | Tune
"""What the server notifies the child of."""


class BridgeClient(asyncio.Protocol):
    """One connection to a child. Belongs to one event loop.

    ``on_stepped`` gets each notification, in order, on the loop. ``on_lost`` is called once when the connection
    ends, with the reason: the child closed it, broke the protocol, or :meth:`close` was called (``None``).
    Calls that wait then raise EngineRestartedError.
    """

    def __init__(
        self, on_stepped: Callable[[Stepped], None], on_lost: Callable[[WeirError | None], None]
    ) -> None:
        self._on_stepped = on_stepped
        self._on_lost = on_lost
        self._reader = FrameReader()
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.WriteTransport | None = None
        self._calls: dict[int, tuple[str, asyncio.Future[Answer]]] = {}
        self._last_id = 0
        self._outgoing: list[bytearray] = []
        self._writable = asyncio.Event()
        self._writable.set()
        self._ended = False
        self._reason: WeirError | None = None

    @classmethod
    async def connect(
        cls,
        sock: socket.socket,
        on_stepped: Callable[[Stepped], None],
        on_lost: Callable[[WeirError | None], None],
    ) -> Self:
        """Return a client on a connected Unix stream socket, which it owns from here."""
        sock.settimeout(0)
        loop = asyncio.get_running_loop()
        _, client = await loop.create_unix_connection(lambda: cls(on_stepped, on_lost), sock=sock)
        return client

    @property
    def connected(self) -> bool:
        """Whether the connection stands."""
        return not self._ended

    async def call(self, params: Call, answer: type[AnswerT], *, timeout_ns: int) -> AnswerT:
        """Call the method that ``params`` belong to and return its answer, which is of type ``answer``.

        Raises:
            WeirError: the child refused; the same class that it raised.
            DeadlineError: no answer within ``timeout_ns``; one that comes later is dropped.
            EngineRestartedError: the connection ended first.
            ProtocolError: the answer does not fit its schema, or the call is too long for a frame.
        """
        method = METHOD_OF[type(params)]
        if METHODS[method][1] is not answer:
            raise ProtocolError(f"{method!r} is answered with {METHODS[method][1].__name__}")
        self._last_id += 1
        number = self._last_id
        sealed = frame(Request(id=number, method=method, params=params))
        future: asyncio.Future[Answer] = self._loop.create_future()
        try:
            async with asyncio.timeout(timeout_ns / _NS_PER_S):
                await self._writable.wait()
                self._must_stand()
                self._calls[number] = (method, future)
                self._send(sealed)
                return cast("AnswerT", await future)
        except TimeoutError:
            raise DeadlineError(
                f"the engine did not answer {method!r} within {format_duration(timeout_ns)}",
                mend="it is overloaded or hangs; its supervisor ends what hangs",
            ) from None
        finally:
            self._calls.pop(number, None)

    def notify(self, params: Notification) -> None:
        """Notify the child. Notifications of one turn of the loop leave in one write; none wait.

        After the connection has ended they are dropped: what they were for has ended as well.
        """
        if not self._ended:
            self._send(frame(Notice(method=NOTICE_OF[type(params)], params=params)))

    def close(self) -> None:
        """Close the connection; the child ends when it notices."""
        self._end(None)

    # -- asyncio.Protocol -----------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        self._transport = cast("asyncio.WriteTransport", transport)

    def data_received(self, data: bytes) -> None:
        """Take what came; a breach of the protocol ends the connection, since tokens may be lost with it."""
        try:
            for payload in self._reader.feed(data):
                self._take(parse(payload))
        except ProtocolError as error:
            self._end(error)

    def connection_lost(self, exc: Exception | None) -> None:
        """End: the child closed the connection or died."""
        reason = "" if exc is None else f": {exc}"
        self._end(EngineRestartedError(f"the engine's process closed the connection{reason}"))

    def pause_writing(self) -> None:
        """Let further calls wait: the child reads more slowly than we write."""
        self._writable.clear()

    def resume_writing(self) -> None:
        """Let calls go on."""
        self._writable.set()

    # -- inside ---------------------------------------------------------------------------------------------------

    def _must_stand(self) -> None:
        if self._ended:
            raise self._lost()

    def _lost(self) -> WeirError:
        reason = f": {self._reason.message}" if self._reason is not None else ""
        return EngineRestartedError(
            f"the connection to the engine's process ended{reason}", mend="send the request again"
        )

    def _send(self, sealed: bytearray) -> None:
        if not self._outgoing:
            self._loop.call_soon(self._flush)
        self._outgoing.append(sealed)

    def _flush(self) -> None:
        outgoing, self._outgoing = self._outgoing, []
        if self._transport is not None and not self._ended:
            self._transport.write(outgoing[0] if len(outgoing) == 1 else b"".join(outgoing))

    def _take(self, message: Incoming) -> None:
        if message.method is not None:
            self._notice(message.method, message.params)
        elif message.id is not None:
            self._answer(message.id, message)
        elif message.error is not None:
            raise ProtocolError(f"the child could not read a message of ours: {message.error.message}")
        else:
            raise ProtocolError("a message is neither an answer nor a notification")

    def _notice(self, method: str, raw: msgspec.Raw) -> None:
        if method not in SERVER_NOTICES:
            raise ProtocolError(f"no notification is called {method!r}")
        self._on_stepped(cast("Stepped", SERVER_NOTICES.decode(method, raw)))

    def _answer(self, number: int, message: Incoming) -> None:
        if number > self._last_id:
            raise ProtocolError(f"an answer to call {number}, which was never made")
        method, future = self._calls.pop(number, ("", None))
        if future is None or future.done():
            # Its caller has given up.
            return
        if message.error is not None:
            future.set_exception(error_of(message.error))
            return
        try:
            future.set_result(cast("Answer", ANSWERS.decode(method, message.result)))
        except ProtocolError as error:
            future.set_exception(error)

    def _end(self, reason: WeirError | None) -> None:
        if self._ended:
            return
        self._ended = True
        self._reason = reason
        if self._transport is not None:
            with contextlib.suppress(RuntimeError):
                # The loop may be closing already.
                self._transport.abort()
        self._writable.set()
        for _, future in self._calls.values():
            if not future.done():
                future.set_exception(self._lost())
        self._calls.clear()
        self._on_lost(reason)
