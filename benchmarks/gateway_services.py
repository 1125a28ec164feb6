"""PostgreSQL, Redis, RabbitMQ and Kafka on this machine, for the benchmarks of what runs over shared stores."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Generator, Mapping
from pathlib import Path

import asyncpg
from deploy.services.group import SERVICES, Services, choose_runner
from deploy.services.state import StateFile

from tokenweir.stores.gateway.opening import StoreUrls

HOME = Path(__file__).parent / "cache" / "services"
AHEAD = "CREATE TABLE ahead AS SELECT repeat('x', 1900) FROM generate_series(1, 480000)"
STORES = {"gateway": "postgresql", "quota": "redis", "queue": "rabbitmq", "events": "kafka"}


@contextlib.contextmanager
def shared_stores() -> Generator[Mapping[str, str]]:
    """Run the services while the block runs, and yield the URLs of ``[stores]`` by name. They begin empty."""
    services = Services(HOME, runner=choose_runner("local"))
    services.stop()
    services.purge()
    started = services.start(list(SERVICES))
    try:
        if started.errors:
            raise RuntimeError(f"services did not start: {started.errors}")
        asyncio.run(_write_ahead(started.urls["postgresql"]["postgresql"]))
        yield {store: started.urls[name][name] for store, name in STORES.items()}
    finally:
        services.stop()


async def _write_ahead(url: str) -> None:
    """Have PostgreSQL make the files that a database in use has made: it makes each while its writers wait."""
    connection = await asyncpg.connect(url)
    try:
        await connection.execute(AHEAD)
        await connection.execute("DROP TABLE ahead")
        await connection.execute("CHECKPOINT")
    finally:
        await connection.close()


def kafka_pid() -> int:
    """Return the process of the Kafka that runs."""
    found = StateFile(HOME).read().services["kafka"].process
    if found is None:
        raise RuntimeError("Kafka is no process of this machine")
    return found.pid


def table(urls: Mapping[str, str]) -> str:
    """Return the settings' ``[stores]``, to which more of its keys may be added."""
    return "\n".join(["[stores]", *(f'{store} = "{url}"' for store, url in urls.items()), ""])


def store_urls(urls: Mapping[str, str]) -> StoreUrls:
    """Return the same for who opens the stores in his own process."""
    return StoreUrls(**urls)
