"""A circuit breaker: stops trying what fails again and again, and tries once more after a while. Sans-IO.

::

    Closed ──failures within the window──▶ Open ──time──▶ HalfOpen ──proved──▶ Closed
                                            ▲                │
                                            └────failed──────┘
"""

from __future__ import annotations

from typing import TypeAlias, assert_never

import msgspec


class BreakerPolicy(msgspec.Struct, frozen=True, kw_only=True):
    """``failures`` within ``window_ns`` open the breaker for ``open_ns``."""

    failures: int
    window_ns: int
    open_ns: int


class Closed(msgspec.Struct, frozen=True, kw_only=True, tag="closed"):
    """Everything may go on. ``failed_at_ns`` are the failures that still count, oldest first."""

    failed_at_ns: tuple[int, ...] = ()


class Open(msgspec.Struct, frozen=True, kw_only=True, tag="open"):
    """Nothing is tried before ``until_ns``."""

    until_ns: int


class HalfOpen(msgspec.Struct, frozen=True, kw_only=True, tag="half_open"):
    """One trial runs since ``since_ns``; it decides."""

    since_ns: int


BreakerState: TypeAlias = Closed | Open | HalfOpen


class Breaker:
    """Counts failures. Times are monotonic nanoseconds and do not go back."""

    __slots__ = ("_policy", "state")

    def __init__(self, policy: BreakerPolicy) -> None:
        self._policy = policy
        self.state: BreakerState = Closed()

    def failed(self, now_ns: int) -> BreakerState:
        """Note a failure and return the state after it."""
        match self.state:
            case Closed(failed_at_ns=before):
                counted = (*self._recent(before, now_ns), now_ns)
                enough = len(counted) >= self._policy.failures
                self.state = self._opened(now_ns) if enough else Closed(failed_at_ns=counted)
            case HalfOpen():
                self.state = self._opened(now_ns)
            case Open():
                pass
            case _:
                assert_never(self.state)
        return self.state

    def proved(self) -> BreakerState:
        """Note that what was tried works, and return the state after it. Old failures of Closed still count."""
        match self.state:
            case HalfOpen():
                self.state = Closed()
            case Closed() | Open():
                pass
            case _:
                assert_never(self.state)
        return self.state

    def may_try(self, now_ns: int) -> bool:
        """Return whether to try now; an Open breaker whose time is over becomes HalfOpen by this."""
        match self.state:
            case Open(until_ns=until) if now_ns >= until:
                self.state = HalfOpen(since_ns=now_ns)
                return True
            case Open():
                return False
            case Closed() | HalfOpen():
                return True
            case _:
                assert_never(self.state)

    def recent_failures(self, now_ns: int) -> int:
        """Return how many failures lie within the window; 0 unless Closed."""
        return len(self._recent(self.state.failed_at_ns, now_ns)) if isinstance(self.state, Closed) else 0

    def _opened(self, now_ns: int) -> Open:
        return Open(until_ns=now_ns + self._policy.open_ns)

    def _recent(self, failed_at_ns: tuple[int, ...], now_ns: int) -> tuple[int, ...]:
        return tuple(at for at in failed_at_ns if now_ns - at < self._policy.window_ns)
