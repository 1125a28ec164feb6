"""Servers that keep to HTTP in ways few do, and servers that do not."""

from __future__ import annotations

import gzip
import os
import signal
import socket
import threading
from pathlib import Path

import pytest
from tests.integration.bench.bench import Record, measured, simulator
from tests.integration.bench.odd import GOOD, HEAD, Client, chunk, good, odd_server, stream

from tokenweir.core.errors import EndpointError, ProtocolError, UnreachableError

CLOSING = GOOD.replace(b"\r\n", b"\r\nconnection: close\r\n", 1)


def asked(url: str, tmp_path: Path, **options: object) -> Record:
    given: dict[str, object] = {
        "backend": "openai",
        "requests": 12,
        "arrival": "concurrency=2",
        "timeout": "3s",
    }
    return measured(url, tmp_path / "run", portable=False, **(given | options))


def test_a_plain_server_is_asked_over_kept_alive_connections(tmp_path: Path) -> None:
    with odd_server(good) as server:
        record = asked(server.url, tmp_path)
        assert server.posts == 12
    assert record.by("status") == {"completed": 12}
    assert record.by("output_tokens") == {3: 12}
    assert set(record.by("connection")) == {0, 1}


def test_a_server_that_closes_after_every_answer_without_a_word(tmp_path: Path) -> None:
    def respond(client: Client, length: int) -> bool:
        good(client, length)
        return False

    with odd_server(respond) as server:
        record = asked(server.url, tmp_path, requests=30)
    assert record.by("status") == {"completed": 30}
    assert server.posts == 30


def test_a_server_that_says_it_closes_after_every_answer(tmp_path: Path) -> None:
    def respond(client: Client, length: int) -> bool:
        client.body(length)
        client.say(CLOSING)
        return False

    with odd_server(respond) as server:
        record = asked(server.url, tmp_path, requests=30, arrival="constant=100/s")
    assert record.by("status") == {"completed": 30}
    assert "sent again" not in record.notes
    assert len({row["connection"] for row in record.rows}) == 30


def test_a_server_that_ends_its_answers_by_closing(tmp_path: Path) -> None:
    def respond(client: Client, length: int) -> bool:
        client.body(length)
        client.say(HEAD.replace(b"1.1", b"1.0") + b"\r\n")
        for one in stream():
            client.say(one)
        return False

    with odd_server(respond) as server:
        record = asked(server.url, tmp_path)
    assert record.by("status") == {"completed": 12}
    assert all(row["end_ns"] >= row["last_token_ns"] for row in record.rows)


@pytest.mark.parametrize("announced", [True, False])
def test_a_server_with_trailers(tmp_path: Path, *, announced: bool) -> None:
    trailer = b"trailer: server-timing\r\n" if announced else b""

    def respond(client: Client, length: int) -> bool:
        client.body(length)
        client.say(HEAD + trailer + b"transfer-encoding: chunked\r\n\r\n")
        for one in stream():
            client.say(chunk(one))
        client.say(b"0\r\nserver-timing: total;dur=3\r\n\r\n")
        return True

    with odd_server(respond) as server:
        record = asked(server.url, tmp_path, requests=4)
    assert record.by("status") == {"completed": 4}


def test_a_server_that_sends_early_hints(tmp_path: Path) -> None:
    def respond(client: Client, length: int) -> bool:
        client.body(length)
        client.say(b"HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n" + GOOD)
        return True

    with odd_server(respond) as server:
        assert asked(server.url, tmp_path).by("status") == {"completed": 12}


@pytest.mark.parametrize("closes", [True, False])
def test_a_server_that_answers_before_it_reads_a_large_body(tmp_path: Path, *, closes: bool) -> None:
    corpus = tmp_path / "large.txt"
    corpus.write_text("word " * 1_500_000)
    refusal = b'{"error":{"message":"too long"}}'
    answer = b"HTTP/1.1 413 Content Too Large\r\ncontent-length: %d\r\n\r\n%b" % (len(refusal), refusal)
    done = threading.Event()

    def respond(client: Client, length: int) -> bool:
        client.say(answer)
        if not closes:
            done.wait(20)
        return False

    with odd_server(respond) as server:
        record = asked(server.url, tmp_path, corpus=str(corpus), requests=2, arrival="concurrency=1")
        done.set()
    assert record.by("http_status") == {413: 2}
    assert record.by("error") == {"upstream": 2}


def test_a_server_that_reads_slowly_gets_large_bodies_whole(tmp_path: Path) -> None:
    corpus = tmp_path / "large.txt"
    corpus.write_text("word " * 1_500_000)
    lengths: list[int] = []

    def respond(client: Client, length: int) -> bool:
        lengths.append(len(client.body(length)))
        client.say(GOOD)
        return True

    with odd_server(respond) as server:
        record = asked(server.url, tmp_path, corpus=str(corpus), requests=3, timeout="20s")
    assert record.by("status") == {"completed": 3}
    assert len(lengths) == 3
    assert min(lengths) > 7_000_000
    assert all(row["sent_ns"] > row["scheduled_ns"] for row in record.rows)


def test_a_server_that_is_no_http_server_after_all(tmp_path: Path) -> None:
    def respond(client: Client, length: int) -> bool:
        client.body(length)
        client.say(b"220 mail ready\r\n\r\n")
        return False

    with odd_server(respond) as server:
        record = asked(server.url, tmp_path, requests=3)
    assert record.by("error") == {"malformed": 3}
    assert record.failure is not None


def test_a_server_that_never_speaks_http_is_told_apart_before_anything_is_written(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as door:

        def mumble() -> None:
            connection, _ = door.accept()
            with connection:
                connection.recv(10_000)
                connection.sendall(b"220 mail ready\r\n")

        thread = threading.Thread(target=mumble)
        thread.start()
        with pytest.raises(ProtocolError):
            asked(f"http://127.0.0.1:{door.getsockname()[1]}", tmp_path)
        thread.join()
    assert not (tmp_path / "run").exists()


def test_nothing_listening_is_said_before_anything_is_written(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as door:
        port = door.getsockname()[1]
    with pytest.raises(UnreachableError):
        asked(f"http://127.0.0.1:{port}", tmp_path)
    assert not (tmp_path / "run").exists()


def test_an_empty_answer_is_no_success(tmp_path: Path) -> None:
    def respond(client: Client, length: int) -> bool:
        client.body(length)
        client.say(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")
        return True

    with odd_server(respond) as server:
        record = asked(server.url, tmp_path, requests=3)
    assert record.by("error") == {"protocol": 3}
    assert isinstance(record.failure, EndpointError)


def test_an_answer_that_is_compressed_all_the_same_is_named(tmp_path: Path) -> None:
    body = gzip.compress(b"".join(stream()))

    def respond(client: Client, length: int) -> bool:
        client.body(length)
        client.say(HEAD + b"content-encoding: gzip\r\ncontent-length: %d\r\n\r\n" % len(body) + body)
        return True

    with odd_server(respond) as server:
        record = asked(server.url, tmp_path, requests=3)
    assert record.by("error") == {"protocol": 3}
    assert "compressed ('gzip')" in str(record.failure)


def test_a_server_that_dies_amid_the_run_leaves_a_record_of_what_was(tmp_path: Path) -> None:
    with simulator() as sim:
        pid = sim.pid

        def respond_then_die() -> None:
            while int(str(sim.truth()["requests"])) < 10:
                pass
            os.kill(pid, signal.SIGKILL)

        killer = threading.Thread(target=respond_then_die)
        killer.start()
        record = measured(
            sim.url, tmp_path / "run", arrival="concurrency=4", requests=80, timeout="2s", workers=2
        )
        killer.join()
    statuses = record.by("status")
    assert statuses["completed"] >= 8
    assert sum(statuses.values()) == 80
    assert set(record.by("error")) <= {None, "disconnected", "unreachable"}
    assert record.run["status"] == "completed"
    assert record.failure is None


def test_ipv6_and_names_are_asked_too(tmp_path: Path) -> None:
    try:
        with odd_server(good, host="::1") as server:
            assert asked(server.url, tmp_path, requests=4).by("status") == {"completed": 4}
    except OSError:
        pytest.skip("this machine has no IPv6")
    with odd_server(good) as server:
        record = measured(
            server.url.replace("127.0.0.1", "localhost"), tmp_path / "name", backend="openai", requests=4
        )
    assert record.by("status") == {"completed": 4}
