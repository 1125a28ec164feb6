"""Figures that a worker publishes while it runs: a few integers in a mapped file, nothing per request."""

from __future__ import annotations

import mmap
import struct
from pathlib import Path
from typing import Final, NamedTuple

_COUNTERS: Final = struct.Struct("=6q")


class LiveFigures(NamedTuple):
    """A worker's counts so far; ``at_ns`` is CLOCK_MONOTONIC."""

    at_ns: int
    sent: int
    completed: int
    failed: int
    in_flight: int
    in_flight_max: int


class LiveCounters:
    """The worker's side. One writer; a reader may see figures of two moments mixed, which a display can bear."""

    __slots__ = ("_map", "failed", "in_flight", "in_flight_max", "sent")

    def __init__(self, path: Path) -> None:
        path.write_bytes(bytes(_COUNTERS.size))
        with path.open("r+b") as file:
            self._map = mmap.mmap(file.fileno(), _COUNTERS.size)
        self.sent = self.failed = self.in_flight = self.in_flight_max = 0

    def begin(self) -> None:
        """Count a request taken up."""
        self.in_flight += 1
        self.in_flight_max = max(self.in_flight_max, self.in_flight)

    def finish(self, *, ok: bool) -> None:
        """Count an exchange ended with none in its place; ``ok`` as far as the socket can tell."""
        self.in_flight -= 1
        if not ok:
            self.failed += 1

    def publish(self, now_ns: int, sent: int) -> None:
        """Make the figures visible to the reader, ``sent`` requests having been taken up so far."""
        self.sent = sent
        completed = sent - self.failed - self.in_flight
        figures = (now_ns, sent, completed, self.failed, self.in_flight, self.in_flight_max)
        _COUNTERS.pack_into(self._map, 0, *figures)


def read_live(path: Path) -> LiveFigures | None:
    """Return a worker's figures, or ``None`` before it has any."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return None
    return LiveFigures(*_COUNTERS.unpack(content)) if len(content) == _COUNTERS.size else None
