"""A model server that says nothing of the tokens it used."""

from __future__ import annotations

import json
import threading
from collections.abc import Generator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

REASONING = "Rivers come to mind, and one of them."
ARGUMENTS = '{"river": "Thames", "depth": 3.5}'
TOOL = "measure"
HANGS_AFTER = 5
HANG = "hang"


def pieces_of(text: str) -> list[str]:
    """Return the increments in which a text is streamed: its words, with the blanks before them."""
    words = text.split(" ")
    return [words[0], *(f" {word}" for word in words[1:])]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002, ANN401 - the base's signature
        """Print nothing."""

    def do_GET(self) -> None:
        self._whole({"object": "list", "data": []})

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
        if self.path == "/v1/embeddings":
            inputs = asked["input"] if isinstance(asked["input"], list) else [asked["input"]]
            vectors = [{"object": "embedding", "index": n, "embedding": [1.0]} for n in range(len(inputs))]
            self._whole({"object": "list", "data": vectors, "model": asked["model"]})
        elif self.path == "/v1/completions":
            self._whole(_answer({"text": asked["prompt"]}))
        elif asked.get("stream"):
            self._stream(asked["messages"][-1]["content"])
        else:
            call = {"id": "c1", "type": "function", "function": {"name": TOOL, "arguments": ARGUMENTS}}
            message = {"content": asked["messages"][-1]["content"], "reasoning_content": REASONING}
            self._whole(_answer({"message": {"role": "assistant", **message, "tool_calls": [call]}}))

    def _stream(self, text: str) -> None:
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.send_header("transfer-encoding", "chunked")
        self.end_headers()
        deltas: list[dict[str, Any]] = [{"content": piece} for piece in pieces_of(text)]
        if text.startswith(HANG):
            deltas = deltas[:HANGS_AFTER]
        else:
            start = {"index": 0, "id": "c1", "function": {"name": TOOL, "arguments": ""}}
            deltas += [{"reasoning_content": piece} for piece in pieces_of(REASONING)]
            deltas.append({"tool_calls": [start]})
            deltas += [
                {"tool_calls": [{"index": 0, "function": {"arguments": letter}}]} for letter in ARGUMENTS
            ]
        for delta in deltas:
            self._event(json.dumps({"id": "1", "choices": [{"index": 0, "delta": delta}]}))
        if text.startswith(HANG):
            # Until the other end leaves.
            self.rfile.read(1)
            self.close_connection = True
            return
        self._event(json.dumps({"id": "1", "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}))
        self._event("[DONE]")
        self.wfile.write(b"0\r\n\r\n")

    def _event(self, data: str) -> None:
        event = f"data: {data}\n\n".encode()
        self.wfile.write(b"%x\r\n%b\r\n" % (len(event), event))

    def _whole(self, told: dict[str, Any]) -> None:
        body = json.dumps(told).encode()
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def _answer(choice: dict[str, Any]) -> dict[str, Any]:
    return {"id": "1", "model": "m", "choices": [{"index": 0, "finish_reason": "stop", **choice}]}


@contextmanager
def silent_server() -> Generator[str]:
    """Run one, and give its URL: it says what it was asked, thinks, and calls a tool."""
    with ThreadingHTTPServer(("127.0.0.1", 0), _Handler) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()
