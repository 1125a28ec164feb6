"""What becomes of a request when its connection, or its server, misbehaves: each has one end and a send."""

from __future__ import annotations

import errno
import os
import socket
from collections import Counter
from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.bench.engine.stage import Line, Script, Server, Stage, Taken, stage

from tokenweir.bench.engine import connections
from tokenweir.bench.engine.segment import End

OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nhi"
LARGE = b"POST / HTTP/1.1\r\ncontent-length: 8000000\r\n\r\n" + b"x" * 8_000_000
SECOND_NS = 1_000_000_000


def accounted(taken: Taken, requests: int) -> None:
    """Check that every request has one end, and a send before it."""
    assert sorted(request for request, _ in taken.ends) == list(range(requests))
    assert {request for request, _, _, _ in taken.sends} == set(range(requests))
    assert taken.live.in_flight == 0


def test_a_request_that_meets_a_closed_kept_alive_connection_is_sent_again() -> None:
    def script(server: Server) -> Script:
        first = server.accept()
        first.hear()
        yield from first.say(OK)
        first.hear()
        first.close()
        yield True
        second = server.accept()
        second.hear()
        yield from second.say(OK)

    with stage() as stg:
        taken = stg.play(script, requests=2)
    accounted(taken, 2)
    assert taken.ends == [(0, "WHOLE"), (1, "WHOLE")]
    assert taken.capture.retried == 1
    again = [send for send in taken.sends if send[0] == 1]
    assert len(again) == 2
    assert again[0][2] == again[1][2]
    assert again[1][3] > again[0][3]


def test_a_first_use_of_a_connection_that_closes_is_a_failure() -> None:
    def script(server: Server) -> Script:
        line = server.accept()
        line.hear()
        line.close()
        yield True

    with stage() as stg:
        taken = stg.play(script)
    assert taken.ends == [(0, "EOF")]
    assert taken.capture.retried == 0


def test_an_answer_that_has_begun_is_never_asked_for_again() -> None:
    def script(server: Server) -> Script:
        line = server.accept()
        line.hear()
        yield from line.say(OK)
        line.hear()
        yield from line.say(OK[:12])
        line.reset()
        yield True

    with stage() as stg:
        taken = stg.play(script, requests=2)
    assert taken.ends == [(0, "WHOLE"), (1, "RESET")]


def test_requests_that_meet_reset_warm_connections_are_accounted_for() -> None:
    def reset_all(server: Server) -> None:
        for _ in range(3):
            server.accept().reset()

    def script(server: Server) -> Script:
        while (line := server.knock()) is not None:
            line.hear()
            yield from line.say(OK)

    with stage() as stg:
        taken = stg.play(
            script, requests=3, slots=3, warm_connections=3, before_run=reset_all, timeout_ns=SECOND_NS
        )
    accounted(taken, 3)


def test_a_server_that_is_gone_fails_every_request_and_says_why() -> None:
    def leave(server: Server) -> None:
        server.accept().reset()
        server.door.close()

    def script(server: Server) -> Script:
        del server
        yield False

    with stage() as stg:
        taken = stg.play(script, requests=3, before_run=leave, timeout_ns=5 * SECOND_NS)
    accounted(taken, 3)
    for one in taken.segments:
        for _, how, detail, _ in one.ends.tolist():
            if how == End.CONNECT:
                assert detail == errno.ECONNREFUSED
    assert Counter(how for _, how in taken.ends)["CONNECT"] >= 2


def test_a_silent_server_ends_in_a_timeout_and_its_connection_is_given_up() -> None:
    def script(server: Server) -> Script:
        line = server.accept()
        line.hear()
        while not line.ended():
            yield False
        fresh = server.accept()
        fresh.hear()
        yield from fresh.say(OK)

    with stage() as stg:
        taken = stg.play(script, requests=2, timeout_ns=SECOND_NS // 5)
    accounted(taken, 2)
    assert taken.ends == [(0, "TIMEOUT"), (1, "WHOLE")]


def test_a_timeout_comes_while_other_requests_flow() -> None:
    def script(server: Server) -> Script:
        lines = [server.accept(), server.accept()]
        for line in lines:
            line.hear()
        silent, busy = lines
        while not silent.ended():
            yield from busy.say(OK)
            busy.hear()
        yield from busy.say(OK)

    with stage() as stg:
        taken = stg.play(
            script,
            slots=2,
            warm_connections=2,
            repeat=True,
            duration_ns=SECOND_NS,
            timeout_ns=SECOND_NS // 4,
        )
    ends = [(how, at) for one in taken.segments for _, how, _, at in one.ends.tolist()]
    first_late = min(at for how, at in ends if how == End.TIMEOUT)
    assert any(how == End.WHOLE and at > first_late for how, at in ends)
    assert first_late - min(sent for _, _, _, sent in taken.sends) < SECOND_NS


def test_requests_for_which_no_connection_comes_time_out() -> None:
    with stage() as stg:
        # A full accept queue swallows further connections without a word.
        stg.server.door.listen(0)
        fillers = [socket.socket() for _ in range(3)]
        for filler in fillers:
            filler.setblocking(False)  # noqa: FBT003 - the socket API's own form
            filler.connect_ex(("127.0.0.1", stg.server.port))
        taken = stg.play(lambda _: iter_nothing(), requests=2, warm_connections=0, timeout_ns=SECOND_NS // 5)
        for filler in fillers:
            filler.close()
    accounted(taken, 2)
    assert [how for _, how in taken.ends] == ["TIMEOUT", "TIMEOUT"]
    assert [(connection, sent) for _, connection, _, sent in taken.sends] == [(-1, -1)] * 2


def iter_nothing() -> Script:
    yield False


def test_a_large_request_is_sent_as_the_server_reads_it() -> None:
    def script(server: Server) -> Script:
        line = server.accept()
        yield from line.drain(len(LARGE))
        yield from line.say(OK)

    with stage() as stg:
        taken = stg.play(script, payload=LARGE)
    assert taken.ends == [(0, "WHOLE")]
    ((_, _, scheduled, sent),) = taken.sends
    assert sent > scheduled


@pytest.mark.parametrize("then", ["closes", "stays"])
def test_an_answer_before_the_request_is_read_is_taken(then: str) -> None:
    refusal = b"HTTP/1.1 413 Too Large\r\ncontent-length: 2\r\nconnection: close\r\n\r\nno"

    def script(server: Server) -> Script:
        line = server.accept()
        line.socket.recv(100)
        yield from line.say(refusal)
        if then == "closes":
            line.close()
            yield True

    with stage() as stg:
        taken = stg.play(script, payload=LARGE, timeout_ns=SECOND_NS)
        waits = stg.poller.idle_waits
    assert taken.ends == [(0, "WHOLE")]
    assert b"".join(taken.reads(0)) == refusal
    assert waits < 50


def told(word: bytes, *, stg: Stage, lines: int) -> Taken:
    """Say ``word`` to a capture with two requests open; the server then answers both."""

    def script(server: Server) -> Script:
        open_lines = [server.accept() for _ in range(lines)]
        for line in open_lines:
            line.hear()
        if word:
            os.write(stg.tell, word)
        else:
            os.close(stg.tell)
            stg.tell = os.dup(stg.control)
        yield True
        for line in open_lines:
            yield from line.say(OK)

    return stg.play(script, requests=9, slots=lines, warm_connections=lines)


@pytest.mark.parametrize("word", [b"cancel\n", b""], ids=["cancel", "end of input"])
def test_a_cancel_gives_up_what_is_open_and_keeps_it_on_record(word: bytes) -> None:
    with stage() as stg:
        taken = told(word, stg=stg, lines=2)
    assert sorted(taken.ends) == [(0, "CANCELLED"), (1, "CANCELLED")]
    assert {request for request, _, _, _ in taken.sends} == {0, 1}


def test_an_idle_connection_that_the_server_closes_is_replaced() -> None:
    def script(server: Server) -> Script:
        first = server.accept()
        first.hear()
        yield from first.say(OK)
        first.close()
        yield True
        second = yield from server.awaited()
        second.hear()
        yield from second.say(OK)

    with stage() as stg:
        taken = stg.play(script, requests=2, slots=0, schedule=[0, SECOND_NS // 5])
    assert taken.ends == [(0, "WHOLE"), (1, "WHOLE")]
    assert taken.capture.retried == 0
    assert [connection for _, connection, _, _ in taken.sends] == [0, 1]


def test_bytes_that_nobody_asked_for_end_an_idle_connection() -> None:
    def script(server: Server) -> Script:
        first = server.accept()
        first.hear()
        yield from first.say(OK)
        yield from first.say(b"HTTP/1.1 408 Request Timeout\r\ncontent-length: 0\r\n\r\n")
        second = yield from server.awaited()
        second.hear()
        yield from second.say(OK)

    with stage() as stg:
        taken = stg.play(script, requests=2, slots=0, schedule=[0, SECOND_NS // 5])
    assert taken.ends == [(0, "WHOLE"), (1, "WHOLE")]
    assert b"".join(taken.reads(1)) == OK


def test_a_warm_up_succeeds_when_some_connections_were_made() -> None:
    with stage() as stg:
        made = stg.server

        class ClosesTheDoor(type(stg.poller)):
            def watch(self, fd: int, mask: int) -> None:
                super().watch(fd, mask)
                if not made.lines and fd != stg.control:
                    made.accept()
                    made.door.close()

        stg.poller.close()
        stg.poller = ClosesTheDoor()

        def script(server: Server) -> Script:
            line = server.lines[0]
            line.hear()
            yield from line.say(OK)

        taken = stg.play(script, warm_connections=3)
    assert taken.ends == [(0, "WHOLE")]


def test_a_warm_up_that_makes_no_connection_says_why() -> None:
    with stage() as stg:
        with socket.create_server(("127.0.0.1", 0)) as gone:
            port = int(gone.getsockname()[1])
        with pytest.raises(OSError, match="refused") as caught:
            stg.play(lambda _: iter_nothing(), port=port)
    assert caught.value.errno == errno.ECONNREFUSED


@settings(max_examples=25)
@given(
    st.lists(
        st.sampled_from(
            ["whole", "close first", "reset first", "cut", "garbage", "close after", "told close"]
        ),
        min_size=1,
        max_size=8,
    )
)
def test_whatever_the_server_does_every_request_is_accounted_for(acts: list[str]) -> None:
    def script(server: Server) -> Script:
        line: Line | None = None
        for act in acts:
            if line is None or line.socket.fileno() < 0 or line.ended():
                line = server.accept()
            line.hear()
            match act:
                case "whole":
                    yield from line.say(OK)
                case "close first":
                    line.close()
                    yield True
                case "reset first":
                    line.reset()
                    yield True
                case "cut":
                    yield from line.say(OK[:-1])
                    line.close()
                    yield True
                case "garbage":
                    yield from line.say(b"nonsense\r\n\r\n")
                case "close after":
                    yield from line.say(OK)
                    line.close()
                    yield True
                case _:
                    yield from line.say(OK.replace(b"OK\r\n", b"OK\r\nconnection: close\r\n"))
        while True:
            if line is None or line.socket.fileno() < 0 or line.ended():
                line = server.accept()
            line.hear()
            yield from line.say(OK)

    with stage() as stg:
        taken = stg.play(script, requests=len(acts), timeout_ns=5 * SECOND_NS)
    accounted(taken, len(acts))
    assert {how for _, how in taken.ends} <= {"WHOLE", "EOF", "RESET", "BAD_HEAD"}


@settings(max_examples=20)
@given(st.integers(8, 40), st.integers(0, 24), st.lists(st.integers(1, 12), min_size=1, max_size=8))
def test_any_number_of_connections_may_be_open(room: int, warm: int, bursts: list[int]) -> None:
    total = sum(bursts)

    def script(server: Server) -> Script:
        lines: list[Line] = []
        # Which of the warm connections are used is the capture's affair.
        for _ in range(max(total, warm)):
            line = yield from server.awaited()
            line.socket.settimeout(0)
            lines.append(line)
        asked = 0
        while asked < total:
            for line in lines:
                with suppress(BlockingIOError):
                    line.hear()
                    asked += 1
            yield False
        for line in lines:
            line.socket.settimeout(None)
            yield from line.say(OK)

    schedule = [k * 3_000_000 for k, burst in enumerate(bursts) for _ in range(burst)]
    with pytest.MonkeyPatch.context() as patch, stage() as stg:
        patch.setattr(connections, "_ROOM", room)
        taken = stg.play(
            script, requests=total, slots=0, schedule=schedule, warm_connections=warm, timeout_ns=SECOND_NS
        )
    accounted(taken, total)
    assert {how for _, how in taken.ends} == {"WHOLE"}
