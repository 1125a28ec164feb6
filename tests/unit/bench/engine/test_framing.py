from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.bench.engine.stage import split

from tokenweir.bench.engine.framing import (
    CHUNKED,
    UNTIL_CLOSE,
    Dechunker,
    Head,
    parse_fields,
    parse_head,
)

chunk_lists = st.lists(
    st.one_of(
        st.binary(min_size=1, max_size=40),
        st.sampled_from([b"0\r\n\r\n", b"\r\n0\r\n\r\n", b"0", b"\r", b"\n", b"a" * 300]),
    ),
    max_size=6,
)
cut_lists = st.lists(st.integers(0, 700), max_size=12)
size_lines = st.sampled_from([b"%x", b"%X", b"0%x", b"%x;name=value", b'%x;q="a b"', b"%x "])
trailers = st.sampled_from([b"", b"server-timing: total;dur=3\r\n", b"a: b\r\nc: d\r\n"])


def frame(chunks: list[bytes], size: bytes = b"%x", trailer: bytes = b"") -> bytes:
    body = b"".join(size % len(chunk) + b"\r\n" + chunk + b"\r\n" for chunk in chunks)
    return body + b"0\r\n" + trailer + b"\r\n"


@given(chunk_lists, size_lines, trailers, cut_lists)
def test_dechunking_gives_the_body_however_the_message_is_cut(
    chunks: list[bytes], size: bytes, trailer: bytes, cuts: list[int]
) -> None:
    dechunker = Dechunker()
    message = frame(chunks, size, trailer)
    pieces = split(message, cuts)
    whole: list[bool] = []
    body = b""
    for piece in pieces:
        body += dechunker.feed(piece)
        whole.append(dechunker.whole)
    assert body == b"".join(chunks)
    assert not dechunker.bad
    assert whole == [False] * (len(pieces) - 1) + [True]


@given(st.binary(max_size=120), cut_lists)
def test_any_bytes_are_dechunked_alike_however_they_are_cut(data: bytes, cuts: list[int]) -> None:
    at_once, in_pieces = Dechunker(), Dechunker()
    first = at_once.feed(data)
    second = b"".join(in_pieces.feed(piece) for piece in split(data, cuts))
    assert in_pieces.whole == at_once.whole
    assert in_pieces.bad == at_once.bad
    if not at_once.bad:
        assert second == first


@pytest.mark.parametrize(
    "data",
    [
        b"x\r\n",
        b"\r\n",
        b"-1\r\n",
        b"+5\r\nhello\r\n",
        b"1_0\r\n",
        b"3\r\nabcd\r\n",
        b"0x3\r\nabc\r\n",
        b"f" * 400,
    ],
)
def test_what_is_no_chunk_is_bad_for_good(data: bytes) -> None:
    dechunker = Dechunker()
    dechunker.feed(data)
    assert dechunker.bad
    dechunker.feed(b"0\r\n\r\n")
    assert dechunker.bad
    assert not dechunker.whole


def test_nothing_after_the_last_chunk_belongs_to_the_body() -> None:
    dechunker = Dechunker()
    assert dechunker.feed(b"0\r\n\r\n") == b""
    assert dechunker.feed(b"3\r\nabc\r\n") == b""


def says(status: int, length: int, *, keep_alive: bool = False, trailers: bool = False) -> Head:
    return Head(status, length, keep_alive, trailers)


@pytest.mark.parametrize(
    ("head", "expected"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 12", says(200, 12, keep_alive=True)),
        (b"HTTP/1.1 200\r\ncontent-length:0", says(200, 0, keep_alive=True)),
        (b"HTTP/1.1 200 OK\r\nTRANSFER-ENCODING: Chunked", says(200, CHUNKED, keep_alive=True)),
        (
            b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\ntransfer-encoding: chunked",
            says(200, CHUNKED, keep_alive=True),
        ),
        (
            b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\ncontent-length: 5",
            says(200, CHUNKED, keep_alive=True),
        ),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\nConnection: Close", says(200, 5)),
        (b"HTTP/1.0 200 OK\r\ncontent-length: 5", says(200, 5)),
        (b"HTTP/1.0 200 OK\r\ncontent-length: 5\r\nconnection: keep-alive", says(200, 5, keep_alive=True)),
        (b"HTTP/1.0 200 OK", says(200, UNTIL_CLOSE)),
        (b"HTTP/1.1 200 OK\r\nconnection: keep-alive", says(200, UNTIL_CLOSE)),
        (b"HTTP/1.1 204 No Content", says(204, 0, keep_alive=True)),
        (b"HTTP/1.1 304 Not Modified\r\ncontent-length: 99", says(304, 0, keep_alive=True)),
        (b"HTTP/1.1 100 Continue", says(100, UNTIL_CLOSE)),
        (
            b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\nTrailer: a",
            says(200, CHUNKED, keep_alive=True, trailers=True),
        ),
    ],
)
def test_a_head_says_how_its_body_ends(head: bytes, expected: Head) -> None:
    assert parse_head(head) == expected


@pytest.mark.parametrize(
    "head",
    [
        b"",
        b"SSH-2.0-OpenSSH_9.6",
        b"HTTP/2 200",
        b"HTTP/1.1 abc",
        b"HTTP/1.1 2",
        b"<html>",
        b"HTTP/1.1 200 OK\r\ncontent-length: x",
        b"HTTP/1.1 200 OK\r\ncontent-length: -1",
    ],
)
def test_what_is_no_head_is_told_apart(head: bytes) -> None:
    assert parse_head(head) is None


def test_fields_have_lower_case_names() -> None:
    head = b"HTTP/1.1 429 Slow\r\nRetry-After: 2\r\nX-One:  a:b \r\nnonsense"
    assert parse_fields(head) == {"retry-after": "2", "x-one": "a:b"}
