"""An answer in pieces: what is the same in every chunk of a stream is encoded once, when the stream begins."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Protocol

import msgspec

from tokenweir.core.events import Token, TokenLogprob, Usage
from tokenweir.core.requests import Json, ToolCall

DONE: Final = b"data: [DONE]\n\n"
_encode = msgspec.json.Encoder().encode


class Head(msgspec.Struct, frozen=True, kw_only=True):
    """What every part of one answer says of it. ``created`` is in Unix seconds."""

    id: str
    created: int
    model: str
    fingerprint: str


class Chunks(Protocol):
    """Turns the events of one answer into server-sent events."""

    def opening(self, choices: int) -> bytes:
        """Return what comes before the first token of every choice."""
        ...

    def token(self, event: Token, index: int) -> bytes:
        """Return the chunk for an increment of the choice ``index``."""
        ...

    def finish(self, index: int, reason: str) -> bytes:
        """Return the last chunk of a choice."""
        ...

    def usage(self, usage: Usage) -> bytes:
        """Return the chunk that holds the usage alone."""
        ...


class _Framed:
    """The frame that chunks of both interfaces share: head, one choice, and ``usage`` where it is asked for."""

    __slots__ = ("_head", "_tail")

    def __init__(self, kind: str, head: Head, *, include_usage: bool) -> None:
        frame = {
            "id": head.id,
            "object": kind,
            "created": head.created,
            "model": head.model,
            "system_fingerprint": head.fingerprint,
        }
        self._head = b'data: %b,"choices":[' % _encode(frame)[:-1]
        self._tail = b'}],"usage":null}\n\n' if include_usage else b"}]}\n\n"

    def usage(self, usage: Usage) -> bytes:
        """Return the chunk that holds the usage alone."""
        return b'%b],"usage":%b}\n\n' % (self._head, _encode(usage_body(usage)))


class ChatChunks(_Framed):
    """Chunks of ``chat.completion.chunk``."""

    __slots__ = ("_plain", "_plain_tail")

    def __init__(self, head: Head, *, include_usage: bool) -> None:
        super().__init__("chat.completion.chunk", head, include_usage=include_usage)
        self._plain = b'%b{"index":0,"delta":{"content":' % self._head
        self._plain_tail = b'},"logprobs":null,"finish_reason":null' + self._tail

    def opening(self, choices: int) -> bytes:
        """Return the role of every choice."""
        return b"".join(
            b'%b{"index":%d,"delta":{"role":"assistant","content":""},"logprobs":null,"finish_reason":null%b'
            % (self._head, index, self._tail)
            for index in range(choices)
        )

    def token(self, event: Token, index: int) -> bytes:
        """Return the chunk for an increment; the plain one of the first choice is only joined."""
        if not (index or event.reasoning or event.tool_calls or event.logprobs):
            return self._plain + _encode(event.text) + self._plain_tail
        delta: dict[str, Json] = {}
        if event.reasoning:
            delta["reasoning_content"] = event.reasoning
        if event.text:
            delta["content"] = event.text
        if event.tool_calls:
            delta["tool_calls"] = [call_delta(call) for call in event.tool_calls]
        logprobs = _encode(chat_logprobs(event.logprobs)) if event.logprobs else b"null"
        return b'%b{"index":%d,"delta":%b,"logprobs":%b,"finish_reason":null%b' % (
            self._head,
            index,
            _encode(delta),
            logprobs,
            self._tail,
        )

    def finish(self, index: int, reason: str) -> bytes:
        """Return the last chunk of a choice."""
        return b'%b{"index":%d,"delta":{},"logprobs":null,"finish_reason":%b%b' % (
            self._head,
            index,
            _encode(reason),
            self._tail,
        )


class TextChunks(_Framed):
    """Chunks of ``text_completion``. Log probabilities count characters from the beginning of each choice."""

    __slots__ = ("_offsets", "_plain", "_plain_tail")

    def __init__(self, head: Head, *, include_usage: bool) -> None:
        super().__init__("text_completion", head, include_usage=include_usage)
        self._plain = b'%b{"index":0,"text":' % self._head
        self._plain_tail = b',"logprobs":null,"finish_reason":null' + self._tail
        self._offsets: dict[int, int] = {}

    def opening(self, choices: int) -> bytes:
        """Return nothing: a text has no role."""
        del choices
        return b""

    def token(self, event: Token, index: int) -> bytes:
        """Return the chunk for an increment; the plain one of the first choice is only joined."""
        if not (index or event.reasoning or event.logprobs):
            return self._plain + _encode(event.text) + self._plain_tail
        logprobs = b"null"
        if event.logprobs:
            offset = self._offsets.get(index, 0)
            logprobs = _encode(text_logprobs(event.logprobs, offset))
            self._offsets[index] = offset + sum(len(one.token) for one in event.logprobs)
        return b'%b{"index":%d,"text":%b,"logprobs":%b,"finish_reason":null%b' % (
            self._head,
            index,
            _encode(event.reasoning + event.text),
            logprobs,
            self._tail,
        )

    def finish(self, index: int, reason: str) -> bytes:
        """Return the last chunk of a choice."""
        return b'%b{"index":%d,"text":"","logprobs":null,"finish_reason":%b%b' % (
            self._head,
            index,
            _encode(reason),
            self._tail,
        )


def usage_body(usage: Usage) -> dict[str, Json]:
    """Return OpenAI's ``usage``. The draft model's tokens stand beside OpenAI's details where there was one."""
    prompt, answer = usage.input_tokens or 0, usage.output_tokens or 0
    details: dict[str, Json] = {"reasoning_tokens": usage.reasoning_tokens or 0}
    if usage.drafted_tokens is not None:
        details["drafted_tokens"] = usage.drafted_tokens
        details["accepted_tokens"] = usage.accepted_tokens or 0
    return {
        "prompt_tokens": prompt,
        "completion_tokens": answer,
        "total_tokens": prompt + answer,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens or 0},
        "completion_tokens_details": details,
    }


def call_delta(call: ToolCall) -> Json:
    """Return a piece of a tool call: the first one names it, later ones add to its arguments."""
    if not (call.id or call.name):
        return {"index": call.index, "function": {"arguments": call.arguments}}
    function: dict[str, Json] = {"name": call.name, "arguments": call.arguments}
    return {"index": call.index, "id": call.id, "type": "function", "function": function}


def chat_logprobs(logprobs: Sequence[TokenLogprob]) -> Json:
    """Return the form of the chat interface."""
    content: list[Json] = [
        {
            **_entry(one.token, one.logprob),
            "top_logprobs": [_entry(token, logprob) for token, logprob in one.top],
        }
        for one in logprobs
    ]
    return {"content": content, "refusal": None}


def text_logprobs(logprobs: Sequence[TokenLogprob], offset: int) -> Json:
    """Return the form of the completions interface; ``offset`` is where the first token begins, in characters."""
    offsets: list[Json] = []
    for one in logprobs:
        offsets.append(offset)
        offset += len(one.token)
    return {
        "tokens": [one.token for one in logprobs],
        "token_logprobs": [one.logprob for one in logprobs],
        "top_logprobs": [dict(one.top) for one in logprobs],
        "text_offset": offsets,
    }


def _entry(token: str, logprob: float) -> dict[str, Json]:
    return {"token": token, "logprob": logprob, "bytes": list(token.encode("utf-8", "surrogatepass"))}
