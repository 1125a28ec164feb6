"""What the gateway's benchmarks share: a gateway on a core of its own, and a client that costs little.

The client speaks HTTP/1.1 over plain sockets and one epoll, because it has the other core together with the
simulator. It reads of an answer what it needs to find its end, and nothing else.
"""

from __future__ import annotations

import http.client
import json
import multiprocessing
import os
import re
import select
import socket
import tempfile
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Unpack, cast
from urllib.parse import urlsplit

from benchmarks.harness import CLIENT_CORE, SERVER_CORE, process_cpu, raise_descriptor_limit
from benchmarks.servers import weir_server
from tokenweir.access.directory import PERMISSIONS, Directory
from tokenweir.sim.process import SimFlags, SimProcess

_READY_WITH_KEY = re.compile(r"weir up: (?P<url>\S+) ready\n(?:.*\n)*?  key +(?P<key>\S+) ")
_PATIENCE_S = 60.0
_STOP_S = 2.0
EMPTY_CHUNK = b"0\r\n\r\n"
QUEUED = b'{"model":"sim","messages":[{"role":"user","content":"How many rivers are there?"}],"max_tokens":8}'


@dataclass(frozen=True)
class Door:
    """Something that answers OpenAI's requests: where, with which key, and the process whose CPU time counts."""

    url: str
    key: str
    pid: int
    ready_s: float = 0.0

    @property
    def rss_bytes(self) -> int:
        """The memory it holds."""
        return self._memory("VmRSS")

    @property
    def peak_rss_bytes(self) -> int:
        """The most memory it has held."""
        return self._memory("VmHWM")

    def _memory(self, name: str) -> int:
        lines = Path(f"/proc/{self.pid}/status").read_text().splitlines()
        return next(int(line.split()[1]) << 10 for line in lines if line.startswith(name))


@dataclass(frozen=True)
class Load:
    """Requests sent again and again over ``connections``, each as soon as its predecessor was answered.

    With a ``rate``, requests a second, each is sent when it is due, over a connection that is free. A streamed
    answer counts by its chunks.
    """

    request: bytes
    connections: int
    seconds: float
    ramp_s: float = 0.5
    rate: float = 0.0


@dataclass(frozen=True)
class Loaded:
    """What came of a load: answers (or chunks) in the window, seconds of it, and each answer's latency in ns."""

    answers: int
    chunks: int
    failures: int
    seconds: float
    latencies_ns: tuple[int, ...]

    @property
    def rate(self) -> float:
        """Answers for a second."""
        return self.answers / self.seconds

    def quantile_ms(self, share: float) -> float:
        """Return a quantile of the latency."""
        return quantile_ms(sorted(self.latencies_ns), share)


def quantile_ms(ordered: Sequence[int], share: float) -> float:
    """Return a quantile, in milliseconds, of nanoseconds in order."""
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] / 1e6


def simulator(**flags: Unpack[SimFlags]) -> SimProcess:
    """Return a simulator on the client's core: the other belongs to the gateway alone."""
    raise_descriptor_limit()
    return SimProcess(cpus=frozenset({CLIENT_CORE}), **flags)


def endpoint(url: str) -> str:
    """Return the settings of a gateway before one simulator."""
    return f'[[endpoints]]\nname = "sim"\nkind = "sim"\nurl = "{url}"\nmodel = "sim"\n'


@contextmanager
def gateway(upstream: str, *, patience_s: float = _PATIENCE_S) -> Generator[Door]:
    """Run ``weir up`` before one endpoint, with a fresh database, on a core of its own.

    At the end what is on its way has ``patience_s`` to finish.
    """
    with (
        tempfile.TemporaryDirectory(prefix="weir-bench-gateway-") as home,
        weir_server(
            Path(home),
            "up",
            "--port",
            "0",
            settings=endpoint(upstream),
            ready=_READY_WITH_KEY,
            cores=[SERVER_CORE],
            stop_s=patience_s,
        ) as up,
    ):
        yield Door(up.told["url"], up.told["key"], up.pid, up.ready_s)


@contextmanager
def front_door(
    upstream: str, *, more: str, access: Path, cores: Sequence[int] = (SERVER_CORE,)
) -> Generator[Door]:
    """Run ``weir gateway``, the front door alone, on a core of its own, or on others; ``more`` names its stores.

    ``access`` is the file of its keys, which is made.
    """
    directory = Directory(f"sqlite:///{access}")
    directory.add_user("bench")
    _, key = directory.issue("bench", "bench", scopes=PERMISSIONS)
    directory.close()
    settings = f'{endpoint(upstream)}{more}access = "sqlite:///{access}"\n'
    with weir_server(
        access.parent, "gateway", "--port", "0", settings=settings, cores=cores, stop_s=_STOP_S
    ) as started:
        yield Door(started.told[1], key, started.pid, started.ready_s)


def request(path: str, body: bytes, key: str = "", *, method: bytes = b"POST") -> bytes:
    """Return a request as bytes."""
    return (
        b"%b %b HTTP/1.1\r\nhost: gateway\r\nauthorization: Bearer %b\r\ncontent-type: application/json\r\n"
        % (
            method,
            path.encode(),
            key.encode(),
        )
        + b"content-length: %d\r\n\r\n%b" % (len(body), body)
    )


def submitted(door: Door) -> str:
    """Have a request accepted into the queue, and return the path of its status."""
    place = urlsplit(door.url)
    connection = http.client.HTTPConnection(place.hostname or "", place.port, timeout=30)
    headers = {"authorization": f"Bearer {door.key}", "content-type": "application/json"}
    connection.request("POST", "/v1/requests", QUEUED, headers)
    answer = json.loads(connection.getresponse().read())
    connection.close()
    return f"/v1/requests/{answer['request_id']}"


def drive(url: str, load: Load, *, doors: Sequence[Door] = ()) -> tuple[Loaded, list[float]]:
    """Put a load on ``url`` from a process of its own; return what came, and the CPU seconds of each door in it."""
    loaded, spent = in_own_process(_client, url, load, pids=[door.pid for door in doors])
    return cast("Loaded", loaded), spent


def in_own_process(
    client: Callable[..., None], *arguments: object, pids: Sequence[int]
) -> tuple[Any, list[float]]:
    """Run a client in a process of its own; return what it found, and the CPU seconds of others in its window.

    It is given the end of a pipe behind its arguments, and sends into it when its window begins, when that ends, and
    what it found.
    """
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.Process(target=client, args=(*arguments, theirs))
    process.start()
    theirs.close()
    ours.recv()
    before = [process_cpu(pid) for pid in pids]
    ours.recv()
    spent = [process_cpu(pid) - begun for pid, begun in zip(pids, before, strict=True)]
    found = ours.recv()
    process.join()
    return found, spent


class _Peer:
    """One connection of the client."""

    __slots__ = ("data", "left", "sent_ns", "sock", "streamed")

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.sent_ns = 0
        self.left: int = 0
        self.data: bytes = b""
        self.streamed = False

    def ended(self, data: bytes) -> bool:
        """Take what came, and say whether the answer is whole."""
        if self.streamed:
            return data.endswith(EMPTY_CHUNK)
        if self.left:
            self.left -= len(data)
            return self.left == 0
        data = self.data + data
        head = data.find(b"\r\n\r\n")
        if head < 0:
            self.data = data
            return False
        self.data = b""
        at = data.find(b"content-length: ")
        if at < 0 or at > head:
            self.streamed = True
            return data.endswith(EMPTY_CHUNK)
        length = int(data[at + 16 : data.find(b"\r", at)])
        self.left = head + 4 + length - len(data)
        return self.left == 0


class _Turns:
    """When a connection asks again: as soon as it was answered, or when the next request of a rate is due.

    The latency of a request that was due counts from then, though no connection was free.
    """

    def __init__(self, load: Load) -> None:
        self._load = load
        self._step_ns = 1e9 / load.rate if load.rate else 0.0
        self._due_ns = 0.0
        self._free: deque[_Peer] = deque()

    def begin(self, peers: Iterable[_Peer]) -> None:
        """Begin with all connections free."""
        self._due_ns = time.monotonic_ns()
        for peer in peers:
            self.free(peer)

    def free(self, peer: _Peer) -> None:
        """Take a connection that was answered."""
        if self._step_ns:
            self._free.append(peer)
        else:
            self._send(peer, time.monotonic_ns())

    def ask(self) -> float:
        """Send what is due, and return for how many seconds nothing is."""
        if not self._step_ns:
            return 1.0
        while self._free and self._due_ns <= time.monotonic_ns():
            self._send(self._free.popleft(), int(self._due_ns))
            self._due_ns += self._step_ns
        return max(0.0, (self._due_ns - time.monotonic_ns()) / 1e9) if self._free else 1.0

    def _send(self, peer: _Peer, due_ns: int) -> None:
        peer.sent_ns = due_ns
        peer.sock.send(self._load.request)


def _client(url: str, load: Load, pipe: Connection) -> None:
    os.sched_setaffinity(0, {CLIENT_CORE})
    raise_descriptor_limit()
    place = urlsplit(url)
    epoll = select.epoll()
    peers: dict[int, _Peer] = {}
    clock = time.monotonic_ns
    for _ in range(load.connections):
        sock = socket.create_connection((place.hostname or "", place.port or 0))
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.settimeout(0.0)
        peers[sock.fileno()] = _Peer(sock)
        epoll.register(sock.fileno(), select.EPOLLIN)
    turns = _Turns(load)
    turns.begin(peers.values())
    begin_ns = clock() + int(load.ramp_s * 1e9)
    end_ns = 0
    answers = chunks = failures = 0
    latencies: list[int] = []
    while True:
        found = epoll.poll(turns.ask(), 1024)
        now = clock()
        if end_ns == 0 and now >= begin_ns:
            pipe.send("begun")
            begin_ns, end_ns = now, now + int(load.seconds * 1e9)
            answers = chunks = failures = 0
            latencies.clear()
        elif end_ns and now >= end_ns:
            pipe.send("ended")
            break
        for fd, _ in found:
            peer = peers[fd]
            data = peer.sock.recv(262_144)
            if not data:
                raise RuntimeError("the server closed a connection")
            chunks += data.count(b"data: ")
            if not (peer.left or peer.streamed or peer.data) and not data.startswith(b"HTTP/1.1 20"):
                failures += 1
            if peer.ended(data):
                peer.streamed = False
                latencies.append(clock() - peer.sent_ns)
                answers += 1
                turns.free(peer)
    pipe.send(Loaded(answers, chunks, failures, (now - begin_ns) / 1e9, tuple(latencies)))
