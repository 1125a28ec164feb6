"""The child's end of the bridge: reads calls on one thread, answers from any.

::

    server = BridgeServer(sock, {"ping": ping, "load": load, …}, {"start": start, …})
    threading.Thread(target=device_loop, args=(server.notify,)).start()
    server.serve()          # returns when the server process closes its end

A handler gets the decoded parameters and returns the answer, or a :class:`concurrent.futures.Future` of it when
another thread will give it. What a handler raises, or sets as the future's exception, becomes the fault.
"""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from typing import Any, Final, TypeAlias

import msgspec

from tokenweir.core.errors import ProtocolError, WeirError
from tokenweir.runtime.bridge.envelope import (
    CALLS,
    CHILD_NOTICES,
    Failure,
    Incoming,
    Notice,
    Success,
    frame,
    parse,
    parse_fault,
)
from tokenweir.runtime.bridge.faults import fault_of
from tokenweir.runtime.bridge.framing import FrameReader
from tokenweir.runtime.bridge.messages import METHODS, Answer, Code, Fault, Stepped
from tokenweir.runtime.bridge.sender import FrameSender

_READ_BYTES: Final = 256 * 1024

_log = logging.getLogger(__name__)

Handler: TypeAlias = Callable[[Any], "Answer | Future[Any]"]
"""Answers one method; its parameter is the method's own type, which has been checked."""

NoticeHandler: TypeAlias = Callable[[Any], None]
"""Takes one kind of notification."""


class BridgeServer:
    """Serves one connection. ``handlers`` and ``notices`` are called on the thread that runs :meth:`serve`."""

    def __init__(
        self, sock: socket.socket, handlers: Mapping[str, Handler], notices: Mapping[str, NoticeHandler]
    ) -> None:
        sock.settimeout(None)
        self._sock = sock
        self._handlers = handlers
        self._notices = notices
        self._sender = FrameSender(sock)
        self._stopping = False

    def serve(self) -> None:
        """Read and dispatch until the peer closes the connection or :meth:`stop` is called.

        Raises:
            ProtocolError: the peer announced a frame that is too long, or the stream ended inside a frame.
        """
        reader = FrameReader()
        buffer = memoryview(bytearray(_READ_BYTES))
        try:
            while size := self._receive(buffer):
                for payload in reader.feed(buffer[:size]):
                    self._take(payload)
        finally:
            self._sender.close()
        if reader.pending_bytes and not self._stopping:
            raise ProtocolError(f"the stream ended {reader.pending_bytes} bytes into a frame")

    def notify(self, method: str, params: Stepped) -> None:
        """Send a notification, from any thread; never waits for the reader.

        Numbers in it must be finite: JSON knows no infinity, and the server refuses what does not fit its schema.
        """
        self._sender.send(frame(Notice(method=method, params=params)))

    def stop(self) -> None:
        """Let :meth:`serve` return, from any thread, after what is pending has been written."""
        self._stopping = True
        self._sender.close()
        try:
            self._sock.shutdown(socket.SHUT_RDWR)
        except OSError:
            # The peer was faster.
            _log.debug("the bridge was closed already")

    def _receive(self, buffer: memoryview) -> int:
        try:
            return self._sock.recv_into(buffer)
        except OSError:
            return 0

    def _take(self, payload: bytes) -> None:
        try:
            message = parse(payload)
        except ProtocolError as error:
            self._fail(None, parse_fault(error, payload))
            return
        if message.method is None:
            fault = Fault(code=Code.INVALID_REQUEST, message="a message names no method")
            self._fail(message.id, fault)
        elif message.id is None:
            self._notice(message.method, message.params)
        else:
            self._call(message.id, message.method, message)

    def _notice(self, method: str, raw: msgspec.Raw) -> None:
        if method not in CHILD_NOTICES or method not in self._notices:
            _log.error("no notification is called %r", method)
            return
        try:
            self._notices[method](CHILD_NOTICES.decode(method, raw))
        except Exception:  # noqa: BLE001 - no answer could carry the error, and the process must not end
            _log.exception("the notification %r was not obeyed", method)

    def _call(self, number: int, method: str, message: Incoming) -> None:
        if method not in CALLS or method not in self._handlers:
            known = ", ".join(self._handlers)
            text = f"no method is called {method!r}; there are {known}"
            self._fail(number, Fault(code=Code.METHOD_NOT_FOUND, message=text))
            return
        try:
            params = CALLS.decode(method, message.params)
        except ProtocolError as error:
            self._fail(number, Fault(code=Code.INVALID_PARAMS, message=error.message))
            return
        try:
            answer = self._handlers[method](params)
        except Exception as error:  # noqa: BLE001 - the request boundary: every error is an answer
            self._refuse(number, method, error)
            return
        if isinstance(answer, Future):
            answer.add_done_callback(lambda done: self._settle(number, method, done))
        else:
            self._answer(number, method, answer)

    def _settle(self, number: int, method: str, done: Future[Any]) -> None:
        if done.cancelled():
            self._fail(number, Fault(code=Code.INTERNAL, message=f"{method!r} was given up"))
        elif (error := done.exception()) is not None:
            self._refuse(number, method, error)
        else:
            self._answer(number, method, done.result())

    def _answer(self, number: int, method: str, answer: object) -> None:
        expected = METHODS[method][1]
        if not isinstance(answer, expected):
            text = f"{method!r} was answered with {type(answer).__name__}, not {expected.__name__}"
            self._fail(number, Fault(code=Code.INTERNAL, message=text))
            return
        try:
            sealed = frame(Success(id=number, result=answer))
        except ProtocolError as error:
            self._refuse(number, method, error)
            return
        self._sender.send(sealed)

    def _refuse(self, number: int, method: str, error: BaseException) -> None:
        if not isinstance(error, WeirError):
            _log.error("the method %r failed", method, exc_info=error)
        self._fail(number, fault_of(error))

    def _fail(self, number: int | None, fault: Fault) -> None:
        self._sender.send(frame(Failure(id=number, error=fault)))
