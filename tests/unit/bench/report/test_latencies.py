from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.factories.runs import RunShape, make_run

from tokenweir.bench.report.latencies import SHARES, curve, itl_cdf, request_cdfs
from tokenweir.bench.report.tables import read_requests, read_series

latencies = st.lists(st.floats(0, 1e6, allow_nan=False), min_size=1, max_size=300)


@given(latencies)
def test_a_curve_is_that_of_numpy(values: list[float]) -> None:
    np.testing.assert_allclose(
        curve(np.array(values), 0), np.quantile(values, SHARES), rtol=1e-9, atol=1e-300
    )


@given(latencies, st.integers(1, 300))
def test_failures_end_the_curve_early_and_never_lower_it(values: list[float], failures: int) -> None:
    whole, cut = np.array(curve(np.array(values), 0)), np.array(curve(np.array(values), failures))
    assert np.isnan(cut[-1])
    known = ~np.isnan(cut)
    assert (np.diff(cut[known]) >= 0).all()
    assert (cut[known] >= whole[known] - 1e-9 * (1 + whole[known])).all()


def test_the_charts_agree_with_the_summary(tmp_path: Path) -> None:
    run = make_run(tmp_path, n=400, shape=RunShape(loads=("poisson=30/s",), failures=0.05))
    charts = request_cdfs(read_requests(tmp_path)[0], slo_ms={"ttft": 60.0}, failures_count=False)

    assert [chart.id for chart in charts] == ["cdf-ttft", "cdf-tpot", "cdf-e2el", "cdf-lag"]
    for chart in charts:
        metric = run.loads[0].summary.metrics[chart.lines[0].name]
        line = chart.lines[0]
        for name, share in (("p50", 0.5), ("p90", 0.9), ("p99", 0.99)):
            place = int(np.argmin(np.abs(np.array(line.y, dtype=float) - share)))
            assert line.x[place] == pytest.approx(getattr(metric, name), rel=0.02)
    assert [mark.label for mark in charts[0].marks] == ["SLO ttft"]
    assert charts[0].n == run.loads[0].summary.metrics["ttft"].n


def test_counting_failures_as_infinite_adds_them_to_n(tmp_path: Path) -> None:
    make_run(tmp_path, n=400, shape=RunShape(failures=0.2, warmup=0.0))
    requests = read_requests(tmp_path)[0]
    plain = request_cdfs(requests, slo_ms={}, failures_count=False)
    infinite = request_cdfs(requests, slo_ms={}, failures_count=True)
    assert (plain[0].n or 0) < (infinite[0].n or 0) == 400
    assert infinite[0].lines[0].x[-1] is None
    assert infinite[-1] == plain[-1]


def test_gaps_come_from_the_counts_and_lie_within_a_bin(tmp_path: Path) -> None:
    run = make_run(tmp_path, n=300, shape=RunShape(loads=("concurrency=4",), tokens=64))
    chart = itl_cdf(read_series(tmp_path)[0])
    assert chart is not None
    shares = np.array(chart.lines[0].y, dtype=float)
    middle = np.interp(0.5, shares, np.array(chart.lines[0].x, dtype=float))
    assert middle == pytest.approx(float(run.loads[0].summary.metrics["itl"].p50 or 0), rel=0.1)
    assert shares[0] == 0
    assert shares[-1] == 1
