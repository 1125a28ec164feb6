"""When the capture takes an answer for whole, whatever its framing and however its bytes arrive."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.bench.engine.stage import Script, Server, Taken, one_answer, split, stage

from tokenweir.bench.engine.framing import MAX_HEAD_BYTES

CHUNKED = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"
LAST = b"0\r\n\r\n"


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def framed(*chunks: bytes) -> bytes:
    return b"".join(chunk(one) for one in chunks) + LAST


def played(*pieces: bytes, close: bool = False) -> Taken:
    """What the capture makes of one answer in pieces; it gives up on more after a second."""
    with stage() as stg:
        return stg.play(one_answer(*pieces, close=close), timeout_ns=1_000_000_000)


def twice(answer: bytes, cuts: list[int]) -> Taken:
    """What it makes of two answers on one connection, cut alike."""

    def script(server: Server) -> Script:
        line = server.accept()
        for _ in range(2):
            line.hear()
            yield from line.say(*split(answer, cuts))

    with stage() as stg:
        return stg.play(script, requests=2)


@settings(max_examples=60)
@given(st.data())
def test_a_chunked_answer_ends_with_its_last_byte_however_it_is_cut(data: st.DataObject) -> None:
    # Chunks may hold anything but CR, which JSON and server-sent events write as an escape.
    piece = st.one_of(
        st.binary(min_size=1, max_size=20).map(lambda one: one.replace(b"\r", b"-")),
        st.sampled_from([b"0", b"\n0\n\n", b"0\n\n", b"10", b"\n"]),
    )
    answer = CHUNKED + framed(*data.draw(st.lists(piece, max_size=4)))
    cuts = data.draw(st.lists(st.integers(1, len(answer) - 1), max_size=10))
    taken = twice(answer, cuts)
    assert taken.ends == [(0, "WHOLE"), (1, "WHOLE")]
    assert [b"".join(taken.reads(k)) for k in range(2)] == [answer] * 2
    assert len({connection for _, connection, _, _ in taken.sends}) == 1


def test_a_chunked_answer_may_come_byte_by_byte() -> None:
    answer = CHUNKED + framed(b"data: 0\n\n", b"0", b"data: [DONE]\n\n")
    assert twice(answer, list(range(len(answer)))).ends == [(0, "WHOLE"), (1, "WHOLE")]


@settings(max_examples=25)
@given(st.data())
def test_an_answer_of_known_length_ends_with_its_last_byte_however_it_is_cut(data: st.DataObject) -> None:
    body = data.draw(st.one_of(st.binary(max_size=60), st.sampled_from([b"", b"0\r\n\r\n", b"\r\n\r\n"])))
    answer = b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(body) + body
    taken = twice(answer, data.draw(st.lists(st.integers(1, len(answer) - 1), max_size=8)))
    assert taken.ends == [(0, "WHOLE"), (1, "WHOLE")]
    assert [b"".join(taken.reads(k)) for k in range(2)] == [answer] * 2


@settings(max_examples=20)
@given(st.binary(max_size=40), st.lists(st.integers(1, 80), max_size=6))
def test_an_answer_until_close_ends_when_the_server_closes(body: bytes, cuts: list[int]) -> None:
    answer = b"HTTP/1.0 200 OK\r\nserver: old\r\n\r\n" + body
    taken = played(*split(answer, cuts), close=True)
    assert taken.ends == [(0, "EOF")]
    assert b"".join(taken.reads(0)) == answer


@pytest.mark.parametrize(
    "head",
    [b"HTTP/1.1 204 No Content\r\n\r\n", b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"],
)
def test_an_answer_without_a_body_ends_with_its_head(head: bytes) -> None:
    assert twice(head, [7]).ends == [(0, "WHOLE"), (1, "WHOLE")]


@pytest.mark.parametrize("pieces", [[CHUNKED + LAST], [CHUNKED, LAST], [CHUNKED + b"0\r\n", b"\r\n"]])
def test_an_empty_chunked_answer_is_whole(pieces: list[bytes]) -> None:
    assert played(*pieces).ends == [(0, "WHOLE")]


@pytest.mark.parametrize(
    "rest",
    [
        pytest.param(framed(b"hi"), id="chunked"),
        pytest.param(b"", id="cut"),
    ],
)
def test_an_interim_answer_is_passed_over(rest: bytes) -> None:
    interim = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nlink: a\r\n\r\n"
    pieces = (
        [interim, CHUNKED + rest] if rest else [*split(interim + CHUNKED, [3, 24, 30, 60]), framed(b"hi")]
    )
    assert played(*pieces).ends == [(0, "WHOLE")]


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(CHUNKED + framed(b"hi"), id="chunked"),
        pytest.param(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nhi", id="length"),
        pytest.param(b"HTTP/1.1 204 No Content\r\n\r\n", id="empty"),
    ],
)
def test_an_interim_answer_may_come_in_one_read_with_the_whole_final_one(answer: bytes) -> None:
    taken = played(b"HTTP/1.1 100 Continue\r\n\r\n" + answer)
    assert taken.ends == [(0, "WHOLE")]


@settings(max_examples=25)
@given(st.data())
def test_interim_answers_may_be_cut_anywhere(data: st.DataObject) -> None:
    answer = (
        b"HTTP/1.1 102 Processing\r\n\r\nHTTP/1.1 103 Early\r\na: b\r\n\r\n" + CHUNKED + framed(b"hi", b"0")
    )
    cuts = data.draw(st.lists(st.integers(1, len(answer) - 1), max_size=6))
    assert twice(answer, cuts).ends == [(0, "WHOLE"), (1, "WHOLE")]


@pytest.mark.parametrize(
    "ending",
    [
        b"0\r\nserver-timing: total;dur=3\r\n\r\n",
        b"0\r\na: b\r\nc: d\r\n\r\n",
        b"0;last=1\r\n\r\n",
        b"000\r\n\r\n",
    ],
)
@pytest.mark.parametrize("apart", [False, True])
def test_every_legal_last_chunk_ends_an_answer(ending: bytes, *, apart: bool) -> None:
    start = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\ntrailer: server-timing\r\n\r\n" + chunk(b"hi")
    assert played(*([start, ending] if apart else [start + ending])).ends == [(0, "WHOLE")]


def drawn_answer(data: st.DataObject) -> bytes:
    body = data.draw(st.binary(max_size=12).map(lambda one: one.replace(b"\r", b"-")))
    field = data.draw(st.sampled_from([b"", b"trailer: a\r\n", b"x: %d\r\n" % len(body)]))
    interim = data.draw(st.sampled_from([b"", b"", b"", b"HTTP/1.1 103 Early Hints\r\n\r\n"]))
    status = data.draw(st.sampled_from([b"200 OK", b"200 OK", b"429 No"]))
    match data.draw(st.sampled_from(["length", "length", "chunked", "empty"])):
        case "length":
            return b"%bHTTP/1.1 %b\r\n%bcontent-length: %d\r\n\r\n%b" % (
                interim,
                status,
                field,
                len(body),
                body,
            )
        case "chunked":
            head = b"%bHTTP/1.1 %b\r\n%btransfer-encoding: chunked\r\n\r\n" % (interim, status, field)
            return (
                head
                + (chunk(body) if body else b"")
                + (b"0\r\na: b\r\n\r\n" if b"trailer" in field else LAST)
            )
        case _:
            return interim + b"HTTP/1.1 204 No Content\r\n" + field + b"\r\n"


@settings(max_examples=60)
@given(st.data())
def test_answers_of_all_kinds_follow_each_other_on_one_connection(data: st.DataObject) -> None:
    kinds = [drawn_answer(data) for _ in range(data.draw(st.integers(1, 3)))]
    answers = data.draw(st.lists(st.sampled_from(kinds), min_size=2, max_size=7))
    cuts = [data.draw(st.lists(st.integers(1, len(one)), max_size=3)) for one in answers]

    def script(server: Server) -> Script:
        line = server.accept()
        for answer, where in zip(answers, cuts, strict=True):
            line.hear()
            yield from line.say(*split(answer, where))

    with stage() as stg:
        taken = stg.play(script, requests=len(answers), timeout_ns=1_000_000_000)
    assert taken.ends == [(k, "WHOLE") for k in range(len(answers))]
    assert [b"".join(taken.reads(k)) for k in range(len(answers))] == answers


def test_an_answer_with_trailers_does_not_cut_the_next_one_short() -> None:
    announced = CHUNKED.replace(b"\r\n\r\n", b"\r\ntrailer: a\r\n\r\n")
    answers = [announced + chunk(b"one") + b"0\r\na: b\r\n\r\n", CHUNKED + framed(b"two", b"three")]

    def script(server: Server) -> Script:
        line = server.accept()
        line.hear()
        yield from line.say(answers[0])
        line.hear()
        yield from line.say(CHUNKED + chunk(b"two"), chunk(b"three"), LAST)

    with stage() as stg:
        taken = stg.play(script, requests=2, timeout_ns=1_000_000_000)
    assert taken.ends == [(0, "WHOLE"), (1, "WHOLE")]
    assert [b"".join(taken.reads(k)) for k in range(2)] == answers


@pytest.mark.parametrize(
    "data",
    [b"0\r\n\r\n", b"\r\n0\r\n\r\n", b"a\r\n0\r\n\r\nb", b"0\r\n\r\n0\r\n\r\n"],
)
def test_a_body_that_looks_like_an_end_is_no_end(data: bytes) -> None:
    answer = CHUNKED + framed(b"start", data, b"and more")
    assert twice(answer, []).ends == [(0, "WHOLE"), (1, "WHOLE")]
    assert twice(answer, [len(CHUNKED) + 10]).ends == [(0, "WHOLE"), (1, "WHOLE")]


def test_a_connection_that_closes_inside_a_chunked_answer_ends_it_unwhole() -> None:
    assert played(CHUNKED + chunk(b"hi"), close=True).ends == [(0, "EOF")]


def test_more_bytes_than_the_length_says_end_the_connection() -> None:
    def script(server: Server) -> Script:
        line = server.accept()
        line.hear()
        yield from line.say(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nhi there")
        second = server.accept()
        second.hear()
        yield from second.say(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nhi")

    with stage() as stg:
        taken = stg.play(script, requests=2)
    assert taken.ends == [(0, "WHOLE"), (1, "WHOLE")]
    assert len({connection for _, connection, _, _ in taken.sends}) == 2


@pytest.mark.parametrize("version", [b"1.1 200 OK\r\nconnection: close", b"1.0 200 OK"])
def test_a_connection_that_the_server_will_close_is_not_used_again(version: bytes) -> None:
    answer = b"HTTP/" + version + b"\r\ncontent-length: 2\r\n\r\nhi"

    def script(server: Server) -> Script:
        for _ in range(2):
            line = server.accept()
            line.hear()
            yield from line.say(answer)

    with stage() as stg:
        taken = stg.play(script, requests=2)
    assert taken.ends == [(0, "WHOLE"), (1, "WHOLE")]
    assert [connection for _, connection, _, _ in taken.sends] == [0, 1]


@pytest.mark.parametrize(
    "answer",
    [
        b"SSH-2.0-OpenSSH_9.6\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: many\r\n\r\n",
        b"x" * (MAX_HEAD_BYTES + 1),
    ],
)
def test_what_does_not_begin_as_http_ends_at_once(answer: bytes) -> None:
    assert [how for _, how in played(answer, b"more").ends] == ["BAD_HEAD"]


def test_heads_are_read_with_kernel_stamps_and_epoll_too() -> None:
    answer = CHUNKED + framed(b"hi")
    with stage() as stg:
        taken = stg.play(one_answer(answer[:9], answer[9:60], answer[60:]), kernel_stamps=True)
    assert taken.ends == [(0, "WHOLE")]
    assert taken.capture.unstamped <= 3
