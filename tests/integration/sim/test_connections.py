from __future__ import annotations

import json

import pytest
from tests.integration.sim.wire import TIMEOUT_S, Wire, chat, post, read_all

PATH = "/v1/chat/completions"


def request(body: object, *lines: str) -> bytes:
    data = json.dumps(body).encode()
    head = [f"POST {PATH} HTTP/1.1", "host: sim", f"content-length: {len(data)}", *lines]
    return ("\r\n".join(head) + "\r\n\r\n").encode() + data


def test_pipelined_requests_are_answered_in_order_on_one_connection(wire: Wire) -> None:
    whole, stream = chat(max_tokens=2), chat(max_tokens=3, stream=True)
    models = b"GET /v1/models HTTP/1.1\r\n\r\n"
    answer = wire.exchange(request(whole) + request(stream) + models + request(stream) + post(PATH, whole))
    heads = answer.split(b"HTTP/1.1 200 OK\r\n")[1:]
    kinds = [b"chunked" in head.partition(b"\r\n\r\n")[0] for head in heads]
    assert kinds == [False, True, False, True, False]
    assert answer.count(b"data: [DONE]") == 2


def test_a_request_may_come_byte_by_byte(wire: Wire) -> None:
    with wire.socket() as sock:
        for byte in post(PATH, chat(max_tokens=2)):
            sock.sendall(bytes([byte]))
        assert read_all(sock).startswith(b"HTTP/1.1 200 OK\r\n")


def test_a_chunked_body_is_read(wire: Wire) -> None:
    body = json.dumps(chat(max_tokens=2)).encode()
    head = f"POST {PATH} HTTP/1.1\r\nconnection: close\r\ntransfer-encoding: chunked\r\n\r\n".encode()
    parts = b"".join(
        b"%x\r\n%b\r\n" % (len(body[i : i + 9]), body[i : i + 9]) for i in range(0, len(body), 9)
    )
    assert wire.exchange(head + parts + b"0\r\n\r\n").startswith(b"HTTP/1.1 200 OK\r\n")


def test_a_client_that_waits_for_leave_gets_it(wire: Wire) -> None:
    data = post(PATH, chat(max_tokens=2), "expect: 100-continue")
    head, _, body = data.partition(b"\r\n\r\n")
    with wire.socket() as sock:
        sock.sendall(head + b"\r\n\r\n")
        assert sock.recv(1000) == b"HTTP/1.1 100 Continue\r\n\r\n"
        sock.sendall(body)
        assert read_all(sock).startswith(b"HTTP/1.1 200 OK\r\n")


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"what is this\r\n\r\n", 400),
        (b"GET /nowhere HTTP/1.1\r\nconnection: close\r\n\r\n", 404),
        (b"GET /v1/chat/completions HTTP/1.1\r\nconnection: close\r\n\r\n", 405),
        (post(PATH, {}), 400),
        (post(PATH, {"messages": "x"}), 400),
        (post(PATH, {"messages": []}), 400),
        (post(PATH, chat(n=0)), 400),
        (post(PATH, chat(max_tokens=0)), 400),
        (post("/v1/completions", {"prompt": []}), 400),
        (post("/v1/completions", {"prompt": ["a", 1]}), 400),
        (b"GET / HTTP/1.1\r\nx: " + b"y" * 100_000 + b"\r\n\r\n", 431),
        (b"POST / HTTP/1.1\r\ncontent-length: 99999999999\r\n\r\n" + b"x" * 300_000, 413),
    ],
)
def test_a_bad_request_gets_an_openai_error_and_the_simulator_lives(
    wire: Wire, data: bytes, status: int
) -> None:
    head, _, body = wire.exchange(data).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 %d " % status)
    assert json.loads(body)["error"]["message"]
    assert wire.ask("GET", "/health")[0] == 200


def test_a_stream_needs_http_1_1_but_a_whole_answer_does_not(wire: Wire) -> None:
    def old(body: object) -> bytes:
        return post(PATH, body).replace(b"HTTP/1.1", b"HTTP/1.0")

    assert wire.exchange(old(chat(max_tokens=1))).startswith(b"HTTP/1.1 200 ")
    assert wire.exchange(old(chat(max_tokens=1, stream=True))).startswith(b"HTTP/1.1 505 ")


def test_many_connections_are_held_at_once(wire: Wire) -> None:
    socks = [wire.socket() for _ in range(300)]
    opened = [one.__enter__() for one in socks]
    for sock in opened:
        sock.settimeout(TIMEOUT_S)
        sock.sendall(post(PATH, chat(max_tokens=20, stream=True)))
    answers = [read_all(sock) for sock in opened]
    for one in socks:
        one.__exit__(None, None, None)
    assert all(answer.endswith(b"0\r\n\r\n") for answer in answers)
