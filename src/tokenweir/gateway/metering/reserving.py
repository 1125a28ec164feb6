"""Setting estimates aside: at once where the quota store is within the process, in batches where it is a service."""

from __future__ import annotations

from typing import NamedTuple

from tokenweir.gateway.batching import Batcher
from tokenweir.ports.quota import HoldingQuota, QuotaStore, Reserve, Reserved


class Answered(NamedTuple):
    """What a store said. ``held``: it is true of this process alone, until it is kept or settled."""

    reserved: Reserved
    held: bool


class Reservations:
    """Reserves for requests that nobody has seen before. :meth:`run` works until cancelled."""

    def __init__(self, quota: QuotaStore) -> None:
        self._holding = quota if isinstance(quota, HoldingQuota) else None
        self._batcher: Batcher[Reserve, Reserved] = Batcher(quota.reserve, name="quota")

    async def run(self) -> None:
        """Ask for what waits."""
        await self._batcher.run()

    async def reserve(self, wanted: Reserve) -> Answered:
        """Set an estimate aside. Raises OverloadedError, and what the store raises."""
        if self._holding is not None:
            reserved = self._holding.hold(wanted)
            if reserved is not None:
                return Answered(reserved, held=True)
        return Answered(await self._batcher.submit(wanted), held=False)

    def held(self, request: bytes) -> bool:
        """Whether a crash would forget what is set aside for a request."""
        return self._holding is not None and self._holding.held(request)

    async def keep(self, request: bytes) -> None:
        """Return once a crash would not forget it."""
        if self._holding is not None:
            await self._holding.keep(request)
