"""One HTTP request and its answer, over the ASGI interface, within bounds."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, MutableMapping, Sequence
from typing import Any, Final, Protocol, TypeAlias, cast

import msgspec

from tokenweir.asgi.problems import (
    BodyTooLargeError,
    ContentTypeError,
    NotJsonError,
    Problem,
    SlowRequestError,
)
from tokenweir.core.requests import Json

Scope: TypeAlias = MutableMapping[str, Any]
Event: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Event]]
Send: TypeAlias = Callable[[Event], Awaitable[None]]
Headers: TypeAlias = Sequence[tuple[bytes, bytes]]

JSON: Final = b"application/json"
STREAM_HEADERS: Final[Headers] = (
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
)
_DISCONNECT: Final = "http.disconnect"
_NS_PER_S: Final = 1_000_000_000


class Meter(Protocol):
    """What measured a request."""

    def facts(self) -> Mapping[str, object]:
        """Return what the log tells of it."""
        ...


class DisconnectedError(Exception):
    """The client went away before its request was read; there is nobody to answer."""


class Call:
    """A request being answered. ``begun`` says that the answer's head is out, ``streaming`` that it is a stream.

    ``id`` names the request to the client, in ``x-request-id`` and in logs; ``number`` is the same, where it has one.
    ``part`` is what stands for the ``{id}`` of its route. ``model`` is set once it is known, and
    ``meter`` is what measured the request.
    """

    __slots__ = (
        "_receive",
        "_scope",
        "begun",
        "id",
        "meter",
        "model",
        "number",
        "part",
        "send",
        "status",
        "streaming",
    )

    def __init__(self, scope: Scope, receive: Receive, send: Send, request_id: str) -> None:
        self._scope = scope
        self._receive = receive
        self.send = send
        self.id = request_id
        self.number = 0
        self.part = ""
        self.begun = False
        self.streaming = False
        self.status = 0
        self.model = ""
        self.meter: Meter | None = None

    @property
    def method(self) -> str:
        """The method, in capitals."""
        return cast("str", self._scope["method"])

    @property
    def path(self) -> str:
        """The path, decoded, without the query."""
        return cast("str", self._scope["path"])

    @property
    def query(self) -> bytes:
        """What follows the question mark, as it was sent."""
        return cast("bytes", self._scope.get("query_string", b""))

    @property
    def client(self) -> str:
        """The client's address; empty where the transport has none."""
        client = self._scope.get("client")
        return str(client[0]) if client else ""

    def header(self, name: bytes) -> bytes | None:
        """Return the first header called ``name`` (lower case)."""
        headers = cast("Sequence[tuple[bytes, bytes]]", self._scope["headers"])
        return next((value for key, value in headers if key == name), None)

    async def body(self, most_bytes: int, timeout_ns: int) -> bytes:
        """Return the body.

        Raises:
            BodyTooLargeError: it is longer than ``most_bytes``, by its own account or by count.
            SlowRequestError: it was not there in time.
            DisconnectedError: the client went away.
        """
        said = self.header(b"content-length")
        if said is not None and said.isdigit() and int(said) > most_bytes:
            raise _too_large(most_bytes)
        pieces: list[bytes] = []
        size = 0
        try:
            async with asyncio.timeout(timeout_ns / _NS_PER_S):
                while True:
                    event = await self._receive()
                    if event["type"] == _DISCONNECT:
                        raise DisconnectedError
                    piece = cast("bytes", event.get("body", b""))
                    size += len(piece)
                    if size > most_bytes:
                        raise _too_large(most_bytes)
                    pieces.append(piece)
                    if not event.get("more_body", False):
                        return b"".join(pieces)
        except TimeoutError:
            raise SlowRequestError(
                f"the body did not arrive within {timeout_ns / _NS_PER_S:g} s",
                mend="send it faster, or raise the server's read_timeout",
            ) from None

    async def json(self, most_bytes: int, timeout_ns: int) -> dict[str, Json]:
        """Return the body, which must be a JSON object and say so.

        A page of another origin cannot announce JSON without asking first, which this server never allows.

        Raises:
            ContentTypeError: the content type is another.
            NotJsonError: it is no JSON object.
            BodyTooLargeError: as :meth:`body`, and so are the others.
        """
        kind = (self.header(b"content-type") or b"").partition(b";")[0].strip().lower()
        if kind != JSON and not kind.endswith(b"+json"):
            raise ContentTypeError(
                f"the content type is {kind.decode('latin-1')!r}", mend="send application/json"
            )
        raw = await self.body(most_bytes, timeout_ns)
        try:
            value = cast("Json", msgspec.json.decode(raw))
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise NotJsonError(f"the body is no JSON: {error}", mend="send a JSON object") from error
        if not isinstance(value, dict):
            raise NotJsonError("the body is no JSON object", mend="send an object")
        return value

    async def gone(self) -> None:
        """Return when the client has gone away. Only to be awaited once the body has been read."""
        while (await self._receive())["type"] != _DISCONNECT:
            pass

    async def answer(self, status: int, body: bytes, *, kind: bytes = JSON, headers: Headers = ()) -> None:
        """Send a whole answer."""
        await self.begin(status, [(b"content-type", kind), (b"content-length", b"%d" % len(body)), *headers])
        await self.send({"type": "http.response.body", "body": body, "more_body": False})

    async def answer_json(self, value: object, *, status: int = 200, headers: Headers = ()) -> None:
        """Send a value as JSON."""
        await self.answer(status, msgspec.json.encode(value), headers=headers)

    async def begin_stream(self, headers: Headers = ()) -> None:
        """Send the head of a stream of events."""
        self.streaming = True
        await self.begin(200, [*STREAM_HEADERS, *headers])

    async def write(self, piece: bytes) -> None:
        """Send a piece of a stream. Waits while the client does not read."""
        await self.send({"type": "http.response.body", "body": piece, "more_body": True})

    async def end_stream(self, piece: bytes = b"") -> None:
        """Send the last piece of a stream."""
        await self.send({"type": "http.response.body", "body": piece, "more_body": False})

    async def refuse(self, problem: Problem) -> None:
        """Tell the client of an error, in the form that the answer still allows."""
        if not self.begun:
            await self.answer(problem.status, problem.body, headers=problem.headers)
        elif self.streaming:
            self.status = problem.status
            await self.end_stream(problem.event)

    async def begin(self, status: int, headers: list[tuple[bytes, bytes]]) -> None:
        """Send the head of an answer."""
        self.begun = True
        self.status = status
        headers.append((b"x-request-id", self.id.encode()))
        await self.send({"type": "http.response.start", "status": status, "headers": headers})


def _too_large(most_bytes: int) -> BodyTooLargeError:
    return BodyTooLargeError(
        f"the body is longer than {most_bytes} bytes",
        mend="send less, or raise the server's max_body_bytes",
    )
