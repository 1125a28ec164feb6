"""Clocks: durations on the monotonic clock, instants on the wall clock, both in integer nanoseconds."""

from __future__ import annotations

import time
from typing import Protocol


class Clock(Protocol):
    """What reads time. ``monotonic_ns`` never steps; ``wall_ns`` is Unix time and may."""

    def monotonic_ns(self) -> int:
        """Nanoseconds of a clock that never goes back, from an arbitrary start."""
        ...

    def wall_ns(self) -> int:
        """Nanoseconds since the Unix epoch, UTC."""
        ...


class SystemClock:
    """The kernel's CLOCK_MONOTONIC and CLOCK_REALTIME."""

    __slots__ = ()

    # Called some ten times for a request, so that nothing stands between.
    monotonic_ns = staticmethod(time.monotonic_ns)
    """Nanoseconds of CLOCK_MONOTONIC, comparable between processes of one host."""
    wall_ns = staticmethod(time.time_ns)
    """Nanoseconds since the Unix epoch, UTC."""


class VirtualClock:
    """A clock that moves only when told to, for tests and dry runs."""

    __slots__ = ("_epoch_ns", "_now_ns")

    def __init__(self, now_ns: int = 0, *, epoch_ns: int = 1_700_000_000_000_000_000) -> None:
        self._now_ns = now_ns
        self._epoch_ns = epoch_ns

    def monotonic_ns(self) -> int:
        """Nanoseconds advanced so far."""
        return self._now_ns

    def wall_ns(self) -> int:
        """The fixed epoch plus the nanoseconds advanced so far."""
        return self._epoch_ns + self._now_ns

    def advance(self, by_ns: int) -> None:
        """Move the clock on. Raises ValueError for a negative step."""
        if by_ns < 0:
            message = f"a monotonic clock cannot go back by {by_ns!r} ns"
            raise ValueError(message)
        self._now_ns += by_ns
