from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from tokenweir.core.events import Accepted, Completed, Event, Started, Token, Usage, text
from tokenweir.core.requests import ToolCall
from tokenweir.gateway.pipeline.patterns import BUILT_IN, Redactor
from tokenweir.gateway.pipeline.redacted_answers import RedactedEvents, RedactedSink, redacted_log

REDACTOR = Redactor([BUILT_IN["email"]], replacement="[x]", longest=32)
SAID = "mail ada@example.org or bob@example.org today"
CLEAN = "mail [x] or [x] today"
CUTS = st.lists(st.integers(1, 12), max_size=30)


def cut(whole: str, sizes: list[int]) -> list[str]:
    pieces = list[str]()
    for size in sizes:
        pieces.append(whole[:size])
        whole = whole[size:]
    return [*pieces, whole]


class Caught:
    """A sink that keeps what it is given."""

    def __init__(self) -> None:
        self.body = b""

    async def begin(self, status: int, headers: Sequence[tuple[bytes, bytes]]) -> None:
        pass

    async def whole(self, status: int, headers: Sequence[tuple[bytes, bytes]], body: bytes) -> None:
        self.body = body

    async def write(self, piece: bytes) -> None:
        self.body += piece

    async def end(self, piece: bytes = b"") -> None:
        self.body += piece


def chunk(**choice: object) -> bytes:
    return b"data: " + json.dumps({"id": "a", "choices": [{"index": 0, **choice}]}).encode() + b"\n\n"


def chunks(body: bytes) -> list[dict[str, Any]]:
    found = [line.removeprefix(b"data: ") for line in body.split(b"\n\n") if line]
    assert found[-1] == b"[DONE]"
    return [json.loads(one) for one in found[:-1]]


@given(CUTS, CUTS, st.booleans())
def test_a_streamed_answer_is_redacted_wherever_tokens_and_reads_are_cut(
    tokens: list[int],
    reads: list[int],
    finishes: bool,  # noqa: FBT001 - drawn by hypothesis
) -> None:
    raw = chunk(delta={"role": "assistant", "content": ""})
    for piece in cut(SAID, tokens):
        raw += chunk(delta={"content": piece}, logprobs={"content": [piece]})
        raw += chunk(delta={"tool_calls": [{"index": 1, "function": {"arguments": piece}}]})
    if finishes:
        raw += chunk(delta={}, finish_reason="stop")
    raw += b'data: {"id":"a","choices":[],"usage":{"completion_tokens":3}}\n\ndata: [DONE]\n\n'
    caught = Caught()

    async def relay() -> None:
        sink = RedactedSink(REDACTOR, caught)
        await sink.begin(200, [])
        *pieces, last = cut(raw.decode(), reads)
        for piece in pieces:
            await sink.write(piece.encode())
        await sink.end(last.encode())

    asyncio.run(relay())
    assert b"@" not in caught.body
    found = chunks(caught.body)
    deltas = [choice["delta"] for one in found for choice in one["choices"]]
    assert "".join(delta.get("content") or "" for delta in deltas) == CLEAN
    calls = [call for delta in deltas for call in delta.get("tool_calls", [])]
    assert "".join(call["function"]["arguments"] for call in calls) == CLEAN
    assert {call["index"] for call in calls} == {1}
    assert deltas[0]["role"] == "assistant"
    assert [one["usage"] for one in found if one.get("usage")] == [{"completion_tokens": 3}]
    assert all(one["id"] == "a" for one in found)
    ends = [
        choice["finish_reason"] for one in found for choice in one["choices"] if choice.get("finish_reason")
    ]
    assert ends == (["stop"] if finishes else [])


def test_a_whole_answer_is_redacted_and_an_error_passes() -> None:
    body = json.dumps(
        {"choices": [{"message": {"content": SAID, "tool_calls": [{"function": {"arguments": SAID}}]}}]}
    ).encode()
    caught = Caught()
    asyncio.run(RedactedSink(REDACTOR, caught).whole(200, [], body))
    message = json.loads(caught.body)["choices"][0]["message"]
    assert (message["content"], message["tool_calls"][0]["function"]["arguments"]) == (CLEAN, CLEAN)
    asyncio.run(RedactedSink(REDACTOR, caught).whole(500, [], b"oh"))
    assert caught.body == b"oh"


def answer(sizes: list[int]) -> list[Event]:
    tokens: list[Event] = []
    for piece in cut(SAID, sizes):
        tokens.append(Token(seq=0, text=piece, count=1))
        tokens.append(Token(seq=0, tool_calls=(ToolCall(index=0, name="", arguments=piece),)))
    return [Started(seq=0), *tokens, Usage(seq=0, output_tokens=3), Completed(seq=0)]


def arguments(events: Sequence[Event]) -> str:
    return "".join(
        call.arguments for event in events if isinstance(event, Token) for call in event.tool_calls
    )


@given(CUTS, CUTS)
def test_a_queued_answer_is_redacted_before_its_end_and_counts_the_same_tokens(
    tokens: list[int], batches: list[int]
) -> None:
    sieve, rest, found = RedactedEvents(REDACTOR), answer(tokens), list[Event]()
    for size in batches:
        found += sieve.feed(rest[:size])
        rest = rest[size:]
    found += sieve.feed(rest)
    assert (text(found), arguments(found)) == (CLEAN, CLEAN)
    assert isinstance(found[-1], Completed)
    counted = sum(event.count or 0 for event in found if isinstance(event, Token))
    assert counted == len(tokens) + 1


def test_an_answer_that_begins_anew_says_nothing_of_the_first() -> None:
    sieve = RedactedEvents(REDACTOR)
    sieve.feed([Started(seq=0), Token(seq=0, text="lost")])
    found = sieve.feed([Started(seq=0, attempt=2), Token(seq=0, text="said"), Completed(seq=0)])
    assert text(found) == "said"


@given(CUTS)
def test_a_filed_log_keeps_its_events_and_loses_what_is_matched(tokens: list[int]) -> None:
    events = (Accepted(seq=0), *answer(tokens), *answer([]))
    found = redacted_log(events, REDACTOR)
    assert [type(event) for event in found] == [type(event) for event in events]
    assert (text(found), arguments(found)) == (CLEAN * 2, CLEAN * 2)
    assert redacted_log(found, REDACTOR) == found
