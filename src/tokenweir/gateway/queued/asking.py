"""One attempt at a request: an endpoint is asked, its answer becomes events."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractContextManager, aclosing
from typing import Final

import msgspec

from tokenweir.backends.failures import http_error
from tokenweir.backends.openai import decoder
from tokenweir.core.clock import Clock
from tokenweir.core.errors import EndpointError, OverloadedError, ParameterError, WeirError
from tokenweir.core.events import Cancelled, Completed, Event, Failed, Started, Token, Usage
from tokenweir.gateway.brownout.signals import FirstTokens
from tokenweir.gateway.direct.body import for_upstream
from tokenweir.gateway.endpoints.pool import Endpoint, Pool, Rpc
from tokenweir.gateway.endpoints.upstream import Answer
from tokenweir.gateway.measures import Measures
from tokenweir.gateway.queued.joining import whole
from tokenweir.gateway.queued.kept import Kept, request_id
from tokenweir.ports.backend import HttpResponse
from tokenweir.ports.requests import RequestRecord
from tokenweir.telemetry import genai
from tokenweir.telemetry.spans import UNTRACED, Span, Tracer

_OK: Final = 200
_SERVER_ERROR: Final = 500
_TOO_MANY: Final = 429
_BAD_GATEWAY: Final = 502

Write = Callable[[Sequence[Event]], Awaitable[None]]
"""Appends events to the request's log; returns when there may be more. All are there before its end is."""


class Attempt(msgspec.Struct, kw_only=True):
    """What is known of an attempt while it is made. ``seq`` is that of its next event."""

    record: RequestRecord
    kept: Kept
    seq: int
    endpoints: int = 3
    asked_ns: int = 0
    tokens: bool = False
    """Whether a token of this attempt is in the log, or about to be."""

    def numbered(self, events: Sequence[Event]) -> list[Event]:
        """Return events with their seq in the request's log."""
        first = self.seq
        self.seq += len(events)
        return [msgspec.structs.replace(event, seq=first + n) for n, event in enumerate(events)]


class Asker:
    """Asks the endpoints of the pool."""

    def __init__(self, pool: Pool, clock: Clock) -> None:
        self._pool = pool
        self._clock = clock
        self.first_tokens: FirstTokens | None = None
        """Where waits for a first token are noted, if anywhere."""
        self.measures = Measures()
        self.tracer: Tracer | None = None

    async def ask(self, attempt: Attempt, write: Write) -> list[Event]:
        """Return the last events of an attempt, its end among them; those before have been written.

        Another endpoint is asked at once where one fails before a token came. The end is a ``Failed`` whose
        ``retryable`` says whether the same may succeed later.
        """
        tried: list[Endpoint] = []
        failure: EndpointError | None = None
        model = attempt.record.model
        for _ in range(attempt.endpoints):
            try:
                endpoint = self._pool.choose(
                    model, self._clock.monotonic_ns(), pool=attempt.kept.pool, tried=tried, over_rpc=True
                )
            except WeirError as error:
                return attempt.numbered([failed(failure or error)])
            hurt = True
            try:
                rest = await self._watched(attempt, endpoint, write)
                end = rest[-1]
                hurt = isinstance(end, Failed) and end.retryable
                if not hurt or attempt.tokens:
                    return rest
                attempt.seq -= len(rest)
                failure = _SaidError(end)
            except EndpointError as error:
                hurt = _servers_fault(error)
                if not may_retry(error) or attempt.tokens:
                    return attempt.numbered([failed(error)])
                failure = error
            except (asyncio.CancelledError, TimeoutError):
                # The caller or the deadline stopped it: that is not the server's failure.
                hurt = False
                raise
            finally:
                self._pool.done(endpoint, failed=hurt, now_ns=self._clock.monotonic_ns())
            tried.append(endpoint)
        return attempt.numbered([failed(failure or OverloadedError(f"no endpoint of {model!r} answered"))])

    async def _answer(self, attempt: Attempt, endpoint: Endpoint, write: Write) -> list[Event]:
        kept = attempt.kept
        streamed = kept.streamed(attempt.record)
        attempt.asked_ns = self.measures.now()
        with self._traced(attempt, endpoint) as span:
            if endpoint.rpc is not None:
                rest = await self._over_rpc(attempt, endpoint, endpoint.rpc, write, span)
                self._count(attempt, rest, span)
                return rest
            head, body = _request(endpoint, kept, span)
            async with await endpoint.client.send(head, body) as answer:
                span.set(genai.STATUS, answer.status)
                if answer.status != _OK:
                    raise http_error(await _whole(answer))
                if not streamed:
                    rest = await self._whole(attempt, endpoint, answer)
                else:
                    rest = await self._stream(attempt, endpoint, answer, write)
                self._count(attempt, rest, span)
                return rest

    def _traced(self, attempt: Attempt, endpoint: Endpoint) -> AbstractContextManager[Span]:
        if self.tracer is None:
            return UNTRACED
        kept, origin, model = attempt.kept, endpoint.client.origin, attempt.record.model
        operation = genai.OPERATIONS.get(kept.path, "")
        return self.tracer.client(
            f"{operation} {model}",
            {
                genai.OPERATION: operation,
                genai.PROVIDER: endpoint.facts.kind,
                genai.REQUEST_MODEL: model,
                genai.ENDPOINT: endpoint.facts.name,
                genai.SERVER_ADDRESS: origin.host,
                genai.SERVER_PORT: origin.port,
                genai.REQUEST_ID: request_id(attempt.record.request),
                genai.ATTEMPT: attempt.record.attempt,
            },
            trace=kept.trace,
        )

    def _count(self, attempt: Attempt, rest: Sequence[Event], span: Span) -> None:
        """Count what an answer took, by its last events."""
        for event in rest:
            if isinstance(event, Usage):
                self.measures.answered(attempt.record.model, event)
                span.set(genai.INPUT_TOKENS, event.input_tokens or 0)
                span.set(genai.OUTPUT_TOKENS, event.output_tokens or 0)
            elif isinstance(event, Failed):
                span.failed(event.kind)

    async def _watched(self, attempt: Attempt, endpoint: Endpoint, write: Write) -> list[Event]:
        """Answer, and note how long the first token of a stream takes."""
        watch = self.first_tokens
        if watch is None or not attempt.kept.streamed(attempt.record):
            return await self._answer(attempt, endpoint, write)
        ticket = watch.asked()

        async def noted(events: Sequence[Event]) -> None:
            if attempt.tokens:
                watch.came(ticket)
            await write(events)

        try:
            rest = await self._answer(attempt, endpoint, noted)
            if any(isinstance(event, Token) for event in rest):
                watch.came(ticket)
            return rest
        finally:
            watch.left(ticket)

    async def _over_rpc(
        self, attempt: Attempt, endpoint: Endpoint, rpc: Rpc, write: Write, span: Span
    ) -> list[Event]:
        kept, streamed = attempt.kept, attempt.kept.streamed(attempt.record)
        came: list[Event] = []
        times = self.measures.stream(attempt.record.model, "queued", attempt.asked_ns)
        answer = rpc.answer(
            kept.kind, bytes(kept.body), model=endpoint.facts.upstream_model, headers=span.headers
        )
        try:
            async with aclosing(answer) as batches:
                async for batch in batches:
                    came.extend(batch)
                    if not streamed or isinstance(came[-1], Completed | Failed | Cancelled):
                        continue
                    events, came = self._events(attempt, endpoint, came), []
                    tokens = sum(event.count or 1 for event in events if isinstance(event, Token))
                    if tokens:
                        times.tokens(tokens)
                    attempt.tokens = attempt.tokens or bool(tokens)
                    await write(events)
        except ParameterError as error:
            return attempt.numbered([failed(error)])
        return self._events(attempt, endpoint, came if streamed else whole(came))

    async def _whole(self, attempt: Attempt, endpoint: Endpoint, answer: Answer) -> list[Event]:
        decoding = decoder(attempt.kept.generate(streamed=False))
        decoding.feed(await answer.whole())
        return self._events(attempt, endpoint, [event for _, event in decoding.end()])

    async def _stream(
        self, attempt: Attempt, endpoint: Endpoint, answer: Answer, write: Write
    ) -> list[Event]:
        decoding = decoder(attempt.kept.generate(streamed=True))
        times = self.measures.stream(attempt.record.model, "queued", attempt.asked_ns)
        while True:
            data = await answer.take()
            found = decoding.feed(data) if data else decoding.end()
            if not found:
                continue
            events = self._events(attempt, endpoint, [event for _, event in found])
            tokens = sum(event.count or 1 for event in events if isinstance(event, Token))
            if tokens:
                times.tokens(tokens)
            if isinstance(events[-1], Completed | Failed | Cancelled):
                return events
            attempt.tokens = attempt.tokens or bool(tokens)
            # What comes meanwhile gathers in the connection, and goes with the next append.
            await write(events)

    def _events(self, attempt: Attempt, endpoint: Endpoint, events: list[Event]) -> list[Event]:
        numbered = attempt.numbered(events)
        for position, event in enumerate(numbered):
            if isinstance(event, Started):
                numbered[position] = msgspec.structs.replace(
                    event, attempt=attempt.record.attempt, endpoint=endpoint.facts.name
                )
        return numbered


class _SaidError(EndpointError):
    """A failure that an engine told of inside an answer."""

    def __init__(self, end: Event) -> None:
        super().__init__(end.message if isinstance(end, Failed) else "", status=getattr(end, "status", None))
        self.end = end


def failed(error: WeirError) -> Failed:
    """Return the event that an error means; its seq is yet to be given."""
    if isinstance(error, _SaidError) and isinstance(error.end, Failed):
        return error.end
    status = error.status if isinstance(error, EndpointError) else None
    retry_after_ns = error.retry_after_ns if isinstance(error, OverloadedError) else None
    return Failed(
        seq=0,
        kind=error.code,
        message=str(error),
        status=status or error.http_status,
        retryable=may_retry(error),
        retry_after_ns=retry_after_ns,
    )


def may_retry(error: WeirError) -> bool:
    """Whether the same request may succeed later."""
    status = error.status if isinstance(error, EndpointError) else None
    return error.retryable or (status is not None and status >= _SERVER_ERROR)


def _servers_fault(error: EndpointError) -> bool:
    """Whether the server has failed: not the caller, nor the room that there is for connections to it."""
    if error.status is None:
        return not isinstance(error, OverloadedError)
    return error.status >= _SERVER_ERROR or error.status == _TOO_MANY


def _request(endpoint: Endpoint, kept: Kept, span: Span) -> tuple[bytes, bytes]:
    facts, origin = endpoint.facts, endpoint.client.origin
    body = for_upstream(bytes(kept.body), kept.read(), model=facts.upstream_model)
    lines = [
        b"POST %s%s HTTP/1.1" % (origin.base.encode(), kept.path.encode()),
        b"host: %s" % origin.authority.encode(),
        b"content-type: application/json",
        b"content-length: %d" % len(body),
        b"accept-encoding: identity",
    ]
    if facts.authorization:
        lines.append(b"authorization: " + facts.authorization.encode())
    return b"\r\n".join(lines) + b"\r\n" + span.headers + b"\r\n", body


async def _whole(answer: Answer) -> HttpResponse:
    headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in answer.headers}
    return HttpResponse(status=answer.status, headers=headers, body=await answer.whole())
