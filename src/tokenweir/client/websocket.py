"""A WebSocket from the client's side, fed with bytes: the upgrade, then whole messages."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from wsproto import ConnectionType, WSConnection
from wsproto.events import (
    AcceptConnection,
    CloseConnection,
    Event,
    Ping,
    RejectConnection,
    RejectData,
    Request,
    TextMessage,
)
from wsproto.utilities import LocalProtocolError, RemoteProtocolError

from tokenweir.client.exchange import BrokenError
from tokenweir.client.options import Origin
from tokenweir.client.steps import Answer

_PATH: Final = "/v1/ws"
_MESSAGE_MOST: Final = 256 << 20
_GOING: Final = 1000
_TOO_LONG: Final = 1009


class RefusedError(Exception):
    """The upgrade was answered otherwise."""

    def __init__(self, answer: Answer) -> None:
        super().__init__(str(answer.status))
        self.answer = answer


class TooLongError(Exception):
    """The other side takes no message that is so long."""


class WebSocket:
    """The state of one connection that becomes a WebSocket."""

    def __init__(self, origin: Origin, authorization: tuple[str, str]) -> None:
        self._state = WSConnection(ConnectionType.CLIENT)
        name, value = authorization
        asked = Request(
            host=origin.authority,
            target=origin.prefix + _PATH,
            extra_headers=[(name.encode("ascii"), value.encode("ascii"))],
        )
        self._outgoing = bytearray(self._state.send(asked))
        self._parts: list[str] = []
        self._length = 0
        self._refused: RejectConnection | None = None
        self._body = bytearray()

    def outgoing(self) -> bytes:
        """Return, once, the bytes that are to be sent."""
        data = bytes(self._outgoing)
        self._outgoing.clear()
        return data

    def say(self, message: bytes) -> None:
        """Have a message of JSON sent."""
        self._send(TextMessage(data=message.decode()))

    def close(self) -> None:
        """Say that nothing follows."""
        self._send(CloseConnection(code=_GOING))

    def feed(self, data: bytes) -> Iterator[str]:
        """Yield the messages that ``data`` completes.

        Raises:
            RefusedError: the upgrade was refused.
            TooLongError: a message that was sent is longer than the other side takes.
            BrokenError: the other side closed, or what came is no WebSocket.
        """
        try:
            self._state.receive_data(data)
            for event in self._state.events():
                text = self._take(event)
                if text is not None:
                    yield text
        except RemoteProtocolError as error:
            raise BrokenError(f"what came is no WebSocket: {error}") from error

    def _take(self, event: Event) -> str | None:
        """Return the message that an event completes."""
        match event:
            case TextMessage():
                return self._text(event)
            case Ping():
                self._send(event.response())
            case CloseConnection():
                if event.code == _TOO_LONG:
                    raise TooLongError
                raise BrokenError(f"it was closed with {int(event.code)} {event.reason or ''}".rstrip())
            case RejectConnection():
                self._refused = event
                self._refuse(whole=not event.has_body)
            case RejectData():
                self._body += event.data
                self._refuse(whole=event.body_finished)
            case AcceptConnection() | _:
                pass
        return None

    def _text(self, event: TextMessage) -> str | None:
        self._length += len(event.data)
        if self._length > _MESSAGE_MOST:
            raise BrokenError(f"a message is longer than {_MESSAGE_MOST} letters")
        self._parts.append(event.data)
        if not event.message_finished:
            return None
        text = "".join(self._parts)
        self._parts, self._length = [], 0
        return text

    def _refuse(self, *, whole: bool) -> None:
        if self._refused is not None and whole:
            headers = {
                name.decode("latin-1").lower(): value.decode("latin-1")
                for name, value in self._refused.headers
            }
            raise RefusedError(Answer(self._refused.status_code, headers, bytes(self._body)))

    def _send(self, event: Event) -> None:
        try:
            self._outgoing += self._state.send(event)
        except LocalProtocolError:
            # The other side has closed; what it did not get is said again over the next connection.
            return
