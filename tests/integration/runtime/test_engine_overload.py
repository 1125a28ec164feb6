"""Tokens that come too slowly: load is taken away step by step, told, and given back."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from contextlib import aclosing
from pathlib import Path

import pytest
from tests.factories.engines import answer, chat, counted, model, serving, settings, until
from tests.factories.loops import in_loop

from tokenweir.core.errors import UnavailableError
from tokenweir.core.events import Token
from tokenweir.runtime.options import RunOptions


@in_loop
async def test_background_work_goes_first_then_new_requests_and_all_come_back(tmp_path: Path) -> None:
    slow = model(tmp_path, itl="20ms")
    seen = 0

    async with serving(settings(slow, itl_target="4ms", max_batch=2)) as engine:

        def step() -> int:
            return engine.health().scheduler.step

        async def reads() -> None:
            nonlocal seen
            async with aclosing(engine.generate(chat(tokens=4000))) as events:
                async for event in events:
                    if isinstance(event, Token):
                        seen += 1

        async with asyncio.TaskGroup() as group:
            readers = [group.create_task(reads()) for _ in range(2)]
            await until(lambda: seen > 2, "both answers come")
            waiting = group.create_task(_refusal(answer(engine, chat(), RunOptions(priority="background"))))
            await until(lambda: engine.health().scheduler.waiting == 1, "one waits")
            shed = await waiting
            assert step() >= 2
            assert "takes no background requests now" in str(shed)
            assert shed.retry_after_ns
            await until(lambda: step() == 3, "new requests are refused")
            told = engine.health().scheduler
            assert told.state == "degraded"
            assert "ITL" in told.reason
            refused = await _refusal(answer(engine, chat()))
            assert refused.retry_after_ns
            before = seen
            await until(lambda: seen > before + 4, "what runs goes on")
            for reader in readers:
                reader.cancel()
        await until(lambda: step() < 3, "load is given back")
        assert counted(await answer(engine, chat())) == 10


async def _refusal(request: Awaitable[object]) -> UnavailableError:
    with pytest.raises(UnavailableError) as caught:
        await request
    return caught.value
