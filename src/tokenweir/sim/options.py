"""What a simulator can be told, in the light form its own process and ``POST /sim/flags`` read."""

from __future__ import annotations

from typing import Final, cast

import msgspec

from tokenweir.core.errors import ConfigError
from tokenweir.core.requests import Json

FIXED: Final = frozenset({"host", "port", "connections", "api_key"})
"""Options of the listening process: they cannot change while it runs."""

READY_PREFIX: Final = "weir sim: "
READY_SUFFIX: Final = " ready"
"""Around the URL in the one line that a simulator prints once it listens."""


class Options(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Settings of one simulator; :class:`tokenweir.sim.settings.Settings` documents each field.

    Durations and distributions are text as people write them; ``api_key`` is the key itself.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    model: str = "sim"
    commit: str | None = None
    revision: str | None = None
    seed: int = 0
    ttft: str = "constant:50ms"
    itl: str = "constant:20ms"
    prefill: str = "0us"
    slowdown: float = 0.0
    max_batch: int = 0
    max_waiting: int = 0
    kv_tokens: int = 0
    context_tokens: int = 131_072
    tokens_per_chunk: str = "constant:1"
    output_tokens: str = "max"
    default_tokens: int = 64
    eos: float = 0.0
    prefix_cache_tokens: int = 0
    embedding_size: int = 64
    early_headers: bool = False
    strict_model: bool = False
    script: str | None = None
    tokenizer: str | None = None
    faults: tuple[str, ...] = ()
    api_key: str | None = None
    connections: int = 0
    max_body_bytes: int = 33_554_432


def read_options(data: bytes) -> Options:
    """Return the options that a JSON object states. Raises ConfigError for what they cannot be."""
    try:
        return msgspec.json.decode(data, type=Options)
    except msgspec.DecodeError as error:
        raise ConfigError(
            f"the simulator's options cannot be read: {error}", mend="see docs/simulator.md"
        ) from None


def changed(options: Options, changes: dict[str, Json]) -> Options:
    """Return ``options`` with ``changes`` laid over it. Raises ConfigError for an unknown or fixed one."""
    for name in changes:
        if name in FIXED:
            raise ConfigError(f"{name!r} cannot change while the simulator runs", mend="start another one")
    try:
        return msgspec.convert({**msgspec.to_builtins(options), **changes}, Options)
    except msgspec.ValidationError as error:
        raise ConfigError(
            f"the simulator cannot take these flags: {error}", mend="see GET /sim/info"
        ) from None


def public(options: Options) -> dict[str, Json]:
    """Return the options that describe the engine, as JSON: not where it listens, and not the key."""
    flags = cast("dict[str, Json]", msgspec.to_builtins(options))
    return {name: value for name, value in flags.items() if name not in FIXED}
