"""How late the client itself was."""

from __future__ import annotations

from typing import Final

from tokenweir.core.metrics.base import Metric, between

DISPATCH_LAG: Final = Metric(
    tag="dispatch_lag",
    title="Dispatch lag",
    unit="ms",
    direction="lower",
    kind="request",
    definition="send time − scheduled time: the client's own delay",
    source="vllm#54101: clients that start the clock after their own queue hide it",
    needs=("scheduled_ns", "sent_ns"),
    formula=between("scheduled_ns", "sent_ns"),
)
