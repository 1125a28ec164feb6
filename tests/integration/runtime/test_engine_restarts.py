"""What the facade makes of an engine's process that dies, hangs, grows, or does not come up."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from contextlib import aclosing
from pathlib import Path

import pytest
from structlog.testing import capture_logs
from tests.factories.engines import (
    answer,
    chat,
    counted,
    fault,
    kill,
    kinds,
    loaded,
    model,
    pid,
    serving,
    settings,
    until,
)
from tests.factories.loops import in_loop

from tokenweir.core.breaker import Closed, HalfOpen, Open
from tokenweir.core.errors import EngineError, EngineRestartedError, UnavailableError
from tokenweir.core.events import Completed, Event, Failed, Queued, Token, text
from tokenweir.runtime.engine import Engine
from tokenweir.runtime.supervision.lifecycle import Broken, Ready

RECOVERY_S = 3.0
ROOT = Path(__file__).parents[3]


@in_loop
async def test_a_kill_under_a_stream_fails_it_as_retryable_and_everything_comes_back(tmp_path: Path) -> None:
    one, two = model(tmp_path, "one"), model(tmp_path, "two", weights_bytes=10 << 20)
    async with serving(settings(one, two)) as engine:
        before = await answer(engine, chat("again", to="two"))
        events: list[Event] = []
        async for event in engine.generate(chat(to="one", tokens=4000)):
            events.append(event)
            if isinstance(event, Token) and counted(events) == 5:
                kill(engine)
        last = events[-1]
        assert isinstance(last, Failed)
        assert (last.kind, last.status, last.retryable) == ("engine_restarted", 503, True)
        assert "SIGKILL" in last.message
        assert counted(events) >= 5
        assert [event.seq for event in events] == list(range(len(events)))

        killed_at = time.monotonic()
        after = await answer(engine, chat("again", to="two"))
        assert time.monotonic() - killed_at < RECOVERY_S
        assert text(after) == text(before)
        await until(lambda: loaded(engine) == ["one", "two"], "both models are loaded again")
        health = engine.health()
        assert isinstance(health.lifecycle, Ready)
        assert (health.epoch, health.restarts) == (2, 1)
        assert [one.answered for one in health.models] == [False, True]


@in_loop
async def test_what_waited_when_the_process_died_is_answered_by_the_next(tmp_path: Path) -> None:
    async with serving(settings(model(tmp_path), max_batch=1)) as engine, asyncio.TaskGroup() as group:
        running = group.create_task(answer(engine, chat("first", tokens=4000)))
        await until(lambda: engine.health().scheduler.running == 1, "the first runs")
        done: list[int] = []
        waiting = [group.create_task(answer(engine, chat(f"{n}", tokens=4))) for n in range(6)]
        for n, task in enumerate(waiting):
            task.add_done_callback(lambda _, n=n: done.append(n))
        await until(lambda: engine.health().scheduler.waiting == 6, "the others wait")
        kill(engine)
        assert isinstance((await running)[-1], Failed)
        for task in waiting:
            events = await task
            assert isinstance(events[1], Queued)
            assert isinstance(events[-1], Completed)
            assert counted(events) == 4
            assert [event.seq for event in events] == list(range(len(events)))
        assert done == list(range(6)), "they keep the order in which they stood"


@in_loop
async def test_requests_that_come_while_there_is_no_process_wait_for_the_next(tmp_path: Path) -> None:
    async with serving(settings(model(tmp_path), restart_delay="300ms", restart_delay_max="300ms")) as engine:
        kill(engine)
        await until(lambda: not isinstance(engine.health().lifecycle, Ready), "it is gone")
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(answer(engine, chat(f"{n}"))) for n in range(20)]
        assert all(counted(task.result()) == 10 for task in tasks)


@in_loop
async def test_they_do_not_wait_for_longer_than_they_may(tmp_path: Path) -> None:
    chosen = settings(model(tmp_path), restart_delay="20s", restart_delay_max="20s", restart_wait="100ms")
    async with serving(chosen) as engine:
        kill(engine)
        await until(lambda: not isinstance(engine.health().lifecycle, Ready), "it is gone")
        with pytest.raises(
            UnavailableError, match=r"not ready within 100ms: it restarts because .*SIGKILL"
        ) as refused:
            await answer(engine, chat())
        assert refused.value.http_status == 503
        assert refused.value.retry_after_ns is not None
        assert refused.value.retry_after_ns > 10_000_000_000


@in_loop
async def test_a_crash_loop_opens_the_breaker_and_a_trial_that_holds_closes_it(tmp_path: Path) -> None:
    path = model(tmp_path, faults=[fault("kill", "crash now")])
    chosen = settings(path, breaker_failures=3, breaker_open="600ms", breaker_window="60s", restart_wait="5s")
    async with serving(chosen) as engine:
        for _ in range(3):
            last = (await answer(engine, chat("crash now")))[-1]
            assert isinstance(last, Failed)
            assert last.retryable
        health = engine.health()
        assert isinstance(health.lifecycle, Broken)
        assert isinstance(health.breaker, Open)
        with pytest.raises(
            UnavailableError, match="lost too often; the last time: it was ended by SIGKILL"
        ) as refused:
            await answer(engine, chat())
        assert refused.value.retry_after_ns
        await until(lambda: isinstance(engine.health().breaker, HalfOpen), "it is tried again")
        assert counted(await answer(engine, chat())) == 10
        await until(lambda: isinstance(engine.health().breaker, Closed), "the trial has proved itself")


@in_loop
async def test_an_abort_inside_the_child_is_told_with_its_last_words(tmp_path: Path) -> None:
    path = model(tmp_path, faults=[fault("abort", "abort now")])
    async with serving(settings(path)) as engine:
        with capture_logs() as logs:
            last = (await answer(engine, chat("abort now")))[-1]
        assert isinstance(last, Failed)
        assert "SIGABRT" in last.message
        written = [line for line in logs if line["event"] == "engine_output"]
        assert any("Fatal Python error: Aborted" in line["line"] for line in written)
        assert {(line["stream"], line["epoch"], line["device"]) for line in written} == {
            ("stderr", 1, "text")
        }
        assert all(isinstance(line["pid"], int) for line in written)
        states = [line["state"] for line in logs if line["event"] == "engine_state"]
        assert "backing off" in states


@in_loop
async def test_a_process_that_is_not_ready_in_time_is_given_up_and_the_start_fails(tmp_path: Path) -> None:
    chosen = settings(model(tmp_path), startup_timeout="1ms", breaker_failures=2)
    with pytest.raises(UnavailableError, match="it was not ready within 1ms"):
        async with Engine(chosen):
            pass


@in_loop
async def test_a_device_thread_that_hangs_is_killed(tmp_path: Path) -> None:
    path = model(tmp_path, faults=[fault("stall", "hang now", after_tokens=3, duration="60s")])
    async with serving(settings(path, stall_timeout="1500ms")) as engine:
        began = time.monotonic()
        events = await answer(engine, chat("hang now", tokens=50))
        assert time.monotonic() - began < 20
        last = events[-1]
        assert isinstance(last, Failed)
        assert "device thread has not come round" in last.message
        assert counted(events) >= 3
        assert counted(await answer(engine, chat())) == 10


@in_loop
async def test_a_process_that_stops_altogether_is_killed(tmp_path: Path) -> None:
    async with serving(settings(model(tmp_path), stall_timeout="1500ms")) as engine:
        async with asyncio.TaskGroup() as group:
            task = group.create_task(answer(engine, chat(tokens=4000)))
            await until(lambda: engine.health().scheduler.running == 1, "it runs")
            kill(engine, number=signal.SIGSTOP)
        last = task.result()[-1]
        assert isinstance(last, Failed)
        assert "no heartbeat" in last.message
        assert counted(await answer(engine, chat())) == 10


@in_loop
async def test_a_process_that_grows_is_drained_and_replaced_and_nobody_notices(tmp_path: Path) -> None:
    path = model(tmp_path, faults=[fault("leak", "leak now", bytes=300 << 20)])
    async with serving(settings(path, process_limit="200MiB")) as engine:
        with capture_logs() as logs:
            leaking = await answer(engine, chat("leak now", tokens=150))
            assert isinstance(leaking[-1], Completed)
            assert counted(leaking) == 150
            await until(lambda: engine.health().epoch == 2, "it is replaced")
        drains = [line for line in logs if line["event"] == "engine_state" and line["state"] == "draining"]
        assert "bytes of memory; the limit is 209,715,200" in drains[0]["reason"]
        assert counted(await answer(engine, chat())) == 10
        await until(lambda: 0 < engine.health().rss_bytes < 200 << 20, "the memory is back")


@in_loop
async def test_requests_that_come_during_such_a_drain_are_answered_by_the_next_process(
    tmp_path: Path,
) -> None:
    path = model(tmp_path, faults=[fault("leak", "leak now", bytes=300 << 20)])
    async with serving(settings(path, process_limit="200MiB", max_batch=1)) as engine:
        async with asyncio.TaskGroup() as group:
            leaking = group.create_task(answer(engine, chat("leak now", tokens=200)))
            await until(lambda: engine.health().scheduler.running == 1, "it runs")
            waiting = group.create_task(answer(engine, chat("waits", tokens=5)))
            await until(lambda: not isinstance(engine.health().lifecycle, Ready), "the drain begins")
            late = group.create_task(answer(engine, chat("late", tokens=5)))
        assert [counted(task.result()) for task in (leaking, waiting, late)] == [200, 5, 5]
        assert engine.health().restarts >= 1


@in_loop
async def test_a_model_that_kills_the_process_while_others_wait_keeps_its_reason(tmp_path: Path) -> None:
    path = model(tmp_path, faults=[fault("kill", "crash now", after_tokens=2)])
    async with serving(settings(path)) as engine:
        async with asyncio.TaskGroup() as group:
            victims = [group.create_task(answer(engine, chat(f"{n}", tokens=4000))) for n in range(5)]
            await until(lambda: engine.health().scheduler.running == 5, "they run")
            group.create_task(answer(engine, chat("crash now")))
        for task in victims:
            last = task.result()[-1]
            assert isinstance(last, Failed)
            assert last.kind == EngineRestartedError.code
        assert engine.health().scheduler.admitted_bytes == 0


@in_loop
async def test_vision_lives_in_a_process_of_its_own_that_text_survives(tmp_path: Path) -> None:
    reads = model(tmp_path, "reads")
    sees = model(tmp_path, "sees", capabilities=["chat", "completion", "vision"])
    async with serving(settings(reads, sees)) as engine:
        assert pid(engine, "text") != pid(engine, "vision")
        async with aclosing(engine.generate(chat(to="reads", tokens=200))) as stream:
            first = [await anext(stream) for _ in range(4)]
            kill(engine, "vision")
            rest = [event async for event in stream]
        assert counted([*first, *rest]) == 200
        assert counted(await answer(engine, chat(to="sees"))) == 10
        epochs = {one.name: one.epoch for one in engine.health().devices}
        assert epochs == {"text": 1, "vision": 2}


@in_loop
async def test_the_process_ends_cleanly_with_the_engine(tmp_path: Path) -> None:
    with capture_logs() as logs:
        async with serving(settings(model(tmp_path))) as engine:
            child = pid(engine)
    states = [line["state"] for line in logs if line["event"] == "engine_state"]
    assert states[-2:] == ["stopping", "stopped"]
    with pytest.raises(ProcessLookupError):
        os.kill(child, 0)


SERVER = """
import asyncio, sys
from pathlib import Path
from tests.factories.engines import pid, serving, settings
from tokenweir.telemetry import logs

async def main() -> None:
    async with serving(settings(Path(sys.argv[1]))) as engine:
        print(pid(engine), flush=True)
        await asyncio.Event().wait()

logs.configure("error")
asyncio.run(main())
"""


@in_loop
async def test_the_process_does_not_outlive_a_server_that_was_killed(tmp_path: Path) -> None:
    command = [sys.executable, "-c", SERVER, str(model(tmp_path))]
    server = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE, cwd=ROOT)
    if server.stdout is None:
        pytest.fail("no pipe")
    child = int(await server.stdout.readline())
    os.kill(child, 0)
    server.kill()
    await server.wait()

    def gone() -> bool:
        try:
            os.kill(child, 0)
        except ProcessLookupError:
            return True
        # A zombie that nobody in this container reaps is gone as well.
        state = Path(f"/proc/{child}/stat")
        return state.exists() and state.read_text(encoding="utf-8").rpartition(")")[2].split()[0] == "Z"

    await until(gone, "the child ends")


def test_the_kinds_of_a_failed_stream_are_these(tmp_path: Path) -> None:
    path = model(tmp_path, faults=[fault("error", "fail now", after_tokens=2)])

    @in_loop
    async def scenario() -> None:
        async with serving(settings(path)) as engine:
            events = await answer(engine, chat("fail now"))
            assert kinds(events) == ["Accepted", "Started", "Token", "Failed"]
            assert any(isinstance(event, Token) for event in events)
            assert engine.health().epoch == 1, "an error in a step is no reason to end the process"
            assert counted(await answer(engine, chat())) == 10

    scenario()


@in_loop
async def test_an_observer_that_fails_costs_a_restart_and_not_the_server(tmp_path: Path) -> None:
    broken = True

    def observe(_: object) -> None:
        if broken:
            raise ValueError("the observer is broken")

    async with Engine(settings(model(tmp_path)), on_stepped=observe) as engine:
        asyncio.get_running_loop().set_exception_handler(lambda _loop, _context: None)
        last = (await answer(engine, chat()))[-1]
        assert isinstance(last, Failed)
        assert last.retryable
        broken = False
        assert counted(await answer(engine, chat())) == 10


@in_loop
async def test_what_is_loading_when_the_process_dies_is_loaded_in_the_next(tmp_path: Path) -> None:
    slow = model(tmp_path, "slow", faults=[fault("slow_load", duration="300ms")])
    async with serving(settings(model(tmp_path))) as engine, asyncio.TaskGroup() as group:
        loading = group.create_task(engine.load(str(slow)))
        await until(lambda: len(engine.models()) > 1, "it loads")
        kill(engine)
        assert (await loading).name == "slow"
        await until(lambda: loaded(engine) == ["m", "slow"], "both are loaded")
        assert engine.health().epoch == 2


@in_loop
async def test_a_model_under_which_the_process_dies_again_and_again_is_given_up(tmp_path: Path) -> None:
    slow = model(tmp_path, "slow", faults=[fault("slow_load", duration="10s")])
    async with serving(settings(model(tmp_path))) as engine, asyncio.TaskGroup() as group:
        loading = group.create_task(_not_loaded(engine, slow))
        for epoch in (1, 2):
            await until(
                lambda epoch=epoch: (
                    engine.health().epoch == epoch
                    and [one.state for one in engine.models()] == ["loaded", "loading"]
                ),
                "it loads",
            )
            kill(engine)
        assert "lost 2 times while it loaded 'slow'" in str(await loading)
        assert counted(await answer(engine, chat())) == 10
        assert engine.health().epoch == 3


async def _not_loaded(engine: Engine, path: Path) -> Exception:
    with pytest.raises(EngineError) as refused:
        await engine.load(str(path))
    return refused.value
