from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenweir.sim.truth import Histogram, Truth, bin_of, middle_of

DURATIONS = st.integers(min_value=0, max_value=2**41)


@given(DURATIONS)
def test_a_bin_is_a_microsecond_or_a_hundredth_of_a_percent_wide(ns: int) -> None:
    assert abs(middle_of(bin_of(ns)) - ns) <= max(512, ns * 2**-14 / 2)


@given(DURATIONS, DURATIONS)
def test_bins_keep_the_order(one: int, other: int) -> None:
    low, high = sorted((one, other))
    assert bin_of(low) <= bin_of(high)


def test_what_is_out_of_range_falls_into_the_outermost_bins() -> None:
    assert bin_of(-5) == 0
    assert bin_of(2**60) == bin_of(2**42 - 1) == len(Histogram().bins) - 1


@given(st.lists(DURATIONS, min_size=1, max_size=200))
def test_percentiles_are_those_of_the_raw_values_to_the_width_of_a_bin(values: list[int]) -> None:
    histogram = Histogram()
    for value in values:
        histogram.add(value)
    summary = histogram.summary()
    assert summary["n"] == len(values)
    found = (summary["min"], summary["p50"], summary["p90"], summary["p99"], summary["p999"], summary["max"])
    wanted = np.percentile(np.array(values) / 1e6, [0, 50, 90, 99, 99.9, 100])
    for one, true in zip(found, wanted, strict=True):
        assert one == pytest.approx(true, rel=2**-14, abs=0.000_6)
    assert summary["mean"] == pytest.approx(sum(values) / len(values) / 1e6, abs=1e-6)


def test_nothing_counted_is_told_as_nothing() -> None:
    summary = Histogram().summary()
    assert summary["n"] == 0
    assert summary["p99"] is None


def test_summaries_can_be_pooled() -> None:
    one, other = Histogram(), Histogram()
    one.add(1_000_000)
    other.add(3_000_000)
    pooled = one.summary(other)
    assert (pooled["n"], pooled["mean"]) == (2, 2.0)


def test_buckets_are_cumulative() -> None:
    histogram = Histogram()
    for ms in (1, 2, 3, 400):
        histogram.add(ms * 1_000_000)
    assert histogram.cumulative((0.0015, 0.01, 0.1)) == [1, 3, 3, 4]


def test_reset_forgets_in_place() -> None:
    truth = Truth(0)
    bins = truth.gaps.bins
    truth.gaps.add(5)
    truth.received = 3
    truth.reset(7)
    assert truth.gaps.bins is bins
    assert not any(bins)
    assert (truth.received, truth.since_ns) == (0, 7)
