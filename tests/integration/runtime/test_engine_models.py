"""Models in and out of the engine's process: loaded once, put away when idle or in the way, replaced, refused."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from pathlib import Path

import pytest
from structlog.testing import capture_logs
from tests.factories.engines import answer, chat, counted, fault, loaded, model, serving, settings, until
from tests.factories.loops import in_loop

from tokenweir.core.errors import (
    InputError,
    MissingExtraError,
    ModelNotLoadedError,
    NoMemoryError,
    TooManyStreamsError,
    UnavailableError,
)
from tokenweir.core.events import Failed
from tokenweir.core.requests import Message
from tokenweir.runtime.engine import Engine
from tokenweir.runtime.models.manifest import read_card
from tokenweir.runtime.options import RunOptions

MIB = 1 << 20


@in_loop
async def test_models_are_loaded_by_path_and_named_after_their_directory(tmp_path: Path) -> None:
    async with serving(settings()) as engine:
        card = await engine.load(str(model(tmp_path, "one")))
        named = await engine.load(str(model(tmp_path, "two")), name="other", context_tokens=100)
        assert (card.name, named.name, named.context_tokens) == ("one", "other", 100)
        assert card.revision == read_card(tmp_path / "one", "one").revision
        assert loaded(engine) == ["one", "other"]
        assert counted(await answer(engine, chat(to="other"))) == 10


@in_loop
async def test_many_who_ask_for_a_model_share_one_load(tmp_path: Path) -> None:
    path = model(tmp_path, faults=[fault("slow_load", duration="200ms")])
    async with serving(settings()) as engine:
        with capture_logs() as logs:
            async with asyncio.TaskGroup() as group:
                loads = [group.create_task(engine.load(str(path))) for _ in range(5)]
            assert len({load.result().revision for load in loads}) == 1
        assert [line["event"] for line in logs].count("model_loaded") == 1


@in_loop
async def test_whoever_gives_up_waiting_for_a_load_does_not_end_it_for_the_others(tmp_path: Path) -> None:
    path = model(tmp_path, faults=[fault("slow_load", duration="300ms")])
    async with serving(settings()) as engine, asyncio.TaskGroup() as group:
        first = group.create_task(engine.load(str(path)))
        await until(lambda: [one.state for one in engine.models()] == ["loading"], "it loads")
        second = group.create_task(answer(engine, chat()))
        first.cancel()
        assert counted(await second) == 10


@in_loop
async def test_a_model_that_nobody_asks_for_is_put_away_and_comes_back_when_asked(tmp_path: Path) -> None:
    async with serving(settings(model(tmp_path), idle_ttl="200ms")) as engine:
        async with aclosing(engine.generate(chat(tokens=250))) as stream:
            # It answers for longer than the time, and is not idle.
            assert counted([event async for event in stream]) == 250
        await until(lambda: [one.state for one in engine.models()] == ["unloaded"], "it is put away")
        assert counted(await answer(engine, chat())) == 10
        assert loaded(engine) == ["m"]


@in_loop
async def test_the_model_used_longest_ago_makes_room(tmp_path: Path) -> None:
    paths = [model(tmp_path, name, weights_bytes=20 * MIB) for name in ("one", "two", "three")]
    async with serving(settings(*paths[:2], memory_limit="50MiB", prefix_cache_bytes=0)) as engine:
        await answer(engine, chat(to="one"))
        await engine.load(str(paths[2]))
        assert loaded(engine) == ["one", "three"]
        assert [one.state for one in engine.models()] == ["loaded", "unloaded", "loaded"]
        assert counted(await answer(engine, chat(to="two"))) == 10
        assert loaded(engine) == ["two", "three"]


@in_loop
async def test_a_model_in_use_makes_no_room(tmp_path: Path) -> None:
    one, two = (model(tmp_path, name, weights_bytes=30 * MIB) for name in ("one", "two"))
    async with serving(settings(one, memory_limit="50MiB", prefix_cache_bytes=0)) as engine:
        async with aclosing(engine.generate(chat(to="one", tokens=300))) as stream:
            await anext(stream)
            with pytest.raises(
                UnavailableError, match=r"30\.00 MiB of weights \+ 30\.00 MiB of models in use"
            ):
                await engine.load(str(two))
        assert loaded(engine) == ["one"]
        await engine.load(str(two))
        assert loaded(engine) == ["two"]


@in_loop
async def test_what_can_never_fit_is_refused_before_it_is_loaded_and_the_rest_goes_on(tmp_path: Path) -> None:
    huge = model(tmp_path, "huge", weights_bytes=1 << 40)
    async with serving(settings(model(tmp_path))) as engine:
        with pytest.raises(
            NoMemoryError, match=r"'huge' does not fit into 64\.00 MiB: 1024\.00 GiB of weights"
        ):
            await engine.load(str(huge))
        with pytest.raises(ModelNotLoadedError):
            await answer(engine, chat(to="huge"))
        assert counted(await answer(engine, chat())) == 10


@in_loop
async def test_bad_directories_are_refused_and_the_server_stays_up(tmp_path: Path) -> None:
    refusing = model(tmp_path, "refusing", faults=[fault("load_memory")])
    odd = model(tmp_path, "odd", itl="never")
    (tmp_path / "empty").mkdir()
    async with serving(settings(model(tmp_path))) as engine:
        for path, kind in (
            (tmp_path / "absent", InputError),
            (tmp_path / "empty", InputError),
            (odd, InputError),
            (refusing, NoMemoryError),
        ):
            with pytest.raises(kind):
                await engine.load(str(path))
        assert [one.card.name for one in engine.models()] == ["m"]
        assert counted(await answer(engine, chat())) == 10
        assert engine.health().epoch == 1


@in_loop
async def test_a_server_whose_model_cannot_be_loaded_does_not_start(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        async with Engine(settings(tmp_path / "absent")):
            pass
    with pytest.raises(NoMemoryError, match="the simulated device refuses"):
        async with Engine(settings(model(tmp_path, faults=[fault("load_memory")]))):
            pass


@in_loop
async def test_unloading_fails_what_runs_as_retryable_and_forgets_the_model(tmp_path: Path) -> None:
    async with serving(settings(model(tmp_path), max_batch=1)) as engine:
        async with asyncio.TaskGroup() as group:
            running = group.create_task(answer(engine, chat(tokens=4000)))
            await until(lambda: engine.health().scheduler.running == 1, "it runs")
            waiting = group.create_task(_refused(engine))
            await until(lambda: engine.health().scheduler.waiting == 1, "the other waits")
            await engine.unload("m")
        last = running.result()[-1]
        assert isinstance(last, Failed)
        assert last.retryable
        assert isinstance(waiting.result(), ModelNotLoadedError)
        assert engine.models() == ()
        with pytest.raises(ModelNotLoadedError):
            await answer(engine, chat())
        with pytest.raises(ModelNotLoadedError):
            await engine.unload("m")
        await engine.load(str(tmp_path / "m"))
        assert counted(await answer(engine, chat())) == 10


async def _refused(engine: Engine) -> Exception:
    with pytest.raises(ModelNotLoadedError) as refused:
        await answer(engine, chat())
    return refused.value


@in_loop
async def test_unloading_what_is_still_loading_leaves_nothing_behind(tmp_path: Path) -> None:
    path = model(tmp_path, faults=[fault("slow_load", duration="200ms")])
    async with serving(settings()) as engine:
        async with asyncio.TaskGroup() as group:
            group.create_task(engine.load(str(path)))
            await until(lambda: [one.state for one in engine.models()] == ["loading"], "it loads")
            await engine.unload("m")
        assert engine.models() == ()
        await engine.load(str(path))
        assert counted(await answer(engine, chat())) == 10


@in_loop
async def test_a_model_of_the_same_name_replaces_the_other(tmp_path: Path) -> None:
    async with serving(settings(model(tmp_path))) as engine:
        await engine.load(str(model(tmp_path, "new", context_tokens=77)), name="m")
        (status,) = engine.models()
        assert (status.card.context_tokens, status.state) == (77, "loaded")
        await engine.load(str(tmp_path / "new"), name="m", context_tokens=50)
        assert engine.models()[0].card.context_tokens == 50
        assert counted(await answer(engine, chat())) == 10


@in_loop
async def test_fifty_rounds_of_loading_leave_no_trace(tmp_path: Path) -> None:
    path = model(tmp_path)
    async with serving(settings(path)) as engine:
        for _ in range(50):
            await engine.load(str(path))
            await engine.unload("m")
        health = engine.health()
        assert (health.streams, health.scheduler.admitted_bytes, health.models) == (0, 0, ())
        await engine.load(str(path))
        assert counted(await answer(engine, chat())) == 10


@in_loop
async def test_a_model_for_another_engine_is_refused_by_name(tmp_path: Path) -> None:
    try:
        async with Engine(settings(engine="mlx")) as engine:
            with pytest.raises(InputError, match="architecture 'sim', which the engine 'mlx' does not run"):
                await engine.load(str(model(tmp_path)))
    except MissingExtraError:
        pytest.skip("MLX is not installed")


@in_loop
async def test_simulated_models_choose_the_simulator_by_themselves(tmp_path: Path) -> None:
    async with Engine(settings(model(tmp_path), engine="auto")) as engine:
        assert engine.health().engine == "sim"


@in_loop
async def test_a_batch_waits_for_room_where_a_single_request_is_refused(tmp_path: Path) -> None:
    async with serving(settings(model(tmp_path), max_active_streams=1)) as engine:
        async with asyncio.TaskGroup() as group:
            first = group.create_task(answer(engine, chat(tokens=50)))
            await until(lambda: engine.health().streams == 1, "it is under way")
            batch = group.create_task(engine.generate_batch([(chat(tokens=3), RunOptions())] * 3))
            with pytest.raises(TooManyStreamsError):
                await answer(engine, chat())
        assert counted(first.result()) == 50
        assert [counted(events) for events in batch.result()] == [3, 3, 3]


@in_loop
async def test_two_processes_divide_the_memory(tmp_path: Path) -> None:
    reads = model(tmp_path, "reads", weights_bytes=10 * MIB, kv_bytes_per_token=MIB)
    sees = model(
        tmp_path,
        "sees",
        weights_bytes=20 * MIB,
        kv_bytes_per_token=MIB,
        capabilities=["chat", "completion", "vision"],
    )
    async with serving(settings(reads, memory_limit="100MiB", prefix_cache_bytes=0)) as engine:
        prompt = len(await engine.tokenize("reads", [Message(role="user", content="x")]))
        assert counted(await answer(engine, chat("x", to="reads", tokens=80 - prompt))) == 80 - prompt
        await engine.load(str(sees))
        with pytest.raises(NoMemoryError, match=r"does not fit into 45\.00 MiB"):
            await answer(engine, chat("x", to="reads", tokens=80 - prompt))
        with pytest.raises(NoMemoryError, match=r"does not fit into 55\.00 MiB"):
            await answer(engine, chat("x", to="sees", tokens=80 - prompt))
        await engine.unload("sees")
        assert counted(await answer(engine, chat("x", to="reads", tokens=80 - prompt))) == 80 - prompt
