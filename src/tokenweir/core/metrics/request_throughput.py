"""Completed requests per second."""

from __future__ import annotations

from typing import Final

from tokenweir.core.metrics.base import NAN, Metric, Totals


def _rate(totals: Totals) -> float:
    return totals.completed / totals.window_s if totals.window_s > 0 else NAN


REQUEST_THROUGHPUT: Final = Metric(
    tag="request_throughput",
    title="Request throughput",
    unit="requests/s",
    direction="higher",
    kind="rate",
    definition="requests completed inside the window / window",
    source="vLLM benchmarks/serve.py",
    rate=_rate,
)
