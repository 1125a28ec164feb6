"""Jobs in RabbitMQ."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import pytest
from tests.contract.gateway_stores.harness import ABSENT, Place, Stores
from tests.contract.gateway_stores.queue_contract import QueueContract

from tokenweir.stores.gateway.rabbitmq.connection import RabbitConnection
from tokenweir.stores.gateway.rabbitmq.queue import RabbitQueue

pytestmark = pytest.mark.xdist_group("services")


class RabbitPlace:
    """A virtual host of RabbitMQ."""

    clock = None

    def __init__(self, url: str) -> None:
        self._url = url

    @asynccontextmanager
    async def open(self) -> AsyncGenerator[Stores]:
        publishing, consuming = RabbitConnection(self._url), RabbitConnection(self._url)
        try:
            queue = RabbitQueue(publishing, consuming)
            await queue.declare()
            yield Stores(
                quota=ABSENT, ledger=ABSENT, intake=ABSENT, requests=ABSENT, queue=queue, events=ABSENT
            )
        finally:
            await consuming.close()
            await publishing.close()


@pytest.fixture
def place(rabbitmq_url: str) -> Place:
    return RabbitPlace(rabbitmq_url)


class TestRabbitQueue(QueueContract):
    pass
