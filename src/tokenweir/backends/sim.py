"""The simulator: OpenAI's shapes, true send times on every event, and an identity that leaves nothing out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import msgspec

from tokenweir.backends import openai
from tokenweir.backends.failures import http_error
from tokenweir.core.errors import EndpointError
from tokenweir.core.requests import GenerateRequest, Json
from tokenweir.ports.backend import HttpRequest, HttpResponse, Identity
from tokenweir.ports.timing import TimingDecoder

ACTIONS: Final[Mapping[str, str]] = {"flush": "/flush_cache"}


class Info(msgspec.Struct):
    """The answer of ``GET /sim/info``."""

    version: str | None = None
    commit: str | None = None
    model: str | None = None
    revision: str | None = None
    flags: dict[str, Json] = {}
    max_model_tokens: int | None = None


class SimBackend:
    """``weir sim`` under its own name. OpenAI's decoders read ``sent_ns`` wherever it stands."""

    __slots__ = ()

    @property
    def kind(self) -> str:
        """The name used in settings."""
        return "sim"

    def encode(self, request: GenerateRequest) -> HttpRequest:
        """Return the HTTP request for the OpenAI route. Raises SpecError as that does."""
        return openai.encode(request)

    def decoder(self, request: GenerateRequest) -> TimingDecoder:
        """Return a decoder for the 200 answer to ``request``."""
        return openai.decoder(request)

    def error(self, response: HttpResponse) -> EndpointError:
        """Return the error that an answer other than 200 means."""
        return http_error(response)

    def health(self) -> HttpRequest:
        """Return GET /health."""
        return HttpRequest(method="GET", path="/health")

    def identity_probes(self) -> Sequence[HttpRequest]:
        """Return GET /sim/info."""
        return (HttpRequest(method="GET", path="/sim/info"),)

    def identity(self, answers: Sequence[HttpResponse]) -> Identity:
        """Read what the simulator says of itself."""
        fields = ("version", "commit", "model", "revision")
        try:
            info = msgspec.convert(openai.fields(answers[0]), Info)
        except msgspec.ValidationError as error:
            return Identity(missing=dict.fromkeys(fields, f"/sim/info cannot be read: {error}"))
        told = {field: getattr(info, field) for field in fields}
        missing = {field: "/sim/info does not tell it" for field, value in told.items() if value is None}
        return Identity(
            version=info.version,
            commit=info.commit,
            model=info.model,
            revision=info.revision,
            flags=info.flags,
            max_model_tokens=info.max_model_tokens,
            missing=missing,
        )

    def action(self, name: str, options: Mapping[str, Json]) -> HttpRequest | None:
        """Return the request for ``flush``; the simulator has nothing to profile."""
        del options
        path = ACTIONS.get(name)
        return None if path is None else HttpRequest(method="POST", path=path)
