"""A receiver of OTLP/HTTP on this machine, and an endpoint that keeps the headers it was asked with."""

from __future__ import annotations

import gzip
import json
import threading
from collections.abc import Generator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span


class _Quiet(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
        """Say nothing."""

    def _body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("content-length", "0")))

    def _say(self, kind: str, body: bytes) -> None:
        self.send_response(200)
        self.send_header("content-type", kind)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


class Sink:
    """What was received: spans with the service that sent them."""

    def __init__(self, server: ThreadingHTTPServer) -> None:
        self.url = f"http://127.0.0.1:{server.server_address[1]}"
        self.spans: list[tuple[str, Span]] = []
        self.headers: list[dict[str, str]] = []


@contextmanager
def _running(handler: type[BaseHTTPRequestHandler]) -> Generator[ThreadingHTTPServer]:
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


@contextmanager
def otlp_sink() -> Generator[Sink]:
    """Receive spans while the block runs."""

    class Handler(_Quiet):
        sink: ClassVar[Sink]

        def do_POST(self) -> None:
            body = self._body()
            if self.headers.get("content-encoding") == "gzip":
                body = gzip.decompress(body)
            self.sink.headers.append({name.lower(): value for name, value in self.headers.items()})
            if self.path == "/v1/traces":
                for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
                    (service,) = (
                        pair.value.string_value
                        for pair in resource.resource.attributes
                        if pair.key == "service.name"
                    )
                    for scope in resource.scope_spans:
                        self.sink.spans.extend((service, span) for span in scope.spans)
            self._say("application/x-protobuf", b"")

    with _running(Handler) as server:
        Handler.sink = Sink(server)
        yield Handler.sink


@contextmanager
def remembering() -> Generator[tuple[str, list[dict[str, str]]]]:
    """Run an endpoint with one answer; yields its URL, and the headers of the requests for it."""
    seen: list[dict[str, str]] = []
    answer = {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1,
        "model": "sim",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": "hi"}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 3, "completion_tokens": 1, "total_tokens": 4},
    }

    class Handler(_Quiet):
        def do_GET(self) -> None:
            self._say("application/json", b'{"object": "list", "data": []}')

        def do_POST(self) -> None:
            self._body()
            seen.append({name.lower(): value for name, value in self.headers.items()})
            self._say("application/json", json.dumps(answer).encode())

    with _running(Handler) as server:
        yield f"http://127.0.0.1:{server.server_address[1]}", seen
