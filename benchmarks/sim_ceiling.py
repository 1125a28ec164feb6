"""How many streamed chunks one simulator process sends, and what each costs.

The client only drains its sockets. *Paced* asks for 100,000 chunks/s and shows whether the simulator keeps
the pace and the streams; *flat out* asks for more than it can send.
"""

from __future__ import annotations

import multiprocessing
import os
import select
import socket
import time
from collections.abc import Mapping
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

from benchmarks.harness import CLIENT_CORE, Figure, Result, measured, raise_descriptor_limit, simulator
from tokenweir.core.requests import Json

SETTLE_S = 1.0
WINDOW_S = 2.0
BODY = b'{"model":"sim","messages":[{"role":"user","content":"go"}],"max_tokens":1000000,"stream":true}'
REQUEST = b"POST /v1/chat/completions HTTP/1.1\r\nhost: sim\r\ncontent-length: %d\r\n\r\n%b" % (
    len(BODY),
    BODY,
)


class Case(NamedTuple):
    """One load: its name, how many streams, and how long between tokens."""

    name: str
    streams: int
    itl: str


CASES = (
    Case("paced 2,000", 2_000, "constant:20ms"),
    Case("paced 10,000", 10_000, "constant:100ms"),
    Case("flat out 2,000", 2_000, "constant:1ms"),
    Case("flat out 10,000", 10_000, "constant:1ms"),
)

FIGURES = (
    Figure("paced 2,000: chunks", "chunks/s", ()),
    Figure("paced 2,000: chunks per CPU-second", "chunks/s", (), 100_000.0),
    Figure("paced 2,000: ITL p50", "ms", ()),
    Figure("paced 2,000: ITL p99", "ms", ()),
    Figure("paced 10,000: chunks", "chunks/s", ()),
    Figure("paced 10,000: chunks per CPU-second", "chunks/s", (), 100_000.0),
    Figure("paced 10,000: streams held", "streams", (), 10_000.0),
    Figure("paced 10,000: ITL p50", "ms", ()),
    Figure("paced 10,000: ITL p99", "ms", ()),
    Figure("flat out 2,000: chunks", "chunks/s", (), 100_000.0),
    Figure("flat out 2,000: chunks per CPU-second", "chunks/s", (), 100_000.0),
    Figure("flat out 10,000: chunks per CPU-second", "chunks/s", (), 100_000.0),
)


def measure(rounds: int) -> Result:
    """Measure every case once a round, the simulator and the client on a core each."""
    how = f"raw epoll client on a core of its own; windows of {WINDOW_S:g} s after {SETTLE_S:g} s"
    return measured("sim_ceiling", how, rounds, _round, FIGURES)


def _round(_out: Path) -> Mapping[str, float]:
    wanted = {figure.what for figure in FIGURES}
    found: dict[str, float] = {}
    for case in CASES:
        for what, value in _case(case).items():
            if f"{case.name}: {what}" in wanted:
                found[f"{case.name}: {what}"] = value
    return found


def _case(case: Case) -> Mapping[str, float]:
    with simulator(
        ttft="uniform:50ms..150ms", itl=case.itl, context_tokens=2_000_000, connections=case.streams
    ) as sim:
        ours, theirs = multiprocessing.Pipe()
        client = multiprocessing.Process(target=_drain, args=(sim.url, case.streams, theirs))
        client.start()
        ours.recv()
        time.sleep(SETTLE_S)
        sim.reset()
        began, before = time.monotonic(), sim.truth()
        time.sleep(WINDOW_S)
        truth = sim.truth()
        elapsed = time.monotonic() - began
        ours.send("stop")
        held = float(ours.recv())
        client.join()
    chunks = _number(truth["chunks"]) - _number(before["chunks"])
    gaps = truth["itl_ms"]
    if not isinstance(gaps, dict):
        raise TypeError(gaps)
    return {
        "chunks": chunks / elapsed,
        "chunks per CPU-second": chunks / (_number(truth["cpu_s"]) - _number(before["cpu_s"])),
        "streams held": held,
        "ITL p50": _number(gaps["p50"]),
        "ITL p99": _number(gaps["p99"]),
    }


def _drain(url: str, streams: int, pipe: Connection) -> None:
    """Open the streams, read them until told to stop, and send how many stayed open."""
    os.sched_setaffinity(0, {CLIENT_CORE})
    raise_descriptor_limit()
    place = urlsplit(url)
    address = (place.hostname or "", place.port or 0)
    socks: dict[int, socket.socket] = {}
    epoll = select.epoll()
    for _ in range(streams):
        sock = socket.create_connection(address)
        sock.settimeout(0.0)
        sock.send(REQUEST)
        socks[sock.fileno()] = sock
        epoll.register(sock.fileno(), select.EPOLLIN)
    epoll.register(pipe.fileno(), select.EPOLLIN)
    pipe.send("open")
    buffer = bytearray(65_536)
    held = streams
    while True:
        for fd, _ in epoll.poll(-1, 1024):
            if fd not in socks:
                pipe.recv()
                pipe.send(held)
                return
            if not socks[fd].recv_into(buffer):
                held -= 1
                epoll.unregister(fd)


def _number(value: Json) -> float:
    if not isinstance(value, int | float):
        raise TypeError(value)
    return float(value)
