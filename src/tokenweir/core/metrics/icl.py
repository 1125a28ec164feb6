"""Inter-chunk latency, pooled."""

from __future__ import annotations

from typing import Final

from tokenweir.core.metrics.base import Metric

ICL: Final = Metric(
    tag="icl",
    title="ICL",
    unit="ms",
    direction="lower",
    kind="pooled",
    definition="gap between consecutive stream chunks, pooled",
    source="aiperf inter_chunk_latency_metric",
)
