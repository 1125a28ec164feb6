from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from tokenweir.core.events import Accepted, Completed, Event, Queued, Started, Token, Usage
from tokenweir.core.requests import ToolCall
from tokenweir.gateway.queued.answers import Chunks, Facts, shown, whole
from tokenweir.gateway.queued.kept import ended, file_log, filed_log, last_answer

FACTS = Facts(kind="chat", model="m", request_id="req_X", at=5_000_000_000, shows_usage=True)
OPENING: tuple[Event, ...] = (Accepted(seq=0, request_id="req_X"), Queued(seq=1))


def answer(*tokens: Token, finish: str = "stop") -> list[Event]:
    events: list[Event] = [*OPENING, Started(seq=2, endpoint="e"), *tokens]
    events += [Usage(seq=0, input_tokens=3, output_tokens=4), Completed(seq=0, finish_reason=finish)]
    return [msgspec.structs.replace(event, seq=seq) for seq, event in enumerate(events)]


def chunks_of(data: bytes) -> list[dict[str, Any]]:
    frames = [frame.removeprefix(b"data: ") for frame in data.split(b"\n\n") if frame]
    assert frames[-1] == b"[DONE]"
    return [json.loads(frame) for frame in frames[:-1]]


@given(st.lists(st.text(min_size=1), max_size=8), st.data())
def test_a_stream_is_the_same_however_the_log_is_cut_and_says_what_the_whole_says(
    texts: list[str], data: st.DataObject
) -> None:
    events = answer(*(Token(seq=0, text=text) for text in texts))
    at_once = Chunks(FACTS).fold(events)
    cut = data.draw(st.integers(0, len(events)))
    chunks = Chunks(FACTS)
    assert chunks.fold(events[:cut]) + chunks.fold(events[cut:]) == at_once
    told = chunks_of(at_once)
    joined = "".join(c["choices"][0]["delta"].get("content", "") for c in told if c["choices"])
    body: Any = whole(FACTS, events)
    assert joined == "".join(texts) == body["choices"][0]["message"]["content"]
    assert told[-1]["usage"] == body["usage"]
    assert {chunk["id"] for chunk in told} == {body["id"]}


def test_tool_calls_are_put_together() -> None:
    events = answer(
        Token(seq=0, tool_calls=(ToolCall(index=0, id="a", name="find", arguments='{"x"'),)),
        Token(seq=0, tool_calls=(ToolCall(index=1, id="b", name="go"), ToolCall(index=0, arguments=": 1}"))),
        finish="tool_calls",
    )
    body: Any = whole(FACTS, events)
    (choice,) = body["choices"]
    assert choice["finish_reason"] == "tool_calls"
    assert choice["message"]["content"] is None
    assert [call["function"] for call in choice["message"]["tool_calls"]] == [
        {"name": "find", "arguments": '{"x": 1}'},
        {"name": "go", "arguments": ""},
    ]


def test_choices_are_kept_apart() -> None:
    events = answer(Token(seq=0, text="a"), Token(seq=0, text="b", index=1), Token(seq=0, text="c"))
    end = Completed(seq=9, finish_reason="stop", data={"finish_reasons": {"0": "stop", "1": "length"}})
    body: Any = whole(FACTS, [*events[:-1], end])
    assert [(c["message"]["content"], c["finish_reason"]) for c in body["choices"]] == [
        ("ac", "stop"),
        ("b", "length"),
    ]


def test_a_second_start_begins_the_answer_anew() -> None:
    first = answer(Token(seq=0, text="old"))[:-2]
    events = [*first, Started(seq=4, attempt=2), Token(seq=5, text="new"), Completed(seq=6)]
    body: Any = whole(FACTS, events)
    assert body["choices"][0]["message"]["content"] == "new"
    assert last_answer(events)[0] == events[len(first)]
    chunks = Chunks(FACTS)
    chunks.fold(events)
    assert chunks.restarted


def test_embeddings_are_told_in_order() -> None:
    events: Sequence[Event] = [
        *OPENING,
        Started(seq=2),
        Usage(seq=3, input_tokens=2, output_tokens=0),
        Completed(seq=4, embeddings=((1.0, 2.0), (3.0, 4.0))),
    ]
    body: Any = whole(Facts(kind="embedding", model="m", request_id="req_X", at=0), events)
    assert [(row["index"], row["embedding"]) for row in body["data"]] == [(0, [1.0, 2.0]), (1, [3.0, 4.0])]


def test_callers_are_not_told_which_endpoint_answered() -> None:
    events = answer(Token(seq=0, text="x"))
    assert all(not getattr(event, "endpoint", "") for event in shown(events))
    assert len(shown(events)) == len(events)


@given(st.lists(st.text(), max_size=5))
def test_a_log_is_filed_and_read_whole(texts: list[str]) -> None:
    events = tuple(answer(*(Token(seq=0, text=text) for text in texts)))
    assert filed_log(file_log(events)) == events
    assert ended(events)
    assert not ended(events[:-1])
