"""How to talk to a serving engine: sans-IO, so the bench, the gateway, the evals and the page share one codec."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import msgspec

from tokenweir.core.errors import EndpointError
from tokenweir.core.events import Event
from tokenweir.core.requests import GenerateRequest, Json


class HttpRequest(msgspec.Struct, frozen=True, kw_only=True):
    """An HTTP request without its transport. ``path`` starts with ``/`` and is appended to the endpoint's URL.

    ``headers`` have lower-case names and leave out host, content-length, accept-encoding and authorization:
    the transport adds those.
    """

    method: str
    path: str
    headers: tuple[tuple[str, str], ...] = ()
    body: bytes = b""


class HttpResponse(msgspec.Struct, frozen=True, kw_only=True):
    """A whole HTTP answer. ``headers`` have lower-case names. ``status`` 0 means that no answer came."""

    status: int
    headers: Mapping[str, str] = {}
    body: bytes = b""


class StreamDecoder(Protocol):
    """Turns the body of one answer, streamed or not, into events.

    A decoder belongs to one answer and numbers its events' ``seq`` from 0.
    """

    def feed(self, data: bytes) -> Sequence[tuple[int, Event]]:
        """Return the events that ``data`` completes.

        Each comes with the offset, in the body bytes fed so far, just past the bytes that completed it, so that
        it can be tied to the read that delivered it. Accepts any split of the body. Never raises for bad
        input: what cannot be understood becomes a ``Failed`` event, after which nothing more comes.
        """
        ...

    def end(self) -> Sequence[tuple[int, Event]]:
        """Return the events that the end of the body implies: exactly one ending event if none came yet.

        A stream that stops before the engine said how it finished is a ``Failed`` of kind ``protocol``.
        """
        ...


class Identity(msgspec.Struct, frozen=True, kw_only=True):
    """What an endpoint says of itself. ``None`` means that it does not say; ``missing`` gives the reason by field."""

    version: str | None = None
    commit: str | None = None
    model: str | None = None
    revision: str | None = None
    flags: Mapping[str, Json] = {}
    model_path: str | None = None
    max_model_tokens: int | None = None
    missing: Mapping[str, str] = {}


class Codec(Protocol):
    """One serving engine's request and answer formats."""

    @property
    def kind(self) -> str:
        """The name used in settings: ``openai``, ``sglang``, ``sglang_jax``, ``sim``."""
        ...

    def encode(self, request: GenerateRequest) -> HttpRequest:
        """Return the HTTP request. Raises SpecError for what this engine cannot be asked."""
        ...

    def decoder(self, request: GenerateRequest) -> StreamDecoder:
        """Return a decoder for the 200 answer to ``request``."""
        ...

    def error(self, response: HttpResponse) -> EndpointError:
        """Return the error that an answer other than 200 means, with the engine's own words and the mend."""
        ...


class Control(Protocol):
    """One serving engine's side doors. An empty sequence or ``None`` means that the engine has no such door."""

    def health(self) -> HttpRequest:
        """Return the request that shows whether the engine can answer; 200 means yes."""
        ...

    def identity_probes(self) -> Sequence[HttpRequest]:
        """Return the requests whose answers identify the engine; any of them may fail."""
        ...

    def identity(self, answers: Sequence[HttpResponse]) -> Identity:
        """Read the answers to :meth:`identity_probes`, in the same order. Never guesses."""
        ...

    def action(self, name: str, options: Mapping[str, Json]) -> HttpRequest | None:
        """Return the request for ``flush``, ``start_profile``, ``stop_profile`` or ``abort``."""
        ...


class Backend(Codec, Control, Protocol):
    """A serving engine: its formats and its side doors."""
