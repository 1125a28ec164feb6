"""Micro-batches: what gathers while calls are on their way goes with the next one. No timer, no waiting for company."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar

from tokenweir.core.errors import OverloadedError

T = TypeVar("T")
R = TypeVar("R")


class Batcher(Generic[T, R]):
    """Calls a port with many items at once. :meth:`run` works until cancelled, beside those that :meth:`submit`.

    Up to ``calls`` are on their way at once: more than one where the port waits for others, and order does not count.
    """

    def __init__(
        self,
        call: Callable[[Sequence[T]], Awaitable[Sequence[R]]],
        *,
        name: str,
        most: int = 256,
        waiting: int = 16_384,
        calls: int = 1,
    ) -> None:
        self._call = call
        self._calls = calls
        self._calling = 0
        self._name = name
        self._most, self._most_waiting = most, waiting
        self._waiting: deque[tuple[T, asyncio.Future[R] | None]] = deque()
        self._filled = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()

    def __len__(self) -> int:
        """How many items wait."""
        return len(self._waiting)

    async def submit(self, item: T) -> R:
        """Return the call's answer for ``item``.

        Raises:
            OverloadedError: too many wait.
            Exception: what the call raised, to each whose item was in it.
        """
        return await self.put(item)

    def put(self, item: T) -> asyncio.Future[R]:
        """Return the future of what :meth:`submit` returns. Raises OverloadedError: too many wait."""
        future: asyncio.Future[R] = asyncio.get_running_loop().create_future()
        self._put(item, future)
        return future

    def post(self, item: T) -> None:
        """Have the call made for ``item``, whose answer nobody waits for. Raises OverloadedError: too many wait."""
        self._put(item, None)

    async def drained(self) -> None:
        """Return once nothing waits and no call is on its way."""
        await self._idle.wait()

    def _put(self, item: T, future: asyncio.Future[R] | None) -> None:
        if len(self._waiting) >= self._most_waiting:
            raise OverloadedError(
                f"{len(self._waiting)} requests wait for the {self._name}", mend="try again shortly"
            )
        self._waiting.append((item, future))
        self._idle.clear()
        self._filled.set()

    async def run(self) -> None:
        """Call with what waits, again and again; cancelled, it fails what still waits."""
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(self._calls):
                    group.create_task(self._flush_all())
        finally:
            while self._waiting:
                _, future = self._waiting.popleft()
                if future is not None:
                    future.cancel()

    async def _flush_all(self) -> None:
        while True:
            await self._filled.wait()
            self._calling += 1
            try:
                while self._waiting:
                    await self._flush()
            finally:
                self._calling -= 1
            self._filled.clear()
            if not self._calling:
                self._idle.set()

    async def _flush(self) -> None:
        count = min(self._most, len(self._waiting))
        batch = [self._waiting.popleft() for _ in range(count)]
        # An item whose caller has gone is still carried out: it may have been cancelled in the middle of an acceptance.
        try:
            answers = await self._call([item for item, _ in batch])
        except asyncio.CancelledError:
            for _, future in batch:
                if future is not None:
                    future.cancel()
            raise
        except Exception as error:  # noqa: BLE001 - it is told to each who asked
            for _, future in batch:
                if future is not None and not future.done():
                    future.set_exception(error)
            return
        for (_, future), answer in zip(batch, answers, strict=True):
            if future is not None and not future.done():
                future.set_result(answer)
