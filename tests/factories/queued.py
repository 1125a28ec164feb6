"""What asks a gateway for queued requests as its users do: over HTTP, server-sent events and a WebSocket."""

from __future__ import annotations

import http.client
import json
import socket
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple, TypeVar
from urllib.parse import urlsplit

from wsproto import ConnectionType, WSConnection
from wsproto.events import (
    AcceptConnection,
    CloseConnection,
    Ping,
    RejectConnection,
    RejectData,
    Request,
    TextMessage,
)

from tokenweir.core.sse import SseParser
from tokenweir.gateway.doors.routes import ROUTES

T = TypeVar("T")

WAIT_S = 120.0
_OPEN = {"accepted", "queued", "running"}
ASK = [{"role": "user", "content": "How many rivers?"}]


class Answer(NamedTuple):
    """A whole HTTP answer."""

    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:  # noqa: ANN401 - tests look into it
        """Return the body."""
        return json.loads(self.body)


class User:
    """A user of a gateway, with a key."""

    def __init__(self, url: str, key: str) -> None:
        self.url = url
        self.key = key

    def ask(self, method: str, path: str, body: object = None, **headers: str) -> Answer:
        """Send a request and return the whole answer."""
        with self._connection() as connection:
            self._send(connection, method, path, body, headers)
            answer = connection.getresponse()
            names = {name.lower(): value for name, value in answer.getheaders()}
            return Answer(answer.status, names, answer.read())

    def submit(self, *, mode: str = "stream", tokens: int = 5, key: str = "", **more: object) -> str:
        """Have a request taken on and return its id."""
        body = {"model": "sim", "messages": ASK, "max_tokens": tokens, "mode": mode, **more}
        headers = {"idempotency-key": key} if key else {}
        answer = self.ask("POST", "/v1/requests", body, **headers)
        assert answer.status == 202, answer.body
        return str(answer.json()["request_id"])

    def status(self, request: str) -> Any:  # noqa: ANN401 - tests look into it
        """Return how a request stands."""
        answer = self.ask("GET", f"/v1/requests/{request}")
        assert answer.status == 200, answer.body
        return answer.json()

    def poll(self, request: str, after: int = -1) -> list[dict[str, Any]]:
        """Return the events that there are now."""
        answer = self.ask("GET", f"/v1/requests/{request}/events?after={after}", accept="application/json")
        assert answer.status == 200, answer.body
        return answer.json()["data"]

    def until(self, request: str, *states: str) -> Any:  # noqa: ANN401 - tests look into it
        """Wait until a request is in one of the states, and settled where it is an end; return its status."""

        def look() -> Any:  # noqa: ANN401 - tests look into it
            told = self.status(request)
            there = told["status"] in states
            return told if there and (told["status"] in _OPEN or told["ended_at"] is not None) else None

        return waiting(look, f"{request} {states}")

    def stream(self, request: str, **headers: str) -> Iterator[dict[str, Any]]:
        """Yield a request's events until the stream ends."""
        for event, _ in self.frames(request, **headers):
            if event is not None:
                yield event

    def frames(
        self, request: str, *, query: str = "", **headers: str
    ) -> Generator[tuple[dict[str, Any] | None, bytes]]:
        """Yield what a stream holds: an event, or ``None`` with the bytes of what is none."""
        with self._connection() as connection:
            self._send(connection, "GET", f"/v1/requests/{request}/events{query}", None, headers)
            answer = connection.getresponse()
            assert answer.status == 200, answer.read()
            assert (answer.getheader("content-type") or "").startswith("text/event-stream")
            parser = SseParser()
            while piece := answer.read1(65536):
                found = parser.feed(piece)
                for frame in found:
                    event = json.loads(frame.data)
                    assert frame.id == str(event["seq"]).encode()
                    assert frame.event.decode() == event["type"]
                    yield event, b""
                if not found:
                    yield None, piece

    @contextmanager
    def _connection(self) -> Generator[http.client.HTTPConnection]:
        parts = urlsplit(self.url)
        connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=WAIT_S)
        try:
            yield connection
        finally:
            connection.close()

    def _send(
        self,
        connection: http.client.HTTPConnection,
        method: str,
        path: str,
        body: object,
        headers: dict[str, str],
    ) -> None:
        raw = body if isinstance(body, bytes) else None if body is None else json.dumps(body).encode()
        sent = {"authorization": f"Bearer {self.key}"}
        if raw is not None:
            sent["content-type"] = "application/json"
        sent |= {name.replace("_", "-"): value for name, value in headers.items()}
        connection.request(method, path, raw, sent)


class Socket:
    """A WebSocket client. ``refused`` is the status of an upgrade that was not granted."""

    def __init__(self, url: str, *, key: str = "", protocols: tuple[str, ...] = ()) -> None:
        parts = urlsplit(url)
        self._socket = socket.create_connection((parts.hostname or "", parts.port or 80), timeout=WAIT_S)
        self._ws = WSConnection(ConnectionType.CLIENT)
        headers = [(b"authorization", f"Bearer {key}".encode())] if key else []
        self._messages: list[dict[str, Any]] = []
        self._text = ""
        self.refused: int | None = None
        self.body = b""
        self.closed: int | None = None
        self.protocol: str | None = None
        self._accepted = False
        asked = Request(
            host=parts.netloc, target="/v1/ws", extra_headers=headers, subprotocols=list(protocols)
        )
        self._socket.sendall(self._ws.send(asked))
        while not self._accepted and self.refused is None:
            self._read()

    def say(self, **message: object) -> None:
        """Send a message."""
        self._socket.sendall(self._ws.send(TextMessage(data=json.dumps(message))))

    def text(self, text: str) -> None:
        """Send text as it stands."""
        self._socket.sendall(self._ws.send(TextMessage(data=text)))

    def hear(self) -> dict[str, Any] | None:
        """Return the next message; ``None``: the other side has closed."""
        while not self._messages:
            if self.closed is not None:
                return None
            self._read()
        return self._messages.pop(0)

    def expect(self, kind: str) -> dict[str, Any]:
        """Return the next message of a type, passing over others."""
        while True:
            message = self.hear()
            assert message is not None, f"closed with {self.closed} before {kind}"
            if message["type"] == kind:
                return message

    def close(self) -> None:
        """Be gone, without a word."""
        self._socket.close()

    def _read(self) -> None:
        data = self._socket.recv(65536)
        if not data:
            self.closed = self.closed or 1006
            return
        self._ws.receive_data(data)
        for event in self._ws.events():
            match event:
                case AcceptConnection():
                    self._accepted = True
                    self.protocol = event.subprotocol
                case RejectConnection():
                    self.refused = event.status_code
                case RejectData():
                    self.body += bytes(event.data)
                case TextMessage():
                    self._text += event.data
                    if event.message_finished:
                        self._messages.append(json.loads(self._text))
                        self._text = ""
                case Ping():
                    self._socket.sendall(self._ws.send(event.response()))
                case CloseConnection():
                    self.closed = int(event.code)
                case _:
                    pass


def waiting(look: Callable[[], T | None], what: str) -> T:
    """Return what ``look`` finds, looking again until it finds something."""
    deadline = time.monotonic() + WAIT_S
    while time.monotonic() < deadline:
        found = look()
        if found is not None:
            return found
        time.sleep(0.02)
    raise AssertionError(f"not within {WAIT_S:g} s: {what}")


def newest(user: User) -> list[str]:
    """Return which request is the user's last; how far it has come is another test's affair."""
    answer = user.ask("GET", "/v1/requests?limit=1")
    assert answer.status == 200, answer.body
    return [one["id"] for one in answer.json()["data"]]


def named_routes(prefix: str, number: int) -> list[tuple[str, str]]:
    """Return the routes that name one thing, all of which there are."""
    found = [
        (method, path) for path, methods in ROUTES.items() if path.startswith(prefix) for method in methods
    ]
    assert len(found) == number
    return found
