"""The queued path put together: what a gateway, a worker and a collector are made of, in one process or in several."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Final, Protocol

import msgspec

from tokenweir.core.clock import Clock
from tokenweir.core.errors import UnavailableError
from tokenweir.gateway.direct.relay import Direct
from tokenweir.gateway.endpoints.pool import Pool
from tokenweir.gateway.metering.estimate import UsualOutput
from tokenweir.gateway.metering.prices import PriceTable
from tokenweir.gateway.metering.settling import Settler
from tokenweir.gateway.pipeline.line import Line
from tokenweir.gateway.pipeline.work import PipedAsker
from tokenweir.gateway.queued.accepting import Accepting
from tokenweir.gateway.queued.asking import Asker
from tokenweir.gateway.queued.cancelling import Cancelling
from tokenweir.gateway.queued.collector import Collector, LocalEnds, RemoteEnds
from tokenweir.gateway.queued.dead import Graveyard
from tokenweir.gateway.queued.endings import Finisher
from tokenweir.gateway.queued.leases import Leases
from tokenweir.gateway.queued.reading import Reading
from tokenweir.gateway.queued.sealing import SealedEventLog, Sealer, SealingKey
from tokenweir.gateway.queued.sweeper import Sweeper
from tokenweir.gateway.queued.webhooks import WebhookPolicy, Webhooks
from tokenweir.gateway.queued.worker import Policy, Tools, Worker
from tokenweir.ports.eventlog import EventLog
from tokenweir.ports.intake import Intake
from tokenweir.ports.queue import DeadLetters, JobQueue, QueueDepth
from tokenweir.ports.quota import QuotaStore
from tokenweir.ports.requests import RequestLookup, RequestRecord, RequestStore, RequestUpkeep

_CALLS: Final = 2
"""Batches on their way to stores that are servers."""


class Requests(RequestStore, RequestLookup, RequestUpkeep, Protocol):
    """A request store with its upkeep."""


class Jobs(JobQueue, DeadLetters, Protocol):
    """A job queue with its dead letters."""


class QueuedStores(msgspec.Struct, frozen=True, kw_only=True):
    """The adapters of the queued path.

    ``results`` is the queue of ends where collectors are processes of their own. Without one, the process that works
    on a request also settles it, and no other process works on these stores.
    """

    intake: Intake
    requests: Requests
    jobs: Jobs
    events: EventLog
    results: Jobs | None = None


class QueuedPolicy(msgspec.Struct, frozen=True, kw_only=True):
    """What the settings say of the queued path. ``works``: jobs are taken in this process.

    ``work_line`` is what requests pass at work, and ``end_line`` what they pass at their end.
    """

    work: Policy = Policy()
    works: bool = True
    lease_ns: int = 30_000_000_000
    queue_lease_ns: int = 86_400_000_000_000
    sweep_ns: int = 5_000_000_000
    webhooks: WebhookPolicy = WebhookPolicy()
    seal_keys: tuple[SealingKey, ...] = ()
    work_line: Line | None = None
    end_line: Line | None = None


class Metering(msgspec.Struct, frozen=True, kw_only=True):
    """What counts and charges."""

    settler: Settler
    usual: UsualOutput
    prices: PriceTable
    quota: QuotaStore


class Workshop:
    """Works on queued requests and settles them: a worker, and the collector's part where there is no other."""

    def __init__(
        self, stores: QueuedStores, pool: Pool, metering: Metering, *, policy: QueuedPolicy, clock: Clock
    ) -> None:
        self.stores = stores
        self.depth: QueueDepth | None = None
        self._policy = policy
        self.sealer = Sealer(policy.seal_keys)
        self.events: EventLog = (
            SealedEventLog(stores.events, self.sealer) if self.sealer.seals else stores.events
        )
        self.reading = Reading(stores.requests, self.events, self.sealer)
        self._finisher = Finisher(
            metering.settler,
            self.events,
            usual=metering.usual,
            prices=metering.prices,
            sealer=self.sealer,
            tokenizers=pool.tokenizers,
            clock=clock,
        )
        self.ends = LocalEnds(self._finisher, Webhooks(policy.webhooks, clock), self.reading, clock)
        self.ends.line = policy.end_line
        self.line = policy.work_line
        self._remote = None if stores.results is None else RemoteEnds(stores.results, self.sealer)
        self.asker = Asker(pool, clock)
        self.leases = Leases(
            stores.requests,
            stores.requests,
            metering.quota,
            lease_ns=policy.lease_ns,
            reservation_ns=policy.queue_lease_ns,
        )
        self.worker = Worker(
            Tools(
                requests=stores.requests,
                queue=stores.jobs,
                events=self.events,
                leases=self.leases,
                asker=self.asker if policy.work_line is None else PipedAsker(self.asker, policy.work_line),
                ends=self._remote or self.ends,
                sealer=self.sealer,
            ),
            clock=clock,
            policy=msgspec.structs.replace(policy.work, sole=stores.results is None),
        )
        self.cancelling = Cancelling(stores.requests, self.worker, self.leases)
        self._sweeper = Sweeper(
            stores.requests, stores.jobs, every_ns=policy.sweep_ns, again_ns=10 * policy.lease_ns
        )

    async def run(self, *, collects: bool = False) -> None:
        """Work until cancelled; with ``collects`` also take ends from the queue of results, where there is one."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._finisher.run())
            if self._remote is not None:
                group.create_task(self._remote.run())
            group.create_task(self.worker.run(jobs=self._policy.works))
            group.create_task(self._sweeper.run())
            if collects and self.stores.results is not None:
                group.create_task(self._collector(self.stores.results).run())

    async def collect(self) -> None:
        """Take ends from the queue of results alone, until cancelled. Raises UnavailableError where there is none."""
        if self.stores.results is None:
            raise UnavailableError("these stores have no queue of results")
        async with asyncio.TaskGroup() as group:
            group.create_task(self._finisher.run())
            group.create_task(self._collector(self.stores.results).run())

    def _collector(self, results: Jobs) -> Collector:
        return Collector(
            results,
            requests=self.stores.requests,
            events=self.events,
            reading=self.reading,
            ends=self.ends,
        )

    async def measure(self) -> QueueDepth | None:
        """Return how the queue stands, or as it stood when it could last be asked."""
        with contextlib.suppress(UnavailableError):
            self.depth = await self.stores.jobs.depth()
        return self.depth

    async def drain(self) -> None:
        """Take no more jobs and finish those in hand."""
        await self.worker.drain()


class Queued(Workshop):
    """The queued path of a gateway: requests are accepted, worked on, read and cancelled."""

    def __init__(
        self,
        stores: QueuedStores,
        direct: Direct,
        metering: Metering,
        *,
        policy: QueuedPolicy,
        clock: Clock,
    ) -> None:
        super().__init__(stores, direct.pool, metering, policy=policy, clock=clock)
        self.accepting = Accepting(
            stores.intake,
            direct,
            sealer=self.sealer,
            clock=clock,
            queue_lease_ns=policy.queue_lease_ns,
            # A file has one writer; servers take a batch while another waits for their disk.
            calls=1 if stores.results is None else _CALLS,
        )
        self.graveyard = Graveyard(
            stores.jobs,
            stores.requests,
            stores.intake,
            self.reading,
            sealer=self.sealer,
            queue_lease_ns=policy.queue_lease_ns,
        )
        self.takes_webhooks = bool(policy.webhooks.secret)

    async def begin(self, request: bytes) -> RequestRecord:
        """Return an accepted request; one that has no job is worked on here, unless somebody works on it already.

        Whoever accepted it may have been lost before that. Raises NotFoundError, UnavailableError.
        """
        record = await self.reading.record(request)
        if record.mode == "direct" and not record.attempt and record.ended_at is None:
            claimed = await self.stores.requests.claim(request, attempt=1, lease_ns=self.leases.lease_ns)
            if claimed is not None:
                self.worker.adopt(claimed)
                return claimed
        return record

    async def run(self, *, collects: bool = False) -> None:
        """Accept and work until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self.accepting.run())
            group.create_task(super().run(collects=collects or self._policy.works))
