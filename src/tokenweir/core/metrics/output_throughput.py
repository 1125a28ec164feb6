"""Output tokens per second."""

from __future__ import annotations

from typing import Final

from tokenweir.core.metrics.base import NAN, Metric, Totals


def _rate(totals: Totals) -> float:
    return totals.output_tokens / totals.window_s if totals.window_s > 0 else NAN


OUTPUT_THROUGHPUT: Final = Metric(
    tag="output_throughput",
    title="Output throughput",
    unit="tokens/s",
    direction="higher",
    kind="rate",
    definition="output tokens received inside the window / window",
    source="vLLM benchmarks/serve.py",
    rate=_rate,
)
