"""Distributions of latency: from requests exactly, from the per-second counts where only those are kept."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np

from tokenweir.bench.records.columns import PHASES, STATUSES
from tokenweir.bench.records.series import bin_edge_ns
from tokenweir.bench.report.payload import Chart, Line, Mark, numbers, rounded
from tokenweir.bench.report.tables import Requests, Series
from tokenweir.core.metrics.base import FloatArray
from tokenweir.core.metrics.registry import METRICS

NS_PER_MS: Final = 1e6
NS_PER_S: Final = 1e9
# Even steps through the body, then ever finer ones into the tail.
_BODY: Final = np.arange(0.0, 0.99, 0.01)
_TAIL: Final = 1.0 - np.power(10.0, -np.arange(2.0, 5.01, 0.125))
SHARES: Final = np.concatenate([_BODY, _TAIL, [1.0]])
_LOG_SPREAD: Final = 12.0


@dataclass(frozen=True, slots=True)
class CdfSpec:
    """Which metrics share one chart of distributions; the second is drawn as a variant of the first.

    ``of_server`` says whether a failed request may count as infinite: it has no part in the client's own delay.
    """

    id: str
    title: str
    tags: tuple[str, ...]
    of_server: bool = True


CDFS: Final = (
    CdfSpec("cdf-ttft", "Time to first token", ("ttft", "ttft_scheduled")),
    CdfSpec("cdf-tpot", "Time per output token", ("tpot",)),
    CdfSpec("cdf-e2el", "End-to-end latency", ("e2el", "e2el_scheduled")),
    CdfSpec("cdf-lag", "Dispatch lag: the client's own delay", ("dispatch_lag",), of_server=False),
)


def curve(values: FloatArray, failures: int) -> list[float]:
    """Return the latency at each of ``SHARES``; ``failures`` count as infinite, so the curve ends below 1."""
    ordered = np.sort(values)
    total = len(ordered) + failures
    position = SHARES * (total - 1)
    low = np.floor(position).astype(np.int64)
    high = np.ceil(position).astype(np.int64)
    known = high < len(ordered)
    result = np.full(len(SHARES), np.nan)
    weight = position[known] - low[known]
    start, end = ordered[low[known]], ordered[high[known]]
    result[known] = start + (end - start) * weight
    return result.tolist()


def request_cdfs(requests: Requests, *, slo_ms: Mapping[str, float], failures_count: bool) -> list[Chart]:
    """Return the distributions of the metrics that have one value per request."""
    failed = (requests.status == STATUSES.index("failed")) & (requests.phase == PHASES.index("measured"))
    charts: list[Chart] = []
    for spec in CDFS:
        failures = int(failed.sum()) if failures_count and spec.of_server else 0
        lines: list[Line] = []
        n = 0
        for place, tag in enumerate(spec.tags):
            metric = METRICS[tag]
            needed = {name: requests.columns[name][requests.measured] for name in metric.needs}
            values = metric.values(needed) / metric.scale
            values = values[np.isfinite(values)]
            if not len(values):
                continue
            n = max(n, len(values) + failures)
            role = "main" if place == 0 else "variant"
            xs = numbers(curve(values, failures))
            lines.append(Line(name=tag, role=role, x=xs, y=numbers(SHARES)))
        if lines:
            caption = METRICS[spec.tags[0]].definition
            caption = f"{caption[:1].upper()}{caption[1:]}."
            charts.append(_cdf(spec, lines, n=n, marks=_slo_marks(spec.tags, slo_ms), caption=caption))
    return charts


def itl_cdf(series: Series) -> Chart | None:
    """Return the distribution of the measured phase's inter-token gaps, from the per-second counts."""
    _, bins, count = series.of("itl")
    total = int(count.sum())
    if not total:
        return None
    lowest, highest = int(bins.min()), int(bins.max())
    counts = np.bincount(bins - lowest, weights=count, minlength=highest - lowest + 1)
    edges = bin_edge_ns(np.arange(lowest, highest + 2)) / NS_PER_MS
    shares = np.concatenate([[0.0], np.cumsum(counts) / total])
    lines = [
        Line(name="itl", role="main", x=numbers(edges), y=[rounded(float(share), 7) for share in shares])
    ]
    spec = CdfSpec("cdf-itl", "Inter-token latency", ("itl",))
    caption = "Gaps between output tokens, all requests together, in bins 4.4 % wide."
    return _cdf(spec, lines, n=total, marks=[], caption=caption)


def _cdf(spec: CdfSpec, lines: list[Line], *, n: int, marks: list[Mark], caption: str) -> Chart:
    finite = [x for x in lines[0].x if x is not None and x > 0]
    spread = finite[-1] / finite[0] if finite else 1.0
    if spread > _LOG_SPREAD and 0 in lines[0].x:
        caption = f"{caption} What is 0 stands at the left edge."
    return Chart(
        id=spec.id,
        title=spec.title,
        caption=caption,
        kind="cdf",
        x="latency",
        x_unit="ms",
        y="share",
        y_unit="",
        lines=lines,
        log_x=spread > _LOG_SPREAD,
        marks=marks,
        n=n,
    )


def _slo_marks(tags: tuple[str, ...], slo_ms: Mapping[str, float]) -> list[Mark]:
    return [Mark(at=slo_ms[tag], label=f"SLO {tag}") for tag in tags if tag in slo_ms]
