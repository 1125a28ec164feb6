from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from tests.contract.gateway_stores.harness import Place, Stores
from tests.contract.gateway_stores.queue_contract import EventLogContract, IntakeContract, QueueContract
from tests.contract.gateway_stores.quota_contract import QuotaContract

from tokenweir.core.clock import VirtualClock
from tokenweir.core.errors import ConfigError
from tokenweir.stores.gateway.sqlite.database import Database
from tokenweir.stores.gateway.sqlite.events import SqliteEventLog
from tokenweir.stores.gateway.sqlite.ledger import SqliteLedger
from tokenweir.stores.gateway.sqlite.queue import SqliteQueue
from tokenweir.stores.gateway.sqlite.quota import SqliteQuota
from tokenweir.stores.gateway.sqlite.requests import SqliteIntake, SqliteRequests


class SqlitePlace:
    """A SQLite file, and a clock that the test moves."""

    def __init__(self, path: Path) -> None:
        self.url = f"sqlite:///{path}"
        self.clock = VirtualClock()

    @asynccontextmanager
    async def open(self) -> AsyncGenerator[Stores]:
        database = Database(self.url)
        try:
            quota = SqliteQuota(database, self.clock)
            queue = SqliteQueue(database, self.clock)
            await queue.load()
            yield Stores(
                quota=quota,
                ledger=SqliteLedger(database, quota),
                intake=SqliteIntake(database, self.clock, quota, queue),
                requests=SqliteRequests(database, self.clock),
                queue=queue,
                events=SqliteEventLog(database),
            )
        finally:
            database.close()


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return SqlitePlace(tmp_path / "gateway.db")


class TestSqliteQuota(QuotaContract):
    pass


class TestSqliteIntake(IntakeContract):
    pass


class TestSqliteQueue(QueueContract):
    pass


class TestSqliteEventLog(EventLogContract):
    pass


def test_a_second_process_is_told_that_the_file_is_taken(tmp_path: Path) -> None:
    database = Database(f"sqlite:///{tmp_path / 'gateway.db'}")
    try:
        with pytest.raises(ConfigError, match="another process"):
            Database(f"sqlite:///{tmp_path / 'gateway.db'}")
    finally:
        database.close()
