"""The server's side of streams: where each one stands, what waits for its reader, and what its reader has taken.

::

    Preparing ─▶ Waiting ─▶ Running ─▶ Ended
        │  └────────┼─────────▲          ▲
        └─────▶ Orphaned      └── also ──┘ when refused, late or cancelled
                   └─▶ Preparing (once, with the next process)
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterator, Sequence
from typing import TypeAlias, assert_never

import msgspec

from tokenweir.core.errors import ServingError, TooManyStreamsError, WeirError
from tokenweir.core.events import Cancelled, Completed, Event, Failed, Token, Usage
from tokenweir.runtime.options import Priority


class Preparing(msgspec.Struct, frozen=True, tag="preparing"):
    """The request is checked and measured."""


class Waiting(msgspec.Struct, frozen=True, tag="waiting"):
    """It is prepared in the process ``epoch`` and waits for admission since ``since_ns``."""

    epoch: int
    since_ns: int


class Running(msgspec.Struct, frozen=True, tag="running"):
    """The process ``epoch`` works on it."""

    epoch: int


class Orphaned(msgspec.Struct, frozen=True, tag="orphaned"):
    """The process was lost before it had begun: it can be prepared again."""

    error: WeirError


class Ended(msgspec.Struct, frozen=True, tag="ended"):
    """Nothing more comes. ``error`` is what it was refused with, if it never began."""

    error: WeirError | None = None


StreamState: TypeAlias = Preparing | Waiting | Running | Orphaned | Ended


class Stream:
    """One request under way. Events wait in it, at most ``window`` tokens of them, until its reader takes them."""

    __slots__ = (
        "_buffer",
        "_waker",
        "asked_ns",
        "began_ns",
        "first_seq",
        "model",
        "next_seq",
        "number",
        "priority",
        "queued_ns",
        "returned",
        "state",
        "window",
    )

    def __init__(self, number: int, model: str, priority: Priority, window: int) -> None:
        self.number = number
        self.model = model
        self.priority: Priority = priority
        self.window = window
        self.state: StreamState = Preparing()
        # Monotonic instants: when it was asked for, first stood in line, and was started.
        self.asked_ns = 0
        self.queued_ns = 0
        self.began_ns = 0
        self.first_seq = 0
        self.next_seq = 0
        # Tokens that were taken and not given back as credit yet.
        self.returned = 0
        self._buffer: deque[Event] = deque()
        self._waker: asyncio.Future[None] | None = None

    def become(self, state: StreamState) -> None:
        """Change the state, unless it has ended."""
        if not isinstance(self.state, Ended):
            self.state = state
            self._wake()

    def push(self, events: Sequence[Event]) -> bool:
        """Take events of the child; return whether the last one ended it. What comes after an end is dropped."""
        if isinstance(self.state, Ended) or not events:
            return False
        self._buffer.extend(events)
        last = events[-1]
        self.next_seq = last.seq + 1
        ended = isinstance(last, Completed | Failed | Cancelled)
        if ended:
            self.state = Ended()
        self._wake()
        return ended

    def fail(self, error: WeirError) -> None:
        """End it: what has begun gets a ``Failed`` event after what waits, what has not is refused with ``error``."""
        match self.state:
            case Running():
                self.push((failed(error, self.next_seq),))
            case Preparing() | Waiting() | Orphaned():
                self.become(Ended(error=error))
            case Ended():
                pass
            case _:
                assert_never(self.state)

    async def admitted(self) -> bool:
        """Wait until it runs or has run; ``False`` when it is orphaned instead. Raises what it was refused with."""
        while True:
            match self.state:
                case Running():
                    return True
                case Ended(error=error):
                    if error is not None:
                        raise error
                    return True
                case Orphaned():
                    return False
                case Preparing() | Waiting():
                    await self._change()
                case _:
                    assert_never(self.state)

    async def read(self) -> Event | None:
        """Return the next event, waiting for it; ``None`` after the last one."""
        while not self._buffer:
            if isinstance(self.state, Ended):
                return None
            await self._change()
        return self._buffer.popleft()

    def took(self, event: Event) -> int:
        """Note that the reader has taken ``event``; return the tokens of credit to give back now, mostly 0.

        Credit goes back by half windows, which costs a message for every half window and never starves a reader
        that keeps up.
        """
        if type(event) is not Token or isinstance(self.state, Ended):
            return 0
        self.returned += event.count or 0
        if self.returned * 2 < self.window:
            return 0
        credit, self.returned = self.returned, 0
        return credit

    def timed(self, usage: Usage) -> Usage:
        """Return a usage with the time before the start counted in, which the process does not know of."""
        before = {"queue_time": self.began_ns - self.queued_ns}
        return msgspec.structs.replace(
            usage,
            timings_ns={
                name: took + before.get(name, self.began_ns - self.asked_ns)
                for name, took in usage.timings_ns.items()
            },
        )

    async def _change(self) -> None:
        self._waker = asyncio.get_running_loop().create_future()
        try:
            await self._waker
        finally:
            self._waker = None

    def _wake(self) -> None:
        if self._waker is not None and not self._waker.done():
            self._waker.set_result(None)


def failed(error: WeirError, seq: int) -> Failed:
    """Return the event that ends a stream with ``error``."""
    return Failed(
        seq=seq,
        kind=error.code,
        message=str(error),
        status=error.http_status,
        retryable=error.retryable,
        retry_after_ns=error.retry_after_ns if isinstance(error, ServingError) else None,
    )


class StreamTable:
    """The streams under way, at most ``limit`` of them."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._last = 0
        self._streams: dict[int, Stream] = {}
        self._changed = asyncio.Event()

    def __len__(self) -> int:
        return len(self._streams)

    def __iter__(self) -> Iterator[Stream]:
        return iter(tuple(self._streams.values()))

    def get(self, number: int) -> Stream | None:
        """Return a stream that is under way."""
        return self._streams.get(number)

    def open(self, model: str, priority: Priority, window: int) -> Stream:
        """Add a stream. Raises TooManyStreamsError."""
        if len(self._streams) >= self._limit:
            raise TooManyStreamsError(
                f"{len(self._streams)} requests are in work or waiting, which is as many as may be",
                mend="try again later, or raise runtime.max_active_streams",
                retry_after_ns=1_000_000_000,
            )
        self._last += 1
        stream = Stream(self._last, model, priority, window)
        self._streams[stream.number] = stream
        return stream

    def renumber(self, stream: Stream) -> None:
        """Give a stream that is prepared anew a number of its own: none is used twice."""
        self._streams.pop(stream.number, None)
        self._last += 1
        stream.number = self._last
        self._streams[stream.number] = stream

    def close(self, stream: Stream) -> None:
        """Forget a stream whose reader has gone."""
        self._streams.pop(stream.number, None)
        self._notify()

    async def room(self, count: int) -> None:
        """Wait until ``count`` more streams could be opened; ``count`` is not above the limit."""
        while len(self._streams) + count > self._limit:
            await self._changed.wait()

    async def empty(self) -> None:
        """Wait until no stream is under way."""
        while self._streams:
            await self._changed.wait()

    def of_epoch(self, epoch: int) -> Iterator[Stream]:
        """Yield the streams that the process ``epoch`` has prepared or works on."""
        for stream in self:
            if isinstance(stream.state, Waiting | Running) and stream.state.epoch == epoch:
                yield stream

    def _notify(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()
