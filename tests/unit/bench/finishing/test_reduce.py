from __future__ import annotations

import json
import tempfile
from itertools import pairwise
from pathlib import Path
from typing import Final

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.bench.finishing.segments import (
    START_NS,
    Finish,
    Read,
    Reduced,
    Send,
    Setting,
    answered,
    chunked,
    counted,
    reduced,
    segment,
)

from tokenweir.backends.openai import OpenAIBackend
from tokenweir.bench.engine.segment import End
from tokenweir.bench.finishing.segments import Captured
from tokenweir.core.requests import GenerateRequest, Message
from tokenweir.ports.fakes import WordTokenizer

HEAD = b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n"
CHAT = GenerateRequest(kind="chat", model="m", messages=(Message(role="user", content="hi"),))
WHOLE_CHAT = GenerateRequest(kind="chat", model="m", messages=CHAT.messages, stream=False)
OPENAI = Setting(codec=OpenAIBackend(), request=CHAT)


def delta(text: str) -> bytes:
    return b"data: " + json.dumps({"choices": [{"index": 0, "delta": {"content": text}}]}).encode() + b"\n\n"


def finish(reason: str = "stop", usage: dict[str, int] | None = None) -> bytes:
    done: dict[str, object] = {"choices": [{"index": 0, "delta": {}, "finish_reason": reason}]}
    if usage is not None:
        done["usage"] = usage
    return b"data: " + json.dumps(done).encode() + b"\n\ndata: [DONE]\n\n"


def test_a_chunk_has_the_time_of_the_read_that_completed_it(tmp_path: Path) -> None:
    made = reduced(tmp_path, [answered(HEAD % 10 + b"ab", b"c\nde", b"f", b"\n", b"g\n")])
    assert [chunk["received_ns"] for chunk in made.chunks] == [110, 130, 140]
    assert [chunk["gap_ns"] for chunk in made.chunks] == [-1, 20, 10]
    assert [chunk["index"] for chunk in made.chunks] == [0, 1, 2]
    row = made.rows[0]
    assert made.status(0) == "completed"
    assert (row["scheduled_ns"], row["sent_ns"], row["first_byte_ns"]) == (5, 10, 100)
    assert (row["first_token_ns"], row["last_token_ns"], row["end_ns"]) == (110, 140, 140)
    assert (row["reads"], row["chunks"], row["multi_event_reads"], row["gaps_excluded"]) == (5, 3, 0, 0)
    assert (row["icl_sum_ns"], row["icl_count"], row["icl_max_ns"]) == (30, 2, 20)
    assert (row["worker"], row["load"], row["http_status"]) == (2, 1, 200)


def test_gaps_on_both_sides_of_a_shared_read_are_excluded(tmp_path: Path) -> None:
    made = reduced(tmp_path, [answered(HEAD % 10, b"a\n", b"b\nc\n", b"d\n", b"e\n")])
    assert [chunk["received_ns"] for chunk in made.chunks] == [110, 120, 120, 130, 140]
    assert [chunk["gap_ns"] for chunk in made.chunks] == [-1, 10, 0, 10, 10]
    assert [chunk["shared"] for chunk in made.chunks] == [0, 1, 1, 0, 0]
    assert [chunk["excluded"] for chunk in made.chunks] == [0, 1, 1, 1, 0]
    row = made.rows[0]
    assert (row["multi_event_reads"], row["gaps_excluded"]) == (1, 3)
    assert (row["icl_sum_ns"], row["icl_count"], row["icl_max_ns"]) == (10, 1, 10)


def test_a_first_read_of_several_chunks_spoils_only_the_gaps_it_has(tmp_path: Path) -> None:
    made = reduced(tmp_path, [answered(HEAD % 6 + b"a\nb\n", b"c\n")])
    assert [chunk["excluded"] for chunk in made.chunks] == [0, 1, 1]
    assert made.rows[0]["icl_count"] == 0


pieces = st.lists(st.sampled_from([b"a", b"bb", b"\n", b"c\n", b"d\ne\n", b"f\n", b"\n\n"]), max_size=8)


@st.composite
def exchanges(draw: st.DrawFn) -> list[tuple[int, bytes]]:
    """Reads of several answers, interleaved; each answer's bytes are in order and whole."""
    queues: list[list[tuple[int, bytes]]] = []
    for request in range(draw(st.integers(1, 4))):
        lines = draw(pieces)
        answer = chunked(*lines) if draw(st.booleans()) else counted(b"".join(lines))
        cuts = sorted(draw(st.sets(st.integers(1, len(answer) - 1), max_size=8)))
        borders = [0, *cuts, len(answer)]
        queues.append([(request, answer[start:end]) for start, end in pairwise(borders)])
    mixed: list[tuple[int, bytes]] = []
    while any(queues):
        queue = draw(st.sampled_from([one for one in queues if one]))
        mixed.append(queue.pop(0))
    return mixed


def in_segments(reads: list[Read], borders: list[int]) -> list[Captured]:
    """The same exchange in several segments: a send before a request's first read, an end after its last."""
    requests = sorted({read.request for read in reads})
    first = {one: next(k for k, read in enumerate(reads) if read.request == one) for one in requests}
    last = {one: max(k for k, read in enumerate(reads) if read.request == one) for one in requests}
    edges = [0, *borders, len(reads)]
    made: list[Captured] = []
    for start, end in pairwise(edges):
        made.append(
            segment(
                reads[start:end],
                [Send(one, 2 * one, 3 * one + 1) for one in requests if start <= first[one] < end],
                [Finish(one) for one in requests if start <= last[one] < end],
            )
        )
    return made


@settings(max_examples=80)
@given(exchanges(), st.data())
def test_any_partition_into_segments_gives_the_same_rows_and_chunks(
    mixed: list[tuple[int, bytes]], data: st.DataObject
) -> None:
    at = 0
    reads: list[Read] = []
    for request, piece in mixed:
        at += data.draw(st.integers(0, 50))
        reads.append(Read(request, 100 + at, piece))
    borders = sorted(data.draw(st.lists(st.integers(0, len(reads)), max_size=5)))
    with tempfile.TemporaryDirectory() as one, tempfile.TemporaryDirectory() as other:
        whole = reduced(Path(one), in_segments(reads, []))
        parts = reduced(Path(other), in_segments(reads, borders))
    assert parts.rows == whole.rows
    assert parts.chunks == whole.chunks
    assert {row["status"] for row in whole.rows.values()} == {0}
    # Nothing is held of what has ended.
    assert not parts.reducer._open  # pyright: ignore[reportPrivateUsage]


def expected_chunks(reads: list[Read], head: int) -> list[dict[str, int]]:
    """Work one counted answer of lines out the long way; ``head`` is the length of its head."""
    text = b"".join(read.data for read in reads)
    ends = np.cumsum([len(read.data) for read in reads]).tolist()
    owner = [
        next(k for k, end in enumerate(ends) if end > at)
        for at, byte in enumerate(text)
        if at >= head and byte == ord("\n")
    ]
    chunks: list[dict[str, int]] = []
    for index, read in enumerate(owner):
        before = owner[index - 1] if index else None
        alone = owner.count(read) == 1 and (before is None or owner.count(before) == 1)
        chunks.append(
            {
                "request": 0,
                "received_ns": reads[read].at,
                "gap_ns": -1 if before is None else reads[read].at - reads[before].at,
                "index": index,
                "tokens": 1,
                "shared": int(owner.count(read) > 1),
                "excluded": int(not alone and before is not None),
            }
        )
    return chunks


@settings(max_examples=60)
@given(pieces, st.sets(st.integers(1, 70), max_size=10), st.data())
def test_chunk_records_are_what_working_them_out_one_by_one_gives(
    lines: list[bytes], cuts: set[int], data: st.DataObject
) -> None:
    answer = counted(b"".join(lines))
    borders = [0, *sorted(cut for cut in cuts if cut < len(answer)), len(answer)]
    times = np.cumsum(data.draw(st.lists(st.integers(0, 9), min_size=11, max_size=11))).tolist()
    reads = [Read(0, times[k], answer[start:end]) for k, (start, end) in enumerate(pairwise(borders))]
    with tempfile.TemporaryDirectory() as folder:
        made = reduced(Path(folder), in_segments(reads, []))
    chunks = expected_chunks(reads, answer.index(b"\r\n\r\n") + 4)
    assert made.chunks == chunks
    row = made.rows[0]
    usable = [one["gap_ns"] for one in chunks if one["gap_ns"] >= 0 and not one["excluded"]]
    assert row["chunks"] == len(chunks)
    assert row["gaps_excluded"] == sum(one["excluded"] for one in chunks)
    assert (row["icl_sum_ns"], row["icl_count"]) == (sum(usable), len(usable))
    assert row["multi_event_reads"] == len({one["received_ns"] for one in chunks if one["shared"]}) or len(
        set(times)
    ) < len(times)


def test_a_second_send_begins_the_request_again_and_keeps_when_it_was_due(tmp_path: Path) -> None:
    first = segment(sends=[Send(0, 5, 10, connection=1)])
    again = segment(
        [Read(0, 300, counted(b"a\n"))], [Send(0, 250, 260, connection=7)], [Finish(0, End.WHOLE, 300)]
    )
    row = reduced(tmp_path, [first, again]).rows[0]
    assert (row["scheduled_ns"], row["sent_ns"], row["connection"], row["chunks"]) == (5, 260, 7, 1)


def test_two_sends_in_one_segment_are_one_request(tmp_path: Path) -> None:
    made = reduced(
        tmp_path,
        [segment([Read(0, 90, counted(b"a\n"))], [Send(0, 5, 10), Send(0, 5, 60, 3)], [Finish(0)])],
    )
    assert (made.rows[0]["sent_ns"], made.rows[0]["reads"]) == (60, 1)


@pytest.mark.parametrize(
    ("how", "status", "error"),
    [
        (End.TIMEOUT, "failed", "timeout"),
        (End.RESET, "failed", "disconnected"),
        (End.EOF, "failed", "disconnected"),
        (End.CANCELLED, "cancelled", "cancelled"),
        (End.BAD_HEAD, "failed", "malformed"),
    ],
)
def test_an_answer_cut_short_has_no_end_but_keeps_what_came(
    tmp_path: Path, how: int, status: str, error: str
) -> None:
    made = reduced(tmp_path, [answered(HEAD % 50 + b"a\n", b"b\n", how=how)])
    assert (made.status(0), made.error(0)) == (status, error)
    assert (made.rows[0]["chunks"], made.rows[0]["first_token_ns"]) == (2, 100)
    if how != End.EOF:
        assert made.rows[0]["end_ns"] is None
    assert error in made.reducer.messages


@pytest.mark.parametrize("how", [End.CONNECT, End.UNSENT, End.TIMEOUT])
def test_a_request_that_was_never_sent_has_a_row_without_times(tmp_path: Path, how: int) -> None:
    made = reduced(tmp_path, [segment((), [Send(0, 5, -1, -1)], [Finish(0, how, 9, 111)])])
    row = made.rows[0]
    assert row["scheduled_ns"] == 5
    assert [row[name] for name in ("sent_ns", "first_byte_ns", "end_ns", "http_status")] == [None] * 4
    assert row["connection"] == -1
    if how == End.CONNECT:
        assert made.error(0) == "unreachable"
        assert "refused" in made.reducer.messages["unreachable"].lower()


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (b"429 Too Many Requests", "overloaded"),
        (b"503 Service Unavailable", "overloaded"),
        (b"500 Oops", "upstream"),
        (b"401 Unauthorized", "refused"),
        (b"404 Not Found", "refused"),
        (b"302 Found", "upstream"),
    ],
)
def test_a_refusal_has_the_code_of_its_error_and_the_servers_words(
    tmp_path: Path, status: bytes, kind: str
) -> None:
    body = b'{"error": {"message": "come back later"}}'
    answer = counted(body, status, b"retry-after: 2\r\n")
    made = reduced(tmp_path, [answered(answer[:50], answer[50:])], OPENAI)
    assert (made.status(0), made.error(0)) == ("failed", kind)
    assert made.rows[0]["http_status"] == int(status[:3])
    assert made.rows[0]["chunks"] == 0
    assert "come back later" in made.reducer.messages[kind]


@pytest.mark.parametrize(
    ("pieces_", "how", "error"),
    [
        ([chunked(delta("a"), finish())[:-7]], End.EOF, "disconnected"),
        ([chunked(delta("a"))], End.WHOLE, "protocol"),
        ([chunked(b"data: {nonsense}\n\n")], End.WHOLE, "protocol"),
        ([chunked(b"<html>hello</html>")], End.WHOLE, "protocol"),
        ([chunked(b'data: {"error": {"message": "no"}}\n\n')], End.WHOLE, "upstream"),
        ([chunked(b'data: {"error": {"message": "no", "code": 503}}\n\n')], End.WHOLE, "overloaded"),
        ([chunked()], End.WHOLE, "protocol"),
        ([counted(b"")], End.WHOLE, "protocol"),
        ([b"HTTP/1.1 204 No Content\r\n\r\n"], End.WHOLE, "upstream"),
        ([b"HTTP/1.1 200 OK\r\n\r\n"], End.EOF, "protocol"),
        ([], End.EOF, "disconnected"),
        ([b"HTTP/1.1 200 O"], End.EOF, "disconnected"),
        ([counted(delta("a") + finish()) + b"!"], End.WHOLE, "malformed"),
        ([b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n0\r\n\r\n"], End.WHOLE, "malformed"),
        ([chunked(delta("a"), finish("abort"))], End.WHOLE, "aborted"),
    ],
)
def test_an_answer_that_is_not_what_it_should_be_has_failed(
    tmp_path: Path, pieces_: list[bytes], how: int, error: str
) -> None:
    made = reduced(tmp_path, [answered(*pieces_, how=how)], OPENAI)
    assert (made.status(0), made.error(0)) == ("failed", error)
    assert made.reducer.messages[error]


def test_an_answer_until_close_completes_when_the_stream_was_whole(tmp_path: Path) -> None:
    answer = b"HTTP/1.0 200 OK\r\n\r\n" + delta("a") + finish()
    made = reduced(tmp_path, [answered(answer, how=End.EOF)], OPENAI)
    assert made.status(0) == "completed"
    assert made.rows[0]["end_ns"] == 100


def test_interim_answers_are_passed_over(tmp_path: Path) -> None:
    interim = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\na: b\r\n\r\n"
    made = reduced(tmp_path, [answered(interim[:30], interim[30:] + counted(b"a\n"))])
    assert made.status(0) == "completed"
    assert made.rows[0]["chunks"] == 1


class TestTokens:
    usage: Final = {"prompt_tokens": 7, "completion_tokens": 5}
    tokenizer: Final = WordTokenizer(["one", "two", "three"])

    def made(self, tmp_path: Path, *, told: bool, tokenizer: bool, stream: bool = True) -> Reduced:
        if stream:
            answer = chunked(delta("one two "), delta("three"), finish(usage=self.usage if told else None))
        else:
            body: dict[str, object] = {
                "choices": [{"message": {"content": "one two three"}, "finish_reason": "stop"}]
            }
            answer = counted(json.dumps(body | ({"usage": self.usage} if told else {})).encode())
        setting = Setting(
            codec=OpenAIBackend(),
            request=CHAT if stream else WHOLE_CHAT,
            tokenizer=self.tokenizer if tokenizer else None,
            input_tokens=9,
        )
        return reduced(tmp_path, [answered(answer)], setting)

    def test_the_servers_count_comes_first(self, tmp_path: Path) -> None:
        row = self.made(tmp_path, told=True, tokenizer=True).rows[0]
        assert (row["input_tokens"], row["output_tokens"], row["token_source"]) == (7, 5, 0)

    def test_then_the_tokenizers(self, tmp_path: Path) -> None:
        row = self.made(tmp_path, told=False, tokenizer=True).rows[0]
        assert (row["input_tokens"], row["output_tokens"], row["token_source"]) == (9, 3, 1)

    def test_then_the_number_of_chunks(self, tmp_path: Path) -> None:
        row = self.made(tmp_path, told=False, tokenizer=False).rows[0]
        assert (row["output_tokens"], row["token_source"]) == (2, 2)

    def test_a_whole_answer_is_counted_by_the_tokenizer_too(self, tmp_path: Path) -> None:
        row = self.made(tmp_path, told=False, tokenizer=True, stream=False).rows[0]
        assert (row["output_tokens"], row["token_source"]) == (3, 1)

    def test_a_whole_answer_has_no_token_times(self, tmp_path: Path) -> None:
        row = self.made(tmp_path, told=True, tokenizer=False, stream=False).rows[0]
        names = ("first_token_ns", "last_token_ns", "true_first_ns")
        assert [row[name] for name in names] == [None, None, None]
        assert (row["chunks"], row["end_ns"], row["output_tokens"]) == (0, 100, 5)

    def test_streamed_and_whole_answers_of_the_same_text_have_the_same_hash(self, tmp_path: Path) -> None:
        hashes: set[int | None] = set()
        for stream in (True, False):
            folder = tmp_path / str(stream)
            folder.mkdir()
            hashes.add(self.made(folder, told=True, tokenizer=False, stream=stream).rows[0]["answer_hash"])
        assert len(hashes) == 1
        assert None not in hashes


def test_the_hash_is_of_the_text_however_it_came(tmp_path: Path) -> None:
    bodies = [
        chunked(delta("ab"), delta("c"), finish()),
        chunked(delta("a"), delta("bc"), finish()),
        chunked(delta("axd"), finish()),
    ]
    setting = OPENAI
    segments = [answered(body, request=k) for k, body in enumerate(bodies)]
    made = reduced(tmp_path, segments, setting)
    one, same, other = (made.rows[k]["answer_hash"] for k in range(3))
    assert one == same
    assert one != other


def test_numbers_and_repeats_go_on_when_the_list_begins_again(tmp_path: Path) -> None:
    segments = [answered(counted(b"a\n"), request=k) for k in (0, 1, 2, 3, 7)]
    rows = reduced(tmp_path, segments, Setting(requests=2, cycle_repeats=4)).rows
    assert list(rows) == [0, 1, 2, 3, 7]
    assert [rows[k]["sample"] for k in rows] == [0, 1, 0, 1, 1]
    assert [rows[k]["repeat"] for k in rows] == [0, 0, 4, 4, 12]


def test_what_never_ended_leaves_no_row(tmp_path: Path) -> None:
    made = reduced(tmp_path, [segment([Read(0, 50, chunked(b"a\n")[:-5])], [Send(0, 5, 10)])])
    assert made.rows == {}
    assert len(made.chunks) == 1


def test_true_times_are_the_servers_own(tmp_path: Path) -> None:
    def timed(text: str, at: int) -> bytes:
        told = {"choices": [{"delta": {"content": text}}], "sent_ns": START_NS + at}
        return b"data: " + json.dumps(told).encode() + b"\n\n"

    answer = chunked(timed("a", 80), timed("b", 95), delta("c"), finish())
    cut = answer.index(b"b") - 40
    made = reduced(
        tmp_path,
        [answered(answer[:cut], answer[cut:])],
        Setting(codec=OpenAIBackend(), request=CHAT, true_times=True),
    )
    null = -(1 << 63)
    assert [chunk["true_sent_ns"] for chunk in made.chunks] == [80, 95, null]
    assert [chunk["true_gap_ns"] for chunk in made.chunks] == [null, 15, null]
    assert made.rows[0]["true_first_ns"] == 80


def test_a_step_of_the_clock_between_segments_is_counted_once(tmp_path: Path) -> None:
    still = answered(counted(b"a\n"))
    later = answered(counted(b"b\n"), request=1)
    later = later._replace(clocks=later.clocks + np.array([[2 * 10**12, 5 * 10**9]]))
    made = reduced(tmp_path, [still, later])
    assert made.reducer.clock_steps == 1
