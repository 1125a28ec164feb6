"""What the runtime says of itself: the types behind ``/health``, ``/ready``, ``/v1/models`` and the gauges."""

from __future__ import annotations

from typing import Literal

import msgspec

from tokenweir.core.breaker import BreakerState
from tokenweir.ports.inference import DeviceMemory, ModelCard
from tokenweir.runtime.supervision.lifecycle import LifeState

ModelState = Literal["loaded", "loading", "unloaded", "failed"]
"""``unloaded``: known, and loaded when asked for. ``failed``: the last loading failed; ``reason`` says why."""


class ModelStatus(msgspec.Struct, frozen=True, kw_only=True):
    """A model that may be asked for. ``answered`` says that it made a token since it was loaded.

    ``put_away`` says that it was unloaded to spare memory, and comes back when it is asked for.
    """

    card: ModelCard
    state: ModelState
    answered: bool = False
    put_away: bool = False
    streams: int = 0
    reason: str = ""


class SchedulerStatus(msgspec.Struct, frozen=True, kw_only=True):
    """The scheduler: ``state`` is ``enabled``, ``degraded``, ``bypass`` or ``draining``; ``reason`` says why.

    ``step`` counts how far a degraded one has gone. ``oldest_wait_ns`` is the age of the oldest waiting request.
    """

    state: str
    reason: str = ""
    step: int = 0
    running: int = 0
    waiting: int = 0
    oldest_wait_ns: int = 0
    admitted_bytes: int = 0
    limit_bytes: int = 0


class DeviceStatus(msgspec.Struct, frozen=True, kw_only=True):
    """One engine's process. ``memory`` is ``None`` before its first heartbeat."""

    name: str
    engine: str
    engine_version: str
    lifecycle: LifeState
    breaker: BreakerState
    memory: DeviceMemory | None = None
    rss_bytes: int = 0
    streams: int = 0
    restarts: int = 0
    epoch: int = 0


class EngineHealth(msgspec.Struct, frozen=True, kw_only=True):
    """The whole runtime at one moment. ``memory`` is ``None`` while there is no engine's process to ask.

    Models that see run in a process of their own, so there may be two ``devices``: the rest sums them up, and
    ``lifecycle`` and ``breaker`` are those of the first that is not ready.
    """

    lifecycle: LifeState
    breaker: BreakerState
    scheduler: SchedulerStatus
    models: tuple[ModelStatus, ...] = ()
    memory: DeviceMemory | None = None
    rss_bytes: int = 0
    streams: int = 0
    restarts: int = 0
    epoch: int = 0
    engine: str = ""
    engine_version: str = ""
    devices: tuple[DeviceStatus, ...] = ()
