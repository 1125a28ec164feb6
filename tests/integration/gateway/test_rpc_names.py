"""A model server that is asked over gRPC moves to another address under the same name."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from tokenweir.core.clock import SystemClock
from tokenweir.core.errors import EndpointError, UnreachableError
from tokenweir.gateway.endpoints.addresses import AddressRules
from tokenweir.gateway.endpoints.rpc import RpcClient
from tokenweir.runtime.http.door import Build, Door
from tokenweir.runtime.http.fakes import FakeServing
from tokenweir.runtime.http.metrics import Metrics
from tokenweir.runtime.rpc_door.service import GrpcServer

FIRST, SECOND = "127.0.0.1", "127.0.0.2"


class Names(AddressRules):
    """A name service whose one answer is changed by hand."""

    def __init__(self, *addresses: str) -> None:
        super().__init__()
        self.addresses: Sequence[str] = addresses
        self.asked: list[str] = []

    async def resolve(self, host: str, port: int) -> Sequence[str]:
        self.asked.append(host)
        if not self.addresses:
            raise OSError(-2, "Name or service not known")
        return self.addresses


async def served(host: str, port: int) -> GrpcServer:
    clock = SystemClock()
    door = Door(FakeServing(), metrics=Metrics(clock), clock=clock, build=Build(version="1"))
    server = GrpcServer(door, host, port)
    await server.start()
    return server


def test_a_name_is_resolved_anew_once_its_server_was_away_and_not_before() -> None:
    async def main() -> None:
        first = await served(FIRST, 0)
        names = Names(FIRST)
        client = RpcClient(f"grpc://models.internal:{first.port}", rules=names)
        try:
            for _ in range(3):
                assert await client.health() == ""
            assert names.asked == ["models.internal"]
            await first.stop(0)
            with pytest.raises(EndpointError):
                await client.health()
            # Nobody is there yet: it is asked for each time, and a name that leads nowhere is told.
            names.addresses = ()
            with pytest.raises(UnreachableError, match="leads nowhere"):
                await client.health()
            second = await served(SECOND, first.port)
            names.addresses = (SECOND,)
            assert await client.health() == ""
            asked = len(names.asked)
            assert await client.health() == ""
            assert len(names.asked) == asked
            await second.stop(0)
        finally:
            await client.close()

    asyncio.run(main())
