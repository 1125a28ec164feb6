"""Completed requests per second that meet every stated service level objective (SLO)."""

from __future__ import annotations

from typing import Final

from tokenweir.core.metrics.base import NAN, Metric, Totals


def _rate(totals: Totals) -> float:
    return totals.good / totals.window_s if totals.good is not None and totals.window_s > 0 else NAN


GOODPUT: Final = Metric(
    tag="goodput",
    title="Goodput",
    unit="requests/s",
    direction="higher",
    kind="rate",
    definition="completed requests that meet all stated SLOs / window",
    source="DistServe; vLLM benchmarks/serve.py; aiperf",
    rate=_rate,
)
