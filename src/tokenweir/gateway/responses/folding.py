"""A response and its events as a pure fold of the request's log: the same log gives the same ones, whoever asks."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final, Literal, NamedTuple, TypeAlias

import msgspec

from tokenweir.core.events import Accepted, Cancelled, Completed, Event, Failed, Queued, Started, Token, Usage
from tokenweir.core.ids import format_id
from tokenweir.core.requests import Json, ToolCall
from tokenweir.gateway.responses.outputs import Call, Message, Output, Thinking
from tokenweir.gateway.responses.wishes import Said

_NS_PER_S: Final = 1_000_000_000
_TOO_MANY: Final = 429
_BAD_REQUESTS: Final = range(400, 500)
_CUT: Final = {"length": "max_output_tokens", "content_filter": "content_filter"}

Status: TypeAlias = Literal["queued", "in_progress", "completed", "incomplete", "failed", "cancelled"]


class Facts(msgspec.Struct, frozen=True, kw_only=True):
    """What a response says of its request beside the events. ``at`` is Unix ns."""

    request: bytes
    at: int
    said: Said

    @property
    def id(self) -> str:
        """The response's id."""
        return response_id(self.request)

    @property
    def suffix(self) -> str:
        """What the ids of its items end in."""
        return self.id.removeprefix("resp_")


class Told(NamedTuple):
    """One of OpenAI's events: its ``sequence_number``, its type and all of it."""

    number: int
    type: str
    body: dict[str, Json]

    def sse(self) -> bytes:
        """Return it on the wire."""
        return b"event: %b\ndata: %b\n\n" % (self.type.encode(), msgspec.json.encode(self.body))


def response_id(request: bytes) -> str:
    """Return ``resp_…`` of a request: the same value as its ``req_…``."""
    return format_id("resp", int.from_bytes(request, "big"))


class Fold:
    """A response, event by event. The first that ends it is the last that counts."""

    def __init__(self, facts: Facts) -> None:
        self._facts = facts
        self._next = 0
        self._told: list[Told] = []
        self._outputs: list[Output] = []
        self._words: Message | Thinking | None = None
        self._calls: dict[int, Call] = {}
        self._last: Output | None = None
        self._usage: Usage | None = None
        self._error: Json = None
        self._cut = ""
        self._running = False
        self.status: Status = "queued" if facts.said.background else "in_progress"

    @property
    def running(self) -> bool:
        """Whether an endpoint has begun to answer."""
        return self._running

    @property
    def outputs(self) -> Sequence[Output]:
        """The items of the output."""
        return self._outputs

    @property
    def ended(self) -> bool:
        """Whether it has an end."""
        return self.status not in {"queued", "in_progress"}

    def feed(self, events: Iterable[Event]) -> list[Told]:
        """Return what events of the log add to the response's own."""
        self._told = []
        for event in events:
            if not self.ended:
                self._take(event)
        return self._told

    def _take(self, event: Event) -> None:
        match event:
            case Accepted():
                self._tell_whole("response.created")
            case Queued():
                self._tell_whole("response.queued")
            case Started():
                self._begin()
            case Token():
                self._begin()
                self._token(event)
            case Usage():
                self._usage = event
            case Completed():
                self._begin()
                self._complete(event)
            case Failed():
                self._error = _error(event)
                self._end("failed", "response.failed")
            case Cancelled():
                # OpenAI has no event of its own for this end; the status says what it is.
                self._end("cancelled", "response.incomplete")
            case _:
                pass

    def _begin(self) -> None:
        """Say that work has begun; a further attempt, which follows one without a token, says nothing."""
        if not self._running:
            self._running = True
            self.status = "in_progress"
            self._tell_whole("response.in_progress")

    def _token(self, token: Token) -> None:
        if token.index:
            return
        if token.reasoning:
            self._speak(Thinking, token.reasoning)
        if token.text:
            self._speak(Message, token.text)
        for piece in token.tool_calls:
            self._call(piece)

    def _speak(self, kind: type[Message | Thinking], text: str) -> None:
        words = self._words
        if not isinstance(words, kind):
            self._close_words()
            words = self._words = kind(self._facts.suffix, len(self._outputs))
            self._open(words)
        self._last = words
        self._tell(*words.add(text))

    def _call(self, piece: ToolCall) -> None:
        call = self._calls.get(piece.index)
        if call is None:
            self._close_words()
            call = self._calls[piece.index] = Call(
                self._facts.suffix, len(self._outputs), piece.id, piece.name
            )
            self._open(call)
        else:
            call.name += piece.name
        self._last = call
        if piece.arguments:
            self._tell(*call.add(piece.arguments))

    def _open(self, output: Output) -> None:
        self._outputs.append(output)
        for kind, body in output.opened():
            self._tell(kind, body)

    def _close_words(self) -> None:
        """Close text or reasoning that other output follows. Calls stay open: their pieces may come by turns."""
        if self._words is not None:
            self._close(self._words, "completed")
            self._words = None

    def _close(self, output: Output, status: Literal["completed", "incomplete"]) -> None:
        if output.status == "in_progress":
            for kind, body in output.closed(status):
                self._tell(kind, body)

    def _complete(self, end: Completed) -> None:
        self._cut = _CUT.get(end.finish_reason, "")
        if self._cut:
            self._end("incomplete", "response.incomplete")
        else:
            self._end("completed", "response.completed")

    def _end(self, status: Status, kind: str) -> None:
        for output in self._outputs:
            whole = status == "completed" or (status == "incomplete" and output is not self._last)
            self._close(output, "completed" if whole else "incomplete")
        self.status = status
        self._tell_whole(kind)

    def _tell_whole(self, kind: str) -> None:
        self._tell(kind, {"response": self.response()})

    def _tell(self, kind: str, body: dict[str, Json]) -> None:
        told = Told(self._next, kind, {"type": kind, "sequence_number": self._next, **body})
        self._next += 1
        self._told.append(told)

    def response(self) -> dict[str, Json]:
        """Return the response as it is now."""
        return {
            "id": self._facts.id,
            "object": "response",
            "created_at": self._facts.at // _NS_PER_S,
            "status": self.status,
            "error": self._error,
            "incomplete_details": {"reason": self._cut} if self._cut else None,
            **self._facts.said.echo,
            "output": [output.item() for output in self._outputs],
            "usage": _usage(self._usage) if self.ended and self._usage is not None else None,
        }


def _error(failed: Failed) -> Json:
    status = failed.status or 0
    code = "server_error"
    if status == _TOO_MANY:
        code = "rate_limit_exceeded"
    elif status in _BAD_REQUESTS:
        code = "invalid_prompt"
    return {"code": code, "message": failed.message or failed.kind}


def _usage(usage: Usage) -> Json:
    given, made = usage.input_tokens or 0, usage.output_tokens or 0
    return {
        "input_tokens": given,
        "input_tokens_details": {"cached_tokens": usage.cached_tokens or 0, "cache_write_tokens": 0},
        "output_tokens": made,
        "output_tokens_details": {"reasoning_tokens": usage.reasoning_tokens or 0},
        "total_tokens": given + made,
    }
