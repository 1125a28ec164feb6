"""What every quota store and ledger promise."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest
from tests.contract.gateway_stores.harness import (
    KEY,
    USER,
    Place,
    Stores,
    charge,
    limit,
    new_id,
    reserve,
)

from tokenweir.core.quota import Amounts
from tokenweir.ports.ledger import LedgerFilter, LedgerRow
from tokenweir.ports.quota import CountsReservations, Denied, Granted, Settle

Story = Callable[[Stores], Awaitable[None]]


class QuotaContract:
    """Subclasses give the fixture ``place``."""

    @staticmethod
    def tell(place: Place, *stories: Story) -> None:
        """Run each story on freshly opened adapters over the same data."""

        async def run(story: Story) -> None:
            async with asyncio.timeout(60), place.open() as stores:
                await story(stores)

        for story in stories:
            asyncio.run(run(story))

    def test_grants_until_the_limit_and_not_a_token_more(self, place: Place) -> None:
        async def story(stores: Stores) -> None:
            day = limit("tokens", "day", 250)
            answers = await stores.quota.reserve([reserve(day) for _ in range(3)])
            assert [type(answer) for answer in answers] == [Granted, Granted, Denied]
            assert isinstance(answers[2], Denied)
            assert answers[2].short.limit == day
            assert answers[2].short.remaining == 50
            (fits,) = await stores.quota.reserve([reserve(day, tokens=50)])
            assert isinstance(fits, Granted)
            assert fits.headroom[0].remaining == 0

        self.tell(place, story)

    def test_open_reservations_are_counted_until_they_are_settled(self, place: Place) -> None:
        async def story(stores: Stores) -> None:
            quota = stores.quota
            assert isinstance(quota, CountsReservations)
            before = await quota.open_reservations()
            first, second = reserve(limit("tokens", "day", 1000)), reserve(limit("tokens", "day", 1000))
            await quota.reserve([first, second])
            assert await quota.open_reservations() == before + 2
            await quota.settle([Settle(request=first.request, actual=Amounts(tokens=1))])
            assert await quota.open_reservations() == before + 1

        self.tell(place, story)

    def test_a_refusal_counts_against_none_of_the_limits(self, place: Place) -> None:
        async def story(stores: Stores) -> None:
            wide, narrow = limit("tokens", "day", 1000), limit("requests", "day", 1)
            await stores.quota.reserve([reserve(wide, narrow)])
            (refused,) = await stores.quota.reserve([reserve(wide, narrow)])
            assert isinstance(refused, Denied)
            assert refused.short.limit == narrow
            (left,) = await stores.quota.use([wide])
            assert left.remaining == 900

        self.tell(place, story)

    def test_the_same_request_again_counts_once(self, place: Place) -> None:
        async def story(stores: Stores) -> None:
            day = limit("tokens", "day", 1000)
            wanted = reserve(day)
            first, again = await stores.quota.reserve([wanted]), await stores.quota.reserve([wanted, wanted])
            assert isinstance(first[0], Granted)
            assert [answer.at for answer in again if isinstance(answer, Granted)] == [first[0].at] * 2
            (left,) = await stores.quota.use([day])
            assert left.remaining == 900

        self.tell(place, story)

    def test_concurrent_reservations_never_exceed_a_limit(self, place: Place) -> None:
        async def story(stores: Stores) -> None:
            month = limit("tokens", "month", 1000, scope="user")
            granted = 0

            async def ask() -> None:
                nonlocal granted
                for _ in range(5):
                    (answer,) = await stores.quota.reserve([reserve(month, tokens=7)])
                    granted += isinstance(answer, Granted)

            async with asyncio.TaskGroup() as group:
                for _ in range(64):
                    group.create_task(ask())
            assert granted == 1000 // 7

        self.tell(place, story)

    def test_settling_replaces_the_estimate_once(self, place: Place) -> None:
        async def story(stores: Stores) -> None:
            day, month = limit("tokens", "day", 1000), limit("tokens", "month", 1000, scope="team")
            wanted = reserve(day, month)
            (granted,) = await stores.quota.reserve([wanted])
            assert isinstance(granted, Granted)
            for expected in (True, False, False):
                end = charge(wanted, granted.at, tokens=30)
                assert list(await stores.ledger.settle([end])) == [expected]
                await stores.quota.settle([Settle(request=wanted.request, actual=end.row.amounts())])
            assert [left.remaining for left in await stores.quota.use([day, month])] == [970, 970]
            assert list(await stores.quota.verify()) == []

        self.tell(place, story)

    def test_more_may_be_used_than_was_estimated(self, place: Place) -> None:
        async def story(stores: Stores) -> None:
            day = limit("tokens", "day", 150)
            wanted = reserve(day)
            (granted,) = await stores.quota.reserve([wanted])
            assert isinstance(granted, Granted)
            end = charge(wanted, granted.at, tokens=400)
            await stores.ledger.settle([end])
            await stores.quota.settle([Settle(request=wanted.request, actual=end.row.amounts())])
            (left,) = await stores.quota.use([day])
            assert left.remaining == 0
            (answer,) = await stores.quota.reserve([reserve(day, tokens=1)])
            assert isinstance(answer, Denied)

        self.tell(place, story)

    def test_what_is_unknown_cannot_be_settled(self, place: Place) -> None:
        async def story(stores: Stores) -> None:
            assert list(await stores.quota.settle([Settle(request=new_id(), actual=Amounts(tokens=5))])) == [
                False
            ]

        self.tell(place, story)

    def test_a_model_has_limits_of_its_own(self, place: Place) -> None:
        async def story(stores: Stores) -> None:
            one, every = limit("requests", "day", 1, model="m"), limit("requests", "day", 10)
            assert isinstance((await stores.quota.reserve([reserve(one, every)]))[0], Granted)
            assert isinstance((await stores.quota.reserve([reserve(one, every)]))[0], Denied)
            other = reserve(limit("requests", "day", 1, model="other"), every, model="other")
            assert isinstance((await stores.quota.reserve([other]))[0], Granted)
            (left,) = await stores.quota.use([every])
            assert left.remaining == 8

        self.tell(place, story)

    def test_a_limit_set_later_counts_what_was_used_before(self, place: Place) -> None:
        async def story(stores: Stores) -> None:
            wanted = reserve(limit("tokens", "day", 1000), tokens=60)
            (granted,) = await stores.quota.reserve([wanted])
            assert isinstance(granted, Granted)
            await stores.quota.reserve([reserve(limit("tokens", "day", 1000), tokens=50)])
            end = charge(wanted, granted.at, tokens=45)
            await stores.ledger.settle([end])
            await stores.quota.settle([Settle(request=wanted.request, actual=end.row.amounts())])
            (left,) = await stores.quota.use([limit("tokens", "month", 100, scope="team")])
            assert left.remaining == 5

        self.tell(place, story)

    def test_windows_open_anew(self, place: Place) -> None:
        clock = place.clock
        if clock is None:
            pytest.skip("this store's clock is the server's own")

        async def story(stores: Stores) -> None:
            minute = limit("requests", "minute", 1)
            (first,) = await stores.quota.reserve([reserve(minute)])
            (short,) = await stores.quota.reserve([reserve(minute)])
            assert isinstance(first, Granted)
            assert isinstance(short, Denied)
            clock.advance(short.short.resets_at - clock.wall_ns())
            assert isinstance((await stores.quota.reserve([reserve(minute)]))[0], Granted)
            assert list(await stores.quota.verify()) == []

        self.tell(place, story)

    def test_what_was_reserved_outlives_the_process(self, place: Place) -> None:
        day = limit("tokens", "day", 1000)
        wanted = reserve(day)

        async def before(stores: Stores) -> None:
            await stores.quota.reserve([wanted, reserve(day, tokens=200)])

        async def after(stores: Stores) -> None:
            (left,) = await stores.quota.use([day])
            assert left.remaining == 700
            (again,) = await stores.quota.reserve([wanted])
            assert isinstance(again, Granted)
            assert list(await stores.quota.verify()) == []

        self.tell(place, before, after)

    def test_expired_reservations_are_found_until_renewed_or_settled(self, place: Place) -> None:
        async def story(stores: Stores) -> None:
            gone, kept, paid = (reserve(limit("tokens", "day", 9999), lease_ns=1) for _ in range(3))
            granted = await stores.quota.reserve([gone, kept, paid, reserve(limit("tokens", "day", 9999))])
            await stores.quota.renew([kept.request], 3_600_000_000_000)
            end = charge(paid, granted[2].at if isinstance(granted[2], Granted) else 0)
            await stores.ledger.settle([end])
            await stores.quota.settle([Settle(request=paid.request, actual=end.row.amounts())])
            if place.clock is not None:
                place.clock.advance(10)
            (found,) = await stores.quota.expired(10)
            assert found.reserve.request == gone.request
            assert found.reserve.limits == gone.limits
            assert found.reserve.estimate == gone.estimate
            assert (found.reserve.user, found.reserve.model) == (USER, "m")

        self.tell(place, story)

    def test_counters_can_be_rebuilt_from_the_ledger(self, place: Place) -> None:
        async def story(stores: Stores) -> None:
            limits = limit("tokens", "day", 10_000), limit("requests", "month", 100, scope="user")
            for size in (10, 20, 30):
                wanted = reserve(*limits, tokens=size)
                (granted,) = await stores.quota.reserve([wanted])
                assert isinstance(granted, Granted)
                if size != 30:
                    end = charge(wanted, granted.at, tokens=size * 2)
                    await stores.ledger.settle([end])
                    await stores.quota.settle([Settle(request=wanted.request, actual=end.row.amounts())])
            before = await stores.quota.use(limits)
            assert await stores.quota.rebuild() >= 2
            assert await stores.quota.use(limits) == before
            assert [left.remaining for left in before] == [10_000 - 20 - 40 - 30, 97]

        self.tell(place, story)

    def test_the_ledger_gives_back_what_was_written_in_order(self, place: Place) -> None:
        async def story(stores: Stores) -> None:
            ends = [charge(reserve(), 1_700_000_000_000_000_000 + step, tokens=step) for step in (5, 3, 9)]
            other = charge(reserve(model="other"), 1_700_000_000_000_000_004)
            assert list(await stores.ledger.settle([*ends, other])) == [True] * 4
            rows: list[LedgerRow] = [row async for row in stores.ledger.rows(LedgerFilter(model="m"))]
            assert rows == [ends[1].row, ends[0].row, ends[2].row]
            window = LedgerFilter(key=KEY, since=1_700_000_000_000_000_004, until=1_700_000_000_000_000_009)
            assert [row.model async for row in stores.ledger.rows(window)] == ["other", "m"]

        self.tell(place, story)

    def test_roll_ups_add_up_the_ledger(self, place: Place) -> None:
        async def story(stores: Stores) -> None:
            day, november = 86_400_000_000_000, 1_699_056_000_000_000_000
            ends = [charge(reserve(), november + hour, tokens=30) for hour in (0, 1, day, 40 * day)]
            await stores.ledger.settle(ends)
            days = await stores.ledger.totals(LedgerFilter(), "day")
            assert [(row.start_at, row.requests) for row in days] == [
                (november, 2),
                (november + day, 1),
                (november + 40 * day, 1),
            ]
            months = await stores.ledger.totals(LedgerFilter(user=USER), "month")
            assert [(row.requests, row.input_tokens, row.output_tokens) for row in months] == [
                (3, 30, 60),
                (1, 10, 20),
            ]

        self.tell(place, story)
