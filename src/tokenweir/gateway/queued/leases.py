"""Leases that this process holds on requests: renewed while work goes on, and the news of those that must stop."""

from __future__ import annotations

import asyncio
from typing import Final, Literal

from tokenweir.core.errors import DiskFullError, UnavailableError
from tokenweir.ports.quota import QuotaStore
from tokenweir.ports.requests import RequestStore, RequestUpkeep
from tokenweir.telemetry.logs import get_logger

_LOG = get_logger("tokenweir.gateway.worker")
_LOOK_S: Final = 1.0
_QUOTA_TURNS: Final = 300

Why = Literal["", "cancelled", "lost", "late"]


class Lease:
    """A request that this process works on. Leaving :meth:`working` says why the work stopped, in ``why``."""

    __slots__ = ("_scope", "attempt", "late_at", "request", "why")

    def __init__(self, request: bytes, attempt: int) -> None:
        self.request = request
        self.attempt = attempt
        self.why: Why = ""
        self.late_at: float | None = None
        self._scope: asyncio.Timeout | None = None

    def working(self, seconds: float | None) -> asyncio.Timeout:
        """Return the scope of the work, which raises TimeoutError when it must stop, at the latest in ``seconds``."""
        self._scope = asyncio.timeout(seconds)
        if self.why:
            self._scope = asyncio.timeout(0)
        return self._scope

    def stop(self, why: Why) -> None:
        """Stop the work."""
        self.why = why
        if self._scope is not None and not self._scope.expired():
            try:
                self._scope.reschedule(asyncio.get_running_loop().time())
            except RuntimeError:
                # It was left a moment ago.
                self._scope = None


class Leases:
    """All leases of a process. :meth:`run` renews them until cancelled."""

    def __init__(
        self,
        requests: RequestStore,
        upkeep: RequestUpkeep,
        quota: QuotaStore,
        *,
        lease_ns: int,
        reservation_ns: int,
    ) -> None:
        self._requests = requests
        self._upkeep = upkeep
        self._quota = quota
        self.lease_ns = lease_ns
        self._reservation_ns = reservation_ns
        self._held: dict[bytes, Lease] = {}
        self._asked = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()

    def __len__(self) -> int:
        return len(self._held)

    def __contains__(self, request: bytes) -> bool:
        return request in self._held

    def hold(self, request: bytes, attempt: int) -> Lease:
        """Begin to renew a lease that was claimed."""
        self._held[request] = lease = Lease(request, attempt)
        self._idle.clear()
        return lease

    def drop(self, lease: Lease) -> None:
        """Stop renewing."""
        if self._held.get(lease.request) is lease:
            del self._held[lease.request]
        if not self._held:
            self._idle.set()

    async def idle(self) -> None:
        """Return when nothing is held."""
        await self._idle.wait()

    async def release(self, lease: Lease) -> None:
        """Let somebody else claim the request at once."""
        await self._upkeep.renew([(lease.request, lease.attempt)], 0)

    def look(self) -> None:
        """Look now whether something must stop: somebody has asked for it in this process."""
        self._asked.set()

    async def run(self) -> None:
        """Renew again and again."""
        turn = 0
        while True:
            try:
                async with asyncio.timeout(min(_LOOK_S, self.lease_ns / 3e9)):
                    await self._asked.wait()
            except TimeoutError:
                turn += 1
            self._asked.clear()
            try:
                await self.renew(quota=turn % _QUOTA_TURNS == 0)
            except (UnavailableError, DiskFullError) as error:
                _LOG.warning("leases are not renewed: the store is away", held=len(self), reason=str(error))

    async def renew(self, *, quota: bool = False) -> None:
        """Renew once; stop what was lost or cancelled."""
        held = list(self._held.values())
        if not held:
            return
        gone = await self._upkeep.renew([(lease.request, lease.attempt) for lease in held], self.lease_ns)
        for request in gone:
            lease = self._held.get(request)
            if lease is None or lease.why:
                continue
            record = await self._requests.get(request)
            if record is not None and record.attempt == lease.attempt and record.cancel_at is not None:
                lease.stop("cancelled")
            else:
                lease.stop("lost")
        if quota:
            # A reservation stands as long as somebody works, and as long as the next attempt may have to wait.
            await self._quota.renew([lease.request for lease in held], self._reservation_ns)
