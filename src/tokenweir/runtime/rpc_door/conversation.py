"""One call of ``Converse``: many requests at once, whose events leave together as fast as the client takes them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from typing import Final

import msgspec

from tokenweir.core.errors import ParameterError, WeirError
from tokenweir.core.events import Cancelled, Completed, Event, Failed, Token, Usage
from tokenweir.core.requests import GenerateRequest
from tokenweir.runtime.http.door import Door
from tokenweir.runtime.http.metrics import Meter
from tokenweir.runtime.options import RunOptions
from tokenweir.runtime.rpc_door.options import from_options
from tokenweir.runtime.rpc_door.statuses import refusal
from tokenweir.wire.v1 import inference_pb2 as pb
from tokenweir.wire.v1.events import to_event
from tokenweir.wire.v1.requests import from_request

ROUTE: Final = "/tokenweir.v1.Inference/Converse"
_MOST_PENDING: Final = 64
"""Events of one request that wait for the client; then the request waits too."""


class _Work:
    """A request in work. ``credits`` is ``None`` where the client wants no limit."""

    __slots__ = ("cancelled", "credits", "done", "granted", "pending", "room", "task")

    def __init__(self, credits_given: int) -> None:
        self.credits: int | None = credits_given or None
        self.granted = asyncio.Event()
        self.pending: list[pb.Event] = []
        self.room = asyncio.Event()
        self.cancelled = False
        self.done = False
        self.task: asyncio.Task[None] | None = None

    def cancel(self) -> None:
        """Give the request up, at the client's wish."""
        self.cancelled = True
        if self.task is not None:
            self.task.cancel()

    async def spend(self) -> None:
        """Take one credit, waiting for it."""
        while self.credits == 0:
            self.granted.clear()
            await self.granted.wait()
        if self.credits is not None:
            self.credits -= 1

    def grant(self, events: int) -> None:
        """Add credits; without effect where there is no limit."""
        if self.credits is not None:
            self.credits += events
            self.granted.set()


class Conversation:
    """Reads commands, works on requests and writes notices, until the client has ended and all work is done."""

    def __init__(
        self,
        door: Door,
        write: Callable[[pb.Notice], Awaitable[None]],
        remaining_ns: Callable[[], int | None],
    ) -> None:
        self._door = door
        self._write = write
        self._remaining_ns = remaining_ns
        self._works: dict[int, _Work] = {}
        self._used: set[int] = set()
        self._news = asyncio.Event()
        self._reading = True
        self._error: ParameterError | None = None

    async def run(self, commands: AsyncIterator[pb.Command]) -> None:
        """Converse. Raises ParameterError for a command that makes no sense; cancelling it cancels all work."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._listen(commands, group))
            group.create_task(self._send())
        if self._error is not None:
            raise self._error

    async def _listen(self, commands: AsyncIterator[pb.Command], group: asyncio.TaskGroup) -> None:
        """Obey commands to their end, or to one that makes no sense.

        A write that is under way is never cancelled for that: gRPC could send no status after it.
        """
        try:
            await self._read(commands, group)
        except ParameterError as error:
            self._error = error
            for work in self._works.values():
                work.cancel()
        self._reading = False
        self._news.set()

    async def _read(self, commands: AsyncIterator[pb.Command], group: asyncio.TaskGroup) -> None:
        async for command in commands:
            work = self._works.get(command.stream)
            match command.WhichOneof("command"):
                case "submit":
                    self._submit(command.stream, command.submit, group)
                case "credit" if work is not None:
                    work.grant(command.credit.events)
                case "cancel" if work is not None:
                    work.cancel()
                case "credit" | "cancel":
                    # The request ended while the command was on its way.
                    pass
                case _:
                    raise ParameterError(
                        f"the command for stream {command.stream} says nothing",
                        param="command",
                        mend="set submit, credit or cancel",
                    )

    def _submit(self, stream: int, submit: pb.Submit, group: asyncio.TaskGroup) -> None:
        if stream in self._used:
            raise ParameterError(
                f"stream {stream} was used before", param="stream", mend="number requests in one call anew"
            )
        self._used.add(stream)
        work = self._works[stream] = _Work(submit.credits)
        work.task = group.create_task(self._answer(work, submit))

    async def _answer(self, work: _Work, submit: pb.Submit) -> None:
        """Work on one request; whatever becomes of it, its last event is an end."""
        sequence = 0
        try:
            request, options = self._asked(submit)
            with self._door.metrics.request(ROUTE, request.model) as meter:
                async with aclosing(self._door.serving.generate(request, options)) as events:
                    async for event in events:
                        await self._take(work, event, meter)
                        # What was not taken when the request was cancelled is not told, and leaves no gap.
                        sequence = event.seq + 1
        except WeirError as error:
            work.pending.append(refusal(error))
        except asyncio.CancelledError:
            if not work.cancelled:
                raise
            work.pending.append(pb.Event(seq=sequence, cancelled=pb.Cancelled()))
        finally:
            work.done = True
            self._news.set()

    def _asked(self, submit: pb.Submit) -> tuple[GenerateRequest, RunOptions]:
        request = from_request(submit.request)
        card = self._door.card(request.model)
        options = from_options(submit.request.options, remaining_ns=self._remaining_ns())
        return msgspec.structs.replace(request, model=card.name), options

    async def _take(self, work: _Work, event: Event, meter: Meter) -> None:
        """Put an event before the client, once it may have it and there is room."""
        measure(event, meter)
        if type(event) is Token:
            await work.spend()
        while len(work.pending) >= _MOST_PENDING:
            work.room.clear()
            await work.room.wait()
        work.pending.append(to_event(event))
        self._news.set()

    async def _send(self) -> None:
        """Write what there is, all requests together, until there will be no more."""
        while self._error is None and (self._reading or self._works):
            await self._news.wait()
            self._news.clear()
            streams: list[pb.StreamEvents] = []
            for stream, work in list(self._works.items()):
                if work.pending:
                    streams.append(pb.StreamEvents(stream=stream, events=work.pending))
                    work.pending.clear()
                    work.room.set()
                if work.done:
                    del self._works[stream]
            if streams:
                await self._write(pb.Notice(streams=streams))


def measure(event: Event, meter: Meter) -> None:
    """Count what an event tells of a request."""
    match event:
        case Token():
            meter.token(event.count)
        case Usage():
            meter.usage = event
        case Completed():
            meter.done(meter.usage or Usage(seq=event.seq))
        case Failed():
            meter.outcome = "failed"
        case Cancelled():
            meter.outcome = "gone"
        case _:
            pass
