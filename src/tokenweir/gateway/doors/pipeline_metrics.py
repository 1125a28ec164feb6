"""What the processors of this process did, in Prometheus' format."""

from __future__ import annotations

from collections import Counter as Counts

from prometheus_client import CollectorRegistry, Counter

from tokenweir.gateway.pipeline.line import Line, Outcome
from tokenweir.gateway.pipeline.processor import Stage


class PipelineMetrics:
    """Counters of one process, set when they are asked for."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._processed = Counter(
            "weir_gateway_processed",
            "Requests that passed a processor, by stage, processor and outcome (passed, changed, answered, refused).",
            ("stage", "use", "outcome"),
            registry=registry,
        )
        self._told: Counts[tuple[Stage, str, Outcome]] = Counts()

    def look(self, stage: Stage, line: Line | None) -> None:
        """Set those of a stage."""
        if line is None:
            return
        for (use, outcome), count in line.counts.items():
            self._processed.labels(stage, use, outcome).inc(count - self._told[stage, use, outcome])
            self._told[stage, use, outcome] = count
