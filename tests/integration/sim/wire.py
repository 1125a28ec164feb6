from __future__ import annotations

import http.client
import json
import socket
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from typing import Any, cast
from urllib.parse import urlsplit

from tokenweir.sim.process import SimFlags, SimProcess

TIMEOUT_S = 20.0


class Wire:
    """A simulator seen through plain sockets and http.client."""

    def __init__(self, sim: SimProcess) -> None:
        self.sim = sim
        place = urlsplit(sim.url)
        self.address = (place.hostname or "", place.port or 0)

    @contextmanager
    def socket(self) -> Generator[socket.socket]:
        with socket.create_connection(self.address, timeout=TIMEOUT_S) as sock:
            yield sock

    def exchange(self, data: bytes) -> bytes:
        """Send ``data`` and return everything that comes until the simulator closes."""
        with self.socket() as sock:
            sock.sendall(data)
            return read_all(sock)

    def ask(
        self, method: str, path: str, body: object = None, headers: Mapping[str, str] | None = None
    ) -> tuple[int, dict[str, str], bytes]:
        """Return status, headers and body of one request on a connection of its own."""
        conn = http.client.HTTPConnection(*self.address, timeout=TIMEOUT_S)
        try:
            data = None if body is None else json.dumps(body).encode()
            conn.request(method, path, body=data, headers=dict(headers or {}))
            answer = conn.getresponse()
            return answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read()
        finally:
            conn.close()

    def json(
        self, method: str, path: str, body: object = None, headers: Mapping[str, str] | None = None
    ) -> dict[str, Any]:
        """Return the JSON body of a 200 answer."""
        status, _, data = self.ask(method, path, body, headers)
        assert status == 200, data
        return cast("dict[str, Any]", json.loads(data))

    def events(
        self, path: str, body: object, headers: Mapping[str, str] | None = None
    ) -> list[dict[str, Any]]:
        """Return the objects of a stream that ends with [DONE]."""
        status, told, data = self.ask("POST", path, body, headers)
        assert status == 200, data
        assert told["content-type"].startswith("text/event-stream")
        *events, done = [line.removeprefix("data: ") for line in data.decode().split("\n\n") if line]
        assert done == "[DONE]"
        return [cast("dict[str, Any]", json.loads(one)) for one in events]


def read_all(sock: socket.socket) -> bytes:
    """Return what comes until the end; a reset is an end too."""
    parts: list[bytes] = []
    try:
        while part := sock.recv(65_536):
            parts.append(part)
    except ConnectionResetError:
        parts.append(b"<reset>")
    return b"".join(parts)


def post(path: str, body: object, *lines: str) -> bytes:
    """Return a raw POST that asks the simulator to close afterwards."""
    data = json.dumps(body).encode()
    head = [f"POST {path} HTTP/1.1", "host: sim", "connection: close", f"content-length: {len(data)}", *lines]
    return ("\r\n".join(head) + "\r\n\r\n").encode() + data


def chat(**more: object) -> dict[str, object]:
    """Return a chat body of three input tokens."""
    return {"model": "sim", "messages": [{"role": "user", "content": "say some words"}], **more}


@contextmanager
def running(**flags: Any) -> Generator[Wire]:  # noqa: ANN401 - SimFlags; a TypedDict cannot be merged with defaults
    """Start a fast simulator, changed by ``flags``."""
    fast: SimFlags = {"ttft": "constant:1ms", "itl": "constant:500us"}
    with SimProcess(**cast("SimFlags", {**fast, **flags})) as sim:
        yield Wire(sim)
