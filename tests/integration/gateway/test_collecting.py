"""Results that bring their log: filed as they come, unless somebody else has claimed the request meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager

import msgspec
import pytest
from tests.contract.gateway_stores.harness import LEASE_NS, acceptance, reserve

from tokenweir.core.clock import SystemClock
from tokenweir.core.events import Completed, Event, Failed, Started, Token
from tokenweir.gateway.endpoints.pool import Pool
from tokenweir.gateway.metering.estimate import UsualOutput
from tokenweir.gateway.metering.prices import PriceTable
from tokenweir.gateway.metering.settling import Settler
from tokenweir.gateway.queued.collector import RemoteEnds
from tokenweir.gateway.queued.endings import Ended
from tokenweir.gateway.queued.kept import Kept, opening
from tokenweir.gateway.queued.node import Metering, QueuedPolicy, QueuedStores, Workshop
from tokenweir.gateway.queued.sealing import Sealer, SealingKey
from tokenweir.ports.eventlog import Append
from tokenweir.ports.ledger import LedgerFilter
from tokenweir.ports.queue import Job
from tokenweir.ports.requests import RequestRecord
from tokenweir.stores.gateway.opening import GatewayStores, StoreUrls, open_stores

pytestmark = [pytest.mark.xdist_group("services"), pytest.mark.timeout(120)]

KEY = SealingKey.read("ab" * 32)
BODY = Kept(path="/v1/chat/completions", body=msgspec.Raw(b'{"model":"m","messages":[]}'))
PATIENCE_S = 60.0


class Collecting:
    """A collector at work in this process, and what a worker would do."""

    def __init__(self, stores: GatewayStores, shop: Workshop, ends: RemoteEnds) -> None:
        self.stores = stores
        self.shop = shop
        self.ends = ends

    async def accepted(self, count: int) -> list[RequestRecord]:
        """Have requests taken on, and claim them."""
        wanted = [reserve() for _ in range(count)]
        bodies = [self.shop.sealer.seal(each.request, BODY.encode()) for each in wanted]
        await self.stores.intake.accept(
            [acceptance(each, body=body) for each, body in zip(wanted, bodies, strict=True)]
        )
        return [await self.claimed(each.request, 1) for each in wanted]

    async def claimed(self, request: bytes, attempt: int) -> RequestRecord:
        """Claim a request."""
        record = await self.stores.requests.claim(request, attempt=attempt, lease_ns=LEASE_NS)
        assert record is not None
        return record

    async def wrote(self, record: RequestRecord, *answer: Event) -> Ended:
        """Write what was answered to the log."""
        events = (*opening(record), *answer)
        append = Append(request=record.request, lane=record.lane, attempt=record.attempt, events=events)
        await self.shop.events.append([append])
        return Ended(record=record, kept=BODY, events=events)

    async def told(self, ended: Ended) -> None:
        """Publish a result."""
        await self.ends.take(ended, Job(request=ended.record.request, lane=ended.record.lane))

    async def filed(self, request: bytes) -> Sequence[Event]:
        """Return what a request's owner reads once it has ended."""
        async with asyncio.timeout(PATIENCE_S):
            while True:
                record = await self.stores.requests.get(request)
                if record is not None and record.ended_at is not None:
                    return await self.shop.reading.events(record)
                await asyncio.sleep(0.02)


@asynccontextmanager
async def collecting(urls: dict[str, str]) -> AsyncGenerator[Collecting]:
    where = StoreUrls(
        gateway=urls["postgresql"], quota=urls["redis"], queue=urls["rabbitmq"], events=urls["kafka"]
    )
    async with open_stores(where) as stores, asyncio.TaskGroup() as group:
        assert stores.results is not None
        settler = Settler(stores.ledger, stores.quota)
        shop = Workshop(
            QueuedStores(
                intake=stores.intake,
                requests=stores.requests,
                jobs=stores.jobs,
                events=stores.events,
                results=stores.results,
            ),
            Pool([]),
            Metering(
                settler=settler,
                usual=UsualOutput(),
                prices=PriceTable([], currency="USD"),
                quota=stores.quota,
            ),
            policy=QueuedPolicy(seal_keys=(KEY,)),
            clock=SystemClock(),
        )
        ends = RemoteEnds(stores.results, Sealer([KEY]))
        tasks = [group.create_task(work) for work in (settler.run(), shop.collect(), ends.run())]
        yield Collecting(stores, shop, ends)
        for task in tasks:
            task.cancel()


def test_the_log_that_a_result_brings_is_filed_unless_another_has_claimed(
    service_urls: dict[str, str],
) -> None:
    asyncio.run(_story(service_urls))


async def _story(urls: dict[str, str]) -> None:
    async with collecting(urls) as at:
        plain, overtaken, long = await at.accepted(3)
        answer = (Started(seq=2), Token(seq=3, text="told"), Completed(seq=4, finish_reason="stop"))
        told = await at.wrote(plain, *answer)
        # Too long to travel: zlib cannot make it short, as it is sealed before it is measured.
        numbers = " ".join(str(number * 7919 % 100_003) for number in range(9_000))
        much = await at.wrote(long, Started(seq=2), Token(seq=3, text=numbers), Completed(seq=4))
        # It was lost for a while: by now its request is another's, whose end the log has and who is about to tell.
        late = Ended(record=overtaken, kept=BODY, events=(*opening(overtaken), *answer))
        other = await at.claimed(overtaken.request, 2)
        failed = await at.wrote(other, Started(seq=2, attempt=2), Failed(seq=3, kind="refused"))
        for ended in (late, told, told, much, failed):
            await at.told(ended)
        assert (await at.filed(plain.request))[3:] == list(answer[1:])
        (token,) = (event for event in await at.filed(long.request) if isinstance(event, Token))
        assert token.text == numbers
        (*_, end) = await at.filed(overtaken.request)
        assert isinstance(end, Failed)
        rows = [row async for row in at.stores.ledger.rows(LedgerFilter())]
        assert {row.request: row.ending for row in rows} == {
            plain.request: "completed",
            long.request: "completed",
            overtaken.request: "failed",
        }
