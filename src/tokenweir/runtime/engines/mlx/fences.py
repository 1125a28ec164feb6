"""Which strings fence reasoning and tool calls in a model's answers, told by its chat template and vocabulary."""

from __future__ import annotations

import importlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, Protocol, cast

from tokenweir.core.errors import InputError, ProtocolError
from tokenweir.core.requests import Json, Tool

_PARSERS: Final = "mlx_lm.tool_parsers"
_PARSER_NAME: Final = re.compile(r"[a-z0-9_]{1,40}")

_THINK: Final = (
    ("<think>", "</think>"),
    ("<|think:start|>", "<|think:end|>"),
    ("<longcat_think>", "</longcat_think>"),
    ("<seed:think>", "</seed:think>"),
    ("[THINK]", "[/THINK]"),
)
"""Fences of reasoning that are tokens of their own."""

_BY_TEMPLATE: Final[tuple[tuple[str, tuple[str, ...]], ...]] = (
    ("minimax_m2", ("<minimax:tool_call>",)),
    ("gemma4", ("<|tool_call>", "<tool_call|>")),
    ("function_gemma", ("<start_function_call>",)),
    ("longcat", ("<longcat_tool_call>",)),
    ("glm47", ("<arg_key>",)),
    ("pythonic", ("<|tool_call_start|>",)),
    ("pythonic", ("<|tool_list_start|>",)),
    ("qwen3_coder", ("<tool_call>", "<function=")),
    ("kimi_k2", ("<|tool_calls_section_begin|>",)),
    ("minicpm5", ('<function name="', '<param name="')),
    ("mistral", ("[TOOL_CALLS]",)),
    ("muse_spark", ("<atem:function_calls>",)),
    ("json_tools", ("<tool_call>",)),
)
"""Parsers of MLX LM by what all stands in a template that writes their format; the first that fits is it."""


class _Parser(Protocol):
    tool_call_start: str
    tool_call_end: str
    parse_tool_call: Callable[..., Any]


class ToolCalls:
    """How a model writes tool calls: ``fence`` around them, and one of MLX LM's parsers for the inside."""

    def __init__(self, name: str, parser: _Parser) -> None:
        self._name = name
        self._parser = parser
        self.fence = (parser.tool_call_start, parser.tool_call_end)

    def parse(self, text: str, tools: Sequence[Tool]) -> Sequence[tuple[str, str]]:
        """Return (name, JSON arguments) for each call in ``text``.

        Raises:
            ProtocolError: ``text`` is no call in this format.
        """
        known = [
            {"type": "function", "function": {"name": tool.name, "parameters": tool.parameters}}
            for tool in tools
        ]
        try:
            found: Any = self._parser.parse_tool_call(text, known)
        except Exception as error:  # the parsers raise whatever their format's reader does
            raise _malformed(self._name, text, error) from error
        calls = cast("list[Any]", found) if isinstance(found, list) else [found]
        return [self._call(call, text) for call in calls]

    def _call(self, call: Any, text: str) -> tuple[str, str]:  # noqa: ANN401 - what a parser found is checked here
        if not isinstance(call, Mapping):
            raise _malformed(self._name, text, None)
        fields = cast("Mapping[str, Any]", call)
        name = fields.get("name")
        arguments = fields.get("arguments", fields.get("parameters"))
        if not isinstance(name, str) or not name:
            raise _malformed(self._name, text, None)
        if isinstance(arguments, str):
            return name, arguments
        return name, json.dumps({} if arguments is None else arguments, ensure_ascii=False)


def think_fence(vocabulary: Mapping[str, int]) -> tuple[str, str]:
    """Return the strings around reasoning; empty where the model has none."""
    for start, end in _THINK:
        if start in vocabulary and end in vocabulary:
            return start, end
    if "<|channel>" in vocabulary and "<channel|>" in vocabulary:
        return "<|channel>thought", "<channel|>"
    return "", ""


def tool_calls(
    template: str | None, vocabulary: Mapping[str, int], settings: Mapping[str, Json]
) -> ToolCalls | None:
    """Return how the model writes tool calls, ``None`` where it shows no format that can be read.

    ``settings`` are those of the tokenizer, whose ``tool_parser_type`` names the format where the template does not
    show it.

    Raises:
        InputError: ``tool_parser_type`` names no format that is known.
    """
    named = settings.get("tool_parser_type")
    if isinstance(named, str):
        return _named(named)
    text = template or ""
    for name, signs in _BY_TEMPLATE:
        if all(sign in text for sign in signs):
            return _named(name)
    if "<|tool_call_start|>" in vocabulary and "<|tool_call_end|>" in vocabulary:
        return _named("pythonic")
    return None


def _named(name: str) -> ToolCalls:
    unknown = InputError(
        f"tokenizer_config.json names the tool call format {name!r}, which the installed mlx-lm does not know",
        mend="update mlx-lm, or remove tool_parser_type",
    )
    if not _PARSER_NAME.fullmatch(name):
        raise unknown
    try:
        parser = cast("_Parser", importlib.import_module(f"{_PARSERS}.{name}"))
    except ModuleNotFoundError as error:
        raise unknown from error
    return ToolCalls(name, parser)


def _malformed(name: str, text: str, error: Exception | None) -> ProtocolError:
    why = f": {error}" if error is not None else ""
    return ProtocolError(
        f"{text[:200]!r} is no tool call in the format {name}{why}", mend="ask again, or guide the answer"
    )
