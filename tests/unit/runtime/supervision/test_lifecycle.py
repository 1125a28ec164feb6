from __future__ import annotations

from collections.abc import Sequence

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenweir.core.breaker import Breaker, BreakerPolicy, Closed, HalfOpen, Open
from tokenweir.runtime.supervision.lifecycle import (
    Action,
    BackingOff,
    Broken,
    Drain,
    Draining,
    Kill,
    Lifecycle,
    LifePolicy,
    Ready,
    Shutdown,
    Spawn,
    Starting,
    Stopped,
    Stopping,
    Unhealthy,
)

POLICY = LifePolicy(
    startup_ns=1_000,
    stall_ns=300,
    slow_stall_ns=5_000,
    drain_ns=400,
    delay_ns=100,
    delay_max_ns=1_500,
    limit_bytes=1_000_000,
    proof_ns=200,
)
BREAKER = BreakerPolicy(failures=3, window_ns=100_000, open_ns=10_000)


def machine(
    *, failures: int = 3, draw: float = 0.0, policy: LifePolicy = POLICY
) -> tuple[Lifecycle, Breaker]:
    breaker = Breaker(msgspec.structs.replace(BREAKER, failures=failures))
    return Lifecycle(policy, breaker, lambda: draw), breaker


def up(life: Lifecycle, now: int = 0) -> None:
    """Bring the next process up."""
    if isinstance(life.state, Stopped):
        life.start(now)
    else:
        life.tick(now)
    life.spawned(life.epoch, 1_000 + life.epoch)
    life.became_ready(life.epoch, now)
    assert life.state == Ready(epoch=life.epoch, pid=1_000 + life.epoch, since_ns=now)


def test_a_process_is_started_and_becomes_ready() -> None:
    life, _ = machine()
    assert life.start(0) == (Spawn(epoch=1),)
    assert life.state == Starting(epoch=1, until_ns=1_000)
    assert life.start(0) == ()
    life.spawned(1, 77)
    life.became_ready(1, 50)
    assert life.state == Ready(epoch=1, pid=77, since_ns=50)
    assert life.restarts == 0


def test_one_that_is_not_ready_in_time_is_killed_and_the_reason_kept() -> None:
    life, _ = machine()
    life.start(0)
    life.spawned(1, 77)
    assert life.tick(999) == ()
    assert life.tick(1_000) == (Kill(epoch=1, reason="it was not ready within 1us"),)
    assert isinstance(life.state, Unhealthy)
    life.exited(1, "it was ended by SIGKILL", 1_010)
    assert life.state == BackingOff(until_ns=1_110, reason="it was not ready within 1us")


def test_silence_kills_and_any_heartbeat_postpones_it() -> None:
    life, _ = machine()
    up(life)
    life.beat(1, rss_bytes=1, stalled_ns=0, now_ns=250)
    assert life.tick(549) == ()
    assert life.tick(550) == (Kill(epoch=1, reason="no heartbeat for 300ns"),)


def test_a_device_thread_that_stands_still_is_killed() -> None:
    life, _ = machine()
    up(life)
    assert life.beat(1, rss_bytes=1, stalled_ns=299, now_ns=10) == ()
    (kill,) = life.beat(1, rss_bytes=1, stalled_ns=300, now_ns=20)
    assert isinstance(kill, Kill)
    assert "device thread has not come round for 300ns" in kill.reason


def test_while_the_device_does_something_slow_it_may_be_away_for_longer() -> None:
    life, _ = machine()
    up(life)
    life.slow += 1
    assert life.beat(1, rss_bytes=1, stalled_ns=4_999, now_ns=10) == ()
    assert life.next_wake_ns() == 5_010
    life.slow -= 1
    assert life.next_wake_ns() == 310
    assert life.beat(1, rss_bytes=1, stalled_ns=4_999, now_ns=20) != ()


def test_too_much_memory_drains_then_replaces() -> None:
    life, _ = machine()
    up(life)
    assert life.beat(1, rss_bytes=1_000_000, stalled_ns=0, now_ns=10) == ()
    (drain,) = life.beat(1, rss_bytes=1_000_001, stalled_ns=0, now_ns=20)
    assert isinstance(drain, Drain)
    assert "1,000,001 bytes" in drain.reason
    assert "1,000,000" in drain.reason
    assert life.beat(1, rss_bytes=2_000_000, stalled_ns=0, now_ns=30) == ()
    assert life.drained(1) == (Kill(epoch=1, reason=drain.reason),)
    life.exited(1, "it was ended by SIGKILL", 40)
    assert life.state == BackingOff(until_ns=140, reason=drain.reason)


def test_a_drain_that_takes_too_long_is_cut() -> None:
    life, _ = machine()
    up(life)
    life.drain("enough", 10)
    for now in (200, 400):
        life.beat(1, rss_bytes=1, stalled_ns=0, now_ns=now)
    assert life.tick(409) == ()
    assert life.tick(410) == (Kill(epoch=1, reason="enough"),)


def test_delays_double_and_have_a_bound_and_a_jitter() -> None:
    life, _ = machine(failures=100)
    delays: list[int] = []
    now = 0
    for _ in range(6):
        up(life, now)
        life.exited(life.epoch, "gone", now)
        assert isinstance(life.state, BackingOff)
        delays.append(life.state.until_ns - now)
        now = life.state.until_ns
    assert delays == [100, 200, 400, 800, 1_500, 1_500]
    jittered, _ = machine(draw=1.0)
    up(jittered)
    jittered.exited(1, "gone", 0)
    assert jittered.state == BackingOff(until_ns=75, reason="gone")


def test_too_many_losses_open_the_breaker_and_a_proved_trial_closes_it() -> None:
    life, breaker = machine()
    now = 0
    for _ in range(3):
        up(life, now)
        life.exited(life.epoch, "gone", now)
        now = getattr(life.state, "until_ns", now)
    assert life.state == Broken(until_ns=10_300, reason="gone")
    assert life.tick(10_299) == ()
    up(life, 10_300)
    assert breaker.state == HalfOpen(since_ns=10_300)
    life.beat(life.epoch, rss_bytes=1, stalled_ns=0, now_ns=10_400)
    assert breaker.state == HalfOpen(since_ns=10_300)
    life.beat(life.epoch, rss_bytes=1, stalled_ns=0, now_ns=10_500)
    assert breaker.state == Closed()


def test_a_trial_that_fails_opens_it_again() -> None:
    life, breaker = machine(failures=1)
    up(life)
    life.exited(1, "gone", 0)
    up(life, 10_000)
    life.exited(2, "gone again", 10_010)
    assert breaker.state == Open(until_ns=20_010)
    assert life.state == Broken(until_ns=20_010, reason="gone again")


def test_stopping_asks_then_kills() -> None:
    life, _ = machine()
    up(life)
    assert life.stop(10) == (Shutdown(epoch=1),)
    assert life.tick(309) == ()
    assert life.tick(310) == (Kill(epoch=1, reason="it did not end when asked to"),)
    life.exited(1, "it was ended by SIGKILL", 320)
    assert life.state == Stopped()
    assert life.next_wake_ns() is None


def test_stopping_before_the_process_is_there_ends_it_when_it_comes() -> None:
    life, _ = machine()
    life.start(0)
    assert life.stop(5) == ()
    assert life.spawned(1, 77) == (Shutdown(epoch=1),)
    assert life.state == Stopping(epoch=1, pid=77, until_ns=305)


def test_stopping_between_two_processes_starts_none() -> None:
    life, _ = machine()
    up(life)
    life.exited(1, "gone", 10)
    life.stop(20)
    assert life.state == Stopped()
    assert life.tick(10_000_000) == ()


@pytest.mark.parametrize("state", ["starting", "ready", "draining"])
def test_a_process_that_cannot_be_talked_to_is_ended(state: str) -> None:
    life, _ = machine()
    life.start(0)
    life.spawned(1, 77)
    if state != "starting":
        life.became_ready(1, 1)
    if state == "draining":
        life.drain("memory", 2)
    assert life.condemn(1, "garbage") == (Kill(epoch=1, reason="garbage"),)
    assert life.condemn(1, "garbage") == ()


class Simulation:
    """Plays the world around a lifecycle: at most one process, which obeys or does not."""

    def __init__(self) -> None:
        self.life, self.breaker = machine()
        self.now = 0
        self.alive: int | None = None
        self.doomed = False
        self.stopped = False
        self.spawned: list[int] = []

    def take(self, actions: Sequence[Action]) -> None:
        for action in actions:
            if isinstance(action, Spawn):
                assert self.alive is None, "two processes at once"
                assert not self.stopped, "a process nobody wants"
                assert action.epoch == (self.spawned[-1] if self.spawned else 0) + 1
                self.spawned.append(action.epoch)
                self.alive, self.doomed = action.epoch, False
            else:
                assert action.epoch == self.alive, "an order to a process that is not there"
                self.doomed = self.doomed or isinstance(action, Kill)

    def step(self, what: str, by: int, *, stale: bool) -> None:
        life, now = self.life, self.now
        epoch = life.epoch - stale
        before = life.state
        match what:
            case "later":
                self.now += by
                self.take(life.tick(self.now))
            case "spawned":
                self.take(life.spawned(epoch, 1_000 + epoch))
            case "ready":
                self.take(life.became_ready(epoch, now))
            case "beat":
                self.take(life.beat(epoch, rss_bytes=by * 1_000, stalled_ns=by // 4, now_ns=now))
            case "drained":
                self.take(life.drained(epoch))
            case "condemn":
                self.take(life.condemn(epoch, "garbage"))
            case "exited":
                if self.alive == epoch:
                    self.alive = None
                self.take(life.exited(epoch, "gone", now))
            case _:
                self.stopped = True
                self.take(life.stop(now))
        if stale and what not in {"later", "stop"}:
            assert life.state == before, "a report of an earlier process counted"

    def check(self) -> None:
        life = self.life
        if isinstance(life.state, Stopped | BackingOff | Broken):
            assert self.alive is None
        else:
            assert self.alive == life.epoch
        if isinstance(life.state, Unhealthy):
            assert self.doomed
        waits = not isinstance(life.state, Stopped | Unhealthy)
        assert (life.next_wake_ns() is not None) == waits
        if isinstance(life.state, Broken):
            assert isinstance(self.breaker.state, Open)


STEPS = st.tuples(
    st.sampled_from(["later", "spawned", "ready", "beat", "drained", "condemn", "exited", "stop", "later"]),
    st.integers(0, 1_500),
    st.integers(0, 9).map(lambda roll: roll == 0),
)


@given(st.lists(STEPS, max_size=80))
def test_whatever_happens_there_is_one_process_at_most_and_none_that_nobody_wants(
    steps: list[tuple[str, int, bool]],
) -> None:
    world = Simulation()
    world.take(world.life.start(0))
    for what, by, stale in steps:
        if what == "stop" and by > 300:
            continue
        world.step(what, by, stale=stale)
        world.check()


@given(st.lists(STEPS.filter(lambda step: step[0] != "stop"), max_size=40))
def test_from_wherever_it_is_it_comes_back_by_itself(steps: list[tuple[str, int, bool]]) -> None:
    world = Simulation()
    world.take(world.life.start(0))
    for what, by, stale in steps:
        world.step(what, by, stale=stale)
    life = world.life
    for _ in range(50):
        if isinstance(life.state, Ready):
            break
        if world.doomed and world.alive is not None:
            world.step("exited", 0, stale=False)
        elif isinstance(life.state, Starting):
            world.step("spawned", 0, stale=False)
            world.step("ready", 0, stale=False)
        elif isinstance(life.state, Draining):
            world.step("drained", 0, stale=False)
        else:
            wake = life.next_wake_ns()
            assert wake is not None
            world.step("later", max(wake - world.now, 0), stale=False)
    assert isinstance(life.state, Ready)
