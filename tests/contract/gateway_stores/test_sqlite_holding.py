"""What is reserved in memory first counts as exactly as what is written, and becomes durable or is settled."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import cast

import msgspec
import pytest
from tests.contract.gateway_stores.harness import charge, limit, reserve

from tokenweir.core.clock import VirtualClock
from tokenweir.core.errors import UnavailableError
from tokenweir.core.quota import Amounts
from tokenweir.ports.ledger import Charge, LedgerFilter
from tokenweir.ports.quota import Denied, Granted, Settle
from tokenweir.stores.gateway.sqlite import counters
from tokenweir.stores.gateway.sqlite.database import Database
from tokenweir.stores.gateway.sqlite.ledger import SqliteLedger
from tokenweir.stores.gateway.sqlite.quota import SqliteQuota


class Embedded:
    """The embedded quota store and ledger over one file."""

    def __init__(self, path: Path) -> None:
        self.clock = VirtualClock()
        self.database = Database(f"sqlite:///{path / 'gateway.db'}")
        self.quota = SqliteQuota(self.database, self.clock)
        self.ledger = SqliteLedger(self.database, self.quota)

    async def open_requests(self) -> set[bytes]:
        """Return the requests that have a row among the reservations."""
        rows = await self.database.read(
            lambda connection: connection.execute("SELECT request FROM gateway_reservations").fetchall()
        )
        return {request for (request,) in rows}


def test_a_missing_counter_is_not_taken_for_zero(tmp_path: Path) -> None:
    async def story() -> None:
        embedded = Embedded(tmp_path)
        day = limit("tokens", "day", 250)
        assert embedded.quota.hold(reserve(day)) is None
        assert isinstance((await embedded.quota.reserve([reserve(day)]))[0], Granted)
        granted = embedded.quota.hold(reserve(day))
        assert isinstance(granted, Granted)
        assert granted.headroom[0].remaining == 50
        denied = embedded.quota.hold(reserve(day))
        assert isinstance(denied, Denied)
        assert denied.short.remaining == 50
        assert list(await embedded.quota.verify()) == []
        embedded.database.close()

    asyncio.run(story())


def test_both_ways_of_reserving_share_a_limit_exactly(tmp_path: Path) -> None:
    async def story() -> None:
        embedded = Embedded(tmp_path)
        month = limit("requests", "month", 100, scope="user")
        granted = 0

        async def held() -> None:
            nonlocal granted
            for _ in range(5):
                answer = embedded.quota.hold(reserve(month))
                granted += isinstance(answer, Granted)
                await asyncio.sleep(0)

        async def asked() -> None:
            nonlocal granted
            for _ in range(5):
                (answer,) = await embedded.quota.reserve([reserve(month)])
                granted += isinstance(answer, Granted)

        async with asyncio.TaskGroup() as group:
            for _ in range(20):
                group.create_task(asked())
                group.create_task(held())
        while isinstance(embedded.quota.hold(reserve(month)), Granted):
            granted += 1
        assert granted == 100
        assert list(await embedded.quota.verify()) == []
        embedded.database.close()

    asyncio.run(story())


def test_what_was_kept_is_in_the_file_and_what_ended_first_never_is(tmp_path: Path) -> None:
    async def story() -> None:
        embedded = Embedded(tmp_path)
        kept, ended = reserve(), reserve()
        assert isinstance(embedded.quota.hold(kept), Granted)
        await embedded.quota.keep(kept.request)
        assert not embedded.quota.held(kept.request)
        granted = embedded.quota.hold(ended)
        assert isinstance(granted, Granted)
        assert embedded.quota.held(ended.request)
        assert list(await embedded.ledger.settle([charge(ended, granted.at)] * 2)) == [True, False]
        assert not embedded.quota.held(ended.request)
        assert await embedded.open_requests() == {kept.request}
        assert [row.request async for row in embedded.ledger.rows(LedgerFilter())] == [ended.request]
        embedded.database.close()

    asyncio.run(story())


def test_nobody_has_to_ask_for_a_reservation_to_be_written(tmp_path: Path) -> None:
    async def story() -> None:
        embedded = Embedded(tmp_path)
        wanted = reserve()
        embedded.quota.hold(wanted)
        async with asyncio.timeout(30):
            while wanted.request not in await embedded.open_requests():
                pass
        assert await embedded.quota.settle([Settle(request=wanted.request, actual=Amounts(tokens=5))]) == [
            True
        ]
        embedded.database.close()

    asyncio.run(story())


def test_a_counter_counted_anew_has_what_is_not_written_yet(tmp_path: Path) -> None:
    async def story() -> None:
        embedded = Embedded(tmp_path)
        embedded.quota.hold(reserve(tokens=70))
        embedded.quota.hold(reserve(tokens=20, model="other"))
        every, one = limit("tokens", "day", 1000), limit("tokens", "month", 1000, model="m", scope="team")
        assert [left.remaining for left in await embedded.quota.use([every, one])] == [910, 930]
        await embedded.quota.rebuild()
        assert [left.remaining for left in await embedded.quota.use([every, one])] == [910, 930]
        embedded.database.close()

    asyncio.run(story())


def test_counters_that_had_to_make_room_amid_a_decision_are_not_taken_for_zero(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(counters, "_MOST", 1)

    async def story() -> None:
        embedded = Embedded(tmp_path)
        limits = limit("tokens", "day", 150), limit("tokens", "day", 1000, scope="user")
        answers = [(await embedded.quota.reserve([reserve(*limits)]))[0] for _ in range(3)]
        assert [type(answer) for answer in answers] == [Granted, Denied, Denied]
        assert [left.remaining for left in await embedded.quota.use(limits)] == [50, 900]
        embedded.database.close()

    asyncio.run(story())


def test_an_undone_transaction_leaves_a_held_reservation_to_be_written(tmp_path: Path) -> None:
    async def story() -> None:
        embedded = Embedded(tmp_path)
        day = limit("tokens", "day", 1000)
        await embedded.quota.use([day])
        wanted = reserve(day)
        granted = embedded.quota.hold(wanted)
        assert isinstance(granted, Granted)
        # A row that the table's rules forbid spoils the transaction in which the other end is written.
        row = msgspec.structs.replace(charge(reserve(), granted.at).row, model=cast("str", None))
        with pytest.raises(UnavailableError):
            await embedded.ledger.settle([charge(wanted, granted.at), Charge(row=row)])
        await embedded.quota.keep(wanted.request)
        assert await embedded.open_requests() == {wanted.request}
        assert [left.remaining for left in await embedded.quota.use([day])] == [900]
        embedded.database.close()

    asyncio.run(story())
