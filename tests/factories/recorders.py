"""Servers that keep what they are sent: a model server that says what it is told to, and hooks that decide."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple


class Sent(NamedTuple):
    """A request that was taken."""

    path: str
    headers: dict[str, str]
    body: dict[str, Any]


class Recorder:
    """An HTTP server on a free port. ``answer`` makes the answer's status, type and body."""

    def __init__(self, answer: Callable[[Sent], tuple[int, str, bytes]]) -> None:
        self.sent: list[Sent] = []
        recorder = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                self._say(200, "application/json", b"{}")

            def do_POST(self) -> None:
                raw = self.rfile.read(int(self.headers["content-length"]))
                headers = {name.lower(): value for name, value in self.headers.items()}
                sent = Sent(self.path, headers, json.loads(raw))
                recorder.sent.append(sent)
                self._say(*answer(sent))

            def _say(self, status: int, kind: str, body: bytes) -> None:
                self.send_response(status)
                self.send_header("content-type", kind)
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class calls it so
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    @contextmanager
    def running(self) -> Generator[Recorder]:
        """Serve while the block runs."""
        thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        thread.start()
        try:
            yield self
        finally:
            self._server.shutdown()
            self._server.server_close()
            thread.join()


def model_server(said: str, *, pieces: int = 5) -> Recorder:
    """Return a model server that answers every chat with ``said``, streamed in chunks of so many letters."""

    def answer(sent: Sent) -> tuple[int, str, bytes]:
        usage = {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10}
        facts: dict[str, Any] = {"id": "chatcmpl-1", "created": 1, "model": sent.body["model"]}
        if not sent.body.get("stream"):
            choice: dict[str, Any] = {"index": 0, "message": {"role": "assistant", "content": said}}
            whole = {**facts, "object": "chat.completion", "choices": [{**choice, "finish_reason": "stop"}]}
            return 200, "application/json", json.dumps({**whole, "usage": usage}).encode()
        deltas: list[dict[str, Any]] = [{"role": "assistant", "content": ""}]
        deltas += [{"content": said[at : at + pieces]} for at in range(0, len(said), pieces)]
        choices: list[dict[str, Any]] = [
            {"index": 0, "delta": delta, "finish_reason": None} for delta in deltas
        ]
        choices.append({"index": 0, "delta": {}, "finish_reason": "stop"})
        chunks = [{**facts, "object": "chat.completion.chunk", "choices": [choice]} for choice in choices]
        chunks.append({**facts, "object": "chat.completion.chunk", "choices": [], "usage": usage})
        lines = [f"data: {json.dumps(chunk)}\n\n" for chunk in chunks]
        return 200, "text/event-stream", "".join([*lines, "data: [DONE]\n\n"]).encode()

    return Recorder(answer)
