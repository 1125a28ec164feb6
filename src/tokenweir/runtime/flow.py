"""Requests for text on their way through one device: measured, queued, started, read, and done with.

A request is prepared by the engine's process, which says how large it is; the scheduler says when it may start; from
then on its events come with the steps of its model, as far as its reader has given credit.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Sequence
from contextlib import aclosing
from typing import Final, TypeAlias, assert_never

import msgspec

from tokenweir.core.clock import Clock
from tokenweir.core.errors import DeadlineError, EngineRestartedError, WeirError
from tokenweir.core.events import Accepted, Event, Queued, Usage
from tokenweir.core.ids import new_id
from tokenweir.core.requests import GenerateRequest
from tokenweir.core.units import format_duration
from tokenweir.ports.inference import ModelCard
from tokenweir.runtime.bridge.client import Notification
from tokenweir.runtime.bridge.faults import error_of
from tokenweir.runtime.bridge.messages import (
    Cancel,
    Code,
    Credit,
    Fault,
    Prepare,
    PrepareBatch,
    Prepared,
    PreparedBatch,
    Start,
    Stepped,
)
from tokenweir.runtime.options import RunOptions
from tokenweir.runtime.scheduling import tickets
from tokenweir.runtime.scheduling.budget import kv_bytes
from tokenweir.runtime.scheduling.scheduler import Scheduler
from tokenweir.runtime.scheduling.tickets import Changes, Ticket
from tokenweir.runtime.streams import (
    Ended,
    Orphaned,
    Preparing,
    Running,
    Stream,
    StreamTable,
    Waiting,
    failed,
)
from tokenweir.runtime.supervision.supervisor import Life

_NS_PER_S: Final = 1_000_000_000
_TRIES: Final = 2
"""Processes that may be lost under a request before it has begun, until it is refused."""


class Asked(msgspec.Struct, frozen=True, kw_only=True):
    """One request, and the instant (monotonic ns) by which it must be done; ``None``: any time.

    ``default_max_tokens`` is its model's own, where it has one.
    """

    request: GenerateRequest
    options: RunOptions
    deadline_ns: int | None = None
    default_max_tokens: int | None = None


_Entry: TypeAlias = tuple[Life, ModelCard, Prepared] | WeirError | None
"""What is known of a stream that is to be followed: prepared, refused, or nothing yet."""


class Flow:
    """The streams of one device. ``ensure`` returns the process once it has the model, with the model's card."""

    def __init__(
        self,
        scheduler: Scheduler,
        streams: StreamTable,
        ensure: Callable[[str], Awaitable[tuple[Life, ModelCard]]],
        *,
        window: int,
        timeout_ns: int,
        clock: Clock,
    ) -> None:
        self._scheduler = scheduler
        self._streams = streams
        self._ensure = ensure
        self._window = window
        self._timeout_ns = timeout_ns
        self._clock = clock
        self._life: Life | None = None
        self._nudge = asyncio.Event()

    # -- one request ----------------------------------------------------------------------------------------------

    async def generate(self, asked: Asked) -> AsyncGenerator[Event]:
        """Yield the events of one request, no faster than they are taken.

        Raises:
            WeirError: it was refused before it began. What fails later ends with a ``Failed`` event.
        """
        stream = self._open(asked)
        async with aclosing(self._follow(stream, asked, None)) as events:
            async for event in events:
                yield event

    async def together(self, batch: Sequence[Asked]) -> list[list[Event]]:
        """Return the events of requests for one model, in the order asked; they are prepared in one call.

        One that is refused holds a ``Failed`` event alone.

        Raises:
            TooManyStreamsError: there is no room for all of them; :meth:`StreamTable.room` waits for it.
        """
        streams = [self._open(one) for one in batch]
        try:
            entries = await self._prepare_all(streams, batch)
        except WeirError as error:
            for stream in streams:
                stream.fail(error)
                self._streams.close(stream)
            return [[failed(error, 0)] for _ in batch]
        except BaseException:
            for stream in streams:
                self._abandon(stream)
                self._streams.close(stream)
            raise
        async with asyncio.TaskGroup() as group:
            tasks = [
                group.create_task(self._collect(self._follow(stream, asked, entry)))
                for stream, asked, entry in zip(streams, batch, entries, strict=True)
            ]
        return [task.result() for task in tasks]

    def _open(self, asked: Asked) -> Stream:
        stream = self._streams.open(asked.request.model, asked.options.priority, self._window)
        stream.asked_ns = self._clock.monotonic_ns()
        return stream

    async def _prepare_all(self, streams: Sequence[Stream], batch: Sequence[Asked]) -> list[_Entry]:
        """Return what the process says of each; one that was lost meanwhile leaves them to be prepared singly."""
        try:
            life, card = await self._ensure(batch[0].request.model)
            items = tuple(_prepare_call(*pair) for pair in zip(streams, batch, strict=True))
            answer = await life.client.call(
                PrepareBatch(items=items), PreparedBatch, timeout_ns=self._timeout_ns
            )
        except EngineRestartedError:
            return [None for _ in streams]
        entries: list[_Entry] = []
        for item in answer.items:
            if item.prepared is not None:
                entries.append((life, card, item.prepared))
            else:
                entries.append(error_of(item.fault or Fault(code=Code.INTERNAL, message="no answer")))
        return entries

    async def _collect(self, generating: AsyncGenerator[Event]) -> list[Event]:
        events: list[Event] = []
        try:
            async with aclosing(generating):
                events.extend([event async for event in generating])
        except WeirError as error:
            events.append(failed(error, len(events)))
        return events

    async def _follow(self, stream: Stream, asked: Asked, entry: _Entry) -> AsyncGenerator[Event]:
        """Yield the events of an open stream, and close it. What was prepared already comes as ``entry``."""
        alarm = self._alarm(stream, asked)
        try:
            match entry:
                case None:
                    await self._enter(stream, asked)
                case (life, card, prepared):
                    self._submit(stream, life, ticket_of(stream, prepared, card, asked))
                case WeirError():
                    raise entry
            yield Accepted(seq=0, request_id=new_id("req"))
            if stream.first_seq > 1:
                yield Queued(seq=1)
            await self._admitted(stream, asked)
            while (event := await stream.read()) is not None:
                yield stream.timed(event) if type(event) is Usage else event
                self._took(stream, event)
        finally:
            if alarm is not None:
                alarm.cancel()
            if not isinstance(stream.state, Ended):
                self._abandon(stream)
            self._streams.close(stream)

    async def _enter(self, stream: Stream, asked: Asked) -> None:
        """Have a stream prepared, and queue it. Raises what it is refused with."""
        for tries_left in reversed(range(_TRIES)):
            try:
                async with asyncio.timeout(self._left_s(asked)):
                    life, card = await self._ensure(stream.model)
                    prepared = await life.client.call(
                        _prepare_call(stream, asked), Prepared, timeout_ns=self._timeout_ns
                    )
            except TimeoutError:
                raise _late(asked) from None
            except EngineRestartedError:
                if not tries_left:
                    raise
            else:
                self._submit(stream, life, ticket_of(stream, prepared, card, asked))
                return

    async def _admitted(self, stream: Stream, asked: Asked) -> None:
        """Wait until a stream runs; one whose process is lost meanwhile is prepared again in the next."""
        tries_left = _TRIES - 1
        while not await stream.admitted():
            if not tries_left and isinstance(stream.state, Orphaned):
                raise stream.state.error
            tries_left -= 1
            self._streams.renumber(stream)
            stream.become(Preparing())
            await self._enter(stream, asked)

    def _submit(self, stream: Stream, life: Life, ticket: Ticket) -> None:
        if isinstance(stream.state, Ended):
            # Its time was over while it was prepared.
            life.client.notify(Cancel(stream=stream.number))
            raise stream.state.error or EngineRestartedError("the request was given up")
        now_ns = self._clock.monotonic_ns()
        stream.become(Waiting(epoch=life.epoch, since_ns=now_ns))
        stream.queued_ns = stream.queued_ns or now_ns
        outcome = self._scheduler.submit(ticket, now_ns)
        match outcome:
            case tickets.Admitted():
                stream.first_seq = stream.first_seq or 1
                self._begin(stream)
            case tickets.Waiting():
                stream.first_seq = 2
                self._nudge.set()
            case tickets.Refused(error=error):
                raise error
            case _:
                assert_never(outcome)

    def _begin(self, stream: Stream) -> None:
        """Let the process work on an admitted stream."""
        epoch = stream.state.epoch if isinstance(stream.state, Waiting) else 0
        stream.next_seq = stream.first_seq
        stream.began_ns = self._clock.monotonic_ns()
        stream.become(Running(epoch=epoch))
        self._tell(Start(stream=stream.number, first_seq=stream.first_seq, credits=stream.window))

    def _took(self, stream: Stream, event: Event) -> None:
        credit = stream.took(event)
        if credit:
            self._tell(Credit(stream=stream.number, tokens=credit))

    def _abandon(self, stream: Stream) -> None:
        """Free what a stream holds, whose reader or whose time has gone."""
        if not isinstance(stream.state, Orphaned):
            self._tell(Cancel(stream=stream.number))
        self._start(self._scheduler.cancel(stream.number))

    def _fail(self, stream: Stream, error: WeirError) -> None:
        if not isinstance(stream.state, Ended):
            self._abandon(stream)
            stream.fail(error)

    def _alarm(self, stream: Stream, asked: Asked) -> asyncio.TimerHandle | None:
        left_s = self._left_s(asked)
        if left_s is None:
            return None
        return asyncio.get_running_loop().call_later(left_s, lambda: self._fail(stream, _late(asked)))

    def _left_s(self, asked: Asked) -> float | None:
        if asked.deadline_ns is None:
            return None
        return max(asked.deadline_ns - self._clock.monotonic_ns(), 0) / _NS_PER_S

    # -- the process ----------------------------------------------------------------------------------------------

    def ready(self, life: Life) -> None:
        """A process is ready: admit again."""
        self._life = life
        self._start(self._scheduler.resume())

    def stepped(self, epoch: int, stepped: Stepped) -> None:
        """Hand the events of a step to their streams, and let the scheduler see it."""
        now_ns = self._clock.monotonic_ns()
        for part in stepped.streams:
            stream = self._streams.get(part.stream)
            running = stream is not None and stream.state == Running(epoch=epoch)
            if stream is not None and running and stream.push(part.events):
                self._start(self._scheduler.finish(stream.number, now_ns))
        self.apply(self._scheduler.observe(stepped, now_ns))

    def orphan(self, epoch: int, error: WeirError) -> None:
        """Take back what waits in a process that takes nothing new."""
        waiting = [one for one in self._streams.of_epoch(epoch) if isinstance(one.state, Waiting)]
        # All of them first: a place that one gives up must not go to the next.
        for stream in waiting:
            stream.become(Orphaned(error=error))
        for stream in waiting:
            self._tell(Cancel(stream=stream.number))
            self._start(self._scheduler.cancel(stream.number))

    def lost(self, epoch: int, error: WeirError) -> None:
        """Fail what a process worked on that is gone, and take back what waited in it."""
        self._life = None
        self._scheduler.pause()
        for stream in self._streams.of_epoch(epoch):
            if isinstance(stream.state, Running):
                stream.fail(error)
        self.orphan(epoch, error)

    def busy(self, epoch: int) -> bool:
        """Return whether a process works on anything."""
        return any(isinstance(stream.state, Running) for stream in self._streams.of_epoch(epoch))

    def oldest_wait_ns(self, now_ns: int) -> int:
        """Return for how long the request has waited that waits longest; 0 when none does."""
        waiting = (one.state.since_ns for one in self._streams if isinstance(one.state, Waiting))
        return max((now_ns - since_ns for since_ns in waiting), default=0)

    def end(self, error: WeirError) -> None:
        """Fail everything that is under way."""
        for stream in self._streams:
            self._fail(stream, error)

    # -- the scheduler --------------------------------------------------------------------------------------------

    async def keep_time(self) -> None:
        """Do what time alone brings, for as long as it is let."""
        while True:
            self._nudge.clear()
            wake_ns = self._scheduler.next_wake_ns()
            delay_s = None if wake_ns is None else max(wake_ns - self._clock.monotonic_ns(), 0) / _NS_PER_S
            try:
                async with asyncio.timeout(delay_s):
                    await self._nudge.wait()
            except TimeoutError:
                self.apply(self._scheduler.wake(self._clock.monotonic_ns()))

    def apply(self, changes: Changes) -> None:
        """Do what the scheduler decided."""
        now_ns = self._clock.monotonic_ns()
        for tune in changes.tune:
            self._tell(tune)
        for ticket in changes.shed:
            self._refuse(ticket, self._scheduler.shed_error(ticket, now_ns))
        for ticket in changes.expired:
            self._refuse(ticket, self._scheduler.deadline_error(ticket, now_ns))
        self._start(changes.admitted)
        if changes.tune:
            # A controller that holds load back wants to be asked again.
            self._nudge.set()

    def _refuse(self, ticket: Ticket, error: WeirError) -> None:
        stream = self._streams.get(ticket.id)
        if stream is not None:
            self._fail(stream, error)

    def _start(self, admitted: Iterable[Ticket]) -> None:
        for ticket in admitted:
            stream = self._streams.get(ticket.id)
            if stream is not None and isinstance(stream.state, Waiting):
                self._begin(stream)
            else:
                self._start(self._scheduler.cancel(ticket.id))

    def _tell(self, notice: Notification) -> None:
        if self._life is not None:
            self._life.client.notify(notice)


def ticket_of(stream: Stream, prepared: Prepared, card: ModelCard, asked: Asked) -> Ticket:
    """Return what the scheduler is asked for a prepared request."""
    size = kv_bytes(
        card,
        prompt_tokens=prepared.prompt_tokens,
        max_tokens=prepared.max_tokens,
        sequences=prepared.sequences,
    )
    return Ticket(
        id=stream.number,
        model=stream.model,
        priority=stream.priority,
        deadline_ns=asked.deadline_ns,
        prompt_tokens=prepared.prompt_tokens,
        max_tokens=prepared.max_tokens,
        sequences=prepared.sequences,
        kv_bytes=size,
        exclusive=prepared.exclusive,
    )


def _prepare_call(stream: Stream, asked: Asked) -> Prepare:
    return Prepare(
        stream=stream.number,
        model=stream.model,
        request=asked.request,
        options=asked.options,
        default_max_tokens=asked.default_max_tokens,
    )


def _late(asked: Asked) -> DeadlineError:
    timeout_ns = asked.options.timeout_ns
    given = f" within {format_duration(timeout_ns)}" if timeout_ns is not None else " in time"
    return DeadlineError(f"the request was not finished{given}", mend="give it more time, or ask for less")
