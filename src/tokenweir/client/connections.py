"""Connections of the client for programs that block."""

from __future__ import annotations

import socket
import ssl
import threading
import time
from functools import cached_property
from typing import Final

from tokenweir.client.exchange import BrokenError, Exchange, Head, Part, Question, Tunnel
from tokenweir.client.options import Options, Origin, Proxy

_PIECE: Final = 1 << 16
_IDLE_MOST_NS: Final = 30_000_000_000
_NS: Final = 1_000_000_000


class Connection:
    """A connection to a gateway."""

    def __init__(self, origin: Origin, options: Options, context: ssl.SSLContext | None) -> None:
        """Raises OSError, and BrokenError for a proxy that refuses."""
        proxy = None if options.proxy is None else Proxy.parse(options.proxy)
        place = (origin.host, origin.port) if proxy is None else (proxy.host, proxy.port)
        plain = socket.create_connection(place, timeout=options.connect_ns / _NS)
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._socket = plain
        try:
            if proxy is not None:
                tunnel = Tunnel(proxy, origin)
                plain.sendall(tunnel.ask())
                # A byte at a time: what follows the head is not the proxy's.
                while not tunnel.feed(plain.recv(1)):
                    pass
            if context is not None:
                self._socket = context.wrap_socket(plain, server_hostname=origin.host)
        except (OSError, BrokenError):
            plain.close()
            raise
        self.origin = origin
        self.exchange = Exchange(origin)
        self.idle_since_ns = 0
        self.fresh = True

    def send(self, question: Question, limit_ns: int) -> None:
        """Send a request. Raises OSError."""
        self._socket.settimeout(limit_ns / _NS)
        self._socket.sendall(self.exchange.ask(question))

    def head(self) -> Head:
        """Return the head of the answer. Raises OSError, BrokenError."""
        heard = self._next()
        if not isinstance(heard, Head):
            raise BrokenError("what came is no answer")
        return heard

    def piece(self, limit_ns: int) -> bytes:
        """Return the next piece of the body; b"" is its end. Raises OSError, BrokenError."""
        self._socket.settimeout(limit_ns / _NS)
        heard = self._next()
        return heard if isinstance(heard, bytes) else b""

    def _next(self) -> Head | bytes | Part:
        while (heard := self.exchange.heard()) is Part.MORE:
            self.exchange.feed(self._socket.recv(_PIECE))
        return heard

    def say(self, data: bytes, limit_ns: int) -> None:
        """Send bytes of another protocol than HTTP. Raises OSError."""
        self._socket.settimeout(limit_ns / _NS)
        self._socket.sendall(data)

    def hear(self, limit_ns: int) -> bytes:
        """Return bytes of another protocol than HTTP; b"" is the end. Raises OSError."""
        self._socket.settimeout(limit_ns / _NS)
        return self._socket.recv(_PIECE)

    def close(self) -> None:
        """Let go of it."""
        self._socket.close()


class Pool:
    """Connections that wait for another request; threads share it."""

    def __init__(self, options: Options) -> None:
        self.options = options
        self._idle: list[Connection] = []
        self._lock = threading.Lock()

    @cached_property
    def _context(self) -> ssl.SSLContext:
        return self.options.tls.context()

    def take(self, origin: Origin) -> Connection:
        """Return a connection to a gateway. Raises OSError, and InputError for certificates that cannot be used."""
        now_ns = time.monotonic_ns()
        with self._lock:
            for place in reversed(range(len(self._idle))):
                if now_ns - self._idle[place].idle_since_ns > _IDLE_MOST_NS:
                    self._idle.pop(place).close()
                elif self._idle[place].origin == origin:
                    return self._idle.pop(place)
        return self.fresh(origin)

    def fresh(self, origin: Origin) -> Connection:
        """Return a new connection. Raises as :meth:`take`."""
        return Connection(origin, self.options, self._context if origin.secure else None)

    def give_back(self, connection: Connection) -> None:
        """Keep a connection whose answer was read, if it can carry another."""
        if not connection.exchange.again():
            connection.close()
            return
        connection.fresh = False
        connection.idle_since_ns = time.monotonic_ns()
        with self._lock:
            self._idle.append(connection)

    def close(self) -> None:
        """Let go of all."""
        with self._lock:
            while self._idle:
                self._idle.pop().close()
