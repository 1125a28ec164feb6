"""What every handler of the gateway has at hand."""

from __future__ import annotations

import secrets
import struct
from collections.abc import Iterator

import msgspec

from tokenweir.asgi.call import Call
from tokenweir.asgi.problems import UnknownPathError
from tokenweir.core.clock import Clock
from tokenweir.core.errors import ForbiddenError, UnauthorizedError
from tokenweir.core.ids import format_id, uuid7
from tokenweir.gateway.administration import Administration
from tokenweir.gateway.batches.desk import Desk
from tokenweir.gateway.batches.working import BatchWorks
from tokenweir.gateway.brownout.brownout import Brownout
from tokenweir.gateway.brownout.measures import Lessened
from tokenweir.gateway.direct.relay import Direct
from tokenweir.gateway.doors.batch_metrics import BatchMetrics
from tokenweir.gateway.doors.brownout_metrics import BrownoutMetrics
from tokenweir.gateway.doors.metrics import Metrics
from tokenweir.gateway.doors.pipeline_metrics import PipelineMetrics
from tokenweir.gateway.doors.queued_metrics import QueuedMetrics
from tokenweir.gateway.doors.streams import Streams
from tokenweir.gateway.files.cabinet import Cabinet
from tokenweir.gateway.pipeline.line import Line
from tokenweir.gateway.queued.node import Queued
from tokenweir.ports.access import Caller, Keyring, Permission
from tokenweir.ports.quota import QuotaStore
from tokenweir.telemetry.logs import get_logger
from tokenweir.telemetry.spans import Tracer

_LOG = get_logger("tokenweir.gateway")
_BEARER = b"bearer "
_BITS = struct.Struct(">Q")


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """What a client may send, how slowly, and how many direct requests and event streams there may be at once.

    ``log_prompts`` lets bodies into the log.
    """

    body_bytes: int = 8 << 20
    read_timeout_ns: int = 30_000_000_000
    streams: int = 8192
    event_streams: int = 12_000
    heartbeat_ns: int = 15_000_000_000
    log_prompts: bool = False


class Door:
    """What handlers have at hand. ``only`` names the paths that there are, if not all."""

    def __init__(
        self,
        keyring: Keyring,
        direct: Direct,
        *,
        metrics: Metrics,
        clock: Clock,
        limits: Limits | None = None,
        queued: Queued | None = None,
        only: frozenset[str] = frozenset(),
    ) -> None:
        self.keyring = keyring
        self.direct = direct
        self.metrics = metrics
        self.clock = clock
        self.limits = limits or Limits()
        self.queued = queued
        self.quota: QuotaStore | None = None
        self.only = only
        self.cabinet: Cabinet | None = None
        """The files of callers, where they are kept."""
        self.desk: Desk | None = None
        """Their batches."""
        self.batches: BatchWorks | None = None
        """What works on batches here, if anything."""
        self.batch_metrics = BatchMetrics(metrics.registry)
        self.administration: Administration | None = None
        """Users, keys, limits and use, where they are changed over HTTP."""
        self.queued_metrics = QueuedMetrics(metrics.registry)
        self.brownout: Brownout | None = None
        """What makes less of requests under load, if anything."""
        self.brownout_metrics = BrownoutMetrics(metrics.registry)
        self.line: Line | None = None
        """The processors that requests pass here, if any."""
        self.pipeline_metrics = PipelineMetrics(metrics.registry)
        self.streams = Streams(keyring, most=self.limits.event_streams)
        self.tracer: Tracer | None = None
        self.in_flight = 0
        self.draining = False
        self.started_s = clock.wall_ns() // 1_000_000_000

    def need(self, route: str) -> None:
        """Raise UnknownPathError where this door has not the path."""
        if self.only and route not in self.only:
            raise UnknownPathError(
                f"there is no {route!r} here", mend=f"the paths are {', '.join(sorted(self.only))}"
            )

    @staticmethod
    def key_of(call: Call) -> str:
        """Return the API key that a request shows; "" is none."""
        sent = call.header(b"authorization") or b""
        key = sent[len(_BEARER) :] if sent[: len(_BEARER)].lower() == _BEARER else b""
        if not key:
            # Browsers cannot set headers on some requests, and other clients have this one.
            key = call.header(b"x-api-key") or b""
        return key.decode("latin-1")

    async def caller(self, call: Call, permission: Permission) -> Caller:
        """Return who calls. Raises UnauthorizedError, ForbiddenError."""
        return await self.caller_of(self.key_of(call), permission)

    async def caller_of(self, text: str, permission: Permission) -> Caller:
        """Return whose key it is. Raises UnauthorizedError, ForbiddenError."""
        if not text:
            raise UnauthorizedError("an API key is needed", mend="send it as 'authorization: Bearer weir_…'")
        caller = self.keyring.cached(text) or await self.keyring.authenticate(text)
        if not caller.may(permission):
            raise ForbiddenError(
                f"this key has not the scope {permission!r}",
                mend=f"it has {', '.join(sorted(caller.scopes))}",
            )
        return caller

    def lessen(self, caller: Caller, raw: bytes, *, queued: bool) -> Lessened:
        """Return what the load of now leaves of a request. Raises ParameterError, BrownedOutError."""
        if self.brownout is None or not self.brownout.rung:
            return Lessened(raw=raw)
        return self.brownout.lessen(caller, raw, queued=queued)

    @property
    def heartbeat_s(self) -> float:
        """How often a silent stream says that it lives."""
        return self.limits.heartbeat_ns / 1e9

    async def body(self, call: Call) -> bytes:
        """Return a request's body, within the limits."""
        body = await call.body(self.limits.body_bytes, self.limits.read_timeout_ns)
        if self.limits.log_prompts:
            _LOG.info("request body", request_id=call.id, body=body.decode("utf-8", "replace"))
        return body


class _Random:
    """The kernel's random numbers, many at a time: asking for each is a system call for each."""

    def __init__(self) -> None:
        self._pool: Iterator[tuple[int]] = iter(())

    def bits(self) -> int:
        """Return 64 bits."""
        taken = next(self._pool, None)
        if taken is None:
            self._pool = _BITS.iter_unpack(secrets.token_bytes(512 * _BITS.size))
            taken = next(self._pool)
        return taken[0]


_random = _Random()


class RequestId(msgspec.Struct, frozen=True):
    """A request's id: 16 bytes inside, ``req_…`` outside."""

    value: int

    @classmethod
    def new(cls, clock: Clock) -> RequestId:
        """Return a fresh one."""
        return cls(uuid7(clock.wall_ns(), _random.bits()))

    @property
    def raw(self) -> bytes:
        """The 16 bytes."""
        return self.value.to_bytes(16, "big")

    @property
    def text(self) -> str:
        """What the caller sees."""
        return format_id("req", self.value)
