from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tokenweir.sim.wheel import SLOT_BITS, TimingWheel

SLOT_NS = 1 << SLOT_BITS
INSTANTS = st.integers(min_value=0, max_value=20 * SLOT_NS)


def drain(wheel: TimingWheel[int], now_ns: int, limit: int = 1 << 30) -> list[int]:
    taken: list[int] = []
    while (some := wheel.take(now_ns, limit)) is not None:
        assert 0 < len(some) <= limit
        taken += some
    return taken


@given(st.lists(INSTANTS), st.lists(INSTANTS), st.integers(min_value=1, max_value=5))
def test_every_item_comes_once_never_early_and_at_most_a_slot_late(
    dues: list[int], looks: list[int], limit: int
) -> None:
    wheel: TimingWheel[int] = TimingWheel()
    for index, due in enumerate(dues):
        wheel.add(due, index)
    seen: list[int] = []
    last = 0
    for now in [*sorted(looks), 22 * SLOT_NS]:
        for index in drain(wheel, now, limit):
            assert dues[index] <= now
            assert dues[index] + SLOT_NS > last, "it could have come at an earlier look"
            seen.append(index)
        last = now
    assert sorted(seen) == list(range(len(dues)))
    assert len(wheel) == 0
    assert wheel.next_ns() is None


@given(st.lists(INSTANTS, min_size=1))
def test_slots_come_in_order_of_time(dues: list[int]) -> None:
    wheel: TimingWheel[int] = TimingWheel()
    for due in dues:
        wheel.add(due, due >> SLOT_BITS)
    slots = drain(wheel, 1 << 40)
    assert slots == sorted(slots)


@given(st.lists(INSTANTS, min_size=1))
def test_the_next_time_is_the_end_of_the_earliest_slot(dues: list[int]) -> None:
    wheel: TimingWheel[int] = TimingWheel()
    for due in dues:
        wheel.add(due, due)
    following = wheel.next_ns()
    assert following is not None
    assert min(dues) < following <= min(dues) + SLOT_NS
    assert wheel.take(following - 1, 1) is None
    assert wheel.take(following, 1) is not None


def test_within_a_slot_the_first_added_comes_first() -> None:
    wheel: TimingWheel[str] = TimingWheel()
    for name in "abc":
        wheel.add(5, name)
    assert wheel.take(SLOT_NS, 2) == ["a", "b"]
    wheel.add(6, "d")
    assert wheel.take(SLOT_NS, 9) == ["c", "d"]
    assert wheel.take(SLOT_NS, 9) is None


def test_an_item_added_for_the_past_comes_at_the_next_look() -> None:
    wheel: TimingWheel[str] = TimingWheel()
    wheel.add(3 * SLOT_NS, "old")
    assert drain_names(wheel, 5 * SLOT_NS) == ["old"]
    wheel.add(0, "late")
    assert drain_names(wheel, 5 * SLOT_NS) == ["late"]


def drain_names(wheel: TimingWheel[str], now_ns: int) -> list[str]:
    return wheel.take(now_ns, 99) or []
