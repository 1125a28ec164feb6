"""How long callers wait for a first token: of the answers that began lately, and of those that still have not."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Final

from tokenweir.core.clock import Clock

_MOST: Final = 4096
"""The newest waits that are kept; so many tell a quantile well enough."""


class FirstTokens:
    """Times to the first token within the last ``window_ns``. One asks, then its first token comes, or it leaves."""

    def __init__(self, clock: Clock, *, window_ns: int) -> None:
        self._clock = clock
        self._window_ns = window_ns
        # In the order of asking, so that who has waited longest comes first.
        self._waiting: dict[int, int] = {}
        self._waits: deque[tuple[int, int]] = deque(maxlen=_MOST)
        self._last = 0

    def asked(self) -> int:
        """Note that an answer is waited for; returns a ticket."""
        self._last += 1
        self._waiting[self._last] = self._clock.monotonic_ns()
        return self._last

    def came(self, ticket: int) -> None:
        """Note its first token; later ones change nothing."""
        began_ns = self._waiting.pop(ticket, None)
        if began_ns is not None:
            now_ns = self._clock.monotonic_ns()
            self._waits.append((now_ns, now_ns - began_ns))

    def left(self, ticket: int) -> None:
        """Note that nobody waits for it any more."""
        self._waiting.pop(ticket, None)

    def wait_ns(self, quantile: float, *, slow_ns: int, least: int) -> int | None:
        """Return a quantile of the waits; ``None`` where there are fewer than ``least``.

        One that has already waited for ``slow_ns`` counts with its wait so far: a server that answers nobody makes
        no first tokens to be late.
        """
        now_ns = self._clock.monotonic_ns()
        while self._waits and now_ns - self._waits[0][0] > self._window_ns:
            self._waits.popleft()
        found = [wait for _, wait in self._waits]
        for began_ns in self._waiting.values():
            if now_ns - began_ns < slow_ns:
                break
            found.append(now_ns - began_ns)
        return quantile_of(found, quantile) if len(found) >= least else None


def quantile_of(values: Sequence[int], quantile: float) -> int:
    """Return a quantile, linearly interpolated between order statistics; there is at least one value."""
    ordered = sorted(values)
    place = quantile * (len(ordered) - 1)
    low = int(place)
    high = min(low + 1, len(ordered) - 1)
    return round(ordered[low] + (ordered[high] - ordered[low]) * (place - low))
