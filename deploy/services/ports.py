"""Free ports on loopback."""

from __future__ import annotations

import errno
import random
import socket
from pathlib import Path

LOOPBACK = "127.0.0.1"
_LOWEST = 15_000
_EPHEMERAL = Path("/proc/sys/net/ipv4/ip_local_port_range")
_TRIES = 200


def free_ports(count: int) -> list[int]:
    """Return ``count`` distinct ports that nothing listens on.

    They lie below the range that the system gives to outgoing connections: a client that tries again and again
    while a service is down could otherwise be given the service's own port, and connect to itself.
    """
    chosen: dict[int, None] = {}
    highest = _first_ephemeral() - 1
    for _ in range(_TRIES):
        if len(chosen) == count:
            return list(chosen)
        port = random.randint(_LOWEST, highest) if highest > _LOWEST else 0
        if (bound := _bind(port)) is not None:
            chosen[bound] = None
    raise OSError(errno.EADDRINUSE, f"no {count} free ports from {_LOWEST} to {highest}")


def is_free(port: int) -> bool:
    """Whether a server could listen on ``port`` now."""
    return _bind(port) is not None


def _bind(port: int) -> int | None:
    with socket.socket() as probe:
        # As servers do: connections of the one before, still winding down, are no obstacle.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
        except OSError:
            return None
        bound: int = probe.getsockname()[1]
        return bound


def _first_ephemeral() -> int:
    try:
        return int(_EPHEMERAL.read_text().split()[0])
    except FileNotFoundError:
        return 32_768
