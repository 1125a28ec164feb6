"""OpenAI's responses: made, streamed, looked at, resumed, cancelled, deleted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import aclosing
from typing import Final

from tokenweir.asgi.call import Call, Headers
from tokenweir.asgi.problems import failure
from tokenweir.core.errors import ConflictError, ParameterError, UnavailableError
from tokenweir.core.events import Event, Failed
from tokenweir.core.requests import Json
from tokenweir.gateway.direct.relay import rate_headers
from tokenweir.gateway.doors.door import Door, RequestId
from tokenweir.gateway.doors.events_stream import Watched, seq
from tokenweir.gateway.doors.headers import REPLAYED, degraded
from tokenweir.gateway.doors.native import queued
from tokenweir.gateway.doors.queries import newest_first, page, page_limit, query
from tokenweir.gateway.queued.accepting import idempotency_key
from tokenweir.gateway.queued.reading import Reading, all_events
from tokenweir.gateway.responses.asked import read_asked
from tokenweir.gateway.responses.folding import Fold, response_id
from tokenweir.gateway.responses.shelf import Shelf
from tokenweir.ports.intake import Repeated
from tokenweir.ports.requests import RequestRecord
from tokenweir.telemetry.logs import get_logger

_LOG = get_logger("tokenweir.gateway")

_PAGE: Final = 20
_PAGE_MOST: Final = 100
_TRUTH: Final[Mapping[str, bool]] = {"true": True, "false": False}


async def create(door: Door, call: Call) -> None:
    """Make a response: answered whole, streamed, or taken on to be looked at later."""
    caller = await door.caller(call, "infer")
    raw = await door.body(call)
    path = queued(door)
    shelf = Shelf(path)
    request = RequestId(call.number)
    key = idempotency_key(call.header(b"idempotency-key"))
    asked = read_asked(raw)
    wish = await shelf.wish(caller, asked, raw=raw, request=request.raw, idempotency=key)
    wish = await path.accepting.shape(caller, request.raw, wish)
    if asked.stream or not asked.background:
        door.streams.room()
    taken = await path.accepting.accept(caller, request.raw, wish)
    if isinstance(taken, Repeated):
        headers: Headers = [REPLAYED]
        await shelf.again(taken.request, response_id(taken.request))
    else:
        headers = rate_headers(taken.headroom, door.clock.wall_ns()) + degraded(wish.kept.degraded)
    record = await path.begin(taken.request)
    if asked.background and not asked.stream:
        await call.answer_json((await shelf.whole(record)).response(), headers=headers)
        return
    fold = shelf.fold(record)
    answer = _Answer(call, path.reading, record, fold, held=not asked.background, headers=headers)
    try:
        with Watched(door, call) as watched:
            await watched.run(answer.stream(watched) if asked.stream else answer.whole())
    finally:
        if not fold.ended and not asked.background and not key:
            # Nobody will come back for it.
            await path.cancelling.cancel(record)
        if asked.store is False and not key:
            await _erase(shelf, record)


async def _erase(shelf: Shelf, record: RequestRecord) -> None:
    """Forget a response that is not to be stored, however it ended."""
    try:
        await shelf.end(record)
        await shelf.erase(record)
    except (ConflictError, UnavailableError) as error:
        # What its caller is told does not depend on it.
        _LOG.warning("a response that is not to be stored stays", reason=str(error))


class _Answer:
    """An answer that follows a response. ``held`` keeps its head back until an endpoint answers.

    A refusal can have its own status then.
    """

    def __init__(
        self,
        call: Call,
        reading: Reading,
        record: RequestRecord,
        fold: Fold,
        *,
        held: bool = False,
        headers: Headers = (),
    ) -> None:
        self._call = call
        self._reading = reading
        self._record = record
        self._fold = fold
        self._held = held
        self._headers = list(headers)

    async def whole(self) -> None:
        """Answer with the response once it has ended."""
        last: Sequence[Event] = ()
        async with aclosing(all_events(self._reading, self._record)) as batches:
            async for batch in batches:
                self._fold.feed(batch)
                last = batch
        self._raise_failure(last)
        await self._call.answer_json(self._fold.response(), headers=self._headers)

    async def stream(self, watched: Watched, *, after: int = -1) -> None:
        """Stream the response's events above ``after``."""
        call, fold = self._call, self._fold
        waiting = b""
        last: Sequence[Event] = ()
        if not self._held:
            await call.begin_stream(self._headers)
        async with aclosing(all_events(self._reading, self._record)) as batches:
            async for batch in batches:
                last = batch
                waiting += b"".join(told.sse() for told in fold.feed(batch) if told.number > after)
                if not call.begun and not fold.running:
                    continue
                if not call.begun:
                    await call.begin_stream(self._headers)
                if waiting:
                    await watched.write(waiting)
                    waiting = b""
        if not call.begun:
            self._raise_failure(last)
            await call.begin_stream(self._headers)
        await call.end_stream(waiting)

    def _raise_failure(self, last: Sequence[Event]) -> None:
        """Raise the error that the end of a response means of which nothing was told."""
        if not self._fold.ended:
            raise UnavailableError("the answer was interrupted", mend="send the request again")
        if isinstance(last[-1], Failed):
            raise failure(last[-1])


async def show(door: Door, call: Call) -> None:
    """Tell a response as it is now, or stream its events from any ``sequence_number`` on."""
    caller = await door.caller(call, "infer")
    path = queued(door)
    shelf = Shelf(path)
    asked = query(call, "stream", "starting_after", "include_obfuscation")
    streams = _truth(asked, "stream")
    if _truth(asked, "include_obfuscation"):
        raise ParameterError(
            "'include_obfuscation' is not supported",
            param="include_obfuscation",
            reason="unsupported_parameter",
            mend="leave it out",
        )
    if "starting_after" in asked and not streams:
        raise ParameterError("starting_after is for a stream", param="starting_after", mend="add stream=true")
    after = seq(asked.get("starting_after", "-1"), param="starting_after")
    record = await shelf.own(caller, call.part)
    if not streams:
        await call.answer_json((await shelf.whole(record)).response())
        return
    answer = _Answer(call, path.reading, record, shelf.fold(record))
    with Watched(door, call) as watched:
        await watched.run(answer.stream(watched, after=after))


def _truth(asked: Mapping[str, str], name: str) -> bool:
    text = asked.get(name, "false").lower()
    if text not in _TRUTH:
        raise ParameterError(f"{name} is {text!r}", param=name, mend="write true or false")
    return _TRUTH[text]


async def cancel(door: Door, call: Call) -> None:
    """Have a background response stopped."""
    caller = await door.caller(call, "infer")
    shelf = Shelf(queued(door))
    record = await shelf.own(caller, call.part)
    if not shelf.said(record).background:
        raise ParameterError(
            "only a background response is cancelled",
            param="id",
            mend="close the connection of one that is being answered",
        )
    await call.answer_json((await shelf.cancel(record)).response())


async def delete(door: Door, call: Call) -> None:
    """Forget what was asked and answered."""
    caller = await door.caller(call, "infer")
    shelf = Shelf(queued(door))
    record = await shelf.own(caller, call.part)
    await shelf.erase(record)
    await call.answer_json({"id": response_id(record.request), "object": "response", "deleted": True})


async def input_items(door: Door, call: Call) -> None:
    """List the items of a response's own input."""
    caller = await door.caller(call, "infer")
    shelf = Shelf(queued(door))
    asked = query(call, "after", "limit", "order")
    record = await shelf.own(caller, call.part)
    items = shelf.said(record).items
    if newest_first(asked.get("order")):
        items = items[::-1]
    limit = page_limit(asked.get("limit"), default=_PAGE, most=_PAGE_MOST)
    first = 0
    if "after" in asked:
        places = [place for place, item in enumerate(items) if item["id"] == asked["after"]]
        if not places:
            raise ParameterError(
                f"there is no item {asked['after'][:80]!r}",
                param="after",
                mend="give last_id of the page before",
            )
        first = places[0] + 1
    shown: list[dict[str, Json]] = [{"status": "completed", **item} for item in items[first : first + limit]]
    await call.answer_json(page(shown, more=len(items) > first + limit))
