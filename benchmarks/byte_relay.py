"""The limit of a relay in this interpreter: bytes passed on between two connections by uvloop, and nothing else.

``python -m benchmarks.byte_relay UPSTREAM_PORT`` prints its own port and relays until it is ended. What no HTTP server
between two others can be faster than on the same machine is measured beside the gateway.
"""

from __future__ import annotations

import asyncio
import re
import sys
from collections.abc import Generator
from contextlib import contextmanager
from typing import cast
from urllib.parse import urlsplit

import uvloop

from benchmarks.gateway_load import Door
from benchmarks.harness import SERVER_CORE
from benchmarks.servers import server

_LISTENING = re.compile(r"port (\d+)\n")


class _End(asyncio.Protocol):
    """One of two connections that are joined: what comes on it goes out on the other."""

    def __init__(self, other: _End | None = None) -> None:
        self.other = other
        self.transport: asyncio.Transport | None = None
        self._early: list[bytes] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Send what came before there was a connection to send it on."""
        self.transport = cast("asyncio.Transport", transport)
        self.transport.writelines(self._early)

    def data_received(self, data: bytes) -> None:
        """Pass it on."""
        if self.other is not None:
            self.other.send(data)

    def send(self, data: bytes) -> None:
        """Send it, or keep it until there is a connection."""
        if self.transport is None:
            self._early.append(data)
        elif not self.transport.is_closing():
            self.transport.write(data)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - as asyncio calls it
        """Close the other."""
        if self.other is not None and self.other.transport is not None:
            self.other.transport.close()


async def serve(upstream: int) -> None:
    """Relay until cancelled."""
    loop = asyncio.get_running_loop()
    joining: set[object] = set()

    def accepted() -> _End:
        near = _End()
        near.other = far = _End(near)
        join = asyncio.ensure_future(loop.create_connection(lambda: far, "127.0.0.1", upstream))
        joining.add(join)
        join.add_done_callback(joining.discard)
        return near

    listening = await loop.create_server(accepted, "127.0.0.1", 0)
    print(f"port {listening.sockets[0].getsockname()[1]}", flush=True)
    await listening.serve_forever()


@contextmanager
def byte_relay(url: str) -> Generator[Door]:
    """Run the relay before a server, on the gateway's core."""
    command = [sys.executable, "-m", "benchmarks.byte_relay", str(urlsplit(url).port)]
    with server(command, _LISTENING.search, cores=[SERVER_CORE]) as relay:
        yield Door(f"http://127.0.0.1:{relay.told[1]}", "", relay.pid)


if __name__ == "__main__":
    uvloop.run(serve(int(sys.argv[1])))
