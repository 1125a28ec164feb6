"""Telling somebody else's server of an end: signed, bounded, and only to addresses that may be called.

Source: Standard Webhooks 1.0 (headers ``webhook-id``, ``webhook-timestamp``, ``webhook-signature``).
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import hmac
import socket
import ssl
from collections.abc import Sequence
from typing import Final
from urllib.parse import SplitResult, urlsplit

import msgspec

from tokenweir.asgi.tls import client_context
from tokenweir.core.clock import Clock
from tokenweir.core.errors import WeirError
from tokenweir.gateway.endpoints.addresses import reached

_PORTS: Final = {"http": 80, "https": 443}
_GOOD: Final = range(200, 300)
_HEAD_BYTES: Final = 16 << 10


class WebhookError(WeirError):
    """A webhook was not taken."""

    code = "webhook"


class WebhookPolicy(msgspec.Struct, frozen=True, kw_only=True):
    """``secret`` signs; empty switches webhooks off. ``hosts`` may be called although they are not public.

    ``attempts`` are made in all, each within ``timeout_ns``.
    """

    secret: bytes = b""
    hosts: frozenset[str] = frozenset()
    attempts: int = 8
    timeout_ns: int = 10_000_000_000
    tls: ssl.SSLContext | None = None


class Webhooks:
    """Calls webhooks. It follows no redirection, and connects to the very address that it has checked."""

    def __init__(self, policy: WebhookPolicy, clock: Clock) -> None:
        self.policy = policy
        self._clock = clock

    async def call(self, url: str, event_id: str, body: bytes) -> None:
        """Send ``body``, JSON, and wait for a 2xx. Raises WebhookError."""
        timeout_s = self.policy.timeout_ns / 1e9
        try:
            async with asyncio.timeout(timeout_s):
                status = await self._post(url, event_id, body)
        except TimeoutError:
            raise WebhookError(f"the webhook did not answer within {timeout_s:g} s") from None
        except (OSError, ValueError, asyncio.IncompleteReadError, asyncio.LimitOverrunError) as error:
            raise WebhookError(f"the webhook cannot be called: {error}") from error
        if status not in _GOOD:
            raise WebhookError(f"the webhook answered {status}")

    async def _post(self, url: str, event_id: str, body: bytes) -> int:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port or _PORTS[parts.scheme]
        address = await self._address(host, port)
        tls = (self.policy.tls or client_context()) if parts.scheme == "https" else None
        reader, writer = await asyncio.open_connection(
            address, port, ssl=tls, server_hostname=host if tls else None, limit=_HEAD_BYTES
        )
        try:
            writer.write(self._head(parts, event_id, body) + body)
            await writer.drain()
            line = await reader.readline()
        finally:
            writer.close()
            # What the other side does while we leave is no concern of ours.
            with contextlib.suppress(OSError):
                await writer.wait_closed()
        words = line.split(None, 2)
        if len(words) < 2 or not words[0].startswith(b"HTTP/1.") or not words[1].isdigit():  # noqa: PLR2004 - version and status
            raise WebhookError("the webhook does not speak HTTP/1.1")
        return int(words[1])

    async def _address(self, host: str, port: int) -> str:
        """Return an address of a host that may be called. Raises WebhookError."""
        found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
        addresses = [str(entry[4][0]) for entry in found]
        if host not in self.policy.hosts:
            # One that may not be called among several is reason enough: another look-up may give that one.
            private = [address for address in addresses if not is_public(address)]
            if private:
                raise WebhookError(
                    f"the webhook's host {host!r} is not public", mend="allow it in collector.webhook_hosts"
                )
        if not addresses:
            raise WebhookError(f"the webhook's host {host!r} has no address")
        return addresses[0]

    def _head(self, parts: SplitResult, event_id: str, body: bytes) -> bytes:
        stamp = str(self._clock.wall_ns() // 1_000_000_000)
        target = parts.path or "/"
        if parts.query:
            target += f"?{parts.query}"
        lines = [
            f"POST {target} HTTP/1.1",
            f"host: {parts.netloc}",
            "content-type: application/json",
            f"content-length: {len(body)}",
            "connection: close",
            "user-agent: tokenweir",
            f"webhook-id: {event_id}",
            f"webhook-timestamp: {stamp}",
            f"webhook-signature: {signature(self.policy.secret, event_id, stamp, body)}",
        ]
        return ("\r\n".join(lines) + "\r\n\r\n").encode("ascii")


def signature(secret: bytes, event_id: str, stamp: str, body: bytes) -> str:
    """Return ``v1,`` and the base64 of HMAC-SHA256 over ``id.timestamp.body``."""
    said = f"{event_id}.{stamp}.".encode() + body
    return "v1," + base64.b64encode(hmac.new(secret, said, hashlib.sha256).digest()).decode()


def is_public(address: str) -> bool:
    """Whether an address is one that all the world may call."""
    found = reached(address)
    return found.is_global and not found.is_multicast


def errors_of_webhook(errors: Sequence[str]) -> int:
    """Return how often a webhook was called in vain, by a job's errors."""
    return sum(error.startswith("webhook: ") for error in errors)
