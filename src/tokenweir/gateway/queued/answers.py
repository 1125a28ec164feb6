"""Answers of OpenAI's form as pure folds of a request's events: the same log gives the same bytes, whoever asks."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

import msgspec

from tokenweir.core.events import Completed, Event, Started, Token, Usage
from tokenweir.core.requests import Json, Kind, ToolCall
from tokenweir.gateway.queued.kept import last_answer

_NS_PER_S: Final = 1_000_000_000
_DONE: Final = b"data: [DONE]\n\n"
_IDS: Final[dict[Kind, str]] = {"chat": "chatcmpl-", "completion": "cmpl-", "embedding": "embd-"}


class Facts(msgspec.Struct, frozen=True, kw_only=True):
    """What an answer says of its request, beside the events. ``at`` is Unix ns."""

    kind: Kind
    model: str
    request_id: str
    at: int
    shows_usage: bool = False

    @property
    def name(self) -> str:
        """The answer's id."""
        return _IDS[self.kind] + self.request_id.removeprefix("req_")


def usage_of(events: Iterable[Event]) -> dict[str, Json] | None:
    """Return OpenAI's usage, or ``None`` where none was told."""
    usage = next((event for event in reversed(list(events)) if isinstance(event, Usage)), None)
    if usage is None:
        return None
    given, out = usage.input_tokens or 0, usage.output_tokens or 0
    body: dict[str, Json] = {"prompt_tokens": given, "completion_tokens": out, "total_tokens": given + out}
    if usage.cached_tokens is not None:
        body["prompt_tokens_details"] = {"cached_tokens": usage.cached_tokens}
    if usage.reasoning_tokens is not None:
        body["completion_tokens_details"] = {"reasoning_tokens": usage.reasoning_tokens}
    return body


def whole(facts: Facts, events: Sequence[Event]) -> dict[str, Json]:
    """Return a whole answer; the events hold its ``Completed``."""
    events = last_answer(events)
    end = next((event for event in events if isinstance(event, Completed)), Completed(seq=0))
    usage = usage_of(events)
    if facts.kind == "embedding":
        data: list[Json] = [
            {"object": "embedding", "index": index, "embedding": list(vector)}
            for index, vector in enumerate(end.embeddings)
        ]
        return {"object": "list", "data": data, "model": facts.model, "usage": usage}
    finishes = _finishes(end)
    indices = sorted({event.index for event in events if isinstance(event, Token)} | set(finishes) | {0})
    return {
        "id": facts.name,
        "object": "chat.completion" if facts.kind == "chat" else "text_completion",
        "created": facts.at // _NS_PER_S,
        "model": facts.model,
        "choices": [_choice(facts.kind, index, events, finishes.get(index, "stop")) for index in indices],
        "usage": usage,
    }


def _choice(kind: Kind, index: int, events: Sequence[Event], finish: str) -> Json:
    tokens = [event for event in events if isinstance(event, Token) and event.index == index]
    text = "".join(token.text for token in tokens)
    if kind == "completion":
        return {"index": index, "text": text, "logprobs": None, "finish_reason": finish}
    message: dict[str, Json] = {"role": "assistant", "content": text or None}
    reasoning = "".join(token.reasoning for token in tokens)
    if reasoning:
        message["reasoning_content"] = reasoning
    calls = _calls(tokens)
    if calls:
        message["tool_calls"] = [_call(call) for call in calls]
    elif not text:
        message["content"] = ""
    return {"index": index, "message": message, "logprobs": None, "finish_reason": finish}


def _calls(tokens: Iterable[Token]) -> list[ToolCall]:
    """Return the tool calls that the increments make up."""
    found: dict[int, ToolCall] = {}
    for token in tokens:
        for piece in token.tool_calls:
            so_far = found.get(piece.index, ToolCall(index=piece.index))
            found[piece.index] = ToolCall(
                index=piece.index,
                id=so_far.id or piece.id,
                name=so_far.name + piece.name,
                arguments=so_far.arguments + piece.arguments,
            )
    return [found[index] for index in sorted(found)]


def _call(call: ToolCall) -> dict[str, Json]:
    return {
        "id": call.id,
        "type": "function",
        "function": {"name": call.name, "arguments": call.arguments},
    }


def _finishes(end: Completed) -> dict[int, str]:
    several = end.data.get("finish_reasons")
    if isinstance(several, dict):
        return {int(index): str(reason) for index, reason in several.items()}
    return {0: end.finish_reason or "stop"}


class Chunks:
    """A streamed answer, event by event."""

    def __init__(self, facts: Facts) -> None:
        self._facts = facts
        self._begun: set[int] = set()
        self._usage: dict[str, Json] | None = None
        self.restarted = False
        """Whether the answer began anew after something of it was told, which this form cannot say."""

    def fold(self, events: Iterable[Event]) -> bytes:
        """Return the bytes that events add to the stream; those of an end other than ``Completed`` add none."""
        pieces: list[bytes] = []
        for event in events:
            match event:
                case Token():
                    pieces.append(self._token(event))
                case Usage():
                    self._usage = usage_of((event,))
                case Started() if self._begun:
                    self.restarted = True
                case Completed():
                    pieces.extend(self._end(event))
                case _:
                    pass
        return b"".join(pieces)

    def _token(self, token: Token) -> bytes:
        if self._facts.kind == "completion":
            self._begun.add(token.index)
            return self._chunk([{"index": token.index, "text": token.text, "finish_reason": None}])
        delta: dict[str, Json] = {}
        if token.index not in self._begun:
            self._begun.add(token.index)
            delta["role"] = "assistant"
        if token.text or not (token.reasoning or token.tool_calls):
            delta["content"] = token.text
        if token.reasoning:
            delta["reasoning_content"] = token.reasoning
        if token.tool_calls:
            delta["tool_calls"] = [_call_delta(call) for call in token.tool_calls]
        return self._chunk([{"index": token.index, "delta": delta, "finish_reason": None}])

    def _end(self, end: Completed) -> Iterable[bytes]:
        for index, reason in sorted(_finishes(end).items()):
            if self._facts.kind == "completion":
                yield self._chunk([{"index": index, "text": "", "finish_reason": reason}])
            else:
                yield self._chunk([{"index": index, "delta": {}, "finish_reason": reason}])
        if self._facts.shows_usage and self._usage is not None:
            yield self._chunk([], usage=self._usage)
        yield _DONE

    def _chunk(self, choices: list[Json], *, usage: Json = None) -> bytes:
        facts = self._facts
        body: dict[str, Json] = {
            "id": facts.name,
            "object": "chat.completion.chunk" if facts.kind == "chat" else "text_completion",
            "created": facts.at // _NS_PER_S,
            "model": facts.model,
            "choices": choices,
        }
        if usage is not None:
            body["usage"] = usage
        return b"data: " + msgspec.json.encode(body) + b"\n\n"


def _call_delta(call: ToolCall) -> Json:
    body: dict[str, Json] = {"index": call.index, "function": {"arguments": call.arguments}}
    if call.id:
        body["id"] = call.id
        body["type"] = "function"
    if call.name:
        body["function"] = {"name": call.name, "arguments": call.arguments}
    return body


def shown(events: Iterable[Event]) -> list[Event]:
    """Return events as callers get them: who answered behind the door is not told."""
    return [
        msgspec.structs.replace(event, endpoint="")
        if isinstance(event, Started) and event.endpoint
        else event
        for event in events
    ]
