"""Decoding OpenAI's answers: chat, completions and embeddings, streamed or whole.

The structs name only the fields that are used, so that msgspec passes over everything else.
"""

from __future__ import annotations

import binascii
import struct

import msgspec

from tokenweir.backends.failures import broken, complaint, failed, quote
from tokenweir.backends.frames import UNDECODABLE, Batch, EventDecoder, split
from tokenweir.core.events import Cancelled, Completed, Event, Failed, Started, Token, Usage
from tokenweir.core.requests import GenerateRequest, ToolCall
from tokenweir.ports.timing import Ending, TimingRows, known, rows


class Function(msgspec.Struct, gc=False):
    """A function call's name and arguments, or a piece of them."""

    name: str | None = None
    arguments: str | None = None


class CallDelta(msgspec.Struct, gc=False):
    """A tool call, or a piece of one."""

    index: int | None = None
    id: str | None = None
    function: Function | None = None


class Delta(msgspec.Struct, gc=False):
    """An increment of a chat answer, or the whole message."""

    content: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    tool_calls: list[CallDelta] | None = None


class Choice(msgspec.Struct, gc=False):
    """One of the answers a request asked for; ``text`` belongs to completions."""

    index: int = 0
    delta: Delta | None = None
    message: Delta | None = None
    text: str | None = None
    finish_reason: str | None = None


class CachedDetails(msgspec.Struct, gc=False):
    """What the prompt's tokens were."""

    cached_tokens: int | None = None


class ReasoningDetails(msgspec.Struct, gc=False):
    """What the answer's tokens were."""

    reasoning_tokens: int | None = None


class UsageBody(msgspec.Struct, gc=False):
    """OpenAI's usage; SGLang puts ``reasoning_tokens`` beside the totals."""

    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    reasoning_tokens: int | None = None
    prompt_tokens_details: CachedDetails | None = None
    completion_tokens_details: ReasoningDetails | None = None


class StreamChunk(msgspec.Struct, gc=False):
    """One event of a stream. An error has neither choices nor usage."""

    choices: list[Choice] | None = None
    usage: UsageBody | None = None
    sent_ns: int | None = None


class Head(msgspec.Struct, gc=False):
    """What the first event of a stream says of the whole answer."""

    id: str | None = None
    model: str | None = None


class Vector(msgspec.Struct, gc=False):
    """One embedding: numbers, or base64 of little-endian float32."""

    embedding: tuple[float, ...] | str
    index: int = 0


class Answer(msgspec.Struct, gc=False):
    """A whole answer."""

    id: str | None = None
    model: str | None = None
    choices: list[Choice] | None = None
    data: list[Vector] | None = None
    usage: UsageBody | None = None
    sent_ns: int | None = None


_CHUNK = msgspec.json.Decoder(StreamChunk)
_HEAD = msgspec.json.Decoder(Head)
_ANSWER = msgspec.json.Decoder(Answer)


def usage_event(seq: int, body: UsageBody) -> Usage:
    """Return the event for OpenAI's ``usage``."""
    cached, reasoning = body.prompt_tokens_details, body.completion_tokens_details
    return Usage(
        seq=seq,
        input_tokens=body.prompt_tokens,
        output_tokens=body.completion_tokens,
        cached_tokens=None if cached is None else cached.cached_tokens,
        reasoning_tokens=body.reasoning_tokens if reasoning is None else reasoning.reasoning_tokens,
    )


class ChunkDecoder(EventDecoder[StreamChunk]):
    """Decodes a streamed chat or text completion."""

    __slots__ = ("_choices", "_finishes", "_tokens")

    def __init__(self, request: GenerateRequest) -> None:
        super().__init__()
        self._choices = request.sampling.n
        self._finishes: dict[int, str] = {}
        self._tokens = False

    def timing(self, body: bytes) -> TimingRows:
        """Return the columns of a whole body, as :class:`~tokenweir.ports.timing.TimingDecoder` says."""
        quick = self._timing(body)
        return rows([*self.feed(body), *self.end()]) if quick is None else quick

    def _timing(self, body: bytes) -> TimingRows | None:
        """Return the columns of a regular stream of one choice; ``None`` leaves it to the events."""
        batch = split(body)
        if batch is None or not batch.done:
            return None
        try:
            chunks = _CHUNK.decode_lines(batch.lines())
        except UNDECODABLE:
            return None
        if len(chunks) != len(batch.ends):
            return None
        return _columns(chunks, batch.ends)

    def _decode_line(self, payload: bytes) -> StreamChunk:
        return _CHUNK.decode(payload)

    def _decode_lines(self, lines: bytes) -> list[StreamChunk]:
        return _CHUNK.decode_lines(lines)

    def _fold(self, batch: Batch, chunks: list[StreamChunk], out: list[tuple[int, Event]]) -> None:
        seq = self._seq
        append = out.append
        for position, (end, chunk) in enumerate(zip(batch.ends, chunks, strict=True)):
            choices = chunk.choices
            if not choices and chunk.usage is None:
                said = complaint(batch.payload(position))
                if said is not None:
                    self._close(out, end, failed(seq, said))
                    return
            if seq == 0:
                append((end, _started(batch.payload(position))))
                seq = 1
            for choice in choices or ():
                delta = choice.delta
                text = choice.text if delta is None else delta.content
                index = choice.index
                if delta is not None and _more(delta):
                    append((end, _rich(seq, delta, index, chunk.sent_ns)))
                    seq += 1
                    self._tokens = True
                elif text:
                    if index or chunk.sent_ns is not None:
                        append((end, Token(seq=seq, text=text, index=index, sent_ns=chunk.sent_ns)))
                    else:
                        append((end, Token(seq=seq, text=text)))
                    seq += 1
                    self._tokens = True
                if choice.finish_reason is not None:
                    self._finishes[index] = choice.finish_reason
                    if choice.finish_reason == "error":
                        said = complaint(batch.payload(position))
                        message = "the engine ended the answer with an error"
                        self._close(out, end, failed(seq, said) if said else broken(seq, message))
                        return
            if chunk.usage is not None:
                append((end, usage_event(seq, chunk.usage)))
                seq += 1
        self._seq = seq

    def _ending(self, seq: int, *, cut: bool) -> Ending:
        if not (self._tokens or self._finishes):
            return self._nothing(seq, cut=cut)
        if cut and len(self._finishes) < self._choices:
            return broken(seq, "the stream ended before the engine said how the answer finished")
        return _ending(seq, self._finishes.get(0, ""), self._finishes)


def _columns(chunks: list[StreamChunk], offsets: list[int]) -> TimingRows | None:
    """Return the columns of one choice's events; ``None`` for anything but a good, finished answer."""
    ends: list[int] = []
    sent: list[int | None] = []
    texts: list[str] = []
    usage: UsageBody | None = None
    usages = 0
    finish: str | None = None
    for end, chunk in zip(offsets, chunks, strict=True):
        choices = chunk.choices
        if chunk.usage is not None:
            usage = chunk.usage
            usages += 1
        elif not choices:
            return None
        if not choices:
            continue
        choice = choices[0]
        if choice.index or len(choices) > 1:
            return None
        delta = choice.delta
        text = choice.text if delta is None else delta.content
        if text:
            texts.append(text)
        if text or (delta is not None and _more(delta)):
            ends.append(end)
            sent.append(chunk.sent_ns)
        if choice.finish_reason is not None:
            finish = choice.finish_reason
            if finish == "error":
                return None
    if finish is None:
        return None
    seq = 1 + len(ends) + usages
    return TimingRows(
        ends=ends,
        sent_ns=known(sent),
        started=offsets[0],
        text="".join(texts),
        usage=None if usage is None else usage_event(seq - 1, usage),
        ending=_ending(seq, finish, {}),
    )


def _more(delta: Delta) -> bool:
    """Return whether an increment holds more than text."""
    return bool(delta.reasoning_content or delta.reasoning or delta.tool_calls)


def _started(payload: bytes) -> Started:
    """Return the start event of a stream, with what its first chunk tells; the chunk itself was decodable."""
    try:
        head = _HEAD.decode(payload)
    except UNDECODABLE:
        return Started(seq=0)
    return Started(seq=0, upstream_id=head.id or "", model=head.model or "")


def _rich(seq: int, delta: Delta, index: int, sent_ns: int | None) -> Token:
    """Return an increment that holds more than text."""
    return Token(
        seq=seq,
        text=delta.content or "",
        reasoning=delta.reasoning_content or delta.reasoning or "",
        tool_calls=tuple(
            ToolCall(
                index=position if call.index is None else call.index,
                id=call.id or "",
                name=(call.function.name or "") if call.function is not None else "",
                arguments=(call.function.arguments or "") if call.function is not None else "",
            )
            for position, call in enumerate(delta.tool_calls or ())
        ),
        index=index,
        sent_ns=sent_ns,
    )


def _ending(seq: int, finish: str, finishes: dict[int, str]) -> Completed | Cancelled:
    if finish == "abort":
        return Cancelled(seq=seq)
    if len(finishes) > 1:
        return Completed(
            seq=seq,
            finish_reason=finish,
            data={"finish_reasons": {str(index): reason for index, reason in sorted(finishes.items())}},
        )
    return Completed(seq=seq, finish_reason=finish)


class WholeDecoder:
    """Shared by answers that come as one JSON document: gathers the body, decodes it at its end."""

    __slots__ = ("_ended", "_parts", "_size")

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._size = 0
        self._ended = False

    def feed(self, data: bytes) -> list[tuple[int, Event]]:
        """Return nothing: the answer is complete only at its end."""
        if data:
            self._parts.append(data)
            self._size += len(data)
        return []

    def end(self) -> list[tuple[int, Event]]:
        """Return all events of the answer."""
        if self._ended:
            return []
        self._ended = True
        body = self._parts[0] if len(self._parts) == 1 else b"".join(self._parts)
        return [(self._size, event) for event in self._events(body)]

    def timing(self, body: bytes) -> TimingRows:
        """Return the columns of a whole body, as :class:`~tokenweir.ports.timing.TimingDecoder` says."""
        return rows([*self.feed(body), *self.end()])

    def _events(self, body: bytes) -> list[Event]:
        raise NotImplementedError


def unreadable(body: bytes, error: Exception) -> Failed:
    """Return the event for a body that is not the JSON document it should be."""
    said = complaint(body)
    if said is not None:
        return failed(0, said)
    start = quote(body[:120].decode(errors="replace"))
    if not start:
        return broken(0, "the answer is empty")
    if start.startswith(("data:", "event:", ":")):
        return broken(0, f"the server streamed an answer that was asked for whole: {start!r}")
    return broken(0, f"the answer is not the JSON it should be ({error}): {start!r}")


class AnswerDecoder(WholeDecoder):
    """Decodes a whole chat or text completion, or embeddings."""

    __slots__ = ("_embedding",)

    def __init__(self, request: GenerateRequest) -> None:
        super().__init__()
        self._embedding = request.kind == "embedding"

    def _events(self, body: bytes) -> list[Event]:
        try:
            answer = _ANSWER.decode(body)
            vectors = tuple(_numbers(v) for v in sorted(answer.data or (), key=lambda vector: vector.index))
        except (*UNDECODABLE, binascii.Error, struct.error) as error:
            return [unreadable(body, error)]
        found = answer.data is not None if self._embedding else bool(answer.choices)
        if not found:
            said = complaint(body)
            what = "embeddings" if self._embedding else "choices"
            return [failed(0, said) if said else broken(0, f"the answer holds no {what}")]
        choices = answer.choices or ()
        usage = answer.usage
        count = usage.completion_tokens if usage is not None and len(choices) == 1 else None
        events: list[Event] = [Started(seq=0, upstream_id=answer.id or "", model=answer.model or "")]
        for choice in choices:
            delta = choice.message or Delta(content=choice.text)
            if delta.content or _more(delta):
                token = _rich(len(events), delta, choice.index, answer.sent_ns)
                events.append(msgspec.structs.replace(token, count=count))
        if usage is not None:
            events.append(usage_event(len(events), usage))
        if self._embedding:
            events.append(Completed(seq=len(events), embeddings=vectors))
            return events
        finishes = {choice.index: choice.finish_reason or "" for choice in choices}
        if finishes.get(0) == "error":
            said = complaint(body)
            message = "the engine ended the answer with an error"
            events.append(failed(len(events), said) if said else broken(len(events), message))
        else:
            events.append(_ending(len(events), finishes.get(0, ""), finishes))
        return events


def _numbers(vector: Vector) -> tuple[float, ...]:
    if not isinstance(vector.embedding, str):
        return vector.embedding
    raw = binascii.a2b_base64(vector.embedding)
    return struct.unpack(f"<{len(raw) // 4}f", raw)
