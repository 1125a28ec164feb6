"""What every handler of the gateway has at hand."""

from __future__ import annotations

import secrets

import msgspec

from tokenweir.asgi.call import Call
from tokenweir.core.clock import Clock
from tokenweir.core.errors import ForbiddenError, UnauthorizedError
from tokenweir.core.ids import format_id, uuid7
from tokenweir.gateway.direct.relay import Direct
from tokenweir.gateway.doors.metrics import Metrics
from tokenweir.ports.access import Caller, Keyring, Permission

_BEARER = b"bearer "


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """What a client may send, how slowly, and how many direct requests there may be at once."""

    body_bytes: int = 8 << 20
    read_timeout_ns: int = 30_000_000_000
    streams: int = 8192


class Door:
    """The keyring, the direct path, the limits, the counters and the clock."""

    def __init__(
        self,
        keyring: Keyring,
        direct: Direct,
        *,
        metrics: Metrics,
        clock: Clock,
        limits: Limits | None = None,
    ) -> None:
        self.keyring = keyring
        self.direct = direct
        self.metrics = metrics
        self.clock = clock
        self.limits = limits or Limits()
        self.in_flight = 0
        self.draining = False
        self.started_s = clock.wall_ns() // 1_000_000_000

    async def caller(self, call: Call, permission: Permission) -> Caller:
        """Return who calls. Raises UnauthorizedError, ForbiddenError."""
        sent = call.header(b"authorization") or b""
        key = sent[len(_BEARER) :] if sent[: len(_BEARER)].lower() == _BEARER else b""
        if not key:
            # Browsers cannot set headers on some requests, and other clients have this one.
            key = call.header(b"x-api-key") or b""
        if not key:
            raise UnauthorizedError("an API key is needed", mend="send it as 'authorization: Bearer weir_…'")
        text = key.decode("latin-1")
        caller = self.keyring.cached(text) or await self.keyring.authenticate(text)
        if not caller.may(permission):
            raise ForbiddenError(
                f"this key has not the scope {permission!r}",
                mend=f"it has {', '.join(sorted(caller.scopes))}",
            )
        return caller

    async def body(self, call: Call) -> bytes:
        """Return a request's body, within the limits."""
        return await call.body(self.limits.body_bytes, self.limits.read_timeout_ns)


class RequestId(msgspec.Struct, frozen=True):
    """A request's id: 16 bytes inside, ``req_…`` outside."""

    value: int

    @classmethod
    def new(cls, clock: Clock) -> RequestId:
        """Return a fresh one."""
        return cls(uuid7(clock.wall_ns(), secrets.randbits(62)))

    @property
    def raw(self) -> bytes:
        """The 16 bytes."""
        return self.value.to_bytes(16, "big")

    @property
    def text(self) -> str:
        """What the caller sees."""
        return format_id("req", self.value)
