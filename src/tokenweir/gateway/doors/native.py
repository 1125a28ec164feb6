"""The native routes: requests are submitted, looked at, listed and cancelled."""

from __future__ import annotations

import base64
import binascii
from typing import Final

from tokenweir.asgi.call import Call
from tokenweir.core.errors import NotFoundError, ParameterError
from tokenweir.core.requests import Json
from tokenweir.gateway.direct.relay import rate_headers
from tokenweir.gateway.doors.door import Door, RequestId
from tokenweir.gateway.doors.headers import REPLAYED, degraded
from tokenweir.gateway.doors.queries import page_limit, query
from tokenweir.gateway.queued.accepting import idempotency_key, native
from tokenweir.gateway.queued.kept import request_id
from tokenweir.gateway.queued.node import Queued
from tokenweir.ports.access import Caller
from tokenweir.ports.intake import Repeated

_ACCEPTED: Final = 202
_PAGE: Final = 20
_PAGE_MOST: Final = 100
_ID_BYTES: Final = 16


def queued(door: Door) -> Queued:
    """Return the queued path. Raises NotFoundError where this gateway has none."""
    if door.queued is None:
        raise NotFoundError("this gateway accepts no queued requests", mend="use the direct routes")
    return door.queued


async def submit(door: Door, call: Call) -> None:
    """Take a request on: 202 once it cannot be lost."""
    caller = await door.caller(call, "infer")
    raw = await door.body(call)
    told, headers = await take(door, caller, raw, call.header(b"idempotency-key"), RequestId(call.number))
    await call.answer_json(told, status=_ACCEPTED, headers=headers)


async def take(
    door: Door, caller: Caller, raw: bytes, key: bytes | None, request: RequestId
) -> tuple[dict[str, Json], list[tuple[bytes, bytes]]]:
    """Take a native request on; returns what its caller is told, and headers. Raises as ``Accepting.accept``."""
    path = queued(door)
    wish = native(raw, idempotency=idempotency_key(key), pool=caller.pool, webhooks=path.takes_webhooks)
    wish = await path.accepting.shape(caller, request.raw, wish)
    taken = await path.accepting.accept(caller, request.raw, wish)
    name = request_id(taken.request)
    told: dict[str, Json] = {
        "request_id": name,
        "status_url": f"/v1/requests/{name}",
        "events_url": f"/v1/requests/{name}/events",
    }
    if isinstance(taken, Repeated):
        return told, [REPLAYED]
    headers = rate_headers(taken.headroom, door.clock.wall_ns())
    if wish.kept.degraded:
        told["degraded"] = list(wish.kept.degraded)
    return told, headers + degraded(wish.kept.degraded)


async def status(door: Door, call: Call) -> None:
    """Tell how a request stands, and its result."""
    caller = await door.caller(call, "infer")
    reading = queued(door).reading
    await call.answer_json(await reading.status(await reading.own(caller, call.part)))


async def cancel(door: Door, call: Call) -> None:
    """Have a request stopped; what had come of it is kept."""
    caller = await door.caller(call, "infer")
    path = queued(door)
    record = await path.reading.own(caller, call.part)
    await path.cancelling.cancel(record)
    record = await path.reading.record(record.request)
    await call.answer_json(await path.reading.status(record), status=_ACCEPTED)


async def history(door: Door, call: Call) -> None:
    """List the caller's own requests, newest first."""
    caller = await door.caller(call, "infer")
    reading = queued(door).reading
    asked = query(call, "limit", "cursor")
    limit = page_limit(asked.get("limit"), default=_PAGE, most=_PAGE_MOST)
    before = _before(asked["cursor"]) if "cursor" in asked else None
    found = await reading.history(caller, before=before, limit=limit + 1)
    page, more = found[:limit], len(found) > limit
    data: list[Json] = [await reading.listed(record) for record in page]
    cursor = base64.urlsafe_b64encode(page[-1].request).decode().rstrip("=") if more else None
    await call.answer_json({"object": "list", "data": data, "has_more": more, "next_cursor": cursor})


def _before(cursor: str) -> bytes:
    try:
        before = base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4))
    except (binascii.Error, ValueError):
        before = b""
    if len(before) != _ID_BYTES:
        raise ParameterError(
            f"the cursor {cursor!r} is none of ours", param="cursor", mend="give next_cursor as it was"
        )
    return before
