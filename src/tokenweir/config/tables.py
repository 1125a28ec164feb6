"""The tables of settings that belong to no slice alone."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal, Self

from pydantic import ConfigDict, Field, field_validator, model_validator

from tokenweir.config.environment import home
from tokenweir.config.types import SecretRef, SettingsModel


class LogSettings(SettingsModel):
    """``[log]``: what is reported while a command runs, on standard error."""

    level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="The least severe line that is written."
    )
    format: Literal["auto", "console", "json"] = Field(
        default="auto", description="How a line looks; auto: console on a terminal, else json."
    )


class TelemetrySettings(SettingsModel):
    """``[telemetry]``: traces of gateways and workers. What there is to count is at their ``/metrics``."""

    model_config = ConfigDict(arbitrary_types_allowed=True)

    traces: str | None = Field(
        default=None,
        description="Where spans are sent over OTLP/HTTP, without the path: http://127.0.0.1:4318. Without it nothing"
        " is traced.",
    )
    traces_header: SecretRef | None = Field(
        default=None, description="Where a header for it is found, written NAME: VALUE."
    )
    sample: float = Field(
        default=1.0,
        ge=0,
        le=1,
        description="Share of traces that begin here; others are the caller's to decide.",
    )
    service: str | None = Field(
        default=None,
        description="service.name of spans; without one, that of the process: weir-gateway, weir-worker.",
    )

    @field_validator("traces")
    @classmethod
    def _has_scheme(cls, url: str | None) -> str | None:
        if url is not None and not re.match(r"https?://[^/]", url):
            reason = "a URL begins with http:// or https:// and a host"
            raise ValueError(reason)
        return url


def _default_records() -> str:
    return f"sqlite:///{home() / 'studio.db'}"


def _default_gateway() -> str:
    return f"sqlite:///{home() / 'gateway.db'}"


def _default_access() -> str:
    return f"sqlite:///{home() / 'access.db'}"


class StoreSettings(SettingsModel):
    """``[stores]``: where things are kept. A URL's scheme picks the adapter."""

    records: str = Field(
        default_factory=_default_records,
        description="The index of runs; by default SQLite in WEIR_HOME, or the user's data directory.",
    )
    gateway: str = Field(
        default_factory=_default_gateway,
        description="Requests, reservations, ledger, queue and events; one process writes to a SQLite file. "
        "postgresql://… is shared, and needs quota, queue and events.",
    )
    quota: str = Field(
        default="", description="Quota counters: redis://…; by default they are in gateway's SQLite file."
    )
    queue: str = Field(
        default="", description="Jobs: amqp://… or kafka://…; by default they are in gateway's SQLite file."
    )
    events: str = Field(
        default="", description="Events: kafka://…; by default they are in gateway's SQLite file."
    )
    access: str = Field(
        default_factory=_default_access,
        description="Users, teams, API keys (their digests alone), tiers, limits.",
    )
    runs: Path = Field(default=Path("runs"), description="The directory in which run directories are made.")


class _IdentitySettings(SettingsModel):
    """A certificate of ours."""

    model_config = ConfigDict(arbitrary_types_allowed=True)

    key_password: SecretRef | None = Field(
        default=None, description="Where the password of an encrypted key is found."
    )


class TlsSettings(_IdentitySettings):
    """A listener's ``tls`` table: TLS 1.2 and above, and nothing else at its port."""

    certificate: Path = Field(description="PEM file of the certificate, and of what leads to its authority.")
    key: Path = Field(description="PEM file of its private key.")
    client_ca: Path | None = Field(
        default=None,
        description="PEM file of the authority whose certificates clients must show; without one they need none.",
    )


class ClientTlsSettings(_IdentitySettings):
    """A client's ``tls`` table: whom it trusts, and what it shows."""

    ca: Path | None = Field(
        default=None, description="PEM file of the authority to trust, in the stead of the system's."
    )
    certificate: Path | None = Field(default=None, description="PEM file of the certificate to show.")
    key: Path | None = Field(default=None, description="PEM file of its private key.")

    @model_validator(mode="after")
    def _both(self) -> Self:
        if (self.certificate is None) != (self.key is None):
            reason = "a certificate and its key belong together"
            raise ValueError(reason)
        return self


class EndpointSettings(SettingsModel):
    """``[[endpoints]]``: a served model, under a name."""

    model_config = ConfigDict(arbitrary_types_allowed=True)

    name: str = Field(min_length=1, description="What commands call it; no two are alike.")
    kind: Literal["openai", "sglang", "sglang_jax", "sim", "tokenweir"] = Field(
        description="The protocol it speaks."
    )
    url: str = Field(
        description="Where it is: http:// or https://, host, port and any path before /v1; of kind tokenweir also "
        "grpc:// or grpcs://, host and port."
    )
    model: str | None = Field(default=None, description="The model's name there.")
    key: SecretRef | None = Field(
        default=None, description="Where its API key is found: env:NAME or file:PATH, never the key itself."
    )
    tokenizer: Path | None = Field(
        default=None,
        description="The model's tokenizer.json, or a folder that holds one: the gateway counts with it what it"
        " sets aside for prompts, and what a server says no usage of.",
    )
    commit: str | None = Field(default=None, description="The engine's commit, which it may not say itself.")
    revision: str | None = Field(
        default=None, description="The model's revision, which it may not say itself."
    )
    weight: float = Field(default=1.0, gt=0, description="Its share where several endpoints share work.")
    order: int = Field(
        default=0,
        ge=0,
        le=1000,
        description="Its rank as a fallback: asked when all with a lower one are out.",
    )
    pool: str = Field(
        default="", description="The pool of tiers that it is kept for; without one it is for all."
    )
    tls: ClientTlsSettings | None = Field(
        default=None, description="Whom to trust at an https:// URL, and what to show there."
    )

    @field_validator("url")
    @classmethod
    def _has_scheme(cls, url: str) -> str:
        if not re.match(r"(https?|grpcs?)://[^/]", url):
            reason = "a URL begins with http://, https:// or grpc:// and a host"
            raise ValueError(reason)
        return url.rstrip("/")
