"""Answers that are no plain words: scripted text, reasoning, tool calls and schema-shaped JSON, in pieces."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final, Literal

import msgspec

from tokenweir.core.requests import Json

_PIECE: Final = re.compile(r"\s*\S+|\s+$")
_ARGUMENT_PIECE: Final = 8
_MAX_DEPTH: Final = 16


class Call(msgspec.Struct, frozen=True):
    """A tool call: the tool's name and its arguments, JSON text."""

    name: str
    arguments: str


class Piece(msgspec.Struct, frozen=True):
    """One token of an answer: plain ``text``, and ``delta``, OpenAI's members as JSON without braces."""

    kind: Literal["text", "reasoning", "tool"]
    text: str
    delta: bytes


class Reply(msgspec.Struct, frozen=True):
    """A whole answer in advance. ``finish_reason`` is OpenAI's."""

    text: str = ""
    reasoning: str = ""
    calls: tuple[Call, ...] = ()
    finish_reason: str = "stop"


def pieces_of(reply: Reply) -> tuple[Piece, ...]:
    """Return the reply's tokens in order: reasoning, text, tool calls."""
    answer = [
        Piece("reasoning", part, b'"reasoning_content":' + _json(part))
        for part in _PIECE.findall(reply.reasoning)
    ]
    answer += [Piece("text", part, b'"content":' + _json(part)) for part in _PIECE.findall(reply.text)]
    for index, call in enumerate(reply.calls):
        first = {"index": index, "id": call_id(index, call), "type": "function"}
        named: dict[str, object] = {**first, "function": {"name": call.name, "arguments": ""}}
        answer.append(Piece("tool", "", b'"tool_calls":' + _json([named])))
        for at in range(0, len(call.arguments), _ARGUMENT_PIECE):
            part = {"index": index, "function": {"arguments": call.arguments[at : at + _ARGUMENT_PIECE]}}
            answer.append(Piece("tool", "", b'"tool_calls":' + _json([part])))
    return tuple(answer)


def call_id(index: int, call: Call) -> str:
    """Return the id of the ``index``-th tool call of an answer."""
    return f"call_{index}_{call.name}"


def example(schema: Mapping[str, Json], depth: int = 0) -> Json:
    """Return a small value that a JSON Schema allows, as far as types, enums and required members say."""
    if "const" in schema:
        return schema["const"]
    options = schema.get("enum")
    if isinstance(options, list) and options:
        return options[0]
    kind = schema.get("type")
    kind = kind[0] if isinstance(kind, list) and kind else kind
    if kind == "object" or (kind is None and "properties" in schema):
        members = schema.get("properties")
        if not isinstance(members, dict) or depth > _MAX_DEPTH:
            return {}
        return {name: example(one, depth + 1) for name, one in members.items() if isinstance(one, dict)}
    if kind == "array":
        items = schema.get("items")
        return [example(items, depth + 1)] if isinstance(items, dict) and depth <= _MAX_DEPTH else []
    low = schema.get("minimum")
    simple: dict[str, Json] = {
        "integer": low if isinstance(low, int) else 1,
        "number": low if isinstance(low, int | float) else 1.5,
        "boolean": True,
        "null": None,
    }
    return simple.get(kind, "lake") if isinstance(kind, str) else "lake"


def wanted_reply(
    tools: list[dict[str, Json]] | None,
    tool_choice: str | dict[str, Json] | None,
    response_format: dict[str, Json] | None,
) -> Reply | None:
    """Return the reply that a forced tool call or a JSON schema asks for; else ``None``."""
    functions = [one for tool in tools or () if isinstance(one := tool.get("function"), dict)]
    chosen = functions[0] if functions and tool_choice == "required" else None
    if isinstance(tool_choice, dict):
        target = tool_choice.get("function")
        name = target.get("name") if isinstance(target, dict) else None
        chosen = next((one for one in functions if one.get("name") == name), None)
    if chosen is not None:
        schema = chosen.get("parameters")
        value = example(schema) if isinstance(schema, dict) else {}
        call = Call(str(chosen.get("name")), _json(value).decode())
        return Reply(calls=(call,), finish_reason="tool_calls")
    kind = response_format.get("type") if response_format else None
    if response_format is not None and kind == "json_schema":
        outer = response_format.get("json_schema")
        schema = outer.get("schema") if isinstance(outer, dict) else None
        return Reply(text=_json(example(schema) if isinstance(schema, dict) else {}).decode())
    if kind == "json_object":
        return Reply(text='{"answer": "lake"}')
    return None


def _json(value: object) -> bytes:
    return msgspec.json.encode(value)
