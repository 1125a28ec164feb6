"""The simulator's process: one loop over sockets and the timing wheel."""

from __future__ import annotations

import errno
import gc
import logging
import os
import resource
import signal
import socket
from collections.abc import Callable
from time import monotonic_ns
from types import FrameType
from typing import Final

from tokenweir.core.errors import DescriptorError
from tokenweir.core.listening import cannot_listen
from tokenweir.core.requests import Json
from tokenweir.poller import BROKEN, READ, WRITE, make_poller
from tokenweir.sim import http
from tokenweir.sim.connection import Connection
from tokenweir.sim.engine import Engine
from tokenweir.sim.options import Options, changed
from tokenweir.sim.routes import refusal, serve

_STEPS_PER_ROUND: Final = 256
_ACCEPTS_PER_ROUND: Final = 128
_BACKLOG: Final = 65_535
_SPARE_DESCRIPTORS: Final = 64
_WAKE_BYTES: Final = 64
_INTERRUPTED: Final = 130

_log = logging.getLogger(__name__)


class Server:
    """Listens, and answers until told to stop.

    Raises:
        ConfigError: the options cannot be used, or the address cannot be listened on.
        DescriptorError: too few files may be opened.
    """

    def __init__(self, options: Options) -> None:
        self.engine = Engine(options)
        raise_descriptor_limit(options.connections)
        self._listener = _listen(options)
        self.poller = make_poller()
        self._connections: dict[int, Connection] = {}
        self._paused = False
        self._tether = -1
        self._stop_status: int | None = None
        host, port = self._listener.getsockname()[:2]
        self.url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
        self.poller.watch(self._listener.fileno(), READ)

    @property
    def options(self) -> Options:
        """The options as they are now."""
        return self.engine.options

    def change(self, changes: dict[str, Json]) -> Options:
        """Lay ``changes`` over the options. Raises ConfigError, and changes nothing, when one is unusable."""
        self.engine.configure(changed(self.engine.options, changes))
        return self.engine.options

    def stop(self, status: int) -> None:
        """End :meth:`run` with ``status`` after the present round."""
        self._stop_status = status

    def run(self, tether: int | None = None) -> int:
        """Serve until stopped; return the exit status: 0 after SIGTERM, 130 after Ctrl-C.

        ``tether`` is a descriptor to be read from; its end stops the server with 0.
        """
        wake, waker = socket.socketpair()
        wake.settimeout(0.0)
        waker.settimeout(0.0)
        before = signal.set_wakeup_fd(waker.fileno(), warn_on_full_buffer=False)
        for number, status in ((signal.SIGTERM, 0), (signal.SIGINT, _INTERRUPTED)):
            signal.signal(number, self._stopper(status))
        self.poller.watch(wake.fileno(), READ)
        if tether is not None:
            self._tether = tether
            self.poller.watch(tether, READ)
        # Nothing on the hot path makes a cycle, and a collection would show up as a late chunk.
        gc.collect()
        gc.freeze()
        gc.disable()
        try:
            while self._stop_status is None:
                self._round(wake)
        finally:
            signal.set_wakeup_fd(before)
            self._close()
            wake.close()
            waker.close()
        return self._stop_status

    def forget(self, conn: Connection) -> None:
        """Stop watching a connection that is about to close."""
        self.poller.forget(conn.fd)
        del self._connections[conn.fd]
        if self._paused:
            self._paused = False
            self.poller.watch(self._listener.fileno(), READ)

    def serve(self, conn: Connection, request: http.Request) -> None:
        """Answer a request, or take it on to be answered."""
        serve(self, conn, request)

    def refuse(self, conn: Connection, error: http.HttpError) -> None:
        """Answer with the error that HTTP or the engine raised."""
        conn.reply(error.status, refusal(error.status, error.message))

    def _round(self, wake: socket.socket) -> None:
        wheel = self.engine.wheel
        now = monotonic_ns()
        budget = _STEPS_PER_ROUND
        while budget > 0 and (due := wheel.take(now, budget)) is not None:
            for answer in due:
                answer.step()
            budget -= len(due)
        connections = self._connections
        for fd, mask in self.poller.wait(wheel.next_ns()):
            conn = connections.get(fd)
            if conn is None:
                if fd == self._listener.fileno():
                    self._accept()
                elif fd == wake.fileno():
                    wake.recv(_WAKE_BYTES)
                elif fd == self._tether and not os.read(fd, _WAKE_BYTES):
                    self.stop(0)
                continue
            if mask & WRITE:
                conn.writable()
            if mask & (READ | BROKEN) and conn.fd >= 0:
                conn.readable()

    def _accept(self) -> None:
        for _ in range(_ACCEPTS_PER_ROUND):
            try:
                sock, _ = self._listener.accept()
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno in {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}:
                    self._pause(error)
                return
            sock.settimeout(0.0)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            conn = Connection(self, sock, self.engine.options.max_body_bytes)
            self._connections[conn.fd] = conn
            self.poller.watch(conn.fd, READ)

    def _pause(self, error: OSError) -> None:
        """Accept no more until a connection closes: the limit is reached."""
        self._paused = True
        self.poller.forget(self._listener.fileno())
        _log.warning(
            "no further connection beyond %d: %s; raise the limit (ulimit -n) above %d",
            len(self._connections),
            error.strerror,
            len(self._connections) + _SPARE_DESCRIPTORS,
        )

    def _stopper(self, status: int) -> Callable[[int, FrameType | None], None]:
        def handle(_number: int, _frame: FrameType | None) -> None:
            self.stop(status)

        return handle

    def _close(self) -> None:
        for conn in list(self._connections.values()):
            conn.drop()
        self._listener.close()
        self.poller.close()


def raise_descriptor_limit(connections: int) -> int:
    """Raise the soft limit of open files as far as allowed and return it.

    Raises:
        DescriptorError: ``connections`` would need more.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
            soft = hard
        except (OSError, ValueError):
            # macOS says "unlimited" and takes less; what there is has to do.
            _log.debug("the limit of open files stays at %d", soft)
    needed = connections + _SPARE_DESCRIPTORS
    if soft != resource.RLIM_INFINITY and needed > soft:
        raise DescriptorError(
            f"{connections} connections need {needed} open files, the limit is {soft}",
            mend=f"raise it with ulimit -n {needed}, or in limits.conf",
        )
    return soft


def _listen(options: Options) -> socket.socket:
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            options.host, options.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        sock = socket.socket(family, kind, protocol)
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind(address)
            sock.listen(_BACKLOG)
        except OSError:
            sock.close()
            raise
    except (OSError, OverflowError) as error:
        raise cannot_listen(options.host, options.port, error) from None
    sock.settimeout(0.0)
    return sock
