"""Redis, from the system's packages."""

from __future__ import annotations

import signal
from collections.abc import Mapping
from pathlib import Path

from deploy.services.ports import LOOPBACK
from deploy.services.process import Command
from deploy.services.service import Service, Site, ask, find_program, plain_environment

DATABASES = 512
"""Enough for each test to have one of its own for a while."""


class Redis(Service):
    """Writes its append-only file every second and evicts nothing, as in ``deploy/compose.yaml``."""

    name = "redis"
    ports = ("redis",)
    stop_signal = signal.SIGTERM

    def require(self, cache: Path) -> None:
        """Need the server."""
        del cache
        find_program("redis-server", "redis-server")

    def fetch(self, cache: Path) -> None:
        """Need nothing more."""
        del cache

    def prepare(self, site: Site) -> Command:
        """Make the data folder."""
        data = site.home / "data"
        data.mkdir(parents=True, exist_ok=True)
        options = {
            "bind": LOOPBACK,
            "port": site.ports["redis"],
            "dir": data,
            "databases": DATABASES,
            "appendonly": "yes",
            "appendfsync": "everysec",
            "save": "",
            "maxmemory-policy": "noeviction",
        }
        settings = [part for name, value in options.items() for part in (f"--{name}", str(value))]
        program = find_program("redis-server", "redis-server")
        return Command([str(program), *settings], plain_environment(site.home))

    def ready(self, ports: Mapping[str, int]) -> bool:
        """Send PING."""
        # While it reads its file it answers -LOADING.
        return ask(ports["redis"], b"PING\r\n", 5) == b"+PONG"

    def urls(self, ports: Mapping[str, int]) -> dict[str, str]:
        """Return the URL of database 0."""
        return {"redis": f"redis://{LOOPBACK}:{ports['redis']}/0"}


def flush(ports: Mapping[str, int]) -> None:
    """Forget every key of every database, as an operator's mistake would.

    Raises:
        OSError: Redis is not there, or refused.
    """
    if (answer := ask(ports["redis"], b"FLUSHALL\r\n", 3)) != b"+OK":
        raise OSError(f"Redis answered {answer!r} to FLUSHALL")
