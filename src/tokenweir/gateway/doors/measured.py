"""What was counted, as Prometheus wants it: see :mod:`tokenweir.gateway.measures`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from tokenweir import __version__
from tokenweir.core.ids import format_id
from tokenweir.gateway.measures import Measures
from tokenweir.telemetry import log_counts
from tokenweir.telemetry.bins import Bins
from tokenweir.telemetry.refusals import Refusals

_IDS: Final = {"key": "key", "user": "usr", "team": "team"}


class Measured(Collector):
    """Tells the counts of a process. ``refusals`` are those of its TLS listener."""

    def __init__(self, measures: Measures) -> None:
        self._measures = measures
        self.refusals: Refusals | None = None
        log_counts.counts()

    def collect(self) -> Iterable[Metric]:
        """Yield every family."""
        yield from self._answers()
        yield from self._work()
        yield from self._settlements()
        yield self._used()
        yield from self._process()

    def _answers(self) -> Iterable[Metric]:
        measures = self._measures
        yield _counter("weir_gateway_requests", "Requests answered.", ("route", "status"), measures.requests)
        yield _histogram(
            "weir_gateway_request_duration_seconds",
            "From the request's head to the answer's end.",
            ("route",),
            measures.duration,
        )
        yield _counter(
            "weir_gateway_tokens",
            "Tokens charged, by model and kind (input, output, cached).",
            ("model", "kind"),
            measures.tokens,
        )
        yield _histogram(
            "weir_gateway_ttft_seconds",
            "From a request's body to the first token of its streamed answer; queued: from asking the endpoint.",
            ("model", "path"),
            measures.ttft,
        )
        yield _histogram(
            "weir_gateway_itl_seconds",
            "Between the tokens of a streamed answer; a read of several spreads its gap over them.",
            ("model", "path"),
            measures.itl,
        )
        yield _counter(
            "weir_gateway_errors",
            "Requests that ended in an error, by its code.",
            ("code",),
            {(code,): count for code, count in measures.refused.items()},
        )

    def _work(self) -> Iterable[Metric]:
        measures = self._measures
        yield _counter(
            "weir_gateway_queued_tokens",
            "Tokens set aside for queued requests when they were accepted, by model.",
            ("model",),
            {(model,): count for model, count in measures.queued_tokens.items()},
        )
        yield _counter(
            "weir_worker_tokens",
            "Tokens that endpoints took for queued requests, by model and kind (input, output, cached).",
            ("model", "kind"),
            measures.worked,
        )

    def _settlements(self) -> Iterable[Metric]:
        measures = self._measures
        yield _counter(
            "weir_settled_requests",
            "Rows written to the ledger, by model, ending and source of the count.",
            ("model", "ending", "source"),
            measures.settled,
        )
        yield _counter(
            "weir_settled_tokens",
            "Tokens in those rows, by model and kind (input, output, cached).",
            ("model", "kind"),
            measures.settled_tokens,
        )
        yield _histogram(
            "weir_settle_lag_seconds",
            "From a request's end to its row in the ledger.",
            (),
            {(): measures.lag},
        )

    def _process(self) -> Iterable[Metric]:
        yield _counter(
            "weir_log_lines",
            "Warnings and errors in the log, by the component that wrote them and level.",
            ("component", "level"),
            log_counts.counts(),
        )
        refused: Mapping[str, int] = {} if self.refusals is None else self.refusals.counts
        yield _counter(
            "weir_tls_refused",
            "Clients that the TLS listener refused, by reason.",
            ("reason",),
            {(reason,): count for reason, count in refused.items()},
        )
        build = GaugeMetricFamily("weir_build_info", "The version that runs; always 1.", labels=("version",))
        build.add_metric((__version__,), 1)
        yield build

    def _used(self) -> Metric:
        family = GaugeMetricFamily(
            "weir_quota_used_ratio",
            "How much of a limit is used or set aside, of those asked for in windows that last; 1 is all.",
            labels=("scope", "subject", "unit", "window", "model"),
        )
        for room in self._measures.rooms():
            limit = room.limit
            subject = format_id(_IDS[limit.scope], int.from_bytes(limit.subject, "big"))
            used = 1 - room.remaining / limit.amount if limit.amount else 1.0
            family.add_metric((limit.scope, subject, limit.unit, limit.window, limit.model), used)
        return family


def _counter(
    name: str, what: str, labels: tuple[str, ...], counts: Mapping[tuple[str, ...], int]
) -> CounterMetricFamily:
    family = CounterMetricFamily(name, what, labels=labels)
    for values, count in counts.items():
        family.add_metric(values, count)
    return family


def _histogram(
    name: str, what: str, labels: tuple[str, ...], all_bins: Mapping[tuple[str, ...], Bins]
) -> HistogramMetricFamily:
    family = HistogramMetricFamily(name, what, labels=labels)
    for values, bins in all_bins.items():
        buckets, total = bins.buckets()
        family.add_metric(values, buckets, total)
    return family
