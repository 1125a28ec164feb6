from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tokenweir.gateway.brownout.ladder import (
    Easing,
    LadderState,
    Normal,
    Pressed,
    Threshold,
    after,
    rung_of,
)

S = 1_000_000_000


@st.composite
def thresholds(draw: st.DrawFn) -> list[Threshold]:
    found: list[Threshold] = []
    for _ in range(draw(st.integers(1, 5))):
        enter = draw(st.floats(0.1, 4))
        share = draw(st.floats(0, 0.95))
        found.append(Threshold(enter=enter, leave=enter * share, dwell_ns=draw(st.integers(0, 20)) * S))
    return found


LOOKS = st.lists(st.tuples(st.floats(0, 6), st.integers(0, 5 * S)), max_size=80)


def walk(
    ladder: list[Threshold], looks: list[tuple[float, int]]
) -> list[tuple[int, float, LadderState, LadderState]]:
    """Return (time, pressure, state before, state after) for each look."""
    state: LadderState = Normal()
    now, found = 0, list[tuple[int, float, LadderState, LadderState]]()
    for pressure, passes in looks:
        now += passes
        next_state = after(state, pressure, now, ladder)
        found.append((now, pressure, state, next_state))
        state = next_state
    return found


@given(thresholds(), LOOKS)
def test_a_look_moves_by_one_rung_and_only_for_a_reason(
    ladder: list[Threshold], looks: list[tuple[float, int]]
) -> None:
    for _, pressure, before, then in walk(ladder, looks):
        old, new = rung_of(before), rung_of(then)
        assert 0 <= new <= len(ladder)
        assert abs(new - old) <= 1
        if new > old:
            assert pressure >= ladder[old].enter
        if new < old:
            assert pressure <= ladder[old - 1].leave


@given(thresholds(), LOOKS)
def test_a_rung_holds_for_its_dwell_and_is_left_only_after_calm(
    ladder: list[Threshold], looks: list[tuple[float, int]]
) -> None:
    entered, seen = 0, list[tuple[int, float]]()
    for now, pressure, before, then in walk(ladder, looks):
        old, new = rung_of(before), rung_of(then)
        seen.append((now, pressure))
        if old and new != old:
            dwell = ladder[old - 1].dwell_ns
            assert now - entered >= dwell
            if new < old:
                lately = [wait for at, wait in seen if at > now - dwell and at > entered]
                assert all(wait <= ladder[old - 1].leave for wait in lately)
        if new != old:
            entered = now


@given(thresholds(), LOOKS, st.floats(0, 1))
def test_between_the_thresholds_nothing_changes(
    ladder: list[Threshold], looks: list[tuple[float, int]], share: float
) -> None:
    state: LadderState = Normal()
    now = 0
    for pressure, passes in looks:
        now += passes
        state = after(state, pressure, now, ladder)
    rung = rung_of(state)
    low = ladder[rung - 1].leave if rung else 0.0
    high = ladder[rung].enter if rung < len(ladder) else 9.0
    between = low + (high - low) * share
    if not low < between < high:
        return
    for passes in (0, S, 100 * S):
        now += passes
        state = after(state, between, now, ladder)
        assert rung_of(state) == rung
        assert not isinstance(state, Easing)


@given(thresholds(), LOOKS)
def test_it_always_recovers_and_always_reaches_the_top(
    ladder: list[Threshold], looks: list[tuple[float, int]]
) -> None:
    state: LadderState = Normal()
    now = 0
    for pressure, passes in looks:
        now += passes
        state = after(state, pressure, now, ladder)
    for _ in range(2 * len(ladder) + 2):
        now += 21 * S
        state = after(state, 0.0, now, ladder)
    assert state == Normal()
    for _ in range(len(ladder)):
        now += 21 * S
        state = after(state, 5.0, now, ladder)
    assert state == Pressed(rung=len(ladder), since_ns=now)


def test_the_way_up_and_down_in_one_story() -> None:
    ladder = [
        Threshold(enter=1.0, leave=0.7, dwell_ns=10 * S),
        Threshold(enter=2.0, leave=1.0, dwell_ns=5 * S),
    ]
    story: list[tuple[int, float, LadderState]] = [
        (0, 0.99, Normal()),
        (1, 3.0, Pressed(rung=1, since_ns=1 * S)),
        (9, 3.0, Pressed(rung=1, since_ns=1 * S)),
        (11, 3.0, Pressed(rung=2, since_ns=11 * S)),
        (12, 0.9, Easing(rung=2, since_ns=11 * S, calm_since_ns=12 * S)),
        (13, 1.1, Pressed(rung=2, since_ns=11 * S)),
        (14, 0.5, Easing(rung=2, since_ns=11 * S, calm_since_ns=14 * S)),
        (19, 0.5, Easing(rung=1, since_ns=19 * S, calm_since_ns=19 * S)),
        (28, 0.5, Easing(rung=1, since_ns=19 * S, calm_since_ns=19 * S)),
        (29, 0.5, Normal()),
    ]
    state: LadderState = Normal()
    for second, pressure, expected in story:
        state = after(state, pressure, second * S, ladder)
        assert state == expected, second
