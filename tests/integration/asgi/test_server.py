"""One connection after another over TCP: what is answered in which order, when it ends, and what it turns into."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import pytest
import uvloop
from websockets.asyncio.client import connect

from tokenweir.asgi.call import Call, DisconnectedError, Receive, Scope, Send
from tokenweir.asgi.problems import problem
from tokenweir.asgi.server import Bounds, HttpServer
from tokenweir.core.errors import WeirError

NS_PER_S = 1_000_000_000
LARGE = b"x" * (4 << 20)
"""More than sockets and transports hold."""


@dataclass
class Echo:
    """Answers with path and body. ``/held/…`` waits until it is let go, ``/stream`` tells many small pieces."""

    let_go: asyncio.Event = field(default_factory=asyncio.Event)
    came: list[str] = field(default_factory=list[str])
    last: Callable[[], None] = lambda: None
    """Is called in the turn in which all held requests are answered, behind the answers."""
    _held: asyncio.Condition = field(default_factory=asyncio.Condition)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await self._repeat(receive, send)
            return
        call = Call(scope, receive, send, "req_1")
        with contextlib.suppress(DisconnectedError):
            try:
                await self._answer(call)
            except WeirError as error:
                await call.refuse(problem(error))

    async def _answer(self, call: Call) -> None:
        if call.path == "/early":
            await call.answer(413, b"too much")
            return
        body = await call.body(len(LARGE), 10 * NS_PER_S)
        async with self._held:
            self.came.append(call.path)
            self._held.notify_all()
        if call.path.startswith("/held"):
            await self.let_go.wait()
        if call.path == "/held/last":
            self.last()
        if call.path == "/stream":
            await call.begin_stream()
            for number in range(1_000):
                await call.write(b"%d," % number)
            await call.end_stream(b"end")
        else:
            large = LARGE if call.path.endswith("/large") else b""
            await call.answer(200, call.path.encode() + b" " + body + large)

    async def _repeat(self, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        while (said := await receive())["type"] == "websocket.receive":
            await send({"type": "websocket.send", "text": said["text"]})

    async def until(self, count: int) -> None:
        """Wait until so many requests have come."""
        async with self._held:
            await self._held.wait_for(lambda: len(self.came) >= count)


@dataclass(frozen=True)
class Answer:
    status: int
    headers: Mapping[str, str]
    body: bytes


@dataclass(frozen=True)
class Connection:
    """A client's end."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    def send(self, *requests: bytes) -> None:
        """Send requests in one piece."""
        self.writer.write(b"".join(requests))

    async def answer(self) -> Answer:
        """Return the next answer."""
        head = (await self.reader.readuntil(b"\r\n\r\n")).decode()
        first, *lines = head.strip().split("\r\n")
        headers = dict(line.lower().split(": ", 1) for line in lines)
        if headers.get("transfer-encoding") == "chunked":
            body = b""
            while size := int(await self.reader.readline(), 16):
                body += (await self.reader.readexactly(size + 2))[:-2]
            await self.reader.readexactly(2)
        else:
            body = await self.reader.readexactly(int(headers["content-length"]))
        return Answer(int(first.split()[1]), headers, body)

    async def ask(self, path: str) -> Answer:
        """Return what comes for a request."""
        self.send(get(path))
        return await self.answer()

    async def ended(self) -> bool:
        """Wait for the end, and say whether nothing came before it."""
        return not await self.reader.read()


@dataclass(frozen=True)
class Served:
    app: Echo
    port: int

    @asynccontextmanager
    async def connection(self) -> AsyncGenerator[Connection]:
        """Connect."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port, limit=1 << 20)
        try:
            yield Connection(reader, writer)
        finally:
            writer.transport.abort()

    @asynccontextmanager
    async def connections(self, count: int) -> AsyncGenerator[list[Connection]]:
        """Connect several times."""
        async with contextlib.AsyncExitStack() as stack:
            yield [await stack.enter_async_context(self.connection()) for _ in range(count)]


def get(path: str, *headers: str, version: str = "1.1") -> bytes:
    lines = [f"GET {path} HTTP/{version}", "host: x", *headers, "", ""]
    return "\r\n".join(lines).encode()


def post(path: str, body: bytes, *headers: str) -> bytes:
    lines = [f"POST {path} HTTP/1.1", "host: x", f"content-length: {len(body)}", *headers, "", ""]
    return "\r\n".join(lines).encode() + body


def run(use: Callable[[Served], Awaitable[None]], **bounds: int) -> None:
    async def main() -> None:
        app = Echo()
        server = HttpServer(app, "127.0.0.1", 0, bounds=Bounds(**bounds), message_bytes=1 << 16)
        async with asyncio.timeout(15), asyncio.TaskGroup() as group:
            group.create_task(server.serve())
            try:
                await use(Served(app, server.port))
            finally:
                server.close(at_once=True)

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main())


def test_requests_sent_together_are_answered_in_their_order() -> None:
    async def use(served: Served) -> None:
        async with served.connections(8) as connections:
            for at, connection in enumerate(connections):
                connection.send(*(get(f"/{kind}/{at}/{n}") for n in range(8) for kind in ("held", "free")))
            # Of each connection the first is worked on, and keeps the others waiting.
            await served.app.until(8)
            assert {path.split("/")[3] for path in served.app.came} == {"0"}
            served.app.let_go.set()
            for at, connection in enumerate(connections):
                told = [(await connection.answer()).body for _ in range(16)]
                assert told == [f"/{kind}/{at}/{n} ".encode() for n in range(8) for kind in ("held", "free")]

    run(use)


@pytest.mark.parametrize("size", ["small", "large"])
@pytest.mark.parametrize("version", ["1.0", "1.1"])
def test_the_last_answer_of_a_connection_is_whole(version: str, size: str) -> None:
    async def use(served: Served) -> None:
        async with served.connections(6) as connections:
            for at, connection in enumerate(connections):
                closes = ["connection: close"] if version == "1.1" else []
                connection.send(get(f"/held/{at}/{size}", *closes, version=version))
            await served.app.until(6)
            served.app.let_go.set()
            for at, connection in enumerate(connections):
                answer = await connection.answer()
                assert answer.headers["connection"] == "close"
                assert answer.body == f"/held/{at}/{size} ".encode() + (LARGE if size == "large" else b"")
                assert await connection.ended()

    run(use)


def test_a_client_that_leaves_before_its_answer_is_written_holds_up_nobody() -> None:
    async def use(served: Served) -> None:
        leaving = socket.create_connection(("127.0.0.1", served.port))
        # It resets the connection, as a client that dies does.
        leaving.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        served.app.last = leaving.close
        async with served.connections(3) as (before, behind, last):
            before.send(get("/held/before"))
            await served.app.until(1)
            leaving.sendall(get("/held/leaving"))
            await served.app.until(2)
            behind.send(get("/held/behind"))
            await served.app.until(3)
            last.send(get("/held/last"))
            await served.app.until(4)
            served.app.let_go.set()
            for connection, path in ((before, b"before"), (behind, b"behind"), (last, b"last")):
                assert (await connection.answer()).body == b"/held/" + path + b" "
            assert (await before.ask("/again")).body == b"/again "

    run(use)


def test_pieces_of_one_turn_come_whole_and_in_order() -> None:
    async def use(served: Served) -> None:
        async with served.connections(5) as (streaming, *others):
            for at, other in enumerate(others):
                other.send(get(f"/held/{at}"), get("/stream"))
            await served.app.until(4)
            streaming.send(get("/stream"), get("/next"))
            served.app.let_go.set()
            told = b"".join(b"%d," % number for number in range(1_000)) + b"end"
            assert (await streaming.answer()).body == told
            assert (await streaming.answer()).body == b"/next "
            for at, other in enumerate(others):
                assert (await other.answer()).body == f"/held/{at} ".encode()
                assert (await other.answer()).body == told

    run(use)


def test_a_body_may_come_in_chunks_cut_anywhere() -> None:
    async def use(served: Served) -> None:
        head = b"POST /chunks HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n"
        raw = head + b"5\r\nfirst\r\n1;note=x\r\n \r\n6\r\nsecond\r\n0\r\n\r\n" + get("/next")
        async with served.connection() as connection:
            await connection.ask("/first")
            connection.writer.transport.get_extra_info("socket").setsockopt(
                socket.IPPROTO_TCP, socket.TCP_NODELAY, 1
            )
            for at in range(0, len(raw), 3):
                connection.writer.write(raw[at : at + 3])
                # The server reads each piece by itself.
                for _ in range(3):
                    await asyncio.sleep(0)
            assert (await connection.answer()).body == b"/chunks first second"
            assert (await connection.answer()).body == b"/next "

    run(use)


@pytest.mark.parametrize("codings", [("gzip",), ("identity", "gzip"), ("gzip", "identity")])
def test_a_compressed_body_is_refused_wherever_its_header_stands(codings: tuple[str, ...]) -> None:
    async def use(served: Served) -> None:
        async with served.connection() as connection:
            connection.send(post("/", b"{}", *(f"content-encoding: {coding}" for coding in codings)))
            answer = await connection.answer()
            assert answer.status == 415
            assert b"'gzip'" in answer.body
            connection.send(post("/plain", b"{}", "content-encoding: identity", "content-encoding: Identity"))
            assert (await connection.answer()).body == b"/plain {}"

    run(use)


def test_a_head_that_is_too_long_is_refused_and_nothing_else_is_said() -> None:
    async def use(served: Served) -> None:
        async with served.connections(2) as (fresh, used):
            await used.ask("/first")
            for connection in (fresh, used):
                connection.send(post("/long", b"{}", f"x-long: {'x' * 2_000}"))
                answer = await connection.answer()
                assert answer.status == 431
                assert answer.headers["connection"] == "close"
                assert await connection.ended()
        assert served.app.came == ["/first"]

    run(use, header_bytes=1_000)


def test_a_connection_ends_when_no_request_came_for_so_long() -> None:
    async def use(served: Served) -> None:
        async with served.connections(5) as (idle, blank, early, used, busy):
            await busy.ask("/first")
            busy.send(get("/held/busy"))
            await used.ask("/first")
            # An empty line before a request is none, and neither is the rest of a body that was refused.
            await blank.ask("/first")
            blank.send(b"\r\n")
            early.send(b"POST /early HTTP/1.1\r\nhost: x\r\ncontent-length: 4\r\n\r\nab")
            assert (await early.answer()).status == 413
            early.send(b"cd")
            await idle.ask("/first")
            async with asyncio.TaskGroup() as group:
                ends = [group.create_task(each.ended()) for each in (idle, blank, early)]
                while not all(each.done() for each in ends):
                    assert (await used.ask("/again")).status == 200
            assert all(each.result() for each in ends)
            served.app.let_go.set()
            assert (await busy.answer()).body == b"/held/busy "
            assert await busy.ended()
            assert await used.ended()

    run(use, idle_timeout_ns=NS_PER_S)


def test_a_connection_becomes_a_web_socket_after_requests_and_is_idle_no_more() -> None:
    async def use(served: Served) -> None:
        raw = socket.create_connection(("127.0.0.1", served.port))
        raw.setblocking(False)  # noqa: FBT003 - the standard library's signature
        loop = asyncio.get_running_loop()
        await loop.sock_sendall(raw, get("/first"))
        assert (await loop.sock_recv(raw, 4096)).endswith(b"/first ")
        async with connect(f"ws://127.0.0.1:{served.port}/", sock=raw, ping_interval=None) as client:
            async with served.connection() as idle:
                await idle.ask("/first")
                await client.send("before")
                assert await client.recv() == "before"
                # By then the timer that was for requests would have ended it.
                assert await idle.ended()
            await client.send("behind")
            assert await client.recv() == "behind"

    run(use, idle_timeout_ns=NS_PER_S)


UPGRADE = (
    "connection: upgrade",
    "upgrade: websocket",
    "sec-websocket-version: 13",
    "sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==",
)


def test_an_upgrade_behind_a_request_is_not_answered_before_it() -> None:
    async def use(served: Served) -> None:
        async with served.connections(4) as connections:
            for connection in connections:
                connection.send(get("/held/one"), get("/two"), get("/", *UPGRADE))
            await served.app.until(4)
            served.app.let_go.set()
            for connection in connections:
                assert (await connection.answer()).body == b"/held/one "
                answer = await connection.answer()
                assert answer.body == b"/two "
                # The client has to ask again over another: this one belongs to requests.
                assert answer.headers["connection"] == "close"
                assert await connection.ended()

    run(use)


def test_an_upgrade_to_what_is_not_spoken_here_is_an_ordinary_request() -> None:
    async def use(served: Served) -> None:
        async with served.connection() as connection:
            for _ in range(2):
                connection.send(post("/plain", b"{}", "connection: upgrade, http2-settings", "upgrade: h2c"))
                assert (await connection.answer()).body == b"/plain {}"
            assert (await connection.ask("/next")).body == b"/next "

    run(use)
