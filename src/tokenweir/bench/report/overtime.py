"""What happened when: latency, throughput and the inter-token heat map over the time of one load point."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from tokenweir.bench.records.columns import STATUSES
from tokenweir.bench.records.model import LoadResult
from tokenweir.bench.records.series import BINS_PER_OCTAVE, bin_edge_ns
from tokenweir.bench.report.latencies import NS_PER_MS, NS_PER_S
from tokenweir.bench.report.payload import Chart, Heat, Line, instants, numbers
from tokenweir.bench.report.tables import IntArray, Requests, Series
from tokenweir.core.metrics.base import FloatArray

MAX_BINS: Final = 180
MAX_HEAT_COLUMNS: Final = 120
MAX_HEAT_ROWS: Final = 72
MAX_DOTS: Final = 500
_WIDTHS: Final = (1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200)
# Of a bin that the load covers less than this, a rate would be noise.
_LEAST_COVER: Final = 0.4


@dataclass(frozen=True, slots=True)
class Span:
    """The time of one load point, seconds since the run's start: first send to last byte, and its window."""

    start: float
    end: float
    window: tuple[float, float]

    def width(self, most: int) -> int:
        """Return the narrowest usual width, in whole seconds, that needs at most ``most`` bins."""
        length = self.end - self.start
        return next((width for width in _WIDTHS if length / width <= most), _WIDTHS[-1])


def span_of(load: LoadResult, requests: Requests) -> Span:
    """Return when the load point began and ended."""
    window = load.summary.window
    bounds = (window.start_ns / NS_PER_S, window.end_ns / NS_PER_S)
    times = np.concatenate([requests.columns["sent_ns"], requests.columns["end_ns"]])
    times = times[np.isfinite(times)] / NS_PER_S
    if not len(times):
        return Span(start=bounds[0], end=max(bounds[1], bounds[0] + 1e-3), window=bounds)
    return Span(start=float(times.min()), end=float(max(times.max(), times.min() + 1e-3)), window=bounds)


def ttft_over_time(requests: Requests, span: Span, detail: float = 1.0) -> Chart | None:
    """Return TTFT by send time: percentiles per bin, and requests as dots, fewer with less ``detail``."""
    sent, first = requests.columns["sent_ns"], requests.columns["first_token_ns"]
    known = np.isfinite(sent) & np.isfinite(first) & (requests.status == STATUSES.index("completed"))
    if not known.any():
        return None
    at = sent[known] / NS_PER_S
    value = (first[known] - sent[known]) / NS_PER_MS
    width = span.width(MAX_BINS // 3)
    place = ((at - span.start) // width).astype(np.int64)
    order = np.lexsort((value, place))
    place, value_sorted = place[order], value[order]
    starts = np.flatnonzero(np.r_[True, np.diff(place) > 0])
    sizes = np.diff(np.r_[starts, len(place)])
    middle = span.start + (place[starts] + 0.5) * width
    lines = [
        Line(
            name=name, role=role, x=instants(middle), y=numbers(_grouped(value_sorted, starts, sizes, share))
        )
        for name, role, share in (("p50", "main", 0.5), ("p90", "second", 0.9), ("p99", "variant", 0.99))
    ]
    step = max(1, -(-len(at) // max(1, int(MAX_DOTS * detail))))
    rule = "every request" if step == 1 else f"one request in {step:,}"
    lines.append(Line(name="request", role="dots", x=instants(at[::step]), y=numbers(value[::step])))
    return Chart(
        id="time-ttft",
        title="Time to first token over time",
        caption=f"By send time: percentiles of each {width} s, and {rule} as a dot.",
        x="since the run's start",
        x_unit="s",
        y="TTFT",
        y_unit="ms",
        lines=lines,
        shade=span.window,
        n=len(at),
    )


def throughput_over_time(series: Series, span: Span) -> list[Chart]:
    """Return the rates of tokens and requests, and the requests in flight."""
    width = span.width(MAX_BINS)
    tokens = _rate(series, "output_tokens", span, width, role="main")
    requests = [
        _rate(series, name, span, width, role=role)
        for name, role in (("sent", "second"), ("completed", "main"), ("failed", "bad"))
    ]
    found = [
        ("time-tokens", "Output throughput over time", "output tokens", "tokens/s", [tokens]),
        ("time-requests", "Requests over time", "requests", "requests/s", requests),
        ("time-flight", "Requests in flight", "in flight", "requests", [_in_flight(series, span, width)]),
    ]
    return [
        Chart(
            id=name,
            title=title,
            caption=f"Mean of each {width} s, at the time of the event.",
            x="since the run's start",
            x_unit="s",
            y=quantity,
            y_unit=unit,
            lines=[line for line in lines if line is not None],
            shade=span.window,
        )
        for name, title, quantity, unit, lines in found
        if any(line is not None for line in lines)
    ]


def heat_map(series: Series, span: Span, detail: float = 1.0) -> Heat | None:
    """Return counts of inter-token gaps over time and latency, in fewer columns the less ``detail``."""
    second, bins, count = series.of("itl")
    if not len(second):
        return None
    width = span.width(max(1, int(MAX_HEAT_COLUMNS * detail)))
    origin = int(span.start)
    lowest, highest = int(bins.min()), int(bins.max())
    group = -(-(highest - lowest + 1) // MAX_HEAT_ROWS)
    rows = (highest - lowest) // group + 1
    columns = int((int(second.max()) - origin) // width) + 1
    place = np.maximum(second - origin, 0) // width
    grid = np.bincount(place * rows + (bins - lowest) // group, weights=count, minlength=columns * rows)
    filled = np.flatnonzero(grid)
    cells = np.column_stack([filled // rows, filled % rows, grid[filled].astype(np.int64)])
    edges = bin_edge_ns(lowest + group * np.arange(rows + 1)) / NS_PER_MS
    wide = 100 * (2 ** (group / BINS_PER_OCTAVE) - 1)
    return Heat(
        id="heat-itl",
        title="Inter-token latency over time",
        caption=f"Measured gaps in each {width} s, in bins {wide:.1f} % wide; the colour is the count, log scale.",
        start=float(origin),
        width=float(width),
        columns=columns,
        edges_ms=[float(f"{edge:.4g}") for edge in edges],
        cells=cells.ravel().tolist(),
        shade=span.window,
        n=int(count.sum()),
    )


def _grouped(ordered: FloatArray, starts: IntArray, sizes: IntArray, share: float) -> FloatArray:
    """Return the percentile of each group of an array that is ordered within its groups."""
    position = starts + share * (sizes - 1)
    low = np.floor(position).astype(np.int64)
    high = np.ceil(position).astype(np.int64)
    weight = position - low
    return ordered[low] * (1 - weight) + ordered[high] * weight


def _per_bin(
    second: IntArray, count: IntArray, span: Span, width: int
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Return each bin's middle, its total, and how many of its seconds the load covers."""
    origin = int(span.start)
    bins = max(1, -(-int(np.ceil(span.end) - origin) // width))
    place = (second - origin) // width
    inside = (place >= 0) & (place < bins)
    total = np.bincount(place[inside], weights=count[inside], minlength=bins).astype(np.float64)
    left = origin + width * np.arange(bins, dtype=np.float64)
    begins = np.maximum(left, span.start)
    ends = np.minimum(left + width, span.end)
    return (begins + ends) / 2, total, np.maximum(ends - begins, 0)


def _rate(series: Series, metric: str, span: Span, width: int, *, role: str) -> Line | None:
    second, _, count = series.of(metric)
    if not len(second):
        return None
    middle, total, cover = _per_bin(second, count, span, width)
    kept = (cover >= _LEAST_COVER * width) | (len(middle) == 1)
    rate = total[kept] / np.maximum(cover[kept], 1e-3)
    return Line(name=metric, role=role, x=instants(middle[kept]), y=numbers(rate))


def _in_flight(series: Series, span: Span, width: int) -> Line | None:
    second, _, count = series.of("in_flight")
    if not len(second):
        return None
    middle, total, _ = _per_bin(second, count, span, width)
    _, seconds, _ = _per_bin(second, np.ones(len(second), dtype=np.int64), span, width)
    kept = seconds > 0
    return Line(
        name="in_flight",
        role="main",
        x=instants(middle[kept]),
        y=numbers(total[kept] / seconds[kept] / 1000),
    )
