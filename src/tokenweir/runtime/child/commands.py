"""What the RPC thread asks of the device thread: plain values in a queue, each with a place for its answer."""

from __future__ import annotations

from concurrent.futures import Future
from typing import TypeAlias

import msgspec

from tokenweir.ports.inference import DeviceMemory, LoadSpec, ModelCard, StepLimits
from tokenweir.runtime.bridge.messages import Cancel, Credit, Done, Embedded, Tune
from tokenweir.runtime.child.requests import Request
from tokenweir.runtime.engines.registry import EngineOptions


class Begin(msgspec.Struct, frozen=True, kw_only=True):
    """Make the engine. ``limits`` are what a step may do until it is tuned."""

    engine: str
    options: EngineOptions
    limits: StepLimits
    answer: Future[DeviceMemory]


class LoadModel(msgspec.Struct, frozen=True, kw_only=True):
    """Load a model."""

    spec: LoadSpec
    card: ModelCard
    answer: Future[ModelCard]


class UnloadModel(msgspec.Struct, frozen=True, kw_only=True):
    """Unload a model."""

    model: str
    answer: Future[DeviceMemory]


class EmbedTokens(msgspec.Struct, frozen=True, kw_only=True):
    """Turn token sequences into vectors."""

    model: str
    inputs: tuple[tuple[int, ...], ...]
    answer: Future[Embedded]


class StartStream(msgspec.Struct, frozen=True, kw_only=True):
    """Decode a prepared request. ``asked_ns`` is when the server asked for it (CLOCK_MONOTONIC)."""

    request: Request
    first_seq: int
    credits: int
    asked_ns: int


class Stop(msgspec.Struct, frozen=True, kw_only=True):
    """Unload everything and end the thread."""

    answer: Future[Done]


Command: TypeAlias = (
    Begin | LoadModel | UnloadModel | EmbedTokens | StartStream | Stop | Credit | Cancel | Tune
)
