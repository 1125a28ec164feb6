"""What the engine tells of itself, gathered from its devices."""

from __future__ import annotations

from collections.abc import Sequence
from typing import assert_never

from tokenweir.core.breaker import Closed
from tokenweir.ports.inference import DeviceMemory
from tokenweir.runtime.device import Device
from tokenweir.runtime.health import DeviceStatus, EngineHealth, ModelStatus, SchedulerStatus
from tokenweir.runtime.scheduling.figures import SchedulerFigures
from tokenweir.runtime.scheduling.states import Bypass, Degraded, Draining, Enabled, State, severity
from tokenweir.runtime.supervision.lifecycle import Ready, Stopped
from tokenweir.runtime.supervision.reconcile import Absent, Loaded, Loading, Refused, Suspect

_STEPS = {"shrink": 1, "shed": 2, "refuse": 3}


def model_status(device: Device, name: str) -> ModelStatus:
    """Return how one model is."""
    model = device.models.get(name)
    refusal = model.refusal()
    match model.presence:
        case Loaded():
            state = "loaded"
        case Loading():
            state = "loading"
        case Absent():
            state = "unloaded"
        case Refused() | Suspect():
            state = "failed"
        case _:
            assert_never(model.presence)
    return ModelStatus(
        card=model.card,
        state=state,
        answered=model.answered,
        put_away=isinstance(model.presence, Absent) and not model.wanted,
        streams=sum(stream.model == name for stream in device.streams),
        reason=str(refusal) if refusal is not None else "",
    )


def device_status(device: Device) -> DeviceStatus:
    """Return how one process is."""
    supervisor = device.supervisor
    pulse = supervisor.pulse
    return DeviceStatus(
        name=device.spec.device,
        engine=device.spec.engine,
        engine_version=device.engine_version,
        lifecycle=supervisor.state,
        breaker=supervisor.breaker,
        memory=pulse.memory if pulse is not None else None,
        rss_bytes=pulse.rss_bytes if pulse is not None else 0,
        streams=len(device.streams),
        restarts=supervisor.restarts,
        epoch=supervisor.epoch,
    )


def engine_health(
    devices: Sequence[Device], models: Sequence[ModelStatus], *, engine: str, now_ns: int
) -> EngineHealth:
    """Return the whole. Where there are several processes, the first that is not ready speaks for all."""
    told = tuple(map(device_status, devices))
    first = next((one for one in told if not isinstance(one.lifecycle, Ready)), told[0] if told else None)
    return EngineHealth(
        lifecycle=first.lifecycle if first is not None else Stopped(),
        breaker=first.breaker if first is not None else Closed(),
        scheduler=scheduler_status(devices, now_ns),
        models=tuple(models),
        memory=_memory([one.memory for one in told if one.memory is not None]),
        rss_bytes=sum(one.rss_bytes for one in told),
        streams=sum(one.streams for one in told),
        restarts=sum(one.restarts for one in told),
        epoch=max((one.epoch for one in told), default=0),
        engine=engine,
        engine_version=first.engine_version if first is not None else "",
        devices=told,
    )


def scheduler_status(devices: Sequence[Device], now_ns: int) -> SchedulerStatus:
    """Return the schedulers as one: the worst state, and the sums."""
    figures = [device.scheduler.figures(now_ns) for device in devices]
    worst: State = max((one.state for one in figures), key=severity, default=Enabled())
    return SchedulerStatus(
        state=str(type(worst).__struct_config__.tag),
        reason=worst.reason if isinstance(worst, Degraded) else "",
        step=_step(worst),
        running=sum(one.running for one in figures),
        waiting=sum(sum(one.waiting.values()) for one in figures),
        oldest_wait_ns=max((device.flow.oldest_wait_ns(now_ns) for device in devices), default=0),
        admitted_bytes=sum(one.taken_bytes for one in figures),
        limit_bytes=_limit_bytes(figures),
    )


def _limit_bytes(figures: Sequence[SchedulerFigures]) -> int:
    """Return the bytes that all may use: processes with models divide them, one without has no part."""
    parts = [one.limit_bytes for one in figures if one.models]
    return sum(parts) if parts else max((one.limit_bytes for one in figures), default=0)


def _step(state: State) -> int:
    match state:
        case Degraded(step=step):
            return _STEPS[step]
        case Enabled() | Bypass() | Draining():
            return 0
        case _:
            assert_never(state)


def _memory(parts: Sequence[DeviceMemory]) -> DeviceMemory | None:
    if not parts:
        return None
    return DeviceMemory(
        active_bytes=sum(one.active_bytes for one in parts),
        cached_bytes=sum(one.cached_bytes for one in parts),
        limit_bytes=max(one.limit_bytes for one in parts),
    )
