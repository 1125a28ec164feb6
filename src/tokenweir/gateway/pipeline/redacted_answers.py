"""Answers whose text is redacted: OpenAI's bodies and streams of direct requests, events of queued ones, filed logs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, cast

import msgspec

from tokenweir.core.errors import ProtocolError
from tokenweir.core.events import Cancelled, Completed, Event, Failed, Started, Token
from tokenweir.core.requests import ToolCall
from tokenweir.gateway.direct.relay import Headers, Sink
from tokenweir.gateway.pipeline.patterns import Redactor, TextStream

_OK: Final = 200
_DATA: Final = b"data:"
_DONE: Final = b"[DONE]"
_TEXTS: Final = ("content", "reasoning_content", "reasoning", "refusal")
_MOST_HELD: Final = 4 << 20
_CALL: Final = "tool_call"


class Texts:
    """The texts of one answer, each with what is held back of it: by choice, field, and tool call."""

    def __init__(self, redactor: Redactor) -> None:
        self._redactor = redactor
        self._streams: dict[tuple[int, str, int], TextStream] = {}

    def feed(self, choice: int, field: str, text: str, call: int = 0) -> str:
        """Return what goes on of a text."""
        stream = self._streams.get((choice, field, call))
        if stream is None:
            stream = self._streams[choice, field, call] = self._redactor.stream()
        return stream.feed(text)

    def flush(self, choice: int | None = None) -> list[tuple[int, str, int, str]]:
        """Return what is left, of one choice or of all, as (choice, field, call, text)."""
        found: list[tuple[int, str, int, str]] = []
        for key in [key for key in self._streams if choice is None or key[0] == choice]:
            text = self._streams.pop(key).flush()
            if text:
                found.append((*key, text))
        return found


class RedactedSink:
    """Redacts an answer on its way to a sink. What is no answer passes as it is."""

    def __init__(self, redactor: Redactor, sink: Sink) -> None:
        self._redactor = redactor
        self._sink = sink
        self._texts = Texts(redactor)
        self._held = b""
        self._base: dict[str, Any] = {}

    async def begin(self, status: int, headers: Headers) -> None:
        """Send the head."""
        await self._sink.begin(status, headers)

    async def whole(self, status: int, headers: Headers, body: bytes) -> None:
        """Send all of an answer, redacted."""
        await self._sink.whole(status, headers, self._body(body) if status == _OK else body)

    async def write(self, piece: bytes) -> None:
        """Send a piece of a stream, redacted."""
        out = self._feed(piece)
        if out:
            await self._sink.write(out)

    async def end(self, piece: bytes = b"") -> None:
        """Send the last piece, and what was held back."""
        out = self._feed(piece)
        if self._held:
            out += self._event(self._held)
        await self._sink.end(out + self._rest())

    def _body(self, body: bytes) -> bytes:
        fields = _object(body)
        if fields is None:
            raise ProtocolError("the endpoint's answer is no JSON object, so that it cannot be redacted")
        for choice in _choices(fields):
            _whole_texts(choice, self._redactor)
        return msgspec.json.encode(fields)

    def _feed(self, piece: bytes) -> bytes:
        self._held += piece.replace(b"\r\n", b"\n")
        *events, self._held = self._held.split(b"\n\n")
        if len(self._held) > _MOST_HELD:
            raise ProtocolError(f"the endpoint sent an event of more than {_MOST_HELD} bytes")
        return b"".join(self._event(event) for event in events)

    def _event(self, event: bytes) -> bytes:
        data = b"\n".join(line[len(_DATA) :].strip() for line in event.split(b"\n") if line.startswith(_DATA))
        if not data:
            return event + b"\n\n" if event.strip() else b""
        if data == _DONE:
            return self._rest() + b"data: [DONE]\n\n"
        fields = _object(data)
        if fields is None:
            # Nobody can say what it shows.
            return b""
        choices = _choices(fields)
        if choices:
            self._base = {name: value for name, value in fields.items() if name not in {"choices", "usage"}}
        for choice in choices:
            self._choice(choice)
        silent = choices and not fields.get("usage") and not any(map(_says, choices))
        return b"" if silent else b"data: " + msgspec.json.encode(fields) + b"\n\n"

    def _choice(self, choice: dict[str, Any]) -> None:
        index = int(choice.get("index") or 0)
        if isinstance(choice.get("text"), str):
            choice["text"] = self._texts.feed(index, "text", choice["text"])
        if choice.get("logprobs") is not None:
            choice["logprobs"] = None
        delta: dict[str, Any] = choice.get("delta") or {}
        for name in _TEXTS:
            if isinstance(delta.get(name), str):
                delta[name] = self._texts.feed(index, name, delta[name])
        for call in cast("list[dict[str, Any]]", delta.get("tool_calls") or []):
            function: dict[str, Any] = call.get("function") or {}
            if isinstance(function.get("arguments"), str):
                number = int(call.get("index") or 0)
                function["arguments"] = self._texts.feed(index, _CALL, function["arguments"], number)
        if choice.get("finish_reason"):
            for _, field, call_index, text in self._texts.flush(index):
                _append(choice, field, call_index, text)

    def _rest(self) -> bytes:
        """Return what is left of choices that did not say that they had ended."""
        out = b""
        for index, field, call, text in self._texts.flush():
            choice: dict[str, Any] = {"index": index, "finish_reason": None}
            if field != "text":
                choice["delta"] = {}
            _append(choice, field, call, text)
            out += b"data: " + msgspec.json.encode({**self._base, "choices": [choice]}) + b"\n\n"
        return out


def _append(choice: dict[str, Any], field: str, call: int, text: str) -> None:
    """Add text to a chunk of a choice."""
    if field == "text":
        choice["text"] = (choice.get("text") or "") + text
        return
    delta: dict[str, Any] = choice.setdefault("delta", {})
    if field == _CALL:
        delta.setdefault("tool_calls", []).append({"index": call, "function": {"arguments": text}})
    else:
        delta[field] = (delta.get(field) or "") + text


def _says(choice: dict[str, Any]) -> bool:
    """Whether a chunk of a choice says anything beside texts, all of which are held back."""
    if choice.get("finish_reason") or choice.get("text"):
        return True
    delta: dict[str, Any] = choice.get("delta") or {}
    for name, value in delta.items():
        if name == "tool_calls":
            if any(map(_calls, cast("list[dict[str, Any]]", value or []))):
                return True
        elif value:
            return True
    return False


def _calls(call: dict[str, Any]) -> bool:
    """Whether a piece of a tool call says anything."""
    function: dict[str, Any] = call.get("function") or {}
    return bool(call.get("id") or function.get("arguments"))


def _whole_texts(choice: dict[str, Any], redactor: Redactor) -> None:
    if isinstance(choice.get("text"), str):
        choice["text"] = redactor.whole(choice["text"])
    if choice.get("logprobs") is not None:
        choice["logprobs"] = None
    message: dict[str, Any] = choice.get("message") or {}
    for name in _TEXTS:
        if isinstance(message.get(name), str):
            message[name] = redactor.whole(message[name])
    for call in cast("list[dict[str, Any]]", message.get("tool_calls") or []):
        function: dict[str, Any] = call.get("function") or {}
        if isinstance(function.get("arguments"), str):
            function["arguments"] = redactor.whole(function["arguments"])


def _object(data: bytes) -> dict[str, Any] | None:
    try:
        found: object = msgspec.json.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    return cast("dict[str, Any]", found) if isinstance(found, dict) else None


def _choices(fields: dict[str, Any]) -> list[dict[str, Any]]:
    choices: list[object] = fields.get("choices") or []
    return [cast("dict[str, Any]", choice) for choice in choices if isinstance(choice, dict)]


class RedactedEvents:
    """Redacts the events of one answer."""

    def __init__(self, redactor: Redactor) -> None:
        self._redactor = redactor
        self._texts = Texts(redactor)
        self._counted: int | None = None

    def feed(self, events: Sequence[Event]) -> list[Event]:
        """Return the events with what can be said of their texts; before an end comes what was held back."""
        found: list[Event] = []
        for event in events:
            match event:
                case Started():
                    self._texts = Texts(self._redactor)
                    self._counted = None
                case Token():
                    event = self._token(event)  # noqa: PLW2901 - the same event, redacted
                    if event is None:
                        continue
                case Completed() | Failed() | Cancelled():
                    found.extend(self._rest())
                case _:
                    pass
            found.append(event)
        return found

    def _token(self, token: Token) -> Token | None:
        """Return a token with what goes on of it; its count goes with the next where nothing does."""
        texts, index = self._texts, token.index
        if token.count is not None:
            self._counted = (self._counted or 0) + token.count
        calls = tuple(
            msgspec.structs.replace(call, arguments=texts.feed(index, _CALL, call.arguments, call.index))
            if call.arguments
            else call
            for call in token.tool_calls
        )
        calls = tuple(call for call in calls if call.id or call.name or call.arguments)
        text = texts.feed(index, "text", token.text) if token.text else ""
        reasoning = texts.feed(index, "reasoning", token.reasoning) if token.reasoning else ""
        if not (text or reasoning or calls):
            return None
        count, self._counted = self._counted, None
        return msgspec.structs.replace(
            token, text=text, reasoning=reasoning, tool_calls=calls, count=count, logprobs=()
        )

    def _rest(self) -> list[Event]:
        found: list[Event] = []
        for index, field, call, text in self._texts.flush():
            count, self._counted = self._counted, None
            found.append(
                Token(
                    seq=0,
                    index=index,
                    count=count,
                    text=text if field == "text" else "",
                    reasoning=text if field == "reasoning" else "",
                    tool_calls=(ToolCall(index=call, arguments=text),) if field == _CALL else (),
                )
            )
        return found


def redacted_log(events: tuple[Event, ...], redactor: Redactor) -> tuple[Event, ...]:
    """Return the same events with redacted texts: a match that spans several is told by the first of them."""
    found = list(events)
    first = 0
    for place, event in enumerate(events):
        if isinstance(event, Started):
            _redact_answer(found, first, place, redactor)
            first = place
    _redact_answer(found, first, len(events), redactor)
    return tuple(found)


def _redact_answer(events: list[Event], first: int, last: int, redactor: Redactor) -> None:
    """Redact the texts of one answer, in place."""
    places: dict[tuple[int, str, int], list[tuple[int, str]]] = {}
    for place in range(first, last):
        event = events[place]
        if isinstance(event, Token):
            for key, text in _texts_of(event):
                places.setdefault(key, []).append((place, text))
    for key, pieces in places.items():
        matches = redactor.all("".join(text for _, text in pieces))
        if not matches:
            continue
        start = 0
        for place, text in pieces:
            end, kept, at = start + len(text), "", start
            for match in matches:
                if match.end <= at or match.start >= end:
                    continue
                kept += text[at - start : max(match.start, at) - start]
                if match.start >= start:
                    kept += redactor.put(match)
                at = min(match.end, end)
            kept += text[at - start :]
            if kept != text:
                events[place] = _with_text(cast("Token", events[place]), key, kept)
            start = end


def _texts_of(token: Token) -> list[tuple[tuple[int, str, int], str]]:
    found = [
        ((token.index, "text", 0), token.text),
        ((token.index, "reasoning", 0), token.reasoning),
        *(((token.index, _CALL, call.index), call.arguments) for call in token.tool_calls),
    ]
    return [(key, text) for key, text in found if text]


def _with_text(token: Token, key: tuple[int, str, int], text: str) -> Token:
    _, field, number = key
    if field == "text":
        return msgspec.structs.replace(token, text=text, logprobs=())
    if field == "reasoning":
        return msgspec.structs.replace(token, reasoning=text, logprobs=())
    calls = tuple(
        msgspec.structs.replace(call, arguments=text) if call.index == number else call
        for call in token.tool_calls
    )
    return msgspec.structs.replace(token, tool_calls=calls, logprobs=())
