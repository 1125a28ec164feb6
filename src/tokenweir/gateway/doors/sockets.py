"""The WebSocket: many requests over one connection, submitted, followed, resumed and cancelled.

Messages are JSON objects with a ``type``. A caller sends ``submit``, ``resume``, ``cancel`` and ``ping``; it gets
``ready``, ``submitted``, ``event``, ``end``, ``cancelling``, ``pong``, ``heartbeat`` and ``error``.
"""

from __future__ import annotations

import asyncio
import contextlib
from contextlib import aclosing
from typing import Final, TypeAlias, cast

import msgspec

from tokenweir.asgi.call import Receive, Scope, Send
from tokenweir.asgi.problems import UnknownPathError, problem
from tokenweir.core.errors import OverloadedError, ParameterError, WeirError
from tokenweir.core.requests import Json
from tokenweir.gateway.doors.door import Door, RequestId
from tokenweir.gateway.doors.events_stream import Stop, encode_event
from tokenweir.gateway.doors.native import queued, take
from tokenweir.gateway.queued.kept import ended, request_id
from tokenweir.gateway.queued.reading import all_events
from tokenweir.ports.access import Caller
from tokenweir.ports.requests import RequestRecord
from tokenweir.telemetry.logs import get_logger

_LOG = get_logger("tokenweir.gateway")
PATH: Final = "/v1/ws"
PROTOCOL: Final = "weir.v1"
_KEY: Final = "key."
_FOLLOWED: Final = 1024
"""Requests that one socket may follow at once."""
_POLICY: Final = 1008
_RESTART: Final = 1012
_INTERNAL: Final = 1011
_NORMAL: Final = 1000
_REASONS: Final = {_RESTART: "the server restarts; resume", _POLICY: "the API key counts no more"}


class _Submit(msgspec.Struct, frozen=True, tag="submit"):
    """Take a request on, and follow it unless told otherwise."""

    body: msgspec.Raw
    ref: str = ""
    idempotency_key: str | None = None
    follow: bool = True


class _Resume(msgspec.Struct, frozen=True, tag="resume"):
    """Follow a request from after a seq."""

    request_id: str
    after: int = -1
    ref: str = ""


class _Cancel(msgspec.Struct, frozen=True, tag="cancel"):
    """Have a request stopped."""

    request_id: str
    ref: str = ""


class _Ping(msgspec.Struct, frozen=True, tag="ping"):
    """Ask for a pong."""

    ref: str = ""


_Message: TypeAlias = _Submit | _Resume | _Cancel | _Ping
_decoder: msgspec.json.Decoder[_Message] = msgspec.json.Decoder(_Message)


class _GoneError(Exception):
    """The other side has left."""


class Socket:
    """One connection and the requests that it follows."""

    def __init__(self, door: Door, key: str, caller: Caller, receive: Receive, send: Send) -> None:
        self._door = door
        # Looked at again for each submission, so that its limits are those of now.
        self._key = key
        self._caller = caller
        self._receive = receive
        self._send = send
        self._following: dict[bytes, asyncio.Task[None]] = {}
        self._spoken = False

    async def run(self) -> None:
        """Serve until the other side leaves."""
        try:
            await self._say({"type": "ready"})
            async with asyncio.TaskGroup() as group:
                beats = group.create_task(self._beat())
                try:
                    while True:
                        await self._take(group, await self._message())
                except _GoneError:
                    return
                finally:
                    beats.cancel()
                    for task in self._following.values():
                        task.cancel()
        except* _GoneError:
            # A follower noticed it first.
            pass
        finally:
            self._following.clear()

    async def _message(self) -> str | bytes:
        event = await self._receive()
        if event["type"] != "websocket.receive":
            raise _GoneError
        text = cast("str | None", event.get("text"))
        return text if text is not None else cast("bytes", event["bytes"])

    async def _take(self, group: asyncio.TaskGroup, text: str | bytes) -> None:
        ref = ""
        try:
            try:
                said = _decoder.decode(text)
            except msgspec.MsgspecError as error:
                raise ParameterError(
                    f"the message cannot be used: {error}",
                    param="message",
                    mend='send a JSON object whose type is "submit", "resume", "cancel" or "ping"',
                ) from error
            ref = said.ref
            match said:
                case _Submit():
                    await self._submit(group, said)
                case _Resume():
                    await self._resume(group, said)
                case _Cancel():
                    await self._cancel(said)
                case _Ping():
                    await self._say({"type": "pong", "ref": ref})
        except WeirError as error:
            await self._say({"type": "error", "ref": ref, **_told(error)})

    async def _submit(self, group: asyncio.TaskGroup, said: _Submit) -> None:
        door = self._door
        key = None if said.idempotency_key is None else said.idempotency_key.encode("utf-8", "replace")
        caller = await door.caller_of(self._key, "infer")
        told, _ = await take(door, caller, bytes(said.body), key, RequestId.new(door.clock))
        await self._say({"type": "submitted", "ref": said.ref, **told})
        if said.follow:
            record = await queued(door).reading.own(caller, str(told["request_id"]))
            self._follow(group, record, -1, said.ref)

    async def _resume(self, group: asyncio.TaskGroup, said: _Resume) -> None:
        if said.after < -1:
            raise ParameterError(f"{said.after!r} is no seq", param="after")
        record = await queued(self._door).reading.own(self._caller, said.request_id)
        self._follow(group, record, said.after, said.ref)

    async def _cancel(self, said: _Cancel) -> None:
        path = queued(self._door)
        record = await path.reading.own(self._caller, said.request_id)
        await path.cancelling.cancel(record)
        await self._say({"type": "cancelling", "ref": said.ref, "request_id": request_id(record.request)})

    def _follow(self, group: asyncio.TaskGroup, record: RequestRecord, after: int, ref: str) -> None:
        earlier = self._following.pop(record.request, None)
        if earlier is not None:
            earlier.cancel()
        elif len(self._following) >= _FOLLOWED:
            raise OverloadedError(
                f"{_FOLLOWED} requests are followed over this socket, as many as may be",
                mend="open another",
            )
        task = group.create_task(self._events(record, after, ref))
        self._following[record.request] = task
        task.add_done_callback(lambda done: self._forget(record.request, done))

    def _forget(self, request: bytes, task: asyncio.Task[None]) -> None:
        if self._following.get(request) is task:
            del self._following[request]

    async def _events(self, record: RequestRecord, after: int, ref: str) -> None:
        name = request_id(record.request)
        head = b'{"type":"event","request_id":"%b","event":' % name.encode()
        last = False
        try:
            async with aclosing(all_events(queued(self._door).reading, record, after=after)) as batches:
                async for events in batches:
                    for event in events:
                        await self._text((head + encode_event(event) + b"}").decode())
                    last = ended(events)
            over = last or record.ended_at is not None
            await self._say({"type": "end", "ref": ref, "request_id": name, "ended": over})
        except WeirError as error:
            await self._say({"type": "error", "ref": ref, "request_id": name, **_told(error)})

    async def _beat(self) -> None:
        while True:
            await asyncio.sleep(self._door.heartbeat_s)
            if not self._spoken:
                await self._say({"type": "heartbeat"})
            self._spoken = False

    async def _say(self, message: dict[str, Json]) -> None:
        await self._text(msgspec.json.encode(message).decode())

    async def _text(self, text: str) -> None:
        self._spoken = True
        try:
            await self._send({"type": "websocket.send", "text": text})
        except OSError as error:
            raise _GoneError from error


async def serve(door: Door, scope: Scope, receive: Receive, send: Send) -> None:
    """Answer an upgrade: refuse it with OpenAI's error, or serve the socket until it closes."""
    await receive()
    try:
        if scope["path"] != PATH or door.only:
            raise UnknownPathError(f"there is no WebSocket at {scope['path']!r}", mend=f"it is at {PATH}")
        queued(door)
        key, offered = _key_of(scope)
        caller = await door.caller_of(key, "infer")
        door.streams.room()
    except WeirError as error:
        await _refuse(send, error)
        return
    await send({"type": "websocket.accept", "subprotocol": PROTOCOL if offered else None})
    stop = Stop(asyncio.current_task())
    with door.streams.counted(key, stop.now, socket=True):
        socket = Socket(door, key, caller, receive, send)
        code = _NORMAL
        try:
            await socket.run()
        except asyncio.CancelledError:
            if not stop.obeyed():
                raise
            code = _RESTART if door.draining else _POLICY
        except Exception:  # noqa: BLE001 - the socket's boundary: the caller gets a code, the log the trace
            _LOG.exception("a socket failed")
            code = _INTERNAL
        with contextlib.suppress(OSError):
            # The other side may be gone already.
            await send({"type": "websocket.close", "code": code, "reason": _REASONS.get(code, "")})


def _told(error: WeirError) -> dict[str, Json]:
    """Return what an error message says: OpenAI's error, its status, and when to come back, s."""
    found = problem(error)
    later: dict[str, Json] = {} if found.retry_after_s is None else {"retry_after": found.retry_after_s}
    told: dict[str, Json] = msgspec.json.decode(found.body)
    return {"status": found.status, **later, **told}


def _key_of(scope: Scope) -> tuple[str, bool]:
    """Return the key of an upgrade, and whether our subprotocol was offered.

    A page cannot set headers on a WebSocket: it offers the subprotocols ``weir.v1`` and ``key.weir_…`` instead.
    """
    offered = cast("list[str]", scope.get("subprotocols") or [])
    for name, value in cast("list[tuple[bytes, bytes]]", scope["headers"]):
        if name == b"authorization" and value[:7].lower() == b"bearer ":
            return value[7:].decode("latin-1"), PROTOCOL in offered
        if name == b"x-api-key":
            return value.decode("latin-1"), PROTOCOL in offered
    keys = [each.removeprefix(_KEY) for each in offered if each.startswith(_KEY)]
    return (keys[0] if keys else ""), PROTOCOL in offered


async def _refuse(send: Send, error: WeirError) -> None:
    told = problem(error)
    headers = [(b"content-type", b"application/json"), *told.headers]
    await send({"type": "websocket.http.response.start", "status": told.status, "headers": headers})
    await send({"type": "websocket.http.response.body", "body": told.body})
