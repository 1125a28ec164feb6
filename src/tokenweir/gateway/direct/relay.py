"""The direct path: estimate, reserve, ask an endpoint, relay its bytes as they come, settle whatever happens."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Final, Protocol

import msgspec

from tokenweir.core.clock import Clock
from tokenweir.core.errors import (
    ForbiddenError,
    OverloadedError,
    QuotaExceededError,
    UnreachableError,
)
from tokenweir.core.quota import Amounts
from tokenweir.gateway.brownout.signals import FirstTokens
from tokenweir.gateway.direct.body import RequestBody, for_upstream, read
from tokenweir.gateway.endpoints.pool import Endpoint, Pool
from tokenweir.gateway.endpoints.upstream import Answer
from tokenweir.gateway.measures import Measures, Times
from tokenweir.gateway.metering.counting import Tally, counted_prompt
from tokenweir.gateway.metering.estimate import UsualOutput, prompt_tokens
from tokenweir.gateway.metering.prices import PriceTable
from tokenweir.gateway.metering.reserving import Reservations
from tokenweir.gateway.metering.settling import Settler
from tokenweir.gateway.metering.usage import KEPT_ENDPOINT, StreamMeter, TokenCount, usage_of
from tokenweir.ports.access import Caller
from tokenweir.ports.ledger import Charge, Ending, LedgerRow, UsageSource
from tokenweir.ports.quota import Denied, Granted, Headroom, Reserve
from tokenweir.telemetry import genai
from tokenweir.telemetry.spans import UNTRACED, Span, Tracer

_OK: Final = 200
_SERVER_ERROR: Final = 500
_TRY_AGAIN: Final = frozenset({429, 502, 503, 504})
_PASSED: Final = (b"content-type", b"retry-after", b"openai-processing-ms")
"""Headers of the server that the caller gets."""

Headers = Sequence[tuple[bytes, bytes]]


class Sink(Protocol):
    """Where an answer goes: one HTTP request's other end. Each call waits while the caller does not read."""

    async def begin(self, status: int, headers: Headers) -> None:
        """Send the head."""
        ...

    async def whole(self, status: int, headers: Headers, body: bytes) -> None:
        """Send all of an answer; its length is told."""
        ...

    async def write(self, piece: bytes) -> None:
        """Send a piece of the body."""
        ...

    async def end(self, piece: bytes = b"") -> None:
        """Send the last piece."""
        ...


class RelayPolicy(msgspec.Struct, frozen=True, kw_only=True):
    """``attempts`` at endpoints before the first byte, ``backoff_ns`` doubling and jittered between them.

    ``lease_ns`` is how long a reservation stands without being renewed.
    """

    attempts: int = 3
    backoff_ns: int = 50_000_000
    lease_ns: int = 900_000_000_000


class Exchange(msgspec.Struct, kw_only=True):
    """What is known of one request while it is relayed."""

    request: bytes
    caller: Caller
    body: RequestBody
    raw: bytes
    path: bytes
    granted: Granted
    endpoint: str = ""
    count: TokenCount | None = None
    source: UsageSource = "server"
    tally: Tally | None = None
    """Counts it where its server does not, if the model's tokenizer is known."""
    chunks: int = 0
    held: bool = False
    settled: bool = False
    answered: bool = False
    relayed: bool = False
    ending: Ending = "failed"
    times: Times | None = None
    ticket: int = 0
    """Of the wait for its first token, where those are watched."""
    kept: bool = False
    """Whether the answer was kept from before."""

    @property
    def asked(self) -> bool:
        """Whether a server has taken it on, as far as anybody knows."""
        return self.answered or self.ending == "cancelled"

    def note(self, found: TokenCount | None) -> None:
        """Note what the tokenizer has counted, if it could."""
        if found is not None:
            self.count, self.source = found, "tokenizer"


class Direct:
    """Relays requests of OpenAI's routes to the endpoints of their model."""

    def __init__(
        self,
        pool: Pool,
        *,
        reserving: Reservations,
        settler: Settler,
        usual: UsualOutput,
        prices: PriceTable,
        clock: Clock,
        policy: RelayPolicy | None = None,
    ) -> None:
        self.pool = pool
        self._reserving = reserving
        self.settler = settler
        self._usual = usual
        self._prices = prices
        self._clock = clock
        self._policy = policy or RelayPolicy()
        self.first_tokens: FirstTokens | None = None
        """Where waits for a first token are noted, if anywhere."""
        self.measures = Measures()
        self.tracer: Tracer | None = None

    async def relay(self, caller: Caller, request: bytes, path: bytes, raw: bytes, sink: Sink) -> Exchange:
        """Answer one request into ``sink`` and return what is known of it.

        Cancelling it cancels the request at the server; what was used is settled either way.

        Raises:
            ParameterError: the body cannot be used.
            ForbiddenError: the key may not ask this model.
            NotFoundError: no endpoint serves it.
            QuotaExceededError: a limit is reached; nothing was asked of any server.
            EndpointError: no endpoint answered.
        """
        body = self._admitted(caller, raw)
        tokenizer = self.pool.tokenizers.get(body.model)
        prompt = None if tokenizer is None else await counted_prompt(tokenizer, body)
        wanted = self.wanted(caller, request, body, prompt)
        reserved, held = await self._reserving.reserve(wanted)
        if isinstance(reserved, Denied):
            raise exceeded(reserved, wanted, self._clock.wall_ns())
        if reserved.headroom:
            self.measures.left(reserved.headroom)
        exchange = Exchange(
            request=request,
            caller=caller,
            body=body,
            raw=raw,
            path=path,
            granted=reserved,
            held=held,
            tally=None if tokenizer is None or prompt is None else Tally(tokenizer, prompt),
        )
        if body.stream:
            exchange.times = self.measures.stream(body.model, "direct", self.measures.now())
        watch = self.first_tokens if body.stream else None
        if watch is not None:
            exchange.ticket = watch.asked()
        try:
            await self._ask(exchange, sink)
        except asyncio.CancelledError:
            exchange.ending = "cancelled"
            raise
        finally:
            if watch is not None:
                watch.left(exchange.ticket)
            # The caller may have gone, and this task with it: what was used is settled all the same.
            self._reserving.done(request)
            if not exchange.settled:
                self._settle(exchange)
        return exchange

    def _settle(self, exchange: Exchange) -> None:
        """Have a request settled, once what it took is counted where that has to be."""
        tally = exchange.tally
        if tally is not None and exchange.count is None and exchange.asked:
            found = tally.count()
            if isinstance(found, asyncio.Future):
                self.settler.post_after(found, lambda: self._charge_late(exchange, found.result()))
                return
            exchange.note(found)
        self.settler.post(self._charge(exchange))

    def _charge_late(self, exchange: Exchange, found: TokenCount | None) -> Charge:
        """Return the charge of a request that was counted after its end."""
        exchange.note(found)
        if found is not None:
            self.measures.charged(exchange.body.model, found)
        return self._charge(exchange)

    def _admitted(self, caller: Caller, raw: bytes) -> RequestBody:
        body = read(raw)
        self.pool.need(body.model)
        if not caller.may_ask(body.model):
            raise ForbiddenError(
                f"this key may not ask the model {body.model!r}",
                mend=f"it may ask {', '.join(caller.models)}",
            )
        self.settler.need()
        return body

    async def account(self, caller: Caller, request: bytes, path: bytes, raw: bytes) -> Exchange:
        """Charge a request whose answer is there already: one request, no tokens. Raises as :meth:`relay`."""
        body = self._admitted(caller, raw)
        wanted = msgspec.structs.replace(self.wanted(caller, request, body), estimate=Amounts(tokens=0))
        reserved, _ = await self._reserving.reserve(wanted)
        if isinstance(reserved, Denied):
            raise exceeded(reserved, wanted, self._clock.wall_ns())
        if reserved.headroom:
            self.measures.left(reserved.headroom)
        exchange = Exchange(
            request=request,
            caller=caller,
            body=body,
            raw=raw,
            path=path,
            granted=reserved,
            endpoint=KEPT_ENDPOINT,
            count=TokenCount(input_tokens=0, output_tokens=0),
            kept=True,
            ending="completed",
        )
        self._reserving.done(request)
        await self.settler.settle(self._charge(exchange))
        return exchange

    def wanted(self, caller: Caller, request: bytes, body: RequestBody, prompt: int | None = None) -> Reserve:
        """Return the reservation of a request: its prompt, and the output that its key and model usually use.

        ``prompt`` is the tokens of the prompt, where they were counted.
        """
        if prompt is None:
            prompt = prompt_tokens(body.prompt_bytes)
        output = self._usual.tokens(caller.key, body.model, max_tokens=body.limit, n=body.n or 1)
        return Reserve(
            request=request,
            key=caller.key,
            user=caller.user,
            team=caller.team,
            model=body.model,
            limits=caller.limits_for(body.model),
            estimate=Amounts(
                tokens=prompt + output,
                cost=self._prices.cost(body.model, input_tokens=prompt, output_tokens=output),
            ),
            lease_ns=self._policy.lease_ns,
        )

    async def _ask(self, exchange: Exchange, sink: Sink) -> None:
        """Ask endpoints until one answers; never again once the caller has got a byte."""
        tried: list[Endpoint] = []
        model, pool = exchange.body.model, exchange.caller.pool
        for attempt in range(self._policy.attempts):
            last = attempt == self._policy.attempts - 1
            try:
                endpoint = self.pool.choose(model, self._clock.monotonic_ns(), pool=pool, tried=tried)
            except OverloadedError:
                if not tried:
                    raise
                # All others are out: the first is asked once more, after a pause.
                tried.clear()
                continue
            exchange.endpoint = endpoint.facts.name
            failed = True
            try:
                with self._traced(endpoint, exchange) as span:
                    async with await endpoint.client.send(*_request(endpoint, exchange, span)) as answer:
                        failed = answer.status >= _SERVER_ERROR
                        span.set(genai.STATUS, answer.status)
                        if answer.status in _TRY_AGAIN and not last:
                            span.failed(str(answer.status))
                            tried.append(endpoint)
                        else:
                            await self._pass_on(exchange, answer, sink)
                            _tell(span, exchange)
                            return
            except UnreachableError:
                if exchange.relayed or last:
                    raise
                tried.append(endpoint)
            except OverloadedError:
                # Too many wait for a connection to it: that is not the server's failure.
                failed = False
                if last:
                    raise
                tried.append(endpoint)
            except asyncio.CancelledError:
                # The caller left: that is not the server's failure.
                failed = False
                raise
            finally:
                self.pool.done(endpoint, failed=failed, now_ns=self._clock.monotonic_ns())
            await asyncio.sleep(self._policy.backoff_ns * 2**attempt * random.uniform(0.5, 1.5) / 1e9)
        raise OverloadedError(f"no endpoint of the model {model!r} answered", mend="try again shortly")

    def _traced(self, endpoint: Endpoint, exchange: Exchange) -> AbstractContextManager[Span]:
        if self.tracer is None:
            return UNTRACED
        operation = genai.OPERATIONS.get(exchange.path.decode(), "")
        origin = endpoint.client.origin
        return self.tracer.client(
            f"{operation} {exchange.body.model}",
            {
                genai.OPERATION: operation,
                genai.PROVIDER: endpoint.facts.kind,
                genai.REQUEST_MODEL: exchange.body.model,
                genai.ENDPOINT: endpoint.facts.name,
                genai.SERVER_ADDRESS: origin.host,
                genai.SERVER_PORT: origin.port,
            },
        )

    async def _pass_on(self, exchange: Exchange, answer: Answer, sink: Sink) -> None:
        exchange.answered = answer.status == _OK
        headers = [(name, value) for name, value in answer.headers if name in _PASSED]
        headers.extend(rate_headers(exchange.granted.headroom, self._clock.wall_ns()))
        if exchange.body.stream and answer.status == _OK:
            await self._pass_stream(exchange, answer, sink, headers)
            return
        whole = await answer.whole()
        if answer.status == _OK:
            exchange.count = usage_of(whole)
            exchange.ending = "completed"
            if exchange.count is None and exchange.tally is not None:
                exchange.note(await exchange.tally.whole(exchange.path, exchange.body, whole))
        if exchange.ending == "completed" and self._unkept(exchange):
            # Of what a crash cuts off, nothing was given that is not charged. The end is written in the
            # reservation's stead: one row, where waiting for the reservation would cost another.
            exchange.settled = True
            await self.settler.settle(self._charge(exchange))
        exchange.relayed = True
        await sink.whole(answer.status, headers, whole)

    async def _pass_stream(
        self, exchange: Exchange, answer: Answer, sink: Sink, headers: list[tuple[bytes, bytes]]
    ) -> None:
        meter, times, seen = StreamMeter(show_usage=exchange.body.shows_usage), exchange.times, 0
        headers += ((b"cache-control", b"no-cache"), (b"x-accel-buffering", b"no"))
        output = None
        if exchange.tally is not None:
            output = exchange.tally.open(exchange.path, exchange.body, streamed=True)
        try:
            piece = meter.feed(await answer.take())
            if self.first_tokens is not None:
                self.first_tokens.came(exchange.ticket)
            if self._unkept(exchange):
                await self._reserving.keep(exchange.request)
            exchange.relayed = True
            await sink.begin(_OK, headers)
            while True:
                if times is not None:
                    times.piece(piece, meter.chunks - seen)
                    seen = meter.chunks
                if output is not None:
                    output.keep(piece)
                if piece:
                    await sink.write(piece)
                data = await answer.take()
                if not data:
                    break
                piece = meter.feed(data)
            exchange.ending = "completed" if meter.done or meter.usage else "failed"
            await sink.end(meter.end())
        finally:
            exchange.count, exchange.chunks = meter.usage, meter.chunks

    def _unkept(self, exchange: Exchange) -> bool:
        """Whether a crash would forget what is set aside for the request."""
        return exchange.held and self._reserving.held(exchange.request)

    def _charge(self, exchange: Exchange) -> Charge:
        caller, body, count = exchange.caller, exchange.body, exchange.count
        source = exchange.source
        if count is None:
            # A server that did not say, or a stream that was left: what came is counted.
            asked = exchange.asked
            count = TokenCount(
                input_tokens=prompt_tokens(body.prompt_bytes) if asked else 0, output_tokens=exchange.chunks
            )
            source = "estimated" if asked else "server"
        if exchange.ending == "completed" and source != "estimated" and not exchange.kept:
            self._usual.note(caller.key, body.model, count.output_tokens)
        return Charge(
            row=LedgerRow(
                request=exchange.request,
                key=caller.key,
                user=caller.user,
                team=caller.team,
                model=body.model,
                endpoint=exchange.endpoint,
                at=exchange.granted.at,
                settled_at=self._clock.wall_ns(),
                input_tokens=count.input_tokens,
                output_tokens=count.output_tokens,
                cached_tokens=count.cached_tokens,
                cost=self._prices.cost(
                    body.model,
                    input_tokens=count.input_tokens,
                    output_tokens=count.output_tokens,
                    cached_tokens=count.cached_tokens,
                ),
                currency=self._prices.currency,
                source=source,
                ending=exchange.ending,
            )
        )


def _request(endpoint: Endpoint, exchange: Exchange, span: Span) -> tuple[bytes, bytes]:
    """Return the head and body to send to an endpoint."""
    body = for_upstream(exchange.raw, exchange.body, model=endpoint.facts.upstream_model)
    return b"%b%d\r\n%b\r\n" % (endpoint.head(exchange.path), len(body), span.headers), body


def _tell(span: Span, exchange: Exchange) -> None:
    """Add to a span what is known of an answer."""
    count, times = exchange.count, exchange.times
    if count is not None:
        span.set(genai.INPUT_TOKENS, count.input_tokens)
        span.set(genai.OUTPUT_TOKENS, count.output_tokens)
    if times is not None and times.first_ns:
        span.set(genai.FIRST_TOKEN, times.first_ns / 1e9)


class LimitReachedError(QuotaExceededError):
    """A request does not fit into a limit; ``rates`` are the headers that tell what all limits still give."""

    rates: tuple[tuple[bytes, bytes], ...] = ()


def exceeded(denied: Denied, wanted: Reserve, now: int) -> LimitReachedError:
    """Return the error of a request that does not fit into a limit."""
    short = denied.short
    limit = short.limit
    error = LimitReachedError(
        f"the limit of {limit.amount} {limit.unit} in a {limit.window} for this {limit.scope}"
        f"{f' and the model {limit.model!r}' if limit.model else ''} is reached: {short.remaining} are left and"
        f" the request may need {wanted.estimate.of(limit.unit)}",
        mend="wait, ask for less with max_tokens, or have the limit raised",
        retry_after_ns=max(0, short.resets_at - now),
    )
    error.rates = tuple(rate_headers(denied.headroom or (short,), now))
    return error


def rate_headers(headroom: Sequence[Headroom], now: int) -> list[tuple[bytes, bytes]]:
    """Return OpenAI's rate headers: for requests and for tokens, the limit of which the smallest part is left."""
    headers: list[tuple[bytes, bytes]] = []
    if not headroom:
        return headers
    for unit in ("requests", "tokens"):
        found = [room for room in headroom if room.limit.unit == unit]
        if not found:
            continue
        room = min(found, key=lambda room: room.remaining / max(1, room.limit.amount))
        seconds = max(0, room.resets_at - now) / 1e9
        name = unit.encode()
        headers += [
            (b"x-ratelimit-limit-" + name, b"%d" % room.limit.amount),
            (b"x-ratelimit-remaining-" + name, b"%d" % room.remaining),
            (b"x-ratelimit-reset-" + name, f"{seconds:.3f}s".encode()),
        ]
    return headers
