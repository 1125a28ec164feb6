"""Engines over simulated models, in real processes of their own."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from tests.factories.sim_models import directory

from tokenweir.core.events import Event, Token
from tokenweir.core.requests import GenerateRequest, Json, Message, Sampling
from tokenweir.runtime.bridge.messages import Stepped
from tokenweir.runtime.engine import Engine
from tokenweir.runtime.options import RunOptions
from tokenweir.runtime.settings import Settings
from tokenweir.runtime.supervision.lifecycle import Ready

PLAIN = RunOptions()


def settings(*models: Path, **changes: object) -> Settings:
    """Return settings for the simulating engine, quick to notice and to restart."""
    plain: dict[str, object] = {
        "engine": "sim",
        "port": 0,
        "models": [{"path": str(model)} for model in models],
        "memory_limit": "64MiB",
        "prefix_cache_bytes": 1 << 20,
        "heartbeat": "50ms",
        "stall_timeout": "20s",
        "restart_delay": "20ms",
        "restart_delay_max": "100ms",
        "breaker_failures": 50,
    }
    return Settings.model_validate(plain | changes)


def model(tmp_path: Path, name: str = "m", **keys: Json) -> Path:
    """Write a simulated model that draws a token in 2 ms."""
    return directory(tmp_path / name, **{"ttft": "2ms", "itl": "2ms", **keys})


def chat(
    prompt: str = "tell me", *, to: str = "m", tokens: int = 10, n: int = 1, seed: int | None = None
) -> GenerateRequest:
    """Return a request whose answer is exactly ``tokens`` long."""
    sampling = Sampling(max_tokens=tokens, ignore_eos=True, n=n, seed=seed, temperature=0.0)
    return GenerateRequest(
        kind="chat", model=to, messages=(Message(role="user", content=prompt),), sampling=sampling
    )


@asynccontextmanager
async def serving(
    chosen: Settings, on_stepped: Callable[[Stepped], None] | None = None
) -> AsyncGenerator[Engine]:
    """Run an engine with its models loaded, each of which has made a token."""
    async with Engine(chosen, on_stepped=on_stepped) as engine:
        for one in engine.models():
            await answer(engine, chat(to=one.card.name, tokens=1))
        yield engine


def loaded(engine: Engine) -> list[str]:
    """Return the names of the models that are loaded."""
    return [one.card.name for one in engine.models() if one.state == "loaded"]


async def answer(engine: Engine, request: GenerateRequest, options: RunOptions = PLAIN) -> list[Event]:
    """Return all events of a request."""
    return [event async for event in engine.generate(request, options)]


def counted(events: Sequence[Event]) -> int:
    """Return the output tokens that the token events hold."""
    return sum(event.count or 0 for event in events if isinstance(event, Token))


def kinds(events: Sequence[Event]) -> list[str]:
    """Return the names of the events, repeated ones once."""
    names = [type(event).__name__ for event in events]
    return [name for at, name in enumerate(names) if at == 0 or names[at - 1] != name]


async def until(holds: Callable[[], bool], what: str, timeout_s: float = 20.0) -> None:
    """Wait until something of another process can be seen here, which no event announces."""
    try:
        async with asyncio.timeout(timeout_s):
            while not holds():  # noqa: ASYNC110 - what is waited for is another process's doing
                await asyncio.sleep(0.005)
    except TimeoutError:
        raise AssertionError(f"it never happened: {what}") from None


def pid(engine: Engine, device: str = "text") -> int:
    """Return the process of a device that is ready."""
    told = {one.name: one.lifecycle for one in engine.health().devices}
    life = told[device]
    assert isinstance(life, Ready), life
    return life.pid


def kill(engine: Engine, device: str = "text", number: signal.Signals = signal.SIGKILL) -> None:
    """Send a signal to the process of a device that is ready."""
    os.kill(pid(engine, device), number)


def fault(kind: str, when: str = "", **keys: Json) -> dict[str, Json]:
    """Return something that goes wrong, for a model's ``faults``."""
    return {"kind": kind, "when": when, **keys}
