"""HTTP/1.1 from the client's side, fed with bytes: what both clients say and hear, however they move the bytes."""

from __future__ import annotations

import base64
from enum import Enum
from typing import Final, TypeAlias

import h11
import msgspec

from tokenweir.client.options import Origin, Proxy

_HEAD_MOST: Final = 64 << 10


class Question(msgspec.Struct, frozen=True, kw_only=True):
    """A request. ``path`` begins with a slash and is quoted already."""

    method: str
    path: str
    headers: tuple[tuple[str, str], ...] = ()
    body: bytes = b""


class Head(msgspec.Struct, frozen=True):
    """The head of an answer; names are lower case."""

    status: int
    headers: dict[str, str]


class Part(Enum):
    """What a read can give beside a head and pieces of a body."""

    END = "the answer is whole"
    MORE = "more bytes are needed"


Heard: TypeAlias = Head | bytes | Part


class BrokenError(Exception):
    """The connection ended amid an answer, or what came is no HTTP."""


class Tunnel:
    """What is said to a proxy, and heard of it, before a connection through it is the gateway's."""

    def __init__(self, proxy: Proxy, origin: Origin) -> None:
        self._proxy = proxy
        self._place = f"{f'[{origin.host}]' if ':' in origin.host else origin.host}:{origin.port}"
        self._heard = b""

    def ask(self) -> bytes:
        """Return the bytes of the request."""
        lines = [f"CONNECT {self._place} HTTP/1.1", f"host: {self._place}"]
        if self._proxy.credentials:
            packed = base64.b64encode(self._proxy.credentials.encode()).decode()
            lines.append(f"proxy-authorization: Basic {packed}")
        return "\r\n".join([*lines, "", ""]).encode()

    def feed(self, data: bytes) -> bool:
        """Take what was read; whether the connection is the gateway's now. Raises BrokenError where it is refused."""
        self._heard += data
        proxy = f"the proxy {self._proxy.host}:{self._proxy.port}"
        if not data:
            raise BrokenError(f"{proxy} closed the connection")
        head, end, _ = self._heard.partition(b"\r\n\r\n")
        if not end:
            if len(self._heard) > _HEAD_MOST:
                raise BrokenError(f"{proxy} does not speak HTTP")
            return False
        status = head.partition(b"\r\n")[0].decode("latin-1").partition(" ")[2]
        if not status.startswith("2"):
            raise BrokenError(f"{proxy} refused {self._place}: {status or 'it does not speak HTTP'}")
        return True


class Exchange:
    """The state of one connection, over as many requests as it lasts."""

    def __init__(self, origin: Origin) -> None:
        self._origin = origin
        self._state = h11.Connection(h11.CLIENT, max_incomplete_event_size=_HEAD_MOST)

    def ask(self, question: Question) -> bytes:
        """Return the bytes of a request."""
        headers = [("host", self._origin.authority), *question.headers]
        if question.body:
            headers.append(("content-length", str(len(question.body))))
        head = h11.Request(
            method=question.method, target=self._origin.prefix + question.path, headers=headers
        )
        pieces = [self._state.send(head)]
        if question.body:
            pieces.append(self._state.send(h11.Data(data=question.body)))
        pieces.append(self._state.send(h11.EndOfMessage()))
        return b"".join(piece for piece in pieces if piece)

    def feed(self, data: bytes) -> None:
        """Take what was read; b"" is the end of the connection. Raises BrokenError."""
        try:
            self._state.receive_data(data)
        except h11.RemoteProtocolError as error:
            raise BrokenError(str(error)) from error

    def heard(self) -> Heard:
        """Return the next part of the answer. Raises BrokenError."""
        try:
            event = self._state.next_event()
        except h11.RemoteProtocolError as error:
            raise BrokenError(str(error)) from error
        match event:
            case h11.InformationalResponse():
                return self.heard()
            case h11.Response():
                headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in event.headers}
                return Head(event.status_code, headers)
            case h11.Data():
                return bytes(event.data)
            case h11.EndOfMessage():
                return Part.END
            case h11.ConnectionClosed():
                raise BrokenError("the connection was closed")
            case _:
                return Part.MORE

    def again(self) -> bool:
        """Whether another request may follow on this connection; makes it ready for one."""
        if self._state.our_state is not h11.DONE or self._state.their_state is not h11.DONE:
            return False
        self._state.start_next_cycle()
        return True
