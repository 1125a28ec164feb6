"""Inter-token latency, pooled."""

from __future__ import annotations

from typing import Final

from tokenweir.core.metrics.base import Metric

ITL: Final = Metric(
    tag="itl",
    title="ITL",
    unit="ms",
    direction="lower",
    kind="pooled",
    definition=(
        "gap between consecutive output tokens, pooled over all requests; only chunks of one token each, "
        "and no gap that touches a read holding several events"
    ),
    source="vLLM benchmarks/serve.py; aiperf and GuideLLM use the name for a per-request mean",
)
