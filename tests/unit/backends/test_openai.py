from __future__ import annotations

import base64
import struct

import msgspec
import pytest
from tests.contract.backends.wire import drive

from tokenweir.backends.openai import OpenAIBackend
from tokenweir.core.errors import SpecError
from tokenweir.core.events import Cancelled, Completed, Event, Failed, Started, Token, Usage
from tokenweir.core.requests import GenerateRequest, Json, Message, Sampling, Tool, ToolCall
from tokenweir.ports.backend import HttpResponse

OPENAI = OpenAIBackend()
CHAT = GenerateRequest(kind="chat", model="m", messages=(Message(role="user", content="hi"),))


def body(request: GenerateRequest) -> dict[str, Json]:
    return msgspec.json.decode(OPENAI.encode(request).body)


def event(**fields: Json) -> bytes:
    return b"data: " + msgspec.json.encode(fields) + b"\n\n"


def chunk(finish: str | None = None, index: int = 0, **delta: Json) -> bytes:
    return event(choices=[{"index": index, "delta": delta, "finish_reason": finish}])


def decode(*pieces: bytes, request: GenerateRequest = CHAT) -> list[Event]:
    return [event for _, event in drive(OPENAI.decoder(request), [b"".join(pieces)])]


def whole(request: GenerateRequest = CHAT, **fields: Json) -> list[Event]:
    decoder = OPENAI.decoder(msgspec.structs.replace(request, stream=False))
    return [event for _, event in drive(decoder, [msgspec.json.encode(fields)])]


def test_a_chat_asks_for_usage_when_streamed() -> None:
    asked = OPENAI.encode(CHAT)
    assert (asked.method, asked.path) == ("POST", "/v1/chat/completions")
    assert dict(asked.headers)["accept"] == "text/event-stream"
    assert body(CHAT) == {
        "model": "m",
        "messages": [{"role": "user", "content": "hi"}],
        "stream": True,
        "stream_options": {"include_usage": True},
    }


def test_every_sampling_setting_has_its_field() -> None:
    sampling = Sampling(
        max_tokens=1,
        min_tokens=1,
        temperature=0.5,
        top_p=0.9,
        top_k=4,
        presence_penalty=0.1,
        frequency_penalty=0.2,
        stop=("a",),
        seed=7,
        n=2,
        ignore_eos=True,
        logprobs=3,
    )
    request = msgspec.structs.replace(CHAT, sampling=sampling, stream=False)
    expected: dict[str, Json] = {
        "max_tokens": 1,
        "min_tokens": 1,
        "temperature": 0.5,
        "top_p": 0.9,
        "top_k": 4,
        "presence_penalty": 0.1,
        "frequency_penalty": 0.2,
        "stop": ["a"],
        "seed": 7,
        "n": 2,
        "ignore_eos": True,
        "logprobs": True,
        "top_logprobs": 3,
    }
    assert body(request) == {
        "model": "m",
        "messages": [{"role": "user", "content": "hi"}],
        "stream": False,
        **expected,
    }
    text = GenerateRequest(kind="completion", model="m", prompt=(1, 2), sampling=Sampling(logprobs=3))
    assert body(text)["prompt"] == [1, 2]
    assert body(text)["logprobs"] == 3


def test_tools_and_turns_are_written_as_openai_does() -> None:
    call = ToolCall(id="c", name="f", arguments="{}")
    request = GenerateRequest(
        kind="chat",
        model="m",
        messages=(
            Message(role="assistant", tool_calls=(call,), name="bot"),
            Message(role="tool", content="4", tool_call_id="c"),
            Message(role="user", content=({"type": "text", "text": "x"},)),
        ),
        tools=(Tool(name="f", description="d", parameters={"type": "object"}),),
        tool_choice="auto",
        response_format={"type": "json_object"},
        extra={"stream": False, "more": 1},
    )
    assert body(request) == {
        "model": "m",
        "messages": [
            {
                "role": "assistant",
                "content": None,
                "name": "bot",
                "tool_calls": [{"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}],
            },
            {"role": "tool", "content": "4", "tool_call_id": "c"},
            {"role": "user", "content": [{"type": "text", "text": "x"}]},
        ],
        "stream": False,
        "stream_options": {"include_usage": True},
        "tools": [
            {
                "type": "function",
                "function": {"name": "f", "description": "d", "parameters": {"type": "object"}},
            }
        ],
        "tool_choice": "auto",
        "response_format": {"type": "json_object"},
        "more": 1,
    }


@pytest.mark.parametrize(
    "request_",
    [
        GenerateRequest(kind="chat", model="m"),
        GenerateRequest(kind="embedding", model="m"),
        GenerateRequest(kind="completion", model="m", prompt="a", tools=(Tool(name="f"),)),
    ],
)
def test_what_cannot_be_asked_is_refused(request_: GenerateRequest) -> None:
    with pytest.raises(SpecError):
        OPENAI.encode(request_)


def test_reasoning_tool_calls_and_choices_become_tokens() -> None:
    call: dict[str, Json] = {"index": 1, "id": "c", "function": {"name": "f", "arguments": '{"a'}}
    events = decode(
        event(id="u", model="served", choices=[{"index": 0, "delta": {"role": "assistant", "content": ""}}]),
        chunk(reasoning_content="hm"),
        chunk(reasoning="so"),
        chunk(tool_calls=[call]),
        chunk(index=1, content="b"),
        chunk(content="a"),
        chunk(finish="stop", content=None),
        chunk(finish="length", index=1),
        b"data: [DONE]\n\n",
    )
    assert events == [
        Started(seq=0, upstream_id="u", model="served"),
        Token(seq=1, reasoning="hm"),
        Token(seq=2, reasoning="so"),
        Token(seq=3, tool_calls=(ToolCall(index=1, id="c", name="f", arguments='{"a'),)),
        Token(seq=4, text="b", index=1),
        Token(seq=5, text="a"),
        Completed(seq=6, finish_reason="stop", data={"finish_reasons": {"0": "stop", "1": "length"}}),
    ]


def test_usage_is_read_with_its_details() -> None:
    usage: dict[str, Json] = {
        "prompt_tokens": 9,
        "completion_tokens": 4,
        "prompt_tokens_details": {"cached_tokens": 8},
        "completion_tokens_details": {"reasoning_tokens": 2},
    }
    events = decode(chunk(finish="stop", content="a"), event(choices=[], usage=usage))
    assert events[2] == Usage(seq=2, input_tokens=9, output_tokens=4, cached_tokens=8, reasoning_tokens=2)


@pytest.mark.parametrize(
    ("error", "kind", "retryable"),
    [
        ({"message": "no", "code": 429}, "overloaded", True),
        ({"message": "no", "type": "overloaded_error"}, "overloaded", True),
        ({"message": "no", "code": "404"}, "refused", False),
        ({"message": "no", "type": "server_error", "code": 500}, "upstream", False),
        ("no", "upstream", False),
    ],
)
def test_an_error_inside_a_stream_fails_it(error: Json, kind: str, retryable: bool) -> None:  # noqa: FBT001
    events = decode(chunk(content="a"), event(error=error), chunk(content="late"))
    assert isinstance(events[-1], Failed)
    assert (events[-1].kind, events[-1].message, events[-1].retryable) == (kind, "no", retryable)
    assert len(events) == 3


def test_an_event_named_error_fails_the_stream() -> None:
    (failed,) = decode(b"event: error\ndata: the engine died\n\n")
    assert isinstance(failed, Failed)
    assert failed.message == "the engine died"


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (b"<html>nginx</html>", "HTML"),
        (b'{"choices": []}', "one JSON document"),
        (b"Internal Server Error", "Internal Server Error"),
        (b"", "before it began"),
        (b"data: {nonsense}\n\n", "nonsense"),
        (b": ping\n\n", "ping"),
    ],
)
def test_a_reply_that_is_no_stream_says_so(answer: bytes, words: str) -> None:
    (failed,) = decode(answer)
    assert isinstance(failed, Failed)
    assert failed.kind == "protocol"
    assert words in failed.message


def test_a_stream_that_stops_before_its_finish_fails() -> None:
    events = decode(chunk(content="a"))
    assert isinstance(events[-1], Failed)
    assert "before the engine said how" in events[-1].message
    two = msgspec.structs.replace(CHAT, sampling=Sampling(n=2))
    assert isinstance(decode(chunk(finish="stop", content="a"), request=two)[-1], Failed)


def test_done_without_a_finish_completes_an_answer_that_holds_something() -> None:
    assert decode(chunk(content="a"), b"data: [DONE]\n\n")[-1] == Completed(seq=2)
    assert isinstance(decode(b"data: [DONE]\n\n")[-1], Failed)


def test_an_abort_is_a_cancellation() -> None:
    assert decode(chunk(content="a"), chunk(finish="abort"))[-1] == Cancelled(seq=2)


def test_a_whole_answer_gives_the_same_events() -> None:
    message: dict[str, Json] = {"content": "a", "reasoning": "hm"}
    events = whole(
        id="u",
        model="m",
        choices=[{"index": 0, "message": message, "finish_reason": "stop"}],
        usage={"prompt_tokens": 1, "completion_tokens": 2},
    )
    assert events == [
        Started(seq=0, upstream_id="u", model="m"),
        Token(seq=1, text="a", reasoning="hm", count=2),
        Usage(seq=2, input_tokens=1, output_tokens=2),
        Completed(seq=3, finish_reason="stop"),
    ]


@pytest.mark.parametrize("written", ["numbers", "base64"])
def test_embeddings_come_in_the_order_of_their_index(written: str) -> None:
    def vector(*numbers: float) -> Json:
        if written == "numbers":
            return list(numbers)
        return base64.b64encode(struct.pack("<2f", *numbers)).decode()

    request = GenerateRequest(kind="embedding", model="m", inputs=("a", "b"))
    asked = OPENAI.encode(request)
    assert (asked.path, body(request)) == ("/v1/embeddings", {"model": "m", "input": ["a", "b"]})
    data: list[Json] = [
        {"index": 1, "embedding": vector(0.0, 1.0)},
        {"index": 0, "embedding": vector(1.0, 0.5)},
    ]
    events = whole(request, data=data, usage={"prompt_tokens": 2, "total_tokens": 2})
    assert events[1] == Usage(seq=1, input_tokens=2)
    assert events[2] == Completed(seq=2, embeddings=((1.0, 0.5), (0.0, 1.0)))


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (b"", "empty"),
        (b"data: {}\n\n", "streamed"),
        (b"<html>", "not the JSON"),
        (b"{}", "no choices"),
        (b'{"error": {"message": "boom"}}', "boom"),
    ],
)
def test_a_whole_answer_that_is_none_says_so(answer: bytes, words: str) -> None:
    decoder = OPENAI.decoder(msgspec.structs.replace(CHAT, stream=False))
    ((_, failed),) = drive(decoder, [answer])
    assert isinstance(failed, Failed)
    assert words in failed.message


def test_of_several_models_none_is_taken() -> None:
    listed = HttpResponse(status=200, body=b'{"data":[{"id":"a"},{"id":"b"}]}')
    identity = OPENAI.identity([listed, HttpResponse(status=200, body=b'{"version":"0.11"}')])
    assert (identity.model, identity.version) == (None, "0.11")
    assert identity.missing["model"].endswith("a, b")


def test_there_are_no_side_doors() -> None:
    assert OPENAI.action("flush", {}) is None
    assert OPENAI.health().path == "/v1/models"
