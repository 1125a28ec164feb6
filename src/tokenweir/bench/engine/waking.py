"""When the capture sleeps though it could be woken, and when it stays awake though it could sleep.

It dozes when reads come so fast that being woken for each would cost more than reading it. It spins for the last
moment before a request is due, because who sleeps is woken late: on a virtual machine 0.03 ms as a rule and 0.2 ms at
the 99th percentile.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

_DOZE_READS: Final = 10_000
"""Reads a second from which dozing pays."""
_DOZE_GAP_NS: Final = 2_500_000
"""Between two reads of a stream there must be so much that a doze never joins them."""
_DOZE_SHARE: Final = 0.05
"""Of that gap."""
_DOZE_NS: Final = (200_000, 1_000_000)
_LATE_NS: Final = 100_000
"""How much longer than twice what it was asked for a doze may last."""

_SPIN_NS: Final = 300_000
_SPIN_SHARE: Final = 0.5
"""Of the mean time between two requests; the rest is for reading, and for the finishing process."""
EMPTY_POLL_NS: Final = 20_000
"""Asking the poller in vain takes less; when it took more, somebody else had the core in between."""
_LOOK_NS: Final = 500_000_000
_IDLE_LEAST: Final = 0.1
"""Of one core: less idle time than that in the whole machine is left to those who want it."""
_UPTIME: Final = Path("/proc/uptime")


class Doze:
    """How long to sleep between reads (``seconds``, 0 for not at all) if nothing is due for ``room_ns``.

    The kernel has stamped what comes, so reading it a little later changes no measurement as long as a stream's reads
    lie far enough apart.
    """

    __slots__ = ("_at_ns", "_reads", "room_ns", "seconds")

    def __init__(self) -> None:
        self._at_ns = self._reads = 0
        self.seconds = 0.0
        self.room_ns = 0

    def tick(self, now_ns: int, reads: int, streams: int) -> None:
        """Reconsider, some times a second; ``reads`` counts all so far."""
        new, elapsed = reads - self._reads, now_ns - self._at_ns
        self._reads, self._at_ns = reads, now_ns
        gap = elapsed * max(streams, 1) / max(new, 1)
        if new * 1_000_000_000 < _DOZE_READS * elapsed or gap < _DOZE_GAP_NS:
            self.seconds = 0.0
            return
        least, most = _DOZE_NS
        doze = min(max(gap * _DOZE_SHARE, least), most)
        self.seconds = doze / 1e9
        self.room_ns = round(2 * doze) + _LATE_NS


class Spin:
    """How long before a due time to stay awake (``lead_ns``), and the CPU time that went into it (``spent_ns``).

    That is idle time by choice, so it is counted apart. It is bounded to a share of the time between requests, and
    taken only where the machine has idle time left and says so (Linux).
    """

    __slots__ = ("_idle_s", "_look_ns", "_most_ns", "lead_ns", "spent_ns")

    def __init__(self, schedule: Sequence[int] | None = None) -> None:
        self._most_ns = 0
        if schedule is not None and len(schedule) > 1:
            gap = (schedule[-1] - schedule[0]) / (len(schedule) - 1)
            self._most_ns = min(_SPIN_NS, round(gap * _SPIN_SHARE))
        self._idle_s = _idle_s()
        self._look_ns = 0
        self.lead_ns = self._most_ns if self._idle_s else 0
        self.spent_ns = 0

    def tick(self, now_ns: int) -> None:
        """Reconsider, some times a second."""
        if not self._most_ns or now_ns < self._look_ns:
            return
        before, self._idle_s = self._idle_s, _idle_s()
        elapsed_s = (now_ns - self._look_ns + _LOOK_NS) / 1e9
        if self._look_ns:
            self.lead_ns = self._most_ns if self._idle_s - before >= _IDLE_LEAST * elapsed_s else 0
        self._look_ns = now_ns + _LOOK_NS


def _idle_s() -> float:
    """Return how long the cores have been idle, summed over them; 0 where that is unknown."""
    try:
        return float(_UPTIME.read_bytes().split()[1])
    except (OSError, IndexError, ValueError):
        return 0.0
