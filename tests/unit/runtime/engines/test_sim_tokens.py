from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenweir.core.errors import ParameterError, ProtocolError
from tokenweir.core.requests import Message, Tool, ToolCall
from tokenweir.runtime.engines.sim_tokens import (
    BOS,
    PIECES,
    WORD_TOKENS,
    SimFormat,
    SimToolCalls,
    decode,
    encode,
    spell,
)

FORM = SimFormat()
words = st.lists(st.sampled_from([" lake", " rain", "<think>", "</tool_call>", "ö", "x", "\n"])).map("".join)


@given(st.text() | words)
def test_every_text_comes_back_as_it_was(text: str) -> None:
    hidden = text.replace("<|begin|>", "").replace("<|end|>", "")
    assert spell(encode(text)) == text
    assert decode(encode(hidden, special=True)) == hidden


@given(st.text() | words)
def test_text_grows_with_its_tokens(text: str) -> None:
    detokenizer = FORM.detokenizer()
    said = ""
    for token in encode(text):
        said += detokenizer.add(token)
        assert text.startswith(said) or "<|" in text
    assert detokenizer.finish() == ""


def test_there_is_a_token_for_each_word_and_byte() -> None:
    assert len(PIECES) == len(set(PIECES)) == 512
    assert len(encode(" lake rain moss")) == 3
    assert all(PIECES[token].startswith(b" ") for token in WORD_TOKENS)
    assert encode("x", special=True)[0] == BOS


def test_bytes_that_are_no_text_are_replaced() -> None:
    assert decode(encode("ö")[:1]) == "�"


def test_a_conversation_is_rendered_with_marks() -> None:
    calls = (ToolCall(id="1", name="add", arguments='{"a": 1}'),)
    messages = (
        Message(role="developer", content="be brief"),
        Message(role="user", content=({"type": "image"}, {"type": "text", "text": "what?"})),
        Message(role="assistant", tool_calls=calls),
        Message(role="tool", content="2", tool_call_id="1"),
    )
    assert FORM.render(messages, (Tool(name="add"),), {"enable_thinking": True}) == (
        '<|begin|><|tools|>[{"name":"add","parameters":{}}]<|end|><|system|>be brief<|end|>'
        '<|user|><|image|>what?<|end|><|assistant|><tool_call>{"name": "add", "arguments": {"a": 1}}</tool_call><|end|>'
        "<|tool|>2<|end|><|assistant|><think>"
    )
    with pytest.raises(ParameterError, match="knows no role 'narrator'"):
        FORM.render((Message(role="narrator", content="x"),), (), {})


def test_tool_calls_are_json_of_a_known_name() -> None:
    form, tools = SimToolCalls(), (Tool(name="add"),)
    assert form.parse('[{"name": "add", "arguments": {"a": 1}}]', tools) == [("add", '{"a":1}')]
    assert form.parse(msgspec.json.encode({"name": "add", "arguments": "{}"}).decode(), tools) == [
        ("add", "{}")
    ]
    for text in ("add(1)", '{"name": "sub"}', '"add"', "[1]"):
        with pytest.raises(ProtocolError):
            form.parse(text, tools)
