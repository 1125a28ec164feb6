from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import special, stats

from tokenweir.core.stats.distributions import binomial_cdf, incomplete_beta, t_quantile, t_two_sided
from tokenweir.core.stats.percentiles import (
    percentiles,
    quantile_interval,
    quantile_ranks,
    sorted_percentiles,
)

FINITE = st.floats(-1e15, 1e15)
PERCENTS = st.lists(st.floats(0, 100), min_size=1, max_size=5)
TENTHS = st.lists(st.integers(0, 1000).map(lambda tenth: tenth / 10), min_size=1, max_size=5)


@given(st.lists(FINITE, min_size=1, max_size=60), PERCENTS)
def test_percentiles_are_numpys_to_the_last_bit(values: list[float], percents: list[float]) -> None:
    expected = np.percentile(np.array(values), percents)
    assert percentiles(np.array(values), percents).tolist() == expected.tolist()
    assert sorted_percentiles(np.sort(values), percents).tolist() == expected.tolist()


@given(st.lists(FINITE, min_size=1, max_size=30), st.integers(1, 30), TENTHS)
def test_infinite_values_never_make_nan(values: list[float], infinite: int, percents: list[float]) -> None:
    found = percentiles(np.array(values + [math.inf] * infinite), sorted(percents))
    assert not np.isnan(found).any()
    # A percentile below the infinite ones is that of a stand-in larger than everything else.
    stand_in = np.percentile(np.array(values + [1e300] * infinite), sorted(percents))
    assert (np.isinf(found) == (stand_in > 1e200)).all()


def test_a_percentile_that_touches_an_infinite_value_is_infinite() -> None:
    values = np.array([1.0, 2.0, math.inf])
    assert percentiles(values, [0, 50, 51, 100]).tolist() == [1.0, 2.0, math.inf, math.inf]


def test_no_values_have_no_percentiles() -> None:
    assert np.isnan(percentiles(np.zeros(0), [50, 99])).all()
    assert np.isnan(sorted_percentiles(np.zeros(0), [50])).all()


@pytest.mark.parametrize("df", [1, 2, 5, 29.5, 1e3, 1e6])
@pytest.mark.parametrize("probability", [0.001, 0.025, 0.3, 0.5, 0.9, 0.975, 0.9999])
def test_student_agrees_with_scipy(df: float, probability: float) -> None:
    expected = float(stats.t.ppf(probability, df))
    assert t_quantile(probability, df) == pytest.approx(expected, rel=1e-9, abs=1e-9)
    assert t_two_sided(expected, df) == pytest.approx(2 * float(stats.t.sf(abs(expected), df)), rel=1e-8)


@given(st.floats(0, 1), st.floats(0.1, 200), st.floats(0.1, 200))
def test_incomplete_beta_agrees_with_scipy(x: float, a: float, b: float) -> None:
    assert incomplete_beta(x, a, b) == pytest.approx(float(special.betainc(a, b, x)), rel=1e-8, abs=1e-12)


@given(st.integers(1, 1000), st.floats(0.001, 0.999))
def test_binomial_agrees_with_scipy(n: int, probability: float) -> None:
    expected = stats.binom.cdf(np.arange(n + 1), n, probability)
    assert np.allclose(binomial_cdf(n, probability), expected, rtol=1e-8, atol=1e-12)


@given(st.integers(1, 1000), st.floats(1, 99), st.sampled_from([0.8, 0.95, 0.99]))
def test_exact_ranks_cover_at_least_the_confidence(n: int, percent: float, confidence: float) -> None:
    low, high = quantile_ranks(n, percent, confidence)
    # X_(low) ≤ quantile < X_(high) means: from low to high − 1 values lie below.
    covered = stats.binom.cdf(high - 1, n, percent / 100) - stats.binom.cdf(low - 1, n, percent / 100)
    assert float(covered) >= confidence - 1e-9
    assert 0 <= low < high <= n + 1


def test_rank_approximation_meets_the_exact_ranks_and_widens_with_inflation() -> None:
    exact, near = quantile_ranks(1000, 50, 0.95), quantile_ranks(1001, 50, 0.95)
    assert abs(exact[0] - near[0]) <= 2
    assert abs(exact[1] - near[1]) <= 2
    wide = quantile_ranks(1001, 50, 0.95, inflation=4)
    assert wide[1] - wide[0] == pytest.approx(2 * (near[1] - near[0]), abs=4)


def test_too_few_values_leave_an_end_open() -> None:
    interval = quantile_interval(np.arange(100.0), 99.9, 0.95)
    assert interval.high == math.inf
    assert not interval.bounded
    assert quantile_interval(np.arange(10_000.0), 50, 0.95).bounded
