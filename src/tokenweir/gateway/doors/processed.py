"""Requests that pass the pipeline of the door, and what the load of now leaves of those that are queued."""

from __future__ import annotations

from typing import cast

import msgspec

from tokenweir.asgi.call import Call
from tokenweir.core.requests import Json
from tokenweir.gateway.direct.body import fields_of
from tokenweir.gateway.direct.relay import Headers, Sink, rate_headers
from tokenweir.gateway.doors.door import Door, RequestId
from tokenweir.gateway.pipeline.line import Asked, Line
from tokenweir.gateway.pipeline.processor import Ask, Ready
from tokenweir.gateway.queued.accepting import Wish
from tokenweir.ports.access import Caller

_STREAMED: Headers = ((b"cache-control", b"no-cache"), (b"x-accel-buffering", b"no"))


class Passed(msgspec.Struct, frozen=True, kw_only=True):
    """A request behind the pipeline: its body, the very bytes of the caller where nothing changed it."""

    raw: bytes
    asked: Asked


async def direct(line: Line, call: Call, caller: Caller, raw: bytes, *, relayed: bool) -> Passed:
    """Pass a direct request through the pipeline. Raises what a processor refuses it with."""
    fields = fields_of(raw)
    streamed = bool(fields.get("stream")) and not call.path.endswith("/embeddings")
    ask = _ask(caller, call.path, RequestId(call.number), fields)
    return await _pass(line, msgspec.structs.replace(ask, relayed=relayed, streamed=streamed), raw)


async def tell(door: Door, call: Call, caller: Caller, passed: Passed, sink: Sink) -> None:
    """Give a direct request the answer that the pipeline has for it: one request is charged, and no tokens.

    Raises as ``Direct.relay``.
    """
    ready, ask = cast("Ready", passed.asked.ready), passed.asked.ask
    exchange = await door.direct.account(caller, RequestId(call.number).raw, call.path.encode(), passed.raw)
    headers = [
        (b"content-type", ready.content_type),
        *ready.headers,
        *rate_headers(exchange.granted.headroom, door.clock.wall_ns()),
    ]
    sink = passed.asked.around(sink)
    if ask.streamed:
        await sink.begin(200, (*headers, *_STREAMED))
        await sink.end(ready.body)
    else:
        await sink.whole(200, headers, ready.body)


async def shaped(door: Door, caller: Caller, request: bytes, wish: Wish) -> Wish:
    """Return what is to be queued of a request: behind the pipeline, and less of it under load.

    Its answer does not come back through the door, so that nothing can answer it here.
    Raises what a processor refuses it with, ParameterError, BrownedOutError.
    """
    kept = wish.kept
    before = raw = bytes(kept.body)
    if door.line is not None:
        told = fields_of(bytes(kept.said)) if bytes(kept.said) else {}
        number = RequestId(int.from_bytes(request, "big"))
        ask = _ask(caller, kept.path, number, fields_of(raw))
        ask = msgspec.structs.replace(ask, relayed=False, streamed=wish.mode == "stream", told=told)
        passed = await _pass(door.line, ask, raw)
        raw = passed.raw
        if passed.asked.ask.told is not told:
            kept = msgspec.structs.replace(kept, said=msgspec.Raw(msgspec.json.encode(passed.asked.ask.told)))
    lessened = door.lessen(caller, raw, queued=True)
    if lessened.raw is before and kept is wish.kept:
        return wish
    kept = msgspec.structs.replace(kept, body=msgspec.Raw(lessened.raw), degraded=lessened.what)
    return msgspec.structs.replace(wish, kept=kept)


async def _pass(line: Line, ask: Ask, raw: bytes) -> Passed:
    asked = await line.ask(ask)
    changed = asked.ask.fields is not ask.fields
    return Passed(raw=msgspec.json.encode(asked.ask.fields) if changed else raw, asked=asked)


def _ask(caller: Caller, path: str, request: RequestId, fields: dict[str, Json]) -> Ask:
    return Ask(
        stage="gateway",
        request=request.text,
        path=path,
        fields=fields,
        user=caller.user,
        team=caller.team,
        key=caller.key,
        tier=caller.tier,
    )
