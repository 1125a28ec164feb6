"""Time to first token, from the scheduled time."""

from __future__ import annotations

from typing import Final

from tokenweir.core.metrics.base import NEVER, Metric, between

TTFT_SCHEDULED: Final = Metric(
    tag="ttft_scheduled",
    title="TTFT from schedule",
    unit="ms",
    direction="lower",
    kind="request",
    definition="first token received − scheduled time",
    source="MLPerf LoadGen: latency counts from the scheduled time, so a late client cannot hide",
    needs=("scheduled_ns", "first_token_ns"),
    if_failed=NEVER,
    formula=between("scheduled_ns", "first_token_ns"),
)
