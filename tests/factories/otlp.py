"""A receiver of OTLP/HTTP on this machine, and an endpoint that keeps the headers it was asked with."""

from __future__ import annotations

import gzip
import json
import threading
from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar

import grpc
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from tokenweir.core.events import Completed, Started, Token, Usage
from tokenweir.wire.v1 import inference_pb2 as pb
from tokenweir.wire.v1.events import to_event
from tokenweir.wire.v1.service import SERVICE


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


@contextmanager
def remembering_rpc() -> Generator[tuple[str, list[dict[str, str]]]]:
    """Run a model server with one answer over gRPC; yields its URL, and the metadata of the requests for it."""
    seen: list[dict[str, str]] = []
    answer = [
        Started(seq=0, model="sim"),
        Token(seq=1, text="hi", count=1),
        Usage(seq=2, input_tokens=3, output_tokens=1),
        Completed(seq=3, finish_reason="stop"),
    ]

    def converse(commands: Iterator[pb.Command], context: grpc.ServicerContext) -> Iterator[pb.Notice]:
        seen.append({name: str(value) for name, value in context.invocation_metadata()})
        command = next(commands)
        yield pb.Notice(
            streams=[pb.StreamEvents(stream=command.stream, events=[to_event(each) for each in answer])]
        )

    def health(_request: pb.HealthRequest, _context: grpc.ServicerContext) -> pb.HealthReply:
        return pb.HealthReply(ready=True)

    methods = {
        "Converse": grpc.stream_stream_rpc_method_handler(
            converse,
            request_deserializer=pb.Command.FromString,
            response_serializer=pb.Notice.SerializeToString,
        ),
        "Health": grpc.unary_unary_rpc_method_handler(
            health,
            request_deserializer=pb.HealthRequest.FromString,
            response_serializer=pb.HealthReply.SerializeToString,
        ),
    }
    server = grpc.server(ThreadPoolExecutor(4), options=(("grpc.so_reuseport", 0),))
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, methods),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield f"grpc://localhost:{port}", seen
    finally:
        server.stop(None).wait()
