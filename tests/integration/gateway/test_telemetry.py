"""Metrics and traces of a real gateway: what it counts, and what it sends to a receiver of OTLP."""

from __future__ import annotations

import urllib.request
from collections.abc import Mapping
from pathlib import Path

import pytest
from opentelemetry.proto.trace.v1.trace_pb2 import Span
from prometheus_client.parser import text_string_to_metric_families
from tests.factories.gateways import GatewayProcess, endpoint, gateway
from tests.factories.otlp import otlp_sink, remembering, remembering_rpc
from tests.factories.queued import Answer, User, waiting

from tokenweir.sim.process import SimProcess

CHAT = {"model": "sim", "messages": [{"role": "user", "content": "the sparrow flies"}], "max_tokens": 8}
TRACE = "0af7651916cd43dd8448eb211c80319c"
PARENT = f"00-{TRACE}-b7ad6b7169203331-01"

Samples = Mapping[tuple[str, frozenset[tuple[str, str]]], float]


def scraped(url: str) -> Samples:
    """Return the samples of a process by name and labels."""
    with urllib.request.urlopen(f"{url}/metrics") as answer:  # noqa: S310 - an address of this test
        text = answer.read().decode()
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def value(samples: Samples, name: str, **labels: str) -> float:
    """Return the sum of the samples of a name that have these labels."""
    found = [
        number
        for (each, have), number in samples.items()
        if each == name and set(labels.items()) <= set(have)
    ]
    assert found, name
    return sum(found)


def test_a_gateway_counts_what_it_does() -> None:
    limits = (("1000", "requests", "day"), ("400", "tokens", "day"))
    with (
        SimProcess(ttft="constant:30ms", itl="constant:5ms") as sim,
        gateway(endpoint("one", sim.url)) as door,
    ):
        for amount, unit, per in limits:
            assert door.weir("quotas", "set", amount, unit, "--per", per, "--user", "admin").returncode == 0
        user = User(door.url, door.key)

        answers: list[Answer] = []

        def limited() -> bool | None:
            answers.append(user.ask("POST", "/v1/chat/completions", {**CHAT, "max_tokens": 1}))
            return True if "x-ratelimit-limit-tokens" in answers[-1].headers else None

        def written() -> Samples | None:
            # A row may be written just after its answer was given.
            found = scraped(door.url)
            rows = sum(number for (name, _), number in found.items() if name == "weir_settled_requests_total")
            return found if rows == len(answers) else None

        waiting(limited, "the limits")
        before = waiting(written, "the rows of what was asked until now")
        assert user.ask("POST", "/v1/chat/completions", CHAT).status == 200
        for _ in range(2):
            streamed = user.ask("POST", "/v1/chat/completions", {**CHAT, "stream": True})
            assert streamed.status == 200
        request = user.submit(tokens=6)
        long = {**CHAT, "messages": [{"role": "user", "content": "sparrow " * 1000}]}
        user.until(request, "completed")
        assert user.ask("POST", "/v1/chat/completions", {**CHAT, "model": "none"}).status == 404
        assert user.ask("POST", "/v1/chat/completions", long).status == 429

        def settled() -> Samples | None:
            found = scraped(door.url)
            rows = value(found, "weir_settled_requests_total") - value(before, "weir_settled_requests_total")
            return found if rows == 4 else None

        now = waiting(settled, "four rows")

        def rose(name: str, **labels: str) -> float:
            def of(samples: Samples) -> float:
                return sum(
                    number
                    for (each, have), number in samples.items()
                    if each == name and set(labels.items()) <= set(have)
                )

            return of(now) - of(before)

        assert rose("weir_gateway_ttft_seconds_count", model="sim", path="direct") == 2
        assert rose("weir_gateway_ttft_seconds_count", model="sim", path="queued") == 1
        # Each of them took its time; the sum says that it was measured, and from where.
        assert rose("weir_gateway_ttft_seconds_sum", path="direct") >= 0.06
        assert rose("weir_gateway_ttft_seconds_bucket", path="direct", le="0.025") == 0
        # Seven gaps between eight tokens, and the chunk that says that it is the end.
        assert 14 <= rose("weir_gateway_itl_seconds_count", path="direct") <= 16
        assert rose("weir_gateway_itl_seconds_sum", path="direct") >= 2 * 7 * 0.004
        assert rose("weir_gateway_itl_seconds_count", path="queued") == 5
        assert rose("weir_worker_tokens_total", kind="output") == 6
        assert rose("weir_gateway_queued_tokens_total", model="sim") > 6
        assert rose("weir_settled_tokens_total", kind="output") == 3 * 8 + 6
        assert rose("weir_settled_requests_total", ending="completed", source="server") == 4
        assert rose("weir_settle_lag_seconds_count") == 4
        assert rose("weir_gateway_errors_total", code="not_found") == 1
        assert rose("weir_gateway_errors_total", code="rate_limit_exceeded") == 1
        assert rose("weir_gateway_endpoint_requests_total", endpoint="one", outcome="answered") == 4
        assert value(now, "weir_gateway_reservations_open") == 0
        used = value(now, "weir_quota_used_ratio", scope="user", unit="tokens", window="day")
        assert 0 < used < 1
        assert value(now, "weir_build_info") == 1
        assert value(now, "process_resident_memory_bytes") > 1e7
        log = [have for (name, have) in now if name == "weir_log_lines_total"]
        assert all({label for label, _ in have} == {"component", "level"} for have in log)


def test_failures_are_counted_by_component() -> None:
    with SimProcess(faults=("503",)) as sim, gateway(endpoint("bad", sim.url)) as door:
        assert User(door.url, door.key).ask("POST", "/v1/chat/completions", CHAT).status >= 500
        now = scraped(door.url)
        assert value(now, "weir_gateway_endpoint_requests_total", endpoint="bad", outcome="failed") >= 1
        assert value(now, "weir_gateway_requests_total", status="503") >= 1


def attributes(span: Span) -> dict[str, object]:
    return {
        pair.key: pair.value.string_value or pair.value.int_value or pair.value.double_value
        for pair in span.attributes
    }


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    made = tmp_path / "header"
    made.write_text("authorization: Bearer of-news")
    return made


def asked(door: GatewayProcess, user: User, trace: str) -> str:
    """Ask directly, then through the queue, within one trace; return the queued request's id."""
    assert user.ask("POST", "/v1/chat/completions", CHAT, traceparent=trace).status == 200
    accepted = user.ask("POST", "/v1/requests", {**CHAT, "mode": "single"}, traceparent=trace)
    assert accepted.status == 202, door.log()
    request = str(accepted.json()["request_id"])
    user.until(request, "completed")
    assert (
        user.ask("POST", "/v1/chat/completions", {**CHAT, "model": "none"}, traceparent=trace).status == 404
    )
    return request


def test_traces_go_from_the_caller_through_gateway_and_queue_to_the_endpoint(secret: Path) -> None:
    with otlp_sink() as sink, remembering() as (url, seen):
        settings = f'[telemetry]\ntraces = "{sink.url}"\ntraces_header = "file:{secret}"\n'
        with gateway(settings + endpoint("one", url, kind="openai")) as door:
            user = User(door.url, door.key)
            request = asked(door, user, PARENT)
            # What is left is sent at the end.
            assert door.stop() == 0
        assert sink.headers[0]["authorization"] == "Bearer of-news"
        ours = [span for _, span in sink.spans if span.trace_id.hex() == TRACE]
        assert {service for service, _ in sink.spans} == {"weir-gateway"}
        by_name = {span.name: span for span in ours}
        assert set(by_name) == {"POST /v1/chat/completions", "POST /v1/requests", "chat sim", "settle"}
        direct, queued = (span for span in ours if span.name == "chat sim")
        server = {span.span_id: span for span in ours if span.kind == Span.SPAN_KIND_SERVER}
        assert all(span.parent_span_id.hex() == "b7ad6b7169203331" for span in server.values())
        assert server[direct.parent_span_id].name == "POST /v1/chat/completions"
        assert server[queued.parent_span_id].name == "POST /v1/requests"
        told = attributes(direct)
        assert told["gen_ai.operation.name"] == "chat"
        assert told["gen_ai.request.model"] == "sim"
        assert (told["gen_ai.usage.input_tokens"], told["gen_ai.usage.output_tokens"]) == (3, 1)
        assert told["http.response.status_code"] == 200
        assert attributes(queued)["weir.request_id"] == request
        assert attributes(queued)["gen_ai.usage.output_tokens"] == 1
        refused = [span for span in server.values() if attributes(span).get("error.type")]
        assert [attributes(span)["error.type"] for span in refused] == ["not_found"]
        # The endpoint was told of the very spans that asked it.
        assert [headers["traceparent"] for headers in seen] == [
            f"00-{TRACE}-{span.span_id.hex()}-01" for span in (direct, queued)
        ]
        assert b"sparrow" not in b"".join(span.SerializeToString() for _, span in sink.spans)


def test_a_model_server_is_told_of_the_trace_over_grpc_too(secret: Path) -> None:
    with otlp_sink() as sink, remembering_rpc() as (url, seen):
        settings = f'[telemetry]\ntraces = "{sink.url}"\ntraces_header = "file:{secret}"\n'
        with gateway(settings + endpoint("one", url, kind="tokenweir")) as door:
            user = User(door.url, door.key)
            answer = user.ask("POST", "/v1/requests", {**CHAT, "mode": "stream"}, traceparent=PARENT)
            user.until(str(answer.json()["request_id"]), "completed")
            assert door.stop() == 0
        (asked,) = (span for _, span in sink.spans if span.name == "chat sim")
        assert asked.trace_id.hex() == TRACE
        assert [each["traceparent"] for each in seen] == [f"00-{TRACE}-{asked.span_id.hex()}-01"]


def test_nothing_is_traced_and_nothing_is_loaded_where_nobody_asks_for_it() -> None:
    with remembering() as (url, seen), gateway(endpoint("one", url, kind="openai")) as door:
        asked(door, User(door.url, door.key), PARENT)
        assert all("traceparent" not in headers for headers in seen)
