"""One connection to a model server: HTTP/1.1 on an asyncio protocol, parsed by httptools, with backpressure."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final, Protocol, cast

import httptools

from tokenweir.asgi.outbox import Outbox
from tokenweir.core.errors import EndpointError, ProtocolError, UnreachableError

HIGH_BYTES: Final = 256 << 10
"""Body bytes that wait to be taken from which the server is made to wait."""
MAX_HEAD_BYTES: Final = 64 << 10


class _Parser(Protocol):
    """What is used of httptools' response parser, which ships no types."""

    def feed_data(self, data: bytes) -> None: ...
    def get_status_code(self) -> int: ...
    def should_keep_alive(self) -> bool: ...


def _parser(connection: Connection) -> _Parser:
    return cast("_Parser", httptools.HttpResponseParser(connection))


class Connection(asyncio.Protocol):
    """Carries one exchange at a time. What the parser calls is named as httptools wants it."""

    def __init__(self, gone: Callable[[Connection], None], outbox: Outbox) -> None:
        self._gone = gone
        self._outbox = outbox
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._parser: _Parser | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._parts: list[bytes] = []
        self._held = 0
        self._head_bytes = 0
        self._paused = False
        self._failure: EndpointError | None = None
        self._coded = b""
        self.due = 0.0
        """By when, on the loop's clock, what is waited for has to come; 0 while nothing is waited for."""
        self.used = False
        """Whether an exchange has gone over it before."""
        self.begun = False
        """Whether a byte of the present answer has come."""
        self.status = 0
        self.headers: list[tuple[bytes, bytes]] = []
        self.complete = False
        self.reusable = False

    # -- the exchange ---------------------------------------------------------------------------------------------

    def begin(self, data: bytes) -> None:
        """Send a request. Raises UnreachableError when the server has closed meanwhile."""
        transport = self._transport
        if transport is None or transport.is_closing() or self._failure is not None:
            raise UnreachableError("the server closed the connection")
        if self._parser is None:
            self._parser = _parser(self)
        self.status, self.headers, self.complete, self.reusable, self.begun = 0, [], False, False, False
        self._parts.clear()
        self._held = self._head_bytes = 0
        self._outbox.write(transport, data)

    async def head(self, due: float) -> None:
        """Wait for status and headers. Raises UnreachableError, ProtocolError, TimeoutError after ``due``."""
        while not self.status:
            await self._more(due)

    async def take(self, due: float) -> bytes:
        """Return the body bytes that have come, waiting for some; empty at the end. Raises as :meth:`head`."""
        while not self._parts:
            if self.complete:
                return b""
            await self._more(due)
        data = self._parts[0] if len(self._parts) == 1 else b"".join(self._parts)
        self._parts.clear()
        self._held = 0
        if self._paused and self._transport is not None:
            self._paused = False
            self._transport.resume_reading()
        return data

    def close(self) -> None:
        """Close it, whatever is under way."""
        if self._transport is not None:
            self._transport.abort()

    @property
    def held(self) -> int:
        """How many body bytes wait to be taken."""
        return self._held

    @property
    def open(self) -> bool:
        """Whether it can carry another exchange."""
        return self._transport is not None and not self._transport.is_closing() and self._failure is None

    def expire(self) -> None:
        """Tell who waits that it is due."""
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_exception(TimeoutError())

    async def _more(self, due: float) -> None:
        if self._failure is not None:
            raise self._failure
        self._waiter = self._loop.create_future()
        self.due = due
        try:
            await self._waiter
        finally:
            self._waiter = None
            self.due = 0.0

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    # -- asyncio's side -------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        """Parse what came."""
        if self._parser is None or self.complete:
            # Bytes that nobody asked for: the connection is out of step.
            self._fail(ProtocolError("the server sent bytes that belong to no answer"))
            return
        self.begun = True
        if not self.status:
            self._head_bytes += len(data)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self._fail(ProtocolError(f"the answer is not HTTP/1.1: {error}"))
            return
        if self._coded:
            # Nobody has asked for it, and what a few bytes unpack to has no bound.
            self._fail(ProtocolError(f"the answer is encoded as {self._coded!r}, which was not asked for"))
            return
        if not self.status and self._head_bytes > MAX_HEAD_BYTES:
            self._fail(ProtocolError(f"the answer's head is longer than {MAX_HEAD_BYTES} bytes"))
            return
        if self._held > HIGH_BYTES and not self._paused and self._transport is not None:
            self._paused = True
            self._transport.pause_reading()
        self._wake()

    def eof_received(self) -> bool:
        """Let the transport close."""
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        """Fail what waits, unless the end of the connection is the end of the body."""
        if self._failure is None:
            if self.status and not self.complete and self._until_close():
                self.complete = True
            elif not self.complete:
                reason = f": {exc}" if exc is not None else ""
                self._failure = UnreachableError(
                    f"the server closed the connection before its answer ended{reason}"
                )
        self._transport = None
        self._wake()
        self._gone(self)

    def _until_close(self) -> bool:
        names = {name.lower() for name, _ in self.headers}
        return b"content-length" not in names and b"transfer-encoding" not in names

    def _fail(self, error: EndpointError) -> None:
        self._failure = error
        if self._transport is not None:
            self._transport.abort()
        self._wake()

    # -- httptools' side ------------------------------------------------------------------------------------------

    def on_header(self, name: bytes, value: bytes) -> None:
        """Keep a header."""
        name = name.lower()
        if name == b"content-encoding" and value.lower() != b"identity":
            self._coded = value
        self.headers.append((name, value))

    def on_headers_complete(self) -> None:
        """Keep the status; an interim answer is none."""
        parser = self._parser
        status = parser.get_status_code() if parser is not None else 0
        if 100 <= status < 200:  # noqa: PLR2004 - HTTP's own class of interim answers
            self.headers = []
            return
        if self._coded:
            return
        self.status = status
        self.reusable = parser is not None and parser.should_keep_alive()

    def on_body(self, body: bytes) -> None:
        """Keep a piece of the body."""
        self._parts.append(body)
        self._held += len(body)

    def on_message_complete(self) -> None:
        """Mark the end; after an interim answer the real one follows."""
        if self.status:
            self.complete = True
            self.used = True
