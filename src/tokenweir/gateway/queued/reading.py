"""Reading requests: whoever owns one sees its state and its events, from the log while it runs, then from its file."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Final, cast

from tokenweir.core.errors import InputError, NotFoundError
from tokenweir.core.events import Completed, Event, Failed, state
from tokenweir.core.ids import parse_id
from tokenweir.core.requests import Json
from tokenweir.gateway.queued.answers import Facts, shown, usage_of, whole
from tokenweir.gateway.queued.kept import Kept, decode, ended, filed_log, last_answer, opening, request_id
from tokenweir.gateway.queued.sealing import Sealer
from tokenweir.ports.access import Caller
from tokenweir.ports.eventlog import EventLog
from tokenweir.ports.requests import RequestRecord, RequestStore

_S: Final = 1_000_000_000
_FIRST_LOOK_S: Final = 1.0
_LOOK_S: Final = 60.0


class Reading:
    """Finds requests for their owners."""

    def __init__(self, requests: RequestStore, events: EventLog, sealer: Sealer) -> None:
        self._requests = requests
        self._events = events
        self._sealer = sealer

    async def own(self, caller: Caller, text: str) -> RequestRecord:
        """Return a caller's request by its ``req_…``. Raises NotFoundError, for those of others too."""
        try:
            request = parse_id(text, prefix="req").uuid.to_bytes(16, "big")
        except InputError:
            raise _none(text) from None
        record = await self._requests.get(request)
        if record is None or record.user != caller.user:
            raise _none(text)
        return record

    async def record(self, request: bytes) -> RequestRecord:
        """Return a request as it is now. Raises NotFoundError."""
        record = await self._requests.get(request)
        if record is None:
            raise _none(request_id(request))
        return record

    def kept(self, record: RequestRecord) -> Kept:
        """Return a request's stored body. Raises SealError."""
        return decode(self._sealer.open(record.request, record.body))

    async def history(self, caller: Caller, *, before: bytes | None, limit: int) -> Sequence[RequestRecord]:
        """Return a caller's requests, newest first."""
        return await self._requests.history(caller.user, before=before, limit=limit)

    async def events(self, record: RequestRecord, *, after: int = -1) -> list[Event]:
        """Return the events above ``after`` that there are now."""
        if record.ended_at is not None:
            return shown(event for event in self.filed(record.request, record.log) if event.seq > after)
        first = opening(record)
        if record.attempt == 0:
            # Whoever writes to its log has claimed it first.
            return shown(event for event in first if event.seq > after)
        later = await self._events.read(record.request, record.lane, after=max(after, first[-1].seq))
        if not later and (now := await self._requests.get(record.request)) and now.ended_at is not None:
            # It ended, and its events were filed, just now.
            return await self.events(now, after=after)
        return shown([*(event for event in first if event.seq > after), *later])

    async def follow(self, record: RequestRecord, *, after: int = -1) -> AsyncGenerator[Sequence[Event]]:
        """Yield the events above ``after`` as they come; ends after the end.

        It ends without one when the events were filed meanwhile: read the request again then, and go on.
        """
        if record.ended_at is not None:
            events = await self.events(record, after=after)
            if events:
                yield events
            return
        first = [event for event in opening(record) if event.seq > after]
        if first:
            yield first
        after = max(after, opening(record)[-1].seq)
        wait_s = _FIRST_LOOK_S
        while True:
            batches = self._events.follow(record.request, record.lane, after=after)
            async with aclosing(cast("AsyncGenerator[Sequence[Event]]", batches)) as coming:
                try:
                    async with asyncio.timeout(wait_s):
                        events = await anext(coming, None)
                except TimeoutError:
                    pass
                else:
                    if events is None:
                        return
                    yield shown(events)
                    # Whose events are in the log is told there of their end, and of their being filed.
                    async for more in coming:
                        yield shown(more)
                    return
            # A request whose events were filed between the reading of its record and the following has none to come.
            if (await self.record(record.request)).ended_at is not None:
                return
            wait_s = _LOOK_S

    def filed(self, request: bytes, log: bytes) -> tuple[Event, ...]:
        """Return the events of a log as it is filed. Raises SealError."""
        return filed_log(self._sealer.open(request, log)) if log else ()

    async def listed(self, record: RequestRecord) -> dict[str, Json]:
        """Return what a list tells of a request whose record is one of a list: all but its result."""
        if record.ended_at is not None and not record.log:
            # A list leaves logs out.
            record = await self.record(record.request)
        return self._state(record, await self.events(record))

    async def status(self, record: RequestRecord) -> dict[str, Json]:
        """Return what a caller is told of a request: a fold over its events."""
        return self.told(record, await self.events(record))

    def told(self, record: RequestRecord, events: Sequence[Event]) -> dict[str, Json]:
        """Return the same for events that were read."""
        answered = bool(events) and isinstance(events[-1], Completed)
        result = whole(self.facts(record), events) if answered else None
        return {**self._state(record, events), "result": result}

    def _state(self, record: RequestRecord, events: Sequence[Event]) -> dict[str, Json]:
        name = request_id(record.request)
        return {
            "id": name,
            "object": "request",
            "request_id": name,
            "status": state(events),
            "mode": record.mode,
            "model": record.model,
            "priority": record.priority,
            "attempt": record.attempt,
            "created_at": record.at // _S,
            "deadline_at": None if record.deadline_at is None else record.deadline_at // _S,
            "ended_at": None if record.ended_at is None else record.ended_at // _S,
            "cancel_requested": record.cancel_at is not None,
            "last_seq": events[-1].seq if events else -1,
            "token_usage": usage_of(last_answer(events)),
            "error": _error(events[-1]) if events else None,
            "status_url": f"/v1/requests/{name}",
            "events_url": f"/v1/requests/{name}/events",
        }

    def facts(self, record: RequestRecord) -> Facts:
        """Return what an answer says of a request."""
        kept = self.kept(record)
        return Facts(
            kind=kept.kind,
            model=record.model,
            request_id=request_id(record.request),
            at=record.at,
            shows_usage=kept.read().shows_usage,
        )


async def all_events(
    reading: Reading, record: RequestRecord, *, after: int = -1
) -> AsyncGenerator[Sequence[Event]]:
    """Yield the events above ``after`` up to the end, wherever they lie meanwhile."""
    while True:
        async with aclosing(reading.follow(record, after=after)) as batches:
            async for events in batches:
                after = events[-1].seq
                yield events
                if ended(events):
                    return
        if record.ended_at is not None:
            return
        record = await reading.record(record.request)


def _none(text: str) -> NotFoundError:
    return NotFoundError(f"there is no request {text!r}", mend="GET /v1/requests lists yours")


def _error(end: Event) -> dict[str, Json] | None:
    if not isinstance(end, Failed):
        return None
    return {"message": end.message, "code": end.kind, "status": end.status, "retryable": end.retryable}
