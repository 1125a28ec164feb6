"""Wires the gateway: its stores by URL, its keyring, its endpoints."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Callable, Sequence
from typing import Literal

from tokenweir.access.directory import PERMISSIONS, Directory
from tokenweir.access.keyring import CachedKeyring
from tokenweir.app import Settings
from tokenweir.backends.registry import backend
from tokenweir.config import EndpointSettings
from tokenweir.core.clock import SystemClock
from tokenweir.core.errors import ConfigError
from tokenweir.gateway.endpoints.pool import EndpointFacts
from tokenweir.gateway.queued.node import QueuedPolicy, QueuedStores
from tokenweir.gateway.queued.sealing import SealingKey
from tokenweir.gateway.queued.webhooks import WebhookPolicy
from tokenweir.gateway.queued.worker import Policy
from tokenweir.gateway.running import Node, Stores
from tokenweir.ports.ledger import LedgerFilter, LedgerRow, LedgerTotal
from tokenweir.stores.gateway.sqlite.database import Database
from tokenweir.stores.gateway.sqlite.events import SqliteEventLog
from tokenweir.stores.gateway.sqlite.ledger import SqliteLedger
from tokenweir.stores.gateway.sqlite.queue import SqliteQueue
from tokenweir.stores.gateway.sqlite.quota import SqliteQuota
from tokenweir.stores.gateway.sqlite.requests import SqliteIntake, SqliteRequests

FIRST_USER = "admin"


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
    settings: Settings, endpoints: Sequence[EndpointSettings]
) -> Callable[[], contextlib.AbstractAsyncContextManager[Node]]:
    """Return what opens the gateway's parts. Raises ConfigError for endpoints that cannot be used."""
    facts = [(_facts(endpoint), endpoint.url) for endpoint in endpoints]
    controls = {kind: backend(kind) for kind in {endpoint.kind for endpoint in endpoints}}
    policy = queued_policy(settings)

    @contextlib.asynccontextmanager
    async def open_node() -> AsyncGenerator[Node]:
        clock = SystemClock()
        directory = Directory(settings.stores.access)
        keyring = CachedKeyring(directory)
        await keyring.look()
        database = Database(settings.stores.gateway)
        quota = SqliteQuota(database, clock)
        jobs = SqliteQueue(database, clock)
        try:
            await jobs.load()
            async with asyncio.TaskGroup() as group:
                watch = group.create_task(keyring.watch())
                yield Node(
                    settings=settings.gateway,
                    stores=Stores(
                        quota=quota,
                        ledger=SqliteLedger(database, quota),
                        queued=QueuedStores(
                            intake=SqliteIntake(database, clock, quota, jobs),
                            requests=SqliteRequests(database, clock),
                            jobs=jobs,
                            events=SqliteEventLog(database),
                        ),
                    ),
                    keyring=keyring,
                    endpoints=facts,
                    controls=controls,
                    queued=policy,
                )
                watch.cancel()
        finally:
            database.close()
            directory.close()

    return open_node


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
        ),
        seal_keys=tuple(SealingKey.read(key.read()) for key in settings.gateway.seal_keys),
    )


async def offline_quota(url: str, what: Literal["verify", "rebuild"]) -> Sequence[str]:
    """Verify or rebuild the counters of a gateway that is not running. Raises ConfigError where it runs."""
    database = Database(url)
    try:
        quota = SqliteQuota(database, SystemClock())
        if what == "verify":
            return await quota.verify()
        await quota.rebuild()
        return ()
    finally:
        database.close()


async def totals(url: str, where: LedgerFilter, by: Literal["day", "month"]) -> Sequence[LedgerTotal]:
    """Return the ledger's roll-ups, beside a gateway that may be running."""
    with contextlib.closing(Database(url, writes=False)) as database:
        return await SqliteLedger(database, SqliteQuota(database, SystemClock())).totals(where, by)


async def read_ledger(url: str, where: LedgerFilter) -> AsyncGenerator[LedgerRow]:
    """Yield the ledger's rows, beside a gateway that may be running."""
    with contextlib.closing(Database(url, writes=False)) as database:
        async for row in SqliteLedger(database, SqliteQuota(database, SystemClock())).rows(where):
            yield row


def _facts(endpoint: EndpointSettings) -> EndpointFacts:
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
        authorization=f"Bearer {key}" if key else "",
    )
