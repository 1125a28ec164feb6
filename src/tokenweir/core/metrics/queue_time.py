"""How long the engine kept the request waiting."""

from __future__ import annotations

from typing import Final

from tokenweir.core.metrics.base import Metric, same

QUEUE_TIME: Final = Metric(
    tag="queue_time",
    title="Queue time",
    unit="ms",
    direction="lower",
    kind="request",
    definition="enqueued → scheduled, as the server reports it",
    source="vLLM request_queue_time_seconds; SGLang meta_info queue_time",
    needs=("server_queue_ns",),
    formula=same("server_queue_ns"),
)
