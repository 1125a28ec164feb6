from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenweir.sim.http import HttpError, Request, RequestParser, chunk, head

BODIES = st.binary(max_size=300)
NAMES = st.sampled_from([b"Accept", b"x-one", b"X-Two", b"Authorization"])
VALUES = st.sampled_from([b"", b"a", b"Bearer abc", b"text/event-stream, */*"])


def sized(body: bytes, headers: dict[bytes, bytes]) -> bytes:
    lines = b"".join(b"%b: %b\r\n" % item for item in headers.items())
    return b"POST /v1/x?y=1 HTTP/1.1\r\nHost: a\r\n%bContent-Length: %d\r\n\r\n%b" % (lines, len(body), body)


def chunked(body: bytes, sizes: list[int]) -> bytes:
    parts: list[bytes] = []
    rest = body
    for size in sizes:
        part, rest = rest[:size], rest[size:]
        if part:
            parts.append(b"%X;name=value\r\n%b\r\n" % (len(part), part))
    if rest:
        parts.append(chunk(rest))
    return (
        b"POST /v1/x?y=1 HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n%b0\r\nTrailer: 1\r\n\r\n"
        % b"".join(parts)
    )


def split(data: bytes, cuts: list[int]) -> list[bytes]:
    places = sorted({cut % (len(data) + 1) for cut in cuts})
    return [data[a:b] for a, b in zip([0, *places], [*places, len(data)], strict=True)]


def parse(pieces: list[bytes], max_body: int = 10_000) -> list[Request]:
    parser = RequestParser(max_body)
    requests: list[Request] = []
    for piece in pieces:
        request = parser.feed(piece)
        while request is not None:
            requests.append(request)
            request = parser.feed(b"")
    assert parser.idle
    return requests


@given(
    st.lists(st.tuples(BODIES, st.dictionaries(NAMES, VALUES)), min_size=1, max_size=4),
    st.lists(st.integers(min_value=0, max_value=5000), max_size=12),
)
def test_any_split_of_pipelined_requests_gives_the_same_requests(
    wanted: list[tuple[bytes, dict[bytes, bytes]]], cuts: list[int]
) -> None:
    data = b"".join(sized(body, headers) for body, headers in wanted)
    requests = parse(split(data, cuts))
    assert [request.body for request in requests] == [body for body, _ in wanted]
    for request, (_, headers) in zip(requests, wanted, strict=True):
        assert (request.method, request.path, request.query) == ("POST", "/v1/x", "y=1")
        for name, value in headers.items():
            assert request.headers[name.lower()] == value


@given(
    st.lists(
        st.tuples(BODIES, st.lists(st.integers(min_value=1, max_value=80), max_size=5)),
        min_size=1,
        max_size=3,
    ),
    st.lists(st.integers(min_value=0, max_value=5000), max_size=12),
)
def test_any_split_of_chunked_bodies_gives_the_same_bodies(
    wanted: list[tuple[bytes, list[int]]], cuts: list[int]
) -> None:
    data = b"".join(chunked(body, sizes) for body, sizes in wanted)
    assert [request.body for request in parse(split(data, cuts))] == [body for body, _ in wanted]


@given(st.binary(max_size=400), st.lists(st.integers(min_value=0, max_value=400), max_size=5))
def test_whatever_comes_is_a_request_or_an_http_error(data: bytes, cuts: list[int]) -> None:
    parser = RequestParser(1000)
    try:
        for piece in split(data, cuts):
            while parser.feed(piece) is not None:
                piece = b""  # noqa: PLW2901 - what follows is already in the parser
    except HttpError as error:
        status = error.status
    else:
        status = 400
    assert 400 <= status <= 505


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"GET /\r\n\r\n", 400),
        (b"G=T / HTTP/1.1\r\n\r\n", 400),
        (b"GET / HTTP/2.0\r\n\r\n", 505),
        (b"GET /\xc3\xa4 HTTP/1.1\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nno colon\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nname : x\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\na: b\r\n folded\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nContent-Length: -1\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nTransfer-Encoding: gzip\r\n\r\n", 501),
        (b"GET / HTTP/1.1\r\nContent-Length: 1001\r\n\r\n", 413),
        (b"GET / HTTP/1.1\r\nContent-Length: " + b"9" * 5000 + b"\r\n\r\n", 413),
        (b"GET / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", 400),
        (b"GET / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n7d1\r\n", 413),
        (b"GET / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nabc\r\n", 400),
        (b"GET / HTTP/1.1\r\nx: " + b"y" * 70_000, 431),
    ],
)
def test_what_http_forbids_is_refused_with_its_status(data: bytes, status: int) -> None:
    with pytest.raises(HttpError) as caught:
        RequestParser(1000).feed(data)
    assert caught.value.status == status


@pytest.mark.parametrize(
    ("text", "keep"),
    [
        (b"HTTP/1.1\r\n", True),
        (b"HTTP/1.1\r\nConnection: close\r\n", False),
        (b"HTTP/1.0\r\n", False),
        (b"HTTP/1.0\r\nConnection: Keep-Alive\r\n", True),
    ],
)
def test_the_client_says_whether_the_connection_stays(text: bytes, *, keep: bool) -> None:
    (request,) = parse([b"\r\nGET / " + text + b"\r\n"])
    assert request.keep_alive is keep


def test_a_client_that_waits_for_leave_to_send_is_noticed() -> None:
    parser = RequestParser(1000)
    assert parser.feed(b"POST / HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n") is None
    assert parser.expects_continue
    request = parser.feed(b"ab")
    assert request is not None
    assert request.body == b"ab"


def test_a_head_states_its_length_or_that_it_is_chunked() -> None:
    assert head(429, "a/b", length=3, extra=(("retry-after", "2"),), keep_alive=False) == (
        b"HTTP/1.1 429 Too Many Requests\r\ncontent-type: a/b\r\ncontent-length: 3\r\nretry-after: 2\r\n"
        b"connection: close\r\n\r\n"
    )
    assert b"transfer-encoding: chunked\r\n" in head(200, "a/b")
