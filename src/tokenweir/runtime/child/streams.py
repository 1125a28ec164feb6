"""The streams of one loaded model on the device: their choices, credits and events, step by step."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import count
from typing import Final

from tokenweir.core.events import Cancelled, Completed, Event, Failed, Started, Token, Usage
from tokenweir.core.requests import Json
from tokenweir.ports.inference import (
    Broken,
    Decoder,
    DecodeSequence,
    Drawn,
    LoadedModel,
    Prefilled,
    PrefixCaching,
    StepEvent,
    StepLimits,
)
from tokenweir.runtime.bridge.faults import CLASSES
from tokenweir.runtime.bridge.messages import Stepped, StreamEvents, Tune
from tokenweir.runtime.child.answer import Choice, FinishReason, TokenTexts
from tokenweir.runtime.child.commands import StartStream
from tokenweir.runtime.child.requests import Request

DEFAULT_LIMITS: Final = StepLimits(batch=64, prefill_tokens=512)
"""What a step may do when nothing else is said."""


class Stream:
    """One request's way out. Events that there is no credit for wait in ``backlog``, in order."""

    __slots__ = (
        "accepted",
        "asked_ns",
        "backlog",
        "begun",
        "cached_tokens",
        "choices",
        "credits",
        "drafted",
        "first_ns",
        "inserted_ns",
        "next_seq",
        "out",
        "request",
        "running",
    )

    def __init__(self, start: StartStream, choices: list[Choice]) -> None:
        self.request: Request = start.request
        self.choices = choices
        self.credits = start.credits
        self.next_seq = start.first_seq
        self.asked_ns = start.asked_ns
        self.inserted_ns = 0
        self.first_ns = 0
        self.begun = False
        self.cached_tokens: int | None = None
        self.drafted = 0
        self.accepted = 0
        self.running: dict[int, Choice] = {}
        self.backlog: list[Event] = []
        self.out: list[Event] = []

    @property
    def number(self) -> int:
        """The server's number for it."""
        return self.request.stream

    @property
    def starved(self) -> bool:
        """Whether nothing more may be sent."""
        return self.credits <= 0

    def push(self, event: Event) -> None:
        """Send ``event``, whose ``seq`` is ``next_seq``, now or when there is credit."""
        self.next_seq += 1
        if self.backlog or (self.credits <= 0 and type(event) is Token):
            self.backlog.append(event)
            return
        self.out.append(event)
        if type(event) is Token:
            self.credits -= event.count or 0

    def grant(self, tokens: int) -> None:
        """Take credit, and send what it covers of the backlog."""
        self.credits += tokens
        sent = 0
        for event in self.backlog:
            if type(event) is Token:
                if self.credits <= 0:
                    break
                self.credits -= event.count or 0
            self.out.append(event)
            sent += 1
        del self.backlog[:sent]

    def drop_backlog(self) -> None:
        """Forget what was not sent; the next event takes the first one's place."""
        self.next_seq -= len(self.backlog)
        self.backlog.clear()

    def usage(self, now_ns: int) -> Usage:
        """Return what the request has used."""
        request = self.request
        drafting = request.choices[0].use_draft
        timings = {"queue_time": self.inserted_ns - self.asked_ns, "e2el": now_ns - self.asked_ns}
        if self.first_ns:
            timings["ttft"] = self.first_ns - self.asked_ns
        return Usage(
            seq=self.next_seq,
            input_tokens=len(request.tokens),
            output_tokens=sum(choice.output_tokens for choice in self.choices),
            cached_tokens=self.cached_tokens,
            reasoning_tokens=sum(choice.reasoning_tokens for choice in self.choices),
            drafted_tokens=self.drafted if drafting else None,
            accepted_tokens=self.accepted if drafting else None,
            timings_ns=timings,
        )


class ModelStreams:
    """All streams of one model. Used by the device thread alone. ``numbers`` are those of its sequences."""

    def __init__(
        self,
        name: str,
        model: LoadedModel,
        decoder: Decoder,
        numbers: Iterator[int] | None = None,
        limits: StepLimits = DEFAULT_LIMITS,
    ) -> None:
        self.name = name
        self.decoder = decoder
        self._model = model
        self._numbers = count(1) if numbers is None else numbers
        self._text_of = TokenTexts(model.format)
        self._prefixes = decoder if isinstance(decoder, PrefixCaching) else None
        self._streams: dict[int, Stream] = {}
        self._owner: dict[int, Stream] = {}
        self._unread: set[int] = set()
        self._held: set[int] = set()
        self._limits = limits
        self._stale = False
        self._inserting: list[DecodeSequence] = []
        self._touched: dict[int, Stream] = {}
        self._ended: list[int] = []

    @property
    def ready(self) -> bool:
        """Whether a step could advance anything."""
        return len(self._owner) > len(self._held)

    def streams(self) -> list[int]:
        """Return the numbers of the streams that have not ended."""
        return list(self._streams)

    def take_ended(self) -> list[int]:
        """Return the streams that have sent their last event since the last call."""
        ended, self._ended = self._ended, []
        return ended

    # -- what the server asks -------------------------------------------------------------------------------------

    def start(self, start: StartStream) -> None:
        """Take a stream on; :meth:`insert` hands it to the decoder."""
        request = start.request
        form, tool_calls = self._model.format, self._model.tool_calls
        choices = [
            Choice(index, request.rules, form, tool_calls, self._text_of)
            for index in range(len(request.choices))
        ]
        stream = Stream(start, choices)
        self._streams[stream.number] = stream
        for choice, decoding in zip(choices, request.choices, strict=True):
            sequence = next(self._numbers)
            stream.running[sequence] = choice
            self._owner[sequence] = stream
            self._unread.add(sequence)
            self._inserting.append(
                DecodeSequence(
                    sequence=sequence,
                    tokens=request.tokens,
                    decoding=decoding,
                    images=request.images,
                    lane=request.lane,
                    use_prefix_cache=request.use_prefix_cache,
                )
            )
        self._balance(stream)

    def insert(self, now_ns: int) -> None:
        """Hand new streams to the decoder, all at once."""
        if not self._inserting:
            return
        fresh, self._inserting = self._inserting, []
        for task in fresh:
            stream = self._owner.get(task.sequence)
            if stream is not None:
                stream.inserted_ns = now_ns
        self.decoder.insert([task for task in fresh if task.sequence in self._owner])

    def credit(self, number: int, tokens: int) -> None:
        """Let a stream send more."""
        stream = self._streams.get(number)
        if stream is None:
            return
        stream.grant(tokens)
        if stream.out:
            self._touched[number] = stream
        if not stream.running and not stream.backlog:
            self._forget(stream)
        else:
            self._balance(stream)

    def cancel(self, number: int) -> None:
        """Forget a stream."""
        stream = self._streams.get(number)
        if stream is not None:
            self._end_with(stream, lambda seq: Cancelled(seq=seq))

    def fail(self, number: int, *, code: str, message: str, retryable: bool) -> None:
        """End a stream with an error, which has the status of its class."""
        stream = self._streams.get(number)
        kind = CLASSES.get(code)
        status = kind.http_status if kind is not None else None
        if stream is not None:
            self._end_with(
                stream,
                lambda seq: Failed(seq=seq, kind=code, message=message, status=status, retryable=retryable),
            )

    def tune(self, tune: Tune) -> None:
        """Change what a step may do."""
        self._limits = StepLimits(
            batch=max(1, tune.batch), prefill_tokens=max(1, tune.prefill_tokens), held=self._limits.held
        )

    # -- steps ----------------------------------------------------------------------------------------------------

    def limits(self) -> StepLimits:
        """Return what the next step may do."""
        if self._stale:
            self._stale = False
            self._limits = StepLimits(
                batch=self._limits.batch,
                prefill_tokens=self._limits.prefill_tokens,
                held=frozenset(self._held),
            )
        return self._limits

    def stepped(self, events: Sequence[StepEvent], begun_ns: int, now_ns: int) -> Stepped:
        """Distribute what a step brought, and return the notification that holds it all."""
        decoded = prefilled = hits = drafted = accepted = 0
        stopped: list[int] = []
        owner = self._owner
        for event in events:
            stream = owner.get(event.sequence)
            if stream is None:
                continue
            if type(event) is Drawn:
                if not stream.first_ns:
                    stream.first_ns = now_ns
                if event.proposed or event.drafted:
                    drafted += event.proposed
                    accepted += event.drafted
                    stream.drafted += event.proposed
                    stream.accepted += event.drafted
                if event.token >= 0:
                    decoded += 1
                if self._draw(stream, event, now_ns):
                    stopped.append(event.sequence)
            elif type(event) is Prefilled:
                prefilled += event.prompt_tokens - event.cached_tokens
                hits += event.cached_tokens
                self._read(stream, event)
            elif type(event) is Broken:
                self.fail(stream.number, code=event.code, message=event.message, retryable=event.retryable)
        if stopped:
            self.decoder.remove(stopped)
        return self._notification(
            step_ns=now_ns - begun_ns,
            decoded=decoded,
            prefilled=prefilled,
            hits=hits,
            drafted=drafted,
            accepted=accepted,
        )

    def pending(self) -> Stepped | None:
        """Return a notification of what changed outside a step; ``None`` for nothing."""
        return self._notification() if self._touched else None

    def _notification(
        self,
        *,
        step_ns: int = 0,
        decoded: int = 0,
        prefilled: int = 0,
        hits: int = 0,
        drafted: int = 0,
        accepted: int = 0,
    ) -> Stepped:
        told: list[StreamEvents] = []
        for stream in self._touched.values():
            told.append(StreamEvents(stream=stream.number, events=tuple(stream.out)))
            stream.out = []
            if stream.credits <= 0:
                self._balance(stream)
        self._touched.clear()
        waiting = len(self._unread)
        return Stepped(
            model=self.name,
            streams=tuple(told),
            step_ns=step_ns,
            decoded=decoded,
            prefilled=prefilled,
            running=len(self._owner) - waiting,
            waiting=waiting,
            drafted=drafted,
            accepted=accepted,
            prefix_hit_tokens=hits,
            prefix_bytes=0 if self._prefixes is None else self._prefixes.prefix_bytes,
        )

    def _read(self, stream: Stream, event: Prefilled) -> None:
        self._unread.discard(event.sequence)
        if stream.cached_tokens is None:
            stream.cached_tokens = event.cached_tokens
        self._begin(stream)

    def _begin(self, stream: Stream) -> None:
        if not stream.begun:
            stream.begun = True
            self._touched[stream.number] = stream
            stream.push(Started(seq=stream.next_seq, model=self.name))

    def _draw(self, stream: Stream, event: Drawn, now_ns: int) -> bool:
        """Take a token; return whether the decoder still has to be told that its sequence ended."""
        choice = stream.running[event.sequence]
        if not stream.begun:
            self._unread.discard(event.sequence)
            self._begin(stream)
        if event.token >= 0:
            token = choice.take(event, stream.next_seq)
            if token is not None:
                self._touched[stream.number] = stream
                stream.push(token)
        reason: FinishReason | None = choice.finish or event.finish or None
        if reason is None:
            return False
        self._finish(stream, event.sequence, choice, reason, now_ns)
        return not event.finish

    def _finish(
        self, stream: Stream, sequence: int, choice: Choice, reason: FinishReason, now_ns: int
    ) -> None:
        token = choice.end(reason, stream.next_seq)
        self._touched[stream.number] = stream
        if token is not None:
            stream.push(token)
        self._disown(stream, sequence)
        if stream.running:
            return
        stream.push(stream.usage(now_ns))
        reasons: list[Json] = [one.finish or "stop" for one in stream.choices]
        stream.push(
            Completed(
                seq=stream.next_seq,
                finish_reason=str(reasons[0]),
                data={"finish_reasons": reasons} if len(reasons) > 1 else {},
            )
        )
        if not stream.backlog:
            self._forget(stream)

    def _end_with(self, stream: Stream, last: Callable[[int], Event]) -> None:
        sequences = list(stream.running)
        for sequence in sequences:
            self._disown(stream, sequence)
        if sequences:
            self.decoder.remove(sequences)
        stream.drop_backlog()
        self._touched[stream.number] = stream
        stream.push(last(stream.next_seq))
        self._forget(stream)

    def _disown(self, stream: Stream, sequence: int) -> None:
        del stream.running[sequence]
        del self._owner[sequence]
        self._unread.discard(sequence)
        if sequence in self._held:
            self._held.discard(sequence)
            self._stale = True

    def _forget(self, stream: Stream) -> None:
        del self._streams[stream.number]
        self._ended.append(stream.number)

    def _balance(self, stream: Stream) -> None:
        """Hold a stream's sequences while it has no credit, and let them go on when it has."""
        sequences = stream.running.keys()
        if stream.starved:
            if not sequences <= self._held:
                self._held |= sequences
                self._stale = True
        elif sequences & self._held:
            self._held -= sequences
            self._stale = True
