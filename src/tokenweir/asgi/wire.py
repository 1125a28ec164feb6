"""What our own server lets a handler do with its connection that ASGI has no quick word for.

ASGI tells of a client's departure only to who waits for it, hands a body over by awaiting, and sends head and body
apart. Here the departure is a callback, a body that has come is taken at once, and a whole answer is one write.
All of it keeps uvicorn's own account of the request, so that both ways may be mixed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, RequestResponseCycle

from tokenweir.asgi.outbox import Outbox

KEY: Final = "weir.wire"
"""Where a request's scope holds it."""


class Wire:
    """One request's connection. Nothing here waits; ``False`` and ``None`` mean that ASGI has to be used."""

    __slots__ = ("_cycle", "_outbox", "_watchers")

    def __init__(self, watchers: set[Callable[[], object]], outbox: Outbox) -> None:
        self._watchers = watchers
        self._outbox = outbox
        self._cycle: RequestResponseCycle | None = None

    def carry(self, cycle: RequestResponseCycle) -> None:
        """Belong to a request, whose head has come."""
        self._cycle = cycle

    def watch(self, gone: Callable[[], object]) -> bool:
        """Have ``gone`` called when the connection is lost, until :meth:`unwatch`; ``False``: it is lost already."""
        if self._cycle is None or self._cycle.disconnected:
            return False
        self._watchers.add(gone)
        return True

    def unwatch(self, gone: Callable[[], object]) -> None:
        """Do not call ``gone`` any more."""
        self._watchers.discard(gone)

    def body(self) -> bytes | None:
        """Return the body if all of it has come."""
        cycle = self._cycle
        if cycle is None or cycle.more_body or cycle.disconnected or cycle.response_started:
            return None
        body = bytes(cycle.body)
        cycle.body = bytearray()
        # What comes next is the client's departure, and whoever asks for that waits for it anew.
        cycle.message_event.clear()
        cycle.flow.resume_reading()
        return body

    def answer(self, status: int, headers: Sequence[tuple[bytes, bytes]], body: bytes) -> bool:
        """Send a whole answer, whose headers tell its length."""
        cycle = self._cycle
        if (
            cycle is None
            or cycle.response_started
            or cycle.disconnected
            or cycle.flow.write_paused
            or cycle.scope["method"] == "HEAD"
        ):
            return False
        pieces = [STATUS_LINE[status]]
        for name, value in cycle.default_headers:
            pieces += (name, b": ", value, b"\r\n")
        for name, value in headers:
            pieces += (name, b": ", value, b"\r\n")
        if not cycle.keep_alive:
            pieces.append(b"connection: close\r\n")
        pieces += (b"\r\n", body)
        cycle.response_started = cycle.response_complete = True
        cycle.waiting_for_100_continue = False
        self._outbox.write(cycle.transport, b"".join(pieces))
        cycle.message_event.set()
        if not cycle.keep_alive:
            self._outbox.flush()
            cycle.transport.close()
        cycle.on_response()
        return True

    def write(self, piece: bytes) -> bool:
        """Send a piece of an answer that has begun and is sent in chunks."""
        cycle = self._cycle
        if (
            cycle is None
            or not cycle.chunked_encoding
            or cycle.response_complete
            or cycle.disconnected
            or cycle.flow.write_paused
            or cycle.scope["method"] == "HEAD"
        ):
            return False
        if piece:
            cycle.transport.write(b"%x\r\n%b\r\n" % (len(piece), piece))
        return True
