"""The engine: one device, the models on it, and the memory they share."""

from __future__ import annotations

from pathlib import Path
from typing import Final, TypeVar

import mlx.core as mx
import msgspec

from tokenweir.core.errors import ConfigError, NoMemoryError
from tokenweir.ports.inference import DeviceMemory, LoadedModel, LoadSpec, ModelCard
from tokenweir.runtime.engines.mlx.model import Caches, MlxModel, give_back
from tokenweir.runtime.engines.registry import EngineOptions
from tokenweir.runtime.models.artifacts import ArtifactCache

_FREED_SHARE: Final = 8
_FREED_MOST: Final = 1 << 30

Own = TypeVar("Own", bound=msgspec.Struct)


class MlxOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The engine's own options.

    ``freed_bytes`` is how much freed memory the allocator keeps for the next array: an eighth of the limit, 1 GiB at
    most, unless given. ``persist_prefixes`` keeps prompts on disk when a model is unloaded.
    """

    freed_bytes: int | None = None
    persist_prefixes: bool = False


class MlxEngine:
    """Runs language models with MLX, on Metal or on a CPU.

    Everything but a model's format is called on the thread that made the engine.
    """

    name = "mlx"

    def __init__(self, options: EngineOptions) -> None:
        own = read_options(options, MlxOptions)
        self._limit = set_limits(options.limit_bytes, own.freed_bytes)
        self._caches = Caches(
            prefix_bytes=options.prefix_cache_bytes,
            artifacts=ArtifactCache(Path(options.artifacts), options.artifact_bytes)
            if options.artifacts
            else None,
            persist=own.persist_prefixes,
        )

    def load(self, spec: LoadSpec, card: ModelCard) -> LoadedModel:
        """Load a model whose files are described by ``card``.

        Raises:
            InputError: the files are not what this engine runs; the message names the file and the mend.
            NoMemoryError: its weights do not fit beside what is loaded; the message has the arithmetic.
        """
        check_room(card, self._limit)
        try:
            return MlxModel(spec, card, self._caches)
        except BaseException:
            give_back()
            raise

    def memory(self) -> DeviceMemory:
        """Return what the device holds now."""
        return device_memory(self._limit)


def device_memory(limit_bytes: int) -> DeviceMemory:
    """Return what the device holds now."""
    return DeviceMemory(
        active_bytes=mx.get_active_memory(), cached_bytes=mx.get_cache_memory(), limit_bytes=limit_bytes
    )


def read_options(options: EngineOptions, kind: type[Own]) -> Own:
    """Return the engine's own options. Raises ConfigError for one that it does not have."""
    try:
        return msgspec.convert(dict(options.options), kind)
    except msgspec.ValidationError as error:
        known = ", ".join(field.name for field in msgspec.structs.fields(kind))
        raise ConfigError(f"an option of the engine is wrong: {error}", mend=f"it has {known}") from error


def set_limits(limit_bytes: int, freed_bytes: int | None) -> int:
    """Tell the device how much it may take, and keep for reuse; return the limit."""
    limit = limit_bytes if limit_bytes > 0 else mx.get_memory_limit()
    mx.set_memory_limit(limit)
    mx.set_cache_limit(freed_bytes if freed_bytes is not None else min(limit // _FREED_SHARE, _FREED_MOST))
    return limit


def check_room(card: ModelCard, limit_bytes: int) -> None:
    """Check that a model's weights fit beside what is loaded.

    Raises:
        NoMemoryError: they do not.
    """
    taken = mx.get_active_memory()
    if taken + card.weights_bytes > limit_bytes:
        raise NoMemoryError(
            f"the weights of {card.name!r} take {card.weights_bytes} bytes, and of {limit_bytes} bytes {taken} are "
            f"taken: {taken + card.weights_bytes - limit_bytes} bytes are missing",
            mend="unload a model, quantise this one (weight_bits), or raise the memory limit",
        )
