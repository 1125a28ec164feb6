"""The engines by name. Importing this module imports none of them: a framework is loaded only where it is used."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from importlib import metadata
from typing import Final, Protocol, cast

import msgspec

from tokenweir.core.errors import ConfigError, MissingExtraError
from tokenweir.core.requests import Json
from tokenweir.ports.inference import InferenceEngine
from tokenweir.runtime.models.artifacts import LIMIT_BYTES


class EngineOptions(msgspec.Struct, frozen=True, kw_only=True):
    """What every engine is made with.

    ``limit_bytes`` caps the device's memory; 0 leaves it to the engine. ``prefix_cache_bytes`` bounds the kept
    prompts, ``artifacts`` is a directory for what is worth keeping on disk (empty: none), ``artifact_bytes`` the most
    that is kept there. ``options`` are the engine's own; an unknown one is refused.
    """

    limit_bytes: int = 0
    prefix_cache_bytes: int = 0
    artifacts: str = ""
    artifact_bytes: int = LIMIT_BYTES
    options: Mapping[str, Json] = {}


class EngineModule(Protocol):
    """What a module in the registry offers."""

    def create(self, options: EngineOptions) -> InferenceEngine:
        """Return the engine. Called on the thread that owns the device. Raises ConfigError for bad options."""
        ...


class _Entry(msgspec.Struct, frozen=True):
    module: str
    distribution: str
    extra: str = ""


_ENGINES: Final[Mapping[str, _Entry]] = {
    "mlx": _Entry("tokenweir.runtime.engines.mlx", "mlx-lm", "runtime"),
    "mlx-vision": _Entry("tokenweir.runtime.engines.mlx.vision", "mlx-vlm", "vision"),
    "sim": _Entry("tokenweir.runtime.engines.sim", "tokenweir"),
}


def names() -> tuple[str, ...]:
    """Return the engines that settings may name."""
    return tuple(_ENGINES)


def create(name: str, options: EngineOptions) -> InferenceEngine:
    """Import and make the engine called ``name``.

    Raises:
        ConfigError: there is no such engine, or it does not take these options.
        MissingExtraError: what it runs on is not installed.
    """
    entry = _entry(name)
    try:
        module = cast("EngineModule", importlib.import_module(entry.module))
    except ModuleNotFoundError as error:
        if not entry.extra or (error.name or "").startswith("tokenweir."):
            raise
        raise MissingExtraError(
            f"the engine {name!r} needs the package {error.name!r}",
            mend=f"pip install 'tokenweir[{entry.extra}]', or choose the engine 'sim'",
        ) from None
    return module.create(options)


def version(name: str) -> str:
    """Return the version of what the engine runs on; empty when it is not installed."""
    try:
        return metadata.version(_entry(name).distribution)
    except metadata.PackageNotFoundError:
        return ""


def _entry(name: str) -> _Entry:
    entry = _ENGINES.get(name)
    if entry is None:
        raise ConfigError(f"unknown engine {name!r}", mend=f"the engines are {', '.join(_ENGINES)}")
    return entry
