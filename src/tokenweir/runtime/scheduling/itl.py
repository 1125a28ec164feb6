"""The ITL that a model's streams see, from the steps of its engine."""

from __future__ import annotations

from collections import deque
from typing import Final

from tokenweir.runtime.bridge.messages import Stepped

_MOST_STEPS: Final = 512


class ItlWindow:
    """The gaps between consecutive tokens of the last ``window_ns``, at most 512 steps.

    Formula: in a step that decoded tokens, every one of them came after ``step_ns`` plus the time of the steps
    without a token since the last one, while streams were running: a piece of prefill delays them all. Where a draft
    model brings several tokens per stream in one step, the gap is divided by decoded / running. The gap counts once
    for each decoded token, as GLOSSARY's ITL pools the tokens of all requests.
    """

    __slots__ = ("_carried_ns", "_gaps", "_window_ns")

    def __init__(self, *, window_ns: int) -> None:
        self._window_ns = window_ns
        self._gaps: deque[tuple[int, int, int]] = deque(maxlen=_MOST_STEPS)
        self._carried_ns = 0

    def observe(self, stepped: Stepped, now_ns: int) -> None:
        """Count a step."""
        if not stepped.decoded:
            self._carried_ns = self._carried_ns + stepped.step_ns if stepped.running else 0
            return
        gap_ns = stepped.step_ns + self._carried_ns
        self._carried_ns = 0
        if stepped.decoded > stepped.running > 0:
            gap_ns = gap_ns * stepped.running // stepped.decoded
        self._gaps.append((now_ns, gap_ns, stepped.decoded))

    def clear(self) -> None:
        """Forget all, so that what comes next is judged by itself."""
        self._gaps.clear()
        self._carried_ns = 0

    def tokens(self, now_ns: int) -> int:
        """Return how many gaps there are in the window."""
        while self._gaps and now_ns - self._gaps[0][0] > self._window_ns:
            self._gaps.popleft()
        return sum(count for _, _, count in self._gaps)

    def p95_ns(self, now_ns: int) -> int | None:
        """Return the 95th percentile, by linear interpolation, ``None`` where there are no gaps."""
        count = self.tokens(now_ns)
        if not count:
            return None
        ordered = sorted((gap, weight) for _, gap, weight in self._gaps)
        place = 0.95 * (count - 1)
        low = _at(ordered, int(place))
        high = _at(ordered, min(count - 1, int(place) + 1))
        return round(low + (high - low) * (place - int(place)))


def _at(ordered: list[tuple[int, int]], rank: int) -> int:
    """Return the value at ``rank`` of values that each stand there ``weight`` times."""
    for gap, weight in ordered:
        rank -= weight
        if rank < 0:
            return gap
    return ordered[-1][0]
