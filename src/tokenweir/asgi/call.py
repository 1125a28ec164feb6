"""One HTTP request and its answer, over the ASGI interface, within bounds."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Mapping, MutableMapping, Sequence
from typing import Any, Final, Protocol, TypeAlias, TypeVar, cast

import msgspec

from tokenweir.asgi.problems import (
    BodyTooLargeError,
    ContentTypeError,
    NotJsonError,
    Problem,
    SlowRequestError,
)
from tokenweir.asgi.wire import KEY, Wire
from tokenweir.core.requests import Json

T = TypeVar("T")
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
_SLOWEST_BYTES_PER_S: Final = 16 << 10


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
        "_first",
        "_receive",
        "_scope",
        "_wire",
        "begun",
        "id",
        "meter",
        "method",
        "model",
        "number",
        "part",
        "path",
        "send",
        "status",
        "streaming",
    )

    def __init__(self, scope: Scope, receive: Receive, send: Send, request_id: str) -> None:
        self._scope = scope
        self._receive = receive
        # Taken out, because the connection knows its scope: a ring of them would be left to the garbage collector.
        self._wire: Wire | None = scope.pop(KEY, None)
        self.method: str = scope["method"]
        """In capitals."""
        self.path: str = scope["path"]
        """Decoded, without the query."""
        self._first = dict(reversed(scope["headers"]))
        """The first header of each name, in lower case."""
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
        return self._first.get(name)

    async def body(self, most_bytes: int, timeout_ns: int) -> bytes:
        """Return the body.

        Raises:
            BodyTooLargeError: it is longer than ``most_bytes``, by its own account or by count.
            ContentTypeError: it is compressed.
            SlowRequestError: it was not there in time.
            DisconnectedError: the client went away.
        """
        if b"content-encoding" in self._first:
            self._refuse_codings()
        said = self.header(b"content-length")
        if said is not None and said.isdigit() and int(said) > most_bytes:
            raise _too_large(most_bytes)
        whole = self._wire.body() if self._wire is not None else None
        if whole is not None:
            if len(whole) > most_bytes:
                raise _too_large(most_bytes)
            return whole
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
            raise _too_slow(timeout_ns) from None

    def _refuse_codings(self) -> None:
        """Refuse a body that is compressed: what a few bytes unpack to has no bound."""
        for name, coding in self._scope["headers"]:
            if name == b"content-encoding" and coding.lower() != b"identity":
                raise ContentTypeError(
                    f"the body is encoded as {coding.decode('latin-1')!r}", mend="send it as it is"
                )

    async def pieces(self, most_bytes: int, timeout_ns: int) -> AsyncGenerator[bytes]:
        """Yield the body as it comes; what is not taken makes its sender wait.

        It may take ``timeout_ns``, and a second more for each 16 KiB that have come. Raises as :meth:`body`.
        """
        said = self.header(b"content-length")
        if said is not None and said.isdigit() and int(said) > most_bytes:
            raise _too_large(most_bytes)
        deadline = asyncio.get_running_loop().time() + timeout_ns / _NS_PER_S
        size = 0
        while True:
            try:
                async with asyncio.timeout_at(deadline + size / _SLOWEST_BYTES_PER_S):
                    event = await self._receive()
            except TimeoutError:
                raise _too_slow(timeout_ns) from None
            if event["type"] == _DISCONNECT:
                raise DisconnectedError
            piece = cast("bytes", event.get("body", b""))
            size += len(piece)
            if size > most_bytes:
                raise _too_large(most_bytes)
            if piece:
                yield piece
            if not event.get("more_body", False):
                return

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

    async def unless_gone(self, work: Coroutine[Any, Any, T]) -> T:
        """Return what ``work`` returns; when the client goes away it is cancelled.

        Only to be awaited once the body has been read. Raises DisconnectedError, and what ``work`` raises.
        """
        wire, task = self._wire, asyncio.current_task()
        if wire is None or task is None:
            return await self._unless_told(work)
        left = False

        def gone() -> None:
            nonlocal left
            left = True
            task.cancel()

        if not wire.watch(gone):
            work.close()
            raise DisconnectedError
        try:
            return await work
        except asyncio.CancelledError:
            if left and task.uncancel() == 0:
                raise DisconnectedError from None
            raise
        finally:
            wire.unwatch(gone)

    async def _unless_told(self, work: Coroutine[Any, Any, T]) -> T:
        """Do the same under a server that tells of a departure only to who asks."""

        async def watch(doing: asyncio.Task[T]) -> None:
            await self.gone()
            doing.cancel()

        try:
            async with asyncio.TaskGroup() as group:
                doing = group.create_task(work)
                watching = group.create_task(watch(doing))
                doing.add_done_callback(lambda _: watching.cancel())
        except* Exception as errors:  # noqa: BLE001 - only taken out of its group
            raise errors.exceptions[0] from None
        if doing.cancelled():
            raise DisconnectedError
        return doing.result()

    async def answer(self, status: int, body: bytes, *, kind: bytes = JSON, headers: Headers = ()) -> None:
        """Send a whole answer."""
        await self.answer_whole(status, [(b"content-type", kind), *headers], body)

    async def answer_whole(self, status: int, headers: list[tuple[bytes, bytes]], body: bytes) -> None:
        """Send a whole answer with these headers and its length."""
        headers.append((b"content-length", b"%d" % len(body)))
        if self._wire is not None and not self.begun:
            named = (*headers, (b"x-request-id", self.id.encode()))
            if self._wire.answer(status, named, body):
                self.begun = True
                self.status = status
                return
        await self.begin(status, headers)
        await self.send({"type": "http.response.body", "body": body, "more_body": False})

    async def answer_json(self, value: object, *, status: int = 200, headers: Headers = ()) -> None:
        """Send a value as JSON."""
        await self.answer(status, msgspec.json.encode(value), headers=headers)

    async def answer_nothing(self) -> None:
        """Say that it is done, and that there is nothing to tell."""
        await self.begin(204, [])
        await self.end_stream()

    async def begin_stream(self, headers: Headers = ()) -> None:
        """Send the head of a stream of events."""
        self.streaming = True
        await self.begin(200, [*STREAM_HEADERS, *headers])

    async def write(self, piece: bytes) -> None:
        """Send a piece of a stream. Waits while the client does not read."""
        if self._wire is None or not self._wire.write(piece):
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


def _too_slow(timeout_ns: int) -> SlowRequestError:
    return SlowRequestError(
        f"the body did not arrive within {timeout_ns / _NS_PER_S:g} s",
        mend="send it faster, or raise the server's read_timeout",
    )
