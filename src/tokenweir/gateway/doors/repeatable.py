"""Direct requests that are accepted before they are asked, logged beside, and told from their events.

Those with an idempotency key are told again alike; those that the load of now lets wait go through the queue.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import aclosing
from typing import Final

import msgspec

from tokenweir.asgi.call import Call
from tokenweir.asgi.problems import failure
from tokenweir.core.errors import UnavailableError
from tokenweir.core.events import Cancelled, Event, Failed
from tokenweir.gateway.brownout.measures import Lessened
from tokenweir.gateway.direct.body import read
from tokenweir.gateway.direct.relay import rate_headers
from tokenweir.gateway.doors.door import Door, RequestId
from tokenweir.gateway.doors.events_stream import Watched
from tokenweir.gateway.doors.headers import REPLAYED, degraded
from tokenweir.gateway.doors.native import queued
from tokenweir.gateway.queued.accepting import Wish, idempotency_key
from tokenweir.gateway.queued.answers import Chunks, whole
from tokenweir.gateway.queued.kept import Kept, ended
from tokenweir.gateway.queued.reading import all_events
from tokenweir.ports.access import Caller
from tokenweir.ports.intake import Mode, Repeated
from tokenweir.ports.requests import RequestRecord

_ROUTES: Final = {
    "/v1/chat/completions": "chat",
    "/v1/completions": "completions",
    "/v1/embeddings": "embeddings",
}


async def answer(door: Door, call: Call, caller: Caller, raw: bytes, lessened: Lessened) -> None:
    """Answer a direct request from its events. With an idempotency key the same again gets the same answer.

    That one is not cancelled when its caller leaves: it can be asked for again.
    """
    path = queued(door)
    wish = _wish(call, caller, raw, lessened)
    taken = await path.accepting.accept(caller, RequestId(call.number).raw, wish)
    headers: list[tuple[bytes, bytes]] = [REPLAYED]
    if not isinstance(taken, Repeated):
        headers = rate_headers(taken.headroom, door.clock.wall_ns())
    record = await path.begin(taken.request)
    headers += degraded(path.reading.kept(record).degraded)
    with Watched(door, call) as watched:
        if _streams(call, raw):
            await watched.run(_stream(door, call, record, headers))
        else:
            await watched.run(_whole(door, call, record, headers))
    if watched.gone and not wish.idempotency:
        await path.cancelling.cancel(record)


def _wish(call: Call, caller: Caller, raw: bytes, lessened: Lessened) -> Wish:
    mode: Mode = "direct"
    if lessened.queue is not None:
        mode = "stream" if _streams(call, raw) else "single"
    kept = Kept(
        path=call.path, body=msgspec.Raw(lessened.raw), pool=caller.pool, degraded=tuple(lessened.what)
    )
    return Wish(
        kept=kept,
        mode=mode,
        route=_ROUTES[call.path],
        said=raw,
        idempotency=idempotency_key(call.header(b"idempotency-key")),
        deadline_ns=None if lessened.queue is None else lessened.queue.deadline_ns,
        shaped=True,
    )


def _streams(call: Call, raw: bytes) -> bool:
    return bool(read(raw).stream) and call.path != "/v1/embeddings"


async def _whole(
    door: Door, call: Call, record: RequestRecord, headers: Sequence[tuple[bytes, bytes]]
) -> None:
    reading = queued(door).reading
    events: list[Event] = []
    async with aclosing(all_events(reading, record)) as batches:
        async for batch in batches:
            events.extend(batch)
    _raise_failure(events)
    await call.answer_json(whole(reading.facts(record), events), headers=list(headers))


async def _stream(
    door: Door, call: Call, record: RequestRecord, headers: Sequence[tuple[bytes, bytes]]
) -> None:
    reading = queued(door).reading
    chunks = Chunks(reading.facts(record))
    last: Sequence[Event] = ()
    async with aclosing(all_events(reading, record)) as batches:
        async for batch in batches:
            last = batch
            piece = chunks.fold(batch)
            if chunks.restarted:
                raise UnavailableError("the answer was begun anew", mend="read its events at /v1/requests")
            if piece:
                if not call.begun:
                    await call.begin_stream(list(headers))
                await call.write(piece)
    _raise_failure(last)
    await call.end_stream()


def _raise_failure(events: Sequence[Event]) -> None:
    """Raise the error that a bad end means."""
    if not ended(events):
        raise UnavailableError("the answer was interrupted", mend="send the same request again to read on")
    end = events[-1]
    if isinstance(end, Failed | Cancelled):
        raise failure(end)
