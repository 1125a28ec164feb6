"""Metrics, probes and traces of gateway, worker, collector and notifier as processes of their own."""

from __future__ import annotations

import http.client
import ssl
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from deploy.test_ca import TestCa
from opentelemetry.proto.trace.v1.trace_pb2 import Span
from prometheus_client.parser import text_string_to_metric_families
from tests.factories.gateways import endpoint
from tests.factories.otlp import otlp_sink
from tests.factories.queued import waiting
from tests.factories.scaled import scaled

from tokenweir.asgi.tls import Identity, client_context
from tokenweir.sim.process import SimProcess

pytestmark = [pytest.mark.xdist_group("services"), pytest.mark.timeout(300)]

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"


def told(url: str, path: str, tls: ssl.SSLContext | None = None) -> tuple[int, str]:
    """Return status and body of a GET."""
    place = urlsplit(url)
    host, port = place.hostname or "", place.port
    connection = (
        http.client.HTTPConnection(host, port, timeout=30)
        if tls is None
        else http.client.HTTPSConnection(host, port, timeout=30, context=tls)
    )
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status, answer.read().decode()
    finally:
        connection.close()


def sums(url: str, tls: ssl.SSLContext | None = None) -> Mapping[str, float]:
    """Return the sum of all samples of each name."""
    status, text = told(url, "/metrics", tls)
    assert status == 200
    found: dict[str, float] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            found[sample.name] = found.get(sample.name, 0.0) + sample.value
    return found


def test_each_process_tells_of_its_own_part(service_urls: dict[str, str], tmp_path: Path) -> None:
    ca = TestCa(tmp_path / "ca")
    server, scraper = ca.issue("server"), ca.issue("scraper")
    shown = client_context(
        ca=ca.certificate, identity=Identity(certificate=scraper.certificate, key=scraper.key)
    )
    with SimProcess(ttft="constant:5ms", itl="constant:5ms") as sim, otlp_sink() as sink:
        settings = (
            f'[telemetry]\ntraces = "{sink.url}"\n[worker]\nmetrics_port = 0\n[collector]\nmetrics_port = 0\n'
            f'[worker.tls]\ncertificate = "{server.certificate}"\nkey = "{server.key}"\n'
            f'client_ca = "{ca.certificate}"\n'
        )
        with scaled(tmp_path, service_urls, settings + endpoint("one", sim.url)) as made:
            door, worker, collector, notifier = children = made.start(
                ("gateway", "--port", "0"), ("worker",), ("collector",), ("notifier", "--port", "0")
            )
            user = made.user(door)
            accepted = user.ask(
                "POST",
                "/v1/requests",
                {
                    "model": "sim",
                    "mode": "stream",
                    "max_tokens": 9,
                    "messages": [{"role": "user", "content": "hi"}],
                },
                traceparent=f"00-{TRACE}-00f067aa0ba902b7-01",
            )
            assert accepted.status == 202
            user.until(str(accepted.json()["request_id"]), "completed")
            assert worker.url.startswith("https://")
            with pytest.raises((ssl.SSLError, ConnectionResetError, http.client.RemoteDisconnected)):
                told(worker.url, "/metrics", client_context(ca=ca.certificate))
            at_worker = sums(worker.url, shown)
            assert at_worker["weir_worker_tokens_total"] > 9
            assert at_worker["weir_gateway_ttft_seconds_count"] == 1
            assert at_worker["weir_gateway_itl_seconds_count"] == 8
            assert at_worker["weir_gateway_endpoint_requests_total"] >= 1
            assert at_worker["weir_tls_refused_total"] == 1
            assert at_worker["weir_queue_length"] == 0
            settled = waiting(
                lambda: found if (found := sums(collector.url)).get("weir_settled_requests_total") else None,
                "the collector's row",
            )
            assert settled["weir_settled_tokens_total"] > 9
            assert settled["weir_settle_lag_seconds_count"] == 1
            at_door = sums(door.url)
            assert at_door["weir_gateway_queued_tokens_total"] > 9
            assert at_door["weir_gateway_reservations_open"] == 0
            assert sums(notifier.url)["weir_build_info"] == 1
            for child, tls in ((door, None), (worker, shown), (collector, None), (notifier, None)):
                for path in ("/health", "/ready"):
                    assert told(child.url, path, tls)[0] == 200, (child.name, path)
            assert told(collector.url, "/v1/requests")[0] == 404
            for child in children:
                assert child.stop() == 0
        ours = [(service, span) for service, span in sink.spans if span.trace_id.hex() == TRACE]
        (server_span,) = (span for service, span in ours if service == "weir-gateway")
        (worker_span,) = (span for service, span in ours if service == "weir-worker")
        (settle_span,) = (span for service, span in ours if service == "weir-collector")
        assert worker_span.kind == Span.SPAN_KIND_CLIENT
        assert (settle_span.kind, settle_span.name) == (Span.SPAN_KIND_CONSUMER, "settle")
        assert worker_span.parent_span_id == settle_span.parent_span_id == server_span.span_id
