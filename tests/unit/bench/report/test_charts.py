from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tests.factories.runs import RunShape, make_run

from tokenweir.bench.report.overtime import heat_map, span_of, throughput_over_time, ttft_over_time
from tokenweir.bench.report.sweep import axis_of, pareto, sweep_charts
from tokenweir.bench.report.tables import read_requests, read_series
from tokenweir.bench.report.timeline import MAX_ROWS, sample, stalls, timeline

SWEEP = ("concurrency=64", "concurrency=1", "concurrency=8")


def test_totals_over_time_are_those_of_the_run(tmp_path: Path) -> None:
    run = make_run(tmp_path, n=600, shape=RunShape(loads=("poisson=20/s",)))
    requests, series = read_requests(tmp_path)[0], read_series(tmp_path)[0]
    span = span_of(run.loads[0], requests)
    charts = {chart.id: chart for chart in throughput_over_time(series, span)}

    assert set(charts) == {"time-tokens", "time-requests", "time-flight"}
    lines = {line.name: line for line in charts["time-requests"].lines}
    assert set(lines) == {"sent", "completed"}
    rate = np.mean(np.array(lines["sent"].y[:-1], dtype=float))
    assert rate == pytest.approx(600 / (span.end - span.start), rel=0.15)


def test_ttft_over_time_shows_percentiles_in_order_and_a_bounded_sample(tmp_path: Path) -> None:
    run = make_run(tmp_path, n=3000, shape=RunShape(loads=("poisson=50/s",)))
    requests = read_requests(tmp_path)[0]
    chart = ttft_over_time(requests, span_of(run.loads[0], requests))
    assert chart is not None
    p50, p90, p99, dots = (np.array(line.y, dtype=float) for line in chart.lines)
    assert ((p50 <= p90) & (p90 <= p99)).all()
    assert len(dots) <= 500
    assert "one request in 6" in chart.caption


def test_the_heat_map_counts_every_gap(tmp_path: Path) -> None:
    run = make_run(tmp_path, n=200, shape=RunShape(loads=("concurrency=8",)))
    requests, series = read_requests(tmp_path)[0], read_series(tmp_path)[0]
    heat = heat_map(series, span_of(run.loads[0], requests))
    assert heat is not None
    cells = np.array(heat.cells).reshape(-1, 3)
    assert cells[:, 2].sum() == heat.n == series.of("itl")[2].sum()
    assert cells[:, 0].max() < heat.columns
    assert cells[:, 1].max() < len(heat.edges_ms) - 1
    assert heat.edges_ms == sorted(heat.edges_ms)


def test_a_small_run_is_shown_whole_a_large_one_by_a_stated_rule(tmp_path: Path) -> None:
    small = make_run(tmp_path / "small", n=100)
    requests = read_requests(tmp_path / "small")[0]
    whole = timeline(tmp_path, requests, span_of(small.loads[0], requests))
    assert whole is not None
    assert len(whole.rows) == 100
    assert "All 100 requests" in whole.caption

    make_run(tmp_path / "large", n=5000, shape=RunShape(failures=0.05))
    requests = read_requests(tmp_path / "large")[0]
    places = sample(requests)
    assert len(places) <= MAX_ROWS
    assert (np.diff(places) > 0).all()
    duration = requests.columns["end_ns"] - requests.columns["scheduled_ns"]
    completed = np.where(requests.status == 0, duration, -np.inf)
    assert int(np.argmax(completed)) in places
    assert int(np.flatnonzero(requests.status == 1)[0]) in places


def test_a_sweep_is_drawn_in_order_of_load(tmp_path: Path) -> None:
    run = make_run(tmp_path, n=100, shape=RunShape(loads=SWEEP))
    assert axis_of(run.loads) == ("concurrency", "requests in flight", [64.0, 1.0, 8.0])
    charts = sweep_charts(run, {"ttft": 60.0})
    assert all(line.x == [1.0, 8.0, 64.0] for chart in charts for line in chart.lines)
    assert [mark.label for mark in charts[0].levels] == ["SLO ttft"]
    assert charts[0].log_x


def test_loads_given_by_their_gaps_are_drawn_at_their_rates(tmp_path: Path) -> None:
    loads = ("uniform=10ms..30ms", "uniform=20ms..80ms")
    run = make_run(tmp_path, n=40, shape=RunShape(loads=loads))
    assert axis_of(run.loads) == ("uniform", "requests/s", [50.0, 20.0])


def test_the_load_axis_falls_back_to_the_order(tmp_path: Path) -> None:
    run = make_run(tmp_path, n=100, shape=RunShape(loads=("concurrency=4", "poisson=9/s")))
    assert axis_of(run.loads)[0] == "load point"


def test_the_frontier_holds_what_no_other_beats(tmp_path: Path) -> None:
    plane = pareto(make_run(tmp_path, n=100, shape=RunShape(loads=SWEEP, client_bound=True)))
    assert plane is not None
    for point in plane.points:
        assert point.x is not None
        assert point.y is not None
        beaten = [
            (other.x or 0) >= point.x
            and (other.y or 0) >= point.y
            and ((other.x or 0) > point.x or (other.y or 0) > point.y)
            for other in plane.points
        ]
        assert point.frontier is not any(beaten)
        assert not point.trusted


def test_stalls_are_the_longest_gaps_within_a_request() -> None:
    request = np.array([4, 4, 4, 7, 7], dtype=np.int64)
    received = np.array([0.0, 1e9, 1.1e9, 5e9, 5.3e9])
    assert stalls([4, 7, 9], (request, received), 200.0) == [[0.0, 1.0], [5.0, 5.3], []]
    assert stalls([4], None, 200.0) == []


def test_stalls_are_marked_where_chunks_were_kept(tmp_path: Path) -> None:
    run = make_run(tmp_path, n=50, shape=RunShape(chunks=True))
    requests = read_requests(tmp_path)[0]
    drawn = timeline(tmp_path, requests, span_of(run.loads[0], requests), stall_ms=0.001)
    assert drawn is not None
    assert len(drawn.stalls) == len(drawn.rows)
    assert all(marks for marks in drawn.stalls)
