"""Micro-batches: what gathers goes together, and no more calls are on their way than are allowed."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from tokenweir.gateway.batching import Batcher

WITHIN_S = 10.0


class _Port:
    """A port whose calls last until they are let go."""

    def __init__(self) -> None:
        self.calls: list[list[int]] = []
        self.called = asyncio.Semaphore(0)
        self.go = asyncio.Event()

    async def call(self, batch: Sequence[int]) -> Sequence[int]:
        self.calls.append(list(batch))
        self.called.release()
        await self.go.wait()
        return [-item for item in batch]


@pytest.mark.parametrize(
    ("calls", "expected"), [(1, [[0], [1, 2, 3, 4]]), (2, [[0], [1], [2, 3, 4]])], ids=["one", "two"]
)
def test_what_comes_while_all_calls_are_out_goes_together(calls: int, expected: list[list[int]]) -> None:
    async def story() -> None:
        port = _Port()
        batcher: Batcher[int, int] = Batcher(port.call, name="port", calls=calls)
        async with asyncio.timeout(WITHIN_S), asyncio.TaskGroup() as group:
            running = group.create_task(batcher.run())
            answers: list[asyncio.Task[int]] = []
            for number in range(5):
                answers.append(group.create_task(batcher.submit(number)))
                if number < calls:
                    await port.called.acquire()
            drained = group.create_task(batcher.drained())
            await asyncio.sleep(0)
            assert len(batcher) == len(answers) - calls
            assert not drained.done()
            port.go.set()
            assert [await answer for answer in answers] == [0, -1, -2, -3, -4]
            await drained
            running.cancel()
        assert port.calls == expected

    asyncio.run(story())
