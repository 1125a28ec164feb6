"""The HTTP door over TCP: clients that do not read, do not send, or send too much."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager

import uvloop
from tests.factories.doors import make_app

from tokenweir.asgi.server import Bounds, HttpServer
from tokenweir.core.events import Completed, Event, Token
from tokenweir.core.requests import GenerateRequest
from tokenweir.runtime.http.fakes import FakeServing, spoken
from tokenweir.runtime.options import RunOptions

BODY = json.dumps({"messages": [{"role": "user", "content": "hi"}], "stream": True}).encode()


def post(body: bytes = BODY) -> bytes:
    head = b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
    return head + b"content-length: %d\r\n\r\n" % len(body) + body


def endless(_request: GenerateRequest, _options: RunOptions) -> Iterable[Event]:
    at = 0
    while True:
        yield Token(seq=at, text="x" * 4096, count=1)
        at += 1


@asynccontextmanager
async def listening(serving: FakeServing, bounds: Bounds) -> AsyncGenerator[int]:
    server = HttpServer(make_app(serving), "127.0.0.1", 0, bounds=bounds, drain_timeout_ns=1_000_000_000)
    async with asyncio.timeout(60), asyncio.TaskGroup() as group:
        group.create_task(server.serve())
        try:
            yield server.port
        finally:
            server.close()


def run(serving: FakeServing, use: Callable[[int], Awaitable[None]], **bounds: int) -> None:
    async def main() -> None:
        async with listening(serving, Bounds(**bounds)) as port:
            await use(port)

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main())


@asynccontextmanager
async def connected(
    port: int, *, receive_bytes: int | None = None
) -> AsyncGenerator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    raw = socket.socket()
    if receive_bytes is not None:
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
    raw.setblocking(False)  # noqa: FBT003 - the standard library's signature
    await asyncio.get_running_loop().sock_connect(raw, ("127.0.0.1", port))
    reader, writer = await asyncio.open_connection(sock=raw, limit=1 << 16 if receive_bytes is None else 1024)
    try:
        yield reader, writer
    finally:
        writer.transport.abort()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


def test_a_client_that_reads_nothing_is_held_and_then_dropped() -> None:
    serving = FakeServing(
        lambda request, options: endless(request, options) if request.sampling.n == 2 else spoken("a b")
    )

    async def use(port: int) -> None:
        slow = {"messages": [{"role": "user", "content": "hi"}], "stream": True, "n": 2}
        async with connected(port, receive_bytes=4096) as (_, writer):
            writer.transport.pause_reading()  # type: ignore[attr-defined]
            writer.write(post(json.dumps(slow).encode()))
            await serving.began.wait()
            # Meanwhile others are served.
            async with connected(port) as (reader, quick):
                quick.write(post())
                assert b"[DONE]" in await reader.readuntil(b"0\r\n\r\n")
            while not serving.cancelled:
                serving.ended.clear()
                await serving.ended.wait()

    run(serving, use, write_timeout_ns=400_000_000)
    # What the kernel and the server hold for one connection, and not all that there is.
    assert serving.taken < 4_000


def test_a_client_that_reads_slowly_gets_all_of_it() -> None:
    tokens = [Token(seq=at, text=f"{at:06}" * 200, count=1) for at in range(600)]

    def script(_request: GenerateRequest, _options: RunOptions) -> Iterable[Event]:
        yield from tokens
        yield Completed(seq=600, finish_reason="stop")

    async def use(port: int) -> None:
        async with connected(port, receive_bytes=4096) as (reader, writer):
            writer.write(post())
            found = b""
            while not found.endswith(b"0\r\n\r\n"):
                found += await reader.read(512)
            assert all(token.text.encode() in found for token in tokens)
            assert found.count(b"data: [DONE]") == 1

    run(FakeServing(script), use)


def test_a_connection_that_goes_away_cancels_what_it_asked_for() -> None:
    serving = FakeServing(endless)

    async def use(port: int) -> None:
        async with connected(port) as (reader, writer):
            writer.write(post())
            await reader.readuntil(b"data: ")
        await serving.ended.wait()

    run(serving, use)
    assert serving.cancelled == 1


def test_a_connection_is_kept_for_the_next_request() -> None:
    async def use(port: int) -> None:
        async with connected(port) as (reader, writer):
            for _ in range(3):
                writer.write(post())
                assert b"[DONE]" in await reader.readuntil(b"0\r\n\r\n")
            # Two requests without waiting for the first answer.
            writer.write(post() + post())
            for _ in range(2):
                assert b"[DONE]" in await reader.readuntil(b"0\r\n\r\n")

    run(FakeServing(), use)


def test_a_connection_that_says_nothing_is_closed() -> None:
    async def use(port: int) -> None:
        async with connected(port) as (reader, _):
            assert (await reader.read()).startswith(b"HTTP/1.1 408 ")

    run(FakeServing(), use, read_timeout_ns=100_000_000)


def test_what_is_no_http_is_refused() -> None:
    async def use(port: int) -> None:
        async with connected(port) as (reader, writer):
            writer.write(b"\x16\x03\x01 hello\r\n\r\n")
            assert (await reader.read()).startswith(b"HTTP/1.1 400 ")

    run(FakeServing(), use)
