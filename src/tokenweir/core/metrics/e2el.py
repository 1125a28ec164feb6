"""End-to-end latency, from the send time."""

from __future__ import annotations

from typing import Final

from tokenweir.core.metrics.base import NEVER, Metric, between

E2EL: Final = Metric(
    tag="e2el",
    title="E2EL",
    unit="ms",
    direction="lower",
    kind="request",
    definition="last byte received − send time",
    source="vLLM benchmarks/serve.py",
    needs=("sent_ns", "end_ns"),
    if_failed=NEVER,
    formula=between("sent_ns", "end_ns"),
)
