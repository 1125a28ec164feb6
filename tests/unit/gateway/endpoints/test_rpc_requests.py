from __future__ import annotations

from typing import Any

import pytest

from tokenweir.core.errors import ConfigError, ParameterError
from tokenweir.core.events import Completed, Event, Failed, Started, Token, Usage
from tokenweir.core.requests import GenerateRequest, Message, Sampling, Tool, ToolCall
from tokenweir.gateway.endpoints.rpc import RpcClient
from tokenweir.gateway.endpoints.rpc_requests import embed_request, generate_request
from tokenweir.gateway.queued.joining import whole
from tokenweir.wire.v1.requests import from_request

ASK = [{"role": "user", "content": "hi"}]


def test_a_chat_is_said_whole() -> None:
    calls = [
        {"id": "a", "type": "function", "function": {"name": "f", "arguments": "{}"}},
        {"id": "b", "type": "function", "function": {"name": "g", "arguments": '{"x":1}'}},
    ]
    body: dict[str, Any] = {
        "model": "theirs",
        "stream": True,
        "stream_options": {"include_usage": True},
        "messages": [
            {"role": "user", "content": [{"type": "text", "text": "hi"}], "name": "ada"},
            {"role": "assistant", "content": None, "tool_calls": calls},
            {"role": "tool", "content": "1", "tool_call_id": "a"},
        ],
        "max_completion_tokens": 9,
        "temperature": 0.5,
        "seed": 7,
        "n": 2,
        "stop": "end",
        "logprobs": True,
        "top_logprobs": 3,
        "tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}],
        "tool_choice": {"type": "function", "function": {"name": "f"}},
        "response_format": {"type": "json_object"},
        "top_p": None,
    }
    assert from_request(generate_request("chat", body, model="ours")) == GenerateRequest(
        kind="chat",
        model="ours",
        messages=(
            Message(role="user", content=({"type": "text", "text": "hi"},), name="ada"),
            Message(
                role="assistant",
                tool_calls=(
                    ToolCall(index=0, id="a", name="f", arguments="{}"),
                    ToolCall(index=1, id="b", name="g", arguments='{"x":1}'),
                ),
            ),
            Message(role="tool", content="1", tool_call_id="a"),
        ),
        sampling=Sampling(max_tokens=9, temperature=0.5, seed=7, n=2, stop=("end",), logprobs=3),
        tools=(Tool(name="f", parameters={"type": "object"}),),
        tool_choice={"type": "function", "function": {"name": "f"}},
        response_format={"type": "json_object"},
    )


@pytest.mark.parametrize("prompt", ["once", [1, 2, 3]])
def test_a_completion_is_said_whole(prompt: str | list[int]) -> None:
    body: dict[str, Any] = {"prompt": prompt, "max_tokens": 4, "stop": ["a", "b"], "logprobs": 2}
    told = from_request(generate_request("completion", body, model="m"))
    assert told.prompt == (prompt if isinstance(prompt, str) else tuple(prompt))
    assert told.sampling == Sampling(max_tokens=4, stop=("a", "b"), logprobs=2)


@pytest.mark.parametrize(
    ("field", "value"),
    [("logit_bias", {"1": 2}), ("messages", "hi"), ("tools", [{"type": "function"}]), ("max_tokens", "nine")],
)
def test_what_cannot_be_said_is_named(field: str, value: object) -> None:
    body: dict[str, Any] = {"messages": ASK, field: value}
    with pytest.raises(ParameterError) as caught:
        generate_request("chat", body, model="m")
    assert caught.value.param in {field, "sampling"}
    assert field in str(caught.value)


def test_texts_to_embed() -> None:
    assert list(embed_request({"input": "a"}, model="m").inputs) == ["a"]
    assert list(embed_request({"input": ["a", "b"]}, model="m").inputs) == ["a", "b"]
    with pytest.raises(ParameterError):
        embed_request({"input": "a", "encoding_format": "base64"}, model="m")


def test_an_answer_in_pieces_is_one_whole() -> None:
    events: list[Event] = [
        Started(seq=0, model="m"),
        Token(seq=1, text="a", count=1),
        Token(seq=2, text="x", index=1, count=1),
        Token(seq=3, text="b", count=2),
        Usage(seq=4, output_tokens=4),
        Completed(seq=5, finish_reason="stop"),
    ]
    joined = [Token(seq=0, text="ab", count=3), Token(seq=0, text="x", index=1, count=1)]
    assert whole(events) == [events[0], *joined, *events[4:]]
    failed: list[Event] = [events[0], events[1], Failed(seq=2, kind="e", message="gone")]
    assert whole(failed) == [failed[0], failed[2]]


@pytest.mark.parametrize("url", ["grpc://host", "grpc://:50051", "http://host:1", "grpc://host:1/v1"])
def test_a_url_that_cannot_be_used(url: str) -> None:
    with pytest.raises(ConfigError, match="cannot be used"):
        RpcClient(url)
