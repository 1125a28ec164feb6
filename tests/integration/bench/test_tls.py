"""Measuring over TLS with a certificate of the test's own, trusted through SSL_CERT_FILE."""

from __future__ import annotations

import shutil
import socket
import ssl
import subprocess
import threading
from pathlib import Path

import pytest
from tests.integration.bench.bench import measured
from tests.integration.bench.odd import GOOD, HEAD, Client, chunk, good, odd_server, stream

from tokenweir.core.errors import UnreachableError

pytestmark = pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl to make a certificate")


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file with a key and its self-made certificate for 127.0.0.1."""
    folder = tmp_path_factory.mktemp("certificate")
    made, key = folder / "cert.pem", folder / "key.pem"
    command = [
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:prime256v1",
        "-nodes",
    ]
    subject = ["-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1,DNS:localhost", "-days", "2"]
    subprocess.run(
        [*command, *subject, "-keyout", str(key), "-out", str(made)], check=True, capture_output=True
    )
    made.write_text(made.read_text() + key.read_text())
    return made


def context(certificate: Path, *, version: ssl.TLSVersion | None = None) -> ssl.SSLContext:
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    made.load_cert_chain(certificate)
    if version is not None:
        made.minimum_version = made.maximum_version = version
    return made


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
@pytest.mark.parametrize("arrival", ["concurrency=3", "constant=100/s"])
def test_a_run_over_tls(
    tmp_path: Path, certificate: Path, monkeypatch: pytest.MonkeyPatch, version: ssl.TLSVersion, arrival: str
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    with odd_server(good, tls=context(certificate, version=version)) as server:
        record = measured(
            server.url, tmp_path / "run", backend="openai", requests=20, arrival=arrival, timeout="5s"
        )
    assert record.by("status") == {"completed": 20}
    assert record.by("output_tokens") == {3: 20}
    assert record.by("chunks") == {3: 20}
    # Connections opened ahead of need are used, whatever TLS says on them in the meantime.
    opened = max(row["connection"] for row in record.rows)
    assert opened < (3 if arrival.startswith("concurrency") else 60)
    assert "sent again" not in record.notes


def test_many_records_in_one_read_and_one_in_many(
    tmp_path: Path, certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    long = "word " * 20_000

    def respond(client: Client, length: int) -> bool:
        client.body(length)
        client.say(HEAD + b"transfer-encoding: chunked\r\n\r\n")
        for one in stream("a", long, "b", "c", long):
            client.say(chunk(one))
        client.say(b"0\r\n\r\n")
        return True

    with odd_server(respond, tls=context(certificate)) as server:
        record = measured(
            server.url, tmp_path / "run", backend="openai", requests=6, arrival="concurrency=2", timeout="5s"
        )
    assert record.by("status") == {"completed": 6}
    assert record.by("chunks") == {5: 6}
    assert len(record.by("answer_hash")) == 1


def test_a_server_that_closes_after_each_answer_over_tls(
    tmp_path: Path, certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))

    def respond(client: Client, length: int) -> bool:
        client.body(length)
        client.say(GOOD)
        return False

    with odd_server(respond, tls=context(certificate)) as server:
        record = measured(
            server.url, tmp_path / "run", backend="openai", requests=10, arrival="concurrency=2", timeout="5s"
        )
    assert record.by("status") == {"completed": 10}


def test_a_certificate_that_is_not_trusted_is_named(tmp_path: Path, certificate: Path) -> None:
    with (
        odd_server(good, tls=context(certificate)) as server,
        pytest.raises(UnreachableError, match="not trusted") as caught,
    ):
        measured(server.url, tmp_path / "run", backend="openai", requests=2)
    assert "SSL_CERT_FILE" in caught.value.mend
    assert not (tmp_path / "run").exists()


def test_a_plain_server_behind_https_is_named(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as door:

        def refuse() -> None:
            connection, _ = door.accept()
            with connection:
                connection.recv(10_000)
                connection.sendall(b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n")

        thread = threading.Thread(target=refuse)
        thread.start()
        with pytest.raises(UnreachableError, match="TLS"):
            measured(f"https://127.0.0.1:{door.getsockname()[1]}", tmp_path / "run", requests=2)
        thread.join()
