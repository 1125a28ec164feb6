"""Who is decoded when. Sans-IO: time is passed in, nothing sleeps, every decision is an answer.

Admission: a ticket starts when its bytes are free, its model's batch has room and, for the exclusive lane, nobody
else is in it. The line is served in order: a ticket whose bytes are not free holds up those behind it, so that large
requests are not starved by small ones; one that waits for a batch or for the exclusive lane holds up only those that
wait for the same.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import msgspec

from tokenweir.core.errors import (
    DeadlineError,
    DrainingError,
    ModelNotLoadedError,
    UnavailableError,
    WeirError,
)
from tokenweir.runtime.bridge.messages import Stepped, Tune
from tokenweir.runtime.scheduling.budget import Budget
from tokenweir.runtime.scheduling.controller import Controller, ControlOptions
from tokenweir.runtime.scheduling.drain_rate import DrainRate
from tokenweir.runtime.scheduling.figures import Counts, ModelFigures, SchedulerFigures
from tokenweir.runtime.scheduling.line import RANK, Lane, Line
from tokenweir.runtime.scheduling.states import Bypass, Degraded, Draining, Enabled, State, Step, severity
from tokenweir.runtime.scheduling.tickets import Admitted, Changes, Outcome, Refused, Ticket, Waiting
from tokenweir.runtime.settings import SchedulerMode

_S: Final = 1_000_000_000


class SchedulerOptions(msgspec.Struct, frozen=True, kw_only=True):
    """What bounds the scheduler.

    ``reserved_bytes`` of ``limit_bytes`` are the prefix cache's. ``max_waiting`` bounds the line; ``ageing_ns`` is
    how much earlier a ticket of the next lower priority must have come to go first.
    """

    limit_bytes: int
    itl_target_ns: int
    reserved_bytes: int = 0
    max_batch: int = 64
    prefill_tokens: int = 512
    max_waiting: int = 512
    ageing_ns: int = 10 * _S


class _Model:
    __slots__ = ("controller", "mode", "running", "sequences")

    def __init__(self, mode: SchedulerMode, controller: Controller) -> None:
        self.mode: SchedulerMode = mode
        self.controller = controller
        self.running = 0
        self.sequences = 0

    @property
    def state(self) -> State:
        match self.mode:
            case "on":
                return self.controller.state
            case "off":
                return Enabled()
            case "bypass":
                return Bypass()

    @property
    def batch(self) -> int:
        return self.controller.batch


class Scheduler:
    """Admits tickets to the engine and keeps count of them.

    Every submitted ticket is admitted, waiting or refused; one that waits is later admitted, shed, expired or
    cancelled, once. An instant never lies before one passed earlier.
    """

    def __init__(self, options: SchedulerOptions) -> None:
        self._options = options
        self._budget = Budget(options.limit_bytes, reserved_bytes=options.reserved_bytes)
        self._models: dict[str, _Model] = {}
        self._line = Line(ageing_ns=options.ageing_ns)
        self._running: dict[int, Ticket] = {}
        self._exclusive: int | None = None
        self._rate = DrainRate()
        self._counts = Counts()
        self._draining = False
        self._paused = False

    # -- models ------------------------------------------------------------------------------------------------------

    def add_model(self, model: str, *, weights_bytes: int, mode: SchedulerMode = "on") -> Changes:
        """Count a loaded model's weights and schedule for it; ``tune`` is what its engine starts with.

        Adding one that is there changes its weights and mode.
        """
        known = self._models.get(model)
        if known is None:
            options = ControlOptions(
                target_ns=self._options.itl_target_ns,
                max_batch=self._options.max_batch,
                prefill_tokens=self._options.prefill_tokens,
            )
            known = self._models[model] = _Model(mode, Controller(model, options))
        known.mode = mode
        self._budget.set_weights(model, weights_bytes)
        return Changes(tune=(known.controller.tune,), admitted=self._admit())

    def remove_model(self, model: str) -> Changes:
        """Forget a model: its waiting tickets are shed, its running ones count as lost."""
        shed = tuple(ticket for ticket in self._line if ticket.model == model)
        for ticket in shed:
            self._line.remove(ticket.id)
        self._counts.shed += len(shed)
        self._lose([ticket for ticket in self._running.values() if ticket.model == model])
        self._models.pop(model, None)
        self._budget.set_weights(model, 0)
        return Changes(shed=shed, admitted=self._admit())

    # -- tickets -----------------------------------------------------------------------------------------------------

    def submit(self, ticket: Ticket, now_ns: int) -> Outcome:
        """Take a ticket on, or refuse it.

        Refused with DrainingError, ModelNotLoadedError, DeadlineError, NoMemoryError (with the arithmetic, when it
        could not be served even alone), or UnavailableError with ``retry_after_ns``.
        """
        self._counts.submitted += 1
        error = self._refusal(ticket, now_ns)
        if error is not None:
            self._counts.refused += 1
            return Refused(error=error)
        if self._models[ticket.model].mode == "bypass" and not self._paused:
            self._start(ticket)
            return Admitted()
        position = self._line.add(ticket, now_ns)
        # Nobody who stands in line can start, or he would have: only the new one may.
        if self._admissible() is ticket:
            self._line.remove(ticket.id)
            self._start(ticket)
            return Admitted()
        return Waiting(position=position)

    def finish(self, ticket_id: int, now_ns: int) -> list[Ticket]:
        """Count a ticket as done, free what it held, and return the tickets that start instead."""
        if self._stop(ticket_id):
            self._counts.finished += 1
            self._rate.finished(now_ns)
        return list(self._admit())

    def cancel(self, ticket_id: int) -> list[Ticket]:
        """Forget a ticket, waiting or running, and return the tickets that start instead."""
        if self._stop(ticket_id) or self._line.remove(ticket_id) is not None:
            self._counts.cancelled += 1
        return list(self._admit())

    def observe(self, stepped: Stepped, now_ns: int) -> Changes:
        """Count a step of the engine: the controller may change what may run."""
        model = self._models.get(stepped.model)
        if model is None:
            return Changes()
        model.controller.observe(stepped, now_ns)
        due = model.controller.due_ns
        return self.wake(now_ns) if due is not None and now_ns >= due else Changes()

    def wake(self, now_ns: int) -> Changes:
        """Do what time alone brings: deadlines of waiting tickets, and load given back. See ``next_wake_ns``."""
        expired = [
            ticket for ticket in self._line if ticket.deadline_ns is not None and ticket.deadline_ns <= now_ns
        ]
        for ticket in expired:
            self._line.remove(ticket.id)
        self._counts.expired += len(expired)
        tunes: list[Tune] = []
        for model in self._models.values():
            if model.mode == "on":
                tune = model.controller.judge(now_ns, running=model.sequences)
                if tune is not None:
                    tunes.append(tune)
        shed = [ticket for ticket in self._line if self._sheds(ticket)]
        for ticket in shed:
            self._line.remove(ticket.id)
        self._counts.shed += len(shed)
        return Changes(tune=tuple(tunes), admitted=self._admit(), shed=tuple(shed), expired=tuple(expired))

    def next_wake_ns(self) -> int | None:
        """Return the instant at which :meth:`wake` should be called though nothing happens, ``None`` for never."""
        instants = [ticket.deadline_ns for ticket in self._line if ticket.deadline_ns is not None]
        verdicts = (model.controller.next_wake_ns for model in self._models.values() if model.mode == "on")
        instants.extend(instant for instant in verdicts if instant is not None)
        return min(instants, default=None)

    # -- the whole ---------------------------------------------------------------------------------------------------

    def drain(self) -> None:
        """Refuse what comes from now on; what was taken on is still served."""
        self._draining = True

    def set_limit(self, limit_bytes: int) -> list[Ticket]:
        """Change the bytes that may be used, as when another process takes its share; return the tickets that start."""
        self._budget.limit_bytes = limit_bytes
        return list(self._admit())

    def pause(self) -> list[Ticket]:
        """Admit nothing while the engine is away; return the running tickets, which are lost with it."""
        self._paused = True
        lost = list(self._running.values())
        self._lose(lost)
        for model in self._models.values():
            model.controller.forget()
        return lost

    def resume(self) -> list[Ticket]:
        """Admit again after :meth:`pause`; return the tickets that start."""
        self._paused = False
        return list(self._admit())

    @property
    def state(self) -> State:
        """The state of the whole: draining, or that of the model from which most is taken."""
        if self._draining:
            return Draining()
        return max((model.state for model in self._models.values()), key=severity, default=Enabled())

    @property
    def taken_bytes(self) -> int:
        """What running tickets have reserved."""
        return self._budget.taken_bytes

    def position(self, ticket_id: int) -> int | None:
        """Return how many stand in line before a waiting ticket, ``None`` for one that does not wait."""
        return self._line.position(ticket_id)

    def shed_error(self, ticket: Ticket, now_ns: int) -> WeirError:
        """Return what a shed ticket fails with."""
        model = self._models.get(ticket.model)
        if model is None:
            return ModelNotLoadedError(f"the model {ticket.model!r} was unloaded", mend="load it again")
        return self._overload(model, ticket, now_ns)

    def deadline_error(self, ticket: Ticket, now_ns: int) -> WeirError:
        """Return what an expired ticket fails with."""
        return DeadlineError(
            f"the request to {ticket.model!r} had no time left before it could start; {len(self._line)} wait",
            mend="give it more time, or come back later",
            retry_after_ns=self._rate.wait_ns(len(self._line) + 1, now_ns),
        )

    def figures(self, now_ns: int) -> SchedulerFigures:
        """Return what metrics and ``/health`` show."""
        waiting = dict.fromkeys(RANK, 0)
        by_model: dict[str, int] = dict.fromkeys(self._models, 0)
        for ticket in self._line:
            waiting[ticket.priority] += 1
            by_model[ticket.model] += 1
        models = tuple(
            ModelFigures(
                model=name,
                mode=model.mode,
                state=model.state,
                itl_p95_ns=model.controller.p95_ns(now_ns),
                batch=model.batch,
                prefill_tokens=model.controller.prefill_tokens,
                running=model.running,
                running_sequences=model.sequences,
                waiting=by_model[name],
            )
            for name, model in self._models.items()
        )
        return SchedulerFigures(
            state=self.state,
            models=models,
            waiting=waiting,
            running=len(self._running),
            exclusive=int(self._exclusive is not None),
            limit_bytes=self._budget.limit_bytes,
            weights_bytes=self._budget.weights_bytes,
            room_bytes=self._budget.room_bytes,
            taken_bytes=self._budget.taken_bytes,
            per_second=self._rate.per_second(now_ns),
            counts=msgspec.structs.replace(self._counts),
        )

    # -- inside ------------------------------------------------------------------------------------------------------

    def _refusal(self, ticket: Ticket, now_ns: int) -> WeirError | None:
        if self._draining:
            return DrainingError("the server is ending and takes nothing on", mend="ask another one")
        model = self._models.get(ticket.model)
        if model is None:
            loaded = ", ".join(sorted(self._models)) or "none"
            return ModelNotLoadedError(f"no model is named {ticket.model!r}", mend=f"loaded are: {loaded}")
        if ticket.deadline_ns is not None and ticket.deadline_ns <= now_ns:
            return self.deadline_error(ticket, now_ns)
        if model.mode == "bypass":
            return None
        misfit = self._budget.misfit(ticket)
        if misfit is not None:
            return misfit
        step = _step(model.state)
        if step == "refuse" or self._sheds(ticket):
            return self._overload(model, ticket, now_ns)
        if len(self._line) >= self._options.max_waiting:
            return UnavailableError(
                f"{len(self._line)} requests are waiting already, as many as may",
                mend="come back later",
                retry_after_ns=self._rate.wait_ns(len(self._line), now_ns),
            )
        return None

    def _sheds(self, ticket: Ticket) -> bool:
        step = _step(self._models[ticket.model].state)
        return ticket.priority == "background" and step in {"shed", "refuse"}

    def _overload(self, model: _Model, ticket: Ticket, now_ns: int) -> UnavailableError:
        state = model.state
        reason = state.reason if isinstance(state, Degraded) else "it has too much to do"
        return UnavailableError(
            f"the model {ticket.model!r} takes no {ticket.priority} requests now: {reason}",
            mend="come back later",
            retry_after_ns=self._rate.wait_ns(len(self._line) + 1, now_ns),
        )

    def _admit(self) -> tuple[Ticket, ...]:
        admitted: list[Ticket] = []
        while (ticket := self._admissible()) is not None:
            self._line.remove(ticket.id)
            self._start(ticket)
            admitted.append(ticket)
        return tuple(admitted)

    def _admissible(self) -> Ticket | None:
        """Return the first ticket that may start, or ``None``."""
        if self._paused:
            return None
        lanes: set[Lane] = self._line.lanes
        # A lane that is closed to one ticket is closed to those behind it.
        if self._exclusive is not None:
            lanes = {lane for lane in lanes if not lane[1] or self._bypasses(lane[0])}
        for ticket in self._line:
            if not lanes:
                return None
            lane = (ticket.model, ticket.exclusive)
            if lane not in lanes:
                continue
            if self._bypasses(ticket.model):
                return ticket
            if not ticket.exclusive and not self._has_place(self._models[ticket.model], ticket):
                lanes.discard(lane)
            elif ticket.kv_bytes <= self._budget.free_bytes:
                return ticket
            else:
                # Nobody may take bytes that it waits for.
                lanes = {other for other in lanes if self._bypasses(other[0])}
        return None

    def _bypasses(self, model: str) -> bool:
        return self._models[model].mode == "bypass"

    @staticmethod
    def _has_place(model: _Model, ticket: Ticket) -> bool:
        """Return whether a batch takes a ticket; an empty one takes any, even one larger than itself."""
        return not model.sequences or model.sequences + ticket.sequences <= model.batch

    def _start(self, ticket: Ticket) -> None:
        model = self._models[ticket.model]
        model.running += 1
        model.sequences += ticket.sequences
        self._budget.take(ticket)
        self._running[ticket.id] = ticket
        self._counts.admitted += 1
        if ticket.exclusive and model.mode != "bypass":
            self._exclusive = ticket.id

    def _stop(self, ticket_id: int) -> bool:
        ticket = self._running.pop(ticket_id, None)
        if ticket is None:
            return False
        self._budget.give_back(ticket_id)
        if self._exclusive == ticket_id:
            self._exclusive = None
        model = self._models.get(ticket.model)
        if model is not None:
            model.running -= 1
            model.sequences -= ticket.sequences
        return True

    def _lose(self, tickets: Iterable[Ticket]) -> None:
        for ticket in tickets:
            if self._stop(ticket.id):
                self._counts.lost += 1


def _step(state: State) -> Step | None:
    return state.step if isinstance(state, Degraded) else None
