"""Appends to the event log, for all requests of a worker together."""

from __future__ import annotations

import asyncio
from typing import Final

from tokenweir.core.errors import DiskFullError, UnavailableError
from tokenweir.ports.eventlog import Append, EventLog
from tokenweir.telemetry.logs import get_logger

_LOG = get_logger("tokenweir.gateway.worker")
_AGAIN_S: Final = 0.5


class _Turn:
    """Appends that go together, and those who wait for them."""

    __slots__ = ("appends", "durable", "failure", "pouring")

    def __init__(self) -> None:
        self.appends: list[Append] = []
        # Those who wait until it is durable, and those who wait for the next.
        self.durable: list[asyncio.Future[None]] = []
        self.pouring: list[asyncio.Future[None]] = []
        self.failure: Exception | None = None

    def tell(self, waiting: list[asyncio.Future[None]]) -> None:
        """Tell those who wait what became of it."""
        for future in waiting:
            if future.done():
                continue
            if self.failure is None:
                future.set_result(None)
            else:
                future.set_exception(self.failure)


class Writing:
    """Appends in turns: what gathers while one is on its way goes with the next. :meth:`run` works until cancelled.

    A turn begins no sooner than ``apart_s`` after the one before, so that many tokens share a record, a reader's read
    and a send to its client; whoever writes after a pause does not wait.
    """

    def __init__(self, events: EventLog, *, apart_s: float = 0.0) -> None:
        self._events = events
        self._apart_s = apart_s
        self._turn: _Turn | None = None
        self._last: _Turn | None = None
        self._filled = asyncio.Event()
        # The loop is asked for once: there are tens of thousands of futures a second.
        self._loop = asyncio.get_running_loop()

    async def write(self, append: Append) -> None:
        """Append; returns once it is durable, and all before it. Waits while the log is away."""
        future = self._loop.create_future()
        self._put(append).durable.append(future)
        await future

    async def pour(self, append: Append) -> None:
        """Append; returns when the next turn begins: what is brought then goes with it. Waits while the log is away.

        What is poured is durable before anything that is written or poured later.
        """
        future = self._loop.create_future()
        self._put(append).pouring.append(future)
        await future

    def _put(self, append: Append) -> _Turn:
        if self._turn is None:
            self._turn = _Turn()
        self._turn.appends.append(append)
        self._filled.set()
        return self._turn

    async def run(self) -> None:
        """Write what comes."""
        loop = self._loop
        while True:
            await self._filled.wait()
            while True:
                if self._last is not None:
                    self._last.tell(self._last.pouring)
                    self._last = None
                # Those who have waited for this turn bring what came to them meanwhile.
                await asyncio.sleep(0)
                turn, self._turn = self._turn, None
                self._filled.clear()
                if turn is None:
                    break
                due = loop.time() + self._apart_s
                await self._append(turn)
                self._last = turn
                if (left_s := due - loop.time()) > 0:
                    await asyncio.sleep(left_s)

    async def _append(self, turn: _Turn) -> None:
        while True:
            try:
                await self._events.append(turn.appends)
            except (UnavailableError, DiskFullError) as error:
                # A seq that is there already is ignored, so that this may be done again.
                _LOG.warning("the event log is away", waiting=len(turn.appends), reason=str(error))
                await asyncio.sleep(_AGAIN_S)
                continue
            except Exception as error:  # noqa: BLE001 - it is told to all who wait for it
                turn.failure = error
            turn.tell(turn.durable)
            return
