from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from tokenweir.bench.engine.stamps import clock_offset
from tokenweir.bench.finishing.clocks import steps, to_monotonic

SECOND_NS = 1_000_000_000
EPOCH_NS = 1_700_000_000 * SECOND_NS


def test_stamps_become_monotonic_under_a_constant_offset() -> None:
    clocks = np.array([[10 * SECOND_NS, EPOCH_NS], [20 * SECOND_NS, EPOCH_NS]])
    times = np.array([9, 10, 15, 25], np.int64) * SECOND_NS
    assert to_monotonic(times + EPOCH_NS, clocks).tolist() == times.tolist()


@given(st.integers(-400, 400), st.lists(st.integers(0, 60 * SECOND_NS), max_size=20))
def test_a_steady_drift_is_taken_out_to_the_nanosecond(parts_per_million: int, times: list[int]) -> None:
    def offset(monotonic: int) -> int:
        return EPOCH_NS + monotonic * parts_per_million // 1_000_000

    measured = [at * SECOND_NS // 2 for at in range(121)]
    clocks = np.array([[at, offset(at)] for at in measured])
    real = np.array([at + offset(at) for at in times], np.int64)
    found = to_monotonic(real, clocks)
    assert np.abs(found - np.array(times, np.int64)).max(initial=0) <= 2


def test_nothing_to_convert_is_nothing() -> None:
    assert to_monotonic(np.zeros(0, np.int64), np.zeros((0, 2), np.int64)).tolist() == []


@given(st.integers(-500, 500), st.integers(-40_000, 40_000))
def test_a_slewed_clock_makes_no_step(parts_per_million: int, jitter: int) -> None:
    at = np.arange(20, dtype=np.int64) * SECOND_NS
    offset = EPOCH_NS + at * parts_per_million // 1_000_000
    offset[::2] += jitter
    assert steps(np.stack([at, offset], axis=1)) == 0


@given(st.sampled_from([-1, 1]), st.integers(600_000, 10 * SECOND_NS), st.integers(1, 19))
def test_a_jump_is_one_step(sign: int, size: int, where: int) -> None:
    at = np.arange(20, dtype=np.int64) * SECOND_NS
    offset = np.full(20, EPOCH_NS)
    offset[where:] += sign * size
    assert steps(np.stack([at, offset], axis=1)) == 1


def test_one_measurement_or_none_shows_no_step() -> None:
    assert steps(np.zeros((0, 2), np.int64)) == 0
    assert steps(np.array([[5, 7]], np.int64)) == 0


def test_the_offset_is_that_of_the_tightest_bracket() -> None:
    monotonic = iter([0, 1000, 2000, 2010, 5000, 9000])
    wall = iter([100_500, 102_005, 107_000])
    assert clock_offset(lambda: next(monotonic), lambda: next(wall), tries=3) == (2005, 100_000)


def test_the_offset_of_this_machine_is_its_wall_clock_less_its_monotonic_one() -> None:
    first, offset = clock_offset()
    second, again = clock_offset()
    assert second >= first
    assert abs(again - offset) < SECOND_NS
