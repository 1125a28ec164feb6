from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tokenweir.core.breaker import Breaker, BreakerPolicy, Closed, HalfOpen, Open

POLICY = BreakerPolicy(failures=3, window_ns=100, open_ns=50)


def test_it_opens_at_the_last_failure_that_is_allowed() -> None:
    breaker = Breaker(POLICY)
    assert breaker.failed(0) == Closed(failed_at_ns=(0,))
    assert breaker.failed(10) == Closed(failed_at_ns=(0, 10))
    assert breaker.may_try(10)
    assert breaker.failed(20) == Open(until_ns=70)
    assert not breaker.may_try(69)


def test_failures_older_than_the_window_do_not_count() -> None:
    breaker = Breaker(POLICY)
    breaker.failed(0)
    breaker.failed(60)
    assert breaker.recent_failures(99) == 2
    assert breaker.recent_failures(100) == 1
    assert breaker.failed(100) == Closed(failed_at_ns=(60, 100))


def test_one_trial_decides_after_its_time() -> None:
    breaker = Breaker(BreakerPolicy(failures=1, window_ns=100, open_ns=50))
    breaker.failed(0)
    assert breaker.may_try(50)
    assert breaker.state == HalfOpen(since_ns=50)
    assert breaker.failed(60) == Open(until_ns=110)
    assert breaker.may_try(110)
    assert breaker.proved() == Closed()


def test_a_success_while_closed_forgives_nothing() -> None:
    breaker = Breaker(POLICY)
    breaker.failed(0)
    assert breaker.proved() == Closed(failed_at_ns=(0,))


@given(st.lists(st.tuples(st.sampled_from(["fail", "prove", "try"]), st.integers(0, 80)), max_size=60))
def test_whatever_happens_it_is_open_for_its_time_and_only_after_enough_failures(
    steps: list[tuple[str, int]],
) -> None:
    breaker = Breaker(POLICY)
    now = 0
    failures: list[int] = []
    for what, later in steps:
        now += later
        before = breaker.state
        if what == "fail":
            failures.append(now)
            breaker.failed(now)
        elif what == "prove":
            breaker.proved()
        else:
            allowed = breaker.may_try(now)
            assert allowed == (not isinstance(before, Open) or now >= before.until_ns)
        if isinstance(before, Closed) and isinstance(breaker.state, Open):
            assert len([at for at in failures if now - at < POLICY.window_ns]) >= POLICY.failures
        if isinstance(breaker.state, Open) and not isinstance(before, Open):
            assert breaker.state.until_ns == now + POLICY.open_ns
        if isinstance(before, Open) and what != "try":
            assert breaker.state == before
