from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.factories.runs import rows

from tokenweir.bench.records.columns import SERIES
from tokenweir.bench.records.flight import flight_integral, flight_max
from tokenweir.bench.records.series import Series, bin_edge_ns, latency_bin

S = 1_000_000_000
MS = 1_000_000


def counts(table: pa.Table) -> dict[tuple[str, int, int], int]:
    return {
        (str(row["metric"]), int(row["second"]), int(row["bin"])): int(row["count"])
        for row in table.to_pylist()
    }


@given(st.lists(st.integers(1000, 10**14), min_size=1))
def test_a_bin_holds_its_latency(latencies: list[int]) -> None:
    array = np.array(latencies, np.int64)
    bins = latency_bin(array)
    assert (bin_edge_ns(bins) <= array * (1 + 1e-12)).all()
    assert (bin_edge_ns(bins + 1) > array * (1 - 1e-12)).all()


def test_bins_are_those_of_the_format() -> None:
    assert latency_bin(np.array([0, 999, 1000, 2000, 4000, 1_024_000])).tolist() == [0, 0, 0, 16, 32, 160]


@given(
    st.lists(
        st.tuples(st.sampled_from(["ttft", "itl", "e2el"]), st.integers(0, 9 * S), st.integers(0, 10**12)),
        max_size=60,
    ),
    st.integers(1, 4),
)
def test_merged_series_count_everything_once(values: list[tuple[str, int, int]], parts: int) -> None:
    whole, merged = Series(), Series()
    for part in range(parts):
        series = Series()
        for metric, at, latency in values[part::parts]:
            series.add_latencies(metric, np.array([at]), np.array([latency]))
        merged.merge(series)
    for metric, at, latency in values:
        whole.add_latencies(metric, np.array([at]), np.array([latency]))
    assert merged.table(3).equals(whole.table(3))
    assert sum(counts(merged.table(3)).values()) == len(values)


def test_saved_series_come_back(tmp_path: Path) -> None:
    series = Series()
    series.add_totals("output_tokens", np.array([0.5 * S, 0.6 * S, 2.5 * S]), np.array([3, 4, 5]))
    series.add_latencies("itl", np.array([S, S]), np.array([2000, 2001]))
    series.save(tmp_path / "series")
    table = Series.load(tmp_path / "series").table(1)
    assert table.schema == SERIES
    assert counts(table) == {("output_tokens", 0, -1): 7, ("output_tokens", 2, -1): 5, ("itl", 1, 16): 2}
    assert table.column("load").to_pylist() == [1, 1, 1]


def test_rows_give_totals_latencies_and_the_mean_in_flight() -> None:
    series = Series()
    series.add_requests(
        rows(
            {
                "scheduled_ns": [0.0, 0.0, 1.0 * S],
                "sent_ns": [0.0, 0.5 * S, 1.5 * S],
                "first_token_ns": [0.25 * S, np.nan, np.nan],
                "end_ns": [2 * S, 1 * S, np.nan],
                "status": ["completed", "failed", "cancelled"],
            }
        )
    )
    found = counts(series.table(0))
    assert found.pop(("ttft", 0, int(latency_bin(np.array([0.25 * S]))[0]))) == 1
    assert found.pop(("e2el", 2, int(latency_bin(np.array([2 * S]))[0]))) == 1
    assert found == {
        ("sent", 0, -1): 2,
        ("sent", 1, -1): 1,
        ("completed", 2, -1): 1,
        ("failed", 1, -1): 1,
        ("in_flight", 0, -1): 1500,
        ("in_flight", 1, -1): 1500,
    }


def test_a_request_is_in_flight_until_it_is_given_up() -> None:
    series = Series()
    series.add_requests(
        rows(
            {
                "scheduled_ns": [0.0, 0.0, 0.0, 0.0],
                "sent_ns": [0.0, 0.0, 0.0, np.nan],
                "first_token_ns": [np.nan, 0.5 * S, np.nan, np.nan],
                "end_ns": [1.0 * S, np.nan, np.nan, np.nan],
                "status": ["completed", "failed", "cancelled", "failed"],
            }
        ),
        np.array([np.nan, 2.0 * S, 3.0 * S, 2.5 * S]),
    )
    found = counts(series.table(0))
    assert [found["in_flight", second, -1] for second in range(3)] == [3000, 2000, 1000]
    assert found["failed", 2, -1] == 2


SPANS = st.lists(st.tuples(st.integers(0, 50), st.integers(0, 50)), max_size=30)


@given(SPANS, st.integers(0, 60), st.integers(0, 60))
def test_flight_agrees_with_counting(spans: list[tuple[int, int]], start: int, width: int) -> None:
    sent = np.array([float(begin) for begin, _ in spans])
    end = np.array([float(begin + length) for begin, length in spans])
    edges = np.array([start, start + width], np.float64)
    low, high = flight_integral(sent, end, edges)
    steps = [sum(s <= t < e for s, e in zip(sent, end, strict=True)) for t in range(start, start + width)]
    assert high - low == pytest.approx(sum(steps))
    most = flight_max(sent, end, start, start + width)
    instants = [*range(start, start + width + 1)]
    seen = [sum(s <= t < e for s, e in zip(sent, end, strict=True)) for t in instants]
    # A request that ends as it is sent is in flight for that instant.
    assert max(seen) <= most <= max(seen) + sum(s == e for s, e in zip(sent, end, strict=True))
