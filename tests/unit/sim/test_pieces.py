from __future__ import annotations

from pathlib import Path

import jsonschema
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenweir.core.errors import ConfigError
from tokenweir.core.requests import Json
from tokenweir.sim.pieces import Call, Reply, example, pieces_of, wanted_reply
from tokenweir.sim.script import read_script

SCHEMA: dict[str, Json] = {
    "type": "object",
    "properties": {
        "place": {"type": "string"},
        "count": {"type": "integer", "minimum": 3},
        "share": {"type": "number"},
        "kind": {"enum": ["a", "b"]},
        "open": {"type": ["boolean", "null"]},
        "list": {"type": "array", "items": {"type": "integer"}},
        "nothing": {"type": "null"},
        "fixed": {"const": 7},
    },
    "required": ["place", "count", "share", "kind", "open", "list", "nothing", "fixed"],
    "additionalProperties": False,
}


@given(st.text(max_size=80), st.text(max_size=80), st.text(max_size=40))
def test_pieces_join_to_the_reply(text: str, reasoning: str, arguments: str) -> None:
    pieces = pieces_of(Reply(text=text, reasoning=reasoning, calls=(Call("f", arguments),)))
    assert "".join(one.text for one in pieces if one.kind == "text") == text
    assert "".join(one.text for one in pieces if one.kind == "reasoning") == reasoning
    deltas = [msgspec.json.decode(b"{%b}" % one.delta) for one in pieces if one.kind == "tool"]
    assert "".join(one["tool_calls"][0]["function"]["arguments"] for one in deltas) == arguments
    assert deltas[0]["tool_calls"][0]["function"]["name"] == "f"


def test_an_example_is_valid_under_its_schema() -> None:
    jsonschema.validate(example(SCHEMA), SCHEMA)


def test_a_schema_that_contains_itself_comes_to_an_end() -> None:
    loop: dict[str, Json] = {"type": "object", "properties": {}}
    loop["properties"] = {"again": loop}
    assert isinstance(example(loop), dict)


def test_a_forced_tool_is_called_with_fitting_arguments() -> None:
    tool: dict[str, Json] = {"type": "function", "function": {"name": "f", "parameters": SCHEMA}}
    other: dict[str, Json] = {"type": "function", "function": {"name": "g"}}
    assert wanted_reply([tool], "auto", None) is None
    first = wanted_reply([tool, other], "required", None)
    named = wanted_reply([tool, other], {"type": "function", "function": {"name": "g"}}, None)
    assert first is not None
    assert named is not None
    assert (first.calls[0].name, first.finish_reason) == ("f", "tool_calls")
    jsonschema.validate(msgspec.json.decode(first.calls[0].arguments), SCHEMA)
    assert named.calls == (Call("g", "{}"),)


def test_a_json_answer_is_json() -> None:
    reply = wanted_reply(None, None, {"type": "json_schema", "json_schema": {"name": "a", "schema": SCHEMA}})
    assert reply is not None
    jsonschema.validate(msgspec.json.decode(reply.text), SCHEMA)
    plain = wanted_reply(None, None, {"type": "json_object"})
    assert plain is not None
    assert isinstance(msgspec.json.decode(plain.text), dict)
    assert wanted_reply(None, None, {"type": "text"}) is None


def test_a_script_answers_the_first_rule_that_matches(tmp_path: Path) -> None:
    path = tmp_path / "script.jsonl"
    path.write_text(
        '{"match": {"exact": "hi"}, "text": "hello"}\n'
        "\n"
        '{"match": {"regex": "^count to \\\\d"}, "tool_calls": [{"name": "count", "arguments": {"to": 3}}]}\n'
        '{"text": "anything else", "ttft": "constant:1ms", "fault": "stall;after=1"}\n',
        encoding="utf-8",
    )
    entries = read_script(str(path), seed=0)
    chosen = [
        next(i for i, one in enumerate(entries) if one.matches(text)) for text in ("hi", "count to 3", "hi!")
    ]
    assert chosen == [0, 1, 2]
    assert entries[1].reply.calls == (Call("count", '{"to":3}'),)
    assert entries[1].reply.finish_reason == "tool_calls"
    assert entries[2].ttft is not None
    assert entries[2].fault is not None


@pytest.mark.parametrize(
    "line", ["{", '{"txt": "a"}', '{"match": {"regex": "("}}', '{"ttft": "5"}', '{"fault": "x"}']
)
def test_a_script_line_that_does_not_parse_is_named(tmp_path: Path, line: str) -> None:
    path = tmp_path / "script.jsonl"
    path.write_text('{"text": "fine"}\n' + line + "\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"script\.jsonl:2: "):
        read_script(str(path), seed=0)


def test_a_missing_script_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="none"):
        read_script(str(tmp_path / "none"), seed=0)
