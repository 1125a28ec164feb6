"""Appends go in turns: together, in order, and whoever waits for one hears what became of it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest

from tokenweir.core.errors import UnavailableError
from tokenweir.core.events import Event, Token
from tokenweir.gateway.queued.writing import Writing
from tokenweir.ports.eventlog import Append

PATIENCE_S = 10.0


class Log:
    """An event log that keeps each append apart, held up while ``may`` is not set; it fails once with ``error``."""

    def __init__(self) -> None:
        self.turns: list[list[str]] = []
        self.may = asyncio.Event()
        self.may.set()
        self.begun = asyncio.Event()
        self.error: Exception | None = None

    async def append(self, batch: Sequence[Append]) -> None:
        """Note what goes together."""
        batch = list(batch)
        self.begun.set()
        await self.may.wait()
        error, self.error = self.error, None
        if error is not None:
            raise error
        self.turns.append([event.text for each in batch for event in each.events if isinstance(event, Token)])

    async def read(self, request: bytes, lane: int, *, after: int = -1) -> Sequence[Event]:
        """Hold nothing."""
        del request, lane, after
        return ()

    async def follow(self, request: bytes, lane: int, *, after: int = -1) -> AsyncGenerator[Sequence[Event]]:
        """Hold nothing."""
        del request, lane, after
        return
        yield ()

    async def forget(self, requests: Sequence[tuple[bytes, int]]) -> None:
        """Hold nothing."""


def told(text: str) -> Append:
    return Append(request=b"r" * 16, lane=0, attempt=1, events=(Token(seq=0, text=text),))


@asynccontextmanager
async def writing(apart_s: float = 0.0) -> AsyncGenerator[tuple[Writing, Log]]:
    log = Log()
    made = Writing(log, apart_s=apart_s)
    async with asyncio.timeout(PATIENCE_S), asyncio.TaskGroup() as group:
        running = group.create_task(made.run())
        yield made, log
        running.cancel()


def tell(story: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(story())


def test_what_two_streams_bring_again_and_again_goes_together() -> None:
    async def story() -> None:
        async with writing(apart_s=0.001) as (made, log):

            async def stream(name: str) -> None:
                for number in range(5):
                    await made.pour(told(f"{name}{number}"))
                await made.write(told(f"{name} end"))

            async with asyncio.TaskGroup() as group:
                group.create_task(stream("a"))
                group.create_task(stream("b"))
        assert [set(turn) for turn in log.turns] == [
            *({f"a{number}", f"b{number}"} for number in range(5)),
            {"a end", "b end"},
        ]

    tell(story)


def test_what_gathers_while_the_log_is_away_waits_and_is_written_in_order() -> None:
    async def story() -> None:
        async with writing() as (made, log):
            log.error = UnavailableError("away")
            log.may.clear()
            async with asyncio.TaskGroup() as group:
                first = group.create_task(made.pour(told("first")))
                await log.begun.wait()
                second = group.create_task(made.write(told("second")))
                third = group.create_task(made.write(told("third")))
                await asyncio.sleep(0)
                # Who gives up takes nothing of the others with him, and what he brought is on its way.
                third.cancel()
                assert not first.done()
                log.may.set()
            assert second.done()
            assert log.turns == [["first"], ["second", "third"]]

    tell(story)


def test_a_failure_is_told_to_all_of_its_turn_alone() -> None:
    async def story() -> None:
        async with writing() as (made, log):
            log.error = ValueError("odd")
            results = [asyncio.ensure_future(each) for each in (made.write(told("a")), made.pour(told("b")))]
            await asyncio.wait(results)
            for each in results:
                with pytest.raises(ValueError, match="odd"):
                    each.result()
            await made.write(told("c"))
            assert log.turns == [["c"]]

    tell(story)
