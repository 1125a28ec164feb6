"""How the brown-out stands, in Prometheus' format and for the probe of health."""

from __future__ import annotations

from collections import Counter as Counts
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge

from tokenweir.core.requests import Json
from tokenweir.gateway.brownout.brownout import Brownout

_NS_PER_S: Final = 1_000_000_000


class BrownoutMetrics:
    """Metrics of one process, set when they are asked for."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._rung = Gauge(
            "weir_gateway_brownout_rung", "Rungs of the brown-out that hold; 0 is none.", registry=registry
        )
        self._pressure = Gauge(
            "weir_gateway_brownout_pressure",
            "The worst wait as a multiple of its objective, at the last look.",
            registry=registry,
        )
        self._ttft = Gauge(
            "weir_gateway_brownout_ttft_seconds",
            "The quantile of times to the first token that is looked at; 0 where too few are known.",
            registry=registry,
        )
        self._degraded = Counter(
            "weir_gateway_degraded",
            "Requests of which less was made under load, by what was done.",
            ("does",),
            registry=registry,
        )
        self._told: Counts[str] = Counts()

    def look(self, brownout: Brownout) -> None:
        """Set all of it."""
        self._rung.set(brownout.rung)
        self._pressure.set(brownout.waits.pressure)
        self._ttft.set((brownout.waits.ttft_ns or 0) / _NS_PER_S)
        for does, count in brownout.counts.items():
            self._degraded.labels(does).inc(count - self._told[does])
            self._told[does] = count


def state_of(brownout: Brownout) -> dict[str, Json]:
    """Return how it stands, for the probe of health."""
    waits = brownout.waits
    return {
        "rung": brownout.rung,
        "doing": list(brownout.doing),
        "state": type(brownout.state).__name__.lower(),
        "pressure": round(waits.pressure, 3),
        "ttft_ms": None if waits.ttft_ns is None else round(waits.ttft_ns / 1e6, 1),
        "queue_age_ms": None if waits.queue_age_ns is None else round(waits.queue_age_ns / 1e6, 1),
    }
