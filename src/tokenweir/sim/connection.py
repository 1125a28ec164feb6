"""One client's connection: requests in, answers out, and what is still to be written."""

from __future__ import annotations

import socket
import struct
from typing import TYPE_CHECKING, Final

from tokenweir.poller import READ, WRITE
from tokenweir.sim import http

if TYPE_CHECKING:
    from tokenweir.sim.answers import Answer
    from tokenweir.sim.server import Server

_READ_BYTES: Final = 65_536
_MAX_PIPELINED_BYTES: Final = 1_048_576
_MAX_DRAINED_BYTES: Final = 67_108_864
_RESET_ON_CLOSE: Final = struct.pack("ii", 1, 0)


class Connection:
    """A non-blocking socket with its parser. ``answer`` is the one under way; requests behind it wait.

    ``pending`` holds bytes that the kernel has no room for; ``starved`` says that the answer waits for it.
    ``transmit`` is the socket's own ``send``, for callers that deal with what it does not take.
    """

    __slots__ = (
        "_closing",
        "_drained",
        "_lost",
        "_parser",
        "_serving",
        "_sock",
        "answer",
        "fd",
        "keep_alive",
        "pending",
        "server",
        "starved",
        "transmit",
    )

    def __init__(self, server: Server, sock: socket.socket, max_body: int) -> None:
        self.server = server
        self.fd = sock.fileno()
        self.answer: Answer | None = None
        self.keep_alive = True
        self.pending = b""
        self.starved = False
        self._sock = sock
        self.transmit = sock.send
        self._parser = http.RequestParser(max_body)
        self._closing = False
        self._serving = False
        self._lost = False
        self._drained = -1

    def send(self, data: bytes) -> None:
        """Write ``data``; what the kernel does not take is kept. The connection may be gone then."""
        if self.pending:
            self.pending += data
            return
        try:
            sent = self.transmit(data)
        except BlockingIOError:
            sent = 0
        except OSError:
            self.drop()
            return
        if sent != len(data):
            self.pending = data[sent:]
            self.server.poller.watch(self.fd, READ | WRITE)

    def reply(
        self,
        status: int,
        body: bytes,
        content_type: str = http.JSON,
        extra: tuple[tuple[str, str], ...] = (),
    ) -> None:
        """Answer the current request at once with a whole body."""
        head = http.head(status, content_type, length=len(body), extra=extra, keep_alive=self.keep_alive)
        self.send(head + body)
        self.answered()

    def answered(self) -> None:
        """Go on to the next request, or close if this was the last one."""
        self.answer = None
        self.starved = False
        if not self.keep_alive:
            self._close_when_written()
        elif not self._serving and not self._parser.idle and self.fd >= 0:
            self._serve(b"")

    def drop(self, *, reset: bool = False) -> None:
        """Close now, whatever is under way; with ``reset`` so that the client sees a reset."""
        if self.fd < 0:
            return
        if reset:
            self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
        self.server.forget(self)
        self._sock.close()
        self.fd = -1
        self.pending = b""
        answer, self.answer = self.answer, None
        if answer is not None and answer.conn is not None:
            answer.engine.cancel(answer)

    def readable(self) -> None:
        """Read what is there and serve what is complete."""
        try:
            data = self._sock.recv(_READ_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self.drop()
        elif self._drained >= 0:
            self._drained += len(data)
            if self._drained > _MAX_DRAINED_BYTES:
                self.drop()
        elif self.answer is not None or self._closing:
            self._parser.hold(data)
            if self._parser.held > _MAX_PIPELINED_BYTES:
                self.drop()
        else:
            self._serve(data)

    def writable(self) -> None:
        """Write what is pending; then let the answer go on."""
        if not self.pending:
            return
        data, self.pending = self.pending, b""
        self.send(data)
        if self.pending or self.fd < 0:
            return
        self.server.poller.watch(self.fd, READ)
        if self._closing:
            self.drop()
        elif self.starved and self.answer is not None:
            self.starved = False
            self.answer.resume()

    def _serve(self, data: bytes) -> None:
        self._serving = True
        try:
            request = self._parser.feed(data)
            if request is None and self._parser.expects_continue:
                self._parser.expects_continue = False
                self.send(http.CONTINUE)
            while request is not None:
                self.keep_alive = request.keep_alive
                self.server.serve(self, request)
                if self.answer is not None or self._closing or self.fd < 0:
                    break
                request = self._parser.feed(b"")
        except http.HttpError as error:
            # What follows on this connection cannot be told apart, so the client reads the answer and an end.
            self._lost = True
            self.keep_alive = False
            self.server.refuse(self, error)
        finally:
            self._serving = False

    def _close_when_written(self) -> None:
        if self.fd < 0:
            return
        if self.pending:
            self._closing = True
        elif self._parser.idle and not self._lost:
            self.drop()
        elif self._drained < 0:
            # Closing with unread bytes would reset the connection and take the answer from the client.
            self._drained = 0
            self._sock.shutdown(socket.SHUT_WR)
