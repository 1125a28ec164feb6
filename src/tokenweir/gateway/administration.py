"""What an operator changes and reads over HTTP: the directory of keys, the counters, the ledger."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Final, TypeVar

from tokenweir.access.directory import Directory
from tokenweir.access.wording import key_text
from tokenweir.core.errors import DiskFullError, RecordError, UnavailableError
from tokenweir.core.quota import Limit
from tokenweir.gateway.metering.billing import By, Names
from tokenweir.ports.access import Caller
from tokenweir.ports.ledger import Ledger, LedgerFilter, LedgerRow, LedgerTotal
from tokenweir.ports.quota import Headroom, QuotaUpkeep
from tokenweir.telemetry.logs import get_logger

T = TypeVar("T")

_LOG = get_logger("tokenweir.gateway.administration")
_AT_ONCE: Final = 256


class Administration:
    """The same calls as the commands', over the stores of a running gateway."""

    def __init__(
        self,
        directory: Directory,
        *,
        ledger: Ledger,
        quota: QuotaUpkeep,
        changed: Callable[[], Awaitable[None]],
    ) -> None:
        """``changed`` makes this process see a change of the directory at once; others see it within a second."""
        self._directory = directory
        self._ledger = ledger
        self._quota = quota
        self._changed = changed

    async def read(self, work: Callable[[Directory], T]) -> T:
        """Return what ``work`` finds in the directory. Raises UnavailableError, and what ``work`` raises."""
        try:
            return await asyncio.to_thread(work, self._directory)
        except (RecordError, DiskFullError) as error:
            # Nothing that the caller wrote is at fault.
            raise UnavailableError(
                f"the directory of keys cannot be used: {error.message}", mend="see stores.access"
            ) from error

    async def change(self, by: Caller, what: str, work: Callable[[Directory], T]) -> T:
        """Change the directory, and log who did what; the change holds here once this returns."""
        made = await self.read(work)
        await self._changed()
        _LOG.info("administered", what=what, by=key_text(by.key))
        return made

    async def names(self) -> Names:
        """Return the names of users and teams."""
        return await self.read(
            lambda directory: Names(
                {user.id: user.name for user in directory.users()},
                {team.id: team.name for team in directory.teams()},
            )
        )

    async def use(self, limits: Sequence[Limit]) -> Sequence[Headroom]:
        """Return what is left of limits now."""
        found: list[Headroom] = []
        # A store may answer nobody else meanwhile.
        for at in range(0, len(limits), _AT_ONCE):
            found += await self._quota.use(limits[at : at + _AT_ONCE])
        return found

    async def verify(self) -> Sequence[str]:
        """Return a line for each counter that is not what ledger and open reservations add up to."""
        return await self._quota.verify()

    async def rebuild(self, by: Caller) -> int:
        """Count everything anew and return the number of counters."""
        counters = await self._quota.rebuild()
        _LOG.info("administered", what="quotas rebuilt", by=key_text(by.key))
        return counters

    async def totals(self, where: LedgerFilter, by: By) -> Sequence[LedgerTotal]:
        """Return the ledger's roll-ups."""
        return await self._ledger.totals(where, by)

    def rows(self, where: LedgerFilter) -> AsyncIterator[LedgerRow]:
        """Yield the ledger's rows, in bounded memory."""
        return self._ledger.rows(where)
