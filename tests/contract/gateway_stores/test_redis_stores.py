"""Quota in Redis, requests and ledger in PostgreSQL; the queue and the events are the embedded ones here."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, get_args

import hypothesis
import pytest
from hypothesis import strategies
from tests.contract.gateway_stores.harness import LEASE_NS, Place, Stores, acceptance, charge, limit, reserve
from tests.contract.gateway_stores.queue_contract import IntakeContract, Story, closing
from tests.contract.gateway_stores.quota_contract import QuotaContract
from tests.services.own import connect_redis

from tokenweir.core.clock import SystemClock
from tokenweir.core.errors import UnavailableError
from tokenweir.core.quota import Amounts, Window, window_end, window_start
from tokenweir.ports.quota import Granted, Reserve, Reserved, Settle
from tokenweir.stores.gateway.composed.intake import ComposedIntake
from tokenweir.stores.gateway.postgresql.counting import PostgresqlUse
from tokenweir.stores.gateway.postgresql.database import PostgresqlDatabase
from tokenweir.stores.gateway.postgresql.ledger import PostgresqlLedger
from tokenweir.stores.gateway.postgresql.requests import PostgresqlRequests
from tokenweir.stores.gateway.redis.connection import RedisConnection
from tokenweir.stores.gateway.redis.quota import WINDOWS
from tokenweir.stores.gateway.redis.scripts import GUARDED
from tokenweir.stores.gateway.redis.upkeep import RedisQuotaUpkeep
from tokenweir.stores.gateway.sqlite.database import Database
from tokenweir.stores.gateway.sqlite.events import SqliteEventLog
from tokenweir.stores.gateway.sqlite.queue import SqliteQueue

pytestmark = pytest.mark.xdist_group("services")


class RedisPlace:
    """An empty Redis database and an empty PostgreSQL database."""

    clock = None

    def __init__(self, redis_url: str, postgresql_url: str, path: Path) -> None:
        self.redis_url = redis_url
        self._postgresql_url = postgresql_url
        self._path = path
        self._opened: set[int] = set()

    @asynccontextmanager
    async def open(self) -> AsyncGenerator[Stores]:
        database = await PostgresqlDatabase.open(self._postgresql_url)
        redis = RedisConnection(self.redis_url)
        # Of those that are open at once, each has an embedded file of its own; what is shared is in the servers.
        number = next(each for each in itertools.count() if each not in self._opened)
        self._opened.add(number)
        embedded = Database(f"sqlite:///{self._path.with_name(f'{number}.db')}")
        try:
            quota = await RedisQuotaUpkeep.open(redis, PostgresqlUse(database))
            requests = PostgresqlRequests(database)
            queue = SqliteQueue(embedded, SystemClock())
            await queue.load()
            intake = ComposedIntake(quota, requests, queue)
            async with asyncio.TaskGroup() as group:
                publishing = group.create_task(intake.run())
                yield Stores(
                    quota=quota,
                    ledger=PostgresqlLedger(database),
                    intake=intake,
                    requests=requests,
                    queue=queue,
                    events=SqliteEventLog(embedded),
                    published=intake.published,
                )
                publishing.cancel()
        finally:
            embedded.close()
            self._opened.discard(number)
            await redis.close()
            await database.close()


@pytest.fixture
def place(redis_url: str, postgresql_url: str, tmp_path: Path) -> Place:
    return RedisPlace(redis_url, postgresql_url, tmp_path / "embedded.db")


class TestRedisQuota(QuotaContract):
    pass


class TestComposedIntake(IntakeContract):
    pass


DAY = limit("tokens", "day", 1000)


async def left(stores: Stores) -> int:
    (headroom,) = await stores.quota.use([DAY])
    return headroom.remaining


def run(place: Place, story: Story) -> None:
    """Run a story on opened stores."""

    async def told() -> None:
        async with asyncio.timeout(60), place.open() as stores:
            await story(stores)

    asyncio.run(told())


def client(place: Place) -> Any:  # noqa: ANN401 - its methods take unknown types
    """Return a client of the place's Redis."""
    assert isinstance(place, RedisPlace)
    return connect_redis(place.redis_url)


async def settle(stores: Stores, wanted: Reserve, at: int, tokens: int) -> None:
    end = charge(wanted, at, tokens=tokens)
    assert list(await stores.ledger.settle([end])) == [True]
    await stores.quota.settle([Settle(request=wanted.request, actual=end.row.amounts())])


def test_flushed_counters_are_missing_and_not_zero_until_they_are_counted_anew(place: Place) -> None:
    async def story(stores: Stores) -> None:
        done, running = reserve(DAY), reserve(DAY)
        answers = await stores.quota.reserve([done, running])
        assert all(isinstance(answer, Granted) for answer in answers)
        await stores.intake.accept([acceptance(reserve(DAY, tokens=200))])
        await settle(stores, done, _at(answers[0]), 50)
        with client(place) as redis:
            redis.flushdb()
        for call in (stores.quota.reserve([reserve(DAY)]), stores.quota.use([DAY])):
            with pytest.raises(UnavailableError):
                await call
        with pytest.raises(UnavailableError):
            await stores.quota.settle([Settle(request=running.request, actual=Amounts(tokens=1))])
        await stores.quota.rebuild()
        # What this process holds itself is known to no table, and is counted all the same.
        assert await left(stores) == 1000 - 50 - 200 - 100
        await settle(stores, running, _at(answers[1]), 70)
        assert await left(stores) == 1000 - 50 - 200 - 70
        assert list(await stores.quota.verify()) == []

    run(place, story)


def test_another_process_takes_up_the_new_epoch(place: Place) -> None:
    async def story(stores: Stores) -> None:
        wanted = reserve(DAY)
        (granted,) = await stores.quota.reserve([wanted])
        async with place.open() as other:
            with client(place) as redis:
                redis.flushdb()
            await other.quota.rebuild()
            assert await left(other) == 1000
            await settle(stores, wanted, _at(granted), 40)
            assert await left(other) == 960
            assert list(await other.quota.verify()) == []

    run(place, story)


def test_a_wrong_counter_is_named_and_mended(place: Place) -> None:
    async def story(stores: Stores) -> None:
        await stores.quota.reserve([reserve(DAY)])
        with client(place) as redis:
            (key,) = list(redis.scan_iter("{weir}:c12*"))
            redis.hincrby(key, "t", -1)
        lines = await stores.quota.verify()
        assert len(lines) == 1
        assert "the counter says 99, the ledger 100" in lines[0]
        await stores.quota.rebuild()
        assert list(await stores.quota.verify()) == []

    run(place, story)


def test_a_reservation_whose_acceptance_came_to_nothing_is_released(place: Place) -> None:
    async def story(stores: Stores) -> None:
        assert isinstance(stores.quota, RedisQuotaUpkeep)
        gone = reserve(DAY, lease_ns=1)
        await stores.quota.reserve_accepted([gone])
        assert await left(stores) == 900
        assert list(await stores.quota.expired(10)) == []
        assert await left(stores) == 1000
        assert list(await stores.quota.verify()) == []

    run(place, story)


def test_what_the_ledger_has_settled_is_settled_where_a_crash_came_between(place: Place) -> None:
    async def story(stores: Stores) -> None:
        wanted = reserve(DAY, lease_ns=1)
        (granted,) = await stores.quota.reserve([wanted])
        await stores.ledger.settle([charge(wanted, _at(granted), tokens=30)])
        assert await left(stores) == 900
        assert list(await stores.quota.expired(10)) == []
        assert await left(stores) == 970

    run(place, story)


def test_an_acceptance_under_an_epoch_that_has_passed_is_refused(place: Place) -> None:
    async def story(stores: Stores) -> None:
        assert isinstance(stores.quota, RedisQuotaUpkeep)
        assert isinstance(stores.requests, PostgresqlRequests)
        wanted = acceptance(reserve(DAY))
        epoch, (granted,) = await stores.quota.reserve_accepted([wanted.reserve])
        await stores.quota.rebuild()
        written = await stores.requests.write([(wanted, _at(granted))], epoch=epoch)
        assert written.taken == frozenset()
        assert written.epoch == epoch + 1
        assert await stores.requests.get(wanted.reserve.request) is None

    run(place, story)


def test_jobs_that_the_queue_has_not_confirmed_are_published_by_the_sweeper(place: Place) -> None:
    async def story(stores: Stores) -> None:
        assert isinstance(stores.requests, PostgresqlRequests)
        assert isinstance(stores.quota, RedisQuotaUpkeep)
        assert isinstance(stores.intake, ComposedIntake)
        wanted = acceptance(reserve(DAY), priority=3)
        epoch, _ = await stores.quota.reserve_accepted([wanted.reserve])
        # As a process leaves it that is killed right after the commit; it was long enough ago.
        await stores.requests.write([(wanted, 1)], epoch=epoch)
        (record,) = await stores.requests.unpublished(10)
        assert record.request == wanted.reserve.request
        assert await stores.intake.sweep() == 1
        assert await stores.requests.unpublished(10) == []
        async with closing(stores.queue.deliveries(prefetch=1)) as deliveries:
            job = (await anext(deliveries)).job
        assert (job.request, job.attempt, job.priority) == (wanted.reserve.request, 1, 3)

    run(place, story)


def test_requests_that_no_queue_hands_out_are_abandoned_once_their_lease_ran_out(place: Place) -> None:
    async def story(stores: Stores) -> None:
        begun, lost, works = (acceptance(reserve(lease_ns=1), mode="direct") for _ in range(3))
        # The queue still has their jobs, and gives them to somebody else.
        waits, queued = (acceptance(reserve(lease_ns=1)) for _ in range(2))
        await stores.intake.accept([begun, waits, lost, works, queued])
        for each in (lost, queued):
            await stores.requests.claim(each.reserve.request, attempt=1, lease_ns=1)
        await stores.requests.claim(works.reserve.request, attempt=1, lease_ns=LEASE_NS)
        found = {record.request: record.attempt for record in await stores.requests.abandoned(10)}
        assert found == {begun.reserve.request: 0, lost.reserve.request: 1}

    run(place, story)


@pytest.mark.parametrize("window", get_args(Window))
@hypothesis.settings(
    max_examples=60, suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture], deadline=None
)
@hypothesis.given(second=strategies.integers(min_value=0, max_value=4_102_444_800))
def test_lua_and_python_agree_about_windows(redis_url: str, window: Window, second: int) -> None:
    script = (
        GUARDED["use"].partition("if redis.call('GET', E)")[0]
        + "local w, s = tonumber(ARGV[1]), tonumber(ARGV[2])\nreturn {starts(w, s), ends(w, starts(w, s))}"
    )
    with connect_redis(redis_url) as redis:
        found = redis.eval(script, 1, "{weir}:epoch", WINDOWS.index(window) + 1, second)
    at = second * 1_000_000_000
    assert [each * 1_000_000_000 for each in found] == [window_start(window, at), window_end(window, at)]


def _at(answer: Reserved) -> int:
    assert isinstance(answer, Granted)
    return answer.at
