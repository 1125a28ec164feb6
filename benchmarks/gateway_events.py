"""Open event streams held by one gateway process, and what each takes."""

from __future__ import annotations

import select
import socket
import time
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from urllib.parse import urlsplit

from benchmarks.gateway_load import Door, gateway, request, simulator, submitted
from benchmarks.harness import Figure, Result, measured

STREAMS = 10_000
REQUESTS = 100
DEADLINE_S = 120.0
FIRST = b"event: queued"

FIGURES = (
    Figure("event streams held", "streams", (), float(STREAMS)),
    Figure("memory of an open event stream", "KiB", (), 24.0, "lower"),
    Figure("opened", "streams/s", ()),
)


def measure(rounds: int) -> Result:
    """Open all of them in a gateway started anew for each round, and count those that have told what there is."""
    how = f"GET /v1/requests/{{id}}/events, {STREAMS:,} connections on {REQUESTS} requests that are being worked on"
    return measured("gateway_events", how, rounds, _round, FIGURES)


def _round(_out: Path) -> Mapping[str, float]:
    with simulator(ttft="constant:600s", connections=4096) as sim, gateway(sim.url, patience_s=2.0) as door:
        asked = [request(f"{submitted(door)}/events", b"", door.key, method=b"GET") for _ in range(REQUESTS)]
        with ExitStack() as warm:
            _hold(door, asked, REQUESTS, warm)
        with ExitStack() as held:
            before, began = door.rss_bytes, time.monotonic()
            told = _hold(door, asked, STREAMS, held)
            took = time.monotonic() - began
            grown = door.rss_bytes - before
    return {
        "event streams held": told,
        "memory of an open event stream": grown / STREAMS / 1024,
        "opened": told / took,
    }


def _hold(door: Door, asked: list[bytes], count: int, held: ExitStack) -> int:
    """Open ``count`` streams, and return how many have told their first events."""
    place = urlsplit(door.url)
    epoll = held.enter_context(select.epoll())
    sockets: dict[int, socket.socket] = {}
    for number in range(count):
        sock = held.enter_context(socket.create_connection((place.hostname or "", place.port or 0)))
        sock.sendall(asked[number % len(asked)])
        sock.settimeout(0.0)
        sockets[sock.fileno()] = sock
        epoll.register(sock.fileno(), select.EPOLLIN)
    told: dict[int, bytes] = {}
    whole = 0
    end = time.monotonic() + DEADLINE_S
    while whole < count and time.monotonic() < end:
        for fd, _ in epoll.poll(1.0, 1024):
            had = told.get(fd, b"")
            told[fd] = had + sockets[fd].recv(65_536)
            whole += FIRST in told[fd] and FIRST not in had
    return whole
