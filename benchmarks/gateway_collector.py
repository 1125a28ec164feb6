"""Results settled and stored by one ``weir collector`` over PostgreSQL, Redis, RabbitMQ and Kafka.

What the collector is given is what gateways and workers leave behind: requests that were accepted through intake and
claimed, whose events are in the log, and whose results are published by the worker's own code. Only the model server
is left out: its answers are the same few events each time.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import msgspec

from benchmarks.gateway_load import QUEUED
from benchmarks.gateway_services import shared_stores, store_urls, table
from benchmarks.harness import CLIENT_CORE, SERVER_CORE, Figure, Result, measured, process_cpu
from benchmarks.servers import weir_server
from tokenweir.core.events import Completed, Event, Started, Token, Usage
from tokenweir.core.ids import uuid7
from tokenweir.core.quota import Amounts, Limit
from tokenweir.gateway.queued.accepting import lane_of
from tokenweir.gateway.queued.collector import RemoteEnds
from tokenweir.gateway.queued.endings import Ended
from tokenweir.gateway.queued.kept import Kept, file_log, opening
from tokenweir.gateway.queued.sealing import Sealer
from tokenweir.ports.eventlog import Append
from tokenweir.ports.intake import Acceptance, Taken
from tokenweir.ports.ledger import Charge, LedgerFilter, LedgerRow
from tokenweir.ports.queue import Delivery, Job
from tokenweir.ports.quota import CountsReservations, Reserve, Settle
from tokenweir.stores.gateway.opening import GatewayStores, open_stores

RATE = 5_000
PACED_S = 3.0
BACKLOG = 15_000
STREAMS = 5_000
USERS = 16
TICK_S = 0.005
BATCH = 512
CLAIMS = 64
ALONE = 256
TOKENS = 64
PATIENCE_S = 120.0
WORDS = "The river carries what the mountains have given it down to the sea and asks for nothing. "
SEALER = Sealer()
BODY = SEALER.seal(bytes(16), Kept(path="/v1/chat/completions", body=msgspec.Raw(QUEUED)).encode())

FIGURES = (
    Figure("settled, with a backlog", "results/s", (), float(RATE)),
    Figure("settled per CPU-second of the collector", "results/CPU-s", ()),
    Figure("settled, with a backlog of streams of 64 tokens", "results/s", ()),
    Figure("the same rows in PostgreSQL alone, batch after batch of 256", "results/s", ()),
    Figure("published and settled, paced", "results/s", (), 0.98 * RATE),
    Figure("settle lag p50, paced", "ms", ()),
    Figure("settle lag p99, paced", "ms", (), 1_000.0, "lower"),
    Figure("CPU share of the collector, paced", "%", ()),
    Figure("results that were not settled", "results", (), 0.0, "lower"),
)


def measure(rounds: int) -> Result:
    """Measure one collector on a core of its own; the services share what it leaves with whoever publishes."""
    how = (
        f"{BACKLOG:,} results that wait when it starts, then {RATE:,} published a second for {PACED_S:g} s; one"
        " collector process on one core; services and publisher on the same machine"
    )
    with shared_stores() as urls:
        return measured(
            "gateway_collector", how, rounds, lambda scratch: asyncio.run(_round(urls, scratch)), FIGURES
        )


async def _round(urls: Mapping[str, str], scratch: Path) -> Mapping[str, float]:
    os.sched_setaffinity(0, {CLIENT_CORE})
    try:
        async with open_stores(store_urls(urls)) as stores, _published(stores) as fill:
            alone = await _alone(stores, await fill.ended(BACKLOG // 3, _whole()))
            backlog, streams = await fill.ended(BACKLOG, _whole()), await fill.ended(STREAMS, _streamed())
            paced = await fill.ended(int(RATE * PACED_S), _whole())
            await fill.publish(backlog)
            await fill.publish(streams)
            settings = f'{table(urls)}access = "sqlite:///{scratch}/access.db"\n'
            with weir_server(scratch, "collector", settings=settings, cores=[SERVER_CORE]) as collector:
                pid = collector.pid
                # Its start counts no more once it has settled something.
                first = await fill.settled_to(len(backlog) + len(streams) + len(paced) - 1)
                before, cpu = fill.open, process_cpu(pid)
                whole = await fill.settled_to(len(streams) + len(paced))
                done, waiting = before - fill.open, fill.open
                spent = process_cpu(pid) - cpu
                last = await fill.settled_to(len(paced))
                cpu, began = process_cpu(pid), time.monotonic()
                lags, rate = await fill.paced(paced)
                share = (process_cpu(pid) - cpu) / (time.monotonic() - began)
            left = await fill.missing()
    finally:
        os.sched_setaffinity(0, {SERVER_CORE, CLIENT_CORE})
    return {
        "settled, with a backlog": done / (whole - first),
        "settled per CPU-second of the collector": done / spent,
        "settled, with a backlog of streams of 64 tokens": (waiting - len(paced)) / (last - whole),
        "the same rows in PostgreSQL alone, batch after batch of 256": alone,
        "published and settled, paced": rate,
        "settle lag p50, paced": lags[len(lags) // 2] * 1e3,
        "settle lag p99, paced": lags[int(len(lags) * 0.99)] * 1e3,
        "CPU share of the collector, paced": share * 100,
        "results that were not settled": float(left),
    }


def _whole() -> Sequence[Event]:
    """Return how a model server's whole answer is told, from its start on."""
    return (
        Started(seq=2, upstream_id="chatcmpl-0", model="sim", endpoint="sim"),
        Token(seq=3, text=WORDS * 4, count=TOKENS),
        Usage(seq=4, input_tokens=12, output_tokens=TOKENS),
        Completed(seq=5, finish_reason="length"),
    )


def _streamed() -> Sequence[Event]:
    """Return how the same answer is told token by token."""
    started, _, usage, completed = _whole()
    tokens = [Token(seq=3 + number, text="river ", count=1) for number in range(TOKENS)]
    end = [msgspec.structs.replace(usage, seq=3 + TOKENS), msgspec.structs.replace(completed, seq=4 + TOKENS)]
    return (started, *tokens, *end)


@dataclass
class _Fill:
    """What stands for gateways and workers. ``open`` is how many requests were not settled when last looked at."""

    stores: GatewayStores
    ends: RemoteEnds
    counted: CountsReservations
    made: int = 0
    open: int = 0

    async def ended(self, count: int, answer: Sequence[Event]) -> list[Ended]:
        """Have requests accepted and claimed and their events written, as far as their results are to be told."""
        users = [secrets.token_bytes(16) for _ in range(USERS)]
        found: list[Ended] = []
        for first in range(0, count, BATCH):
            wanted = [
                _acceptance(users[number % USERS]) for number in range(first, min(count, first + BATCH))
            ]
            outcomes = await self.stores.intake.accept(wanted)
            if not all(isinstance(outcome, Taken) for outcome in outcomes):
                raise RuntimeError("a request was not accepted")
            found += await self._worked([each.reserve.request for each in wanted], answer)
        await self._taken(count)
        self.made += count
        return found

    async def _worked(self, requests: Sequence[bytes], answer: Sequence[Event]) -> list[Ended]:
        ended: list[Ended] = []

        async def claim(request: bytes) -> None:
            record = await self.stores.requests.claim(request, attempt=1, lease_ns=3_600_000_000_000)
            if record is None:
                raise RuntimeError("a request could not be claimed")
            kept = Kept(path="/v1/chat/completions", body=msgspec.Raw(QUEUED))
            ended.append(Ended(record=record, kept=kept, events=(*opening(record), *answer)))

        for first in range(0, len(requests), CLAIMS):
            async with asyncio.TaskGroup() as group:
                for request in requests[first : first + CLAIMS]:
                    group.create_task(claim(request))
        await self.stores.events.append(
            [
                Append(request=each.record.request, lane=each.record.lane, attempt=1, events=each.events)
                for each in ended
            ]
        )
        return ended

    async def _taken(self, count: int) -> None:
        """Take the jobs from the queue of requests: nobody else will."""
        left = count
        jobs = cast("AsyncGenerator[Delivery]", self.stores.jobs.deliveries(prefetch=BATCH))
        async with contextlib.aclosing(jobs) as coming:
            async for delivery in coming:
                await self.stores.jobs.acknowledge([delivery])
                left -= 1
                if not left:
                    return

    async def publish(self, ended: Sequence[Ended]) -> None:
        """Publish results as fast as may be."""
        for first in range(0, len(ended), BATCH):
            async with asyncio.TaskGroup() as group:
                for each in ended[first : first + BATCH]:
                    group.create_task(self._publish(each))

    async def _publish(self, ended: Ended) -> None:
        record = ended.record
        await self.ends.take(ended, Job(request=record.request, lane=record.lane))

    async def settled_to(self, most: int) -> float:
        """Return when no more than so many requests have a reservation: the counters are told last of all."""
        deadline = time.monotonic() + PATIENCE_S
        while True:
            self.open = await self.counted.open_reservations()
            now = time.monotonic()
            if self.open <= most:
                return now
            if now > deadline:
                raise RuntimeError(f"{self.open} results are not settled")
            await asyncio.sleep(TICK_S)

    async def paced(self, ended: Sequence[Ended]) -> tuple[list[float], float]:
        """Publish at the rate; return each result's lag in s, in order, and how many a second were settled.

        Who is settled first is taken for who was published first.
        """
        published: list[float] = []
        settled: list[float] = []
        began = time.monotonic()
        async with asyncio.TaskGroup() as group:
            group.create_task(self._watch(len(ended), settled))
            while len(published) < len(ended):
                due = min(len(ended), int((time.monotonic() - began) * RATE))
                for each in ended[len(published) : due]:
                    # It counts from when it was due.
                    published.append(began + len(published) / RATE)
                    group.create_task(self._publish(each))
                await asyncio.sleep(TICK_S)
        lags = [end - start for start, end in zip(published, settled, strict=True)]
        return sorted(lags), len(settled) / (settled[-1] - settled[0])

    async def _watch(self, count: int, settled: list[float]) -> None:
        while len(settled) < count:
            now = await self.settled_to(count - len(settled) - 1)
            settled += [now] * (count - self.open - len(settled))

    async def missing(self) -> int:
        """Return how many of all have no row in the ledger."""
        rows = 0
        async for _ in self.stores.ledger.rows(LedgerFilter()):
            rows += 1
        return self.made - rows


@contextlib.asynccontextmanager
async def _published(stores: GatewayStores) -> AsyncGenerator[_Fill]:
    if stores.results is None or not isinstance(stores.quota, CountsReservations):
        raise RuntimeError("these stores are not shared")
    ends = RemoteEnds(stores.results, SEALER)
    fill = _Fill(stores, ends, stores.quota)
    async for _ in stores.ledger.rows(LedgerFilter()):
        fill.made += 1
    async with asyncio.TaskGroup() as group:
        publishing = group.create_task(ends.run())
        yield fill
        publishing.cancel()


def _acceptance(user: bytes) -> Acceptance:
    request = uuid7(time.time_ns(), secrets.randbits(62)).to_bytes(16, "big")
    limit = Limit(scope="user", subject=user, unit="tokens", window="month", amount=10**12)
    return Acceptance(
        reserve=Reserve(
            request=request,
            key=user,
            user=user,
            team=b"",
            model="sim",
            limits=(limit,),
            estimate=Amounts(tokens=100),
            lease_ns=86_400_000_000_000,
        ),
        mode="single",
        lane=lane_of(user),
        route="requests",
        body=BODY,
        body_hash=bytes(32),
    )


async def _alone(stores: GatewayStores, ended: Sequence[Ended]) -> float:
    """Write the ends of requests to the ledger alone, without a collector; return how many a second."""
    now = time.time_ns()
    charges = [
        Charge(
            row=LedgerRow(
                request=each.record.request,
                key=each.record.key,
                user=each.record.user,
                team=each.record.team,
                model=each.record.model,
                endpoint="sim",
                at=each.record.at,
                settled_at=now,
                input_tokens=12,
                output_tokens=TOKENS,
            ),
            log=SEALER.seal(each.record.request, file_log(each.events)),
            last_seq=each.events[-1].seq,
        )
        for each in ended
    ]
    began = time.monotonic()
    for first in range(0, len(charges), ALONE):
        await stores.ledger.settle(charges[first : first + ALONE])
    took = time.monotonic() - began
    for first in range(0, len(charges), BATCH):
        some = charges[first : first + BATCH]
        await stores.quota.settle(
            [Settle(request=each.row.request, actual=each.row.amounts()) for each in some]
        )
    return len(charges) / took
