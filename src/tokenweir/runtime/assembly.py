"""From settings to the parts of a device: what its process is told, and how it is looked after."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from typing import Final, Literal

from tokenweir.core.breaker import BreakerPolicy
from tokenweir.core.clock import Clock
from tokenweir.core.errors import MissingExtraError
from tokenweir.ports.inference import ModelCard
from tokenweir.runtime.device import Device, DeviceCalls, DeviceOptions
from tokenweir.runtime.scheduling.scheduler import Scheduler, SchedulerOptions
from tokenweir.runtime.settings import Settings, bytes_of
from tokenweir.runtime.supervision.lifecycle import LifePolicy
from tokenweir.runtime.supervision.supervisor import EngineSpec, SupervisionPolicy

SIM: Final = "sim"
"""The engine, and the architecture of its models."""

DeviceName = Literal["text", "vision"]
"""Which process: models that see have one of their own."""

_MLX: Final = "mlx"
_MLX_VISION: Final = "mlx-vision"
_PROOF_BEATS: Final = 2


def engine_for(choice: Literal["auto", "mlx", "sim"], cards: Sequence[ModelCard]) -> str:
    """Return the engine that settings choose; ``auto`` is the simulator only where every model is simulated.

    Raises:
        MissingExtraError: it is MLX, which is not installed.
    """
    if choice == SIM or (choice == "auto" and cards and all(card.architecture == SIM for card in cards)):
        return SIM
    if importlib.util.find_spec("mlx") is None or importlib.util.find_spec("mlx_lm") is None:
        raise MissingExtraError(
            "models are run by MLX, which is not installed here",
            mend="pip install 'tokenweir[runtime]' (Apple silicon, or Linux), or choose the engine 'sim'",
        )
    return _MLX


def make_device(
    settings: Settings, name: DeviceName, engine: str, calls: DeviceCalls, *, total_bytes: int, clock: Clock
) -> Device:
    """Return a device that is not started yet."""
    limit_bytes = bytes_of(settings.memory_limit, total_bytes)
    reserved_bytes = prefix_cache_bytes(settings, limit_bytes)
    spec = EngineSpec(
        device=name,
        engine=_MLX_VISION if name == "vision" and engine == _MLX else engine,
        limit_bytes=limit_bytes,
        prefix_cache_bytes=reserved_bytes,
        # A stream that was cancelled here lives there until the end of the step.
        max_active_streams=2 * settings.max_active_streams,
        artifacts=str(settings.artifacts.expanduser()),
        artifact_bytes=settings.artifact_bytes,
        options={
            "max_batch": settings.max_batch,
            "prefill_tokens": settings.prefill_tokens,
            "max_images": settings.max_images,
            "max_image_bytes": settings.max_image_bytes,
            "max_image_pixels": settings.max_image_pixels,
            "default_max_tokens": settings.default_max_tokens,
            **settings.engine_options,
        },
    )
    scheduler = Scheduler(
        SchedulerOptions(
            limit_bytes=limit_bytes,
            reserved_bytes=reserved_bytes,
            itl_target_ns=settings.itl_target,
            max_batch=settings.max_batch,
            prefill_tokens=settings.prefill_tokens,
            max_waiting=settings.max_active_streams,
        )
    )
    options = DeviceOptions(
        max_active_streams=settings.max_active_streams,
        stream_tokens=settings.stream_tokens,
        load_timeout_ns=settings.load_timeout,
        call_timeout_ns=settings.stall_timeout,
    )
    return Device(spec, _policy(settings, total_bytes), options, scheduler, calls, clock=clock)


def prefix_cache_bytes(settings: Settings, limit_bytes: int) -> int:
    """Return what the prefix cache may take: what the settings say, and a quarter of the whole at most."""
    return min(settings.prefix_cache_bytes, limit_bytes // 4)


def _policy(settings: Settings, total_bytes: int) -> SupervisionPolicy:
    life = LifePolicy(
        startup_ns=settings.startup_timeout,
        stall_ns=settings.stall_timeout,
        slow_stall_ns=max(settings.stall_timeout, settings.load_timeout),
        drain_ns=settings.drain_timeout,
        delay_ns=settings.restart_delay,
        delay_max_ns=max(settings.restart_delay, settings.restart_delay_max),
        limit_bytes=bytes_of(settings.process_limit, total_bytes),
        proof_ns=_PROOF_BEATS * settings.heartbeat,
    )
    breaker = BreakerPolicy(
        failures=settings.breaker_failures,
        window_ns=settings.breaker_window,
        open_ns=settings.breaker_open,
    )
    return SupervisionPolicy(
        life=life,
        breaker=breaker,
        heartbeat_ns=settings.heartbeat,
        wait_ns=settings.restart_wait,
        start_wait_ns=settings.startup_timeout,
    )
