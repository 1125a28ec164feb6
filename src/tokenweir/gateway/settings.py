"""``[gateway]``, ``[worker]``, ``[collector]``: the door, its limits, its prices; who works; who settles and tells."""

from __future__ import annotations

from pydantic import ConfigDict, Field

from tokenweir.config import ClientTlsSettings, DurationNs, SecretRef, SettingsModel, TlsSettings
from tokenweir.gateway.brownout.settings import RungSettings, SloSettings
from tokenweir.gateway.pipeline.settings import ProcessorSettings

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

    model_config = ConfigDict(arbitrary_types_allowed=True)

    host: str = Field(default="127.0.0.1", description="Address to listen on.")
    port: int = Field(default=8080, ge=0, le=65535, description="Port to listen on; 0 picks a free one.")
    tls: TlsSettings | None = Field(default=None, description="TLS for the door; without it, plain HTTP.")
    log_prompts: bool = Field(default=False, description="Write the bodies of requests into the log.")
    endpoint_networks: tuple[str, ...] = Field(
        default=(),
        description="Networks (10.0.0.0/8) that endpoints may be in; without any, all but link-local ones, where"
        " clouds keep their metadata, and those that are no host's.",
    )
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
    queue_lease: DurationNs = Field(
        default=86_400 * _S,
        gt=0,
        description="How long the reservation of a queued request stands while it waits for a worker.",
    )
    heartbeat: DurationNs = Field(
        default=15 * _S, gt=0, description="How often a silent event stream or WebSocket says that it lives."
    )
    max_event_streams: int = Field(
        default=12_000, gt=0, description="Open event streams and WebSockets. More are refused, 503."
    )
    seal_keys: tuple[SecretRef, ...] = Field(
        default=(),
        description="Where the keys are found that bodies, logs and events are encrypted with: the first seals,"
        " all open.",
    )
    slo: SloSettings = Field(
        default_factory=SloSettings,
        description="The waits that callers are meant to have; they drive the brown-out.",
    )
    brownout: tuple[RungSettings, ...] = Field(
        default=(), description="What is given up under load, in order; without any, nothing is."
    )
    max_file_bytes: int = Field(default=200 << 20, gt=0, description="Longest file that is sent to be kept.")
    max_stored_bytes: int = Field(
        default=10 << 30, gt=0, description="Most bytes that the files of one user have together."
    )
    pipeline: tuple[ProcessorSettings, ...] = Field(
        default=(),
        description="What requests pass at the door, in order, and direct answers on their way back.",
    )
    batch_lines: int = Field(
        default=16, ge=1, le=1024, description="Lines of one batch that are worked on at once."
    )
    currency: str = Field(default="USD", max_length=8, description="Currency of the prices.")
    prices: tuple[PriceSettings, ...] = Field(default=(), description="What tokens cost, by model.")


class WorkerSettings(SettingsModel):
    """``[worker]``: who takes queued requests to the endpoints."""

    concurrency: int = Field(default=128, ge=1, le=65_536, description="Queued requests worked on at once.")
    attempts: int = Field(default=5, ge=1, le=100, description="How often a queued request is tried in all.")
    backoff: DurationNs = Field(
        default=_S // 2, gt=0, description="Pause before the second attempt; doubled and jittered each time."
    )
    pipeline: tuple[ProcessorSettings, ...] = Field(
        default=(),
        description="What queued requests pass before an endpoint is asked, and their answers after.",
    )
    backoff_limit: DurationNs = Field(default=60 * _S, gt=0, description="Longest pause between attempts.")
    lease: DurationNs = Field(
        default=30 * _S, gt=0, description="How long a worker that is gone keeps others from its requests."
    )
    metrics_host: str = Field(default="127.0.0.1", description="Address of the door of metrics and probes.")
    metrics_port: int | None = Field(
        default=None, ge=0, le=65_535, description="Its port; 0 picks a free one, without one there is none."
    )
    tls: TlsSettings | None = Field(default=None, description="TLS for that door; without it, plain HTTP.")
    sweep_interval: DurationNs = Field(
        default=5 * _S, gt=0, description="How often requests that nobody has in hand are looked for."
    )


class CollectorSettings(SettingsModel):
    """``[collector]``: who settles ended requests and calls webhooks."""

    model_config = ConfigDict(arbitrary_types_allowed=True)

    pipeline: tuple[ProcessorSettings, ...] = Field(
        default=(), description="What ended queued requests pass before they are settled and filed."
    )
    webhook_secret: SecretRef | None = Field(
        default=None,
        description="Where the secret is found that webhooks are signed with; without one there are none.",
    )
    webhook_hosts: tuple[str, ...] = Field(
        default=(), description="Hosts that webhooks may name although their addresses are not public."
    )
    webhook_attempts: int = Field(default=8, ge=1, le=20, description="How often a webhook is called in all.")
    webhook_tls: ClientTlsSettings | None = Field(
        default=None, description="Whom webhooks trust at https:// URLs, and what they show there."
    )
    metrics_host: str = Field(default="127.0.0.1", description="Address of the door of metrics and probes.")
    metrics_port: int | None = Field(
        default=None, ge=0, le=65_535, description="Its port; 0 picks a free one, without one there is none."
    )
    tls: TlsSettings | None = Field(default=None, description="TLS for that door; without it, plain HTTP.")
    webhook_timeout: DurationNs = Field(
        default=10 * _S, gt=0, description="How long a webhook may take to answer."
    )
