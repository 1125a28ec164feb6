"""Events in Kafka; requests are the embedded ones here."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from tests.contract.gateway_stores.harness import ABSENT, Place, Requests, Stores
from tests.contract.gateway_stores.queue_contract import EventLogContract

from tokenweir.core.clock import SystemClock
from tokenweir.stores.gateway.kafka.connection import KafkaServers
from tokenweir.stores.gateway.kafka.eventlog import KafkaEventLog
from tokenweir.stores.gateway.kafka.reader import AT_HAND
from tokenweir.stores.gateway.kafka.records import Packing
from tokenweir.stores.gateway.sqlite.database import Database
from tokenweir.stores.gateway.sqlite.queue import SqliteQueue
from tokenweir.stores.gateway.sqlite.quota import SqliteQuota
from tokenweir.stores.gateway.sqlite.requests import SqliteIntake, SqliteRequests

# A broker of one node takes a while to make 64.
PARTITIONS = 4


class Claims:
    """Who writes, as the requests say."""

    def __init__(self, requests: Requests) -> None:
        self._requests = requests

    async def attempts(self, requests: Sequence[bytes]) -> Mapping[bytes, int]:
        found = [await self._requests.get(request) for request in requests]
        return {record.request: record.attempt for record in found if record is not None}


class KafkaPlace:
    """Topics with a prefix of their own, and a SQLite file."""

    clock = None

    def __init__(self, url: str, prefix: str, path: Path, *, packing: Packing = "lane") -> None:
        self.servers = KafkaServers(url, prefix=prefix)
        self.at_hand = AT_HAND
        self.packing: Packing = packing
        self._path = path

    @asynccontextmanager
    async def open(self) -> AsyncGenerator[Stores]:
        clock = SystemClock()
        database = Database(f"sqlite:///{self._path}")
        try:
            requests = SqliteRequests(database, clock)
            quota, queue = SqliteQuota(database, clock), SqliteQueue(database, clock)
            events = KafkaEventLog(
                self.servers,
                Claims(requests),
                packing=self.packing,
                at_hand=self.at_hand,
                partitions=PARTITIONS,
            )
            async with events.open():
                yield Stores(
                    quota=ABSENT,
                    ledger=ABSENT,
                    intake=SqliteIntake(database, clock, quota, queue),
                    requests=requests,
                    queue=ABSENT,
                    events=events,
                )
        finally:
            database.close()


@pytest.fixture(params=["lane", "none"])
def place(request: pytest.FixtureRequest, kafka_url: str, kafka_prefix: str, tmp_path: Path) -> Place:
    return KafkaPlace(kafka_url, kafka_prefix, tmp_path / "embedded.db", packing=request.param)


class TestKafkaEventLog(EventLogContract):
    pass
