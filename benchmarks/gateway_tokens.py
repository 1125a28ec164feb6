"""Tokens through the queued stream path: model server, ``weir worker``, Kafka, ``weir gateway``, client.

The simulator puts the instant of sending into every chunk, and the clock is the machine's, so that a token's latency is
from the model server's send to the client's read. Everything runs on this machine and shares its cores.
"""

from __future__ import annotations

import asyncio
import http.client
import json
import re
import select
import socket
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, cast
from urllib.parse import urlsplit

from aiokafka.structs import TopicPartition

from benchmarks.gateway_load import endpoint, front_door, in_own_process, quantile_ms, request
from benchmarks.gateway_services import kafka_pid, shared_stores, table
from benchmarks.harness import CORES, Figure, Result, measured, raise_descriptor_limit
from benchmarks.servers import weir_server
from tokenweir.access.directory import PERMISSIONS, Directory
from tokenweir.sim.process import SimProcess
from tokenweir.stores.gateway.kafka.connection import KafkaServers

STREAMS = 128
ITL_US = 3_800
RATE = 30_000
USERS = 16
WINDOW_S = 4.0
SETTLE_S = 3.0
DEADLINE_S = 60.0
KNOWN_S = 1.5
FLUSH_S = 0.006
WARM_S = 20.0
STOP_S = 5.0
CHUNK_BYTES = 40
SENT = re.compile(rb'"sent_ns":(\d+)')
BODY = b'{"model":"sim","messages":[{"role":"user","content":"go"}],"max_tokens":100000,"mode":"stream"}'

FIGURES = (
    Figure("chunks received", "chunks/s", (), float(RATE)),
    Figure("chunk latency p50", "ms", (), 15.0, "lower"),
    Figure("chunk latency p99", "ms", (), 100.0, "lower"),
    Figure("chunk latency, greatest", "ms", ()),
    Figure("CPU time of a chunk: worker", "µs", ()),
    Figure("CPU time of a chunk: gateway", "µs", ()),
    Figure("CPU time of a chunk: Kafka", "µs", ()),
    Figure("CPU time of a chunk: model server", "µs", ()),
    Figure("CPU time of a chunk: client", "µs", ()),
    Figure("Kafka alone, as many bytes in as many records: p50", "ms", ()),
    Figure("Kafka alone, as many bytes in as many records: p99", "ms", ()),
)


@dataclass(frozen=True)
class Seen:
    """What the client saw: latencies in ns, in order, of all chunks of a window, and its CPU seconds in it."""

    latencies_ns: tuple[int, ...]
    seconds: float
    cpu_s: float


def measure(rounds: int) -> Result:
    """Measure one worker and one gateway, both started anew for each round."""
    how = (
        f"{STREAMS} streams of {USERS} users, a token each {ITL_US / 1000:g} ms; simulator, one worker,"
        f" PostgreSQL, Redis, RabbitMQ, Kafka, one gateway and the client on {len(CORES)} cores"
    )
    with shared_stores() as urls:
        # Kafka compiles what it does often: a broker that has run for a minute takes half the time for a record.
        asyncio.run(_alone(urls["events"], WARM_S))
        return measured("gateway_tokens", how, rounds, lambda scratch: _round(urls, scratch), FIGURES)


def _round(urls: Mapping[str, str], scratch: Path) -> Mapping[str, float]:
    raise_descriptor_limit()
    with ExitStack() as stack:
        sim = stack.enter_context(
            SimProcess(
                ttft="uniform:50ms..500ms",
                itl=f"constant:{ITL_US}us",
                context_tokens=200_000,
                connections=2 * STREAMS,
            )
        )
        door = stack.enter_context(
            front_door(sim.url, more=table(urls), access=scratch / "access.db", cores=CORES)
        )
        settings = (
            f"{endpoint(sim.url)}[worker]\nconcurrency = {STREAMS}\n"
            f'{table(urls)}access = "sqlite:///{scratch}/access.db"\n'
        )
        worker = stack.enter_context(weir_server(scratch, "worker", settings=settings, stop_s=STOP_S))
        pids = {"worker": worker.pid, "gateway": door.pid, "Kafka": kafka_pid(), "model server": sim.pid}
        found, spent = in_own_process(_client, door.url, _keys(scratch / "access.db"), pids=[*pids.values()])
        seen = cast("Seen", found)
    alone = asyncio.run(_alone(urls["events"], WINDOW_S / 2))
    latencies, count = seen.latencies_ns, len(seen.latencies_ns)
    cpu = {**dict(zip(pids, spent, strict=True)), "client": seen.cpu_s}
    return {
        "chunks received": count / seen.seconds,
        "chunk latency p50": quantile_ms(latencies, 0.5),
        "chunk latency p99": quantile_ms(latencies, 0.99),
        "chunk latency, greatest": latencies[-1] / 1e6,
        **{f"CPU time of a chunk: {name}": cpu_s / count * 1e6 for name, cpu_s in cpu.items()},
        "Kafka alone, as many bytes in as many records: p50": quantile_ms(alone, 0.5),
        "Kafka alone, as many bytes in as many records: p99": quantile_ms(alone, 0.99),
    }


def _keys(access: Path) -> list[str]:
    """Return a key of each of the users, who are made."""
    directory = Directory(f"sqlite:///{access}")
    try:
        keys: list[str] = []
        for number in range(USERS):
            directory.add_user(f"user {number}")
            keys.append(directory.issue(f"user {number}", "bench", scopes=PERMISSIONS)[1])
        return keys
    finally:
        directory.close()


class _Readers:
    """Event streams of as many requests, read over plain sockets and one epoll."""

    def __init__(self, url: str, keys: Sequence[str]) -> None:
        place = urlsplit(url)
        host, port = place.hostname or "", place.port or 0
        control = http.client.HTTPConnection(host, port, timeout=30)
        self.latencies_ns: list[int] = []
        self._epoll = select.epoll()
        self._socks: dict[int, socket.socket] = {}
        self._rests: dict[int, bytes] = {}
        for number in range(STREAMS):
            key = keys[number % len(keys)]
            headers = {"authorization": f"Bearer {key}", "content-type": "application/json"}
            control.request("POST", "/v1/requests", BODY, headers)
            answer = json.loads(control.getresponse().read())
            sock = socket.create_connection((host, port))
            sock.sendall(request(f"/v1/requests/{answer['request_id']}/events", b"", key, method=b"GET"))
            sock.settimeout(0.0)
            self._socks[sock.fileno()] = sock
            self._epoll.register(sock.fileno(), select.EPOLLIN)
        self.silent = set(self._socks)

    def read(self) -> None:
        """Take what has come."""
        clock, rests = time.monotonic_ns, self._rests
        for fd, _ in self._epoll.poll(0.1, 1024):
            data = self._socks[fd].recv(262_144)
            now = clock()
            if not data:
                raise RuntimeError("the gateway closed a stream")
            data = rests.pop(fd, b"") + data
            whole = data.rfind(b"\n\n") + 2
            if whole < len(data):
                # An event that has come in part counts when it is whole.
                rests[fd] = data[whole:] if whole > 1 else data
                data = data[:whole] if whole > 1 else b""
            sent = SENT.findall(data)
            if sent:
                self.silent.discard(fd)
                self.latencies_ns += [now - int(each) for each in sent]


def _client(url: str, keys: Sequence[str], pipe: Connection) -> None:
    # A key that was made a moment ago is known to a gateway within a second.
    time.sleep(KNOWN_S)
    readers = _Readers(url, keys)
    deadline = time.monotonic() + DEADLINE_S
    while readers.silent:
        readers.read()
        if time.monotonic() > deadline:
            raise RuntimeError(f"{len(readers.silent)} streams are silent")
    end = time.monotonic() + SETTLE_S
    while time.monotonic() < end:
        readers.read()
    pipe.send("begun")
    readers.latencies_ns.clear()
    began, cpu = time.monotonic(), time.process_time()
    while (now := time.monotonic()) < began + WINDOW_S:
        readers.read()
    pipe.send("ended")
    pipe.send(Seen(tuple(sorted(readers.latencies_ns)), now - began, time.process_time() - cpu))


async def _alone(url: str, seconds: float) -> Sequence[int]:
    """Send a record with the tokens of some ms through Kafka, again and again; return the latencies in ns, in order."""
    servers, topic = KafkaServers(url), "alone"
    await servers.make_topic(topic, partitions=USERS, retention_ms=60_000)
    producer, consumer = servers.producer(), servers.consumer(wait_ms=25)
    await producer.start()
    await consumer.start()
    latencies: list[int] = []
    try:
        consumer.assign([TopicPartition(topic, number) for number in range(USERS)])
        await consumer.seek_to_end()
        async with asyncio.TaskGroup() as group:
            reading = group.create_task(_take(consumer, latencies))
            rest = bytes(int(RATE * FLUSH_S * CHUNK_BYTES / USERS))
            end = time.monotonic() + seconds
            while time.monotonic() < end:
                for number in range(USERS):
                    sent = time.monotonic_ns().to_bytes(8, "big")
                    await producer.send(topic, sent + rest, partition=number)
                await asyncio.sleep(FLUSH_S)
            await producer.flush()
            await asyncio.sleep(0.2)
            reading.cancel()
    finally:
        await consumer.stop()
        await producer.stop()
    return sorted(latencies)


async def _take(consumer: Any, latencies: list[int]) -> None:  # noqa: ANN401 - the client's types are unknown
    while True:
        found: Mapping[TopicPartition, Sequence[Any]] = await consumer.getmany(timeout_ms=1000)
        now = time.monotonic_ns()
        for records in found.values():
            latencies += [now - int.from_bytes(record.value[:8], "big") for record in records]
