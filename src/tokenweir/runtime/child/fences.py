"""An answer's text told apart into text, reasoning and tool calls, by the fences that a model writes."""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum, auto
from typing import NamedTuple

from tokenweir.core.requests import Tool, ToolCall
from tokenweir.ports.inference import Markers, ToolCallFormat
from tokenweir.runtime.child.stops import partial
from tokenweir.runtime.child.tool_calls import ToolCallReader


class Parts(NamedTuple):
    """What a piece of an answer holds."""

    text: str = ""
    reasoning: str = ""
    calls: tuple[ToolCall, ...] = ()


class Within(Enum):
    """Where in the answer the reader is."""

    TEXT = auto()
    REASONING = auto()
    CALL = auto()


class FenceReader:
    """Splits one answer. Fences count where they can be meant: reasoning before any text, calls where tools are given.

    White space between reasoning, calls and text belongs to the fences, not to the text. A tool call that cannot be
    read becomes text again, fences included: nothing that a model wrote is lost.
    """

    __slots__ = (
        "_call",
        "_close_call",
        "_close_thought",
        "_drop_space",
        "_format",
        "_held",
        "_open_call",
        "_open_thought",
        "_space",
        "_spoke",
        "_tools",
        "calls",
        "within",
    )

    def __init__(
        self, markers: Markers, tools: Sequence[Tool], form: ToolCallFormat | None, *, reasoning: bool = False
    ) -> None:
        self._open_thought, self._close_thought = markers.think
        self._open_call, self._close_call = markers.tool if tools else ("", "")
        self._tools = tools
        self._format = form
        self._call = ToolCallReader(tools, form, 0)
        self._held = ""
        self._space = ""
        self._drop_space = reasoning
        self._spoke = False
        self.calls = 0
        self.within = Within.REASONING if reasoning else Within.TEXT

    def feed(self, text: str) -> Parts:
        """Return what ``text`` adds to the answer."""
        if self._call_free and not self._held and not self._space and self.within is Within.TEXT:
            # The usual case: text that no fence can follow.
            return Parts(text)
        return self._read(self._held + text, last=False)

    def finish(self) -> Parts:
        """Return what was held back, as the answer has ended."""
        parts = self._read(self._held, last=True)
        if self.within is not Within.CALL:
            kept = (
                self._space if self.within is Within.TEXT and not self._drop_space and not self.calls else ""
            )
            self._space = ""
            return parts._replace(text=parts.text + kept) if kept else parts
        found = self._call.close()
        self.within = Within.TEXT
        if self._call.calls:
            self.calls += self._call.calls
            return parts._replace(calls=joined([*parts.calls, *found]))
        return parts._replace(text=parts.text + self._space + self._open_call + self._call.inside)

    @property
    def _call_free(self) -> bool:
        return self._spoke and not self._open_call

    def _read(self, text: str, *, last: bool) -> Parts:
        said: list[str] = []
        thought: list[str] = []
        calls: list[ToolCall] = []
        self._held = ""
        while text:
            match self.within:
                case Within.TEXT:
                    text = self._plain(text, said, last=last)
                case Within.REASONING:
                    text = self._reasoning(text, thought, last=last)
                case Within.CALL:
                    text = self._calling(text, said, calls, last=last)
        return Parts("".join(said), "".join(thought), joined(calls))

    def _plain(self, text: str, said: list[str], *, last: bool) -> str:
        marks = [self._open_call] if self._open_call else []
        if self._open_thought and not self._spoke:
            marks.append(self._open_thought)
        places = [(text.find(mark), mark) for mark in marks]
        found = [place for place in places if place[0] >= 0]
        if found:
            at, mark = min(found)
            before = text[:at]
            if mark == self._open_thought and before.strip():
                # The text before it has made it a word like any other.
                self._say(before, said)
                return text[at:]
            self._say(before, said)
            if mark == self._open_call:
                self.within = Within.CALL
                self._call = ToolCallReader(self._tools, self._format, self.calls)
            else:
                self.within = Within.REASONING
                self._space, self._drop_space = "", True
            return text[at + len(mark) :]
        held = 0 if last else partial(text, marks)
        self._held = text[-held:] if held else ""
        self._say(text[: len(text) - held], said)
        return ""

    def _reasoning(self, text: str, thought: list[str], *, last: bool) -> str:
        if self._drop_space:
            text = text.lstrip()
            if not text:
                return ""
            self._drop_space = False
        at = text.find(self._close_thought)
        if at >= 0:
            thought.append(text[:at])
            self.within = Within.TEXT
            self._drop_space = True
            return text[at + len(self._close_thought) :]
        held = 0 if last else partial(text, [self._close_thought])
        self._held = text[-held:] if held else ""
        thought.append(text[: len(text) - held])
        return ""

    def _calling(self, text: str, said: list[str], calls: list[ToolCall], *, last: bool) -> str:
        close = self._close_call
        at = text.find(close) if close else -1
        if at < 0:
            held = 0 if last or not close else partial(text, [close])
            self._held = text[-held:] if held else ""
            calls += self._call.feed(text[: len(text) - held])
            return ""
        calls += self._call.feed(text[:at])
        calls += self._call.close()
        self.within = Within.TEXT
        if self._call.calls:
            self.calls += self._call.calls
            self._space = ""
        else:
            self._say(self._open_call + self._call.inside + close, said)
        return text[at + len(close) :]

    def _say(self, text: str, said: list[str]) -> None:
        """Pass text on, keeping white space back where it may turn out to stand between fences."""
        if not text:
            return
        if self._spoke and not self._open_call:
            said.append(text)
            return
        if not self._spoke and self._drop_space:
            text = text.lstrip()
            if not text:
                return
        whole = self._space + text
        bare = whole.rstrip()
        if not bare:
            self._space = whole
            return
        self._spoke, self._drop_space = True, False
        self._space = whole[len(bare) :] if self._open_call else ""
        said.append(bare if self._open_call else whole)


def joined(calls: Sequence[ToolCall]) -> tuple[ToolCall, ...]:
    """Return the pieces with those of one call made one."""
    whole: dict[int, ToolCall] = {}
    for call in calls:
        before = whole.get(call.index)
        whole[call.index] = (
            call
            if before is None
            else ToolCall(
                index=call.index, id=before.id, name=before.name, arguments=before.arguments + call.arguments
            )
        )
    return tuple(whole.values())
