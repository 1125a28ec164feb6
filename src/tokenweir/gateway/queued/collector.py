"""The collector: ended requests are settled, filed, and told to whoever asked to be called."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Sequence
from contextlib import AbstractContextManager, aclosing
from typing import Final, Protocol, cast

import msgspec

from tokenweir.core.clock import Clock
from tokenweir.core.errors import DiskFullError, UnavailableError, WeirError
from tokenweir.core.events import Event
from tokenweir.core.requests import Json
from tokenweir.gateway.batching import Batcher
from tokenweir.gateway.pipeline.line import Line
from tokenweir.gateway.pipeline.processor import End
from tokenweir.gateway.queued.endings import Ended, Finisher
from tokenweir.gateway.queued.kept import ended, file_log, request_id
from tokenweir.gateway.queued.reading import Reading
from tokenweir.gateway.queued.sealing import Sealer
from tokenweir.gateway.queued.webhooks import WebhookError, Webhooks, errors_of_webhook
from tokenweir.ports.eventlog import EventLog
from tokenweir.ports.queue import Delivery, Job, JobQueue
from tokenweir.ports.requests import RequestLookup, RequestRecord, RequestStore
from tokenweir.telemetry import genai
from tokenweir.telemetry.logs import get_logger
from tokenweir.telemetry.spans import UNTRACED, Span, Tracer, Value

_LOG = get_logger("tokenweir.gateway.collector")
_AGAIN_S: Final = 0.5
_AGAIN_NS: Final = 1_000_000_000
_LOG_BYTES: Final = 16_384
"""The longest log that travels with its result; of a longer one the collector reads the events."""
_BATCH: Final = 256
_CALLS: Final = 2
_PREFETCH: Final = 1024
_VISIBLE_S: Final = 5.0
_VISIBLE: Final = 30
"""How often an end that is not in the log yet is looked for, and how long each time."""


class RequestsByMany(RequestStore, RequestLookup, Protocol):
    """Finds requests, one or many."""


class LocalEnds:
    """Takes ends in the worker's own process: settled, filed and told before the worker's job is acknowledged."""

    def __init__(self, finisher: Finisher, webhooks: Webhooks, reading: Reading, clock: Clock) -> None:
        self._finisher = finisher
        self._webhooks = webhooks
        self._reading = reading
        self._clock = clock
        self.line: Line | None = None
        """What ends pass before they are settled and filed, if anything."""
        self.tracer: Tracer | None = None
        self.lag_ns = 0
        """From the taking of the last settled end to its settlement."""
        self.waiting = 0
        """Ends that are not settled yet."""

    async def take(self, found: Ended, job: Job) -> Job | None:
        """Settle and file an end, then call its webhook; a job to call it again is returned."""
        self.waiting += 1
        taken_ns = self._clock.monotonic_ns()
        try:
            with self._traced(found):
                if self.line is not None:
                    found = await self.line.ended(End(ended=found, tell=self._told))
                await self._finisher.finish(found)
            self.lag_ns = self._clock.monotonic_ns() - taken_ns
        finally:
            self.waiting -= 1
        return await self._tell(found.record, job, found.events) if found.record.webhook else None

    def together(self, record: RequestRecord) -> bool:
        """Whether an end is settled and filed and nothing else, so that :meth:`take_all` may take it."""
        return self.line is None and not record.webhook

    async def take_all(self, found: Sequence[Ended]) -> None:
        """Settle and file many ends with one call for each."""
        self.waiting += len(found)
        taken_ns = self._clock.monotonic_ns()
        try:
            with contextlib.ExitStack() as spans:
                for each in found if self.tracer is not None else ():
                    spans.enter_context(self._traced(each))
                await self._finisher.finish_all(found)
            self.lag_ns = self._clock.monotonic_ns() - taken_ns
        finally:
            self.waiting -= len(found)

    def _traced(self, found: Ended) -> AbstractContextManager[Span]:
        if self.tracer is None:
            return UNTRACED
        record = found.record
        attributes: dict[str, Value] = {
            genai.REQUEST_MODEL: record.model,
            genai.REQUEST_ID: request_id(record.request),
        }
        return self.tracer.work("settle", attributes, found.kept.trace)

    async def again(self, record: RequestRecord, job: Job) -> Job | None:
        """Finish what a crash left half done, and call the webhook that has not been called."""
        events = tuple(await self._reading.events(record))
        if ended(events):
            # The row stands; the counters may not have been told.
            await self._finisher.finish(Ended(record=record, kept=self._reading.kept(record), events=events))
        else:
            await self._finisher.forget(record)
        return await self._tell(record, job, events) if record.webhook else None

    def _told(self, found: Ended) -> dict[str, Json]:
        return self._reading.told(found.record, found.events)

    async def _tell(
        self, record: RequestRecord, job: Job, events: tuple[Event, ...] | list[Event]
    ) -> Job | None:
        if not self._webhooks.policy.secret:
            # They were switched off after the request was taken on.
            return None
        if record.ended_at is None:
            record = await self._reading.record(record.request)
        told = self._reading.told(record, events)
        try:
            await self._webhooks.call(
                record.webhook, str(told["id"]), msgspec.json.encode({"type": "request.ended", "data": told})
            )
        except WebhookError as error:
            tries = errors_of_webhook(job.errors) + 1
            _LOG.warning("a webhook was not taken", request=told["id"], tries=tries, reason=error.message)
            if tries >= self._webhooks.policy.attempts:
                return None
            errors = (*job.errors, f"webhook: {error.message}")
            attempt = max(job.attempt, record.attempt) + 1
            return msgspec.structs.replace(job, attempt=attempt, errors=errors, log=b"")
        return None


class RemoteEnds:
    """Hands ends to a collector elsewhere, through a queue of results, with their logs where those are short.

    What gathers while results are being published goes with the next ones. :meth:`run` works until cancelled.
    """

    def __init__(self, results: JobQueue, sealer: Sealer) -> None:
        self._results = results
        self._sealer = sealer
        self._publishing: Batcher[Job, None] = Batcher(self._publish, name="queue of results", waiting=65_536)

    async def run(self) -> None:
        """Publish what comes."""
        await self._publishing.run()

    async def take(self, found: Ended, job: Job) -> Job | None:
        """Publish that a request has ended; its events are in the log."""
        record = found.record
        log = self._sealer.seal(record.request, file_log(found.events))
        end = Job(
            request=record.request,
            lane=record.lane,
            attempt=record.attempt,
            priority=job.priority,
            log=log if len(log) <= _LOG_BYTES else b"",
        )
        await self._publishing.submit(end)
        return None

    async def _publish(self, batch: Sequence[Job]) -> Sequence[None]:
        await self._results.publish(batch)
        return [None] * len(batch)

    async def again(self, record: RequestRecord, job: Job) -> Job | None:
        """Nothing is left to do: the collector goes on by itself."""
        del record, job
        return None


class Collector:
    """Takes ends from a queue of results. :meth:`run` works until cancelled."""

    def __init__(
        self,
        results: JobQueue,
        *,
        requests: RequestsByMany,
        events: EventLog,
        reading: Reading,
        ends: LocalEnds,
        prefetch: int = _PREFETCH,
    ) -> None:
        self._results = results
        self._requests = requests
        self._events = events
        self._reading = reading
        self._ends = ends
        self._prefetch = prefetch
        self._group: asyncio.TaskGroup | None = None
        self._arrived: Batcher[Delivery, None] = Batcher(
            self._collect_all, name="collector", most=_BATCH, waiting=1 << 20, calls=_CALLS
        )

    async def run(self) -> None:
        """Collect, again and again."""
        async with asyncio.TaskGroup() as group:
            self._group = group
            group.create_task(self._arrived.run())
            while True:
                try:
                    await self._take()
                except (UnavailableError, DiskFullError) as error:
                    _LOG.warning("the queue of results is away", reason=str(error))
                await asyncio.sleep(_AGAIN_S)

    async def _take(self) -> None:
        deliveries = self._results.deliveries(prefetch=self._prefetch)
        async with aclosing(cast("AsyncGenerator[Delivery]", deliveries)) as coming:
            async for delivery in coming:
                self._arrived.post(delivery)

    async def _collect_all(self, batch: Sequence[Delivery]) -> Sequence[None]:
        """Collect ends with one call to each store, and those apart that need more than that."""
        try:
            rest = await self._settle_all(batch)
        except (UnavailableError, DiskFullError) as error:
            _LOG.warning("ends wait for their store", ends=len(batch), reason=str(error))
            rest = batch
        except Exception:  # noqa: BLE001 - the collector's boundary: apart, the one at fault is found
            _LOG.exception("ends cannot be collected together", ends=len(batch))
            rest = batch
        for delivery in rest:
            if self._group is not None:
                self._group.create_task(self._collect(delivery))
        return [None] * len(batch)

    async def _settle_all(self, batch: Sequence[Delivery]) -> Sequence[Delivery]:
        """Settle what has only to be settled and filed, and return what is left."""
        records = await self._requests.find([delivery.job.request for delivery in batch])
        found: dict[bytes, Ended] = {}
        done: list[Delivery] = []
        rest: list[Delivery] = []
        for delivery in batch:
            request = delivery.job.request
            record = records.get(request)
            if record is not None and record.ended_at is None and self._ends.together(record):
                events = self._brought(record, delivery.job)
                if events:
                    kept = self._reading.kept(record)
                    found[request] = Ended(record=record, kept=kept, events=events, log=delivery.job.log)
            (done if request in found else rest).append(delivery)
        if found:
            await self._ends.take_all(list(found.values()))
            await self._results.acknowledge(done)
        return rest

    def _brought(self, record: RequestRecord, job: Job) -> tuple[Event, ...]:
        """Return the events that came with a result, where they count.

        They were in the log before the result was published. Whoever has claimed the request since then may have shut
        them out of it; before that, nobody can.
        """
        if not job.log or job.attempt != record.attempt:
            return ()
        events = self._reading.filed(record.request, job.log)
        return events if ended(events) else ()

    async def _collect(self, delivery: Delivery) -> None:
        """Collect one end; it stays in hand while a store is away."""
        while True:
            try:
                again = await self._end(delivery.job)
                if again is not None:
                    await self._results.publish([again], delay_ns=_AGAIN_NS * 2 ** min(10, len(again.errors)))
                await self._results.acknowledge([delivery])
            except (UnavailableError, DiskFullError) as error:
                _LOG.warning("an end waits for its store", reason=str(error))
                await asyncio.sleep(_AGAIN_S)
                continue
            except Exception as error:  # noqa: BLE001 - the collector's boundary: the end is kept among the dead letters
                _LOG.exception("an end cannot be collected", request=delivery.job.request.hex())
                await self._bury(delivery, f"{type(error).__name__}: {error}")
            return

    async def _bury(self, delivery: Delivery, error: str) -> None:
        while True:
            try:
                await self._results.bury(delivery, error)
            except (UnavailableError, DiskFullError) as away:
                _LOG.warning("the queue of results is away", reason=str(away))
                await asyncio.sleep(_AGAIN_S)
            else:
                return

    async def _end(self, job: Job) -> Job | None:
        record = await self._requests.get(job.request)
        if record is None:
            return None
        if record.ended_at is not None:
            return await self._ends.again(record, job)
        events = self._brought(record, job) or await self._whole(record)
        if not ended(events):
            if len(job.errors) >= _VISIBLE:
                raise UnseenEndError(f"the end of {record.request.hex()} is not in the event log")
            errors = (*job.errors, "no end yet")
            return msgspec.structs.replace(job, attempt=job.attempt + 1, errors=errors, log=b"")
        kept = self._reading.kept(record)
        return await self._ends.take(Ended(record=record, kept=kept, events=events), job)

    async def _whole(self, record: RequestRecord) -> tuple[Event, ...]:
        """Return the events; the log of another machine may show the end a moment after it is told of."""
        found: list[Event] = []
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_VISIBLE_S):
                batches = self._events.follow(record.request, record.lane)
                async with aclosing(cast("AsyncGenerator[Sequence[Event]]", batches)) as coming:
                    async for events in coming:
                        found.extend(events)
        return tuple(found)


class UnseenEndError(WeirError):
    """A request was said to have ended, and its log has no end."""

    code = "unseen_end"
