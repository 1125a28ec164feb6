"""When the next request may go: the schedule of an open loop, the free slots of a closed one, or both."""

from __future__ import annotations

from bisect import insort
from collections import deque
from collections.abc import Sequence

from tokenweir.poller import NEVER


class Pacing:
    """Gives out requests in order. Times are CLOCK_MONOTONIC nanoseconds, but ``schedule`` counts from the start.

    With ``slots`` 0 the loop is open: request *k* is due at ``schedule[k]`` whatever has been answered. Otherwise a
    request also needs a free slot, and is scheduled for when its slot became free.
    """

    __slots__ = ("_free", "_open", "_schedule", "_start_ns", "_stop_ns", "_total", "_turns", "due_ns", "next")

    def __init__(
        self, *, start_ns: int, total: int, schedule: Sequence[int] | None, slots: int, stop_ns: int = NEVER
    ) -> None:
        self._start_ns = start_ns
        self._schedule = schedule
        self._open = slots == 0
        self._turns = slots > 0 and schedule is None
        self._free = deque([start_ns] * slots)
        self._total = total
        self._stop_ns = stop_ns
        self.next = 0
        self.due_ns = NEVER
        self._look()

    def take(self, now_ns: int) -> tuple[int, int] | None:
        """Return (request, scheduled) when one is due, and move on."""
        if now_ns >= self._stop_ns:
            self.stop()
        if self.due_ns > now_ns:
            return None
        index = self.next
        scheduled = self.due_ns
        if not self._open:
            self._free.popleft()
        self.next = index + 1
        self._look()
        return index, scheduled

    def turn(self, now_ns: int) -> int:
        """Return the request that the slot just given back takes at once, or −1 when none may.

        The short way of ``release`` and ``take`` for a closed loop without a rate cap.
        """
        index = self.next
        if self._free or not self._turns or index >= self._total or now_ns >= self._stop_ns:
            return -1
        self.next = index + 1
        return index

    def release(self, at_ns: int) -> None:
        """Give a slot back. ``at_ns`` may lie in the future: the slot then rests until it."""
        if not self._open:
            if self._free and at_ns < self._free[-1]:
                insort(self._free, at_ns)
            else:
                self._free.append(at_ns)
            self._look()

    def stop(self) -> None:
        """Give out nothing more."""
        self._total = self.next
        self.due_ns = NEVER

    @property
    def exhausted(self) -> bool:
        """Whether nothing more will be given out."""
        return self.next >= self._total

    def _look(self) -> None:
        if self.next >= self._total:
            self.due_ns = NEVER
            return
        earliest = self._start_ns
        if self._schedule is not None:
            earliest += self._schedule[self.next]
        if self._open:
            self.due_ns = earliest
        elif self._free:
            self.due_ns = max(earliest, self._free[0])
        else:
            self.due_ns = NEVER
