"""What the scheduler tells metrics and ``/health``."""

from __future__ import annotations

import msgspec

from tokenweir.runtime.options import Priority
from tokenweir.runtime.scheduling.states import State
from tokenweir.runtime.settings import SchedulerMode


class Counts(msgspec.Struct, kw_only=True):
    """Tickets since the start.

    Every one that was submitted is waiting, running, or in exactly one of the other counts: submitted = refused +
    waiting + running + finished + cancelled + expired + shed + lost. ``admitted`` counts those that ever ran;
    ``lost`` are those that ran when the engine's process went.
    """

    submitted: int = 0
    admitted: int = 0
    finished: int = 0
    cancelled: int = 0
    expired: int = 0
    shed: int = 0
    refused: int = 0
    lost: int = 0


class ModelFigures(msgspec.Struct, frozen=True, kw_only=True):
    """One model: what its controller does, and its tickets now."""

    model: str
    mode: SchedulerMode
    state: State
    itl_p95_ns: int | None
    batch: int
    prefill_tokens: int
    running: int
    running_sequences: int
    waiting: int


class SchedulerFigures(msgspec.Struct, frozen=True, kw_only=True):
    """The whole scheduler. ``taken_bytes`` is reserved by running tickets, of the ``room_bytes`` beside the weights."""

    state: State
    models: tuple[ModelFigures, ...]
    waiting: dict[Priority, int]
    running: int
    exclusive: int
    limit_bytes: int
    weights_bytes: int
    room_bytes: int
    taken_bytes: int
    per_second: float | None
    counts: Counts
