"""Serving the application over TCP: uvicorn on uvloop, with bounds on heads, pauses and readers."""

from __future__ import annotations

import asyncio
import contextlib
import math
import socket
import ssl
from collections.abc import Callable, Generator
from typing import Any, Final, Protocol, cast

import msgspec
import uvicorn
from httptools import HttpParserError, HttpParserUpgrade, HttpRequestParser
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from tokenweir.asgi.call import Receive, Scope, Send
from tokenweir.asgi.outbox import Outbox
from tokenweir.asgi.problems import HeadTooLargeError, SlowRequestError, problem
from tokenweir.asgi.tls import ServerContext
from tokenweir.asgi.wire import KEY, Wire
from tokenweir.core.listening import cannot_listen

_BACKLOG: Final = 2048
_REASONS: Final = {408: b"Request Timeout", 431: b"Request Header Fields Too Large"}
_NS_PER_S: Final = 1_000_000_000


class Application(Protocol):
    """An ASGI application."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        ...


class Bounds(msgspec.Struct, frozen=True, kw_only=True):
    """What a connection may do: bytes of a head, and nanoseconds to send a head, to read nothing, to be idle."""

    header_bytes: int = 32 << 10
    read_timeout_ns: int = 30 * _NS_PER_S
    write_timeout_ns: int = 300 * _NS_PER_S
    idle_timeout_ns: int = 75 * _NS_PER_S


class _Protocol(HttpToolsProtocol):
    """uvicorn's protocol with a bound on the head's size, its time, and the time a client may read nothing.

    :class:`HttpServer` sets ``bounds`` and ``outbox`` in a subclass, because uvicorn makes the instances.
    """

    bounds = Bounds()
    outbox: Outbox
    parser: HttpRequestParser
    url: bytes
    _head_bytes = 0
    _in_head = False
    _refused = False
    _head_timer: asyncio.TimerHandle | None = None
    _write_timer: asyncio.TimerHandle | None = None
    _idle_timer: asyncio.TimerHandle | None = None
    _idle_since = math.inf

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Give the client so long to send its first head."""
        super().connection_made(transport)
        self._watchers: set[Callable[[], object]] = set()
        self._wire = Wire(self._watchers, self.outbox)
        self._expect_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the timers, and tell who watches."""
        self._stop_timers()
        super().connection_lost(exc)
        for gone in tuple(self._watchers):
            gone()

    def data_received(self, data: bytes) -> None:
        """Read, unless the client was refused already."""
        if self._refused:
            return
        try:
            self.parser.feed_data(data)
        except HttpParserUpgrade as upgrade:
            self._upgrade(data[cast("int", upgrade.args[0]) :])
        except HttpParserError:
            if not self._refused:
                self.send_400_response("Invalid HTTP request received.")
        # Most heads come whole, and need no timer.
        if self._in_head and self._head_timer is None:
            self._expect_head()

    def on_response_complete(self) -> None:
        """Begin with the next request, or wait for one: one timer for a connection, however many go over it."""
        self.server_state.total_requests += 1
        if self.transport.is_closing():
            return
        self.flow.resume_reading()
        if self.pipeline:
            self._start_asgi_task(*self.pipeline.pop())
            return
        self._idle_since = self.loop.time()
        if self._idle_timer is None:
            self._idle_timer = self.loop.call_later(self.timeout_keep_alive, self._look_whether_idle)

    def on_message_begin(self) -> None:
        """Count the head from its beginning."""
        super().on_message_begin()
        self._head_bytes = 0
        self._in_head = True
        self._idle_since = math.inf
        self._wire = cast("dict[str, object]", self.scope)[KEY] = Wire(self._watchers, self.outbox)

    def on_url(self, url: bytes) -> None:
        """Count the path."""
        self._head_bytes += len(url)
        if self._head_bytes > self.bounds.header_bytes:
            self._refuse_head()
        self.url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        """Count a header."""
        self._head_bytes += len(name) + len(value) + 4
        if self._head_bytes > self.bounds.header_bytes:
            self._refuse_head()
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """Start on the request, unless it was refused."""
        self._in_head = False
        # The answer to an earlier request may have come since this one began.
        self._idle_since = math.inf
        self._head_arrived()
        if not self._refused:
            super().on_headers_complete()
            # Its task starts only once this has returned.
            self._wire.carry(self.cycle)

    def handle_websocket_upgrade(self) -> None:
        """Hand the connection over, with nothing left to write or to time here."""
        self.outbox.flush()
        self._stop_timers()
        super().handle_websocket_upgrade()

    def _upgrade(self, rest: bytes) -> None:
        """Become a WebSocket, or take a request that offers another protocol without what it offers.

        ``rest`` follows the head: the parser takes it for the other protocol's, and it is the body.
        """
        if not super()._should_upgrade():
            head = [b"%b %b HTTP/1.1\r\n" % (self.parser.get_method(), self.url)]
            head += [b"%b: %b\r\n" % header for header in self.headers if header[0] != b"upgrade"]
            self.data_received(b"".join((*head, b"\r\n", rest)))
        elif not self.cycle or self.cycle.response_complete:
            self.handle_websocket_upgrade()
        else:
            # An answer that is still to come would stand amid messages: the connection ends with it.
            self.cycle.keep_alive = False

    def _should_upgrade(self) -> bool:
        """Whether the request waits for :meth:`_upgrade`."""
        return any(name == b"upgrade" for name, _ in self.headers)

    def shutdown(self) -> None:
        """Close the connection once its answer is out."""
        self.outbox.flush()
        super().shutdown()

    def send_400_response(self, msg: str) -> None:
        """Refuse what is no HTTP, behind the answers to what was."""
        self.outbox.flush()
        super().send_400_response(msg)

    def pause_writing(self) -> None:
        """Give the client so long to read on."""
        super().pause_writing()
        self._write_timer = self.loop.call_later(
            self.bounds.write_timeout_ns / _NS_PER_S, self._give_up_on_reader
        )

    def resume_writing(self) -> None:
        """Go on."""
        self._reader_moved()
        super().resume_writing()

    def _refuse_head(self) -> None:
        most = self.bounds.header_bytes
        self._refuse(
            HeadTooLargeError(
                f"the request's head is longer than {most} bytes",
                mend="send fewer or shorter headers, or raise the server's max_header_bytes",
            )
        )

    def _expect_head(self) -> None:
        self._head_timer = self.loop.call_later(
            self.bounds.read_timeout_ns / _NS_PER_S, self._give_up_on_head
        )

    def _head_arrived(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _reader_moved(self) -> None:
        if self._write_timer is not None:
            self._write_timer.cancel()
            self._write_timer = None

    def _stop_timers(self) -> None:
        self._head_arrived()
        self._reader_moved()
        if self._idle_timer is not None:
            self._idle_timer.cancel()

    def _look_whether_idle(self) -> None:
        """Close a connection that no request came over for so long, or look again when that can be true."""
        left = min(self._idle_since - self.loop.time(), 0.0) + self.timeout_keep_alive
        if left <= 0:
            self.transport.close()
        else:
            self._idle_timer = self.loop.call_later(left, self._look_whether_idle)

    def _give_up_on_head(self) -> None:
        self._refuse(SlowRequestError("the request's head did not arrive in time", mend="send it faster"))

    def _give_up_on_reader(self) -> None:
        self.transport.abort()

    def _refuse(self, error: HeadTooLargeError | SlowRequestError) -> None:
        """Answer without the application: there is no request that it could be asked."""
        if self._refused or self.transport.is_closing():
            return
        self._refused = True
        self.outbox.flush()
        told = problem(error)
        body = told.body
        self.transport.write(
            b"HTTP/1.1 %d %b\r\ncontent-type: application/json\r\ncontent-length: %d\r\n"
            b"connection: close\r\n\r\n%b" % (told.status, _REASONS[told.status], len(body), body)
        )
        self.transport.close()


class _Uvicorn(uvicorn.Server):
    """uvicorn without its own handling of signals: the command decides what Ctrl-C means."""

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None]:
        """Leave them alone."""
        yield


class HttpServer:
    """Serves an application at an address. It listens from the moment it is made; ``url`` is where.

    ``drain_timeout_ns`` is how long answers on their way may take once it was closed. ``message_bytes`` is the
    longest message of a WebSocket; without it there are none. With ``tls`` it speaks TLS and nothing else.

    Raises:
        ConfigError: the address cannot be listened on.
    """

    def __init__(
        self,
        app: Application,
        host: str,
        port: int,
        *,
        bounds: Bounds | None = None,
        drain_timeout_ns: int = 30 * _NS_PER_S,
        message_bytes: int = 0,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self._socket = _bind(host, port)
        self._renewal: asyncio.TimerHandle | None = None
        self.port = cast("int", self._socket.getsockname()[1])
        self.url = (
            f"{'http' if tls is None else 'https'}://{f'[{host}]' if ':' in host else host}:{self.port}"
        )
        bounds = bounds or Bounds()
        protocol = cast("type[_Protocol]", type("_BoundedProtocol", (_Protocol,), {"bounds": bounds}))
        config = uvicorn.Config(
            cast("Any", app),
            http=protocol,
            ws="wsproto" if message_bytes else "none",
            ws_max_size=message_bytes or 1,
            # A small compressed message may be a large one.
            ws_per_message_deflate=False,
            lifespan="off",
            access_log=False,
            log_config=None,
            server_header=False,
            proxy_headers=False,
            timeout_keep_alive=max(1, bounds.idle_timeout_ns // _NS_PER_S),
            timeout_graceful_shutdown=max(1, drain_timeout_ns // _NS_PER_S),
            backlog=_BACKLOG,
        )
        config.load()
        config.ssl = tls
        self._tls = tls
        self._server = _Uvicorn(config)
        protocol.outbox = Outbox(self._server.server_state.tasks)

    async def serve(self) -> None:
        """Answer until closed, then finish what is on its way."""
        self._renew_soon()
        try:
            await self._server.serve(sockets=[self._socket])
        finally:
            if self._renewal is not None:
                self._renewal.cancel()
            # Cancelled, uvicorn leaves its listeners open, and uvloop waits for them when the loop is closed.
            for listener in getattr(self._server, "servers", ()):
                cast("asyncio.Server", listener).close()
            self._socket.close()

    def _renew_soon(self) -> None:
        if isinstance(self._tls, ServerContext):
            self._renewal = asyncio.get_running_loop().call_later(self._tls.renew_s, self._renew, self._tls)

    def _renew(self, tls: ServerContext) -> None:
        tls.renew()
        self._renew_soon()

    def close(self, *, at_once: bool = False) -> None:
        """Stop listening; ``at_once`` does not wait for answers that are on their way."""
        self._server.should_exit = True
        self._server.force_exit = at_once


def see_free(host: str, port: int) -> None:
    """Raise ConfigError where the address cannot be listened on now."""
    _bind(host, port).close()


def _bind(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    bound = socket.socket(family, socket.SOCK_STREAM)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind((host, port))
        bound.listen(_BACKLOG)
        bound.setblocking(False)  # noqa: FBT003 - the standard library's signature
    except (OSError, OverflowError) as error:
        bound.close()
        raise cannot_listen(host, port, error) from error
    return bound
