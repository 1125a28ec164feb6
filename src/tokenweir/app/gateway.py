"""Wires the gateway: its stores by URL, its keyring, its endpoints."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncGenerator, Callable, Sequence
from typing import Literal

import msgspec

from tokenweir.access.directory import PERMISSIONS, Directory
from tokenweir.access.keyring import CachedKeyring
from tokenweir.app import Settings
from tokenweir.app.rpc_endpoints import rpcs_of
from tokenweir.app.tokenizers import tokenizers_of
from tokenweir.app.traces import open_tracer
from tokenweir.asgi.server import see_free
from tokenweir.asgi.tls import client, listener
from tokenweir.backends.registry import backend
from tokenweir.config import EndpointSettings
from tokenweir.core.clock import SystemClock
from tokenweir.core.errors import ConfigError, StoreHeldError
from tokenweir.gateway.administration import Administration
from tokenweir.gateway.endpoints.addresses import AddressRules
from tokenweir.gateway.endpoints.pool import EndpointFacts
from tokenweir.gateway.files.rotating import rotate_files
from tokenweir.gateway.pipeline.registry import line, need_guards
from tokenweir.gateway.queued.dead import Graveyard, rotate
from tokenweir.gateway.queued.node import QueuedPolicy, QueuedStores
from tokenweir.gateway.queued.reading import Reading
from tokenweir.gateway.queued.sealing import SealedEventLog, Sealer, SealingKey
from tokenweir.gateway.queued.webhooks import WebhookPolicy
from tokenweir.gateway.queued.worker import Policy
from tokenweir.gateway.running import Node, Stores
from tokenweir.ports.batches import Batches
from tokenweir.ports.files import FileStore
from tokenweir.ports.ledger import LedgerFilter, LedgerRow, LedgerTotal
from tokenweir.ports.quota import QuotaUpkeep
from tokenweir.ports.requests import Resealing
from tokenweir.stores.gateway.opening import StoreUrls, check_urls, open_ledger, open_quota
from tokenweir.stores.gateway.opening import open_stores as open_gateway_stores
from tokenweir.stores.gateway.sqlite.database import Database
from tokenweir.stores.gateway.sqlite.events import SqliteEventLog
from tokenweir.stores.gateway.sqlite.queue import SqliteQueue
from tokenweir.stores.gateway.sqlite.quota import SqliteQuota
from tokenweir.stores.gateway.sqlite.requests import SqliteIntake, SqliteRequests
from tokenweir.stores.records import absent_file
from tokenweir.telemetry.refusals import Refusals

FIRST_USER = "admin"


def see_ready(settings: Settings) -> None:
    """Look, before a model is started for it, whether a gateway can be opened with these settings.

    Raises:
        ConfigError: the stores' URLs do not go together, or the address cannot be listened on.
        StoreHeldError: another process has the database open.
    """
    check_urls(store_urls(settings))
    if settings.stores.gateway.startswith("sqlite:"):
        Database(settings.stores.gateway).close()
    see_free(settings.gateway.host, settings.gateway.port)


def first_key(settings: Settings) -> str | None:
    """Return a key for a fresh installation, with every scope; ``None`` where there are users already."""
    directory = Directory(settings.stores.access)
    try:
        if directory.users():
            return None
        directory.add_user(FIRST_USER)
        _, text = directory.issue(FIRST_USER, "first", scopes=PERMISSIONS)
        return text
    finally:
        directory.close()


def opener(
    settings: Settings,
    endpoints: Sequence[EndpointSettings],
    *,
    works: bool = True,
    only: frozenset[str] = frozenset(),
) -> Callable[[], contextlib.AbstractAsyncContextManager[Node]]:
    """Return what opens the gateway's parts.

    Without ``works`` queued requests are left to workers of their own. ``only`` names the paths of the door, if not
    all. Raises ConfigError for endpoints that cannot be used.
    """
    facts = [(endpoint_facts(endpoint), endpoint.url) for endpoint in endpoints]
    controls = {kind: backend(kind) for kind in {endpoint.kind for endpoint in endpoints}}
    policy, rules = queued_policy(settings), AddressRules.parse(settings.gateway.endpoint_networks)
    trust, rpcs = trust_of(endpoints), rpcs_of(endpoints, settings.gateway)
    tokenizers = {} if only else tokenizers_of(endpoints)
    refusals = Refusals("tokenweir.gateway")
    tls = listener(settings.gateway.tls, refusals, refusals.renewed)
    models = [endpoint.model or "" for endpoint in endpoints]
    door_line = None if only else line("gateway", settings.gateway.pipeline, models=models)
    need_guards(door_line, policy.work_line)
    if only or not works:
        policy = msgspec.structs.replace(policy, works=False)

    @contextlib.asynccontextmanager
    async def open_node() -> AsyncGenerator[Node]:
        directory = Directory(settings.stores.access)
        try:
            keyring = CachedKeyring(directory)
            await keyring.look()
            service = "weir-notifier" if only else "weir-gateway"
            async with (
                open_tracer(settings.telemetry, service) as tracer,
                open_stores(settings) as stores,
                asyncio.TaskGroup() as group,
            ):
                watch = group.create_task(keyring.watch())
                yield Node(
                    settings=settings.gateway,
                    stores=stores,
                    keyring=keyring,
                    endpoints=facts,
                    controls=controls,
                    queued=policy,
                    only=only,
                    administration=None if only else _administration(directory, stores, keyring),
                    line=door_line,
                    tls=tls,
                    trust=trust,
                    rpcs=rpcs,
                    tokenizers=tokenizers,
                    rules=rules,
                    refusals=refusals,
                    tracer=tracer,
                )
                watch.cancel()
        finally:
            directory.close()

    return open_node


def _administration(directory: Directory, stores: Stores, keyring: CachedKeyring) -> Administration | None:
    """Return what administers over HTTP, where the counters can be looked after."""
    if not isinstance(stores.quota, QuotaUpkeep):
        return None
    return Administration(directory, ledger=stores.ledger, quota=stores.quota, changed=keyring.look)


@contextlib.asynccontextmanager
async def open_stores(settings: Settings) -> AsyncGenerator[Stores]:
    """Open the stores that the settings name. Raises ConfigError where there is no adapter, or another holds them."""
    async with open_gateway_stores(store_urls(settings)) as opened:
        yield Stores(
            quota=opened.quota,
            ledger=opened.ledger,
            queued=QueuedStores(
                intake=opened.intake,
                requests=opened.requests,
                jobs=opened.jobs,
                events=opened.events,
                results=opened.results,
            ),
            files=opened.files,
            batches=opened.batches,
        )


def store_urls(settings: Settings) -> StoreUrls:
    """Return where the gateway keeps things."""
    stores = settings.stores
    return StoreUrls(gateway=stores.gateway, quota=stores.quota, queue=stores.queue, events=stores.events)


def queued_policy(settings: Settings) -> QueuedPolicy:
    """Return what the settings say of the queued path. Raises ConfigError for a secret that cannot be used."""
    worker, collector = settings.worker, settings.collector
    secret = collector.webhook_secret
    return QueuedPolicy(
        work=Policy(
            concurrency=worker.concurrency,
            attempts=worker.attempts,
            backoff_ns=worker.backoff,
            backoff_most_ns=worker.backoff_limit,
        ),
        lease_ns=worker.lease,
        queue_lease_ns=settings.gateway.queue_lease,
        sweep_ns=worker.sweep_interval,
        webhooks=WebhookPolicy(
            secret=b"" if secret is None else secret.read().encode(),
            hosts=frozenset(collector.webhook_hosts),
            attempts=collector.webhook_attempts,
            timeout_ns=collector.webhook_timeout,
            tls=client(collector.webhook_tls),
        ),
        work_line=line("worker", worker.pipeline),
        end_line=line("collector", collector.pipeline),
        seal_keys=tuple(SealingKey.read(key.read()) for key in settings.gateway.seal_keys),
    )


class Yard:
    """The queue with its dead letters over open stores, and what changes the key that requests are sealed with."""

    def __init__(
        self,
        stores: QueuedStores,
        policy: QueuedPolicy,
        *,
        files: FileStore | None = None,
        batches: Batches | None = None,
    ) -> None:
        self.jobs = stores.jobs
        self._files = files
        self._batches = batches
        self._requests = stores.requests
        self._sealer = sealer = Sealer(policy.seal_keys)
        events = SealedEventLog(stores.events, sealer) if sealer.seals else stores.events
        self.graveyard = Graveyard(
            stores.jobs,
            stores.requests,
            stores.intake,
            Reading(stores.requests, events, sealer),
            sealer=sealer,
            queue_lease_ns=policy.queue_lease_ns,
        )

    async def rotate(self) -> int:
        """Seal anew what is not sealed with the present key, files too; returns how many requests that were.

        Raises:
            ConfigError: the stores cannot.
            SealError: a key that something is sealed with is not configured.
        """
        if not isinstance(self._requests, Resealing):
            raise ConfigError(
                "these stores cannot be sealed anew", mend="keep the old keys in gateway.seal_keys"
            )
        if self._files is not None and self._batches is not None:
            await rotate_files(self._files, self._batches, self._sealer)
        return await rotate(self._requests, self._sealer)


@contextlib.asynccontextmanager
async def open_yard(settings: Settings, *, writes: bool) -> AsyncGenerator[Yard]:
    """Open the queue, to read beside a gateway that may be running, or to write where embedded stores are free.

    Raises ConfigError.
    """
    policy = queued_policy(settings)
    if writes or not settings.stores.gateway.startswith("sqlite:"):
        async with open_stores(settings) as stores:
            if stores.queued is None:
                raise ConfigError("these stores have no queue")
            yield Yard(stores.queued, policy, files=stores.files, batches=stores.batches)
        return
    clock = SystemClock()
    with contextlib.closing(Database(settings.stores.gateway, writes=False)) as database:
        jobs, quota = SqliteQueue(database, clock), SqliteQuota(database, clock)
        beside = QueuedStores(
            intake=SqliteIntake(database, clock, quota, jobs),
            requests=SqliteRequests(database, clock),
            jobs=jobs,
            events=SqliteEventLog(database),
        )
        yield Yard(beside, policy)


async def offline_quota(settings: Settings, what: Literal["verify", "rebuild"]) -> Sequence[str]:
    """Verify or rebuild the counters: shared ones beside gateways that run, a gateway's own where it does not run.

    Raises StoreHeldError where it runs, which names the route to ask.
    """
    try:
        async with open_quota(store_urls(settings)) as quota:
            if what == "verify":
                return await quota.verify()
            await quota.rebuild()
            return ()
    except StoreHeldError as error:
        method = "GET" if what == "verify" else "POST"
        raise StoreHeldError(
            f"a running gateway has the counters: {error.message}",
            mend=f"ask it: {method} /v1/admin/quotas/{what} with an admin key; or stop it first",
        ) from error


async def totals(url: str, where: LedgerFilter, by: Literal["day", "month"]) -> Sequence[LedgerTotal]:
    """Return the ledger's roll-ups, beside a gateway that may be running; none where no gateway ran yet."""
    if absent_file(url) is not None:
        return ()
    async with open_ledger(url) as ledger:
        return await ledger.totals(where, by)


async def read_ledger(url: str, where: LedgerFilter) -> AsyncGenerator[LedgerRow]:
    """Yield the ledger's rows, beside a gateway that may be running; none where no gateway ran yet."""
    if absent_file(url) is not None:
        return
    async with open_ledger(url) as ledger:
        async for row in ledger.rows(where):
            yield row


def trust_of(endpoints: Sequence[EndpointSettings]) -> dict[str, ssl.SSLContext]:
    """Return how endpoints are spoken to over TLS, where the settings say. Raises ConfigError."""
    found = {endpoint.name: client(endpoint.tls) for endpoint in endpoints}
    return {name: context for name, context in found.items() if context is not None}


def endpoint_facts(endpoint: EndpointSettings) -> EndpointFacts:
    """Return what is configured of an endpoint. Raises ConfigError where its model or key is missing."""
    if endpoint.model is None:
        raise ConfigError(
            f"the endpoint {endpoint.name!r} names no model", mend="set model in its [[endpoints]] table"
        )
    key = endpoint.key.read() if endpoint.key is not None else ""
    return EndpointFacts(
        name=endpoint.name,
        kind=endpoint.kind,
        model=endpoint.model,
        upstream_model=endpoint.model,
        weight=endpoint.weight,
        order=endpoint.order,
        pool=endpoint.pool,
        authorization=f"Bearer {key}" if key else "",
    )
