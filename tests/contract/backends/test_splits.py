from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.contract.backends.wire import (
    ALL,
    ANSWERS,
    STREAMS,
    Entry,
    cuts,
    drive,
    endings,
    entry_id,
    pieces,
)

from tokenweir.backends.registry import backend
from tokenweir.core.events import Event, Failed
from tokenweir.core.requests import GenerateRequest, Message, Sampling
from tokenweir.core.sse import SseParser
from tokenweir.ports.timing import TimingDecoder, rows

VARIANTS: dict[str, Callable[[bytes], bytes]] = {
    "crlf": lambda body: body.replace(b"\n", b"\r\n"),
    "cr": lambda body: body.replace(b"\n", b"\r"),
    "no-space": lambda body: body.replace(b"data: ", b"data:"),
    "comments": lambda body: body.replace(b"data: ", b": ping\n\ndata: "),
    "named": lambda body: body.replace(b"data: ", b"event: message\nid: 7\nretry: 5\ndata: "),
    "bom": lambda body: b"\xef\xbb\xbf" + body,
    "no-last-blank": lambda body: body.rstrip(b"\n"),
    "after-done": lambda body: body + b'data: {"error": "late"}\n\n<html>',
    "multi-line": lambda body: body.replace(b"{", b"{\ndata: ", 1),
}
CHAT = GenerateRequest(kind="chat", model="m", messages=(Message(role="user", content="hi"),))
TEXT = GenerateRequest(kind="completion", model="m", prompt="a")


def decoder(kind: str, request: GenerateRequest) -> TimingDecoder:
    made = backend(kind).decoder(request)
    assert isinstance(made, TimingDecoder)
    return made


def plain(events: list[tuple[int, Event]]) -> list[Event]:
    return [event for _, event in events]


@pytest.mark.parametrize("entry", ANSWERS, ids=entry_id)
@given(data=st.data())
def test_any_split_gives_the_same_events_and_offsets(entry: Entry, data: st.DataObject) -> None:
    body = entry.content
    whole = drive(entry.decoder(), [body])
    assert drive(entry.decoder(), pieces(body, data.draw(cuts(body)))) == whole


@pytest.mark.parametrize("entry", ANSWERS, ids=entry_id)
def test_bytes_one_by_one_give_the_same_events_and_offsets(entry: Entry) -> None:
    body = entry.content
    assert drive(entry.decoder(), (body[i : i + 1] for i in range(len(body)))) == drive(
        entry.decoder(), [body]
    )


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("entry", STREAMS, ids=entry_id)
@settings(max_examples=25)
@given(data=st.data())
def test_every_way_to_write_a_stream_means_the_same(variant: str, entry: Entry, data: st.DataObject) -> None:
    body = VARIANTS[variant](entry.content)
    events = drive(entry.decoder(), pieces(body, data.draw(cuts(body))))
    assert events == drive(entry.decoder(), [body])
    assert plain(events) == plain(drive(entry.decoder(), [entry.content]))
    assert entry.decoder().timing(body) == rows(events)


@pytest.mark.parametrize("entry", STREAMS, ids=entry_id)
@given(data=st.data())
def test_a_cut_stream_has_exactly_one_ending(entry: Entry, data: st.DataObject) -> None:
    body = entry.content[: data.draw(st.integers(0, len(entry.content)))]
    events = drive(entry.decoder(), pieces(body, data.draw(cuts(body))))
    assert endings(events) == 1
    assert endings(events[-1:]) == 1
    assert entry.decoder().timing(body) == rows(events)
    told = b'"length"' in body
    if not told:
        assert isinstance(events[-1][1], Failed)
        assert events[-1][1].kind == "protocol"


@pytest.mark.parametrize("entry", STREAMS, ids=entry_id)
def test_a_missing_done_is_forgiven_after_the_finish(entry: Entry) -> None:
    body = entry.content.replace(b"data: [DONE]\n\n", b"")
    assert plain(drive(entry.decoder(), [body])) == plain(drive(entry.decoder(), [entry.content]))


_TEXTS = st.sampled_from(["", "a", "é", "}\n\ndata: {", '"', "[DONE]"])
_ODD = [
    b"",
    b" ",
    b"{}",
    b'{"a":1}{"a":2}',
    b'{"a":1} {"choices":[]}',
    b'{"choices":[',
    b"1}",
    b"]}",
    b"{",
    b"}",
    b"null",
    b"[]",
    b"[DONE]",
    b'{"choices":null}',
    b'{"choices":[{"delta":null}]}',
    b'{"choices":[{"delta":{"content":7}}]}',
    b'{"choices":[{"index":1,"delta":{"content":"x"}}]}',
    b'{"choices":[{"delta":{"content":"x"},"finish_reason":"error"}],"error":{"message":"no","code":503}}',
    b'{"choices":[{"delta":{"reasoning":"hm"}}]}',
    b'{"choices":[{"delta":{"tool_calls":[{"function":{"name":"f","arguments":"{}"}}]}}]}',
    b'{"choices":[{"delta":{},"finish_reason":"stop"}]}',
    b'{"choices":[{"delta":{},"finish_reason":"abort"}]}',
    b'{"choices":[{"text":"t","finish_reason":null}],"sent_ns":0}',
    b'{"choices":[{"text":"u"}],"usage":{"prompt_tokens":3,"completion_tokens":1}}',
    b'{"choices":[],"usage":{"prompt_tokens":3}}',
    b'{"error":{"message":"full","type":"rate_limit_error"}}',
    b'{"error":"plain"}',
    b'{"object":"error","message":"m","code":400}',
    b'{"text":"ab","output_ids":[1,2],"meta_info":{"id":"r","completion_tokens":2,"finish_reason":null}}',
    b'{"text":"abc","output_ids":[1,2,3],"meta_info":{"completion_tokens":3,"cache_miss_count":1}}',
    b'{"text":"c","output_ids":[3],"meta_info":{"completion_tokens":3}}',
    b'{"text":"","output_ids":[],"meta_info":{"completion_tokens":4}}',
    b'{"text":"abcd","meta_info":{"completion_tokens":1,"finish_reason":{"type":"stop"}}}',
    b'{"text":"abcde","index":1,"meta_info":{"completion_tokens":5,"finish_reason":"length"}}',
    b'{"text":"","meta_info":{"completion_tokens":0,"finish_reason":{"type":"abort","message":"x"}}}',
    b'{"text":"","meta_info":{"finish_reason":{"type":"abort","message":"x","status_code":503}}}',
    b'{"meta_info":{"completion_tokens":"7"}}',
    b'{"choices":[{"text":"\xff"}]}',
    b"[" * 3000,
    b'{"a":' * 3000,
]
_FRAMES = [
    b"data: %b\n\n",
    b"data:%b\n\n",
    b"data: %b\r\n\r\n",
    b": c\n\ndata: %b\n\n",
    b"event: error\ndata: %b\n\n",
]


@st.composite
def streams(draw: st.DrawFn) -> bytes:
    """Return a stream of good and bad events, most of them written the usual way."""
    parts: list[bytes] = []
    for payload in draw(st.lists(st.sampled_from(_ODD), max_size=8)):
        frame = draw(st.sampled_from([_FRAMES[0]] * 12 + _FRAMES))
        parts.append(frame.replace(b"%b", payload))
    if draw(st.booleans()):
        parts.append(b"data: [DONE]\n\n")
    return b"".join(parts)


@pytest.mark.parametrize("kind", ["openai", "sglang", "sglang_jax", "sim"])
@pytest.mark.parametrize("n", [1, 2])
@given(body=streams(), data=st.data())
def test_strange_streams_decode_the_same_in_every_way(
    kind: str, n: int, body: bytes, data: st.DataObject
) -> None:
    request = GenerateRequest(kind="completion", model="m", prompt="a", sampling=Sampling(n=n))
    whole = drive(decoder(kind, request), [body])
    assert drive(decoder(kind, request), (body[i : i + 1] for i in range(len(body)))) == whole
    assert drive(decoder(kind, request), pieces(body, data.draw(cuts(body)))) == whole
    assert endings(whole) == 1
    assert [event.seq for _, event in whole] == list(range(len(whole)))
    assert [end for end, _ in whole] == sorted(end for end, _ in whole)
    assert decoder(kind, request).timing(body) == rows(whole)


@pytest.mark.parametrize("kind", ["openai", "sglang", "sglang_jax", "sim"])
@given(body=st.binary(max_size=200), stream=st.booleans(), data=st.data())
def test_no_bytes_raise(kind: str, *, body: bytes, stream: bool, data: st.DataObject) -> None:
    for asked in (CHAT, TEXT, GenerateRequest(kind="embedding", model="m", inputs=("a",))):
        request = GenerateRequest(
            kind=asked.kind, model="m", messages=asked.messages, inputs=asked.inputs, stream=stream
        )
        events = drive(decoder(kind, request), pieces(body, data.draw(cuts(body))))
        assert endings(events) == 1
        assert decoder(kind, request).timing(body) == rows(events)


@pytest.mark.parametrize("entry", [entry for entry in ALL if entry.content], ids=entry_id)
def test_any_recorded_body_ends_once_whatever_was_asked(entry: Entry) -> None:
    for kind in ("openai", "sglang"):
        for stream in (True, False):
            for asked in (CHAT, TEXT):
                request = GenerateRequest(
                    kind=asked.kind, model="m", messages=asked.messages, prompt="a", stream=stream
                )
                assert endings(drive(decoder(kind, request), [entry.content])) == 1


@given(data=st.data(), body=st.binary(max_size=120))
def test_the_parser_itself_does_not_care_for_splits(data: st.DataObject, body: bytes) -> None:
    written = body.replace(b"\x00", b"\r\n").replace(b"\x01", b"\n\n").replace(b"\x02", b"data:")
    whole, cut = SseParser(), SseParser()
    expected = [*whole.feed(written), *whole.end()]
    found = [event for piece in pieces(written, data.draw(cuts(written))) for event in cut.feed(piece)]
    assert [*found, *cut.end()] == expected
