"""End-to-end latency, from the scheduled time."""

from __future__ import annotations

from typing import Final

from tokenweir.core.metrics.base import NEVER, Metric, between

E2EL_SCHEDULED: Final = Metric(
    tag="e2el_scheduled",
    title="E2EL from schedule",
    unit="ms",
    direction="lower",
    kind="request",
    definition="last byte received − scheduled time",
    source="MLPerf LoadGen: latency counts from the scheduled time, so a late client cannot hide",
    needs=("scheduled_ns", "end_ns"),
    if_failed=NEVER,
    formula=between("scheduled_ns", "end_ns"),
)
