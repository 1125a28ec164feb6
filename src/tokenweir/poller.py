"""Waiting for sockets and for a point in time, to a fraction of a millisecond."""

from __future__ import annotations

import ctypes
import os
import select
import selectors
import sys
import time
from collections.abc import Callable
from typing import Final, Protocol, cast

READ: Final = 1
"""There is something to read, or the peer has gone: POLLIN."""
WRITE: Final = 4
"""There is room to write: POLLOUT."""
BROKEN: Final = 8 | 16
"""The connection failed or was hung up: POLLERR, POLLHUP."""

NEVER: Final = 1 << 62
"""A time that does not come."""

_NS_PER_S: Final = 1_000_000_000
_MAX_EVENTS: Final = 512
_CLOCK_MONOTONIC: Final = 1
_NONBLOCK_CLOEXEC: Final = 0o4000 | 0o2000000
_ABSOLUTE: Final = 1
_SET_TIMER_SLACK: Final = 29


class Poller(Protocol):
    """Waits for many descriptors and one deadline."""

    @property
    def timer_fd(self) -> int:
        """The descriptor that shows up as ready when only time has passed; −1 if none does."""
        ...

    def watch(self, fd: int, mask: int) -> None:
        """Begin to watch ``fd``, or watch it for something else."""
        ...

    def forget(self, fd: int) -> None:
        """Stop watching ``fd``."""
        ...

    def wait(self, until_ns: int | None) -> list[tuple[int, int]]:
        """Return what is ready as (fd, mask), at the latest when CLOCK_MONOTONIC reads ``until_ns``."""
        ...

    def close(self) -> None:
        """Free what the poller holds."""
        ...


class _Timespec(ctypes.Structure):
    _fields_ = (("sec", ctypes.c_long), ("nsec", ctypes.c_long))


class _Timer(ctypes.Structure):
    _fields_ = (("interval", _Timespec), ("value", _Timespec))


class Alarm:
    """A timerfd: a descriptor that becomes readable at an absolute time. Linux only."""

    __slots__ = ("_set", "fd")

    def __init__(self) -> None:
        if hasattr(os, "timerfd_create"):
            self.fd, self._set = _native_alarm()
        else:
            self.fd, self._set = _libc_alarm()

    def set(self, at_ns: int) -> None:
        """Fire when CLOCK_MONOTONIC reads ``at_ns``; replaces what was set before."""
        self._set(at_ns)

    def close(self) -> None:
        """Close the descriptor."""
        os.close(self.fd)


def _native_alarm() -> tuple[int, Callable[[int], object]]:
    create = cast("Callable[..., int]", getattr(os, "timerfd_create"))  # noqa: B009 - unknown to the typing of 3.11
    settime = cast("Callable[..., object]", getattr(os, "timerfd_settime_ns"))  # noqa: B009 - likewise
    fd = create(_CLOCK_MONOTONIC, flags=_NONBLOCK_CLOEXEC)

    def set_(at_ns: int) -> object:
        return settime(fd, flags=_ABSOLUTE, initial=at_ns)

    return fd, set_


def _libc_alarm() -> tuple[int, Callable[[int], object]]:
    libc = ctypes.CDLL(None, use_errno=True)
    fd = int(libc.timerfd_create(_CLOCK_MONOTONIC, _NONBLOCK_CLOEXEC))
    if fd < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    timer = _Timer()
    value = timer.value
    pointer = ctypes.byref(timer)
    settime = libc.timerfd_settime

    def set_(at_ns: int) -> object:
        value.sec, value.nsec = divmod(at_ns, _NS_PER_S)
        return settime(fd, _ABSOLUTE, pointer, None)

    return fd, set_


class EpollPoller:
    """Level-triggered epoll with a timerfd for the deadline."""

    __slots__ = ("_alarm", "_epoll", "_known", "_set_ns")

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._alarm = Alarm()
        # Edge-triggered, so that a fired alarm need not be read: setting it again clears it.
        self._epoll.register(self._alarm.fd, select.EPOLLIN | select.EPOLLET)
        self._known: set[int] = set()
        self._set_ns = 0
        # By default the kernel may end a sleep 50 µs late to save wake-ups.
        ctypes.CDLL(None).prctl(_SET_TIMER_SLACK, 1)

    @property
    def timer_fd(self) -> int:
        """The timerfd."""
        return self._alarm.fd

    def watch(self, fd: int, mask: int) -> None:
        """Begin to watch ``fd``, or watch it for something else."""
        if fd in self._known:
            self._epoll.modify(fd, mask)
        else:
            self._epoll.register(fd, mask)
            self._known.add(fd)

    def forget(self, fd: int) -> None:
        """Stop watching ``fd``."""
        self._known.discard(fd)
        self._epoll.unregister(fd)

    def wait(self, until_ns: int | None) -> list[tuple[int, int]]:
        """Return what is ready as (fd, mask); the alarm's own descriptor is among it when it fired."""
        if until_ns is None:
            return self._epoll.poll(-1, _MAX_EVENTS)
        if until_ns <= time.monotonic_ns():
            return self._epoll.poll(0, _MAX_EVENTS)
        if until_ns != self._set_ns:
            self._alarm.set(until_ns)
            self._set_ns = until_ns
        return self._epoll.poll(-1, _MAX_EVENTS)

    def close(self) -> None:
        """Close the epoll descriptor and the alarm."""
        self._epoll.close()
        self._alarm.close()


class SelectorPoller:
    """What the platform's selector offers (kqueue on macOS), with its own timeout for the deadline."""

    __slots__ = ("_selector",)

    def __init__(self) -> None:
        self._selector = selectors.DefaultSelector()

    @property
    def timer_fd(self) -> int:
        """No descriptor: an empty answer means that time has passed."""
        return -1

    def watch(self, fd: int, mask: int) -> None:
        """Begin to watch ``fd``, or watch it for something else."""
        events = (selectors.EVENT_READ if mask & READ else 0) | (selectors.EVENT_WRITE if mask & WRITE else 0)
        if fd in self._selector.get_map():
            self._selector.modify(fd, events)
        else:
            self._selector.register(fd, events)

    def forget(self, fd: int) -> None:
        """Stop watching ``fd``."""
        self._selector.unregister(fd)

    def wait(self, until_ns: int | None) -> list[tuple[int, int]]:
        """Return what is ready as (fd, mask)."""
        # Selectors refuse a timeout beyond what their system call can hold.
        left = None if until_ns is None or until_ns >= NEVER else until_ns - time.monotonic_ns()
        timeout = None if left is None else max(0.0, left / _NS_PER_S)
        return [
            (
                key.fd,
                (READ if events & selectors.EVENT_READ else 0)
                | (WRITE if events & selectors.EVENT_WRITE else 0),
            )
            for key, events in self._selector.select(timeout)
        ]

    def close(self) -> None:
        """Close the selector."""
        self._selector.close()


def make_poller(*, portable: bool = False) -> Poller:
    """Return the best poller of this platform, or the one that every platform has."""
    return EpollPoller() if sys.platform == "linux" and not portable else SelectorPoller()
