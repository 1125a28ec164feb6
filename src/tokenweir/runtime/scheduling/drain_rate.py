"""How fast requests are worked off, so that a refused one can be told when to come back."""

from __future__ import annotations

import math
from collections import deque
from typing import Final

_S: Final = 1_000_000_000


class DrainRate:
    """Requests finished per second, over the last ``window_ns`` and at most 128 of them.

    Formula: finished / (now − the instant of the first of them), as long as two were finished in the window.
    """

    __slots__ = ("_ends", "_window_ns")

    def __init__(self, *, window_ns: int = 60 * _S) -> None:
        self._window_ns = window_ns
        self._ends: deque[int] = deque(maxlen=128)

    def finished(self, now_ns: int) -> None:
        """Count a finished request."""
        self._ends.append(now_ns)

    def per_second(self, now_ns: int) -> float | None:
        """Return the rate, ``None`` while too little is known."""
        while self._ends and now_ns - self._ends[0] > self._window_ns:
            self._ends.popleft()
        if len(self._ends) < 2 or now_ns <= self._ends[0]:  # noqa: PLR2004 - a rate needs two ends
            return None
        return len(self._ends) * _S / (now_ns - self._ends[0])

    def wait_ns(self, ahead: int, now_ns: int) -> int:
        """Return how long ``ahead`` requests take to be worked off: whole seconds from 1 to 60, 5 when unknown."""
        rate = self.per_second(now_ns)
        if rate is None:
            return 5 * _S
        return min(60, max(1, math.ceil(ahead / rate))) * _S
