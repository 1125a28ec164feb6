from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest

from tokenweir.core.errors import ParameterError
from tokenweir.gateway.queued.accepting import Wish
from tokenweir.gateway.responses.asked import read_asked
from tokenweir.gateway.responses.wishes import Said, said_of, wish_of

SCHEMA = {"type": "object", "properties": {"place": {"type": "string"}}}
NAMED = {"type": "json_schema", "name": "n"}
TOOL = {"type": "function", "name": "weather", "parameters": SCHEMA, "strict": True}


def wish(**fields: object) -> Wish:
    raw = json.dumps({"model": "sim", "input": "hi", **fields}).encode()
    return wish_of(read_asked(raw), raw=raw, before=[], suffix="X", pool="")


def chat(**fields: object) -> dict[str, Any]:
    return msgspec.json.decode(wish(**fields).kept.body)


def said(**fields: object) -> Said:
    return said_of(wish(**fields).kept)


def parts(part: dict[str, str]) -> dict[str, object]:
    return {"input": [{"role": "user", "content": [part]}]}


def test_a_text_is_a_message_of_the_user() -> None:
    assert chat(instructions="be brief") == {
        "model": "sim",
        "messages": [{"role": "system", "content": "be brief"}, {"role": "user", "content": "hi"}],
    }


def test_each_parameter_has_its_place_in_the_chat() -> None:
    body = chat(
        max_output_tokens=9,
        temperature=0.5,
        top_p=0.9,
        user="u",
        reasoning={"effort": "low"},
        tools=[TOOL],
        tool_choice={"type": "function", "name": "weather"},
        parallel_tool_calls=False,
        text={"format": {"type": "json_schema", "name": "n", "schema": SCHEMA, "strict": True}},
        stream=True,
    )
    function = {"name": "weather", "parameters": SCHEMA, "strict": True}
    assert {name: body[name] for name in body if name not in {"model", "messages"}} == {
        "max_completion_tokens": 9,
        "temperature": 0.5,
        "top_p": 0.9,
        "user": "u",
        "reasoning_effort": "low",
        "tools": [{"type": "function", "function": function}],
        "tool_choice": {"type": "function", "function": {"name": "weather"}},
        "parallel_tool_calls": False,
        "response_format": {
            "type": "json_schema",
            "json_schema": {"name": "n", "schema": SCHEMA, "strict": True},
        },
        "stream": True,
    }


def test_allowed_tools_are_the_ones_shown() -> None:
    other = {"type": "function", "name": "other"}
    allowed = {
        "type": "allowed_tools",
        "mode": "required",
        "tools": [{"type": "function", "name": "weather"}],
    }
    body = chat(tools=[TOOL, other], tool_choice=allowed)
    assert [tool["function"]["name"] for tool in body["tools"]] == ["weather"]
    assert body["tool_choice"] == "required"
    assert said(tools=[TOOL, other], tool_choice=allowed).echo["tool_choice"] == allowed


def test_a_conversation_of_items_is_one_of_messages() -> None:
    image = {"type": "input_image", "image_url": "data:image/png;base64,AA==", "detail": "low"}
    reasoning: dict[str, object] = {"type": "reasoning", "id": "rs_1", "summary": []}
    body = chat(
        input=[
            {"role": "developer", "content": "be kind"},
            {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "look"}, image]},
            reasoning,
            {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "I ask"}]},
            {"type": "function_call", "call_id": "a", "name": "f", "arguments": "{}"},
            {"type": "function_call", "call_id": "b", "name": "g", "arguments": "[]"},
            {"type": "function_call_output", "call_id": "a", "output": "one"},
            {
                "type": "function_call_output",
                "call_id": "b",
                "output": [{"type": "input_text", "text": "two"}],
            },
            {"type": "function_call", "call_id": "c", "name": "f", "arguments": ""},
        ]
    )

    def call(name: str, function: str, arguments: str) -> dict[str, object]:
        return {"id": name, "type": "function", "function": {"name": function, "arguments": arguments}}

    assert body["messages"] == [
        {"role": "system", "content": "be kind"},
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "look"},
                {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA==", "detail": "low"}},
            ],
        },
        {"role": "assistant", "content": "I ask", "tool_calls": [call("a", "f", "{}"), call("b", "g", "[]")]},
        {"role": "tool", "tool_call_id": "a", "content": "one"},
        {"role": "tool", "tool_call_id": "b", "content": "two"},
        {"role": "assistant", "content": None, "tool_calls": [call("c", "f", "")]},
    ]


def test_items_get_ids_and_keep_their_own() -> None:
    thought: dict[str, object] = {"type": "reasoning", "id": "mine", "summary": []}
    items = said(input=[{"role": "user", "content": "a"}, thought]).items
    assert [item["id"] for item in items] == ["msg_Xi0", "mine"]
    assert items[0] == {
        "id": "msg_Xi0",
        "type": "message",
        "role": "user",
        "content": [{"type": "input_text", "text": "a"}],
    }


@pytest.mark.parametrize(
    ("background", "stream", "mode"),
    [(False, False, "direct"), (False, True, "direct"), (True, False, "single"), (True, True, "stream")],
)
def test_what_is_read_later_is_queued(background: bool, stream: bool, mode: str) -> None:  # noqa: FBT001
    assert wish(background=background, stream=stream).mode == mode


def test_what_asks_for_nothing_is_let_by() -> None:
    body = chat(
        include=[], truncation="disabled", service_tier="auto", conversation=None, top_logprobs=0, max_tool_calls=None,
        text={"verbosity": "medium"}, reasoning={"summary": None}, stream_options={"include_obfuscation": False},
    )  # fmt: skip
    assert set(body) == {"model", "messages"}


@pytest.mark.parametrize(
    ("fields", "param", "reason"),
    [
        ({"instruction": "x"}, "instruction", "unknown_parameter"),
        ({"model": 3}, "model", "invalid_type"),
        ({"input": []}, "input", "invalid_value"),
        ({"input": 3}, "input", "invalid_type"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "input[0].type", "unsupported_parameter"),
        (parts({"type": "input_file"}), "input[0].content[0].type", "unsupported_parameter"),
        (parts({"type": "input_text"}), "input[0].content[0].text", "missing_required_parameter"),
        ({"input": [{"role": "robot", "content": "x"}]}, "input[0].role", "invalid_type"),
        (parts({"type": "input_image", "file_id": "f"}), "input[0].content[0].image_url", "unsupported_parameter"),
        ({"input": [{"type": "function_call", "name": "x"}]}, "input[0].call_id", "missing_required_parameter"),
        ({"include": ["reasoning.encrypted_content"]}, "include", "unsupported_parameter"),
        ({"conversation": "c"}, "conversation", "unsupported_parameter"),
        ({"prompt": {"id": "p"}}, "prompt", "unsupported_parameter"),
        ({"truncation": "auto"}, "truncation", "unsupported_parameter"),
        ({"service_tier": "flex"}, "service_tier", "unsupported_parameter"),
        ({"top_logprobs": 2}, "top_logprobs", "unsupported_parameter"),
        ({"stream_options": {"include_obfuscation": True}}, "stream_options", "unsupported_parameter"),
        ({"max_tool_calls": 2}, "max_tool_calls", "unsupported_parameter"),
        ({"reasoning": {"summary": "auto"}}, "reasoning.summary", "unsupported_parameter"),
        ({"reasoning": {"effort": "huge"}}, "reasoning.effort", "invalid_type"),
        ({"text": {"verbosity": "high"}}, "text.verbosity", "unsupported_parameter"),
        ({"text": {"format": NAMED}}, "text.format.schema", "missing_required_parameter"),
        ({"text": {"format": {"type": "grammar"}}}, "text.format.type", "invalid_type"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type", "unsupported_parameter"),
        ({"tools": [{"type": "function"}]}, "tools[0].name", "missing_required_parameter"),
        ({"tools": [{**TOOL, "defer_loading": True}]}, "tools[0].defer_loading", "unsupported_parameter"),
        ({"tools": [TOOL], "tool_choice": {"type": "function", "name": "nope"}}, "tool_choice", "invalid_value"),
        ({"tool_choice": "required"}, "tool_choice", "invalid_value"),
        ({"tool_choice": "maybe"}, "tool_choice", "unsupported_parameter"),
        ({"tool_choice": {"type": "file_search"}}, "tool_choice", "unsupported_parameter"),
        ({"max_output_tokens": 0}, "max_output_tokens", "invalid_value"),
        ({"temperature": "hot"}, "temperature", "invalid_type"),
        ({"background": True, "store": False}, "store", "invalid_value"),
        ({"metadata": {"a": "x" * 513}}, "metadata", "invalid_value"),
        ({"metadata": {str(n): "" for n in range(17)}}, "metadata", "invalid_value"),
        ({"metadata": {"a": 1}}, "metadata[...]", "invalid_type"),
    ],
)  # fmt: skip
def test_what_cannot_be_done_is_refused_by_name(fields: dict[str, object], param: str, reason: str) -> None:
    with pytest.raises(ParameterError) as raised:
        wish(**fields)
    assert (raised.value.param, raised.value.reason) == (param, reason)
    assert raised.value.mend


@pytest.mark.parametrize("raw", [b"", b"[]", b"{", b"\xff", b"[" * 100_000])
def test_a_body_that_is_no_object_is_told(raw: bytes) -> None:
    with pytest.raises(ParameterError):
        read_asked(raw)
