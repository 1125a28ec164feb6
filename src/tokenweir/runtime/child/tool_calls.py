"""The inside of a tool call as it is written: named as soon as its name is whole, its arguments piece by piece.

The usual form, a JSON object of ``name`` and ``arguments``, is passed on as it comes. Any other form is kept until
it is whole and read by the model's own :class:`~tokenweir.ports.inference.ToolCallFormat`.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Sequence
from typing import Final

import msgspec

from tokenweir.core.errors import ProtocolError
from tokenweir.core.requests import Tool, ToolCall
from tokenweir.ports.inference import ToolCallFormat

_HEAD: Final = re.compile(
    r'[\s,\[\]}]*\{\s*"name"\s*:\s*("(?:[^"\\]|\\.)*")\s*,\s*"(?:arguments|parameters)"\s*:\s*(?=\{)',
    re.DOTALL,
)
_STRUCTURE: Final = re.compile(r'[{}\[\]"\\]')


def call_id() -> str:
    """Return a fresh id in OpenAI's form."""
    return f"call_{uuid.uuid4().hex[:24]}"


class ObjectEnd:
    """Finds the end of one JSON object in text that comes in pieces."""

    __slots__ = ("_depth", "_escaped", "_quoted")

    def __init__(self) -> None:
        self._depth = 0
        self._quoted = False
        self._escaped = False

    def feed(self, text: str) -> int:
        """Return where in ``text`` the object has ended, -1 while it has not."""
        at = 0
        while True:
            if self._escaped:
                if at >= len(text):
                    return -1
                self._escaped = False
                at += 1
            match = _STRUCTURE.search(text, at)
            if match is None:
                return -1
            at = match.end()
            sign = match[0]
            if self._quoted:
                self._quoted = sign != '"'
                self._escaped = sign == "\\"
            elif sign == '"':
                self._quoted = True
            elif sign in "{[":
                self._depth += 1
            elif sign in "}]":
                self._depth -= 1
                if self._depth <= 0:
                    return at


class ToolCallReader:
    """Reads the inside of one fence. ``index`` is the number of the first call in it."""

    __slots__ = ("_end", "_format", "_index", "_inside", "_tools", "calls")

    def __init__(self, tools: Sequence[Tool], form: ToolCallFormat | None, index: int) -> None:
        self._tools = tools
        self._format = form
        self._index = index
        self._inside = ""
        self._end: ObjectEnd | None = None
        self.calls = 0

    @property
    def inside(self) -> str:
        """What was not passed on as a call."""
        return self._inside

    def feed(self, text: str) -> list[ToolCall]:
        """Return what ``text`` adds to calls."""
        found: list[ToolCall] = []
        while text:
            end = self._end
            text = self._name(text, found) if end is None else self._arguments(text, end, found)
        return found

    def close(self) -> list[ToolCall]:
        """Return the calls that were not passed on yet; with ``calls`` 0 the text is no tool call."""
        if self.calls or self._format is None:
            return []
        try:
            parsed = self._format.parse(self._inside, self._tools)
        except ProtocolError:
            return []
        self.calls = len(parsed)
        return [
            ToolCall(index=self._index + place, id=call_id(), name=name, arguments=arguments)
            for place, (name, arguments) in enumerate(parsed)
        ]

    def _name(self, text: str, found: list[ToolCall]) -> str:
        self._inside += text
        head = _HEAD.match(self._inside)
        if head is None:
            return ""
        name = _text(head[1])
        if name is None or not any(tool.name == name for tool in self._tools):
            return ""
        text, self._inside = self._inside[head.end() :], ""
        found.append(ToolCall(index=self._index + self.calls, id=call_id(), name=name))
        self._end = ObjectEnd()
        self.calls += 1
        return text

    def _arguments(self, text: str, end: ObjectEnd, found: list[ToolCall]) -> str:
        at = end.feed(text)
        piece = text if at < 0 else text[:at]
        found.append(ToolCall(index=self._index + self.calls - 1, arguments=piece))
        if at < 0:
            return ""
        self._end = None
        return text[at:]


def _text(literal: str) -> str | None:
    try:
        return msgspec.json.decode(literal, type=str)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
