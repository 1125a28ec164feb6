"""The queues of a deployment in RabbitMQ."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator

from tokenweir.stores.gateway.rabbitmq.connection import RabbitConnection
from tokenweir.stores.gateway.rabbitmq.queue import RESULTS, RabbitQueue


@contextlib.asynccontextmanager
async def open_queues(url: str) -> AsyncGenerator[tuple[RabbitQueue, RabbitQueue]]:
    """Open the jobs and the ends for collectors, and keep them while the block runs. Raises UnavailableError."""
    publishing, consuming = RabbitConnection(url), RabbitConnection(url)
    async with contextlib.AsyncExitStack() as stack:
        stack.push_async_callback(publishing.close)
        stack.push_async_callback(consuming.close)
        jobs, results = RabbitQueue(publishing, consuming), RabbitQueue(publishing, consuming, RESULTS)
        await jobs.declare()
        await results.declare()
        yield jobs, results
