from __future__ import annotations

from typing import cast

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from tokenweir.core.errors import DrainingError, NoMemoryError
from tokenweir.runtime.bridge.messages import Stepped
from tokenweir.runtime.options import Priority
from tokenweir.runtime.scheduling.line import RANK
from tokenweir.runtime.scheduling.scheduler import Scheduler, SchedulerOptions
from tokenweir.runtime.scheduling.states import Degraded
from tokenweir.runtime.scheduling.tickets import Admitted, Changes, Refused, Ticket, Waiting
from tokenweir.runtime.settings import SchedulerMode

MODELS = ("a", "b")
LIMIT = 1000
WEIGHTS = {"a": 200, "b": 100}
AGEING_NS = 5_000_000_000
BATCH = 5


class Traffic(RuleBasedStateMachine):
    """Keeps its own books of every ticket, and compares them with the scheduler's after each move."""

    def __init__(self) -> None:
        super().__init__()
        self.now_ns = 0
        self.scheduler = Scheduler(
            SchedulerOptions(
                limit_bytes=LIMIT,
                itl_target_ns=50_000_000,
                reserved_bytes=50,
                max_batch=BATCH,
                max_waiting=12,
                ageing_ns=AGEING_NS,
            )
        )
        self.modes: dict[str, SchedulerMode] = {}
        self.waiting: dict[int, tuple[Ticket, int]] = {}
        self.running: dict[int, Ticket] = {}
        self.gone = 0
        self.count = 0
        self.draining = False
        self.paused = False
        self.bypassed = False
        for model in MODELS:
            self.take(self.scheduler.add_model(model, weights_bytes=WEIGHTS[model]))
            self.modes[model] = "on"

    def take(self, changes: Changes) -> None:
        for ticket in (*changes.shed, *changes.expired):
            self.waiting.pop(ticket.id)
            self.gone += 1
        self.start(changes.admitted)

    def start(self, tickets: tuple[Ticket, ...] | list[Ticket]) -> None:
        assert not (tickets and self.paused)
        for ticket in tickets:
            key = self.key(ticket)
            del self.waiting[ticket.id]
            self.running[ticket.id] = ticket
            if self.modes[ticket.model] != "bypass":
                assert self.held() <= self.room()
            for other, _ in self.waiting.values():
                if (
                    other.model == ticket.model
                    and other.exclusive == ticket.exclusive
                    and not any(later.id == other.id for later in tickets)
                ):
                    assert key < self.key(other), "a ticket was overtaken by one of its own lane"

    def key(self, ticket: Ticket) -> tuple[int, int]:
        return (self.waiting[ticket.id][1] + RANK[ticket.priority] * AGEING_NS, ticket.id)

    @rule(
        model=st.sampled_from(MODELS),
        priority=st.sampled_from(tuple(RANK)),
        kv=st.integers(0, 900),
        sequences=st.integers(1, 6),
        exclusive=st.booleans(),
        patience=st.none() | st.integers(0, 3_000_000_000),
    )
    def submit(
        self,
        model: str,
        priority: Priority,
        kv: int,
        sequences: int,
        *,
        exclusive: bool,
        patience: int | None,
    ) -> None:
        self.count += 1
        ticket = Ticket(
            id=self.count,
            model=model,
            priority=priority,
            kv_bytes=kv,
            sequences=1 if exclusive else sequences,
            exclusive=exclusive,
            deadline_ns=None if patience is None else self.now_ns + patience,
        )
        fits = kv <= LIMIT - 50 - sum(WEIGHTS[name] for name in self.modes)
        match self.scheduler.submit(ticket, self.now_ns):
            case Admitted():
                assert not self.draining
                assert not self.paused
                assert fits or self.modes[model] == "bypass"
                self.running[ticket.id] = ticket
                if self.modes[model] != "bypass":
                    assert self.held() <= self.room()
            case Waiting(position=position):
                assert fits or self.modes[model] == "bypass"
                self.waiting[ticket.id] = (ticket, self.now_ns)
                assert position == self.scheduler.position(ticket.id)
            case Refused(error=error):
                assert self.draining == isinstance(error, DrainingError)
                if fits:
                    assert not isinstance(error, NoMemoryError)
                self.gone += 1

    def held(self) -> int:
        return sum(ticket.kv_bytes for ticket in self.running.values())

    def room(self) -> int:
        return LIMIT - 50 - sum(WEIGHTS[name] for name in self.modes)

    @precondition(lambda self: bool(cast("Traffic", self).running))
    @rule(data=st.data())
    def finish(self, data: st.DataObject) -> None:
        number = data.draw(st.sampled_from(sorted(self.running)))
        del self.running[number]
        self.gone += 1
        self.start(self.scheduler.finish(number, self.now_ns))

    @precondition(lambda self: bool(cast("Traffic", self).running or cast("Traffic", self).waiting))
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        number = data.draw(st.sampled_from(sorted((*self.running, *self.waiting))))
        self.running.pop(number, None)
        self.waiting.pop(number, None)
        self.gone += 1
        self.start(self.scheduler.cancel(number))

    @rule(number=st.integers(10_000, 10_010))
    def what_is_unknown_changes_nothing(self, number: int) -> None:
        assert self.scheduler.finish(number, self.now_ns) == []
        assert self.scheduler.cancel(number) == []

    @rule(passed=st.integers(0, 4_000_000_000))
    def time_passes(self, passed: int) -> None:
        self.now_ns += passed
        self.take(self.scheduler.wake(self.now_ns))
        for ticket, _ in self.waiting.values():
            assert ticket.deadline_ns is None or ticket.deadline_ns > self.now_ns

    @rule(model=st.sampled_from(MODELS), step_ms=st.integers(1, 400), times=st.integers(1, 40))
    def steps(self, model: str, step_ms: int, times: int) -> None:
        for _ in range(times):
            self.now_ns += step_ms * 1_000_000
            running = sum(one.sequences for one in self.running.values() if one.model == model)
            stepped = Stepped(
                model=model, streams=(), step_ns=step_ms * 1_000_000, decoded=running, running=running
            )
            self.take(self.scheduler.observe(stepped, self.now_ns))

    @rule(model=st.sampled_from(MODELS), mode=st.sampled_from(("on", "off", "bypass")))
    def change_mode(self, model: str, mode: SchedulerMode) -> None:
        self.modes[model] = mode
        self.bypassed |= mode == "bypass"
        self.take(self.scheduler.add_model(model, weights_bytes=WEIGHTS[model], mode=mode))

    @rule()
    def engine_is_lost(self) -> None:
        lost = self.scheduler.pause()
        assert {ticket.id for ticket in lost} == set(self.running)
        self.gone += len(self.running)
        self.running.clear()
        self.paused = True

    @precondition(lambda self: cast("Traffic", self).paused)
    @rule()
    def engine_is_back(self) -> None:
        self.paused = False
        self.start(self.scheduler.resume())

    @precondition(lambda self: cast("Traffic", self).count > 25)
    @rule()
    def drain(self) -> None:
        self.scheduler.drain()
        self.draining = True

    @invariant()
    def the_books_agree(self) -> None:
        figures = self.scheduler.figures(self.now_ns)
        counts = figures.counts
        assert figures.running == len(self.running)
        assert sum(figures.waiting.values()) == len(self.waiting)
        assert figures.taken_bytes == self.held()
        assert sum(one.running_sequences for one in figures.models) == sum(
            one.sequences for one in self.running.values()
        )
        ended = (
            counts.refused + counts.finished + counts.cancelled + counts.expired + counts.shed + counts.lost
        )
        assert ended == self.gone
        assert counts.submitted == self.count == ended + len(self.waiting) + len(self.running)

    @invariant()
    def nobody_waits_who_could_start(self) -> None:
        assert self.scheduler._admissible() is None  # pyright: ignore[reportPrivateUsage]

    @invariant()
    def bytes_stay_within_the_budget(self) -> None:
        if not self.bypassed:
            assert self.held() <= self.room()

    @invariant()
    def somebody_runs_where_somebody_waits(self) -> None:
        if self.waiting and not self.paused:
            assert self.running, "the line stands still"

    @invariant()
    def who_is_shed_does_not_wait(self) -> None:
        state = self.scheduler.state
        if not isinstance(state, Degraded) or state.step == "shrink":
            return
        for one in self.scheduler.figures(self.now_ns).models:
            if isinstance(one.state, Degraded) and one.state.step != "shrink":
                assert not [
                    ticket
                    for ticket, _ in self.waiting.values()
                    if ticket.model == one.model and ticket.priority == "background"
                ]


TestTraffic = Traffic.TestCase
TestTraffic.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
