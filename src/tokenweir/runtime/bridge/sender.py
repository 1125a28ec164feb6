"""The child's end of the bridge, outward: any thread hands over frames, none waits for the reader."""

from __future__ import annotations

import socket
import threading
from collections import deque
from typing import Final

from tokenweir.runtime.bridge.messages import MAX_FRAME_BYTES

MAX_PENDING_BYTES: Final = 4 * MAX_FRAME_BYTES
"""Unsent bytes above which the reader counts as gone. Credits keep a working bridge far below."""


class FrameSender:
    """Writes frames in the order handed over, from any thread.

    A frame is written at once by the thread that brings it, as far as the socket's buffer takes it. What is left
    goes to a writer thread, which joins all that has come meanwhile into one write. So the device thread neither
    switches to another thread for a small frame nor waits for a slow reader.
    """

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._change = threading.Condition()
        self._pending: deque[bytes | bytearray | memoryview] = deque()
        self._pending_bytes = 0
        self._writing = False
        self._open = True
        self._thread = threading.Thread(target=self._write_on, name="bridge-writer", daemon=True)
        self._thread.start()

    @property
    def open(self) -> bool:
        """Whether frames still reach the peer."""
        return self._open

    def send(self, frame: bytes | bytearray) -> None:
        """Write ``frame`` now or soon. After the peer has gone, frames are dropped silently."""
        with self._change:
            if not self._open:
                return
            rest: bytes | bytearray | memoryview = frame
            if not self._pending and not self._writing:
                sent = self._try(frame)
                if sent == len(frame):
                    return
                rest = memoryview(frame)[sent:]
            self._pending.append(rest)
            self._pending_bytes += len(rest)
            if self._pending_bytes > MAX_PENDING_BYTES:
                self._give_up()
            self._change.notify_all()

    def close(self, timeout_s: float = 1.0) -> None:
        """Write what is pending for at most ``timeout_s``, then drop the rest."""
        with self._change:
            self._change.wait_for(
                lambda: not self._open or (not self._pending and not self._writing), timeout_s
            )
            self._give_up()
            self._change.notify_all()
        if threading.current_thread() is not self._thread:
            self._thread.join(timeout_s)

    def _try(self, frame: bytes | bytearray) -> int:
        try:
            return self._sock.send(frame, socket.MSG_DONTWAIT)
        except (BlockingIOError, InterruptedError):
            return 0
        except OSError:
            self._give_up()
            return len(frame)

    def _give_up(self) -> None:
        self._open = False
        self._pending.clear()
        self._pending_bytes = 0

    def _write_on(self) -> None:
        while True:
            with self._change:
                self._change.wait_for(lambda: self._pending or not self._open)
                if not self._open:
                    return
                joined = b"".join(self._pending)
                self._pending.clear()
                self._pending_bytes = 0
                self._writing = True
            try:
                self._sock.sendall(joined)
            except OSError:
                with self._change:
                    self._give_up()
            with self._change:
                self._writing = False
                self._change.notify_all()
