"""``weir runtime``: OpenAI's shapes, and an identity that leaves nothing out."""

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

_PROBES: Final = ("/v1/models", "/version", "/health")


class _Card(msgspec.Struct):
    """How a model is run."""

    weight_bits: int | None = None
    draft: str | None = None
    max_model_len: int | None = None


class _Cards(msgspec.Struct):
    """The answer of ``/v1/models``, as far as it tells how."""

    data: list[_Card]


class _Engine(msgspec.Struct):
    """What runs the models."""

    engine: str = ""
    engine_version: str = ""


class _Health(msgspec.Struct):
    """The answer of ``/health``, as far as it names the engine."""

    engine: _Engine


class TokenweirBackend:
    """``weir runtime`` under its own name."""

    __slots__ = ()

    @property
    def kind(self) -> str:
        """The name used in settings."""
        return "tokenweir"

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
        """Return GET /ready: 200 once a loaded model has made a token."""
        return HttpRequest(method="GET", path="/ready")

    def identity_probes(self) -> Sequence[HttpRequest]:
        """Return the requests whose answers identify server, model and engine."""
        return tuple(HttpRequest(method="GET", path=path) for path in _PROBES)

    def identity(self, answers: Sequence[HttpResponse]) -> Identity:
        """Read version, commit and the only model's revision; the engine and how it runs the model are flags."""
        known = openai.read_identity(answers)
        return msgspec.structs.replace(known, flags=_flags(answers))

    def action(self, name: str, options: Mapping[str, Json]) -> HttpRequest | None:
        """Return nothing: there are no such doors."""
        del name, options
        return None


def _flags(answers: Sequence[HttpResponse]) -> dict[str, Json]:
    flags: dict[str, Json] = {}
    try:
        engine = msgspec.json.decode(answers[2].body, type=_Health).engine
        flags |= {"engine": engine.engine, "engine_version": engine.engine_version}
        cards = msgspec.json.decode(answers[0].body, type=_Cards).data
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return flags
    if len(cards) == 1:
        (card,) = cards
        flags |= {"weight_bits": card.weight_bits, "draft": card.draft, "context_tokens": card.max_model_len}
    return flags
