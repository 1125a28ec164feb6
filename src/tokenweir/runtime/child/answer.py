"""One choice of an answer: drawn tokens in; text, reasoning, tool calls and log probabilities out.

Order of the pipeline: detokenise, find stop strings, tell fences apart. A token whose text is still held back is
counted with the increment that brings it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Literal, Protocol

import msgspec

from tokenweir.core.events import Token, TokenLogprob
from tokenweir.core.requests import Tool, ToolCall
from tokenweir.ports.inference import Drawn, TextFormat, ToolCallFormat
from tokenweir.runtime.child.fences import FenceReader, Parts, Within, joined
from tokenweir.runtime.child.stops import StopMatcher
from tokenweir.runtime.child.tool_calls import ToolCallReader, call_id

LEAST_LOGPROB: Final = -9999.0
"""Stands for what is less probable than numbers can tell, as in OpenAI's answers."""

FinishReason = Literal["stop", "length", "tool_calls"]


class AnswerRules(msgspec.Struct, frozen=True, kw_only=True):
    """How the choices of one request are read.

    ``fenced`` looks for reasoning and for calls of ``tools``; ``reasoning`` says that the prompt opened a reasoning.
    ``forced`` says that guidance makes the whole answer a tool call: its arguments where it names the tool, else
    an object of ``name`` and ``arguments`` (``"*"``).
    """

    stops: tuple[str, ...] = ()
    fenced: bool = False
    tools: tuple[Tool, ...] = ()
    forced: str = ""
    reasoning: bool = False
    logprobs: bool = False


class TokenTexts:
    """The text of single tokens, for log probabilities; each is worked out once."""

    __slots__ = ("_format", "_known")

    def __init__(self, form: TextFormat) -> None:
        self._format = form
        self._known: dict[int, str] = {}

    def __call__(self, token: int) -> str:
        """Return the text of ``token`` by itself; a piece of a character is U+FFFD."""
        text = self._known.get(token)
        if text is None:
            detokenizer = self._format.detokenizer()
            text = detokenizer.add(token) + detokenizer.finish()
            self._known[token] = text
        return text


class Reader(Protocol):
    """Tells the parts of an answer apart."""

    @property
    def within(self) -> Within:
        """Where in the answer it is."""
        ...

    @property
    def calls(self) -> int:
        """How many tool calls were found."""
        ...

    def feed(self, text: str) -> Parts:
        """Return what ``text`` adds."""
        ...

    def finish(self) -> Parts:
        """Return what was held back."""
        ...


class ForcedReader:
    """Reads an answer that guidance makes a tool call from its first character."""

    __slots__ = ("_name", "_reader", "calls", "within")

    def __init__(self, tools: tuple[Tool, ...], name: str) -> None:
        self._name = "" if name == "*" else name
        self._reader = ToolCallReader(tools, None, 0)
        self.calls = 0
        self.within = Within.CALL

    def feed(self, text: str) -> Parts:
        """Return what ``text`` adds to the call."""
        if not text:
            return Parts()
        if not self._name:
            found = joined(self._reader.feed(text))
            self.calls = self._reader.calls
            return Parts(calls=found)
        if self.calls:
            return Parts(calls=(ToolCall(arguments=text),))
        self.calls = 1
        return Parts(calls=(ToolCall(id=call_id(), name=self._name, arguments=text),))

    def finish(self) -> Parts:
        """Return what did not become a call because it was cut short."""
        return Parts() if self.calls else Parts(self._reader.inside)


class Choice:
    """The answer of one sequence."""

    __slots__ = (
        "_add",
        "_finish_text",
        "_logprobs",
        "_pending",
        "_reader",
        "_stops",
        "_text_of",
        "finish",
        "index",
        "output_tokens",
        "reasoning_tokens",
    )

    def __init__(
        self,
        index: int,
        rules: AnswerRules,
        form: TextFormat,
        tool_calls: ToolCallFormat | None,
        text_of: Callable[[int], str],
    ) -> None:
        detokenizer = form.detokenizer()
        self.index = index
        self.finish: FinishReason | None = None
        self.output_tokens = 0
        self.reasoning_tokens = 0
        self._add = detokenizer.add
        self._finish_text = detokenizer.finish
        self._pending = 0
        self._logprobs: list[TokenLogprob] | None = [] if rules.logprobs else None
        self._text_of = text_of
        self._stops = StopMatcher(rules.stops) if rules.stops else None
        self._reader = _reader(rules, form, tool_calls)

    def take(self, drawn: Drawn, seq: int) -> Token | None:
        """Return the increment that a token brings. ``finish`` is set when its text holds a stop string."""
        self.output_tokens += 1
        self._pending += 1
        if self._logprobs is not None and drawn.logprob is not None:
            self._logprobs.append(self._logprob(drawn, drawn.logprob))
        text = self._add(drawn.token)
        if self._reader is None and self._stops is None:
            return self._token(Parts(text), seq) if text else None
        return self._token(self._read(text, counted=True), seq)

    def end(self, reason: FinishReason, seq: int) -> Token | None:
        """Return what was held back; ``finish`` is why it ended, as OpenAI tells it."""
        stopped = self._stops is not None and bool(self._stops.hit)
        parts = Parts() if stopped else self._read(self._finish_text(), counted=False)
        if self._stops is not None and not stopped:
            parts = _sum(parts, self._split(self._stops.finish()))
        if self._reader is not None:
            parts = _sum(parts, self._reader.finish())
        called = self._reader is not None and self._reader.calls > 0
        self.finish = "tool_calls" if called and reason == "stop" else reason
        return self._token(parts, seq)

    def _read(self, text: str, *, counted: bool) -> Parts:
        if self._stops is not None:
            text = self._stops.feed(text)
            if self._stops.hit:
                self.finish = "stop"
        reader = self._reader
        if reader is None:
            return Parts(text)
        before = reader.within
        parts = reader.feed(text)
        if counted and (before is Within.REASONING or reader.within is Within.REASONING):
            self.reasoning_tokens += 1
        return parts

    def _split(self, text: str) -> Parts:
        return Parts(text) if self._reader is None else self._reader.feed(text)

    def _token(self, parts: Parts, seq: int) -> Token | None:
        text, reasoning, calls = parts
        if not (text or reasoning or calls):
            return None
        count, self._pending = self._pending, 0
        if not self._logprobs:
            return Token(
                seq=seq, text=text, reasoning=reasoning, tool_calls=calls, count=count, index=self.index
            )
        logprobs, self._logprobs = tuple(self._logprobs), []
        return Token(
            seq=seq,
            text=text,
            reasoning=reasoning,
            tool_calls=calls,
            count=count,
            index=self.index,
            logprobs=logprobs,
        )

    def _logprob(self, drawn: Drawn, logprob: float) -> TokenLogprob:
        return TokenLogprob(
            token=self._text_of(drawn.token),
            logprob=_finite(logprob),
            top=tuple((self._text_of(token), _finite(one)) for token, one in drawn.alternatives),
        )


def _reader(rules: AnswerRules, form: TextFormat, tool_calls: ToolCallFormat | None) -> Reader | None:
    """Return what tells the parts apart; ``None`` where all is text."""
    if rules.forced:
        return ForcedReader(rules.tools, rules.forced)
    if not rules.fenced:
        return None
    markers = form.markers()
    if not markers.think[0] and not (rules.tools and markers.tool[0]):
        return None
    return FenceReader(markers, rules.tools, tool_calls, reasoning=rules.reasoning)


def _sum(first: Parts, second: Parts) -> Parts:
    calls = joined([*first.calls, *second.calls]) if second.calls else first.calls
    return Parts(first.text + second.text, first.reasoning + second.reasoning, calls)


def _finite(logprob: float) -> float:
    """Return a number that JSON knows: infinity and NaN become the least."""
    return max(LEAST_LOGPROB, logprob)
