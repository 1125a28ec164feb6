"""What the gateway counts, in Prometheus' format."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from typing import Final

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    ProcessCollector,
    generate_latest,
)

from tokenweir.core.breaker import Closed, HalfOpen, Open
from tokenweir.core.errors import UnavailableError
from tokenweir.gateway.doors.measured import Measured
from tokenweir.gateway.endpoints.pool import Pool
from tokenweir.gateway.measures import Measures
from tokenweir.ports.quota import CountsReservations, QuotaStore

CONTENT_TYPE: Final = b"text/plain; version=0.0.4; charset=utf-8"
_BREAKER: Final[dict[type, int]] = {Closed: 0, HalfOpen: 1, Open: 2}


class Metrics:
    """Counters of one process."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.measures = Measures()
        self.measured = Measured(self.measures)
        self.registry.register(self.measured)
        # Memory, CPU time and descriptors of the process, where the system tells them.
        ProcessCollector(registry=self.registry)
        self._in_flight = Gauge("weir_gateway_in_flight", "Requests being answered.", registry=self.registry)
        self._unsettled = Gauge(
            "weir_gateway_unsettled",
            "Ended requests whose ledger row is not written yet.",
            registry=self.registry,
        )
        self._breakers = Gauge(
            "weir_gateway_endpoint_breaker",
            "An endpoint's circuit breaker: 0 closed, 1 half open, 2 open.",
            ("endpoint",),
            registry=self.registry,
        )
        self._endpoint_in_flight = Gauge(
            "weir_gateway_endpoint_in_flight",
            "Requests at an endpoint.",
            ("endpoint",),
            registry=self.registry,
        )
        self._endpoint_well = Gauge(
            "weir_gateway_endpoint_up",
            "1 where the last health check succeeded.",
            ("endpoint",),
            registry=self.registry,
        )
        self._endpoint_requests = Counter(
            "weir_gateway_endpoint_requests",
            "Requests that an endpoint has done with, by outcome (answered, failed).",
            ("endpoint", "outcome"),
            registry=self.registry,
        )
        self._told: dict[tuple[str, str], int] = {}
        self._open = Gauge(
            "weir_gateway_reservations_open",
            "Reservations that are not settled yet, of all gateways on the same store.",
            registry=self.registry,
        )

    async def reservations(self, quota: QuotaStore | None) -> None:
        """Set how many reservations are open, where the store can say; else it stays as it was."""
        if isinstance(quota, CountsReservations):
            with contextlib.suppress(UnavailableError):
                self._open.set(await quota.open_reservations())

    def render(self, pool: Pool, *, in_flight: int, unsettled: int) -> bytes:
        """Return all of it as text."""
        self._in_flight.set(in_flight)
        self._unsettled.set(unsettled)
        for state in pool.states():
            self._breakers.labels(state.name).set(_BREAKER[type(state.breaker)])
            self._endpoint_in_flight.labels(state.name).set(state.in_flight)
            self._endpoint_well.labels(state.name).set(state.well)
            for outcome, count in (("answered", state.answered), ("failed", state.failed)):
                key = state.name, outcome
                self._endpoint_requests.labels(*key).inc(count - self._told.get(key, 0))
                self._told[key] = count
        return generate_latest(self.registry)

    def names(self) -> Iterable[str]:
        """Return the names of all metrics."""
        return [metric.name for metric in self.registry.collect()]
