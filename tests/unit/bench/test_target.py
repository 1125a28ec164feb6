from __future__ import annotations

from tokenweir.bench.target import parse_target, render
from tokenweir.ports.backend import HttpRequest


def test_a_header_of_the_user_takes_the_place_of_ours() -> None:
    request = HttpRequest(method="POST", path="/x", headers=(("accept", "text/event-stream"),), body=b"{}")
    sent = render(
        request, parse_target("http://127.0.0.1:8000"), (("Host", "model.example"), ("accept", "a/b"))
    )
    head, _, body = sent.partition(b"\r\n\r\n")
    lines = head.decode().split("\r\n")
    assert lines[0] == "POST /x HTTP/1.1"
    names = [line.partition(": ")[0].lower() for line in lines[1:]]
    assert len(names) == len(set(names))
    assert {"Host: model.example", "accept: a/b", "accept-encoding: identity", "content-length: 2"} <= set(
        lines
    )
    assert body == b"{}"
