"""Wires traces: what makes them is imported only where the settings say where they go."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Callable, Mapping
from importlib import import_module
from typing import Protocol, cast

from tokenweir.config import TelemetrySettings
from tokenweir.core.errors import ConfigError, MissingExtraError
from tokenweir.telemetry.spans import Tracer


class _OpenTracer(Tracer, Protocol):
    def close(self) -> None: ...


class _Library(Protocol):
    otlp: Callable[[str, Mapping[str, str]], object]
    OtelTracer: Callable[..., _OpenTracer]


@contextlib.asynccontextmanager
async def open_tracer(settings: TelemetrySettings, service: str) -> AsyncGenerator[Tracer | None]:
    """Yield what traces, if anything does; at the end what is left is sent.

    Raises:
        ConfigError: the header cannot be read or used.
        MissingExtraError: OpenTelemetry is not installed.
    """
    if settings.traces is None:
        yield None
        return
    try:
        library = cast("_Library", import_module("tokenweir.telemetry.tracing"))
    except ImportError as error:
        raise MissingExtraError(
            "traces need OpenTelemetry, which is not installed", mend="pip install 'tokenweir[gateway]'"
        ) from error
    sender = library.otlp(settings.traces, _header(settings))
    tracer = library.OtelTracer(settings.service or service, sender, sample=settings.sample)
    try:
        yield tracer
    finally:
        # It waits for the server that spans go to.
        await asyncio.to_thread(tracer.close)


def _header(settings: TelemetrySettings) -> dict[str, str]:
    if settings.traces_header is None:
        return {}
    name, colon, value = settings.traces_header.read().partition(":")
    if not colon or not name.strip():
        raise ConfigError("telemetry.traces_header names no header", mend="write NAME: VALUE there")
    return {name.strip().lower(): value.strip()}
