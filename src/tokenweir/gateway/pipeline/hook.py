"""``use = "hook"``: somebody else's server is asked about requests, or told of their ends."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Sequence
from typing import Any, Final, Literal
from urllib.parse import urlsplit

import msgspec
from pydantic import ConfigDict, Field, field_validator

from tokenweir.config import DurationNs, SecretRef, SettingsModel
from tokenweir.core.clock import Clock
from tokenweir.core.errors import (
    EndpointError,
    ForbiddenError,
    ProtocolError,
    UnavailableError,
    UnreachableError,
)
from tokenweir.core.requests import Json
from tokenweir.gateway.endpoints.addresses import AddressRules
from tokenweir.gateway.endpoints.upstream import Origin, Timeouts, UpstreamClient
from tokenweir.gateway.pipeline.metadata import facts
from tokenweir.gateway.pipeline.processor import Ask, Context, End, Kind, Processor, Ready
from tokenweir.gateway.queued.endings import Ended
from tokenweir.gateway.queued.kept import request_id
from tokenweir.gateway.queued.webhooks import is_public, signature
from tokenweir.telemetry.logs import get_logger

_LOG = get_logger("tokenweir.gateway.pipeline")
_S: Final = 1_000_000_000
_GOOD: Final = range(200, 300)
_ANSWER_BYTES: Final = 16 << 20
_SHOWN: Final = 500


class HookSettings(SettingsModel):
    """Keys of ``use = "hook"``."""

    model_config = ConfigDict(arbitrary_types_allowed=True)

    url: str = Field(description="What is called, with POST.")
    timeout: DurationNs = Field(default=2 * _S, gt=0, description="How long it may take in all.")
    on_failure: Literal["refuse", "pass"] = Field(
        default="refuse",
        description="What becomes of a request that it does not answer for: 503, or on it goes.",
    )
    body: bool = Field(
        default=True, description="Whether it is sent what was asked, and at the end what was answered."
    )
    secret: SecretRef | None = Field(
        default=None, description="Where the secret is found that calls are signed with, as webhooks are."
    )
    hosts: tuple[str, ...] = Field(default=(), description="Its host, where its addresses are not public.")
    connections: int = Field(default=64, ge=1, description="Calls at once; more wait.")

    @field_validator("url")
    @classmethod
    def _callable(cls, url: str) -> str:
        parts = urlsplit(url)
        if parts.scheme not in {"http", "https"} or not parts.hostname or parts.username or parts.fragment:
            reason = f"the URL {url!r} cannot be called; write https://, a host and a path"
            raise ValueError(reason)
        return url


class PublicHosts(AddressRules):
    """Only addresses that all the world can call, but for the hosts that are named."""

    def __init__(self, hosts: Sequence[str]) -> None:
        super().__init__()
        self._hosts = frozenset(hosts)

    async def resolve(self, host: str, port: int) -> Sequence[str]:
        """Return the addresses of a host. Raises OSError, UnreachableError."""
        if host in self._hosts:
            return await super().resolve(host, port)
        found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
        addresses = [str(entry[4][0]) for entry in found]
        # One that may not be called among several is reason enough: another look-up may give that one.
        if not all(map(is_public, addresses)):
            raise UnreachableError(f"the hook's host {host!r} is not public", mend="allow it in hosts")
        return addresses


class Hook(Processor):
    """Calls a URL with each request, and does what it answers; or with each end, and does not wait for a decision."""

    def __init__(self, settings: HookSettings, clock: Clock) -> None:
        parts = urlsplit(settings.url)
        origin = Origin.parse(f"{parts.scheme}://{parts.netloc}")
        self._settings = settings
        self._secret = settings.secret.read().encode() if settings.secret is not None else b""
        self._clock = clock
        self._target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        self._client = UpstreamClient(
            origin,
            connections=settings.connections,
            timeouts=Timeouts(
                connect_ns=settings.timeout, head_ns=settings.timeout, idle_ns=settings.timeout
            ),
            rules=PublicHosts(settings.hosts),
        )

    async def ask(self, ask: Ask) -> Ask | Ready:
        """Return the request as the hook has it; raise what it refuses it with."""
        data: dict[str, Json] = {**facts(ask), "stage": ask.stage, "streamed": ask.streamed}
        if self._settings.body:
            data["body"] = dict(ask.fields)
        try:
            answer = await self._call(ask.request, {"type": "request.asked", "data": data})
        except (EndpointError, TimeoutError) as error:
            reason = str(error) or f"no answer within {self._settings.timeout / _S:g} s"
            _LOG.warning("a hook failed", url=self._settings.url, request=ask.request, reason=reason)
            if self._settings.on_failure == "pass":
                return ask
            raise UnavailableError(
                "what must look at requests first does not answer", mend="try again shortly"
            ) from error
        if answer.refuse:
            message = answer.refuse if isinstance(answer.refuse, str) else "the request is not allowed here"
            raise ForbiddenError(message[:_SHOWN], mend="ask for something else")
        return ask if answer.body is None else msgspec.structs.replace(ask, fields=answer.body)

    async def ended(self, end: End) -> Ended:
        """Tell of an end. It may be told twice, and is not told again where the hook fails."""
        told = end.tell(end.ended)
        if not self._settings.body:
            told["result"] = None
        name = request_id(end.ended.record.request)
        try:
            await self._call(name, {"type": "request.ended", "data": told})
        except (EndpointError, TimeoutError) as error:
            reason = str(error) or f"no answer within {self._settings.timeout / _S:g} s"
            _LOG.warning("a hook failed", url=self._settings.url, request=name, reason=reason)
        return end.ended

    async def _call(self, event_id: str, message: dict[str, Json]) -> _Answer:
        """Return what is answered. Raises EndpointError, TimeoutError."""
        body = msgspec.json.encode(message)
        async with (
            asyncio.timeout(self._settings.timeout / _S),
            await self._client.send(self._head(event_id, body), body) as answer,
        ):
            whole = await answer.whole(_ANSWER_BYTES)
            if answer.status not in _GOOD:
                raise ProtocolError(f"the hook answered {answer.status}", status=answer.status)
        if not whole.strip():
            return _Answer()
        try:
            return msgspec.json.decode(whole, type=_Answer)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise ProtocolError(f"the hook's answer cannot be read: {error}") from error

    def _head(self, event_id: str, body: bytes) -> bytes:
        stamp = str(self._clock.wall_ns() // _S)
        lines = [
            f"POST {self._target} HTTP/1.1",
            f"host: {self._client.origin.authority}",
            "content-type: application/json",
            f"content-length: {len(body)}",
            "accept-encoding: identity",
            "user-agent: tokenweir",
            f"webhook-id: {event_id}",
            f"webhook-timestamp: {stamp}",
        ]
        if self._secret:
            lines.append(f"webhook-signature: {signature(self._secret, event_id, stamp, body)}")
        return ("\r\n".join(lines) + "\r\n\r\n").encode("ascii")


class _Answer(msgspec.Struct, frozen=True):
    """What a hook may say: the body as it is to go on, or why it is not."""

    body: dict[str, Any] | None = None
    refuse: str | bool = False


def _make(settings: HookSettings, context: Context) -> Processor:
    return Hook(settings, context.clock)


KIND = Kind(settings=HookSettings, stages=frozenset({"gateway", "worker", "collector"}), make=_make)
