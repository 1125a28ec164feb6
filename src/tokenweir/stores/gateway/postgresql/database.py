"""The gateway's PostgreSQL: a pool of connections, the schema brought to its newest revision, errors explained."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterable, Awaitable, Generator
from typing import Any, Final, Protocol, cast

import asyncpg
import sqlalchemy as sa

from tokenweir.core.errors import DiskFullError, RecordError, UnavailableError
from tokenweir.stores.gateway.postgresql.views import make_views
from tokenweir.stores.gateway.schema import BRANCH, SCRIPTS
from tokenweir.stores.migrate import upgrade
from tokenweir.stores.records import records_engine


class Connection(Protocol):
    """What is used of asyncpg's connection, whose own types are incomplete."""

    def fetch(self, query: str, *args: object) -> Awaitable[list[asyncpg.Record]]:
        """Run a statement and return its rows."""
        ...

    def execute(self, query: str, *args: object) -> Awaitable[str]:
        """Run a statement."""
        ...

    def transaction(
        self, *, isolation: str = ..., readonly: bool = ...
    ) -> contextlib.AbstractAsyncContextManager[object]:
        """Give a transaction."""
        ...

    def cursor(self, query: str, *args: object, prefetch: int) -> AsyncIterable[asyncpg.Record]:
        """Give the rows of a statement bit by bit, in a transaction."""
        ...

    def is_closed(self) -> bool:
        """Whether it cannot be used any more."""
        ...


class _Pool(Protocol):
    def acquire(self, *, timeout: float) -> contextlib.AbstractAsyncContextManager[Connection]: ...

    async def close(self) -> None: ...


NOW: Final = "(extract(epoch FROM clock_timestamp()) * 1000000000)::bigint"
"""The server's clock in Unix ns, as SQL: leases are the server's, whoever takes them."""

_COMMAND_TIMEOUT_S: Final = 30.0
_ACQUIRE_TIMEOUT_S: Final = 10.0
_AGAIN: Final = 5
"""How often a batch is begun anew that another batch's locks have undone."""

_AWAY: Final = (
    OSError,
    TimeoutError,
    asyncpg.PostgresConnectionError,
    asyncpg.InterfaceError,
    # What the client says of a connection that the server ended while a statement was being prepared.
    asyncpg.InternalClientError,
    asyncpg.OperatorInterventionError,
    asyncpg.InsufficientResourcesError,
)


class PostgresqlDatabase:
    """A pool of connections to the database that holds the gateway's tables."""

    def __init__(self, pool: _Pool, name: str) -> None:
        self._pool = pool
        self.name = name

    @classmethod
    async def open(cls, url: str, *, connections: int = 8) -> PostgresqlDatabase:
        """Bring the tables and views of ``postgresql://…`` to their newest revision, and connect.

        Raises:
            ConfigError: the URL is malformed.
            MissingExtraError: a driver is not installed.
            RecordError: the database cannot be reached or changed, or a newer Tokenweir made it.
        """
        await asyncio.to_thread(_migrate, url)
        parsed = sa.make_url(url).set(drivername="postgresql")
        name = parsed.render_as_string(hide_password=True)
        try:
            pool: _Pool = await cast("Any", asyncpg).create_pool(
                parsed.render_as_string(hide_password=False),
                min_size=1,
                max_size=connections,
                command_timeout=_COMMAND_TIMEOUT_S,
                # Statements are small and many: compiling them costs more than it saves.
                server_settings={"jit": "off", "application_name": "tokenweir"},
            )
        except (*_AWAY, asyncpg.PostgresError) as error:
            raise RecordError(
                f"the gateway's database {name!r} cannot be used: {error}", mend="see stores.gateway"
            ) from error
        return cls(pool, name)

    async def close(self) -> None:
        """Close all connections, which may not be in use any more."""
        await self._pool.close()

    @contextlib.asynccontextmanager
    async def connection(self) -> AsyncGenerator[Connection]:
        """Give a connection.

        Raises:
            UnavailableError: the database cannot be reached, or ended the connection.
            DiskFullError: no room is left for it.
        """
        with self._explained():
            async with self._pool.acquire(timeout=_ACQUIRE_TIMEOUT_S) as connection:
                yield connection

    async def fetch(self, query: str, *args: object) -> list[asyncpg.Record]:
        """Run one statement, which is its own transaction, and return its rows; see :meth:`connection`."""
        for _ in range(_AGAIN):
            async with self.connection() as connection:
                try:
                    return await connection.fetch(query, *args)
                except (asyncpg.DeadlockDetectedError, asyncpg.SerializationError):
                    # Nothing of it was done.
                    continue
        raise UnavailableError(
            f"the database {self.name!r} is too busy: batches undo each other", mend="try again"
        )

    @contextlib.contextmanager
    def _explained(self) -> Generator[None]:
        try:
            yield
        except asyncpg.DiskFullError as error:
            raise DiskFullError(
                f"no room is left for the database {self.name!r}", mend="free some space"
            ) from error
        except _AWAY as error:
            raise UnavailableError(
                f"the database {self.name!r} cannot be used: {error or type(error).__name__}",
                mend="see that PostgreSQL runs and can be reached",
            ) from error


def _migrate(url: str) -> None:
    engine = records_engine(url)
    try:
        upgrade(engine, scripts=SCRIPTS, branch=BRANCH)
        make_views(engine)
    finally:
        engine.dispose()
