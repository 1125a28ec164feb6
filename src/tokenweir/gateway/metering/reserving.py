"""Setting estimates aside: at once where the quota store is within the process, in batches where it is a service."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from functools import partial
from typing import Final, NamedTuple

from tokenweir.core.errors import DiskFullError, UnavailableError
from tokenweir.core.quota import Amounts
from tokenweir.gateway.batching import Batcher
from tokenweir.ports.quota import Granted, HoldingQuota, QuotaStore, Reserve, Reserved, Settle
from tokenweir.telemetry.logs import get_logger

_LOG = get_logger("tokenweir.gateway.reserving")
_NOTHING: Final = Amounts(requests=0, tokens=0)
_RENEW_LEAST_S: Final = 0.05


class Answered(NamedTuple):
    """What a store said. ``held``: it is true of this process alone, until it is kept or settled."""

    reserved: Reserved
    held: bool


class Reservations:
    """Reserves for requests that nobody has seen before, and renews until they are :meth:`done`.

    :meth:`run` works until cancelled.
    """

    def __init__(self, quota: QuotaStore, *, lease_ns: int) -> None:
        self._quota = quota
        self._lease_ns = lease_ns
        self._holding = quota if isinstance(quota, HoldingQuota) else None
        self._batcher: Batcher[Reserve, Reserved] = Batcher(quota.reserve, name="quota")
        self._leaving: Batcher[bytes, None] = Batcher(self._release, name="quota", waiting=262_144)
        self._open: set[bytes] = set()

    async def run(self) -> None:
        """Ask for what waits, and renew what is worked on."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._batcher.run())
            group.create_task(self._leaving.run())
            group.create_task(self._renew())

    async def reserve(self, wanted: Reserve) -> Answered:
        """Set an estimate aside. Raises OverloadedError, and what the store raises."""
        reserved = self._holding.hold(wanted) if self._holding is not None else None
        held = reserved is not None
        if reserved is None:
            reserved = await self._ask(wanted)
        if isinstance(reserved, Granted):
            self._open.add(wanted.request)
        return Answered(reserved, held)

    async def _ask(self, wanted: Reserve) -> Reserved:
        asked = self._batcher.put(wanted)
        try:
            return await asyncio.shield(asked)
        except asyncio.CancelledError:
            # The caller has gone; the store may set the estimate aside all the same.
            asked.add_done_callback(partial(self._left, wanted.request))
            raise

    def _left(self, request: bytes, asked: asyncio.Future[Reserved]) -> None:
        if not asked.cancelled() and asked.exception() is None and isinstance(asked.result(), Granted):
            self._leaving.post(request)

    async def _release(self, requests: Sequence[bytes]) -> Sequence[None]:
        try:
            await self._quota.settle([Settle(request=request, actual=_NOTHING) for request in requests])
        except (UnavailableError, DiskFullError) as error:
            # They are charged when their leases run out.
            _LOG.warning("reservations are not released", reservations=len(requests), reason=str(error))
        return [None] * len(requests)

    async def _renew(self) -> None:
        """Let what is worked on stand, however long that takes."""
        while True:
            await asyncio.sleep(max(_RENEW_LEAST_S, self._lease_ns / 3e9))
            try:
                await self.renew(list(self._open))
            except (UnavailableError, DiskFullError) as error:
                _LOG.warning("reservations are not renewed", open=len(self._open), reason=str(error))

    async def renew(self, requests: Sequence[bytes]) -> None:
        """Let reservations stand for a whole lease from now. Raises UnavailableError, DiskFullError."""
        if requests:
            await self._quota.renew(requests, self._lease_ns)

    def works_on(self, request: bytes) -> bool:
        """Whether this process has reserved for a request that is not done."""
        return request in self._open

    def done(self, request: bytes) -> None:
        """Renew no more: the request is settled, or about to be."""
        self._open.discard(request)

    def held(self, request: bytes) -> bool:
        """Whether a crash would forget what is set aside for a request."""
        return self._holding is not None and self._holding.held(request)

    async def keep(self, request: bytes) -> None:
        """Return once a crash would not forget it."""
        if self._holding is not None:
            await self._holding.keep(request)
