"""``[gateway]``: the door, its limits, its prices."""

from __future__ import annotations

from pydantic import Field

from tokenweir.config import DurationNs, SettingsModel

_S = 1_000_000_000


class PriceSettings(SettingsModel):
    """``[[gateway.prices]]``: what a model's tokens cost."""

    model: str = Field(description="The model, as callers name it.")
    input: float = Field(ge=0, description="Price of a million input tokens.")
    output: float = Field(ge=0, description="Price of a million output tokens.")
    cached: float | None = Field(
        default=None, ge=0, description="Price of a million input tokens found in a cache; default: as input."
    )


class Settings(SettingsModel):
    """``[gateway]``: the door before model servers."""

    host: str = Field(default="127.0.0.1", description="Address to listen on.")
    port: int = Field(default=8080, ge=0, le=65535, description="Port to listen on; 0 picks a free one.")
    max_body_bytes: int = Field(default=8 << 20, gt=0, description="Longest request body.")
    max_header_bytes: int = Field(default=32 << 10, gt=0, description="Longest request line and headers.")
    read_timeout: DurationNs = Field(
        default=30 * _S, gt=0, description="How long a request may take to arrive."
    )
    write_timeout: DurationNs = Field(
        default=300 * _S, gt=0, description="How long a client may read nothing."
    )
    idle_timeout: DurationNs = Field(
        default=75 * _S, gt=0, description="How long an unused connection stays open."
    )
    drain_timeout: DurationNs = Field(
        default=30 * _S, gt=0, description="How long answers on their way may take once the server stops."
    )
    connect_timeout: DurationNs = Field(
        default=5 * _S, gt=0, description="How long an endpoint may take to connect."
    )
    answer_timeout: DurationNs = Field(
        default=600 * _S, gt=0, description="How long an endpoint may take to begin its answer."
    )
    silence_timeout: DurationNs = Field(
        default=120 * _S, gt=0, description="How long an endpoint may be silent amid an answer."
    )
    max_streams: int = Field(
        default=8192,
        gt=0,
        description="Direct requests at once; each needs two descriptors. More are refused, 503.",
    )
    endpoint_connections: int = Field(default=4096, gt=0, description="Open connections to one endpoint.")
    attempts: int = Field(default=3, ge=1, le=10, description="Endpoints asked before a first byte has come.")
    health_interval: DurationNs = Field(
        default=5 * _S, gt=0, description="How often endpoints are looked at."
    )
    default_output_tokens: int = Field(
        default=512, gt=0, description="Output set aside for a key and model that have no history."
    )
    reservation_lease: DurationNs = Field(
        default=900 * _S,
        gt=0,
        description="How long a reservation stands after a crash before it is charged.",
    )
    currency: str = Field(default="USD", max_length=8, description="Currency of the prices.")
    prices: tuple[PriceSettings, ...] = Field(default=(), description="What tokens cost, by model.")
