from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from tests.contract.gateway_stores.files_contract import BATCHES, FILES

from tokenweir.core.clock import SystemClock
from tokenweir.ports.batches import Batches
from tokenweir.ports.files import FileStore
from tokenweir.stores.gateway.postgresql.batches import PostgresqlBatches
from tokenweir.stores.gateway.postgresql.database import PostgresqlDatabase
from tokenweir.stores.gateway.postgresql.files import PostgresqlFiles
from tokenweir.stores.gateway.sqlite.batches import SqliteBatches
from tokenweir.stores.gateway.sqlite.database import Database
from tokenweir.stores.gateway.sqlite.files import SqliteFiles


@pytest.mark.parametrize("rule", FILES)
def test_sqlite_files(tmp_path: Path, rule: Callable[[FileStore], Awaitable[None]]) -> None:
    async def check() -> None:
        with contextlib.closing(Database(f"sqlite:///{tmp_path}/gateway.db")) as database:
            await rule(SqliteFiles(database))

    asyncio.run(check())


@pytest.mark.parametrize("rule", BATCHES)
def test_sqlite_batches(tmp_path: Path, rule: Callable[[Batches], Awaitable[None]]) -> None:
    async def check() -> None:
        with contextlib.closing(Database(f"sqlite:///{tmp_path}/gateway.db")) as database:
            await rule(SqliteBatches(database, SystemClock()))

    asyncio.run(check())


@pytest.mark.parametrize("rule", FILES)
def test_postgresql_files(postgresql_url: str, rule: Callable[[FileStore], Awaitable[None]]) -> None:
    async def check() -> None:
        database = await PostgresqlDatabase.open(postgresql_url, connections=2)
        try:
            await rule(PostgresqlFiles(database))
        finally:
            await database.close()

    asyncio.run(check())


@pytest.mark.parametrize("rule", BATCHES)
def test_postgresql_batches(postgresql_url: str, rule: Callable[[Batches], Awaitable[None]]) -> None:
    async def check() -> None:
        database = await PostgresqlDatabase.open(postgresql_url, connections=2)
        try:
            await rule(PostgresqlBatches(database))
        finally:
            await database.close()

    asyncio.run(check())
