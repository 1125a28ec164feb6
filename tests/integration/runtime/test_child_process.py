"""The engine's process as the server starts it: a real process, its end of a real socket."""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from tests.factories.loops import in_loop
from tests.factories.sim_models import card, directory

from tokenweir.core.errors import ModelNotLoadedError, ParameterError, WeirError
from tokenweir.core.events import Cancelled, Completed, Event, Failed, Started, Token, text
from tokenweir.core.requests import GenerateRequest, Json, Message, Sampling, Tool
from tokenweir.ports.inference import Guidance, LoadSpec, ModelCard
from tokenweir.runtime.bridge.client import BridgeClient
from tokenweir.runtime.bridge.messages import (
    Cancel,
    Credit,
    Done,
    Embed,
    Embedded,
    Initialize,
    Initialized,
    Load,
    Ping,
    Pong,
    Prepare,
    Prepared,
    Shutdown,
    Start,
    Stepped,
)
from tokenweir.runtime.options import RunOptions

S = 1_000_000_000
WAIT_S = 20
HEAVY = (
    "asyncio",
    "click",
    "jinja2",
    "llguidance",
    "mlx",
    "numpy",
    "outlines",
    "pydantic",
    "structlog",
    "tokenizers",
)


class Child:
    """A running process with a model, and the events that it sent."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self.process = process
        self.client: BridgeClient
        self.lost: asyncio.Future[WeirError | None] = asyncio.get_running_loop().create_future()
        self.steps: list[Stepped] = []
        self._events: dict[int, list[Event]] = {}
        self._more = asyncio.Event()

    def stepped(self, told: Stepped) -> None:
        self.steps.append(told)
        for part in told.streams:
            self._events.setdefault(part.stream, []).extend(part.events)
        self._more.set()

    async def load(self, path: Path) -> ModelCard:
        call = Load(spec=LoadSpec(name="m", path=str(path)), card=card(path))
        return await self.client.call(call, ModelCard, timeout_ns=20 * S)

    async def start(
        self,
        stream: int,
        prompt: str,
        *,
        window: int = 1 << 20,
        options: RunOptions | None = None,
        **keys: object,
    ) -> Prepared:
        request = GenerateRequest(
            kind="chat",
            model="m",
            messages=(Message(role="user", content=prompt),),
            **keys,  # pyright: ignore[reportArgumentType]
        )
        call = Prepare(stream=stream, model="m", request=request, options=options or RunOptions())
        prepared = await self.client.call(call, Prepared, timeout_ns=20 * S)
        self.client.notify(Start(stream=stream, first_seq=1, credits=window))
        return prepared

    async def events(self, stream: int, *, until: type[Event] = Completed) -> list[Event]:
        while True:
            found = self._events.setdefault(stream, [])
            if any(isinstance(event, (until, Completed, Failed, Cancelled)) for event in found):
                return found
            self._more.clear()
            await self._more.wait()

    async def answer(self, stream: int, prompt: str, **keys: object) -> list[Event]:
        await self.start(stream, prompt, **keys)  # pyright: ignore[reportArgumentType]
        return await self.events(stream)


def spawn(at: Path) -> tuple[subprocess.Popen[bytes], socket.socket]:
    """Start a process; return it and our end of its bridge."""
    ours, theirs = socket.socketpair()
    with theirs, (at / "stderr").open("wb") as stderr:
        process = subprocess.Popen(
            [sys.executable, "-m", "tokenweir.runtime.child", "--fd", str(theirs.fileno())],
            pass_fds=(theirs.fileno(),),
            stdin=subprocess.DEVNULL,
            stderr=stderr,
        )
    return process, ours


@asynccontextmanager
async def child(at: Path, **keys: Json) -> AsyncGenerator[Child]:
    """Start a process, greet it, and load a model into it."""
    process, ours = spawn(at)
    one = Child(process)
    one.client = await BridgeClient.connect(ours, one.stepped, one.lost.set_result)
    try:
        greeting = Initialize(
            protocol=1,
            engine="sim",
            epoch=7,
            limit_bytes=0,
            prefix_cache_bytes=1 << 20,
            max_active_streams=64,
        )
        told = await one.client.call(greeting, Initialized, timeout_ns=20 * S)
        assert (told.pid, told.engine) == (process.pid, "sim")
        await one.load(directory(at / "m", **keys))
        yield one
    finally:
        one.client.close()
        process.kill()
        await asyncio.to_thread(process.wait, WAIT_S)


@in_loop
async def answers_and_ends_when_told(at: Path) -> None:
    async with child(at, output_tokens="constant:12") as one:
        events = await one.answer(1, "hello", sampling=Sampling(temperature=0.0))
        assert [event.seq for event in events] == list(range(1, 16))
        assert len([event for event in events if isinstance(event, Token)]) == 12
        pong = await one.client.call(Ping(), Pong, timeout_ns=20 * S)
        assert (pong.epoch, pong.streams) == (7, 0)
        assert pong.rss_bytes > 1 << 20
        found = await one.client.call(Embed(model="m", inputs=("a lake",)), Embedded, timeout_ns=20 * S)
        assert len(found.vectors) == 1
        await one.client.call(Shutdown(), Done, timeout_ns=20 * S)
        assert await asyncio.to_thread(one.process.wait, WAIT_S) == 0
        await one.lost


def test_it_answers_and_ends_when_told(tmp_path: Path) -> None:
    answers_and_ends_when_told(tmp_path)
    assert (tmp_path / "stderr").read_bytes() == b""


@in_loop
async def test_many_streams_share_steps_and_a_slow_reader_holds_none_but_its_own(tmp_path: Path) -> None:
    async with child(tmp_path, output_tokens="constant:40", itl="1ms") as one:
        greedy = Sampling(temperature=0.0)
        await one.start(0, "slow", window=4, sampling=greedy)
        for stream in range(1, 17):
            await one.start(stream, f"question {stream}", sampling=greedy)
        for stream in range(1, 17):
            assert isinstance((await one.events(stream))[-1], Completed)
        slow = await one.events(0, until=Started)
        assert sum(event.count or 0 for event in slow if isinstance(event, Token)) == 4
        one.client.notify(Credit(stream=0, tokens=100))
        assert isinstance((await one.events(0))[-1], Completed)
        alone = await one.answer(50, "slow", sampling=greedy)
        assert text(alone) == text(await one.events(0))
        assert max(len(step.streams) for step in one.steps) > 8


@in_loop
async def test_tools_and_schemas_come_out_in_openais_terms(tmp_path: Path) -> None:
    weather = Tool(
        name="get_weather",
        parameters={
            "type": "object",
            "properties": {"city": {"type": "string", "maxLength": 10}},
            "required": ["city"],
            "additionalProperties": False,
        },
    )
    async with child(tmp_path) as one:
        auto = await one.answer(1, "please get_weather", tools=(weather,))
        forced = await one.answer(2, "hello", tools=(weather, Tool(name="other")), tool_choice="required")
        for events in (auto, forced):
            assert text(events) == ""
            last = events[-1]
            assert isinstance(last, Completed)
            assert last.finish_reason == "tool_calls"
            calls = [call for event in events if isinstance(event, Token) for call in event.tool_calls]
            assert calls[0].id
            assert calls[0].name in {"get_weather", "other"}
        guided = await one.answer(
            3, "hello", options=RunOptions(guidance=Guidance(kind="choice", value='["rain","sun"]'))
        )
        assert text(guided) in {"rain", "sun"}
        with pytest.raises(WeirError, match="cannot guide"):
            await one.start(4, "x", options=RunOptions(guidance=Guidance(kind="regex", value="(")))


@in_loop
async def test_what_is_refused_keeps_its_class_across_the_bridge(tmp_path: Path) -> None:
    async with child(tmp_path) as one:
        with pytest.raises(ParameterError, match="max_tokens to"):
            await one.start(1, "x", sampling=Sampling(max_tokens=100_000))
        afar: tuple[dict[str, Json], ...] = (
            {"type": "image_url", "image_url": {"url": "http://example.com/cat.png"}},
        )
        request = GenerateRequest(kind="chat", model="m", messages=(Message(role="user", content=afar),))
        with pytest.raises(ParameterError, match="nothing is fetched"):
            await one.client.call(Prepare(stream=2, model="m", request=request), Prepared, timeout_ns=20 * S)
        with pytest.raises(ModelNotLoadedError):
            await one.client.call(Prepare(stream=3, model="n", request=request), Prepared, timeout_ns=20 * S)
        assert isinstance((await one.answer(4, "x"))[-1], Completed)


@in_loop
async def test_a_cancelled_stream_says_so(tmp_path: Path) -> None:
    async with child(tmp_path, itl="1ms", output_tokens="constant:4000") as one:
        await one.start(1, "x")
        await one.events(1, until=Token)
        one.client.notify(Cancel(stream=1))
        events = await one.events(1)
        assert isinstance(events[-1], Cancelled)
        assert [event.seq for event in events] == list(range(1, len(events) + 1))


@pytest.mark.parametrize(("kind", "status"), [("kill", -9), ("abort", -6)])
@in_loop
async def test_a_crash_ends_the_process_as_the_fault_says(tmp_path: Path, kind: str, status: int) -> None:
    async with child(tmp_path, faults=[{"kind": kind, "when": "now", "after_tokens": 2}]) as one:
        await one.start(1, "crash now")
        await one.lost
        assert await asyncio.to_thread(one.process.wait, WAIT_S) == status


@in_loop
async def test_it_ends_when_the_server_is_gone_even_in_the_middle_of_a_step(tmp_path: Path) -> None:
    async with child(tmp_path, faults=[{"kind": "stall", "duration": "60s", "after_tokens": 1}]) as one:
        await one.start(1, "x")
        await one.events(1, until=Token)
        one.client.close()
        assert await asyncio.to_thread(one.process.wait, WAIT_S) == 0


def test_a_descriptor_that_is_no_socket_is_refused(tmp_path: Path) -> None:
    with (tmp_path / "file").open("wb") as file:
        done = subprocess.run(
            [sys.executable, "-m", "tokenweir.runtime.child", "--fd", str(file.fileno())],
            pass_fds=(file.fileno(),),
            capture_output=True,
            text=True,
            timeout=WAIT_S,
            check=False,
        )
    assert done.returncode == 2
    assert "is no socket" in done.stderr


def test_it_imports_no_framework_until_it_is_told_which() -> None:
    code = f"import sys, tokenweir.runtime.child.__main__; print([n for n in {HEAVY!r} if n in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=WAIT_S, check=True
    )
    assert done.stdout.strip() == "[]"
