"""Input and output tokens per second."""

from __future__ import annotations

from typing import Final

from tokenweir.core.metrics.base import NAN, Metric, Totals


def _rate(totals: Totals) -> float:
    return (totals.input_tokens + totals.output_tokens) / totals.window_s if totals.window_s > 0 else NAN


TOTAL_THROUGHPUT: Final = Metric(
    tag="total_throughput",
    title="Total throughput",
    unit="tokens/s",
    direction="higher",
    kind="rate",
    definition=(
        "input tokens of requests completed inside the window + output tokens received inside it, / window"
    ),
    source="vLLM benchmarks/serve.py",
    rate=_rate,
)
