"""The settings of the model server, ``[runtime]`` in ``weir.toml``."""

from __future__ import annotations

import re
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Final, Literal

import platformdirs
from pydantic import AfterValidator, ConfigDict, Field, field_validator

from tokenweir.config import DurationNs, SecretRef, SettingsModel, TlsSettings
from tokenweir.core.errors import ConfigError
from tokenweir.runtime.models.artifacts import LIMIT_BYTES

_MS: Final = 1_000_000
_S: Final = 1_000 * _MS
_AMOUNT: Final = re.compile(r"(?P<number>\d+(?:\.\d+)?)\s*(?P<unit>[KMGT]i?B|B)?", re.IGNORECASE)
_UNITS: Final = {
    **{f"{letter}ib": 1 << 10 * power for power, letter in enumerate("kmgt", 1)},
    **{f"{letter}b": 1_000**power for power, letter in enumerate("kmgt", 1)},
    "b": 1,
}


def bytes_of(amount: str, total_bytes: int) -> int:
    """Return an amount of memory in bytes: ``"12GiB"``, ``"800MB"``, ``"1048576"``, or a share of the whole, ``"0.8"``.

    Raises:
        ConfigError: it is no amount, or a share above 1.
    """
    match = _AMOUNT.fullmatch(amount.strip())
    if match is None:
        raise ConfigError(
            f"{amount!r} is no amount of memory", mend="write 12GiB, 800MB, or a share such as 0.8"
        )
    number, unit = Decimal(match["number"]), match["unit"]
    if unit is None and "." in match["number"]:
        if number > 1:
            raise ConfigError(f"the share {amount!r} is more than the whole", mend="write 0.8, or a unit")
        return int(number * total_bytes)
    return int(number * _UNITS[(unit or "B").lower()])


def _checked(amount: str) -> str:
    try:
        bytes_of(amount, 0)
    except ConfigError as error:
        reason = str(error)
        raise ValueError(reason) from error
    return amount


Amount = Annotated[str, AfterValidator(_checked)]
"""The type of a setting that is an amount of memory; :func:`bytes_of` reads it."""

SchedulerMode = Literal["on", "off", "bypass"]
"""``on`` admits and controls; ``off`` admits, without the controller; ``bypass`` hands everything to the device."""


class ModelSettings(SettingsModel):
    """``[[runtime.models]]``: a model that is loaded at the start, and again after a restart of the engine."""

    name: str | None = Field(
        default=None, min_length=1, description="What clients call it; without one, the directory's name."
    )
    path: Path = Field(description="Its directory.")
    weight_bits: Literal[4, 8] | None = Field(
        default=None, description="Quantise the weights to so many bits while loading."
    )
    context_tokens: int | None = Field(
        default=None, ge=2, description="Longest prompt and answer together, where less than the model's own."
    )
    default_max_tokens: int | None = Field(
        default=None,
        ge=0,
        description="Output tokens of a chat that states none; without one, `runtime.default_max_tokens`.",
    )
    draft: Path | None = Field(default=None, description="Directory of a draft model for speculation.")
    scheduler: SchedulerMode | None = Field(
        default=None, description="Scheduling of this model; without one, that of `runtime.scheduler`."
    )

    @property
    def called(self) -> str:
        """What clients call it."""
        return self.name or self.path.expanduser().resolve().name


class Settings(SettingsModel):
    """One model server: where it listens, what it serves, and how its engine's process is looked after.

    Durations are held in nanoseconds.
    """

    model_config = ConfigDict(arbitrary_types_allowed=True)

    host: str = Field(default="127.0.0.1", description="Address to listen on.")
    port: int = Field(default=8100, ge=0, le=65_535, description="Port of HTTP; 0 picks a free one.")
    grpc_port: int | None = Field(
        default=None,
        ge=0,
        le=65_535,
        description="Port of gRPC; 0 picks a free one, without one there is none.",
    )
    api_key: SecretRef | None = Field(
        default=None, description="Key that clients must send, as env:NAME or file:PATH."
    )
    tls: TlsSettings | None = Field(
        default=None, description="TLS for HTTP and gRPC; without it, both are plain."
    )
    log_prompts: bool = Field(
        default=False, description="Write prompts and answers of chats and completions into the log."
    )
    max_body_bytes: int = Field(default=64 << 20, ge=1024, description="Longest request body; more gets 413.")
    max_header_bytes: int = Field(
        default=32 << 10, ge=1024, description="Longest head of a request; more gets 431."
    )
    read_timeout: DurationNs = Field(
        default=30 * _S, gt=0, description="Time a client may take to send a request; then it gets 408."
    )
    write_timeout: DurationNs = Field(
        default=300 * _S, gt=0, description="Time a client may read nothing; then its connection is closed."
    )
    idle_timeout: DurationNs = Field(
        default=75 * _S, gt=0, description="Time a connection is kept open between requests."
    )
    max_images: int = Field(default=16, ge=0, description="Images in one request, at most.")
    max_image_bytes: int = Field(default=16 << 20, ge=1, description="Bytes of one encoded image, at most.")
    max_image_pixels: int = Field(default=32_000_000, ge=1, description="Pixels of one image, at most.")

    engine: Literal["auto", "mlx", "sim"] = Field(
        default="auto", description="What runs the models; auto: mlx, or sim where every model is simulated."
    )
    engine_options: dict[str, str | int | float | bool] = Field(
        default_factory=dict, description="Options of the engine itself, as its page lists them."
    )
    models: tuple[ModelSettings, ...] = Field(default=(), description="Models loaded at the start.")
    artifacts: Path = Field(
        default_factory=lambda: platformdirs.user_cache_path("tokenweir") / "runtime",
        description="Directory for prompt caches and converted weights.",
    )
    artifact_bytes: int = Field(
        default=LIMIT_BYTES,
        ge=0,
        description="Bytes kept there, at most; the least recently used goes first.",
    )

    memory_limit: Amount = Field(
        default="0.7",
        description="Memory for weights and caches: 12GiB, 800MB, or a share of this machine's, such as 0.7.",
    )
    process_limit: Amount = Field(
        default="0.9",
        description="Memory of the engine's process above which it is drained and restarted; written likewise.",
    )
    prefix_cache_bytes: int = Field(
        default=512 << 20, ge=0, description="Bytes for the caches of prompts seen before; 0: none are kept."
    )
    idle_ttl: DurationNs | None = Field(
        default=None, description="Unload a model that nobody asked for so long; without one, never."
    )

    scheduler: SchedulerMode = Field(
        default="on",
        description="on: admit by memory and keep the ITL down; off: admit only; bypass: neither.",
    )
    itl_target: DurationNs = Field(
        default=250 * _MS, gt=0, description="p95 of the ITL above which the scheduler takes load away."
    )
    max_batch: int = Field(default=64, ge=1, description="Sequences decoded at once, at most.")
    prefill_tokens: int = Field(
        default=512, ge=16, description="Prompt tokens read in one step while others decode."
    )
    default_max_tokens: int = Field(
        default=2048,
        ge=0,
        description="Output tokens of a chat that states none, as far as the context goes; 0: all of the context.",
    )
    max_active_streams: int = Field(
        default=512, ge=1, description="Requests in work and waiting; further ones get 429."
    )
    stream_tokens: int = Field(
        default=64, ge=2, description="Tokens buffered for a reader; a slower one holds its stream, no other."
    )
    request_timeout: DurationNs | None = Field(
        default=None, description="Time a request may take that states none itself; without one, any."
    )

    startup_timeout: DurationNs = Field(
        default=60 * _S, gt=0, description="Time the engine's process may take to be ready."
    )
    load_timeout: DurationNs = Field(default=600 * _S, gt=0, description="Time a model may take to load.")
    heartbeat: DurationNs = Field(default=1 * _S, gt=0, description="Interval of the engine's heartbeat.")
    stall_timeout: DurationNs = Field(
        default=30 * _S, gt=0, description="Silence, or standstill of the device, after which it is killed."
    )
    drain_timeout: DurationNs = Field(
        default=30 * _S, description="Time that running requests get to finish before a stop or restart."
    )
    restart_wait: DurationNs = Field(
        default=10 * _S, description="Time a request waits for an engine that restarts, before it gets 503."
    )
    restart_delay: DurationNs = Field(
        default=100 * _MS, gt=0, description="Delay of the first restart; doubles with each further one."
    )
    restart_delay_max: DurationNs = Field(default=30 * _S, gt=0, description="Longest delay of a restart.")
    breaker_failures: int = Field(
        default=5, ge=1, description="Failures within breaker_window after which restarting is given up."
    )
    breaker_window: DurationNs = Field(
        default=60 * _S, gt=0, description="The time in which failures are counted."
    )
    breaker_open: DurationNs = Field(
        default=30 * _S, gt=0, description="Time after which restarting is tried again."
    )

    @field_validator("models")
    @classmethod
    def _names_differ(cls, models: tuple[ModelSettings, ...]) -> tuple[ModelSettings, ...]:
        names = [model.called for model in models]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            reason = f"two models are named {twice[0]!r}"
            raise ValueError(reason)
        return models
