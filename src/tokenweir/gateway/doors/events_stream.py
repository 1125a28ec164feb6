"""The events of a request as server-sent events, from any seq on, or as JSON for those who poll."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Coroutine, Sequence
from contextlib import aclosing
from types import TracebackType
from typing import Final, Self, get_args

import msgspec

from tokenweir.asgi.call import JSON, Call
from tokenweir.core.errors import ParameterError
from tokenweir.core.events import Event
from tokenweir.gateway.doors.door import Door
from tokenweir.gateway.doors.native import queued
from tokenweir.gateway.doors.queries import query
from tokenweir.gateway.queued.kept import ended
from tokenweir.gateway.queued.reading import all_events

_BEAT: Final = b": heartbeat\n\n"
_RETRY: Final = b"retry: 1000\n\n"
_SEQ_LETTERS: Final = 18

_NAMES: Final[dict[type, bytes]] = {
    kind: str(kind.__struct_config__.tag).encode() for kind in get_args(Event)
}

encode_event = msgspec.json.Encoder().encode


def sse(events: Sequence[Event]) -> bytes:
    """Return events on the wire: the id is the seq, the name is the type."""
    return b"".join(
        [
            b"id: %d\nevent: %b\ndata: %b\n\n" % (event.seq, _NAMES[type(event)], encode_event(event))
            for event in events
        ]
    )


def cursor(call: Call) -> int:
    """Return the seq that the caller has seen: of ``Last-Event-ID``, or ``after``; -1 is none.

    Raises ParameterError for one that is malformed, and for both.
    """
    asked = query(call, "after").get("after")
    last = call.header(b"last-event-id")
    if asked is not None and last is not None:
        raise ParameterError(
            "both after and Last-Event-ID are given", param="after", mend="give one of the two"
        )
    if asked is None and last is None:
        return -1
    text = asked if asked is not None else (last or b"").decode("latin-1")
    return seq(text, param="after" if asked is not None else "Last-Event-ID")


def seq(text: str, *, param: str) -> int:
    """Read a seq; -1 is before all. Raises ParameterError."""
    digits = text.removeprefix("-")
    if not (digits.isascii() and digits.isdigit() and len(digits) <= _SEQ_LETTERS) or int(text) < -1:
        raise ParameterError(
            f"{text!r} is no seq", param=param, mend="give the id of the last event that you have seen"
        )
    return int(text)


async def events(door: Door, call: Call) -> None:
    """Stream a request's events, or answer with those there are to ``Accept: application/json``."""
    caller = await door.caller(call, "infer")
    path = queued(door)
    after = cursor(call)
    record = await path.reading.own(caller, call.part)
    accepted = call.header(b"accept") or b""
    if JSON in accepted and b"text/event-stream" not in accepted:
        found = await path.reading.events(record, after=after)
        await call.answer_json(
            {
                "object": "list",
                "data": found,
                "last_seq": found[-1].seq if found else after,
                "ended": ended(found),
            }
        )
        return
    if record.ended_at is not None and record.last_seq <= after:
        # An EventSource would come back for ever; this tells it that there is nothing more.
        await call.answer_nothing()
        return
    with Watched(door, call) as watched:
        await watched.run(_stream(call, watched, all_events(path.reading, record, after=after)))


async def _stream(call: Call, watched: Watched, events: AsyncGenerator[Sequence[Event]]) -> None:
    await call.begin_stream()
    await call.write(_RETRY)
    async with aclosing(events) as batches:
        async for batch in batches:
            await watched.write(sse(batch))
    await call.end_stream()


class Stop:
    """Ends a stream from outside: its key counts no more, its reader is gone, or the process leaves."""

    __slots__ = ("_task", "asked")

    def __init__(self, task: asyncio.Task[object] | None) -> None:
        self._task = task
        self.asked = False

    def now(self) -> None:
        """End it."""
        if not self.asked and self._task is not None:
            self.asked = True
            self._task.cancel()

    def obeyed(self) -> bool:
        """Whether a cancellation that has arrived is this one alone; then it is over."""
        return self.asked and self._task is not None and self._task.uncancel() == 0


class Watched:
    """An answer that follows a request. Silence amid a stream is broken by a comment, which keeps proxies from closing.

    Within ``with`` it counts as an open stream; :meth:`run` ends early when its reader goes, its key counts no
    more, or the process leaves. ``gone`` says that its reader went.
    """

    __slots__ = ("_call", "_counted", "_door", "_speaking", "_spoken", "_stop", "gone")

    def __init__(self, door: Door, call: Call) -> None:
        self._door = door
        self._call = call
        self._stop = Stop(asyncio.current_task())
        self._counted = door.streams.counted(door.key_of(call), self._stop.now)
        self._spoken = False
        self._speaking = False
        self.gone = False

    def __enter__(self) -> Self:
        self._counted.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._counted.__exit__(kind, error, trace)

    async def run(self, answering: Coroutine[None, None, None]) -> None:
        """Answer, until it is stopped; a stream that was begun is ended then."""
        try:
            async with asyncio.TaskGroup() as group:
                watch = group.create_task(self._watch())
                try:
                    await answering
                except asyncio.CancelledError:
                    if not self._stop.obeyed():
                        raise
                    if self._call.streaming:
                        await self._call.end_stream()
                finally:
                    answering.close()
                    watch.cancel()
        except* Exception as errors:  # noqa: BLE001 - only taken out of its group
            raise errors.exceptions[0] from None

    async def write(self, piece: bytes) -> None:
        """Send a piece of a stream; waits while the reader does not read."""
        self._speaking = self._spoken = True
        await self._call.write(piece)
        self._speaking = False

    async def _watch(self) -> None:
        """Beat through silence, and stop the answer when its reader goes."""
        while True:
            try:
                async with asyncio.timeout(self._door.heartbeat_s):
                    await self._call.gone()
            except TimeoutError:
                if self._call.streaming and not (self._spoken or self._speaking):
                    await self._call.write(_BEAT)
                self._spoken = False
            else:
                self.gone = True
                self._stop.now()
                return
