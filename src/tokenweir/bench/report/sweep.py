"""Load points side by side: latency and throughput against load, and the frontier of the two."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from tokenweir.bench.records.model import LoadResult, MetricSummary, Run
from tokenweir.bench.report.payload import Chart, Line, Mark, Number, Pareto, Point, rounded

_LATENCIES: Final = (
    ("sweep-ttft", "Time to first token against load", "TTFT", "ttft"),
    ("sweep-tpot", "Time per output token against load", "TPOT", "tpot"),
    ("sweep-e2el", "End-to-end latency against load", "E2EL", "e2el"),
)
_RATES: Final = (
    ("sweep-output", "Output throughput against load", "tokens/s", ("output_throughput",)),
    ("sweep-requests", "Request throughput against load", "requests/s", ("request_throughput", "goodput")),
)
_LOG_SPREAD: Final = 12.0


@dataclass(frozen=True, slots=True)
class _Axis:
    name: str
    unit: str
    at: list[Number]
    log: bool


def axis_of(loads: tuple[LoadResult, ...]) -> tuple[str, str, list[float]]:
    """Return name, unit and position of the load axis: concurrency, the rate that is asked for, else their order."""
    kinds = {load.arrival.partition("=")[0] for load in loads}
    slots = [float(found[1]) for load in loads if (found := re.match(r"concurrency=(\d+)", load.arrival))]
    if len(slots) == len(loads) and len(set(slots)) == len(slots):
        return ("concurrency", "requests in flight", slots)
    rates = [load.summary.delivered.asked_rate for load in loads]
    asked = [rate for rate in rates if rate is not None]
    if len(asked) == len(loads) and len(set(asked)) == len(asked):
        return (kinds.pop() if len(kinds) == 1 else "asked", "requests/s", asked)
    return ("load point", "", [float(load.index) for load in loads])


def sweep_charts(run: Run, slo_ms: Mapping[str, float]) -> list[Chart]:
    """Return the curves of a sweep, in order of load."""
    name, unit, positions = axis_of(run.loads)
    order = sorted(range(len(positions)), key=positions.__getitem__)
    loads = [run.loads[place] for place in order]
    first, last = positions[order[0]], positions[order[-1]]
    axis = _Axis(name, unit, [positions[place] for place in order], first > 0 and last / first > _LOG_SPREAD)
    charts: list[Chart] = []
    for chart_id, title, quantity, tag in _LATENCIES:
        lines = [
            Line(name=statistic, role=role, x=axis.at, y=[_statistic(load, tag, statistic) for load in loads])
            for statistic, role in (("p50", "main"), ("p90", "second"), ("p99", "variant"))
        ]
        levels = [Mark(at=slo_ms[tag], label=f"SLO {tag}")] if tag in slo_ms else []
        charts.append(_chart((chart_id, title), axis, (quantity, "ms"), lines, levels))
    for chart_id, title, rate_unit, tags in _RATES:
        lines = [
            Line(name=tag, role=role, x=axis.at, y=[_statistic(load, tag, "mean") for load in loads])
            for tag, role in zip(tags, ("main", "second"), strict=False)
        ]
        charts.append(_chart((chart_id, title), axis, ("rate", rate_unit), lines, []))
    return [chart for chart in charts if chart.lines]


def pareto(run: Run) -> Pareto | None:
    """Return the plane of interactivity and output throughput; a frontier point is beaten in both by none."""
    found = [
        (load, _statistic(load, "interactivity", "p50"), _statistic(load, "output_throughput", "mean"))
        for load in run.loads
    ]
    known = [(load, x, y) for load, x, y in found if x is not None and y is not None]
    if not known:
        return None
    points = [
        Point(
            label=load.arrival,
            x=x,
            y=y,
            frontier=not any((a >= x and b >= y) and (a > x or b > y) for _, a, b in known),
            trusted=load.summary.verdict.trust == "trusted",
            n=load.summary.metrics["interactivity"].n,
        )
        for load, x, y in known
    ]
    return Pareto(
        id="pareto",
        title="Throughput and interactivity",
        caption=(
            "Each point is a load. Up serves more users at once, right serves each one faster; the line "
            "joins the loads that no other beats in both. A hollow point is client-bound."
        ),
        x="interactivity, p50",
        x_unit="tokens/s per user",
        y="output throughput",
        y_unit="tokens/s",
        points=points,
    )


def _statistic(load: LoadResult, tag: str, statistic: str) -> Number:
    metric = load.summary.metrics.get(tag)
    return None if metric is None else finite(metric, statistic)


def finite(metric: MetricSummary, statistic: str) -> Number:
    """Return a statistic for drawing: ``None`` where it is undefined or infinite."""
    value = getattr(metric, statistic)
    return rounded(float(value)) if isinstance(value, int | float) else None


def _chart(
    names: tuple[str, str], axis: _Axis, y: tuple[str, str], lines: list[Line], levels: list[Mark]
) -> Chart:
    return Chart(
        id=names[0],
        title=names[1],
        caption="One point per load, over its measured window. Infinite values are not drawn.",
        kind="sweep",
        x=axis.name,
        x_unit=axis.unit,
        y=y[0],
        y_unit=y[1],
        lines=[line for line in lines if any(value is not None for value in line.y)],
        log_x=axis.log,
        levels=levels,
    )
