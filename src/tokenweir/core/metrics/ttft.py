"""Time to first token, from the send time."""

from __future__ import annotations

from typing import Final

from tokenweir.core.metrics.base import NEVER, Metric, between

TTFT: Final = Metric(
    tag="ttft",
    title="TTFT",
    unit="ms",
    direction="lower",
    kind="request",
    definition="first token received − send time",
    source="OpenTelemetry GenAI time_to_first_token; vLLM benchmarks/serve.py; aiperf ttft_metric",
    needs=("sent_ns", "first_token_ns"),
    if_failed=NEVER,
    formula=between("sent_ns", "first_token_ns"),
)
