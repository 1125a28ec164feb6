from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenweir.core.clock import VirtualClock
from tokenweir.gateway.brownout.signals import FirstTokens, quantile_of

S = 1_000_000_000


def waited(watch: FirstTokens, clock: VirtualClock, *waits: int) -> None:
    for wait in waits:
        ticket = watch.asked()
        clock.advance(wait)
        watch.came(ticket)


@given(st.lists(st.integers(0, 10**10), min_size=1, max_size=50), st.floats(0, 1))
def test_a_quantile_is_numpys(values: list[int], quantile: float) -> None:
    assert quantile_of(values, quantile) == pytest.approx(np.quantile(values, quantile), abs=1, rel=1e-9)


def test_only_the_window_counts_and_few_waits_say_nothing() -> None:
    clock = VirtualClock()
    watch = FirstTokens(clock, window_ns=10 * S)
    waited(watch, clock, 3 * S, S, S)
    assert watch.wait_ns(1.0, slow_ns=S, least=4) is None
    assert watch.wait_ns(1.0, slow_ns=S, least=3) == 3 * S
    clock.advance(8 * S + 1)
    assert watch.wait_ns(1.0, slow_ns=S, least=1) == S
    clock.advance(10 * S)
    assert watch.wait_ns(1.0, slow_ns=S, least=1) is None


def test_a_server_that_answers_nobody_is_seen() -> None:
    clock = VirtualClock()
    watch = FirstTokens(clock, window_ns=10 * S)
    first, second = watch.asked(), watch.asked()
    clock.advance(S)
    assert watch.wait_ns(0.5, slow_ns=2 * S, least=2) is None
    clock.advance(2 * S)
    watch.asked()
    assert watch.wait_ns(0.5, slow_ns=2 * S, least=2) == 3 * S
    watch.left(first)
    watch.came(second)
    watch.left(second)
    assert watch.wait_ns(0.5, slow_ns=2 * S, least=1) == 3 * S
