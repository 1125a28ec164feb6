"""TLS over a socket that still gives its arrival stamps: records are read raw and decrypted in memory."""

from __future__ import annotations

import socket
import ssl
from typing import Final

_RAW_BYTES: Final = 32 << 10
"""Ciphertext per read; decrypted it always fits the room that a segment keeps free."""

Received = tuple[int, list[tuple[int, int, bytes]], int, object]
"""What ``socket.recvmsg_into`` returns: bytes, ancillary data, flags, address."""


class TlsStream:
    """One client connection. Stamps are those of the ciphertext's arrival."""

    __slots__ = ("_incoming", "_object", "_outgoing", "_socket")

    def __init__(self, connection: socket.socket, context: ssl.SSLContext, server_name: str) -> None:
        self._socket = connection
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._object = context.wrap_bio(self._incoming, self._outgoing, server_hostname=server_name)

    def handshake(self) -> tuple[bool, bytes]:
        """Take the handshake as far as the bytes at hand allow; return whether it is done, and bytes to send.

        Raises ssl.SSLError, and OSError from the socket.
        """
        try:
            data = self._socket.recv(_RAW_BYTES)
            if data:
                self._incoming.write(data)
            else:
                self._incoming.write_eof()
        except BlockingIOError:
            pass
        try:
            self._object.do_handshake()
        except ssl.SSLWantReadError:
            return False, self._outgoing.read()
        return True, self._outgoing.read()

    def encrypt(self, data: memoryview | bytes) -> bytes:
        """Return the records that carry ``data``."""
        self._object.write(data)
        return self._outgoing.read()

    def recvmsg_into(self, buffers: tuple[memoryview], ancillary_bytes: int) -> Received:
        """Read as ``socket.recvmsg_into`` does, but plaintext. Raises BlockingIOError when no record is whole yet."""
        data, ancillary, flags, address = self._socket.recvmsg(_RAW_BYTES, ancillary_bytes)
        if not data:
            return 0, ancillary, flags, address
        self._incoming.write(data)
        view = buffers[0]
        total = 0
        while True:
            try:
                count = self._object.read(len(view) - total, view[total:])
            except ssl.SSLWantReadError:
                break
            except ssl.SSLZeroReturnError:
                # The peer's goodbye, which need not come with the end of the connection.
                return total, ancillary, flags, address
            total += int(count)
        if not total:
            raise BlockingIOError
        return total, ancillary, flags, address


def client_context(*, verify: bool) -> ssl.SSLContext:
    """Return a context that speaks HTTP/1.1 only."""
    context = ssl.create_default_context()
    if not verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    context.set_alpn_protocols(["http/1.1"])
    return context
