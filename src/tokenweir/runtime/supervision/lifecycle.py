"""The life of the engine's process as a state machine: what happened goes in, what to do comes out. Sans-IO.

::

                  ┌──────────┬─ killed ─┐
                  │          │          ▼
    Stopped ─▶ Starting ─▶ Ready ─▶ Draining ─▶ Unhealthy
                  │          │          │            │
                  └──────────┴── exited ┴────────────┘
                                   │
                    BackingOff ◀───┴──▶ Broken           both ─▶ Starting, with the next epoch
    any ─▶ Stopping ─▶ Stopped

Every process has an epoch of its own. What is reported of another epoch than the present one is ignored.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias, assert_never

import msgspec

from tokenweir.core.breaker import Breaker, Open
from tokenweir.core.units import format_duration


class LifePolicy(msgspec.Struct, frozen=True, kw_only=True):
    """How long what may take, and how much memory the process may have.

    ``slow_stall_ns`` replaces ``stall_ns`` while the device does what is known to take long, such as a load.
    ``proof_ns`` is how long a process must have been ready to prove that it works.
    """

    startup_ns: int
    stall_ns: int
    slow_stall_ns: int
    drain_ns: int
    delay_ns: int
    delay_max_ns: int
    limit_bytes: int
    proof_ns: int


class Stopped(msgspec.Struct, frozen=True, kw_only=True, tag="stopped"):
    """There is no process, and none is wanted."""


class Starting(msgspec.Struct, frozen=True, kw_only=True, tag="starting"):
    """A process is coming up and must be ready by ``until_ns``. ``pid`` is 0 before it is known."""

    epoch: int
    until_ns: int
    pid: int = 0


class Ready(msgspec.Struct, frozen=True, kw_only=True, tag="ready"):
    """The process answers."""

    epoch: int
    pid: int
    since_ns: int


class Draining(msgspec.Struct, frozen=True, kw_only=True, tag="draining"):
    """The process finishes what it has, takes nothing new, and is ended by ``until_ns``."""

    epoch: int
    pid: int
    until_ns: int
    reason: str


class Unhealthy(msgspec.Struct, frozen=True, kw_only=True, tag="unhealthy"):
    """The process has been killed and is not gone yet."""

    epoch: int
    pid: int
    reason: str


class BackingOff(msgspec.Struct, frozen=True, kw_only=True, tag="backing_off"):
    """The process is gone; the next one starts at ``until_ns``."""

    until_ns: int
    reason: str


class Broken(msgspec.Struct, frozen=True, kw_only=True, tag="broken"):
    """Too many processes were lost: the circuit breaker is open until ``until_ns``."""

    until_ns: int
    reason: str


class Stopping(msgspec.Struct, frozen=True, kw_only=True, tag="stopping"):
    """The process was asked to end, and is killed at ``until_ns``."""

    epoch: int
    pid: int
    until_ns: int


LifeState: TypeAlias = Stopped | Starting | Ready | Draining | Unhealthy | BackingOff | Broken | Stopping


class Spawn(msgspec.Struct, frozen=True, kw_only=True):
    """Start a process."""

    epoch: int


class Drain(msgspec.Struct, frozen=True, kw_only=True):
    """Give the process nothing new, and report when it has finished."""

    epoch: int
    reason: str


class Shutdown(msgspec.Struct, frozen=True, kw_only=True):
    """Ask the process to end."""

    epoch: int


class Kill(msgspec.Struct, frozen=True, kw_only=True):
    """Kill the process, with all that it started."""

    epoch: int
    reason: str


Action: TypeAlias = Spawn | Drain | Shutdown | Kill


class Lifecycle:
    """Decides. Times are monotonic nanoseconds and do not go back; ``draw`` returns a number from 0 to 1."""

    __slots__ = ("_breaker", "_draw", "_heard_ns", "_policy", "_proved", "epoch", "restarts", "slow", "state")

    def __init__(self, policy: LifePolicy, breaker: Breaker, draw: Callable[[], float]) -> None:
        self._policy = policy
        self._breaker = breaker
        self._draw = draw
        self._heard_ns = 0
        self._proved = False
        self.state: LifeState = Stopped()
        self.epoch = 0
        self.restarts = 0
        # How many things that are known to take long the device is at.
        self.slow = 0

    def start(self, now_ns: int) -> Sequence[Action]:
        """Want a process; without effect unless Stopped."""
        return self._spawn(now_ns) if isinstance(self.state, Stopped) else ()

    def spawned(self, epoch: int, pid: int) -> Sequence[Action]:
        """The process was started."""
        if isinstance(self.state, Starting) and self.state.epoch == epoch:
            self.state = msgspec.structs.replace(self.state, pid=pid)
        elif isinstance(self.state, Stopping) and self.state.epoch == epoch:
            self.state = msgspec.structs.replace(self.state, pid=pid)
            return (Shutdown(epoch=epoch),)
        return ()

    def became_ready(self, epoch: int, now_ns: int) -> Sequence[Action]:
        """The process answered its first calls."""
        if isinstance(self.state, Starting) and self.state.epoch == epoch:
            self._heard_ns = now_ns
            self._proved = False
            self.state = Ready(epoch=epoch, pid=self.state.pid, since_ns=now_ns)
        return ()

    def beat(self, epoch: int, *, rss_bytes: int, stalled_ns: int, now_ns: int) -> Sequence[Action]:
        """The process answered a heartbeat: its memory, and for how long its device thread has not come round."""
        if not isinstance(self.state, Ready | Draining) or self.state.epoch != epoch:
            return ()
        self._heard_ns = now_ns
        if stalled_ns >= self._stall_ns:
            return self._kill(f"its device thread has not come round for {format_duration(stalled_ns)}")
        if isinstance(self.state, Draining):
            return ()
        if not self._proved and now_ns - self.state.since_ns >= self._policy.proof_ns:
            self._proved = True
            self._breaker.proved()
        if rss_bytes > self._policy.limit_bytes:
            limit = self._policy.limit_bytes
            return self.drain(f"it holds {rss_bytes:,} bytes of memory; the limit is {limit:,}", now_ns)
        return ()

    def drain(self, reason: str, now_ns: int) -> Sequence[Action]:
        """Let the process finish what it has, then replace it; without effect unless Ready."""
        if not isinstance(self.state, Ready):
            return ()
        epoch, pid = self.state.epoch, self.state.pid
        self.state = Draining(epoch=epoch, pid=pid, until_ns=now_ns + self._policy.drain_ns, reason=reason)
        return (Drain(epoch=epoch, reason=reason),)

    def drained(self, epoch: int) -> Sequence[Action]:
        """The process has finished what it had."""
        if isinstance(self.state, Draining) and self.state.epoch == epoch:
            return self._kill(self.state.reason)
        return ()

    def condemn(self, epoch: int, reason: str) -> Sequence[Action]:
        """The process cannot be talked to any more, or did not get ready: end it."""
        if isinstance(self.state, Starting | Ready | Draining) and self.state.epoch == epoch:
            return self._kill(reason)
        return ()

    def exited(self, epoch: int, reason: str, now_ns: int) -> Sequence[Action]:
        """The process is gone."""
        match self.state:
            case Stopping() if self.state.epoch == epoch:
                self.state = Stopped()
            case Unhealthy() if self.state.epoch == epoch:
                # Why it was killed tells more than that it was.
                self._lost(self.state.reason, now_ns)
            case Starting() | Ready() | Draining() if self.state.epoch == epoch:
                self._lost(reason, now_ns)
            case _:
                pass
        return ()

    def stop(self, now_ns: int) -> Sequence[Action]:
        """Want no process any more."""
        match self.state:
            case Stopped() | Stopping():
                return ()
            case BackingOff() | Broken():
                self.state = Stopped()
                return ()
            case Unhealthy(epoch=epoch, pid=pid):
                self.state = Stopping(epoch=epoch, pid=pid, until_ns=now_ns)
                return ()
            case (
                Starting(epoch=epoch, pid=pid) | Ready(epoch=epoch, pid=pid) | Draining(epoch=epoch, pid=pid)
            ):
                self.state = Stopping(epoch=epoch, pid=pid, until_ns=now_ns + self._policy.stall_ns)
                return (Shutdown(epoch=epoch),) if pid else ()
            case _:
                assert_never(self.state)

    def tick(self, now_ns: int) -> Sequence[Action]:
        """Time has passed."""
        wake = self.next_wake_ns()
        if wake is None or now_ns < wake:
            return ()
        match self.state:
            case Starting():
                return self._kill(f"it was not ready within {format_duration(self._policy.startup_ns)}")
            case Ready():
                return self._kill(f"no heartbeat for {format_duration(now_ns - self._heard_ns)}")
            case Draining(reason=reason):
                return self._kill(reason)
            case BackingOff() | Broken():
                return self._spawn(now_ns)
            case Stopping(epoch=epoch):
                self.state = msgspec.structs.replace(self.state, until_ns=now_ns + self._policy.stall_ns)
                return (Kill(epoch=epoch, reason="it did not end when asked to"),)
            case Stopped() | Unhealthy():
                return ()
            case _:
                assert_never(self.state)

    def next_wake_ns(self) -> int | None:
        """Return when :meth:`tick` has something to do, if nothing else happens; ``None``: never."""
        match self.state:
            case (
                Starting(until_ns=until)
                | BackingOff(until_ns=until)
                | Broken(until_ns=until)
                | Stopping(until_ns=until)
            ):
                return until
            case Draining(until_ns=until):
                return min(until, self._heard_ns + self._stall_ns)
            case Ready():
                return self._heard_ns + self._stall_ns
            case Stopped() | Unhealthy():
                return None
            case _:
                assert_never(self.state)

    @property
    def _stall_ns(self) -> int:
        return self._policy.slow_stall_ns if self.slow else self._policy.stall_ns

    def _spawn(self, now_ns: int) -> Sequence[Action]:
        if not self._breaker.may_try(now_ns):
            until = self._breaker.state.until_ns if isinstance(self._breaker.state, Open) else now_ns
            self.state = Broken(until_ns=until, reason="too many failures")
            return ()
        self.epoch += 1
        self.restarts = self.epoch - 1
        self.state = Starting(epoch=self.epoch, until_ns=now_ns + self._policy.startup_ns)
        return (Spawn(epoch=self.epoch),)

    def _kill(self, reason: str) -> Sequence[Action]:
        if not isinstance(self.state, Starting | Ready | Draining):
            return ()
        epoch = self.state.epoch
        self.state = Unhealthy(epoch=epoch, pid=self.state.pid, reason=reason)
        return (Kill(epoch=epoch, reason=reason),)

    def _lost(self, reason: str, now_ns: int) -> None:
        match self._breaker.failed(now_ns):
            case Open(until_ns=until):
                self.state = Broken(until_ns=until, reason=reason)
            case _:
                self.state = BackingOff(until_ns=now_ns + self._delay_ns(now_ns), reason=reason)

    def _delay_ns(self, now_ns: int) -> int:
        """Return the first delay doubled for each further failure of the window, less a random quarter at most."""
        doublings = min(max(self._breaker.recent_failures(now_ns) - 1, 0), 62)
        full = min(self._policy.delay_ns << doublings, self._policy.delay_max_ns)
        return full - int(full * 0.25 * self._draw())
