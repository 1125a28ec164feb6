from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenweir.core.errors import RecordError
from tokenweir.core.stats.histogram import LogHistogram, bin_of, lower_edge
from tokenweir.core.stats.pool import Pool, sum_of

PERCENTS = [0, 10, 50, 90, 99, 99.9, 100]
NANOSECONDS = st.integers(0, 2**52)
BLOCKS = st.lists(st.lists(NANOSECONDS, max_size=40), min_size=1, max_size=6)


def ints(values: list[int]) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    return np.array(values, np.int64)


@given(st.lists(NANOSECONDS, min_size=1))
def test_a_bin_holds_its_value_and_is_at_most_a_thousandth_wide(values: list[int]) -> None:
    array = ints(values)
    bins = bin_of(array)
    low, high = lower_edge(bins), lower_edge(bins + 1)
    assert ((low <= array) & (array < high)).all()
    assert ((high - low <= 1) | ((high - low) <= low * 0.001)).all()


@given(st.lists(st.integers(-5, 2**52), min_size=2))
def test_bins_keep_the_order(values: list[int]) -> None:
    assert (np.diff(bin_of(np.sort(ints(values)))) >= 0).all()


@given(st.lists(st.integers(1, 2**50), min_size=1))
def test_histogram_percentiles_are_near(values: list[int]) -> None:
    histogram = LogHistogram()
    histogram.add(ints(values))
    ordered = np.sort(ints(values))
    for percent, found in zip(PERCENTS, histogram.percentiles(PERCENTS), strict=True):
        # Each order statistic is off by less than a bin; so is what lies between two of them.
        place = (len(values) - 1) * percent / 100
        low, high = float(ordered[int(place)]), float(ordered[min(int(place) + 1, len(values) - 1)])
        assert low * 0.999 - 1 <= found <= high * 1.001 + 1


def test_no_values_have_no_percentiles() -> None:
    assert np.isnan(LogHistogram().percentiles([50])).all()
    assert np.isnan(Pool().percentiles([50])).all()
    assert np.isnan([Pool().mean, Pool().low, Pool().high]).all()


@given(BLOCKS, st.booleans())
def test_merged_and_saved_pools_are_exact(blocks: list[list[int]], spill: bool) -> None:  # noqa: FBT001
    every = ints([value for block in blocks for value in block])
    with TemporaryDirectory() as folder:
        whole = Pool()
        for number, block in enumerate(blocks):
            path = Path(folder) / str(number)
            part = Pool(path if spill else None)
            part.add(ints(block))
            part.save(None if spill else path)
            whole.merge(Pool.load(path))
        assert whole.n == len(every)
        assert whole.exact
        if len(every):
            assert whole.percentiles(PERCENTS).tolist() == np.percentile(every, PERCENTS).tolist()
            assert whole.mean == sum(every.tolist()) / len(every)
            assert (whole.low, whole.high) == (every.min(), every.max())


def test_above_the_cap_the_histogram_answers_and_the_file_lets_go(tmp_path: Path) -> None:
    values = np.random.default_rng(1).lognormal(17, 0.3, 300_000).astype(np.int64)
    pool = Pool(tmp_path / "pool", cap=100_000)
    for block in np.split(values, 300):
        pool.add(block)
    pool.save()
    assert (tmp_path / "pool").stat().st_size < 500_000
    loaded = Pool.load(tmp_path / "pool")
    assert not loaded.exact
    assert loaded.n == 300_000
    assert loaded.percentiles(PERCENTS) == pytest.approx(np.percentile(values, PERCENTS), rel=0.001)
    assert loaded.mean == pytest.approx(values.mean())


def test_merging_past_the_cap_lets_go_of_raw_values() -> None:
    parts = [Pool(), Pool()]
    for part in parts:
        part.add(np.arange(600, dtype=np.int64))
    whole = Pool(cap=1000)
    for part in parts:
        whole.merge(part)
    assert not whole.exact
    assert whole.percentiles([50]) == pytest.approx([299.5])


def test_a_pool_can_go_on_after_a_merge_in_memory() -> None:
    pool, other = Pool(), Pool()
    other.add(ints([1, 2]))
    pool.add(ints([3]))
    pool.merge(other)
    pool.add(ints([4]))
    assert pool.percentiles([0, 100]).tolist() == [1, 4]
    assert other.n == 2


def test_a_pool_that_is_being_written_answers_already(tmp_path: Path) -> None:
    pool, other = Pool(tmp_path / "pool"), Pool()
    pool.add(ints([1, 5, 9]))
    assert pool.percentiles([0, 50, 100]).tolist() == [1, 5, 9]
    other.add(ints([2**33, -4]))
    pool.merge(other)
    pool.add(ints([7]))
    assert pool.percentiles([0, 50, 100]).tolist() == [-4, 6, 2**33]
    saved = Pool()
    saved.add(ints([8, 8]))
    saved.save(tmp_path / "saved")
    pool.merge(Pool.load(tmp_path / "saved"))
    pool.save()
    assert Pool.load(tmp_path / "pool").percentiles([0, 50, 100]).tolist() == [-4, 7.5, 2**33]


def test_an_unfinished_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "cut").write_bytes(b"\0" * 800)
    (tmp_path / "empty").write_bytes(b"")
    for name in ("cut", "empty"):
        with pytest.raises(RecordError, match="no saved pool"):
            Pool.load(tmp_path / name)
    writing = Pool(tmp_path / "writing")
    with pytest.raises(RecordError, match="still being written"):
        Pool().merge(writing)
    writing.save()
    with pytest.raises(RecordError, match="without a path"):
        Pool().save()


@given(st.lists(st.integers(-(2**62), 2**62)))
def test_sums_do_not_overflow(values: list[int]) -> None:
    assert sum_of(ints(values)) == sum(values)
