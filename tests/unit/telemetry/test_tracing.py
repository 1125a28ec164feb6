from __future__ import annotations

import re

import pytest
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from tokenweir.core.errors import OverloadedError
from tokenweir.telemetry import genai
from tokenweir.telemetry.spans import UNTRACED
from tokenweir.telemetry.tracing import OtelTracer

PARENT = b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest.fixture
def sent() -> InMemorySpanExporter:
    return InMemorySpanExporter()


def test_a_request_s_span_is_within_the_caller_s_trace_and_the_endpoint_s_within_it(
    sent: InMemorySpanExporter,
) -> None:
    tracer = OtelTracer("weir-gateway", SimpleSpanProcessor(sent))
    with tracer.server("POST", PARENT, b"vendor=1") as outer:
        outer.call("POST /v1/chat/completions")
        kept = tracer.trace()
        with tracer.client("chat good", {genai.REQUEST_MODEL: "good"}) as inner:
            headers = inner.headers.decode()
    client, server = sent.get_finished_spans()
    assert (client.kind, server.kind) == (SpanKind.CLIENT, SpanKind.SERVER)
    assert server.name == "POST /v1/chat/completions"
    assert server.parent is not None
    assert f"{server.parent.span_id:016x}" == "b7ad6b7169203331"
    assert client.parent == server.context
    assert client.attributes is not None
    assert client.attributes[genai.REQUEST_MODEL] == "good"
    # The endpoint is told of the span that asks it, and of what the caller's own system added.
    trace = f"{client.context.trace_id:032x}" if client.context else ""
    assert trace == "0af7651916cd43dd8448eb211c80319c"
    assert re.fullmatch(
        rf"traceparent: 00-{trace}-{client.context.span_id:016x}-01\r\ntracestate: vendor=1\r\n",  # type: ignore[union-attr]
        headers,
    )
    # Queued work goes on with the trace that it was accepted in, in whatever process.
    assert kept.split("-")[1] == trace
    with OtelTracer("weir-worker", SimpleSpanProcessor(sent)).client("chat good", {}, trace=kept):
        pass
    worked = sent.get_finished_spans()[-1]
    assert worked.parent is not None
    assert server.context is not None
    assert worked.parent.span_id == server.context.span_id


@pytest.mark.parametrize("said", [b"00-zz-1-01", b"", None, b"\xff" * 40])
def test_what_is_no_traceparent_begins_a_trace(sent: InMemorySpanExporter, said: bytes | None) -> None:
    tracer = OtelTracer("weir-gateway", SimpleSpanProcessor(sent))
    with tracer.server("GET", said, None):
        pass
    (span,) = sent.get_finished_spans()
    assert span.parent is None
    # Work that was accepted untraced is a trace of its own.
    with tracer.client("chat good", {}, trace=""):
        pass
    assert sent.get_finished_spans()[-1].parent is None


def test_an_error_is_told_by_its_code_and_never_by_its_message(sent: InMemorySpanExporter) -> None:
    tracer = OtelTracer("weir-gateway", SimpleSpanProcessor(sent))
    with pytest.raises(OverloadedError), tracer.server("POST", None, None):
        raise OverloadedError("the sparrow flies at midnight")
    (span,) = sent.get_finished_spans()
    assert span.status.status_code is StatusCode.ERROR
    assert span.attributes == {genai.ERROR: "overloaded"}
    assert "sparrow" not in span.to_json()


def test_the_caller_decides_of_its_traces_and_the_share_of_others(sent: InMemorySpanExporter) -> None:
    tracer = OtelTracer("weir-gateway", SimpleSpanProcessor(sent), sample=0.0)
    for parent in (None, PARENT[:-1] + b"0", PARENT):
        with tracer.server("POST", parent, None):
            pass
    assert len(sent.get_finished_spans()) == 1


def test_untraced_is_nothing() -> None:
    with UNTRACED as span:
        span.set("a", 1)
        span.call("b")
        span.failed("c")
        assert span.headers == b""
