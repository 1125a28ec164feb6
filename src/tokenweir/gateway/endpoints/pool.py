"""Which endpoint is asked: of those that serve the model and are well, the one with the least in flight for its weight.

Sans-IO: time is passed in. An endpoint that fails again and again is left alone by its breaker for a while; one whose
health check fails is asked only when no other is left.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterable, Mapping, Sequence
from typing import Final, Protocol

import msgspec

from tokenweir.core.breaker import Breaker, BreakerPolicy, BreakerState, HalfOpen
from tokenweir.core.errors import NotFoundError, OverloadedError, ParameterError
from tokenweir.core.events import Event
from tokenweir.core.requests import Kind
from tokenweir.gateway.endpoints.upstream import UpstreamClient
from tokenweir.ports.tokenizer import TokenCounter

_POLICY: Final = BreakerPolicy(failures=5, window_ns=10_000_000_000, open_ns=5_000_000_000)
_FALLBACK: Final = 1_000_000


class EndpointFacts(msgspec.Struct, frozen=True, kw_only=True):
    """What is configured of an endpoint.

    ``model`` is what callers name, ``upstream_model`` what the server is asked for. ``order`` ranks fallbacks:
    one with a higher order is asked when all lower ones are out. ``pool`` restricts it to tiers of that pool;
    "" serves all. ``authorization`` is the header's value, or "".
    """

    name: str
    kind: str
    model: str
    upstream_model: str
    weight: float = 1.0
    order: int = 0
    pool: str = ""
    most_in_flight: int = 4096
    authorization: str = ""

    def __repr__(self) -> str:
        # The authorization is a secret.
        return f"EndpointFacts(name={self.name!r}, model={self.model!r})"


class Rpc(Protocol):
    """A model server that is asked over gRPC."""

    def answer(
        self, kind: Kind, body: bytes, *, model: str, headers: bytes = b""
    ) -> AsyncGenerator[Sequence[Event]]:
        """Yield the events of a request with OpenAI's body, up to its end; ``headers`` are lines that go with it.

        Raises ParameterError, EndpointError.
        """
        ...

    async def health(self) -> str:
        """Return why the server takes no requests; "" where it does. Raises EndpointError."""
        ...

    async def close(self) -> None:
        """Close the connection."""
        ...


class Endpoint:
    """An endpoint at work."""

    __slots__ = ("_heads", "answered", "breaker", "client", "facts", "failed", "in_flight", "rpc", "well")

    def __init__(
        self,
        facts: EndpointFacts,
        client: UpstreamClient,
        policy: BreakerPolicy = _POLICY,
        *,
        rpc: Rpc | None = None,
    ) -> None:
        self.facts = facts
        self.client = client
        self.rpc = rpc
        """What it is asked through where its URL is one of gRPC; ``client`` then only says where it is."""
        self.breaker = Breaker(policy)
        self.in_flight = 0
        self.answered = self.failed = 0
        self._heads: dict[bytes, bytes] = {}
        self.well = True
        """What the last health check said."""

    def head(self, path: bytes) -> bytes:
        """Return the head of a POST to one of our routes, up to the value of its last header, content-length."""
        head = self._heads.get(path)
        if head is None:
            origin, authorization = self.client.origin, self.facts.authorization
            lines = [
                b"POST %b%b HTTP/1.1" % (origin.base.encode(), path),
                b"host: " + origin.authority.encode(),
                b"content-type: application/json",
                b"accept-encoding: identity",
                *((b"authorization: " + authorization.encode(),) if authorization else ()),
                b"content-length: ",
            ]
            head = self._heads[path] = b"\r\n".join(lines)
        return head

    def load(self) -> float:
        """Return what is in flight for its weight."""
        return (self.in_flight + 1) / self.facts.weight

    def may_be_asked(self, now_ns: int) -> bool:
        """Whether it has room and its breaker lets a request through; one alone while that is half open."""
        if self.in_flight >= self.facts.most_in_flight or not self.breaker.may_try(now_ns):
            return False
        return not (isinstance(self.breaker.state, HalfOpen) and self.in_flight)


class EndpointState(msgspec.Struct, frozen=True, kw_only=True):
    """How an endpoint stands, for metrics and the page."""

    name: str
    model: str
    in_flight: int
    well: bool
    breaker: BreakerState
    answered: int = 0
    failed: int = 0


class Pool:
    """All endpoints, by the model they serve. ``tokenizers`` are those of the models where they are known."""

    def __init__(
        self, endpoints: Iterable[Endpoint], *, tokenizers: Mapping[str, TokenCounter] | None = None
    ) -> None:
        self.endpoints = tuple(endpoints)
        self.tokenizers: Mapping[str, TokenCounter] = tokenizers or {}
        self._by_model: dict[str, list[Endpoint]] = {}
        for endpoint in self.endpoints:
            self._by_model.setdefault(endpoint.facts.model, []).append(endpoint)

    @property
    def models(self) -> Sequence[str]:
        """The models that can be asked for, in the order of the settings."""
        return tuple(self._by_model)

    def need(self, model: str) -> None:
        """Raise NotFoundError unless some endpoint serves the model."""
        if model not in self._by_model:
            known = ", ".join(self._by_model) or "none is configured"
            raise NotFoundError(f"the model {model!r} does not exist", mend=f"models here: {known}")

    def choose(
        self,
        model: str,
        now_ns: int,
        *,
        pool: str = "",
        tried: Sequence[Endpoint] = (),
        over_rpc: bool = False,
    ) -> Endpoint:
        """Return the endpoint to ask next, leaving out those ``tried``; its ``in_flight`` counts the request from now.

        Those of gRPC are left out too unless the caller can ask ``over_rpc``: their answers cannot be passed as bytes.

        Raises:
            NotFoundError: no endpoint serves the model.
            ParameterError: only such serve it as the caller cannot ask.
            OverloadedError: all that serve it are out, or full.
        """
        serving = self._by_model.get(model)
        if serving is None:
            self.need(model)
            serving = []
        candidates = [
            endpoint
            for endpoint in serving
            if endpoint not in tried
            and (over_rpc or endpoint.rpc is None)
            and (not endpoint.facts.pool or endpoint.facts.pool == pool)
            and endpoint.may_be_asked(now_ns)
        ]
        if not candidates:
            if not over_rpc and all(endpoint.rpc is not None for endpoint in serving):
                raise ParameterError(
                    f"the model {model!r} answers queued requests alone",
                    param="model",
                    mend="POST /v1/requests",
                )
            raise OverloadedError(
                f"no endpoint of the model {model!r} can take a request now",
                mend="try again shortly",
                retry_after_ns=self._soonest(model, now_ns),
            )
        chosen = candidates[0] if len(candidates) == 1 else min(candidates, key=_rank)
        chosen.in_flight += 1
        return chosen

    def done(self, endpoint: Endpoint, *, failed: bool, now_ns: int) -> None:
        """Note how a request went: ``failed`` is the server's own failure, not the caller's."""
        endpoint.in_flight -= 1
        if failed:
            endpoint.failed += 1
            endpoint.breaker.failed(now_ns)
        else:
            endpoint.answered += 1
            endpoint.breaker.proved()

    def states(self) -> Sequence[EndpointState]:
        """Return how each endpoint stands."""
        return [
            EndpointState(
                name=endpoint.facts.name,
                model=endpoint.facts.model,
                in_flight=endpoint.in_flight,
                well=endpoint.well,
                breaker=endpoint.breaker.state,
                answered=endpoint.answered,
                failed=endpoint.failed,
            )
            for endpoint in self.endpoints
        ]

    def _soonest(self, model: str, now_ns: int) -> int:
        """Return in how long the first breaker of the model lets a trial through; a second where none is open."""
        times = [
            until - now_ns
            for endpoint in self._by_model[model]
            if (until := getattr(endpoint.breaker.state, "until_ns", 0)) > now_ns
        ]
        return min(times, default=1_000_000_000)


def _rank(endpoint: Endpoint) -> tuple[int, float]:
    return endpoint.facts.order + (0 if endpoint.well else _FALLBACK), endpoint.load()
