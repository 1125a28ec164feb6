"""What the queued path counts, in Prometheus' format."""

from __future__ import annotations

from typing import Final

from prometheus_client import CollectorRegistry, Gauge

from tokenweir.gateway.doors.streams import Streams
from tokenweir.gateway.queued.node import Queued, Workshop
from tokenweir.ports.queue import QueueDepth

_NS_PER_S: Final = 1_000_000_000


class QueuedMetrics:
    """Gauges of one process, set when they are asked for."""

    def __init__(self, registry: CollectorRegistry) -> None:
        def gauge(name: str, meaning: str) -> Gauge:
            return Gauge(f"weir_{name}", meaning, registry=registry)

        self._length = gauge("queue_length", "Jobs that wait for a worker.")
        self._out = gauge("queue_unacknowledged", "Jobs in the hands of workers.")
        self._age = gauge("queue_oldest_seconds", "How long the oldest job has waited.")
        self._dead = gauge("queue_dead_letters", "Jobs that were given up.")
        self._in_flight = gauge("worker_in_flight", "Queued requests that this process works on.")
        self._leases = gauge("worker_leases", "Requests whose lease this process renews.")
        self._buried = gauge("worker_buried", "Jobs that this process has given up since its start.")
        self._waiting = gauge("collector_waiting", "Ended requests that are not settled yet.")
        self._lag = gauge(
            "collector_settle_lag_seconds", "From the end of the last settled request to its settlement."
        )
        self._events = gauge("gateway_event_streams", "Open event streams.")
        self._sockets = gauge("gateway_websockets", "Open WebSockets.")

    def streams(self, streams: Streams) -> None:
        """Set what is open."""
        self._events.set(streams.events)
        self._sockets.set(streams.sockets)

    def work(self, shop: Workshop) -> None:
        """Set what is worked on and settled."""
        self._in_flight.set(shop.worker.in_flight)
        self._leases.set(len(shop.leases))
        self._buried.set(shop.worker.buried)
        self._waiting.set(shop.ends.waiting)
        self._lag.set(shop.ends.lag_ns / _NS_PER_S)

    def depth(self, depth: QueueDepth | None) -> None:
        """Set how the queue stands."""
        if depth is None:
            return
        self._length.set(depth.ready)
        self._out.set(depth.unacknowledged)
        self._age.set(depth.oldest_ns / _NS_PER_S)
        self._dead.set(depth.dead)

    async def look(self, path: Queued, streams: Streams) -> None:
        """Set all of it."""
        self.streams(streams)
        self.work(path)
        self.depth(await path.measure())
