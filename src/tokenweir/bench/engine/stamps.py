"""Kernel arrival stamps, and the offset between their clock and the monotonic one.

Linux stamps a TCP segment with CLOCK_REALTIME when it arrives (``SO_TIMESTAMPNS``), however late the reader wakes.
Durations need CLOCK_MONOTONIC, so the difference of the two is measured every second; a jump of it that no
disciplined clock makes is a step, and marks the run.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import sys
import time
from collections.abc import Callable
from typing import Final

from tokenweir.core.errors import ProtocolError

SO_TIMESTAMPNS: Final = 35
"""Linux's option and ancillary type, absent from the socket module."""
_SWITCH_TRIES: Final = 200
_SWITCH_PAUSE_S: Final = 0.002
STAMP: Final = struct.Struct("=qq")


def clock_offset(
    monotonic: Callable[[], int] = time.monotonic_ns,
    wall: Callable[[], int] = time.time_ns,
    *,
    tries: int = 5,
) -> tuple[int, int]:
    """Return (monotonic ns, CLOCK_REALTIME − CLOCK_MONOTONIC ns), from the tightest of ``tries`` brackets."""
    best = 1 << 62
    result = (0, 0)
    for _ in range(tries):
        before = monotonic()
        real = wall()
        width = monotonic() - before
        if width < best:
            best = width
            middle = before + width // 2
            result = (middle, real - middle)
    return result


class StampSwitch:
    """Keeps the kernel's stamping switched on while it is open; ``on`` says whether it stamps at all.

    The kernel switches stamping on by deferred work when a first socket asks for it, and off when the last one
    closes; segments that arrive in between carry none. So one socket that asks is held open over a whole run.
    """

    def __init__(self) -> None:
        self._held = contextlib.ExitStack()
        self.on = False
        if sys.platform.startswith("linux"):
            # Some kernels' stand-ins refuse the option, or sockets of the kind.
            with contextlib.suppress(OSError):
                self.on = self._wait()

    def _wait(self) -> bool:
        door = self._held.enter_context(socket.create_server(("127.0.0.1", 0)))
        sender = self._held.enter_context(socket.create_connection(door.getsockname()))
        receiver = self._held.enter_context(door.accept()[0])
        receiver.settimeout(1.0)
        receiver.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
        for _ in range(_SWITCH_TRIES):
            sender.sendall(b"x")
            _, ancillary, _, _ = receiver.recvmsg(1, 64)
            if ancillary:
                return ancillary[0][1] == SO_TIMESTAMPNS and len(ancillary[0][2]) == STAMP.size
            time.sleep(_SWITCH_PAUSE_S)
        return False

    def close(self) -> None:
        """Let the kernel switch it off."""
        self._held.close()


def enable(connection: socket.socket) -> None:
    """Ask for kernel stamps on a connection. Raises ProtocolError where the kernel refuses."""
    try:
        connection.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
    except OSError as refusal:
        message = f"the kernel refuses arrival stamps: {refusal.strerror}"
        raise ProtocolError(message, mend="run with --user-timestamps") from refusal
