"""What is set aside for a request stands as long as somebody works on it, and no longer."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from tokenweir.core.clock import VirtualClock
from tokenweir.core.quota import Amounts, Limit
from tokenweir.gateway.metering.prices import PriceTable
from tokenweir.gateway.metering.reserving import Reservations
from tokenweir.gateway.metering.settling import Reaper, Settler
from tokenweir.ports.ledger import LedgerFilter
from tokenweir.ports.quota import Granted, Reserve, Reserved, Settle
from tokenweir.stores.gateway.sqlite.database import Database
from tokenweir.stores.gateway.sqlite.ledger import SqliteLedger
from tokenweir.stores.gateway.sqlite.quota import SqliteQuota

LEASE_NS = 60_000_000
DAY = Limit(scope="key", subject=b"k" * 16, unit="tokens", window="day", amount=1000)


def wanted() -> Reserve:
    return Reserve(
        request=b"r" * 16,
        key=b"k" * 16,
        user=b"u" * 16,
        team=b"",
        model="m",
        limits=(DAY,),
        estimate=Amounts(tokens=100),
        lease_ns=LEASE_NS,
    )


class SlowQuota(SqliteQuota):
    """The embedded store, which answers when it is let, and says what it has done."""

    def __init__(self, database: Database, clock: VirtualClock) -> None:
        super().__init__(database, clock)
        self.asked, self.may, self.settled, self.renewed = (asyncio.Event() for _ in range(4))

    async def reserve(self, batch: Sequence[Reserve]) -> Sequence[Reserved]:
        self.asked.set()
        await self.may.wait()
        return await super().reserve(batch)

    async def settle(self, batch: Sequence[Settle]) -> Sequence[bool]:
        found = await super().settle(batch)
        self.settled.set()
        return found

    async def renew(self, requests: Sequence[bytes], lease_ns: int) -> None:
        await super().renew(requests, lease_ns)
        self.renewed.set()


class Counting:
    """A quota store with what works on it."""

    def __init__(self, path: Path) -> None:
        self.clock = VirtualClock()
        self.database = Database(f"sqlite:///{path / 'gateway.db'}")
        self.quota = SlowQuota(self.database, self.clock)
        self.ledger = SqliteLedger(self.database, self.quota)
        self.settler = Settler(self.ledger, self.quota)
        self.reserving = Reservations(self.quota, lease_ns=LEASE_NS)
        self.reaper = Reaper(self.quota, self.settler, PriceTable(), self.clock, reserving=self.reserving)

    @asynccontextmanager
    async def at_work(self) -> AsyncGenerator[None]:
        """Work while the block runs."""
        async with asyncio.timeout(20), asyncio.TaskGroup() as group:
            tasks = [group.create_task(self.reserving.run()), group.create_task(self.settler.run())]
            yield
            for task in tasks:
                task.cancel()
        self.database.close()

    async def charged(self) -> int:
        """Return how many rows the ledger has."""
        return len([row async for row in self.ledger.rows(LedgerFilter())])


def test_what_is_worked_on_is_renewed_and_never_charged_by_its_estimate(tmp_path: Path) -> None:
    async def story() -> None:
        counting = Counting(tmp_path)
        async with counting.at_work():
            counting.quota.may.set()
            reserved, _ = await counting.reserving.reserve(wanted())
            assert isinstance(reserved, Granted)
            await counting.quota.renewed.wait()
            # A clock that was put forward does not end it either.
            counting.clock.advance(3_600_000_000_000)
            await counting.reaper.reap()
            assert await counting.charged() == 0
            assert await counting.quota.expired(10) == []
            counting.reserving.done(reserved.request)
            counting.clock.advance(3_600_000_000_000)
            await counting.reaper.reap()
            assert await counting.charged() == 1

    asyncio.run(story())


def test_a_caller_that_leaves_while_it_is_reserved_for_leaves_nothing_set_aside(tmp_path: Path) -> None:
    async def story() -> None:
        counting = Counting(tmp_path)
        async with counting.at_work(), asyncio.TaskGroup() as group:
            asking = group.create_task(counting.reserving.reserve(wanted()))
            await counting.quota.asked.wait()
            asking.cancel()
            with pytest.raises(asyncio.CancelledError):
                await asking
            counting.quota.may.set()
            await counting.quota.settled.wait()
            assert await counting.quota.open_reservations() == 0
            assert [left.remaining for left in await counting.quota.use([DAY])] == [1000]
            assert await counting.charged() == 0

    asyncio.run(story())
