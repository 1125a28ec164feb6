"""Ends of requests: one row of the ledger, the whole log filed with the request, its events forgotten."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import msgspec

from tokenweir.core.clock import Clock
from tokenweir.core.events import Cancelled, Completed, Event, Started, Token, Usage
from tokenweir.gateway.batching import Batcher
from tokenweir.gateway.metering.counting import Said, counted_prompt
from tokenweir.gateway.metering.estimate import UsualOutput, prompt_tokens
from tokenweir.gateway.metering.prices import PriceTable
from tokenweir.gateway.metering.settling import Settler
from tokenweir.gateway.metering.usage import KEPT_ENDPOINT, TokenCount
from tokenweir.gateway.queued.kept import Kept, file_log, last_answer
from tokenweir.gateway.queued.sealing import Sealer
from tokenweir.ports.eventlog import EventLog
from tokenweir.ports.ledger import Charge, Ending, LedgerRow, UsageSource
from tokenweir.ports.requests import RequestRecord
from tokenweir.ports.tokenizer import TokenCounter

_FORGETS: Final = 512


class Ended(msgspec.Struct, frozen=True, kw_only=True):
    """A request with all its events, the last of which is its end.

    ``log`` is what is filed of them, where somebody has made it already.
    """

    record: RequestRecord
    kept: Kept
    events: tuple[Event, ...]
    log: bytes = b""


class Metered(msgspec.Struct, frozen=True, kw_only=True):
    """What a request used, and who says so."""

    count: TokenCount
    source: UsageSource
    endpoint: str


def metered(ended: Ended) -> Metered:
    """Return what the last answer used: the server's count, else the tokens that came and an estimate of the prompt."""
    events = last_answer(ended.events)
    started = next((event for event in events if isinstance(event, Started)), None)
    endpoint = started.endpoint if started is not None else ""
    usage = next((event for event in reversed(events) if isinstance(event, Usage)), None)
    if usage is not None and usage.source != "estimate":
        count = TokenCount(
            input_tokens=usage.input_tokens or 0,
            output_tokens=usage.output_tokens or 0,
            cached_tokens=usage.cached_tokens or 0,
        )
        return Metered(count=count, source=usage.source, endpoint=endpoint)
    if started is None:
        # No server has begun to answer.
        return Metered(count=TokenCount(input_tokens=0, output_tokens=0), source="server", endpoint="")
    output = sum((event.count or 1) for event in events if isinstance(event, Token))
    asked = prompt_tokens(ended.kept.read().prompt_bytes)
    return Metered(
        count=TokenCount(input_tokens=asked, output_tokens=output), source="estimated", endpoint=endpoint
    )


class Finisher:
    """Settles and files ended requests, many in one call. :meth:`run` works until cancelled.

    Doing the same end again changes nothing.
    """

    def __init__(
        self,
        settler: Settler,
        events: EventLog,
        *,
        usual: UsualOutput,
        prices: PriceTable,
        sealer: Sealer,
        clock: Clock,
        tokenizers: Mapping[str, TokenCounter] | None = None,
    ) -> None:
        self._tokenizers: Mapping[str, TokenCounter] = tokenizers or {}
        self._settler = settler
        self._events = events
        self._usual = usual
        self._prices = prices
        self._sealer = sealer
        self._clock = clock
        self._forgetting: Batcher[tuple[bytes, int], None] = Batcher(
            self._forget, name="event log", most=_FORGETS, waiting=262_144
        )

    async def run(self) -> None:
        """Forget what is filed."""
        await self._forgetting.run()

    async def finish(self, ended: Ended) -> None:
        """Settle, file and forget one request. Waits while a store is away."""
        record = ended.record
        found = metered(ended)
        if self._tokenizers:
            found = await self._counted(ended, found)
        await self._settler.settle(self._charge(ended, found))
        await self._forgetting.submit((record.request, record.lane))

    async def finish_all(self, ended: Sequence[Ended]) -> None:
        """Settle, file and forget a batch, with one call for each."""
        found = [metered(each) for each in ended]
        if self._tokenizers:
            found = [await self._counted(*each) for each in zip(ended, found, strict=True)]
        await self._settler.settle_all([self._charge(*each) for each in zip(ended, found, strict=True)])
        await self._events.forget([(each.record.request, each.record.lane) for each in ended])

    async def forget(self, record: RequestRecord) -> None:
        """Drop the events of a request whose log is filed."""
        await self._forgetting.submit((record.request, record.lane))

    async def _forget(self, batch: Sequence[tuple[bytes, int]]) -> Sequence[None]:
        await self._events.forget(batch)
        return [None] * len(batch)

    async def _counted(self, ended: Ended, found: Metered) -> Metered:
        """Return what a request used: what is estimated is counted with the model's tokenizer, if that is known."""
        if found.source != "estimated":
            return found
        tokenizer = self._tokenizers.get(ended.record.model)
        if tokenizer is None:
            return found
        prompt = await counted_prompt(tokenizer, ended.kept.read())
        said = Said()
        said.take(last_answer(ended.events))
        output = await said.counted(tokenizer)
        if prompt is None or output is None:
            return found
        count = TokenCount(input_tokens=prompt, output_tokens=output)
        return Metered(count=count, source="tokenizer", endpoint=found.endpoint)

    def _charge(self, ended: Ended, found: Metered) -> Charge:
        record, count = ended.record, found.count
        ending = _ending(ended.events[-1])
        if ending == "completed" and found.source != "estimated" and found.endpoint != KEPT_ENDPOINT:
            self._usual.note(record.key, record.model, count.output_tokens)
        row = LedgerRow(
            request=record.request,
            key=record.key,
            user=record.user,
            team=record.team,
            model=record.model,
            endpoint=found.endpoint,
            at=record.at,
            settled_at=self._clock.wall_ns(),
            input_tokens=count.input_tokens,
            output_tokens=count.output_tokens,
            cached_tokens=count.cached_tokens,
            cost=self._prices.cost(
                record.model,
                input_tokens=count.input_tokens,
                output_tokens=count.output_tokens,
                cached_tokens=count.cached_tokens,
            ),
            currency=self._prices.currency,
            source=found.source,
            ending=ending,
        )
        log = ended.log or self._sealer.seal(record.request, file_log(ended.events))
        return Charge(row=row, log=log, last_seq=ended.events[-1].seq)


def _ending(event: Event) -> Ending:
    match event:
        case Completed():
            return "completed"
        case Cancelled():
            return "cancelled"
        case _:
            return "failed"
