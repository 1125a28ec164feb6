from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.factories.loops import in_loop

from tokenweir.core.errors import (
    DeadlineError,
    EngineRestartedError,
    InputError,
    TooManyStreamsError,
    UnavailableError,
)
from tokenweir.core.events import Cancelled, Completed, Event, Failed, Started, Token, Usage
from tokenweir.runtime.streams import (
    Ended,
    Orphaned,
    Preparing,
    Running,
    Stream,
    StreamTable,
    Waiting,
    failed,
)


def stream(window: int = 8) -> Stream:
    return Stream(1, "m", "normal", window)


def running(window: int = 8) -> Stream:
    one = stream(window)
    one.become(Running(epoch=1))
    one.next_seq = 1
    return one


@in_loop
async def test_events_are_read_in_order_and_then_no_more() -> None:
    one = running()
    assert not one.push((Started(seq=1), Token(seq=2, text="a", count=1)))
    assert one.push((Usage(seq=3), Completed(seq=4)))
    assert [await one.read() for _ in range(5)] == [
        Started(seq=1),
        Token(seq=2, text="a", count=1),
        Usage(seq=3),
        Completed(seq=4),
        None,
    ]


@in_loop
async def test_a_reader_is_woken_by_what_comes() -> None:
    one = running()
    async with asyncio.TaskGroup() as group:
        reading = group.create_task(one.read())
        await asyncio.sleep(0)
        one.push((Token(seq=1, text="a"),))
    assert reading.result() == Token(seq=1, text="a")


@pytest.mark.parametrize("end", [Completed(seq=1), Failed(seq=1, kind="x"), Cancelled(seq=1)])
def test_nothing_comes_after_an_end(end: Event) -> None:
    one = running()
    assert one.push((end,))
    assert not one.push((Token(seq=2, text="late"),))
    one.fail(InputError("late"))
    assert one.state == Ended()


@in_loop
async def test_what_has_begun_fails_with_an_event_after_what_waits() -> None:
    one = running()
    one.push((Started(seq=1), Token(seq=2, text="a")))
    one.fail(DeadlineError("too late"))
    events = [await one.read() for _ in range(4)]
    assert events[2] == Failed(seq=3, kind="timeout", message="too late", status=504, retryable=True)
    assert events[3] is None


@in_loop
async def test_what_has_not_begun_is_refused_with_the_error_itself() -> None:
    error = DeadlineError("too late")
    for state in (Preparing(), Waiting(epoch=1, since_ns=0), Orphaned(error=InputError("x"))):
        one = stream()
        one.become(state)
        one.fail(error)
        with pytest.raises(DeadlineError):
            await one.admitted()
        assert await one.read() is None


@in_loop
async def test_admission_is_waited_for() -> None:
    one = stream()
    one.become(Waiting(epoch=1, since_ns=0))
    async with asyncio.TaskGroup() as group:
        waiting = group.create_task(one.admitted())
        await asyncio.sleep(0)
        assert not waiting.done()
        one.become(Running(epoch=1))
    assert waiting.result()
    one.push((Completed(seq=1),))
    assert await one.admitted(), "it ran, and has ended before anybody looked"


@in_loop
async def test_a_stream_whose_process_was_lost_before_it_began_says_so() -> None:
    one = stream()
    one.become(Orphaned(error=EngineRestartedError("gone")))
    assert not await one.admitted()


@given(st.integers(2, 64), st.lists(st.integers(0, 5), max_size=200))
def test_credit_never_runs_out_for_a_reader_that_keeps_up_and_never_exceeds_the_window(
    window: int, counts: list[int]
) -> None:
    one = running(window)
    credit = window
    for seq, count in enumerate(counts, 1):
        assert credit > 0, "the stream is held though its reader has taken everything"
        event = Token(seq=seq, text="x", count=count)
        one.push((event,))
        credit += one.took(event) - count
        assert credit <= window


def test_a_token_without_a_count_costs_no_credit_on_either_side() -> None:
    one = running(2)
    assert [one.took(Token(seq=1, text="x")) for _ in range(5)] == [0] * 5


def test_an_error_tells_when_to_come_back() -> None:
    event = failed(UnavailableError("busy", mend="wait", retry_after_ns=7), 3)
    assert (event.seq, event.status, event.retry_after_ns, event.message) == (3, 503, 7, "busy; wait")


@in_loop
async def test_the_table_bounds_and_numbers_streams() -> None:
    table = StreamTable(2)
    one, two = (table.open("m", "normal", 8) for _ in range(2))
    with pytest.raises(TooManyStreamsError):
        table.open("m", "normal", 8)
    async with asyncio.TaskGroup() as group:
        room = group.create_task(table.room(1))
        await asyncio.sleep(0)
        assert not room.done()
        table.close(one)
    three = table.open("m", "normal", 8)
    table.renumber(two)
    assert len({one.number, two.number, three.number}) == 3
    assert table.get(two.number) is two
    assert len(table) == 2
    async with asyncio.TaskGroup() as group:
        empty = group.create_task(table.empty())
        table.close(two)
        await asyncio.sleep(0)
        assert not empty.done()
        table.close(three)


def test_streams_are_found_by_the_process_that_has_them() -> None:
    table = StreamTable(8)
    states = [Preparing(), Waiting(epoch=1, since_ns=0), Running(epoch=1), Running(epoch=2), Ended()]
    for state in states:
        table.open("m", "normal", 8).become(state)
    assert [one.state for one in table.of_epoch(1)] == [states[1], states[2]]
