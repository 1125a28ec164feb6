from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tokenweir.core.sse import SseEvent, SseParser, format_event


def parse(*pieces: bytes) -> list[SseEvent]:
    parser = SseParser()
    return [event for piece in pieces for event in parser.feed(piece)] + parser.end()


def payloads(*pieces: bytes) -> list[bytes]:
    return [event.data for event in parse(*pieces)]


def test_a_space_after_the_colon_is_optional_and_only_one_is_dropped() -> None:
    assert payloads(b"data: a\n\ndata:b\n\ndata:  c\n\n") == [b"a", b"b", b" c"]


def test_every_line_end_is_known() -> None:
    assert payloads(b"data: a\r\n\r\ndata: b\r\rdata: c\n\n") == [b"a", b"b", b"c"]


def test_several_data_lines_are_one_event() -> None:
    assert payloads(b"data: a\ndata\ndata: b\n\n") == [b"a\n\nb"]


def test_comments_and_unknown_fields_are_passed_over() -> None:
    assert payloads(b": hello\n\nretry: 5\ndata: a\nfoo: bar\n\n:\n\n") == [b"a"]


def test_an_event_s_name_lasts_one_event_and_its_id_longer() -> None:
    assert parse(b"event: error\nid: 7\ndata: a\n\ndata: b\n\n") == [
        SseEvent(28, b"a", b"error", b"7"),
        SseEvent(37, b"b", b"", b"7"),
    ]


def test_the_end_of_input_gives_what_is_open() -> None:
    assert parse(b"data: a\n\ndata: b") == [SseEvent(9, b"a"), SseEvent(16, b"b")]
    assert parse(b"data: a\n\n: bye") == [SseEvent(9, b"a")]


def test_a_crlf_cut_in_two_is_one_line_end() -> None:
    assert parse(b"data: a\r", b"\ndata: b\r", b"\n\r", b"\n") == [SseEvent(19, b"a\nb")]


def test_an_event_ends_at_the_cr_whether_or_not_a_lf_follows() -> None:
    assert parse(b"data: a\r\n\r\n") == parse(b"data: a\r\n\r", b"\n") == [SseEvent(10, b"a")]


def test_a_byte_order_mark_is_dropped_at_the_start_only() -> None:
    assert payloads(b"\xef\xbb\xbfdata: a\n\n\xef\xbb\xbfdata: b\n\n") == [b"a"]


def test_skipped_bytes_count_for_offsets() -> None:
    parser = SseParser()
    assert parser.idle
    parser.skip(100)
    assert parser.feed(b"data: a\n\nda") == [SseEvent(109, b"a")]
    assert not parser.idle


def test_an_id_with_a_nul_is_ignored() -> None:
    assert parse(b"id: a\0b\ndata: x\n\n")[0].id is None


LINES = st.binary(max_size=30).map(lambda raw: raw.replace(b"\r", b"").replace(b"\n", b""))


@given(
    data=st.lists(LINES, min_size=1, max_size=4).map(b"\n".join),
    event=LINES,
    event_id=st.none() | LINES.map(lambda raw: raw.replace(b"\0", b"")),
)
def test_what_is_formatted_parses_back(data: bytes, event: bytes, event_id: bytes | None) -> None:
    (found,) = parse(format_event(data, event=event, event_id=event_id))
    assert found[1:] == (data, event, event_id)


@given(
    pieces=st.lists(st.sampled_from([b"\r", b"\n", b"data", b":", b" ", b"x", b"event: e", b"\xef\xbb\xbf"]))
)
def test_any_split_gives_the_same_events(pieces: list[bytes]) -> None:
    assert parse(*pieces) == parse(b"".join(pieces))
