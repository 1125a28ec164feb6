from __future__ import annotations

import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenweir.core.errors import ConfigError
from tokenweir.sim.distributions import Table, counts, durations, geometric

MS = 1_000_000


def test_a_constant_is_one_value_with_or_without_its_name() -> None:
    assert durations("20ms", what="itl", seed=1) == durations("constant:20ms", what="itl", seed=2)
    assert durations("20ms", what="itl", seed=1).constant == 20 * MS


@pytest.mark.parametrize(
    ("text", "mean_ms", "deviation_ms"),
    [
        ("uniform:50ms..70ms", 60, 5.77),
        ("normal:50ms,5ms", 50, 5),
        ("gamma:50ms,0.5", 50, 25),
        ("exponential:50ms", 50, 50),
        ("lognormal:50ms,0.25", 51.6, 13.1),
    ],
)
def test_draws_have_the_mean_and_spread_that_were_asked_for(
    text: str, mean_ms: float, deviation_ms: float
) -> None:
    table = durations(text, what="ttft", seed=3)
    assert table.mean == pytest.approx(mean_ms * MS, rel=0.03)
    assert statistics.stdev(table.values) == pytest.approx(deviation_ms * MS, rel=0.05)
    assert min(table.values) >= 0


def test_bounds_hold() -> None:
    values = durations("uniform:50ms..70ms", what="ttft", seed=3).values
    assert 50 * MS <= min(values) < 51 * MS
    assert 69 * MS < max(values) <= 70 * MS
    assert min(counts("normal:2,5", what="tokens_per_chunk", seed=1).values) == 1


def test_the_seed_decides_the_draws_and_the_name_parts_them() -> None:
    first = durations("exponential:5ms", what="itl", seed=1)
    assert first == durations("exponential:5ms", what="itl", seed=1)
    assert first != durations("exponential:5ms", what="itl", seed=2)
    assert first != durations("exponential:5ms", what="ttft", seed=1)


def test_an_ending_after_each_token_makes_geometric_lengths() -> None:
    table = geometric(0.1, seed=5)
    assert table.mean == pytest.approx(10, rel=0.03)
    assert min(table.values) == 1
    assert set(geometric(1.0, seed=5).values) == {1}


@given(st.integers(min_value=0, max_value=100), st.integers(min_value=0, max_value=40))
def test_a_total_is_the_sum_of_its_draws(start: int, count: int) -> None:
    table = Table((3, 1, 4, 1, 5, 9, 2, 6), 7, 3.9)
    assert table.total(start, count) == sum(table.values[(start + i) & table.mask] for i in range(count))
    assert Table((5,), 0, 5.0).total(start, count) == 5 * count


@pytest.mark.parametrize(
    "text",
    [
        "",
        "20",
        "constant:20",
        "uniform:70ms..50ms",
        "uniform:50ms",
        "normal:5ms",
        "zeta:1ms,2ms",
        "gamma:5ms,0",
    ],
)
def test_what_is_no_distribution_is_refused_by_name_and_value(text: str) -> None:
    with pytest.raises(ConfigError, match="ttft") as caught:
        durations(text, what="ttft", seed=1)
    assert repr(text) in caught.value.message
    assert "uniform:50ms..70ms" in caught.value.mend
