"""Opens PostgreSQL, Redis, Kafka and, where jobs are kept there, RabbitMQ as one set of stores."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator
from typing import Protocol, cast

from tokenweir.stores.gateway.composed.intake import ComposedIntake
from tokenweir.stores.gateway.kafka.connection import KafkaServers
from tokenweir.stores.gateway.kafka.eventlog import KafkaEventLog
from tokenweir.stores.gateway.opening import GatewayStores, Jobs, StoreUrls, imported
from tokenweir.stores.gateway.postgresql.batches import PostgresqlBatches
from tokenweir.stores.gateway.postgresql.counting import PostgresqlUse
from tokenweir.stores.gateway.postgresql.database import PostgresqlDatabase
from tokenweir.stores.gateway.postgresql.files import PostgresqlFiles
from tokenweir.stores.gateway.postgresql.ledger import PostgresqlLedger
from tokenweir.stores.gateway.postgresql.requests import PostgresqlRequests
from tokenweir.stores.gateway.redis.connection import RedisConnection
from tokenweir.stores.gateway.redis.upkeep import RedisQuotaUpkeep


class _Queues(Protocol):
    """What the module of a broker offers; importing it needs its client library."""

    def open_queues(self, url: str) -> contextlib.AbstractAsyncContextManager[tuple[Jobs, Jobs]]: ...


def _queues(url: str) -> _Queues:
    broker = "kafka" if url.startswith("kafka") else "rabbitmq"
    return cast("_Queues", imported(f"{broker}.opening"))


@contextlib.asynccontextmanager
async def open_composed(urls: StoreUrls) -> AsyncGenerator[GatewayStores]:
    """Connect to all, and publish, heal and read on while the block runs; see ``open_stores``."""
    async with contextlib.AsyncExitStack() as stack:
        database = await PostgresqlDatabase.open(urls.gateway)
        stack.push_async_callback(database.close)
        redis = RedisConnection(urls.quota)
        stack.push_async_callback(redis.close)
        quota = await RedisQuotaUpkeep.open(redis, PostgresqlUse(database))
        jobs, results = await stack.enter_async_context(_queues(urls.queue).open_queues(urls.queue))
        requests = PostgresqlRequests(database)
        events = KafkaEventLog(KafkaServers(urls.events), requests)
        await stack.enter_async_context(events.open())
        intake = ComposedIntake(quota, requests, jobs)
        async with asyncio.TaskGroup() as group:
            beside = [group.create_task(intake.run()), group.create_task(quota.watch())]
            yield GatewayStores(
                quota=quota,
                ledger=PostgresqlLedger(database),
                intake=intake,
                requests=requests,
                jobs=jobs,
                events=events,
                files=PostgresqlFiles(database),
                batches=PostgresqlBatches(database),
                results=results,
            )
            for task in beside:
                task.cancel()


@contextlib.asynccontextmanager
async def open_quota(urls: StoreUrls) -> AsyncGenerator[RedisQuotaUpkeep]:
    """Open Redis's counters and the database they are counted from, beside gateways that run."""
    database = await PostgresqlDatabase.open(urls.gateway, connections=4)
    redis = RedisConnection(urls.quota)
    try:
        yield await RedisQuotaUpkeep.open(redis, PostgresqlUse(database))
    finally:
        await redis.close()
        await database.close()


@contextlib.asynccontextmanager
async def open_ledger(url: str) -> AsyncGenerator[PostgresqlLedger]:
    """Open the ledger in PostgreSQL."""
    database = await PostgresqlDatabase.open(url, connections=2)
    try:
        yield PostgresqlLedger(database)
    finally:
        await database.close()
