"""Streams through the engine's facade and a real child process: order, credit, limits, cancelling, drains."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from pathlib import Path

import msgspec
import pytest
from tests.factories.engines import answer, chat, counted, kinds, model, serving, settings, until
from tests.factories.loops import in_loop

from tokenweir.core.errors import (
    DeadlineError,
    DrainingError,
    ModelNotLoadedError,
    NoMemoryError,
    ParameterError,
    TooManyStreamsError,
)
from tokenweir.core.events import Accepted, Completed, Failed, Queued, Token, Usage, text
from tokenweir.core.requests import GenerateRequest, Message, Sampling
from tokenweir.runtime.bridge.messages import Stepped
from tokenweir.runtime.options import RunOptions

MS = 1_000_000


@in_loop
async def test_an_answer_comes_as_events_in_order(tmp_path: Path) -> None:
    path = model(tmp_path, replies=[{"when": "two and two", "text": "It is four."}])
    async with serving(settings(path)) as engine:
        request = GenerateRequest(
            kind="chat",
            model="m",
            messages=(Message(role="user", content="two and two"),),
            sampling=Sampling(max_tokens=50),
        )
        events = await answer(engine, request)
        assert kinds(events) == ["Accepted", "Started", "Token", "Usage", "Completed"]
        assert [event.seq for event in events] == list(range(len(events)))
        assert text(events) == "It is four."
        accepted, usage = events[0], events[-2]
        assert isinstance(accepted, Accepted)
        assert accepted.request_id.startswith("req_")
        assert isinstance(usage, Usage)
        assert usage.output_tokens == counted(events)


@in_loop
async def test_two_hundred_streams_at_once_all_end_with_what_they_asked_for(tmp_path: Path) -> None:
    async with serving(settings(model(tmp_path, kv_bytes_per_token=16), max_batch=200)) as engine:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(answer(engine, chat(f"number {n}", tokens=20))) for n in range(200)]
        for task in tasks:
            events = task.result()
            assert isinstance(events[-1], Completed)
            assert counted(events) == 20
            assert [event.seq for event in events] == list(range(len(events)))
        health = engine.health()
        assert (health.streams, health.scheduler.running, health.scheduler.waiting) == (0, 0, 0)
        assert health.scheduler.admitted_bytes == 0


@in_loop
async def test_the_observer_sees_every_step(tmp_path: Path) -> None:
    steps: list[Stepped] = []
    async with serving(settings(model(tmp_path)), steps.append) as engine:
        assert engine.models()[0].answered
        before = sum(step.decoded for step in steps)
        await answer(engine, chat(tokens=12))
        assert sum(step.decoded for step in steps) - before == 12


@in_loop
async def test_a_slow_reader_is_held_and_slows_nobody(tmp_path: Path) -> None:
    path = model(tmp_path, kv_bytes_per_token=16)
    async with serving(settings(path, stream_tokens=8)) as engine:
        async with aclosing(engine.generate(chat("slow", tokens=300))) as slow:
            first = [await anext(slow) for _ in range(3)]
            async with asyncio.TaskGroup() as group:
                others = [group.create_task(answer(engine, chat(f"{n}", tokens=100))) for n in range(8)]
            assert all(counted(task.result()) == 100 for task in others)
            # The slow one was sent its window and no more: its reader has taken one token of the first eight.
            (stream,) = engine._devices["text"].streams  # pyright: ignore[reportPrivateUsage]
            waiting = [event async for event in slow]
            assert stream.window == 8
        events = [*first, *waiting]
        assert counted(events) == 300
        assert isinstance(events[-1], Completed)
        assert [event.seq for event in events] == list(range(len(events)))


@in_loop
async def test_what_waits_for_a_reader_is_bounded_by_its_credit(tmp_path: Path) -> None:
    path = model(tmp_path, kv_bytes_per_token=16, itl="0s", ttft="0s")
    steps: list[Stepped] = []
    async with serving(settings(path, stream_tokens=8), steps.append) as engine:
        before = sum(step.decoded for step in steps)
        async with aclosing(engine.generate(chat("slow", tokens=300))) as slow:
            await anext(slow)
            # Others that run after it prove that the device had time for it.
            for n in range(3):
                await answer(engine, chat(f"{n}", tokens=50))
            taken = sum(step.decoded for step in steps) - before - 150
            assert taken <= 8 + 1


@in_loop
async def test_a_reader_that_goes_frees_its_place(tmp_path: Path) -> None:
    async with serving(settings(model(tmp_path), max_batch=1)) as engine:
        async with (
            asyncio.TaskGroup() as group,
            aclosing(engine.generate(chat("endless", tokens=4000))) as stream,
        ):
            async for event in stream:
                if isinstance(event, Token):
                    break
            waiting = group.create_task(answer(engine, chat("next", tokens=3)))
            await until(lambda: engine.health().scheduler.oldest_wait_ns > 50 * MS, "the second waits")
        events = waiting.result()
        usage = events[-2]
        assert isinstance(usage, Usage)
        # The time in line counts, which the process that decodes does not know of.
        assert 50 * MS < usage.timings_ns["queue_time"] < usage.timings_ns["ttft"] < usage.timings_ns["e2el"]
        assert kinds(events) == ["Accepted", "Queued", "Started", "Token", "Usage", "Completed"]
        assert isinstance(events[1], Queued)
        assert [event.seq for event in events] == list(range(len(events)))
        device = engine._devices["text"].supervisor  # pyright: ignore[reportPrivateUsage]
        await until(lambda: device.pulse is not None and device.pulse.streams == 0, "the child forgets both")
        assert engine.health().streams == 0


@in_loop
async def test_a_reader_that_goes_while_it_waits_leaves_no_trace(tmp_path: Path) -> None:
    async with (
        serving(settings(model(tmp_path), max_batch=1)) as engine,
        aclosing(engine.generate(chat("endless", tokens=4000))) as running,
    ):
        await anext(running)
        async with aclosing(engine.generate(chat("waits"))) as waiting:
            assert isinstance(await anext(waiting), Accepted)
            assert isinstance(await anext(waiting), Queued)
        assert engine.health().scheduler.waiting == 0
        assert engine.health().streams == 1


@in_loop
async def test_a_request_ends_when_its_time_is_over(tmp_path: Path) -> None:
    async with serving(settings(model(tmp_path))) as engine:
        events = await answer(engine, chat(tokens=4000), RunOptions(timeout_ns=600 * MS))
        last = events[-1]
        assert isinstance(last, Failed)
        assert (last.kind, last.status, last.retryable) == ("timeout", 504, True)
        assert 0 < counted(events) < 400
        assert [event.seq for event in events] == list(range(len(events)))
        assert engine.health().scheduler.running == 0


@in_loop
async def test_a_request_whose_time_is_over_while_it_waits_is_refused(tmp_path: Path) -> None:
    async with (
        serving(settings(model(tmp_path), max_batch=1)) as engine,
        aclosing(engine.generate(chat("endless", tokens=4000))) as running,
    ):
        await anext(running)
        with pytest.raises(DeadlineError):
            await answer(engine, chat("late"), RunOptions(timeout_ns=100 * MS))
        assert engine.health().scheduler.waiting == 0


@in_loop
async def test_a_time_for_all_requests_comes_from_the_settings(tmp_path: Path) -> None:
    async with serving(settings(model(tmp_path), request_timeout="600ms")) as engine:
        last = (await answer(engine, chat(tokens=4000)))[-1]
        assert isinstance(last, Failed)
        assert "within 600ms" in last.message


@in_loop
async def test_more_streams_than_may_be_are_refused_at_once(tmp_path: Path) -> None:
    async with serving(settings(model(tmp_path), max_active_streams=2, max_batch=1)) as engine:
        async with (
            aclosing(engine.generate(chat(tokens=4000))) as one,
            aclosing(engine.generate(chat(tokens=4000))) as two,
        ):
            await anext(one)
            await anext(two)
            with pytest.raises(TooManyStreamsError) as refused:
                await answer(engine, chat())
            assert refused.value.http_status == 429
            assert refused.value.retry_after_ns
        assert counted(await answer(engine, chat())) == 10


@in_loop
async def test_a_batch_comes_back_in_the_order_asked_also_where_some_are_refused(tmp_path: Path) -> None:
    async with serving(settings(model(tmp_path), max_active_streams=4, max_batch=2)) as engine:
        requests = [(chat(f"item {n}", tokens=1 + n % 7), RunOptions()) for n in range(30)]
        requests[5] = (chat(to="nobody"), RunOptions())
        requests[11] = (chat(tokens=100_000), RunOptions())
        requests[17] = (GenerateRequest(kind="embedding", model="m", inputs=("x",)), RunOptions())
        results = await engine.generate_batch(requests)
        assert len(results) == 30
        for n, events in enumerate(results):
            if n in {5, 11}:
                (failed,) = events
                assert isinstance(failed, Failed)
                assert failed.kind == ("model_not_loaded" if n == 5 else "bad_parameter")
            else:
                assert isinstance(events[-1], Completed)
                assert counted(events) == (0 if n == 17 else 1 + n % 7)
                assert len(events[-1].embeddings) == (n == 17)
                assert [event.seq for event in events] == list(range(len(events)))


@in_loop
async def test_what_can_never_fit_is_refused_with_the_arithmetic(tmp_path: Path) -> None:
    path = model(tmp_path, kv_bytes_per_token=1 << 20)
    async with serving(settings(path, memory_limit="32MiB", prefix_cache_bytes=0)) as engine:
        with pytest.raises(NoMemoryError, match=r"does not fit into 32\.00 MiB.*answer tokens"):
            await answer(engine, chat(tokens=1000))
        assert counted(await answer(engine, chat(tokens=5))) == 5


@in_loop
async def test_requests_that_do_not_fit_together_take_turns(tmp_path: Path) -> None:
    path = model(tmp_path, kv_bytes_per_token=1 << 20)
    async with serving(settings(path, memory_limit="40MiB", prefix_cache_bytes=0)) as engine:
        most = 0

        async def watched(n: int) -> int:
            nonlocal most
            count = 0
            async with aclosing(engine.generate(chat(f"{n}", tokens=6))) as events:
                async for event in events:
                    most = max(most, engine.health().scheduler.admitted_bytes)
                    count += isinstance(event, Token)
            return count

        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(watched(n)) for n in range(6)]
        assert [task.result() for task in tasks] == [6] * 6
        assert 0 < most <= 40 << 20


@in_loop
async def test_draining_lets_what_runs_finish_and_takes_nothing_new(tmp_path: Path) -> None:
    async with serving(settings(model(tmp_path))) as engine, asyncio.TaskGroup() as group:
        running = group.create_task(answer(engine, chat(tokens=100)))
        await until(lambda: engine.health().scheduler.running > 0, "it runs")
        drain = group.create_task(engine.drain(20_000 * MS))
        await until(lambda: engine.health().scheduler.state == "draining", "the drain begins")
        with pytest.raises(DrainingError):
            await answer(engine, chat())
        with pytest.raises(DrainingError):
            await engine.tokenize("m", "x")
        await drain
        assert counted(running.result()) == 100


@in_loop
async def test_a_drain_that_is_out_of_time_fails_the_rest_as_retryable(tmp_path: Path) -> None:
    async with serving(settings(model(tmp_path))) as engine, asyncio.TaskGroup() as group:
        running = group.create_task(answer(engine, chat(tokens=4000)))
        await until(lambda: engine.health().scheduler.running > 0, "it runs")
        await engine.drain(50 * MS)
        last = (await running)[-1]
        assert isinstance(last, Failed)
        assert (last.kind, last.retryable) == ("draining", True)


@in_loop
async def test_closing_ends_what_runs(tmp_path: Path) -> None:
    async with asyncio.TaskGroup() as group:
        async with serving(settings(model(tmp_path))) as engine:
            running = group.create_task(answer(engine, chat(tokens=4000)))
            await until(lambda: engine.health().scheduler.running > 0, "it runs")
        last = (await running)[-1]
        assert isinstance(last, Failed)
        assert last.retryable


@in_loop
async def test_tokens_vectors_and_embeddings_as_events(tmp_path: Path) -> None:
    async with serving(settings(model(tmp_path))) as engine:
        tokens = await engine.tokenize("m", "a reed")
        assert await engine.detokenize("m", tokens[1:]) == "a reed"
        turns = await engine.tokenize("m", [Message(role="user", content="a reed")])
        assert len(turns) > len(tokens) - 1
        embedded = await engine.embed("m", ["one", "two words"])
        assert len(embedded.vectors) == 2
        request = GenerateRequest(kind="embedding", model="m", inputs=("one", "two words"))
        events = await answer(engine, request)
        last = events[-1]
        assert isinstance(last, Completed)
        assert last.embeddings == embedded.vectors
        with pytest.raises(ParameterError):
            await engine.embed("m", [])


@in_loop
async def test_what_the_child_refuses_is_raised_before_any_event(tmp_path: Path) -> None:
    async with serving(settings(model(tmp_path, context_tokens=64))) as engine:
        with pytest.raises(ParameterError):
            await anext(engine.generate(chat("word " * 200)))
        with pytest.raises(ModelNotLoadedError, match="'x'; known models: 'm'"):
            await anext(engine.generate(chat(to="x")))
        assert engine.health().streams == 0


@in_loop
async def test_several_choices_share_one_stream_and_its_credit(tmp_path: Path) -> None:
    async with serving(settings(model(tmp_path), stream_tokens=8)) as engine:
        events = await answer(engine, chat(tokens=30, n=4))
        assert counted(events) == 120
        assert {event.index for event in events if isinstance(event, Token)} == {0, 1, 2, 3}
        assert isinstance(events[-1], Completed)


@in_loop
async def test_an_answer_without_a_length_has_the_default_one(tmp_path: Path) -> None:
    first = model(tmp_path, "m")
    own = {"path": str(model(tmp_path, "own")), "default_max_tokens": 7}
    whole = {"path": str(model(tmp_path, "whole", context_tokens=96)), "default_max_tokens": 0}
    models = [{"path": str(first)}, own, whole]
    async with serving(settings(models=models, default_max_tokens=40)) as engine:
        for name, most in (("m", 40), ("own", 7), ("whole", None)):
            asked = chat("tell me", to=name)
            sampling = msgspec.structs.replace(asked.sampling, max_tokens=None)
            events = await answer(engine, msgspec.structs.replace(asked, sampling=sampling))
            usage = events[-2]
            assert isinstance(usage, Usage)
            assert counted(events) == (most or 96 - (usage.input_tokens or 0))
