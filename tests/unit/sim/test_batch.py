from __future__ import annotations

from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from tokenweir.sim.batch import Batch


@dataclass(eq=False)
class Guest:
    reserved_tokens: int


def test_the_first_in_line_is_not_overtaken_by_one_that_would_fit() -> None:
    batch: Batch[Guest] = Batch(max_running=0, max_waiting=0, kv_tokens=100)
    big, bigger, small = Guest(80), Guest(90), Guest(10)
    assert batch.offer(big)
    assert not batch.offer(bigger)
    assert not batch.offer(small)
    batch.leave(big)
    assert batch.admit() == [bigger, small]


def test_one_that_leaves_the_queue_lets_the_next_in() -> None:
    batch: Batch[Guest] = Batch(max_running=0, max_waiting=0, kv_tokens=100)
    batch.offer(Guest(80))
    blocking, small = Guest(90), Guest(10)
    batch.offer(blocking)
    batch.offer(small)
    batch.withdraw(blocking)
    assert batch.admit() == [small]


def test_what_can_never_fit_is_known_at_once() -> None:
    batch: Batch[Guest] = Batch(max_running=0, max_waiting=0, kv_tokens=100)
    assert batch.fits(Guest(100))
    assert not batch.fits(Guest(101))
    assert Batch[Guest](max_running=0, max_waiting=0, kv_tokens=0).fits(Guest(10**9))


@given(
    st.lists(st.tuples(st.booleans(), st.integers(min_value=1, max_value=50)), max_size=60),
    st.integers(min_value=0, max_value=4),
    st.sampled_from([0, 50, 120]),
)
def test_limits_hold_and_order_is_kept(
    moves: list[tuple[bool, int]], max_running: int, kv_tokens: int
) -> None:
    batch: Batch[Guest] = Batch(max_running=max_running, max_waiting=0, kv_tokens=kv_tokens)
    asked: list[Guest] = []
    admitted: list[Guest] = []
    running: list[Guest] = []
    for arrives, tokens in moves:
        if arrives:
            guest = Guest(tokens)
            asked.append(guest)
            fresh = [guest] if batch.offer(guest) else []
        elif running:
            batch.leave(running.pop(0))
            fresh = batch.admit()
        else:
            fresh = []
        admitted += fresh
        running += fresh
        assert batch.running == len(running)
        assert batch.used_tokens == sum(guest.reserved_tokens for guest in running)
        assert not max_running or batch.running <= max_running
        assert not kv_tokens or batch.used_tokens <= kv_tokens
    assert admitted == asked[: len(admitted)]
