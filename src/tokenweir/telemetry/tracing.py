"""Traces by OpenTelemetry, sent over OTLP/HTTP. Imported only where the settings name where to."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Final

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
from opentelemetry.trace import SpanKind, Status, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from tokenweir import __version__
from tokenweir.core.errors import WeirError
from tokenweir.telemetry import genai
from tokenweir.telemetry.spans import Span, Value

_W3C: Final = TraceContextTextMapPropagator()
_TIMEOUT_S: Final = 10


class OtelSpan:
    """One of OpenTelemetry's spans, as :class:`tokenweir.telemetry.spans.Span`."""

    def __init__(self, span: trace.Span) -> None:
        self._span = span

    @property
    def headers(self) -> bytes:
        """``traceparent``, and ``tracestate`` where there is one."""
        carrier: dict[str, str] = {}
        _W3C.inject(carrier, trace.set_span_in_context(self._span, Context()))
        return b"".join(f"{name}: {value}\r\n".encode("latin-1") for name, value in carrier.items())

    def set(self, name: str, value: Value) -> None:
        """Add an attribute."""
        self._span.set_attribute(name, value)

    def call(self, name: str) -> None:
        """Give it another name."""
        self._span.update_name(name)

    def failed(self, kind: str) -> None:
        """Mark it as failed."""
        self._span.set_attribute(genai.ERROR, kind)
        self._span.set_status(Status(StatusCode.ERROR))


class OtelTracer:
    """Makes spans of one process. What they say never holds a prompt or an answer."""

    def __init__(self, service: str, processor: SpanProcessor, *, sample: float = 1.0) -> None:
        resource = Resource.create({"service.name": service, "service.version": __version__})
        self._provider = TracerProvider(resource=resource, sampler=ParentBased(TraceIdRatioBased(sample)))
        self._provider.add_span_processor(processor)
        self._tracer = self._provider.get_tracer("tokenweir", __version__)

    def server(
        self, name: str, traceparent: bytes | None, tracestate: bytes | None
    ) -> AbstractContextManager[Span]:
        """Begin on a request that came in."""
        carrier = {
            key: value.decode("latin-1")
            for key, value in (("traceparent", traceparent), ("tracestate", tracestate))
            if value is not None
        }
        return self._begun(name, SpanKind.SERVER, _W3C.extract(carrier, Context()), {})

    def client(
        self, name: str, attributes: dict[str, Value], trace: str | None = None
    ) -> AbstractContextManager[Span]:
        """Begin to ask a server."""
        context = None if trace is None else _W3C.extract({"traceparent": trace} if trace else {}, Context())
        return self._begun(name, SpanKind.CLIENT, context, attributes)

    def work(self, name: str, attributes: dict[str, Value], trace: str) -> AbstractContextManager[Span]:
        """Begin on something that was queued."""
        context = _W3C.extract({"traceparent": trace} if trace else {}, Context())
        return self._begun(name, SpanKind.CONSUMER, context, attributes)

    def trace(self) -> str:
        """Return the ``traceparent`` of the span at hand."""
        carrier: dict[str, str] = {}
        _W3C.inject(carrier)
        return carrier.get("traceparent", "")

    def close(self) -> None:
        """Send what is left, and end. Waits for the server that spans go to."""
        self._provider.shutdown()

    @contextmanager
    def _begun(
        self, name: str, kind: SpanKind, context: Context | None, attributes: Mapping[str, Value]
    ) -> Generator[Span]:
        with self._tracer.start_as_current_span(
            name,
            context=context,
            kind=kind,
            attributes=dict(attributes),
            # A message may quote what a caller wrote; the code says enough.
            record_exception=False,
            set_status_on_exception=False,
        ) as span:
            made = OtelSpan(span)
            try:
                yield made
            except WeirError as error:
                made.failed(error.code)
                raise
            except BaseException as error:
                made.failed(type(error).__name__)
                raise


def otlp(url: str, headers: Mapping[str, str]) -> SpanProcessor:
    """Return what sends spans to ``url``, the base of an OTLP/HTTP receiver, in batches and from a thread."""
    exporter = OTLPSpanExporter(
        endpoint=f"{url.rstrip('/')}/v1/traces", headers=dict(headers), timeout=_TIMEOUT_S
    )
    return BatchSpanProcessor(exporter)
