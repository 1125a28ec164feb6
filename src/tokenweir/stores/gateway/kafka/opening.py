"""The queues of a deployment in Kafka."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator
from typing import Final

from tokenweir.stores.gateway.kafka.connection import KafkaServers
from tokenweir.stores.gateway.kafka.queue import RESULTS, KafkaQueue

_COLLECTED: Final = 16
"""Partitions of results: a collector keeps up with several workers."""


@contextlib.asynccontextmanager
async def open_queues(url: str) -> AsyncGenerator[tuple[KafkaQueue, KafkaQueue]]:
    """Open the jobs and the ends for collectors, and keep them while the block runs. Raises UnavailableError."""
    servers = KafkaServers(url)
    jobs, results = KafkaQueue(servers), KafkaQueue(servers, RESULTS, partitions=_COLLECTED)
    async with jobs.open(), results.open():
        yield jobs, results
