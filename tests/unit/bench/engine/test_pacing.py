from __future__ import annotations

from collections import deque

from hypothesis import given
from hypothesis import strategies as st
from tests.unit.bench.engine.stage import Script, Server, stage

from tokenweir.bench.engine.pacing import Pacing
from tokenweir.poller import NEVER

OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nhi"
SECOND_NS = 1_000_000_000
times = st.lists(st.integers(0, 1000), max_size=30).map(sorted)


def drained(pacing: Pacing, now: int) -> list[tuple[int, int]]:
    taken: list[tuple[int, int]] = []
    while (one := pacing.take(now)) is not None:
        taken.append(one)
    return taken


@given(times, st.lists(st.integers(0, 1100), max_size=20).map(sorted))
def test_an_open_loop_gives_out_what_is_due_whatever_was_answered(
    schedule: list[int], looks: list[int]
) -> None:
    pacing = Pacing(start_ns=50, total=len(schedule), schedule=schedule, slots=0)
    given_out: list[tuple[int, int]] = []
    for look in looks:
        given_out += drained(pacing, 50 + look)
        assert [index for index, _ in given_out] == [k for k, at in enumerate(schedule) if at <= look]
        rest = schedule[len(given_out) :]
        assert pacing.due_ns == (50 + rest[0] if rest else NEVER)
        pacing.release(look)
    assert [scheduled for _, scheduled in given_out] == [50 + at for at in schedule[: len(given_out)]]
    assert pacing.exhausted == (len(given_out) == len(schedule))


@given(st.integers(1, 5), st.integers(1, 30), st.lists(st.integers(1, 50), min_size=30, max_size=30))
def test_a_closed_loop_never_has_more_open_than_slots(slots: int, total: int, lengths: list[int]) -> None:
    pacing = Pacing(start_ns=0, total=total, schedule=None, slots=slots)
    running: list[tuple[int, int]] = []
    freed: deque[int] = deque([0] * slots)
    served = 0
    now = 0
    while not (pacing.exhausted and not running):
        for index, scheduled in drained(pacing, now):
            assert index == served
            assert scheduled == freed.popleft()
            served += 1
            running.append((now + lengths[index], index))
            assert len(running) <= slots
        running.sort()
        now, _ = running.pop(0)
        pacing.release(now)
        freed.append(now)
    assert served == total
    assert pacing.due_ns == NEVER


@given(st.integers(1, 3), times.filter(bool))
def test_a_cap_holds_back_a_free_slot(slots: int, schedule: list[int]) -> None:
    pacing = Pacing(start_ns=0, total=len(schedule), schedule=schedule, slots=slots)
    for index, at in enumerate(schedule):
        free = pacing.due_ns
        assert free >= at
        assert pacing.take(free - 1) is None
        assert pacing.take(free) == (index, free)
        pacing.release(free)
    assert pacing.exhausted


def test_a_capped_request_waits_for_a_slot_and_is_scheduled_when_it_is_free() -> None:
    pacing = Pacing(start_ns=0, total=2, schedule=[0, 10], slots=1)
    assert pacing.take(0) == (0, 0)
    assert pacing.take(500) is None
    pacing.release(700)
    assert pacing.due_ns == 700
    assert pacing.take(700) == (1, 700)


def test_a_resting_slot_does_not_hold_up_a_free_one() -> None:
    pacing = Pacing(start_ns=0, total=4, schedule=None, slots=2)
    drained(pacing, 0)
    pacing.release(1000)
    pacing.release(10)
    assert pacing.due_ns == 10


def test_the_end_of_the_duration_stops_it() -> None:
    pacing = Pacing(start_ns=0, total=NEVER, schedule=None, slots=1, stop_ns=100)
    assert pacing.take(99) == (0, 0)
    pacing.release(99)
    assert pacing.take(100) is None
    assert pacing.exhausted
    pacing.release(150)
    assert pacing.due_ns == NEVER


def test_a_stop_gives_out_nothing_more() -> None:
    pacing = Pacing(start_ns=0, total=9, schedule=None, slots=4)
    assert pacing.take(0) == (0, 0)
    pacing.stop()
    assert pacing.take(0) is None
    pacing.release(1)
    assert pacing.take(1) is None
    assert pacing.exhausted


def test_a_slot_given_back_takes_its_turn_at_once() -> None:
    pacing = Pacing(start_ns=0, total=3, schedule=None, slots=1, stop_ns=100)
    assert pacing.take(0) == (0, 0)
    assert pacing.turn(10) == 1
    assert pacing.turn(100) == -1
    assert pacing.turn(20) == 2
    assert pacing.turn(30) == -1
    assert pacing.exhausted


def test_a_turn_is_not_taken_past_a_cap_or_another_slot() -> None:
    capped = Pacing(start_ns=0, total=3, schedule=[0, 5, 9], slots=1)
    capped.take(0)
    assert capped.turn(1) == -1
    several = Pacing(start_ns=0, total=3, schedule=None, slots=2)
    several.take(0)
    assert several.turn(1) == -1


def test_an_open_loop_sends_without_waiting_for_answers() -> None:
    def script(server: Server) -> Script:
        lines = [server.accept() for _ in range(5)]
        for line in lines:
            line.hear()
        for line in lines:
            yield from line.say(OK)

    with stage() as stg:
        taken = stg.play(script, requests=5, slots=0, schedule=[0, 0, 0, 0, 0], warm_connections=1)
    assert len(taken.ends) == 5
    assert taken.live.in_flight_max == 5


def test_a_closed_loop_keeps_to_its_slots() -> None:
    def script(server: Server) -> Script:
        lines = [server.accept() for _ in range(2)]
        for turn in range(3):
            for line in lines:
                line.hear()
            assert server.knock() is None, f"a third connection in turn {turn}"
            for line in lines:
                yield from line.say(OK)

    with stage() as stg:
        taken = stg.play(script, requests=6, slots=2, warm_connections=2)
    assert sorted(request for request, _ in taken.ends) == list(range(6))
    assert taken.live.in_flight_max == 2


def test_a_closed_loop_begins_its_list_again_until_time_is_up() -> None:
    def script(server: Server) -> Script:
        line = server.accept()
        while True:
            line.hear()
            yield from line.say(OK)

    with stage() as stg:
        taken = stg.play(script, requests=2, slots=1, repeat=True, duration_ns=SECOND_NS // 10)
    numbers = [request for request, _ in taken.ends]
    assert numbers == list(range(len(numbers)))
    assert len(numbers) > 2
    sent = [at for _, _, _, at in taken.sends]
    assert max(sent) - min(sent) < SECOND_NS


def test_a_slot_is_scheduled_for_when_it_became_free() -> None:
    def script(server: Server) -> Script:
        line = server.accept()
        for _ in range(3):
            line.hear()
            yield from line.say(OK)

    with stage() as stg:
        taken = stg.play(script, requests=3)
    ended = [int(row[3]) for one in taken.segments for row in one.ends]
    assert [scheduled for _, _, scheduled, _ in taken.sends][1:] == ended[:2]


def test_what_was_due_before_the_end_is_sent_by_an_open_loop_that_is_late() -> None:
    def script(server: Server) -> Script:
        lines = [server.accept() for _ in range(3)]
        for line in lines:
            line.hear()
            yield from line.say(OK)

    with stage() as stg:
        # The whole schedule and the end of the duration are past when the loop first looks.
        taken = stg.play(
            script, requests=3, slots=0, schedule=[-3000, -2000, -1001], duration_ns=1, warm_connections=3
        )
    assert len(taken.ends) == 3
