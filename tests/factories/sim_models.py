"""Directories of simulated models, and engines that run them in this process."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import msgspec

from tokenweir.core.requests import Json
from tokenweir.ports.inference import (
    Capability,
    DecodeSequence,
    Decoding,
    Lane,
    LoadSpec,
    ModelCard,
    StepEvent,
    StepLimits,
)
from tokenweir.runtime.engines.registry import EngineOptions
from tokenweir.runtime.engines.sim import SimEngine, SimModel

CAPABILITIES: tuple[Capability, ...] = (
    "chat",
    "completion",
    "embedding",
    "vision",
    "tools",
    "guidance",
    "logprobs",
    "draft",
    "quantised_kv",
    "seed",
)
LIMITS = StepLimits(batch=64, prefill_tokens=512)


def directory(at: Path, **keys: Json) -> Path:
    """Write a simulated model's directory."""
    at.mkdir(parents=True, exist_ok=True)
    (at / "config.json").write_bytes(msgspec.json.encode({"architecture": "sim", **keys}))
    return at


def card(path: Path, *, context_tokens: int = 4096, weights_bytes: int = 0) -> ModelCard:
    """Return what is known of it before loading."""
    return ModelCard(
        name="m",
        path=str(path),
        revision="0" * 64,
        architecture="sim",
        context_tokens=context_tokens,
        vocabulary=512,
        weights_bytes=weights_bytes,
        kv_bytes_per_token=1024,
        capabilities=CAPABILITIES,
    )


def load(path: Path, *, prefix_cache_bytes: int = 1 << 20, draft: str | None = None) -> SimModel:
    """Load a directory with an engine of its own."""
    engine = SimEngine(EngineOptions(prefix_cache_bytes=prefix_cache_bytes))
    return engine.load(LoadSpec(name="m", path=str(path), draft=draft), card(path))


def sequence(
    number: int, tokens: Sequence[int], *, lane: Lane = "batch", **decoding: object
) -> DecodeSequence:
    """Return a sequence to decode, greedy unless told otherwise."""
    fields: dict[str, object] = {"max_tokens": 1000, "temperature": 0.0, **decoding}
    return DecodeSequence(
        sequence=number, tokens=tuple(tokens), decoding=msgspec.convert(fields, Decoding), lane=lane
    )


def of_sequence(events: Iterable[StepEvent], number: int) -> list[StepEvent]:
    """Return the events of one sequence."""
    return [event for event in events if event.sequence == number]
