"""How batches stand, in Prometheus' format."""

from __future__ import annotations

import contextlib
from collections import Counter as Counts
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge

from tokenweir.core.errors import UnavailableError
from tokenweir.gateway.batches.state import Status
from tokenweir.gateway.batches.working import BatchWorks

_STATUSES: Final[tuple[Status, ...]] = ("validating", "in_progress", "finalizing", "cancelling")
_ENDS: Final[tuple[Status, ...]] = ("completed", "failed", "expired", "cancelled")
_OUTCOMES: Final = ("completed", "failed")


class BatchMetrics:
    """Metrics of one process, set when they are asked for."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._open = Gauge(
            "weir_batches_open",
            "Batches that have not ended, of all gateways on the same store.",
            registry=registry,
        )
        self._held = Gauge(
            "weir_batches", "Batches that this process works on, by status.", ("status",), registry=registry
        )
        self._ended = Counter(
            "weir_batches_ended",
            "Batches that this process has worked on to their end, by status.",
            ("status",),
            registry=registry,
        )
        self._lines = Counter(
            "weir_batch_lines",
            "Lines of batches that have ended, by outcome (completed, failed).",
            ("outcome",),
            registry=registry,
        )
        for status in _STATUSES:
            self._held.labels(status)
        for status in _ENDS:
            self._ended.labels(status)
        for outcome in _OUTCOMES:
            self._lines.labels(outcome)
        self._told: Counts[tuple[str, str]] = Counts()

    async def look(self, works: BatchWorks) -> None:
        """Set all of it; while the store is away, the number of those that are open stays as it was."""
        held = works.held()
        for status in _STATUSES:
            self._held.labels(status).set(held[status])
        for status, count in works.counts.ended.items():
            self._ended.labels(status).inc(count - self._told["ended", status])
            self._told["ended", status] = count
        for outcome, count in works.counts.lines.items():
            self._lines.labels(outcome).inc(count - self._told["lines", outcome])
            self._told["lines", outcome] = count
        with contextlib.suppress(UnavailableError):
            self._open.set(await works.open())
