"""The worker's connections: opened ahead of need, kept alive, known by their descriptor."""

from __future__ import annotations

import errno
import os
import socket
import ssl
from collections.abc import Callable
from typing import Final, TypeAlias, cast

from tokenweir.bench.engine import stamps
from tokenweir.bench.engine.plan import WorkerPlan
from tokenweir.bench.engine.tls import Received, TlsStream, client_context
from tokenweir.poller import READ, WRITE, Poller

Receive = Callable[[tuple[memoryview], int], Received]
Send = Callable[[memoryview | bytes], int]
Address: TypeAlias = tuple[str, int] | tuple[str, int, int, int] | tuple[int, bytes]


class Mode:
    """What a descriptor's readiness means. Positive: an answer is being read; the capture's loop reads those.

    Plain integers, because an enum's members cost the loop more than its comparisons do.
    """

    UNUSED: Final = 0
    TIMER: Final = -1
    CONTROL: Final = -2
    CONNECTING: Final = -3
    HANDSHAKE: Final = -4
    SENDING: Final = -5
    IDLE: Final = -6
    HEAD: Final = 1
    CHUNKED: Final = 2
    LENGTH: Final = 3
    UNTIL_CLOSE: Final = 4


_ROOM: Final = 4096
_SCRATCH: Final = 64 << 10
_CONNECT_S: Final = 5.0


def _closed(_buffers: tuple[memoryview], _ancillary: int) -> Received:
    raise BlockingIOError


def _unsendable(_data: memoryview | bytes) -> int:
    raise BlockingIOError


class Connections:
    """Lists indexed by descriptor, because a stream must cost little: mode, calls, number, use.

    ``number`` counts the connections of this worker, so that a descriptor used again is told apart.
    """

    def __init__(self, plan: WorkerPlan, poller: Poller) -> None:
        self._poller = poller
        self._address = resolve(plan.host, plan.port)
        self._kernel_stamps = plan.kernel_stamps
        self._context: ssl.SSLContext | None = client_context(verify=plan.verify_tls) if plan.tls else None
        self.encrypted = plan.tls
        self._server_name = plan.server_name
        self._sockets: list[socket.socket | None] = []
        self._tls: dict[int, TlsStream] = {}
        self._opened = 0
        self.mode: list[int] = []
        self.receive: list[Receive] = []
        self.send: list[Send] = []
        self.number: list[int] = []
        self.used: list[bool] = []
        self.idle: list[int] = []
        self.connecting = 0
        self._grow(_ROOM)

    def reserve(self, fd: int, mode: int) -> None:
        """Give a descriptor that is no connection (timer, control pipe) its mode."""
        self._grow(fd + 1)
        self.mode[fd] = mode

    def open(self) -> int:
        """Begin to connect and return an errno, 0 when all is well so far."""
        family, address = self._address
        try:
            # The C type itself: the Python class around it doubles what an open stream costs.
            connection = cast("socket.socket", socket.SocketType(family, socket.SOCK_STREAM))
        except OSError as failure:
            return failure.errno or errno.EMFILE
        connection.setblocking(False)  # noqa: FBT003  (the socket API's own form)
        if family != socket.AF_UNIX:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if self._kernel_stamps:
            stamps.enable(connection)
        code = connection.connect_ex(address)
        if code not in {0, errno.EINPROGRESS}:
            connection.close()
            return code
        fd = connection.fileno()
        self._grow(fd + 1)
        self._sockets[fd] = connection
        self.receive[fd] = connection.recvmsg_into
        self.send[fd] = connection.send
        self.number[fd] = self._opened
        self.used[fd] = False
        self.mode[fd] = Mode.CONNECTING
        self._opened += 1
        self.connecting += 1
        self._poller.watch(fd, WRITE)
        return 0

    def advance(self, fd: int) -> int:
        """Take a connecting descriptor on, until it is idle; return an errno, 0 when all is well."""
        connection = self._sockets[fd]
        if connection is None:
            return errno.EBADF
        try:
            if self.mode[fd] == Mode.CONNECTING:
                code = connection.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
                if code:
                    return code
                try:
                    connection.getpeername()
                except OSError:
                    # The readiness was that of an earlier connection with this descriptor.
                    return 0
                if self._context is not None:
                    self._tls[fd] = TlsStream(connection, self._context, self._server_name)
                    self.mode[fd] = Mode.HANDSHAKE
                self._poller.watch(fd, READ)
            if self.mode[fd] == Mode.HANDSHAKE:
                stream = self._tls[fd]
                done, data = stream.handshake()
                if data:
                    connection.send(data)
                if not done:
                    return 0
                self.receive[fd] = stream.recvmsg_into
        except ssl.SSLError:
            return errno.EPROTO
        except OSError as failure:
            return failure.errno or errno.ECONNABORTED
        self.connecting -= 1
        self.rest(fd)
        return 0

    def encrypt(self, fd: int, payload: memoryview | bytes) -> memoryview | bytes:
        """Return what to hand to the kernel for ``payload``."""
        stream = self._tls.get(fd)
        return payload if stream is None else stream.encrypt(payload)

    def still_idle(self, fd: int) -> bool:
        """Whether an idle connection's readiness was TLS's own (session tickets) and not its end."""
        if not self.encrypted:
            return False
        try:
            self.receive[fd]((memoryview(bytearray(_SCRATCH)),), 64)
        except BlockingIOError:
            return True
        except OSError:
            return False
        return False

    def rest(self, fd: int) -> None:
        """Put a connection back among the idle."""
        self.mode[fd] = Mode.IDLE
        self.idle.append(fd)

    def await_writable(self, fd: int) -> None:
        """Watch for room to send the rest of a request."""
        self.mode[fd] = Mode.SENDING
        self._poller.watch(fd, READ | WRITE)

    def await_answer(self, fd: int) -> None:
        """Watch for the answer alone."""
        self.mode[fd] = Mode.HEAD
        self._poller.watch(fd, READ)

    def close(self, fd: int) -> None:
        """Close a connection, whatever it was doing."""
        connection = self._sockets[fd]
        if connection is None:
            return
        if self.mode[fd] == Mode.IDLE:
            self.idle.remove(fd)
        elif self.mode[fd] in {Mode.CONNECTING, Mode.HANDSHAKE}:
            self.connecting -= 1
        self._poller.forget(fd)
        self.mode[fd] = Mode.UNUSED
        self.receive[fd] = _closed
        self.send[fd] = _unsendable
        self._tls.pop(fd, None)
        self._sockets[fd] = None
        connection.close()

    def close_all(self) -> None:
        """Close every connection."""
        for fd, connection in enumerate(self._sockets):
            if connection is not None:
                self.close(fd)

    def _grow(self, count: int) -> None:
        missing = count - len(self.mode)
        if missing <= 0:
            return
        missing += len(self.mode) // 2
        self.mode.extend([Mode.UNUSED] * missing)
        self.receive.extend([_closed] * missing)
        self.send.extend([_unsendable] * missing)
        self.number.extend([-1] * missing)
        self.used.extend([False] * missing)
        self._sockets.extend([None] * missing)


def resolve(host: str, port: int) -> tuple[int, Address]:
    """Return a host's address; of several, the first that takes a connection. Raises OSError when none does."""
    failure = OSError(errno.EADDRNOTAVAIL, os.strerror(errno.EADDRNOTAVAIL))
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    if len(found) == 1:
        return found[0][0], found[0][4]
    for family, kind, protocol, _, address in found:
        try:
            with socket.socket(family, kind, protocol) as probe:
                probe.settimeout(_CONNECT_S)
                probe.connect(address)
        except OSError as refused:
            failure = refused
        else:
            return family, address
    raise failure
