"""A TCP proxy that cuts connections as a bad network does."""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
from collections.abc import Generator
from urllib.parse import urlsplit

_PIECE = 1 << 16


class CuttingProxy:
    """Passes bytes on to ``target``, which may change. ``connections`` counts those that were accepted.

    ``cut_after`` is how many bytes of answers a connection carries before it is cut. ``swallow`` connections are cut
    as soon as the first byte of an answer comes, which is not passed on. With ``tls`` it ends TLS before the target.
    """

    def __init__(self, target: str, tls: ssl.SSLContext | None = None) -> None:
        self.target = target
        self._tls = tls
        self.cut_after: int | None = None
        self.swallow = 0
        self.connections = 0
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._open: set[socket.socket] = set()
        self._lock = threading.Lock()
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"{'https' if self._tls else 'http'}://127.0.0.1:{self._listener.getsockname()[1]}"

    def cut(self) -> None:
        """Cut all connections."""
        with self._lock:
            for each in self._open:
                with contextlib.suppress(OSError):
                    each.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Listen no more, and cut all connections."""
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.cut()
        for thread in self._threads:
            thread.join(10)

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            thread = threading.Thread(target=self._serve, args=(near,), daemon=True)
            self._threads.append(thread)
            thread.start()

    def _serve(self, plain: socket.socket) -> None:
        parts = urlsplit(self.target)
        with plain, contextlib.suppress(OSError), self._secured(plain) as near:
            far = socket.create_connection((parts.hostname or "", parts.port or 80), timeout=10)
            far.settimeout(None)
            with far:
                pair = {near, far}
                with self._lock:
                    self._open |= pair
                up = threading.Thread(target=self._up, args=(near, far), daemon=True)
                up.start()
                try:
                    self._down(far, near)
                finally:
                    for each in pair:
                        with contextlib.suppress(OSError):
                            each.shutdown(socket.SHUT_RDWR)
                    up.join(10)
                    with self._lock:
                        self._open -= pair

    def _secured(self, plain: socket.socket) -> socket.socket:
        return self._tls.wrap_socket(plain, server_side=True) if self._tls is not None else plain

    @staticmethod
    def _up(near: socket.socket, far: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while piece := near.recv(_PIECE):
                far.sendall(piece)
            far.shutdown(socket.SHUT_WR)

    def _down(self, far: socket.socket, near: socket.socket) -> None:
        passed = 0
        while piece := far.recv(_PIECE):
            if self.swallow:
                self.swallow -= 1
                return
            most = self.cut_after
            if most is not None and passed + len(piece) >= most:
                near.sendall(piece[: most - passed])
                return
            near.sendall(piece)
            passed += len(piece)


@contextlib.contextmanager
def cutting(target: str, tls: ssl.SSLContext | None = None) -> Generator[CuttingProxy]:
    """Run a proxy before ``target``."""
    proxy = CuttingProxy(target, tls)
    try:
        yield proxy
    finally:
        proxy.close()
