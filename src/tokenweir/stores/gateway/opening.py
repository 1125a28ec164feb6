"""From URLs to the gateway's stores: all embedded in one SQLite file, or each in a service of its own.

``docs/stores.md`` tells which URL gives what.
"""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import AsyncGenerator
from typing import Final, Protocol, cast

import msgspec

from tokenweir.core.clock import SystemClock
from tokenweir.core.errors import ConfigError, MissingExtraError
from tokenweir.ports.batches import Batches
from tokenweir.ports.eventlog import EventLog
from tokenweir.ports.files import FileStore
from tokenweir.ports.intake import Intake
from tokenweir.ports.ledger import Ledger
from tokenweir.ports.queue import DeadLetters, JobQueue
from tokenweir.ports.quota import QuotaStore, QuotaUpkeep
from tokenweir.ports.requests import RequestLookup, RequestStore, RequestUpkeep
from tokenweir.stores.gateway.sqlite.batches import SqliteBatches
from tokenweir.stores.gateway.sqlite.database import Database
from tokenweir.stores.gateway.sqlite.events import SqliteEventLog
from tokenweir.stores.gateway.sqlite.files import SqliteFiles
from tokenweir.stores.gateway.sqlite.ledger import SqliteLedger
from tokenweir.stores.gateway.sqlite.queue import SqliteQueue
from tokenweir.stores.gateway.sqlite.quota import SqliteQuota
from tokenweir.stores.gateway.sqlite.requests import SqliteIntake, SqliteRequests

_EMBEDDED: Final = "sqlite:///"
_SHARED: Final = ("postgresql://", "postgresql+psycopg://")
_SCALED: Final = {
    "quota": ("redis://", "rediss://"),
    "queue": ("amqp://", "amqps://", "kafka://", "kafkas://"),
    "events": ("kafka://", "kafkas://"),
}
_EXTRAS: Final = {"asyncpg": "postgresql", "psycopg": "postgresql", "redis": "redis", "aiormq": "rabbitmq"}


class Quota(QuotaStore, QuotaUpkeep, Protocol):
    """A quota store with its upkeep."""


class Jobs(JobQueue, DeadLetters, Protocol):
    """A job queue with its dead letters."""


class Requests(RequestStore, RequestLookup, RequestUpkeep, Protocol):
    """A request store with its upkeep."""


class StoreUrls(msgspec.Struct, frozen=True, kw_only=True):
    """Where the gateway keeps things; an empty one is embedded in ``gateway``."""

    gateway: str
    quota: str = ""
    queue: str = ""
    events: str = ""


class GatewayStores(msgspec.Struct, frozen=True, kw_only=True):
    """One set of adapters over the same data.

    ``results`` is the queue of ends for collectors that are processes of their own; embedded stores have one process
    and none.
    """

    quota: Quota
    ledger: Ledger
    intake: Intake
    requests: Requests
    jobs: Jobs
    events: EventLog
    files: FileStore
    batches: Batches
    results: Jobs | None = None


@contextlib.asynccontextmanager
async def open_stores(urls: StoreUrls) -> AsyncGenerator[GatewayStores]:
    """Open the stores that the URLs name, and keep them while the block runs.

    Raises:
        ConfigError: the URLs do not go together, or a store cannot be used as it is set up.
        MissingExtraError: a client library is not installed.
        RecordError: the database cannot be opened.
        UnavailableError: a service cannot be reached.
    """
    check_urls(urls)
    opener = _open_embedded if urls.gateway.startswith(_EMBEDDED) else _scaled().open_composed
    async with opener(urls) as stores:
        yield stores


def check_urls(urls: StoreUrls) -> None:
    """Raise ConfigError where the URLs do not go together."""
    given = {"quota": urls.quota, "queue": urls.queue, "events": urls.events}
    if urls.gateway.startswith(_EMBEDDED):
        for name, url in given.items():
            if url:
                raise ConfigError(
                    f"stores.{name} is {url!r} while stores.gateway is a SQLite file",
                    mend="set stores.gateway to postgresql://…, or leave the others out",
                )
        return
    if not urls.gateway.startswith(_SHARED):
        raise ConfigError(
            f"stores.gateway is {urls.gateway!r}", mend="write sqlite:///PATH or postgresql://…"
        )
    for name, schemes in _SCALED.items():
        if not given[name].startswith(schemes):
            raise ConfigError(
                f"stores.{name} is {given[name]!r}, and stores.gateway is PostgreSQL",
                mend=f"set stores.{name} to {' or '.join(schemes)}…",
            )


@contextlib.asynccontextmanager
async def open_quota(urls: StoreUrls) -> AsyncGenerator[Quota]:
    """Open the quota store alone: a shared one beside gateways that run. Raises as :func:`open_stores`."""
    check_urls(urls)
    if not urls.gateway.startswith(_EMBEDDED):
        async with _scaled().open_quota(urls) as quota:
            yield quota
        return
    with contextlib.closing(Database(urls.gateway)) as database:
        yield SqliteQuota(database, SystemClock())


@contextlib.asynccontextmanager
async def open_ledger(url: str) -> AsyncGenerator[Ledger]:
    """Open the ledger to read, beside gateways that run. Raises as :func:`open_stores`."""
    if not url.startswith(_EMBEDDED):
        async with _scaled().open_ledger(url) as ledger:
            yield ledger
        return
    with contextlib.closing(Database(url, writes=False)) as database:
        yield SqliteLedger(database, SqliteQuota(database, SystemClock()))


class _Scaled(Protocol):
    """What the module of the scaled stores offers; importing it needs their client libraries."""

    def open_composed(self, urls: StoreUrls) -> contextlib.AbstractAsyncContextManager[GatewayStores]: ...

    def open_quota(self, urls: StoreUrls) -> contextlib.AbstractAsyncContextManager[Quota]: ...

    def open_ledger(self, url: str) -> contextlib.AbstractAsyncContextManager[Ledger]: ...


def _scaled() -> _Scaled:
    return cast("_Scaled", imported("composed.opening"))


def imported(module: str) -> object:
    """Return a module beside this one that needs a client library. Raises MissingExtraError."""
    try:
        return importlib.import_module(f"tokenweir.stores.gateway.{module}")
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        raise MissingExtraError(
            f"the stores need the package {missing!r}, which is not installed",
            mend=f"pip install 'tokenweir[{_EXTRAS.get(missing, 'kafka')}]'",
        ) from error


@contextlib.asynccontextmanager
async def _open_embedded(urls: StoreUrls) -> AsyncGenerator[GatewayStores]:
    clock = SystemClock()
    database = Database(urls.gateway)
    try:
        quota, jobs = SqliteQuota(database, clock), SqliteQueue(database, clock)
        batches = SqliteBatches(database, clock)
        await jobs.load()
        await batches.free()
        yield GatewayStores(
            quota=quota,
            ledger=SqliteLedger(database, quota),
            intake=SqliteIntake(database, clock, quota, jobs),
            requests=SqliteRequests(database, clock),
            jobs=jobs,
            events=SqliteEventLog(database),
            files=SqliteFiles(database),
            batches=batches,
        )
    finally:
        database.close()
