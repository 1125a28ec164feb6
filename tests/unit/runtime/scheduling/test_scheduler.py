from __future__ import annotations

from collections.abc import Iterable

import pytest

from tokenweir.core.errors import (
    DeadlineError,
    DrainingError,
    ModelNotLoadedError,
    NoMemoryError,
    UnavailableError,
    WeirError,
)
from tokenweir.ports.inference import ModelCard
from tokenweir.runtime.bridge.messages import Stepped
from tokenweir.runtime.options import Priority
from tokenweir.runtime.scheduling.budget import kv_bytes, text
from tokenweir.runtime.scheduling.scheduler import Scheduler, SchedulerOptions
from tokenweir.runtime.scheduling.states import Bypass, Degraded, Draining, Enabled, State
from tokenweir.runtime.scheduling.tickets import Admitted, Outcome, Refused, Ticket, Waiting

MS = 1_000_000
S = 1_000 * MS


def scheduler(
    *, limit: int = 1000, batch: int = 4, waiting: int = 100, weights: int = 100, target_ns: int = 100 * MS
) -> Scheduler:
    made = Scheduler(
        SchedulerOptions(
            limit_bytes=limit,
            itl_target_ns=target_ns,
            max_batch=batch,
            prefill_tokens=512,
            max_waiting=waiting,
            ageing_ns=10 * S,
        )
    )
    made.add_model("m", weights_bytes=weights)
    return made


def ticket(number: int, kv: int = 100, **rest: object) -> Ticket:
    return Ticket(id=number, model=str(rest.pop("model", "m")), kv_bytes=kv, **rest)  # pyright: ignore[reportArgumentType]


def ids(tickets: Iterable[Ticket]) -> list[int]:
    return [one.id for one in tickets]


def error(outcome: Outcome) -> WeirError:
    assert isinstance(outcome, Refused)
    return outcome.error


def test_what_fits_is_admitted_and_what_does_not_waits_for_it() -> None:
    made = scheduler()
    assert made.submit(ticket(1, 500), 0) == Admitted()
    assert made.submit(ticket(2, 400), 0) == Admitted()
    assert made.submit(ticket(3, 1), 0) == Waiting(position=0)
    assert made.submit(ticket(4, 1), 0) == Waiting(position=1)
    assert made.position(4) == 1
    assert ids(made.finish(2, 1)) == [3, 4]
    assert made.position(4) is None


def test_what_can_never_fit_is_refused_with_the_arithmetic() -> None:
    made = scheduler(limit=10 << 20, weights=2 << 20)
    made.add_model("other", weights_bytes=3 << 20)
    big = Ticket(id=1, model="m", prompt_tokens=1000, max_tokens=200, sequences=2, kv_bytes=6 << 20)
    refusal = error(made.submit(big, 0))
    assert isinstance(refusal, NoMemoryError)
    assert refusal.message == (
        "the request does not fit into 10.00 MiB: 2.00 MiB of weights + 3.00 MiB of other models + "
        "6.00 MiB for (1000 prompt + 200 answer tokens) × 2 sequences = 11.00 MiB"
    )
    assert "unload another model" in refusal.mend
    made.remove_model("other")
    assert made.submit(big, 0) == Admitted()


def test_the_cache_is_counted_for_prompt_and_answer_of_every_sequence() -> None:
    card = ModelCard(
        name="m",
        path="/m",
        revision="",
        architecture="llama",
        context_tokens=100,
        vocabulary=10,
        weights_bytes=0,
        kv_bytes_per_token=7,
    )
    assert kv_bytes(card, prompt_tokens=10, max_tokens=5, sequences=3) == 315


@pytest.mark.parametrize(
    ("amount", "expected"),
    [
        (0, "0 bytes"),
        (1023, "1023 bytes"),
        (1536, "1.50 KiB"),
        (5 << 30, "5.00 GiB"),
        (5 << 40, "5120.00 GiB"),
    ],
)
def test_amounts_are_written_in_the_unit_that_suits(amount: int, expected: str) -> None:
    assert text(amount) == expected


def test_a_batch_has_room_for_so_many_sequences() -> None:
    made = scheduler(batch=4)
    assert made.submit(ticket(1, 1, sequences=3), 0) == Admitted()
    assert made.submit(ticket(2, 1, sequences=2), 0) == Waiting(position=0)
    assert made.submit(ticket(3, 1), 0) == Waiting(position=1), "the one before it was overtaken"
    assert ids(made.finish(1, 1)) == [2, 3]


def test_a_request_with_more_sequences_than_a_batch_runs_alone() -> None:
    made = scheduler(batch=4)
    made.submit(ticket(1, 1), 0)
    assert made.submit(ticket(2, 1, sequences=9), 0) == Waiting(position=0)
    assert ids(made.finish(1, 1)) == [2]


def test_a_full_batch_holds_up_no_other_model() -> None:
    made = scheduler(batch=1)
    made.add_model("other", weights_bytes=10)
    made.submit(ticket(1), 0)
    assert made.submit(ticket(2), 0) == Waiting(position=0)
    assert made.submit(ticket(3, model="other"), 0) == Admitted()


def test_the_exclusive_lane_takes_one_and_holds_up_no_batch() -> None:
    made = scheduler()
    assert made.submit(ticket(1, exclusive=True), 0) == Admitted()
    assert made.submit(ticket(2, exclusive=True), 0) == Waiting(position=0)
    assert made.submit(ticket(3), 0) == Admitted()
    assert made.figures(0).exclusive == 1
    assert ids(made.finish(1, 1)) == [2]


def test_priorities_go_first_until_age_makes_up_for_it() -> None:
    def order(*arrivals: tuple[int, Priority, int]) -> list[int]:
        made = scheduler(batch=1)
        made.submit(ticket(0), 0)
        for number, priority, now_ns in arrivals:
            made.submit(ticket(number, priority=priority), now_ns)
        started: list[int] = []
        last = 0
        while fresh := made.finish(last, 100 * S):
            last = fresh[0].id
            started += ids(fresh)
        return started

    assert order((1, "background", 1), (2, "normal", 2), (3, "interactive", 3)) == [3, 2, 1]
    assert order((1, "background", 0), (2, "normal", 9 * S), (3, "normal", 11 * S)) == [2, 1, 3]
    assert order((1, "background", 0), (2, "interactive", 19 * S), (3, "interactive", 21 * S)) == [2, 1, 3]
    assert order((1, "normal", 1), (2, "normal", 2)) == [1, 2]


def test_a_deadline_that_passes_in_line_is_an_expiry() -> None:
    made = scheduler(batch=1)
    made.submit(ticket(1), 0)
    made.submit(ticket(2, deadline_ns=50), 0)
    made.submit(ticket(3, deadline_ns=90), 0)
    assert made.next_wake_ns() == 50
    assert ids(made.wake(49).expired) == []
    assert ids(made.wake(50).expired) == [2]
    assert made.next_wake_ns() == 90
    failure = made.deadline_error(ticket(2), 50)
    assert isinstance(failure, DeadlineError)
    assert failure.retry_after_ns == 5 * S
    assert ids(made.finish(1, 60)) == [3]
    assert made.next_wake_ns() is None, "a running request's deadline is not the line's"
    assert isinstance(error(made.submit(ticket(4, deadline_ns=60), 60)), DeadlineError)


def test_an_expired_ticket_lets_those_behind_it_in() -> None:
    made = scheduler()
    made.submit(ticket(1, 600), 0)
    made.submit(ticket(2, 800, deadline_ns=10), 0)
    made.submit(ticket(3, 100), 0)
    changes = made.wake(10)
    assert ids(changes.expired) == [2]
    assert ids(changes.admitted) == [3]


def test_a_full_line_refuses_and_says_when_to_come_back() -> None:
    made = scheduler(batch=1, waiting=4)
    made.submit(ticket(0), 0)
    for number in range(1, 4):
        made.submit(ticket(number), 0)
        made.finish(number - 1, number * 2 * S)
    for number in range(4, 8):
        assert isinstance(made.submit(ticket(number), 6 * S), Waiting)
    refusal = error(made.submit(ticket(9), 6 * S))
    assert isinstance(refusal, UnavailableError)
    # Three ends in the 4 s since the first of them, and four in line: 4 / (3 / 4 s), in whole seconds.
    assert refusal.retry_after_ns == 6 * S


def test_a_cancelled_ticket_frees_its_place_wherever_it_is() -> None:
    made = scheduler(batch=1)
    made.submit(ticket(1), 0)
    made.submit(ticket(2), 0)
    made.submit(ticket(3), 0)
    assert made.cancel(2) == []
    assert ids(made.cancel(1)) == [3]
    assert made.cancel(77) == []
    assert made.finish(77, 1) == []
    counts = made.figures(0).counts
    assert (counts.cancelled, counts.finished, counts.admitted) == (2, 0, 2)


def test_draining_serves_what_was_taken_on_and_nothing_else() -> None:
    made = scheduler(batch=1)
    made.submit(ticket(1), 0)
    made.submit(ticket(2), 0)
    made.drain()
    assert made.state == Draining()
    assert isinstance(error(made.submit(ticket(3), 0)), DrainingError)
    assert ids(made.finish(1, 1)) == [2]


def test_a_model_that_is_not_there_is_named() -> None:
    refusal = error(scheduler().submit(ticket(1, model="none"), 0))
    assert isinstance(refusal, ModelNotLoadedError)
    assert "'none'" in refusal.message
    assert refusal.mend == "loaded are: m"


def test_a_removed_model_sheds_its_line_and_loses_what_ran() -> None:
    made = scheduler(batch=1)
    made.add_model("other", weights_bytes=600)
    made.submit(ticket(1, 250), 0)
    made.submit(ticket(2, 300, model="other"), 0)
    made.submit(ticket(3, 100, model="other"), 0)
    made.submit(ticket(4, 100), 0)
    changes = made.remove_model("m")
    assert ids(changes.shed) == [4]
    assert ids(changes.admitted) == [2]
    assert isinstance(made.shed_error(ticket(4), 0), ModelNotLoadedError)
    assert made.finish(1, 1) == []
    figures = made.figures(1)
    assert figures.counts.lost == 1
    assert figures.taken_bytes == 300


def test_bypass_hands_everything_over() -> None:
    made = scheduler(batch=1)
    made.add_model("m", weights_bytes=100, mode="bypass")
    for number in range(9):
        assert made.submit(ticket(number, 500, exclusive=True), 0) == Admitted()
    assert made.state == Bypass()
    assert made.figures(0).running == 9


def test_without_the_controller_slow_steps_change_nothing() -> None:
    made = scheduler()
    made.add_model("m", weights_bytes=100, mode="off")
    made.submit(ticket(1), 0)
    made.submit(ticket(2), 0)
    for number in range(100):
        assert not made.observe(step(900), number * 900 * MS).tune
    assert made.state == Enabled()


def test_a_lost_engine_frees_everything_and_the_line_goes_on_afterwards() -> None:
    made = scheduler(batch=2)
    for number in range(4):
        made.submit(ticket(number), 0)
    assert ids(made.pause()) == [0, 1]
    assert made.submit(ticket(4), 1) == Waiting(position=2)
    assert made.finish(0, 2) == [], "nothing starts while the engine is away"
    assert ids(made.resume()) == [2, 3]
    assert made.figures(3).counts.lost == 2


def step(milliseconds: float, *, decoded: int = 4, running: int = 4, model: str = "m") -> Stepped:
    return Stepped(model=model, streams=(), step_ns=int(milliseconds * MS), decoded=decoded, running=running)


class Machine:
    """A device whose steps take longer the more it runs, and longer still when it is slowed down."""

    def __init__(self, made: Scheduler) -> None:
        self.scheduler = made
        self.now_ns = 0
        self.slowness = 1.0
        self.running: set[int] = set()
        self.refused: list[WeirError] = []
        self.shed: list[Ticket] = []
        self.count = 0

    def ask(self, priority: Priority = "normal") -> None:
        self.count += 1
        one = ticket(self.count, 1, priority=priority)
        match self.scheduler.submit(one, self.now_ns):
            case Admitted():
                self.running.add(one.id)
            case Refused(error=refusal):
                self.refused.append(refusal)
            case Waiting():
                pass

    def run(self, steps: int) -> None:
        for _ in range(steps):
            milliseconds = 10 * self.slowness * max(1, len(self.running))
            self.now_ns += int(milliseconds * MS)
            done = step(milliseconds, decoded=len(self.running), running=len(self.running))
            changes = self.scheduler.observe(done, self.now_ns)
            self.running |= set(ids(changes.admitted))
            self.shed += changes.shed

    def end(self, number: int) -> None:
        self.running.discard(number)
        self.running |= set(ids(self.scheduler.finish(number, self.now_ns)))


def name(state: State) -> str:
    return f"degraded_{state.step}" if isinstance(state, Degraded) else type(state).__name__.lower()


def steps_until(machine: Machine, wanted: str, most: int = 2000) -> list[str]:
    seen: list[str] = []
    for _ in range(most):
        machine.run(1)
        seen.append(name(machine.scheduler.state))
        if seen[-1] == wanted:
            return sorted(set(seen), key=seen.index)
    raise AssertionError(seen[-1])


def test_an_overload_takes_load_away_step_by_step_and_gives_it_back() -> None:
    made = scheduler(batch=8, target_ns=100 * MS, limit=10_000)
    machine = Machine(made)
    for _ in range(8):
        machine.ask()
    machine.ask("background")
    machine.run(200)
    assert made.state == Enabled(), "80 ms is below the target"
    machine.slowness = 5
    seen = steps_until(machine, "degraded_refuse")
    assert seen == ["enabled", "degraded_shrink", "degraded_shed", "degraded_refuse"]
    assert [one.priority for one in machine.shed] == ["background"]
    state = made.state
    assert isinstance(state, Degraded)
    assert "is above its target of 100ms" in state.reason
    figures = made.figures(machine.now_ns).models[0]
    assert figures.batch == 2
    assert figures.prefill_tokens == 64
    machine.ask("interactive")
    machine.ask("background")
    assert [type(one) for one in machine.refused] == [UnavailableError, UnavailableError]
    assert all(isinstance(one, UnavailableError) and one.retry_after_ns for one in machine.refused)
    machine.slowness = 0.5
    assert steps_until(machine, "enabled") == [
        "degraded_refuse",
        "degraded_shed",
        "degraded_shrink",
        "enabled",
    ]
    assert made.figures(machine.now_ns).models[0].batch == 8


def test_a_batch_shrinks_also_where_fewer_run_than_may() -> None:
    made = scheduler(batch=64, target_ns=100 * MS, limit=10_000)
    machine = Machine(made)
    for _ in range(8):
        machine.ask()
    machine.slowness = 5
    steps_until(machine, "degraded_shed")
    assert made.figures(machine.now_ns).models[0].batch == 2, "a quarter of the eight that ran"
    machine.slowness = 0.1
    steps_until(machine, "enabled")
    assert made.figures(machine.now_ns).models[0].batch == 64


def test_between_the_lines_nothing_changes() -> None:
    made = scheduler(batch=8, target_ns=100 * MS)
    machine = Machine(made)
    for _ in range(8):
        machine.ask()
    machine.slowness = 90 / 80
    machine.run(500)
    assert made.state == Enabled()
    machine.slowness = 200 / 80
    steps_until(machine, "degraded_shrink")
    machine.slowness = 90 / 80
    before = made.figures(machine.now_ns).models[0].batch
    machine.run(40)
    state, batch = made.state, made.figures(machine.now_ns).models[0].batch
    machine.run(500)
    assert made.state == state
    assert made.figures(machine.now_ns).models[0].batch == batch <= before


def test_an_idle_model_recovers_by_the_clock_alone() -> None:
    made = scheduler(batch=8, target_ns=10 * MS)
    machine = Machine(made)
    for _ in range(8):
        machine.ask()
    steps_until(machine, "degraded_refuse")
    for number in list(machine.running):
        machine.end(number)
    assert not machine.running
    tunes = 0
    for _ in range(1000):
        due_ns = made.next_wake_ns()
        if due_ns is None:
            break
        tunes += len(made.wake(due_ns).tune)
    assert made.state == Enabled()
    assert tunes == 6, "each change is told once"
    assert made.submit(ticket(999), 10**12) == Admitted()


def test_a_slow_machine_still_serves_one_at_a_time() -> None:
    made = scheduler(batch=8, target_ns=1 * MS)
    machine = Machine(made)
    served = 0
    for _ in range(300):
        machine.ask("interactive")
        machine.run(10)
        for number in list(machine.running)[:1]:
            machine.end(number)
            served += 1
    assert served > 30


def test_a_short_step_of_a_draft_model_counts_by_the_token() -> None:
    made = scheduler(target_ns=100 * MS)
    made.submit(ticket(1, exclusive=True), 0)
    made.submit(ticket(2), 0)
    for number in range(1, 60):
        made.observe(step(240, decoded=3, running=1), number * 240 * MS)
    assert made.figures(59 * 240 * MS).models[0].itl_p95_ns == 80 * MS
    assert made.state == Enabled()


def test_prefill_between_tokens_is_part_of_their_gap() -> None:
    made = scheduler(target_ns=100 * MS)
    now_ns = 0
    for _ in range(40):
        for part in (step(60, decoded=0, running=4), step(60, decoded=0, running=4), step(10)):
            now_ns += part.step_ns
            made.observe(part, now_ns)
    assert made.figures(now_ns).models[0].itl_p95_ns == 130 * MS
    for _ in range(40):
        for part in (step(500, decoded=0, running=0), step(10)):
            now_ns += part.step_ns
            made.observe(part, now_ns)
    assert made.figures(now_ns).models[0].itl_p95_ns == 10 * MS, "nobody waited for that prefill"


def test_a_change_is_told_even_where_there_is_nothing_to_shrink() -> None:
    made = Scheduler(SchedulerOptions(limit_bytes=1000, itl_target_ns=MS, max_batch=1, prefill_tokens=16))
    made.add_model("m", weights_bytes=0)
    machine = Machine(made)
    machine.ask()
    machine.scheduler.submit(ticket(99, 1, exclusive=True), 0)
    tunes = 0
    for number in range(200):
        now_ns = number * 20 * MS
        tunes += len(made.observe(step(20, decoded=2, running=2), now_ns).tune)
    assert tunes > 0
    assert made.next_wake_ns() is not None, "who looks at the clock after each tune comes back"
