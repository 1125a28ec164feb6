"""OpenAI's batches: made, looked at, listed, cancelled."""

from __future__ import annotations

from typing import Final

from tokenweir.asgi.call import Call
from tokenweir.core.errors import NotFoundError
from tokenweir.gateway.batches.desk import Desk
from tokenweir.gateway.doors.door import Door, RequestId
from tokenweir.gateway.doors.headers import REPLAYED
from tokenweir.gateway.doors.queries import page, page_after, page_limit, query
from tokenweir.gateway.queued.accepting import idempotency_key

_PAGE: Final = 20
_PAGE_MOST: Final = 100


def _desk(door: Door) -> Desk:
    if door.desk is None:
        raise NotFoundError("this gateway takes no batches", mend="use one that accepts queued requests")
    return door.desk


async def create(door: Door, call: Call) -> None:
    """Take a batch in."""
    caller = await door.caller(call, "infer")
    desk = _desk(door)
    raw = await door.body(call)
    key = idempotency_key(call.header(b"idempotency-key"))
    told, repeated = await desk.create(caller, raw, RequestId(call.number).raw, idempotency=key)
    await call.answer_json(told, headers=[REPLAYED] if repeated else [])


async def listed(door: Door, call: Call) -> None:
    """List the caller's batches, newest first."""
    caller = await door.caller(call, "infer")
    desk = _desk(door)
    asked = query(call, "after", "limit")
    limit = page_limit(asked.get("limit"), default=_PAGE, most=_PAGE_MOST)
    found = await desk.listed(caller, after=page_after(asked.get("after"), "batch"), limit=limit + 1)
    await call.answer_json(page([desk.shown(record) for record in found[:limit]], more=len(found) > limit))


async def show(door: Door, call: Call) -> None:
    """Tell how a batch stands."""
    caller = await door.caller(call, "infer")
    desk = _desk(door)
    await call.answer_json(desk.shown(await desk.own(caller, call.part)))


async def cancel(door: Door, call: Call) -> None:
    """Have a batch stopped: what is in flight is cancelled, what has ended is kept."""
    caller = await door.caller(call, "infer")
    desk = _desk(door)
    await call.answer_json(desk.shown(await desk.cancel(await desk.own(caller, call.part))))
