from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from tokenweir.core.stats.bootstrap import Resampling, bootstrap, clustered_bootstrap, paired_bootstrap
from tokenweir.core.stats.clusters import clustered_mean, independent_mean, rank_inflation, time_blocks
from tokenweir.core.stats.estimates import (
    Estimate,
    Interval,
    difference,
    interval_difference,
    relative_difference,
)
from tokenweir.core.stats.holm import holm
from tokenweir.core.stats.mannwhitney import mann_whitney
from tokenweir.core.stats.paired import (
    mcnemar,
    paired_difference,
    paired_relative,
    paired_t,
    sign_test,
    widest,
)
from tokenweir.core.stats.percentiles import quantile_interval
from tokenweir.core.stats.proportions import share_difference, share_p_value, wilson

Floats = npt.NDArray[np.float64]
SMALL = st.lists(st.integers(-20, 20).map(float), min_size=2, max_size=40)


@given(SMALL, SMALL)
def test_mann_whitney_agrees_with_scipy(a: list[float], b: list[float]) -> None:
    found = mann_whitney(np.array(a), np.array(b))
    expected = stats.mannwhitneyu(b, a, method="asymptotic")
    assert found.u == pytest.approx(float(expected.statistic))
    if len(set(a + b)) > 1:
        assert found.p_value == pytest.approx(float(expected.pvalue), abs=1e-12)
    else:
        assert found.p_value == 1.0


def test_mann_whitney_takes_infinite_values_and_empty_sides() -> None:
    found = mann_whitney(np.array([1.0, 2, 3]), np.array([math.inf, math.inf, 2]))
    assert found.superiority == pytest.approx((6 + 1.5) / 9)
    assert math.isnan(mann_whitney(np.zeros(0), np.ones(3)).p_value)


@given(st.lists(st.floats(0, 1), max_size=12))
def test_holm_agrees_with_its_definition(p_values: list[float]) -> None:
    adjusted = holm(p_values)
    for p, found in zip(p_values, adjusted, strict=True):
        smaller = [min(1.0, (len(p_values) - sum(x < q for x in p_values)) * q) for q in p_values if q <= p]
        assert found == pytest.approx(max(smaller))
    assert all(found >= p for p, found in zip(p_values, adjusted, strict=True))


def test_holm_leaves_the_untested_out() -> None:
    adjusted = holm([0.01, math.nan, 0.04])
    assert adjusted[0] == pytest.approx(0.02)
    assert math.isnan(adjusted[1])
    assert adjusted[2] == pytest.approx(0.04)


def test_paired_t_agrees_with_scipy() -> None:
    rng = np.random.default_rng(2)
    a, b = rng.normal(10, 2, 40), rng.normal(10.5, 2, 40)
    expected = stats.ttest_rel(b, a)
    found = paired_t(a, b)
    assert found.p_value() == pytest.approx(float(expected.pvalue))
    low, high = expected.confidence_interval(0.9)
    interval = found.interval(0.9)
    assert (interval.low, interval.high) == pytest.approx((float(low), float(high)))


def test_welch_agrees_with_scipy() -> None:
    rng = np.random.default_rng(3)
    a, b = rng.normal(10, 2, 30), rng.normal(10.5, 5, 55)
    found = difference(independent_mean(a), independent_mean(b))
    expected = stats.ttest_ind(b, a, equal_var=False)
    assert found.p_value() == pytest.approx(float(expected.pvalue))


@given(st.integers(0, 60), st.integers(0, 60))
def test_mcnemar_and_sign_test_are_exact(only_a: int, only_b: int) -> None:
    a = np.array([True] * only_a + [False] * only_b + [True, False])
    b = np.array([False] * only_a + [True] * only_b + [True, False])
    found = mcnemar(a, b)
    assert (found.only_a, found.only_b) == (only_a, only_b)
    n = only_a + only_b
    expected = float(stats.binomtest(only_a, n).pvalue) if n else 1.0
    assert found.p_value == pytest.approx(expected)
    assert sign_test(a.astype(float), b.astype(float)) == pytest.approx(expected)


def test_a_large_mcnemar_is_near_the_exact_one() -> None:
    a = np.array([True] * 800 + [False] * 700)
    found = mcnemar(a, ~a).p_value
    assert found == pytest.approx(float(stats.binomtest(800, 1500).pvalue), rel=0.01)


@given(st.integers(0, 200), st.integers(1, 200), st.sampled_from([0.8, 0.95, 0.99]))
def test_wilson_agrees_with_scipy(hits: int, more: int, confidence: float) -> None:
    n = hits + more
    expected = stats.binomtest(hits, n).proportion_ci(confidence, method="wilson")
    found = wilson(hits, n, confidence)
    assert (found.low, found.high) == pytest.approx((float(expected.low), float(expected.high)), abs=1e-12)


def test_shares() -> None:
    assert wilson(0, 0, 0.95) == Interval(0, 1)
    # Newcombe 1998, table II, method 10: 56/70 − 48/80.
    found = share_difference(48, 80, 56, 70, 0.95)
    assert (found.low, found.high) == pytest.approx((0.0524, 0.3339), abs=5e-5)
    assert share_p_value(0, 10, 0, 20) == 1.0
    table = [[48, 32], [56, 14]]
    expected = float(stats.chi2_contingency(table, correction=False).pvalue)
    assert share_p_value(48, 80, 56, 70) == pytest.approx(expected)


@given(st.lists(st.floats(-100, 100), min_size=2, max_size=50))
def test_singleton_clusters_are_independent_values(values: list[float]) -> None:
    array = np.array(values)
    clustered = clustered_mean(array, np.arange(len(array)))
    plain = independent_mean(array)
    assert clustered.value == pytest.approx(plain.value)
    assert clustered.se == pytest.approx(plain.se, abs=1e-9)
    assert clustered.df == plain.df


def test_repeats_of_a_value_add_no_certainty() -> None:
    values = np.random.default_rng(4).normal(0, 1, 40)
    once = clustered_mean(values, np.arange(40))
    often = clustered_mean(np.repeat(values, 25), np.repeat(np.arange(40), 25))
    assert often.se == pytest.approx(once.se)
    assert independent_mean(np.repeat(values, 25)).se < once.se / 4


def _autoregressive(rng: np.random.Generator, n: int, rho: float) -> Floats:
    noise = rng.normal(0, math.sqrt(1 - rho**2), n)
    values = np.empty(n)
    values[0] = rng.normal()
    for i in range(1, n):
        values[i] = rho * values[i - 1] + noise[i]
    return values


def test_blocks_of_time_cover_the_mean_of_autocorrelated_values() -> None:
    rng = np.random.default_rng(5)
    blocked = plain = 0
    for _ in range(300):
        values = _autoregressive(rng, 1200, 0.8)
        found = clustered_mean(values, time_blocks(np.arange(1200.0))).interval(0.95)
        blocked += found.low <= 0 <= found.high
        found = independent_mean(values).interval(0.95)
        plain += found.low <= 0 <= found.high
    assert blocked >= 0.9 * 300
    assert plain < 0.7 * 300


def test_inflated_order_statistics_see_autocorrelation() -> None:
    values = _autoregressive(np.random.default_rng(6), 20_000, 0.8)
    # The share below the median of such a process varies about 4.9 times as much as of independent values.
    assert 2 < rank_inflation(values, 0.0, time_blocks(np.arange(20_000.0))) < 12
    shuffled = np.random.default_rng(7).permutation(values)
    assert rank_inflation(shuffled, 0.0, time_blocks(np.arange(20_000.0))) < 2.5
    assert rank_inflation(values, 1e9, time_blocks(np.arange(20_000.0))) == 1.0


@given(st.integers(0, 500), st.randoms(use_true_random=False))
def test_blocks_are_even_and_in_order_of_time(n: int, random: Callable[[], float]) -> None:
    times = np.random.default_rng(n).permutation(n).astype(np.float64)
    blocks = time_blocks(times)
    ordered = blocks[np.argsort(times)]
    assert (np.diff(ordered) >= 0).all()
    if n:
        sizes = np.bincount(blocks)
        assert sizes.max() - sizes.min() <= 1
        assert len(sizes) == min(30, max(1, n // 8))


def test_a_paired_change_is_found_where_an_unpaired_one_drowns() -> None:
    rng = np.random.default_rng(8)
    hardness = rng.lognormal(3, 1, 300)
    a, b = hardness * rng.normal(1, 0.02, 300), 0.98 * hardness * rng.normal(1, 0.02, 300)
    samples = np.arange(300)
    change = paired_relative(a, b, [samples])
    assert change.value == pytest.approx(-0.02, abs=0.01)
    assert change.p_value() < 1e-6
    assert paired_difference(a, b, [samples]).p_value() < 1e-3
    assert difference(independent_mean(a), independent_mean(b)).p_value() > 0.5


def test_the_relative_interval_covers() -> None:
    rng = np.random.default_rng(9)
    covered = 0
    for _ in range(300):
        hardness = rng.lognormal(0, 0.5, 200)
        a, b = hardness + rng.normal(0, 0.1, 200), 1.1 * hardness + rng.normal(0, 0.1, 200)
        found = paired_relative(a, b, [np.arange(200)]).interval(0.95)
        covered += found.low <= 0.1 <= found.high
    assert 0.9 * 300 <= covered <= 0.99 * 300


def test_the_widest_clustering_counts() -> None:
    values = np.repeat([1.0, -1.0, 2.0, -2.0], 50)
    wide = clustered_mean(values, np.repeat(np.arange(4), 50))
    assert widest(values, [np.arange(200), np.repeat(np.arange(4), 50)]) == wide
    assert widest(values, []) == independent_mean(values)


def test_relative_difference_of_independent_means() -> None:
    a = Estimate(value=10, se=0.1, df=1e9, n=100)
    b = Estimate(value=11, se=0.2, df=1e9, n=100)
    found = relative_difference(a, b)
    assert found.value == pytest.approx(0.1)
    assert found.se == pytest.approx(math.sqrt(0.2**2 + 0.11**2) / 10)
    assert math.isnan(relative_difference(Estimate(value=0, se=1, df=1, n=2), b).value)


def test_an_estimate_without_freedom_has_no_interval() -> None:
    alone = independent_mean(np.array([3.0]))
    assert alone.value == 3
    assert not alone.interval(0.95).bounded
    assert math.isnan(alone.p_value())
    assert math.isnan(alone.detectable(0.95))
    assert math.isnan(independent_mean(np.zeros(0)).value)
    assert difference(alone, alone).df == 0


def test_the_smallest_detectable_effect_is_found_as_often_as_said() -> None:
    rng = np.random.default_rng(10)
    effect = Estimate(value=0, se=1 / math.sqrt(50), df=49, n=50).detectable(0.95, 0.8)
    found = sum(independent_mean(rng.normal(effect, 1, 50)).p_value() < 0.05 for _ in range(600))
    assert 0.74 <= found / 600 <= 0.86


def test_intervals_of_independent_values_add_in_squares() -> None:
    found = interval_difference(1, Interval(0, 4), 10, Interval(6, 13))
    assert found == Interval(9 - 5, 9 + math.hypot(3, 1))
    assert not interval_difference(1, Interval(0, math.inf), 10, Interval(6, 13)).bounded


@pytest.mark.parametrize("method", ["bca", "percentile"])
def test_bootstrap_agrees_with_scipy(method: Literal["bca", "percentile"]) -> None:
    values = np.random.default_rng(11).lognormal(0, 1, 80)
    how = Resampling(seed=1, resamples=5000, method=method)
    found = bootstrap(values, how)
    expected = stats.bootstrap(
        (values,), np.mean, n_resamples=5000, method=method, rng=np.random.default_rng(2)
    ).confidence_interval
    width = float(expected.high - expected.low)
    assert found.low == pytest.approx(float(expected.low), abs=0.07 * width)
    assert found.high == pytest.approx(float(expected.high), abs=0.07 * width)
    assert bootstrap(values, how) == found


def test_bootstrap_takes_any_statistic_pairs_and_clusters() -> None:
    rng = np.random.default_rng(12)
    a = rng.normal(5, 1, 300)

    def median(rows: Floats) -> Floats:
        return np.median(rows, axis=-1)

    found = bootstrap(a, Resampling(seed=1), median)
    assert found.low < 5 < found.high
    moved = paired_bootstrap(a, a + 1 + rng.normal(0, 0.01, 300), Resampling(seed=1))
    assert moved.low < 1 < moved.high
    assert moved.high - moved.low < 0.01
    repeated = np.repeat(a, 10)
    clustered = clustered_bootstrap(repeated, np.repeat(np.arange(300), 10), Resampling(seed=1))
    expected = clustered_mean(repeated, np.repeat(np.arange(300), 10)).interval(0.95)
    assert clustered.high - clustered.low == pytest.approx(expected.high - expected.low, rel=0.15)


def test_bootstrap_of_equal_values_is_that_value_and_of_none_refused() -> None:
    assert bootstrap(np.ones(20), Resampling(seed=1)) == Interval(1, 1)
    assert bootstrap(np.ones(1), Resampling(seed=1)) == Interval(1, 1)
    with pytest.raises(ValueError, match="at least one value"):
        bootstrap(np.zeros(0), Resampling(seed=1))


def test_intervals_of_correlated_quantiles_cover() -> None:
    rng = np.random.default_rng(13)
    wide = narrow = covered = 0.0
    for _ in range(400):
        shared = rng.normal(0, 1, 300)
        a, b = shared + rng.normal(0, 0.3, 300), shared + rng.normal(0, 0.3, 300)
        at = [float(np.median(values)) for values in (a, b)]
        of = [quantile_interval(np.sort(values), 50, 0.95) for values in (a, b)]
        below = [values <= cut for values, cut in zip((a, b), at, strict=True)]
        found = interval_difference(at[0], of[0], at[1], of[1], float(np.corrcoef(below[0], below[1])[0, 1]))
        plain = interval_difference(at[0], of[0], at[1], of[1])
        covered += found.low <= 0 <= found.high
        narrow += found.high - found.low
        wide += plain.high - plain.low
    assert covered >= 0.93 * 400
    assert narrow < 0.75 * wide
