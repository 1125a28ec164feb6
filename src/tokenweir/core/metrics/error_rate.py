"""The share of requests that failed."""

from __future__ import annotations

from typing import Final

from tokenweir.core.metrics.base import NAN, Metric, Totals


def _rate(totals: Totals) -> float:
    return totals.failed / totals.measured if totals.measured else NAN


ERROR_RATE: Final = Metric(
    tag="error_rate",
    title="Error rate",
    unit="ratio",
    direction="lower",
    kind="rate",
    definition="failed requests / requests of the measured phase",
    source="MLPerf LoadGen; aiperf",
    rate=_rate,
)
