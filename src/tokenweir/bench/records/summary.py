"""Sums a load point up: from its rows and pooled gaps to everything that ``run.json`` says of it."""

# pyarrow's stubs leave type arguments open.
# pyright: reportUnknownMemberType=false, reportUnknownArgumentType=false, reportUnknownVariableType=false

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from tokenweir.bench.records.columns import PHASES, STATUSES
from tokenweir.bench.records.flight import SEEN, flight_integral, flight_max, last_seen
from tokenweir.bench.records.frames import codes, numbers, tally
from tokenweir.bench.records.model import (
    Client,
    Counts,
    Delivered,
    MetricSummary,
    Number,
    Reads,
    Summary,
    Window,
)
from tokenweir.bench.records.verdict import Evidence, judge
from tokenweir.core.metrics.base import NS_PER_MS, NS_PER_S, Columns, FloatArray, Metric, Totals
from tokenweir.core.metrics.objectives import meets
from tokenweir.core.metrics.registry import METRICS, needed
from tokenweir.core.stats.percentiles import percentiles
from tokenweir.core.stats.pool import EXACT_CAP, Pool

Rows = npt.NDArray[np.bool_]

PERCENTS: Final = (0, 50, 90, 95, 99, 99.9, 100)
COUNTED: Final = ("reads", "chunks", "multi_event_reads", "gaps_excluded")
SIMULATOR_ONLY: Final = ("ttft_error", "itl_error")
"""Left out of a summary where nothing told the true send times."""

_BY_TOKENS: Final = frozenset(
    {"tpot", "tpot_from_start", "interactivity", "osl", "output_throughput", "total_throughput"}
)
_ABSENT: Final = {
    "queue_time": "the server does not report it",
    "goodput": "no SLO is stated",
}


class Conduct(msgspec.Struct, frozen=True, kw_only=True):
    """What one worker cost over a load point. ``cpu_s`` is user + system of its capturing process, less ``spin_s``.

    ``finishing_cpu_s`` is that of the process that parses beside it at the lowest priority. ``rss_max_bytes`` sums
    both. ``steal_ratio`` is that of the machine, or ``None`` where it is unknown.
    """

    worker: int
    cpu_s: float
    wall_s: float
    rss_max_bytes: int
    timestamp_source: Literal["kernel", "user"]
    finishing_cpu_s: float = 0.0
    clock_steps: int = 0
    steal_ratio: float | None = None
    spin_s: float = 0.0


class LoadPoint(msgspec.Struct, frozen=True, kw_only=True):
    """What was asked of a load point and what its rows cannot tell.

    ``asked_rate`` is requests/s, ``None`` in a closed loop. ``output_tokens_in_window`` counts the tokens
    received inside the window, of whatever request. ``slo`` maps metric tags to nanoseconds.
    """

    arrival: str
    asked_rate: float | None
    open_loop: bool
    planned: int | None
    window: Window
    output_tokens_in_window: int
    slo: dict[str, int] = {}
    failures_as_infinite: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class _Frame:
    """The rows of one load point as arrays; ``in_window`` are those completed inside the window."""

    table: pa.Table
    columns: Columns
    measured: Rows
    completed: Rows
    failed: Rows
    in_window: Rows
    flight_end: FloatArray


def summarise(
    requests: pa.Table,
    pools: Mapping[str, Pool],
    conducts: Sequence[Conduct],
    load: LoadPoint,
    given_up: FloatArray | None = None,
) -> Summary:
    """Return the summary of one load point.

    ``requests`` are its rows (``columns.REQUESTS``, phases assigned); ``pools`` holds, for the pooled
    metrics, the gaps of its measured, completed requests in nanoseconds by tag; ``conducts`` has one entry
    per worker; ``given_up`` is that of :func:`~tokenweir.bench.records.flight.last_seen`.
    """
    frame = _frame(requests, load.window, given_up)
    metrics = {
        tag: summary
        for tag, metric in METRICS.items()
        if (summary := _metric(metric, frame, pools, load)).n or tag not in SIMULATOR_ONLY
    }
    reads = _reads(frame)
    client = _client(frame, conducts)
    delivered = _delivered(frame, load)
    return Summary(
        window=load.window,
        counts=_counts(frame, load.planned),
        delivered=delivered,
        reads=reads,
        client=client,
        verdict=judge(_evidence(frame, load, client, delivered, metrics), reads),
        metrics=metrics,
    )


def _frame(requests: pa.Table, window: Window, given_up: FloatArray | None) -> _Frame:
    columns = numbers(requests, dict.fromkeys((*needed(), *SEEN, *COUNTED)))
    phase, status = codes(requests, "phase", PHASES), codes(requests, "status", STATUSES)
    completed = status == STATUSES.index("completed")
    end = columns["end_ns"]
    return _Frame(
        table=requests,
        columns=columns,
        measured=phase == PHASES.index("measured"),
        completed=completed,
        failed=status == STATUSES.index("failed"),
        in_window=completed & (end >= window.start_ns) & (end <= window.end_ns),
        flight_end=last_seen(columns, cancelled=status == STATUSES.index("cancelled"), given_up=given_up),
    )


def _metric(metric: Metric, frame: _Frame, pools: Mapping[str, Pool], load: LoadPoint) -> MetricSummary:
    if metric.kind == "rate":
        return _rate(metric, frame, load)
    if metric.kind == "pooled":
        return _pooled(metric, pools.get(metric.tag) or Pool(), frame)
    good = frame.measured & frame.completed
    values = metric.values(frame.columns)[good]
    known = values[~np.isnan(values)]
    missing = len(values) - len(known)
    notes = [f"{missing} completed requests have no value"] if missing and len(known) else []
    # Where no completed request has the value (a gap between tokens that were not streamed), a failed one lacks it too.
    counted = metric.if_failed is not None and (len(known) or not len(values))
    if load.failures_as_infinite and metric.if_failed is not None and counted:
        failures = int(np.count_nonzero(frame.measured & frame.failed))
        known = np.concatenate([known, np.full(failures, metric.if_failed)])
        notes += [f"{failures} failed requests count as {_plain(metric.if_failed)}"] if failures else []
    if not len(known):
        return _empty(metric)
    cuts = percentiles(known, PERCENTS) / metric.scale
    return _filled(
        metric, len(known), float(np.mean(known)) / metric.scale, cuts, _notes(metric, frame, notes)
    )


def _pooled(metric: Metric, pool: Pool, frame: _Frame) -> MetricSummary:
    if not pool.n:
        return _empty(metric)
    notes: list[str] = []
    if not pool.exact:
        notes.append(
            f"percentiles from a log-linear histogram at most 0.1 % wide: more than {EXACT_CAP:,} values"
        )
    cuts = np.clip(pool.percentiles(PERCENTS), pool.low, pool.high) / metric.scale
    cuts[0], cuts[-1] = pool.low / metric.scale, pool.high / metric.scale
    return _filled(metric, pool.n, pool.mean / metric.scale, cuts, _notes(metric, frame, notes))


def _rate(metric: Metric, frame: _Frame, load: LoadPoint) -> MetricSummary:
    totals = _totals(frame, load)
    value = metric.rate(totals) if metric.rate else math.nan
    if math.isnan(value):
        return _empty(metric)
    n: dict[str, int] = {"output_throughput": totals.output_tokens, "error_rate": totals.measured}
    return MetricSummary(
        unit=metric.unit,
        direction=metric.direction,
        definition=metric.definition,
        n=n.get(metric.tag, totals.completed),
        mean=value,
        note=_notes(metric, frame, []),
    )


def _totals(frame: _Frame, load: LoadPoint) -> Totals:
    window = load.window
    good = int(np.count_nonzero(frame.in_window & meets(frame.columns, load.slo))) if load.slo else None
    return Totals(
        window_s=(window.end_ns - window.start_ns) / NS_PER_S,
        completed=int(np.count_nonzero(frame.in_window)),
        good=good,
        input_tokens=float(np.nansum(frame.columns["input_tokens"][frame.in_window])),
        output_tokens=load.output_tokens_in_window,
        measured=int(np.count_nonzero(frame.measured)),
        failed=int(np.count_nonzero(frame.measured & frame.failed)),
    )


def _filled(metric: Metric, n: int, mean: float, cuts: FloatArray, note: str) -> MetricSummary:
    plain: list[Number] = [_plain(float(cut)) for cut in cuts]
    low, p50, p90, p95, p99, p999, high = plain
    return MetricSummary(
        unit=metric.unit,
        direction=metric.direction,
        definition=metric.definition,
        n=n,
        mean=_plain(mean),
        min=low,
        p50=p50,
        p90=p90,
        p95=p95,
        p99=p99,
        p999=p999,
        max=high,
        note=note,
    )


def _empty(metric: Metric) -> MetricSummary:
    note = _ABSENT.get(metric.tag, "no request has this value")
    return MetricSummary(
        unit=metric.unit, direction=metric.direction, definition=metric.definition, n=0, note=note
    )


def _plain(value: float) -> Number:
    return "inf" if math.isinf(value) else None if math.isnan(value) else value


def _notes(metric: Metric, frame: _Frame, notes: list[str]) -> str:
    if metric.tag in _BY_TOKENS:
        guessed = tally(frame.table, "token_source", frame.completed).get("estimate", 0)
        if guessed:
            notes.append(f"token counts of {guessed} requests are estimates")
    return "; ".join(notes)


def _counts(frame: _Frame, planned: int | None) -> Counts:
    phase = codes(frame.table, "phase", PHASES)
    trimmed = {name: int(np.count_nonzero(phase == place)) for place, name in enumerate(PHASES)}
    return Counts(
        planned=planned,
        sent=int(np.count_nonzero(~np.isnan(frame.columns["sent_ns"]))),
        completed=int(np.count_nonzero(frame.completed)),
        failed=int(np.count_nonzero(frame.failed)),
        cancelled=int(np.count_nonzero(~frame.completed & ~frame.failed)),
        trimmed_warmup=trimmed["warmup"],
        trimmed_cooldown=trimmed["cooldown"],
        recompiled=trimmed["recompiled"],
        measured=trimmed["measured"],
        errors=tally(frame.table, "error", frame.failed),
    )


def _reads(frame: _Frame) -> Reads:
    rows = frame.measured & frame.completed
    total = {name: int(np.sum(frame.columns[name][rows])) for name in COUNTED}
    gaps = int(np.sum(np.maximum(frame.columns["chunks"][rows] - 1, 0)))
    return Reads(gaps=gaps, **total)


def _delivered(frame: _Frame, load: LoadPoint) -> Delivered:
    window = load.window
    sent, width = frame.columns["sent_ns"], window.end_ns - window.start_ns
    inside = int(np.count_nonzero((sent >= window.start_ns) & (sent <= window.end_ns)))
    edges = np.array([window.start_ns, window.end_ns], np.float64)
    low, high = flight_integral(sent, frame.flight_end, edges)
    return Delivered(
        asked=load.arrival,
        asked_rate=load.asked_rate,
        rate=inside / width * NS_PER_S if width else 0.0,
        in_flight_mean=float(high - low) / width if width else 0.0,
        in_flight_max=flight_max(sent, frame.flight_end, window.start_ns, window.end_ns),
    )


def _client(frame: _Frame, conducts: Sequence[Conduct]) -> Client:
    lag = METRICS["dispatch_lag"].values(frame.columns)[frame.measured]
    p50, p99, most = percentiles(lag[~np.isnan(lag)], (50, 99, 100)) / NS_PER_MS
    steal = [conduct.steal_ratio for conduct in conducts if conduct.steal_ratio is not None]
    return Client(
        workers=len(conducts),
        timestamp_source="user" if any(one.timestamp_source == "user" for one in conducts) else "kernel",
        dispatch_lag_p50_ms=_finite(p50),
        dispatch_lag_p99_ms=_finite(p99),
        dispatch_lag_max_ms=_finite(most),
        cpu_s=sum(conduct.cpu_s + conduct.finishing_cpu_s for conduct in conducts),
        capture_cpu_s=sum(conduct.cpu_s for conduct in conducts),
        cpu_busy_max=max((one.cpu_s / one.wall_s for one in conducts if one.wall_s > 0), default=0.0),
        rss_max_bytes=sum(conduct.rss_max_bytes for conduct in conducts),
        clock_steps=sum(conduct.clock_steps for conduct in conducts),
        steal_ratio=max(steal, default=None),
        spin_s=sum(conduct.spin_s for conduct in conducts),
    )


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def _evidence(
    frame: _Frame, load: LoadPoint, client: Client, delivered: Delivered, metrics: Mapping[str, MetricSummary]
) -> Evidence:
    scheduled, sent = frame.columns["scheduled_ns"], frame.columns["sent_ns"]
    start, end = load.window.start_ns, load.window.end_ns
    medians = {tag: metrics[tag].p50 for tag in ("ttft", "e2el")}
    known = {tag: value if isinstance(value, float) else None for tag, value in medians.items()}
    return Evidence(
        **msgspec.structs.asdict(client),
        open_loop=load.open_loop,
        scheduled=int(np.count_nonzero((scheduled >= start) & (scheduled <= end))),
        sent=int(np.count_nonzero((scheduled >= start) & (scheduled <= end) & (sent <= end))),
        in_flight_max=delivered.in_flight_max,
        measured=int(np.count_nonzero(frame.measured)),
        ttft_p50_ms=known["ttft"],
        e2el_p50_ms=known["e2el"],
    )
