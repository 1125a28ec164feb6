"""When too many requests wait for a connection to a server, that is not the server's failure."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from tokenweir.core.breaker import Closed
from tokenweir.core.clock import SystemClock
from tokenweir.core.errors import OverloadedError
from tokenweir.gateway.direct.relay import Direct, RelayPolicy
from tokenweir.gateway.endpoints.pool import Endpoint, EndpointFacts, Pool
from tokenweir.gateway.endpoints.upstream import Origin, UpstreamClient
from tokenweir.gateway.metering.estimate import UsualOutput
from tokenweir.gateway.metering.prices import PriceTable
from tokenweir.gateway.metering.reserving import Reservations
from tokenweir.gateway.metering.settling import Settler
from tokenweir.ports.access import Caller
from tokenweir.stores.gateway.sqlite.database import Database
from tokenweir.stores.gateway.sqlite.ledger import SqliteLedger
from tokenweir.stores.gateway.sqlite.quota import SqliteQuota

CALLER = Caller(key=b"k" * 16, user=b"u" * 16, team=b"", scopes=frozenset({"infer"}))
ANSWER = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\r\n{}"
ASKED = 12


class Server:
    """A server that takes requests, and answers when it is let."""

    def __init__(self) -> None:
        self.may, self.left = asyncio.Event(), asyncio.Event()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer one request after another."""
        try:
            while await reader.readuntil(b"}"):
                await self.may.wait()
                writer.write(ANSWER)
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()
        self.left.set()


class Statuses:
    """Where answers go: their status is kept."""

    def __init__(self) -> None:
        self.seen: list[int] = []

    async def begin(self, status: int, headers: Sequence[tuple[bytes, bytes]]) -> None:
        self.seen.append(status)

    async def whole(self, status: int, headers: Sequence[tuple[bytes, bytes]], body: bytes) -> None:
        self.seen.append(status)

    async def write(self, piece: bytes) -> None:
        """Take nothing."""

    async def end(self, piece: bytes = b"") -> None:
        """Take nothing."""


@asynccontextmanager
async def relaying(path: Path, endpoint: Endpoint) -> AsyncGenerator[Direct]:
    clock = SystemClock()
    database = Database(f"sqlite:///{path / 'gateway.db'}")
    quota = SqliteQuota(database, clock)
    reserving = Reservations(quota, lease_ns=60_000_000_000)
    settler = Settler(SqliteLedger(database, quota), quota)
    async with asyncio.timeout(30), asyncio.TaskGroup() as group:
        tasks = [group.create_task(reserving.run()), group.create_task(settler.run())]
        yield Direct(
            Pool([endpoint]),
            reserving=reserving,
            settler=settler,
            usual=UsualOutput(),
            prices=PriceTable(),
            clock=clock,
            policy=RelayPolicy(backoff_ns=1_000_000),
        )
        await settler.drained()
        for task in tasks:
            task.cancel()
    database.close()


def test_requests_beyond_the_room_for_connections_do_not_open_the_breaker(tmp_path: Path) -> None:
    async def story() -> None:
        server = Server()
        listening = await asyncio.start_server(server.serve, "127.0.0.1", 0)
        port = listening.sockets[0].getsockname()[1]
        client = UpstreamClient(Origin.parse(f"http://127.0.0.1:{port}"), connections=1, waiting=1)
        endpoint = Endpoint(EndpointFacts(name="e", kind="sim", model="m", upstream_model="m"), client)
        told, refused = Statuses(), list[int]()

        async def ask(direct: Direct, number: int) -> None:
            body = b'{"model":"m","messages":[]}'
            try:
                await direct.relay(CALLER, bytes([number]) * 16, b"/v1/chat/completions", body, told)
            except OverloadedError:
                refused.append(number)
                if len(refused) == ASKED - 2:
                    server.may.set()

        async with relaying(tmp_path, endpoint) as direct, asyncio.TaskGroup() as group:
            for number in range(ASKED):
                group.create_task(ask(direct, number))
        assert len(refused) == ASKED - 2
        assert told.seen == [200, 200]
        assert isinstance(endpoint.breaker.state, Closed)
        assert (endpoint.failed, endpoint.in_flight) == (0, 0)
        client.close()
        await server.left.wait()
        listening.close()
        await listening.wait_closed()

    asyncio.run(story())
