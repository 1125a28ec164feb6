"""Running the gateway in this process: stores, endpoints, door, signals."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from functools import partial

import msgspec
import uvloop

from tokenweir.asgi import heap
from tokenweir.asgi.server import Bounds, HttpServer
from tokenweir.asgi.stopping import Stop, first_of
from tokenweir.core.clock import Clock, SystemClock
from tokenweir.core.errors import CancelledError
from tokenweir.gateway.administration import Administration
from tokenweir.gateway.batches.desk import Desk
from tokenweir.gateway.batches.working import BatchPolicy, BatchWorks, Parts
from tokenweir.gateway.brownout.brownout import Brownout
from tokenweir.gateway.direct.relay import Direct, RelayPolicy
from tokenweir.gateway.doors.app import App
from tokenweir.gateway.doors.door import Door, Limits
from tokenweir.gateway.doors.metrics import Metrics
from tokenweir.gateway.doors.processed import shaped
from tokenweir.gateway.endpoints.addresses import AddressRules
from tokenweir.gateway.endpoints.health import HealthWatch
from tokenweir.gateway.endpoints.pool import Endpoint, EndpointFacts, Pool, Rpc
from tokenweir.gateway.endpoints.upstream import Origin, Timeouts, UpstreamClient
from tokenweir.gateway.files.cabinet import Cabinet, FileLimits
from tokenweir.gateway.metering.estimate import UsualOutput
from tokenweir.gateway.metering.prices import Price, PriceTable
from tokenweir.gateway.metering.reserving import Reservations
from tokenweir.gateway.metering.settling import Reaper, Settler
from tokenweir.gateway.pipeline.line import Line
from tokenweir.gateway.queued.node import Metering, Queued, QueuedPolicy, QueuedStores
from tokenweir.gateway.settings import Settings
from tokenweir.ports.access import Keyring, Owners
from tokenweir.ports.backend import Control
from tokenweir.ports.batches import Batches
from tokenweir.ports.files import FileStore
from tokenweir.ports.ledger import Ledger
from tokenweir.ports.quota import QuotaStore
from tokenweir.ports.tokenizer import TokenCounter
from tokenweir.telemetry.refusals import Refusals
from tokenweir.telemetry.spans import Tracer


class Stores(msgspec.Struct, frozen=True, kw_only=True):
    """The adapters that the gateway works on, open."""

    quota: QuotaStore
    ledger: Ledger
    queued: QueuedStores | None = None
    files: FileStore | None = None
    batches: Batches | None = None


class Node(msgspec.Struct, frozen=True, kw_only=True):
    """What a gateway is made of. ``endpoints`` are facts with the URL of each; ``controls`` side doors by kind.

    ``only`` names the paths of the door, if not all; ``line`` is what requests pass there. ``tls`` is what it speaks,
    if TLS, and ``refusals`` counts whom it does not let in. ``trust`` is how endpoints are spoken to over TLS, by their
    names, and ``rules`` where they may be. ``tokenizers`` are those of models, by their names.
    """

    settings: Settings
    stores: Stores
    keyring: Keyring
    endpoints: Sequence[tuple[EndpointFacts, str]] = ()
    controls: Mapping[str, Control] = {}
    queued: QueuedPolicy = QueuedPolicy()
    only: frozenset[str] = frozenset()
    administration: Administration | None = None
    line: Line | None = None
    tls: ssl.SSLContext | None = None
    trust: Mapping[str, ssl.SSLContext] = {}
    rules: AddressRules | None = None
    rpcs: Mapping[str, Rpc] = {}
    tokenizers: Mapping[str, TokenCounter] = {}
    refusals: Refusals | None = None
    tracer: Tracer | None = None


class Gateway:
    """A gateway at work: what runs beside its door. ``url`` is where it listens."""

    def __init__(self, node: Node, clock: Clock | None = None) -> None:
        settings = node.settings
        clock = clock or SystemClock()
        self.pool = Pool(_endpoints(node), tokenizers=node.tokenizers)
        prices = _prices(settings)
        self._reserving = Reservations(node.stores.quota, lease_ns=settings.reservation_lease)
        self._settler = Settler(node.stores.ledger, node.stores.quota)
        self._reaper = Reaper(node.stores.quota, self._settler, prices, clock, reserving=self._reserving)
        self._health = HealthWatch(self.pool, node.controls, interval_ns=settings.health_interval)
        usual = UsualOutput(default_tokens=settings.default_output_tokens)
        direct = Direct(
            self.pool,
            reserving=self._reserving,
            settler=self._settler,
            usual=usual,
            prices=prices,
            clock=clock,
            policy=RelayPolicy(attempts=settings.attempts, lease_ns=settings.reservation_lease),
        )
        metrics = Metrics()
        metrics.measured.refusals = node.refusals
        direct.measures = self._settler.measures = metrics.measures
        direct.tracer = node.tracer
        self._works = node.queued.works
        self._leaving = asyncio.Event()
        metering = Metering(settler=self._settler, usual=usual, prices=prices, quota=node.stores.quota)
        self.queued = _queued(node, direct, metering, clock)
        self._door = Door(
            node.keyring,
            direct,
            metrics=metrics,
            clock=clock,
            limits=_limits(settings),
            queued=self.queued,
            only=node.only,
        )
        self._furnish(node, clock)
        self.batches = self._batches(node, clock)
        self.brownout = self._brownout(settings, direct, clock)
        if self.queued is not None and (node.line is not None or self.brownout is not None):
            self.queued.accepting.shaping = partial(shaped, self._door)
        self._server = HttpServer(
            App(self._door),
            settings.host,
            settings.port,
            bounds=_bounds(settings),
            drain_timeout_ns=settings.drain_timeout,
            message_bytes=settings.max_body_bytes,
            tls=node.tls,
        )
        self._drain_s = settings.drain_timeout / 1e9
        self.url = self._server.url

    def _furnish(self, node: Node, clock: Clock) -> None:
        """Give the door and the queued path what not every gateway has."""
        door, queued, settings = self._door, self.queued, node.settings
        door.tracer, door.quota = node.tracer, node.stores.quota
        door.administration, door.line = node.administration, node.line
        if queued is None:
            return
        queued.asker.measures = door.metrics.measures
        queued.asker.tracer = queued.ends.tracer = queued.accepting.tracer = node.tracer
        if node.stores.files is not None:
            limits = FileLimits(file_bytes=settings.max_file_bytes, user_bytes=settings.max_stored_bytes)
            door.cabinet = Cabinet(node.stores.files, queued.sealer, clock, limits)

    def _brownout(self, settings: Settings, direct: Direct, clock: Clock) -> Brownout | None:
        """Return the ladder, where the settings have rungs, put to its places."""
        if not settings.brownout:
            return None
        made = Brownout(
            settings.brownout,
            settings.slo,
            clock=clock,
            models=self.pool.models,
            depth=None if self.queued is None else self.queued.measure,
        )
        self._door.brownout = made
        direct.first_tokens = made.first_tokens
        if self.queued is not None:
            self.queued.asker.first_tokens = made.first_tokens
        return made

    def _batches(self, node: Node, clock: Clock) -> BatchWorks | None:
        """Return what works on batches, where they can be kept."""
        store, queued, cabinet = node.stores.batches, self.queued, self._door.cabinet
        if store is None or queued is None or cabinet is None or not isinstance(node.keyring, Owners):
            return None
        works = BatchWorks(
            Parts(store=store, queued=queued, pool=self.pool),
            cabinet,
            node.keyring,
            clock,
            BatchPolicy(
                lines=node.settings.batch_lines,
                line_bytes=node.settings.max_body_bytes,
                lease_ns=node.queued.lease_ns,
            ),
        )
        self._door.desk = Desk(store, cabinet, queued.sealer, clock, works.nudge)
        if node.only:
            return None
        self._door.batches = works
        return works

    @contextlib.asynccontextmanager
    async def serving(self) -> AsyncGenerator[None]:
        """Answer while the block runs; at its end, finish what is on its way and settle all of it."""
        async with asyncio.TaskGroup() as behind:
            tasks = [
                behind.create_task(self._reserving.run()),
                behind.create_task(self._settler.run()),
                behind.create_task(self._reaper.run()),
                behind.create_task(self._health.run()),
                behind.create_task(self._door.streams.watch()),
            ]
            if self.queued is not None:
                tasks.append(behind.create_task(self.queued.run()))
            if self.batches is not None:
                tasks.append(behind.create_task(self.batches.run()))
            if self.brownout is not None:
                tasks.append(behind.create_task(self.brownout.run()))
            try:
                async with asyncio.TaskGroup() as front:
                    front.create_task(self._server.serve())
                    front.create_task(self._leave())
                    try:
                        await self._health.look()
                        yield
                    finally:
                        self._door.draining = True
                        self._leaving.set()
                        self._server.close()
                # Nobody waits for the ends of streams; they are written all the same.
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(self._drain_s):
                        await self._settler.drained()
            finally:
                for task in tasks:
                    task.cancel()
                for endpoint in self.pool.endpoints:
                    endpoint.client.close()
                    if endpoint.rpc is not None:
                        await endpoint.rpc.close()

    async def _leave(self) -> None:
        """When asked to leave, finish the queued requests in hand, then end the streams: their readers come back."""
        await self._leaving.wait()
        if self.batches is not None:
            self.batches.drain()
        if self.queued is not None and self._works:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._drain_s):
                    await self.queued.drain()
        self._door.streams.close()

    def hurry(self) -> None:
        """Do not wait for answers that are on their way."""
        self._server.close(at_once=True)


def _prices(settings: Settings) -> PriceTable:
    return PriceTable(
        [
            Price(model=price.model, input=price.input, output=price.output, cached=price.cached)
            for price in settings.prices
        ],
        currency=settings.currency,
    )


def _limits(settings: Settings) -> Limits:
    return Limits(
        body_bytes=settings.max_body_bytes,
        read_timeout_ns=settings.read_timeout,
        streams=settings.max_streams,
        event_streams=settings.max_event_streams,
        heartbeat_ns=settings.heartbeat,
        log_prompts=settings.log_prompts,
    )


def _bounds(settings: Settings) -> Bounds:
    return Bounds(
        header_bytes=settings.max_header_bytes,
        read_timeout_ns=settings.read_timeout,
        write_timeout_ns=settings.write_timeout,
        idle_timeout_ns=settings.idle_timeout,
    )


def _queued(node: Node, direct: Direct, metering: Metering, clock: Clock) -> Queued | None:
    """Return the queued path, where there are stores for it."""
    stores = node.stores.queued
    return None if stores is None else Queued(stores, direct, metering, policy=node.queued, clock=clock)


def _endpoints(node: Node) -> list[Endpoint]:
    settings = node.settings
    timeouts = timeouts_of(settings)
    return [
        Endpoint(
            facts,
            UpstreamClient(
                Origin.parse(url),
                connections=settings.endpoint_connections,
                timeouts=timeouts,
                tls=node.trust.get(facts.name),
                rules=node.rules,
            ),
            rpc=node.rpcs.get(facts.name),
        )
        for facts, url in node.endpoints
    ]


def timeouts_of(settings: Settings) -> Timeouts:
    """Return how long endpoints may take."""
    return Timeouts(
        connect_ns=settings.connect_timeout, head_ns=settings.answer_timeout, idle_ns=settings.silence_timeout
    )


def run(
    open_node: Callable[[], contextlib.AbstractAsyncContextManager[Node]], announce: Callable[[Gateway], None]
) -> None:
    """Serve until SIGTERM or Ctrl-C: the first drains, a second one ends at once.

    ``announce`` is called once the door is open.

    Raises:
        ConfigError: a setting cannot be used, or the address cannot be listened on.
        CancelledError: it was stopped before it was ready, or twice.
    """
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_serve(open_node, announce))


async def _serve(
    open_node: Callable[[], contextlib.AbstractAsyncContextManager[Node]], announce: Callable[[Gateway], None]
) -> None:
    stop = Stop()
    with stop.watching():
        try:
            async with stop.cancels(), open_node() as node:
                gateway = Gateway(node)
                async with asyncio.TaskGroup() as group:
                    async with gateway.serving():
                        heap.settle()
                        announce(gateway)
                        stop.ready()
                        await stop.once.wait()
                        impatience = group.create_task(_hurry(stop, gateway))
                    impatience.cancel()
        except* Exception as errors:  # noqa: BLE001 - only taken out of their group
            raise first_of(errors) from None
    if stop.asked > 1:
        raise CancelledError("stopped by the user, twice: answers on their way were cut off")


async def _hurry(stop: Stop, gateway: Gateway) -> None:
    await stop.twice.wait()
    gateway.hurry()
