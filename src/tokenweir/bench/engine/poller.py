"""Waiting for sockets and for a point in time: epoll with a timerfd on Linux, the standard selectors elsewhere."""

from __future__ import annotations

import ctypes
import os
import select
import selectors
import struct
import sys
import time
from typing import Final, Protocol

READ: Final = 1
WRITE: Final = 4
"""Bit values of epoll's IN and OUT, used for both pollers."""
NEVER: Final = 1 << 62
_ABSOLUTE: Final = 1
_SET_TIMER_SLACK: Final = 29
_ITIMERSPEC: Final = struct.Struct("=qqqq")


class Poller(Protocol):
    """What the capture loop waits with."""

    @property
    def timer_fd(self) -> int:
        """The descriptor that shows up as ready when only time has passed; −1 if none does."""
        ...

    def watch(self, fd: int, mask: int) -> None:
        """Begin to watch a descriptor, or change what it is watched for."""
        ...

    def forget(self, fd: int) -> None:
        """Stop watching a descriptor."""
        ...

    def wait(self, until_ns: int) -> list[tuple[int, int]]:
        """Return the (descriptor, mask) pairs that are ready, at the latest when CLOCK_MONOTONIC is ``until_ns``."""
        ...

    def close(self) -> None:
        """Release what the poller holds."""
        ...


class _LibcTimer:
    """timerfd through the C library, for Pythons before 3.13."""

    def __init__(self) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)
        self.fd: int = self._libc.timerfd_create(time.CLOCK_MONOTONIC, os.O_NONBLOCK | os.O_CLOEXEC)
        if self.fd < 0:
            raise OSError(ctypes.get_errno(), "timerfd_create")
        self._spec = ctypes.create_string_buffer(_ITIMERSPEC.size)
        self._set = self._libc.timerfd_settime

    def arm(self, at_ns: int) -> None:
        """Make the descriptor readable at ``at_ns`` of CLOCK_MONOTONIC."""
        _ITIMERSPEC.pack_into(self._spec, 0, 0, 0, *divmod(at_ns, 1_000_000_000))
        self._set(self.fd, _ABSOLUTE, self._spec, None)


class _SystemTimer:
    """timerfd through the standard library."""

    def __init__(self) -> None:
        self.fd: int = os.timerfd_create(time.CLOCK_MONOTONIC, flags=os.TFD_NONBLOCK | os.TFD_CLOEXEC)  # type: ignore[attr-defined]

    def arm(self, at_ns: int) -> None:
        """Make the descriptor readable at ``at_ns`` of CLOCK_MONOTONIC."""
        os.timerfd_settime_ns(self.fd, flags=os.TFD_TIMER_ABSTIME, initial=at_ns)  # type: ignore[attr-defined]


class EpollPoller:
    """Epoll for the sockets and one timerfd for time, which is exact to microseconds where a timeout is to 1 ms."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._timer = _SystemTimer() if hasattr(os, "timerfd_create") else _LibcTimer()
        self._armed = NEVER
        self._masks: dict[int, int] = {}
        # By default the kernel may end a sleep 50 µs late to save wake-ups.
        ctypes.CDLL(None).prctl(_SET_TIMER_SLACK, 1)
        self._poll = self._epoll.poll
        self._epoll.register(self._timer.fd, select.EPOLLIN)

    @property
    def timer_fd(self) -> int:
        """The timerfd."""
        return self._timer.fd

    def watch(self, fd: int, mask: int) -> None:
        """Begin to watch a descriptor, or change what it is watched for."""
        if fd in self._masks:
            self._epoll.modify(fd, mask)
        else:
            self._epoll.register(fd, mask)
        self._masks[fd] = mask

    def forget(self, fd: int) -> None:
        """Stop watching a descriptor."""
        del self._masks[fd]
        self._epoll.unregister(fd)

    def wait(self, until_ns: int) -> list[tuple[int, int]]:
        """Return the ready pairs, the timer's own among them once the time has come."""
        if until_ns != self._armed:
            # Setting the timer also clears its readiness, so it is never read.
            self._timer.arm(until_ns if until_ns > 0 else 1)
            self._armed = until_ns
        return self._poll(-1, 4096)

    def close(self) -> None:
        """Release the epoll instance and the timer."""
        os.close(self._timer.fd)
        self._epoll.close()


class SelectorPoller:
    """The standard library's best selector (kqueue on macOS): correct everywhere, to its timer's grain."""

    def __init__(self) -> None:
        self._selector = selectors.DefaultSelector()

    @property
    def timer_fd(self) -> int:
        """No descriptor: an empty answer means that time has passed."""
        return -1

    def watch(self, fd: int, mask: int) -> None:
        """Begin to watch a descriptor, or change what it is watched for."""
        events = (selectors.EVENT_READ if mask & READ else 0) | (selectors.EVENT_WRITE if mask & WRITE else 0)
        if fd in self._selector.get_map():
            self._selector.modify(fd, events)
        else:
            self._selector.register(fd, events)

    def forget(self, fd: int) -> None:
        """Stop watching a descriptor."""
        self._selector.unregister(fd)

    def wait(self, until_ns: int) -> list[tuple[int, int]]:
        """Return the ready pairs, or none once the time has come."""
        left = (until_ns - time.monotonic_ns()) / 1e9
        ready = self._selector.select(min(max(left, 0.0), 60.0))
        return [
            (
                key.fd,
                (READ if mask & selectors.EVENT_READ else 0) | (WRITE if mask & selectors.EVENT_WRITE else 0),
            )
            for key, mask in ready
        ]

    def close(self) -> None:
        """Release the selector."""
        self._selector.close()


def make_poller(*, portable: bool = False) -> Poller:
    """Return the best poller of this system, or the portable one when asked for."""
    if portable or not sys.platform.startswith("linux"):
        return SelectorPoller()
    return EpollPoller()
