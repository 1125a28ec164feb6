from __future__ import annotations

import contextlib
import shutil
import socket
import ssl
import subprocess
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tokenweir.backends.openai import OpenAIBackend
from tokenweir.backends.sglang import sglang, sglang_jax
from tokenweir.bench.endpoint import Endpoint
from tokenweir.core.errors import (
    ConfigError,
    OverloadedError,
    ProtocolError,
    RefusedError,
    SpecError,
    UnreachableError,
    UpstreamError,
)

MODELS = (200, b'{"data":[{"id":"a"},{"id":"b"}]}')


class Server:
    """A server whose answers the test writes; it remembers what it was asked."""

    def __init__(self) -> None:
        self.answers: dict[str, tuple[int, bytes]] = {"/v1/models": MODELS, "/health": (200, b"")}
        self.headers: dict[str, str] = {}
        self.asked: list[tuple[str, str, dict[str, str], bytes]] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                length = int(self.headers.get("content-length") or 0)
                headers = {name.lower(): value for name, value in self.headers.items()}
                outer.asked.append((self.command, self.path, headers, self.rfile.read(length)))
                status, body = outer.answers.get(self.path, (404, b'{"detail":"Not Found"}'))
                self.send_response(status)
                for name, value in outer.headers.items():
                    self.send_header(name, value)
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            do_POST = do_GET  # noqa: N815

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002
                pass

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._http.server_address[1]}"
        self._thread = threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.01})
        self._thread.start()

    def close(self) -> None:
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()


@pytest.fixture
def server() -> Iterator[Server]:
    made = Server()
    yield made
    made.close()


def test_a_served_model_passes(server: Server) -> None:
    Endpoint(server.url, OpenAIBackend()).check("a")
    Endpoint(server.url + "/", sglang()).check("b")
    Endpoint(server.url, sglang()).check("")


def test_another_model_names_the_served_ones(server: Server) -> None:
    with pytest.raises(RefusedError, match="'a', 'b'") as caught:
        Endpoint(server.url, sglang()).check("c")
    assert "'c'" in str(caught.value)


def test_a_server_that_lists_none_is_believed(server: Server) -> None:
    server.answers["/v1/models"] = (200, b"")
    Endpoint(server.url, OpenAIBackend()).check("c")
    del server.answers["/v1/models"]
    Endpoint(server.url, sglang()).check("c")


@pytest.mark.parametrize("status", [401, 403])
def test_a_refusal_asks_for_a_key(server: Server, status: int) -> None:
    server.answers["/health"] = (status, b'{"error":{"message":"who are you"}}')
    with pytest.raises(RefusedError, match="--key env:NAME") as caught:
        Endpoint(server.url, sglang(), key="s3cret").check("a")
    assert "who are you" in str(caught.value)
    assert "s3cret" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_path_is_named(server: Server) -> None:
    with pytest.raises(RefusedError, match="/health_generate"):
        Endpoint(server.url, sglang_jax()).check("a")
    with pytest.raises(RefusedError, match="leave /v1 out"):
        Endpoint(server.url + "/v1", OpenAIBackend()).check("a")


def test_an_overloaded_server_says_when(server: Server) -> None:
    server.answers["/health"] = (503, b"")
    server.headers["Retry-After"] = "3"
    with pytest.raises(OverloadedError) as caught:
        Endpoint(server.url, sglang()).check("a")
    assert caught.value.retry_after_ns == 3_000_000_000
    assert caught.value.status == 503


def test_a_redirect_is_not_followed_but_told(server: Server) -> None:
    server.answers["/health"] = (301, b"")
    server.headers["Location"] = "https://elsewhere/"
    with pytest.raises(UpstreamError, match="https://elsewhere/"):
        Endpoint(server.url, sglang()).check("a")


def test_the_key_travels_as_a_bearer_token_and_nowhere_else(server: Server) -> None:
    endpoint = Endpoint(server.url, OpenAIBackend(), key="s3cret")
    endpoint.check("a")
    (_, _, headers, _), *_ = server.asked
    assert headers["authorization"] == "Bearer s3cret"
    assert headers["accept-encoding"] == "identity"
    assert "s3cret" not in repr(endpoint)
    for bad in ("", "a b", "a\nb", "é"):
        with pytest.raises(ConfigError) as caught:
            Endpoint(server.url, OpenAIBackend(), key=bad)
        assert not bad or bad not in str(caught.value)


def test_headers_of_one_s_own_travel_too(server: Server) -> None:
    Endpoint(server.url, OpenAIBackend(), headers={"X-Team": "red"}).check("a")
    assert server.asked[0][2]["x-team"] == "red"
    with pytest.raises(ConfigError, match="x-team"):
        Endpoint(server.url, OpenAIBackend(), headers={"X-Team": "red\r\nx: y"})


def test_identity_lives_with_closed_doors(server: Server) -> None:
    server.answers["/get_server_info"] = (200, b'{"version":"1.2","tp_size":1}')
    server.answers["/server_info"] = (500, b"boom")
    identity = Endpoint(server.url, sglang()).identity()
    assert identity.version == "1.2"
    assert identity.flags == {"tp_size": 1}


def test_identity_of_a_server_that_is_gone() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    identity = Endpoint(f"http://127.0.0.1:{port}", sglang()).identity()
    assert identity.version is None
    assert identity.missing


def test_actions_are_sent(server: Server) -> None:
    server.answers["/flush_cache"] = (200, b"Cache flushed.\n")
    server.answers["/stop_profile"] = (500, b"Internal Server Error")
    endpoint = Endpoint(server.url, sglang())
    assert endpoint.act("flush")
    assert [asked[:2] for asked in server.asked] == [("POST", "/flush_cache")]
    assert endpoint.act("stop_profile")
    with pytest.raises(RefusedError):
        endpoint.act("start_profile", {"num_steps": 2})
    assert server.asked[-1][3] == b'{"num_steps":2}'
    assert not Endpoint(server.url, OpenAIBackend()).act("flush")


def test_nothing_listens() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    with pytest.raises(UnreachableError, match="nothing listens") as caught:
        Endpoint(f"http://127.0.0.1:{port}", OpenAIBackend()).check("a")
    assert "start the server" in str(caught.value)


def test_silence_is_bounded() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(UnreachableError, match=r"within 0\.05 s"):
            Endpoint(url, OpenAIBackend(), timeout_s=0.05).check("a")


def answering(reply: bytes) -> tuple[str, threading.Thread]:
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        with listener, listener.accept()[0] as connection:
            connection.recv(65536)
            connection.sendall(reply)

    thread = threading.Thread(target=serve)
    thread.start()
    return f"127.0.0.1:{listener.getsockname()[1]}", thread


def test_another_protocol_is_told_from_http() -> None:
    where, thread = answering(b"220 mail ready\r\n")
    with pytest.raises(ProtocolError, match="does not answer in HTTP"):
        Endpoint(f"http://{where}", OpenAIBackend()).check("a")
    thread.join()


def test_a_connection_closed_without_an_answer() -> None:
    where, thread = answering(b"")
    with pytest.raises(UnreachableError, match="without an answer"):
        Endpoint(f"http://{where}", OpenAIBackend()).check("a")
    thread.join()


def test_tls_to_a_plain_port() -> None:
    where, thread = answering(b"HTTP/1.1 400 Bad Request\r\n\r\n")
    with pytest.raises(UnreachableError, match="does not speak TLS") as caught:
        Endpoint(f"https://{where}", OpenAIBackend()).check("a")
    assert "http://" in caught.value.mend
    thread.join()


@pytest.mark.skipif(shutil.which("openssl") is None, reason="makes its certificate with openssl")
def test_a_certificate_of_unknown_authority_is_refused(tmp_path: Path) -> None:
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=localhost"]
    subprocess.run([*command, "-keyout", key, "-out", certificate], check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        with (
            listener,
            listener.accept()[0] as connection,
            contextlib.suppress(ssl.SSLError, OSError),
            context.wrap_socket(connection, server_side=True) as secured,
        ):
            secured.recv(1)

    thread = threading.Thread(target=serve)
    thread.start()
    with pytest.raises(UnreachableError, match="not trusted"):
        Endpoint(f"https://localhost:{listener.getsockname()[1]}", OpenAIBackend()).check("a")
    thread.join()


@pytest.mark.parametrize("url", ["localhost:8000", "ftp://a", "http://"])
def test_a_url_that_is_none(url: str) -> None:
    with pytest.raises(SpecError):
        Endpoint(url, OpenAIBackend())
