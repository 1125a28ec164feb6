"""Probes and figures: liveness, readiness, metrics."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import msgspec
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric

from tokenweir.asgi.call import Call
from tokenweir.runtime.health import EngineHealth, ModelStatus
from tokenweir.runtime.http.door import Build, Door
from tokenweir.runtime.http.metrics import CONTENT_TYPE, PREFIX
from tokenweir.runtime.supervision.lifecycle import Ready

_NS_PER_S = 1_000_000_000
_LIFE = ("stopped", "starting", "ready", "draining", "unhealthy", "backing_off", "broken", "stopping")
_BREAKER = ("closed", "open", "half_open")
_SCHEDULER = ("enabled", "degraded", "bypass", "draining")


class Alive(msgspec.Struct, frozen=True, kw_only=True):
    """The answer of ``GET /health``: the server lives, and this is what it knows of its engine."""

    status: str
    version: str
    commit: str | None
    engine: EngineHealth


class Readiness(msgspec.Struct, frozen=True, kw_only=True):
    """The answer of ``GET /ready``; ``reason`` is empty when it is."""

    ready: bool
    reason: str = ""


def alive(door: Door) -> Alive:
    """Return what the server knows of its engine."""
    now = door.serving.health()
    status = "degraded" if unready(now) else "ok"
    return Alive(status=status, version=door.build.version, commit=door.build.commit, engine=now)


async def health(door: Door, call: Call) -> None:
    """Answer ``GET /health``: always 200 while this process lives, whatever becomes of the engine's."""
    await call.answer_json(alive(door))


async def version(door: Door, call: Call) -> None:
    """Answer ``GET /version``: what is running, so that a measurement can be attributed."""
    await call.answer_json(door.build)


async def ready(door: Door, call: Call) -> None:
    """Answer ``GET /ready``: 200 once a loaded model has made a token, else 503 with the reason."""
    reason = unready(door.serving.health())
    headers = [(b"retry-after", b"1")] if reason else []
    await call.answer_json(
        Readiness(ready=not reason, reason=reason), status=503 if reason else 200, headers=headers
    )


async def metrics(door: Door, call: Call) -> None:
    """Answer ``GET /metrics``."""
    await call.answer(200, door.metrics.text(), kind=CONTENT_TYPE)


def unready(now: EngineHealth) -> str:
    """Return why requests would not be answered now; empty when they would."""
    life = now.lifecycle
    if not isinstance(life, Ready):
        reason = getattr(life, "reason", "")
        return f"the engine's process is {_name(life)}" + (f": {reason}" if reason else "")
    if now.scheduler.state == "draining":
        return "the server is draining"
    loaded = [status for status in now.models if status.state == "loaded"]
    if any(status.answered or not _speaks(status) for status in loaded):
        return ""
    if not loaded and any(status.put_away for status in now.models):
        # Nobody would ask for it, and so bring it back, if that counted as not ready.
        return ""
    if loaded:
        return f"{loaded[0].card.name!r} is loaded and has made no token yet"
    known = ", ".join(f"{status.card.name!r} is {status.state}" for status in now.models)
    return f"no model is loaded ({known})" if known else "no model is loaded"


def _speaks(status: ModelStatus) -> bool:
    """Return whether a model makes tokens at all; one that only embeds is ready when it is loaded."""
    return not {"chat", "completion"}.isdisjoint(status.card.capabilities)


def gauges(now: EngineHealth, build: Build, prefix_bytes: Mapping[str, int]) -> Iterable[Metric]:
    """Yield the families that are read from the engine's health; ``prefix_bytes`` are those last told, by model."""
    info = GaugeMetricFamily(
        PREFIX + "info", "1; what is running.", labels=("version", "commit", "engine", "engine_version")
    )
    info.add_metric((build.version, build.commit or "", now.engine, now.engine_version), 1)
    yield info
    life = _states("lifecycle_state", "1 for the state of an engine's process.", "device")
    breaker = _states("breaker_state", "1 for the state of its circuit breaker.", "device")
    for device in now.devices:
        _add_states(life, _LIFE, _name(device.lifecycle), device.name)
        _add_states(breaker, _BREAKER, _name(device.breaker), device.name)
    scheduler = _states("scheduler_state", "1 for the state of the scheduler.")
    _add_states(scheduler, _SCHEDULER, now.scheduler.state)
    yield from (life, breaker, scheduler)
    restarts = CounterMetricFamily(PREFIX + "restarts", "Restarts of the engine's process.")
    restarts.add_metric((), now.restarts)
    yield restarts
    plan = now.scheduler
    for name, value, what in (
        ("streams", now.streams, "Requests in work and waiting."),
        ("running_requests", plan.running, "Requests that the scheduler has admitted."),
        ("queue_requests", plan.waiting, "Requests that wait for admission."),
        ("queue_age_seconds", plan.oldest_wait_ns / _NS_PER_S, "Age of the oldest waiting request."),
        ("degraded_step", plan.step, "How far the scheduler has taken load away; 0: not at all."),
        ("admitted_bytes", plan.admitted_bytes, "Bytes set aside for admitted requests."),
    ):
        gauge = GaugeMetricFamily(PREFIX + name, what)
        gauge.add_metric((), value)
        yield gauge
    memory = GaugeMetricFamily(
        PREFIX + "memory_bytes", "Memory: of the process, and of the device by use.", labels=("kind",)
    )
    memory.add_metric(("process",), now.rss_bytes)
    if now.memory is not None:
        memory.add_metric(("active",), now.memory.active_bytes)
        memory.add_metric(("cached",), now.memory.cached_bytes)
        memory.add_metric(("limit",), now.memory.limit_bytes)
    yield memory
    models = GaugeMetricFamily(
        PREFIX + "model_loaded", "1 while the model is loaded.", labels=("model", "revision")
    )
    kept = GaugeMetricFamily(PREFIX + "prefix_bytes", "Bytes that the prefix cache holds.", labels=("model",))
    for status in now.models:
        name, is_loaded = status.card.name, status.state == "loaded"
        models.add_metric((name, status.card.revision), is_loaded)
        if is_loaded:
            kept.add_metric((name,), prefix_bytes.get(name, 0))
    yield models
    yield kept


def _states(name: str, what: str, *labels: str) -> GaugeMetricFamily:
    return GaugeMetricFamily(PREFIX + name, what, labels=(*labels, "state"))


def _add_states(family: GaugeMetricFamily, known: tuple[str, ...], state: str, *labels: str) -> None:
    for one in known:
        family.add_metric((*labels, one), one == state)


def _name(state: msgspec.Struct) -> str:
    return str(state.__struct_config__.tag)
