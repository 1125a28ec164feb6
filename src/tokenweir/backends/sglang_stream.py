"""Decoding SGLang's native ``/generate`` answers, in both of its streaming modes.

By default every event carries the whole text and all token ids so far; a server flag makes each carry what is
new. ``completion_tokens`` counts up in both modes, so an increment's token count is exact. SGLang-JAX has the
first mode only.
"""

from __future__ import annotations

from typing import Final

import msgspec

from tokenweir.backends.failures import NS_PER_S, Complaint, broken, complaint, failed, quote
from tokenweir.backends.frames import UNDECODABLE, Batch, EventDecoder, split
from tokenweir.backends.openai_stream import WholeDecoder, unreadable
from tokenweir.core.events import Cancelled, Completed, Event, Started, Token, Usage
from tokenweir.core.requests import GenerateRequest, Json
from tokenweir.ports.timing import Ending, TimingRows, known, rows

TIMINGS: Final = {"queue_time": "queue_time", "first_token_latency": "ttft", "e2e_latency": "e2el"}
"""SGLang's durations, in seconds, and their GLOSSARY names."""


class Finish(msgspec.Struct, gc=False):
    """Why generation ended. An abort with a ``status_code`` is the server's doing, else the client's."""

    type: str = ""
    message: str | None = None
    status_code: int | None = None


class LeanMeta(msgspec.Struct, gc=False):
    """What every event is asked for."""

    finish_reason: Finish | str | None = None
    completion_tokens: int | None = None
    cache_miss_count: int | None = None


class LeanChunk(msgspec.Struct, gc=False):
    """An event without its token ids, which are not needed once the mode is known."""

    meta_info: LeanMeta | None = None
    text: str | None = None
    index: int | None = None
    sent_ns: int | None = None


class Meta(msgspec.Struct, gc=False):
    """What the last event is asked for, too."""

    id: str | None = None
    finish_reason: Finish | str | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    cached_tokens: int | None = None
    reasoning_tokens: int | None = None
    cache_miss_count: int | None = None
    queue_time: float | None = None
    first_token_latency: float | None = None
    e2e_latency: float | None = None


class FullChunk(msgspec.Struct, gc=False):
    """A whole answer, or an event of which everything is wanted."""

    meta_info: Meta | None = None
    text: str | None = None
    output_ids: list[int] | None = None
    index: int | None = None
    sent_ns: int | None = None


_LEAN = msgspec.json.Decoder(LeanChunk)
_FULL = msgspec.json.Decoder(FullChunk)
_WHOLE: Final[msgspec.json.Decoder[FullChunk | list[FullChunk]]] = msgspec.json.Decoder(
    FullChunk | list[FullChunk]
)


class _Progress:
    """How far one choice has come; ``waiting`` are tokens that no increment has been given for yet."""

    __slots__ = ("characters", "incremental", "tokens", "waiting")

    def __init__(self) -> None:
        self.characters = 0
        self.tokens = 0
        self.waiting = 0
        self.incremental: bool | None = None

    def advance(self, text: str, tokens: int | None) -> tuple[str, int | None]:
        """Return the new text and how many tokens it stands for. ``tokens`` counts all so far."""
        if tokens is not None and tokens > self.tokens:
            self.waiting += tokens - self.tokens
            self.tokens = tokens
        if not self.incremental:
            text = text[self.characters :]
        if not text:
            return "", None
        self.characters += len(text)
        count, self.waiting = self.waiting, 0
        return text, None if tokens is None else count


class GenerateDecoder(EventDecoder[LeanChunk]):
    """Decodes a streamed ``/generate``. An event of no new text leaves its tokens to the next that has."""

    __slots__ = ("_choices", "_finishes", "_lasts", "_progress", "_recompiles")

    def __init__(self, request: GenerateRequest) -> None:
        super().__init__()
        self._choices = request.sampling.n
        self._progress: dict[int, _Progress] = {}
        self._finishes: dict[int, Finish] = {}
        self._lasts: dict[int, Meta] = {}
        self._recompiles: int | None = None

    def timing(self, body: bytes) -> TimingRows:
        """Return the columns of a whole body, as :class:`~tokenweir.ports.timing.TimingDecoder` says."""
        quick = self._timing(body)
        return rows([*self.feed(body), *self.end()]) if quick is None else quick

    def _timing(self, body: bytes) -> TimingRows | None:
        """Return the columns of a regular stream of one choice; ``None`` leaves it to the events."""
        batch = split(body)
        if batch is None or not batch.done or len(batch.ends) < 2:  # noqa: PLR2004
            return None
        try:
            chunks = _LEAN.decode_lines(batch.lines())
            first, second = _FULL.decode(batch.payload(0)), _FULL.decode(batch.payload(1))
            last = _FULL.decode(batch.payload(len(batch.ends) - 1)).meta_info
        except UNDECODABLE:
            return None
        if len(chunks) != len(batch.ends) or last is None or last.finish_reason is None:
            return None
        incremental = _mode(first, second)
        if incremental is None:
            return None
        columns = _columns(chunks, batch.ends, incremental=incremental)
        if columns is None:
            return None
        columns.started = batch.ends[0]
        seq = 1 + len(columns.ends)
        recompiles = columns.usage.recompiles if columns.usage is not None else None
        columns.usage = _usage(seq, [last], recompiles)
        columns.ending = _ending(seq + 1, {0: _finish(last.finish_reason)})
        return columns

    def _decode_line(self, payload: bytes) -> LeanChunk:
        return _LEAN.decode(payload)

    def _decode_lines(self, lines: bytes) -> list[LeanChunk]:
        return _LEAN.decode_lines(lines)

    def _fold(self, batch: Batch, chunks: list[LeanChunk], out: list[tuple[int, Event]]) -> None:
        for position, (end, chunk) in enumerate(zip(batch.ends, chunks, strict=True)):
            meta = chunk.meta_info
            if meta is None:
                said = complaint(batch.payload(position))
                nothing = broken(self._seq, "an event of the stream holds no meta_info")
                self._close(out, end, failed(self._seq, said) if said else nothing)
                return
            if self._seq == 0:
                full = _full(batch.payload(position))
                out.append((end, Started(seq=0, upstream_id=(full.id or "") if full is not None else "")))
                self._seq = 1
            if meta.cache_miss_count is not None:
                self._recompiles = (self._recompiles or 0) + meta.cache_miss_count
            index = chunk.index or 0
            progress = self._progress.get(index)
            if progress is None:
                progress = self._progress[index] = _Progress()
            tokens = meta.completion_tokens
            if progress.incremental is None and progress.tokens and tokens is not None:
                progress.incremental = _news_only(batch.payload(position), tokens)
            text, count = progress.advance(chunk.text or "", tokens)
            if text:
                token = Token(seq=self._seq, text=text, count=count, index=index, sent_ns=chunk.sent_ns)
                out.append((end, token))
                self._seq += 1
            if meta.finish_reason is not None:
                self._finishes[index] = _finish(meta.finish_reason)
                full = _full(batch.payload(position))
                if full is not None:
                    self._lasts[index] = full
                    out.append((end, _usage(self._seq, list(self._lasts.values()), self._recompiles)))
                    self._seq += 1

    def _ending(self, seq: int, *, cut: bool) -> Ending:
        if seq == 0:
            return self._nothing(seq, cut=cut)
        if len(self._finishes) < (self._choices if cut else 1):
            return broken(seq, "the stream ended before the engine said how the answer finished")
        return _ending(seq, self._finishes)


def _columns(chunks: list[LeanChunk], offsets: list[int], *, incremental: bool) -> TimingRows | None:
    """Return one choice's columns; ``usage`` holds only the recompiles, ``ending`` is a stand-in."""
    ends: list[int] = []
    counts: list[int | None] = []
    sent: list[int | None] = []
    texts: list[str] = []
    misses: int | None = None
    characters = given = tokens = 0
    final = chunks[-1]
    for end, chunk in zip(offsets, chunks, strict=True):
        meta = chunk.meta_info
        if meta is None or chunk.index or (meta.finish_reason is not None and chunk is not final):
            return None
        if meta.completion_tokens is None or meta.completion_tokens < tokens:
            return None
        tokens = meta.completion_tokens
        if meta.cache_miss_count is not None:
            misses = (misses or 0) + meta.cache_miss_count
        text = chunk.text
        if text is None:
            continue
        if not incremental:
            text = text[characters:]
            characters += len(text)
        if text:
            texts.append(text)
            ends.append(end)
            counts.append(tokens - given)
            sent.append(chunk.sent_ns)
            given = tokens
    return TimingRows(
        ends=ends,
        counts=known(counts),
        sent_ns=known(sent),
        text="".join(texts),
        usage=Usage(seq=0, recompiles=misses),
        ending=Completed(seq=0),
    )


def _mode(first: FullChunk, second: FullChunk) -> bool | None:
    """Return whether events carry only what is new; ``None`` where two events cannot tell."""
    if first.meta_info is None or second.meta_info is None:
        return None
    if not first.meta_info.completion_tokens or second.meta_info.completion_tokens is None:
        return None
    ids = second.output_ids
    return ids is not None and len(ids) < second.meta_info.completion_tokens


def _news_only(payload: bytes, tokens: int) -> bool:
    """Return whether an event's ids are fewer than the tokens so far: then its text, too, is what is new."""
    try:
        ids = _FULL.decode(payload).output_ids
    except UNDECODABLE:
        return False
    return ids is not None and len(ids) < tokens


def _full(payload: bytes) -> Meta | None:
    try:
        return _FULL.decode(payload).meta_info
    except UNDECODABLE:
        return None


def _finish(reason: Finish | str) -> Finish:
    return Finish(type=reason) if isinstance(reason, str) else reason


def _usage(seq: int, metas: list[Meta], recompiles: int | None) -> Usage:
    """Return what the last events of the choices counted; the prompt is the same for all of them."""
    first = metas[0]
    outputs = [meta.completion_tokens for meta in metas if meta.completion_tokens is not None]
    reasoning = [meta.reasoning_tokens for meta in metas if meta.reasoning_tokens is not None]
    timings: dict[str, int] = {}
    for theirs, ours in TIMINGS.items():
        seconds: float | None = getattr(first, theirs)
        if seconds is not None:
            timings[ours] = round(seconds * NS_PER_S)
    return Usage(
        seq=seq,
        input_tokens=first.prompt_tokens,
        output_tokens=sum(outputs) if outputs else None,
        cached_tokens=first.cached_tokens,
        reasoning_tokens=sum(reasoning) if reasoning else None,
        recompiles=recompiles,
        timings_ns=timings,
    )


def _ending(seq: int, finishes: dict[int, Finish]) -> Ending:
    finish = finishes.get(0, Finish())
    if finish.type == "abort":
        if finish.status_code is None:
            return Cancelled(seq=seq)
        return failed(seq, Complaint(quote(finish.message or "aborted"), finish.status_code))
    data: dict[str, Json] = {}
    if len(finishes) > 1:
        data["finish_reasons"] = {str(index): item.type for index, item in sorted(finishes.items())}
    return Completed(seq=seq, finish_reason=finish.type, data=data)


class GenerateAnswerDecoder(WholeDecoder):
    """Decodes a whole ``/generate`` answer; with ``n`` > 1 a list of them."""

    __slots__ = ()

    def _events(self, body: bytes) -> list[Event]:
        try:
            told = _WHOLE.decode(body)
        except UNDECODABLE as error:
            return [unreadable(body, error)]
        answers = told if isinstance(told, list) else [told]
        metas = [answer.meta_info for answer in answers if answer.meta_info is not None]
        if not answers or len(metas) < len(answers):
            said = complaint(body)
            return [failed(0, said) if said else broken(0, "the answer holds no meta_info")]
        events: list[Event] = [Started(seq=0, upstream_id=metas[0].id or "")]
        finishes: dict[int, Finish] = {}
        for position, (answer, meta) in enumerate(zip(answers, metas, strict=True)):
            index = position if answer.index is None else answer.index
            if answer.text:
                token = Token(
                    seq=len(events),
                    text=answer.text,
                    count=meta.completion_tokens,
                    index=index,
                    sent_ns=answer.sent_ns,
                )
                events.append(token)
            finishes[index] = _finish(meta.finish_reason or "")
        events.append(_usage(len(events), metas, metas[0].cache_miss_count))
        events.append(_ending(len(events), finishes))
        return events
