"""A small OpenAI server whose answers to POST a test writes byte by byte."""

from __future__ import annotations

import json
import socket
import ssl
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress

WORDS = ("one", "two", "three")


def event(body: object) -> bytes:
    return b"data: " + json.dumps(body).encode() + b"\n\n"


def stream(*words: str) -> list[bytes]:
    """The events of a streamed chat answer, its usage and its end among them."""
    events = [event({"choices": [{"index": 0, "delta": {"content": word}}]}) for word in words or WORDS]
    nothing: dict[str, str] = {}
    events.append(event({"choices": [{"index": 0, "delta": nothing, "finish_reason": "stop"}]}))
    usage = {"prompt_tokens": 4, "completion_tokens": len(words or WORDS)}
    return [*events, event({"choices": [], "usage": usage}), b"data: [DONE]\n\n"]


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n"
GOOD = HEAD + b"transfer-encoding: chunked\r\n\r\n" + b"".join(map(chunk, stream())) + b"0\r\n\r\n"


class Client:
    """One connection of a client: ``number`` counts the server's connections, ``posts`` what it asked here."""

    def __init__(self, connection: socket.socket, number: int) -> None:
        self.socket = connection
        self.number = number
        self.posts = 0
        self._rest = b""

    def say(self, data: bytes) -> None:
        self.socket.sendall(data)

    def head(self) -> tuple[str, int]:
        """Read a request's head; return its method and its body's length."""
        while b"\r\n\r\n" not in self._rest:
            piece = self.socket.recv(65_536)
            if not piece:
                raise ConnectionError("the client has left")
            self._rest += piece
        head, _, self._rest = self._rest.partition(b"\r\n\r\n")
        fields = head.decode("latin-1").lower().split("\r\n")
        lengths = [int(line.partition(":")[2]) for line in fields if line.startswith("content-length:")]
        return fields[0].split()[0].upper(), lengths[0] if lengths else 0

    def body(self, length: int) -> bytes:
        """Read a request's body."""
        while len(self._rest) < length:
            piece = self.socket.recv(65_536)
            if not piece:
                raise ConnectionError("the client has left")
            self._rest += piece
        body, self._rest = self._rest[:length], self._rest[length:]
        return body


Respond = Callable[[Client, int], bool]
"""Answers a POST of that body length, which is still to be read; says whether the connection goes on."""


class OddServer:
    """What ran: its URL, and how many connections and POSTs came."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.connections = 0
        self.posts = 0
        self.lock = threading.Lock()


class Serving:
    """The threads behind an odd server."""

    def __init__(self, door: socket.socket, respond: Respond, tls: ssl.SSLContext | None, url: str) -> None:
        self.server = OddServer(url)
        self._door = door
        self._respond = respond
        self._tls = tls
        self._open: set[socket.socket] = set()
        self._threads: list[threading.Thread] = []
        self._accepting = threading.Thread(target=self._accept)
        self._accepting.start()

    def stop(self) -> None:
        """End every connection and thread."""
        # Closing alone would leave the accepting thread where it waits.
        with suppress(OSError):
            self._door.shutdown(socket.SHUT_RDWR)
        self._door.close()
        self._accepting.join()
        for connection in list(self._open):
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._door.accept()
            except OSError:
                return
            with self.server.lock:
                self.server.connections += 1
            self._open.add(connection)
            thread = threading.Thread(target=self._serve, args=(connection,))
            self._threads.append(thread)
            thread.start()

    def _serve(self, raw: socket.socket) -> None:
        connection = raw
        with suppress(OSError, ssl.SSLError):
            if self._tls is not None:
                connection = self._tls.wrap_socket(raw, server_side=True)
                self._open.add(connection)
            client = Client(connection, self.server.connections)
            while self._turn(client):
                pass
        connection.close()
        self._open -= {connection, raw}

    def _turn(self, client: Client) -> bool:
        method, length = client.head()
        if method == "GET":
            body = b'{"object":"list","data":[{"id":"m"}]}'
            client.say(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body))
            return True
        with self.server.lock:
            self.server.posts += 1
        client.posts += 1
        return self._respond(client, length)


@contextmanager
def odd_server(
    respond: Respond, *, host: str = "127.0.0.1", tls: ssl.SSLContext | None = None
) -> Generator[OddServer]:
    """Serve on a free port until the block ends; GET answers a list of one model."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    door = socket.create_server((host, 0), family=family, backlog=256)
    shown = f"[{host}]" if ":" in host else host
    url = f"http{'s' if tls else ''}://{shown}:{door.getsockname()[1]}"
    serving = Serving(door, respond, tls, url)
    try:
        yield serving.server
    finally:
        serving.stop()


def good(client: Client, length: int) -> bool:
    """Read the request and answer it well."""
    client.body(length)
    client.say(GOOD)
    return True
