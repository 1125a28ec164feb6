"""The worker: takes jobs, claims requests, asks endpoints, writes events, and never works on what another holds."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing
from functools import partial
from typing import Final, Protocol, cast

import msgspec

from tokenweir.core.clock import Clock
from tokenweir.core.errors import DiskFullError, UnavailableError, WeirError
from tokenweir.core.events import Cancelled, Completed, Degraded, Event, Failed, Token
from tokenweir.gateway.queued.asking import Attempt, Write
from tokenweir.gateway.queued.endings import Ended
from tokenweir.gateway.queued.kept import Kept, decode, ended, last_answer, opening
from tokenweir.gateway.queued.leases import Lease, Leases
from tokenweir.gateway.queued.sealing import Sealer
from tokenweir.gateway.queued.writing import Writing
from tokenweir.ports.eventlog import Append, BoundedLog, EventLog
from tokenweir.ports.queue import Delivery, Job, JobQueue
from tokenweir.ports.requests import RequestRecord, RequestStore
from tokenweir.telemetry.logs import get_logger

_LOG = get_logger("tokenweir.gateway.worker")
_AGAIN_S: Final = 0.5
_APART_S: Final = 0.006
"""Between appends to a log that is a service, while there is more to append."""
_CRASHES_NS: Final = 2_000_000_000
_BAD_GATEWAY: Final = 502

_encode = msgspec.msgpack.Encoder().encode


class Policy(msgspec.Struct, frozen=True, kw_only=True):
    """How work is done: ``concurrency`` requests at once, and ``attempts`` at each in all.

    Between them passes ``backoff_ns``, doubled each time up to ``backoff_most_ns`` and jittered. ``sole``: no other
    process works on these stores, so that a lease which is not held here is nobody's.
    """

    concurrency: int = 128
    attempts: int = 5
    backoff_ns: int = 500_000_000
    backoff_most_ns: int = 60_000_000_000
    sole: bool = False

    def backoff(self, attempt: int, retry_after_ns: int | None) -> int:
        """Return how long to wait after a failed attempt; the server's own advice is the least."""
        doubled = min(self.backoff_most_ns, self.backoff_ns * 2 ** min(attempt - 1, 20))
        return max(int(doubled * random.uniform(0.5, 1.5)), retry_after_ns or 0)


class EndTaker(Protocol):
    """What becomes of ended requests: settled and told here, or by a collector elsewhere."""

    async def take(self, found: Ended, job: Job) -> Job | None:
        """Take an end; returns once it cannot be lost. A job to be queued again after it is returned, as it is to be.

        The job is one that failed to tell somebody of the end.
        """
        ...

    async def again(self, record: RequestRecord, job: Job) -> Job | None:
        """Go on with a request that was settled before; as :meth:`take`."""
        ...


class Asks(Protocol):
    """Asks endpoints."""

    async def ask(self, attempt: Attempt, write: Write) -> list[Event]:
        """Return the last events of an attempt, its end among them; those before have been written."""
        ...


class Tools(msgspec.Struct, frozen=True, kw_only=True):
    """What a worker works with."""

    requests: RequestStore
    queue: JobQueue
    events: EventLog
    leases: Leases
    asker: Asks
    ends: EndTaker
    sealer: Sealer


class Worker:
    """Works on queued requests. :meth:`run` works until cancelled; :meth:`drain` finishes what is in hand."""

    def __init__(self, tools: Tools, *, clock: Clock, policy: Policy) -> None:
        self._requests = tools.requests
        self._queue = tools.queue
        self._events = tools.events
        self._leases = tools.leases
        self._asker = tools.asker
        self._ends = tools.ends
        self._sealer = tools.sealer
        self._clock = clock
        self._policy = policy
        self._most_bytes = tools.events.most_bytes if isinstance(tools.events, BoundedLog) else None
        self._writing = Writing(tools.events, apart_s=0.0 if policy.sole else _APART_S)
        self._group: asyncio.TaskGroup | None = None
        self._stopping = False
        self._working = 0
        self._rest = asyncio.Event()
        self.buried = 0
        """Jobs given up by this process."""

    @property
    def in_flight(self) -> int:
        """How many requests it works on."""
        return self._working

    async def run(self, *, jobs: bool = True) -> None:
        """Take jobs, again and again; without ``jobs`` only what :meth:`adopt` is given."""
        async with asyncio.TaskGroup() as group:
            self._group = group
            group.create_task(self._writing.run())
            group.create_task(self._leases.run())
            if not jobs:
                await asyncio.Event().wait()
            while True:
                try:
                    await self._take(group)
                except (UnavailableError, DiskFullError) as error:
                    _LOG.warning("the queue is away", reason=str(error))
                await asyncio.sleep(_AGAIN_S)

    async def _take(self, group: asyncio.TaskGroup) -> None:
        deliveries = self._queue.deliveries(prefetch=self._policy.concurrency)
        async with aclosing(cast("AsyncGenerator[Delivery]", deliveries)) as coming:
            async for delivery in coming:
                if self._stopping:
                    # It stays unacknowledged, and is delivered again to whoever comes next.
                    await asyncio.Event().wait()
                group.create_task(self._counted(partial(self._work, delivery)))

    async def drain(self) -> None:
        """Take no more jobs, and return when none is in hand."""
        self._stopping = True
        while self._working:
            self._rest.clear()
            await self._rest.wait()

    def adopt(self, record: RequestRecord) -> None:
        """Work on a request that was accepted and claimed in this process and has no job."""
        if self._group is None:
            raise UnavailableError("the worker has not begun")
        self._group.create_task(self._counted(partial(self._adopted, record)))

    async def _counted(self, work: Callable[[], Awaitable[None]]) -> None:
        self._working += 1
        try:
            await work()
        except Exception:  # noqa: BLE001 - the worker's boundary: what is unacknowledged or leased is found again
            _LOG.exception("a piece of work was left")
        finally:
            self._working -= 1
            self._rest.set()

    async def _adopted(self, record: RequestRecord) -> None:
        job = Job(request=record.request, lane=record.lane, attempt=record.attempt, priority=record.priority)
        lease = self._leases.hold(record.request, record.attempt)
        try:
            again = await self._attempt(record, job, lease)
            if again is not None:
                job, delay_ns = again
                await self._queue.publish([job], delay_ns=delay_ns)
        except Exception:  # noqa: BLE001 - the worker's boundary: the sweeper finds it when its lease has run out
            _LOG.exception("a request was left", request=record.request.hex())
        finally:
            self._leases.drop(lease)

    async def _work(self, delivery: Delivery) -> None:
        """Work on a job, whatever happens; it is acknowledged when nothing of it can be lost."""
        job = delivery.job
        while True:
            try:
                again = await self._job(job)
                if again is not None:
                    await self._queue.publish([again[0]], delay_ns=again[1])
                await self._queue.acknowledge([delivery])
            except BuriedError as error:
                self.buried += 1
                await self._bury(delivery, str(error))
            except (UnavailableError, DiskFullError) as error:
                # Nothing is wrong with the job: it stays in hand until the store is back.
                _LOG.warning("a job waits for its store", request=job.request.hex(), reason=str(error))
                await asyncio.sleep(_AGAIN_S)
                continue
            except Exception as error:  # noqa: BLE001 - the worker's boundary: the job is kept, and the log has the trace
                _LOG.exception("a job failed", request=job.request.hex())
                await self._later(delivery, f"{type(error).__name__}: {error}")
            return

    async def _bury(self, delivery: Delivery, error: str) -> None:
        while True:
            try:
                await self._queue.bury(delivery, error)
            except (UnavailableError, DiskFullError):
                await asyncio.sleep(_AGAIN_S)
            else:
                return

    async def _later(self, delivery: Delivery, error: str) -> None:
        """Queue a job again that could not be worked on, or bury it when that has happened too often."""
        job = delivery.job
        while True:
            if len(job.errors) >= self._policy.attempts + 3:
                await self._bury(delivery, error)
                return
            try:
                next_job = msgspec.structs.replace(job, attempt=job.attempt + 1, errors=(*job.errors, error))
                await self._queue.publish(
                    [next_job], delay_ns=self._policy.backoff(len(job.errors) + 1, None)
                )
                await self._queue.acknowledge([delivery])
            except (UnavailableError, DiskFullError):
                await asyncio.sleep(_AGAIN_S)
            else:
                return

    async def _job(self, job: Job) -> tuple[Job, int] | None:
        """Do a job; returns the one to queue in its place, and the delay."""
        request, lease_ns = job.request, self._leases.lease_ns
        # Nobody can have held a request whose first attempt is claimed.
        record = (
            await self._requests.claim(request, attempt=1, lease_ns=lease_ns) if job.attempt == 1 else None
        )
        if record is None:
            found = await self._requests.get(request)
            if found is None:
                _LOG.warning("a job names no request", request=request.hex())
                return None
            if found.ended_at is not None:
                again = await self._ends.again(found, job)
                return None if again is None else (again, self._policy.backoff(len(again.errors), None))
            waits_ns = self._held_for(found)
            if waits_ns > 0:
                return msgspec.structs.replace(job, attempt=max(job.attempt, found.attempt) + 1), waits_ns
            record = await self._requests.claim(request, attempt=found.attempt + 1, lease_ns=lease_ns)
            if record is None:
                # Somebody was quicker: look again when its lease may have ended.
                return msgspec.structs.replace(job, attempt=max(job.attempt, found.attempt) + 1), lease_ns
        lease = self._leases.hold(request, record.attempt)
        try:
            return await self._attempt(record, job, lease)
        finally:
            self._leases.drop(lease)

    def _held_for(self, record: RequestRecord) -> int:
        """Return how much longer another holds a request; 0 where nobody does."""
        if record.request in self._leases:
            return _CRASHES_NS
        if self._policy.sole or not record.attempt:
            return 0
        return record.lease_left_ns

    async def _attempt(self, record: RequestRecord, job: Job, lease: Lease) -> tuple[Job, int] | None:
        kept = decode(self._open(record))
        before = opening(record)
        due_ns = None if record.deadline_left_ns is None else self._now_ns() + record.deadline_left_ns
        if record.attempt > 1:
            # Whoever was lost may not know it: from here on nothing that it writes counts, so that what is read stands.
            fence = Append(request=record.request, lane=record.lane, attempt=record.attempt, events=())
            await self.write(fence)
            before = tuple(await self._events.read(record.request, record.lane)) or before
            if ended(before):
                # Its end was written, and then whoever wrote it was lost.
                return await self._hand_over(Ended(record=record, kept=kept, events=before), job)
        run = _Run(self, record, kept, lease, before, due_ns=due_ns)
        rest = await run.events()
        if rest is None:
            return None
        rest = self._bounded(rest)
        end = rest[-1]
        if isinstance(end, Failed) and end.retryable and self._may_try_again(record, kept, run):
            await run.write(rest[:-1])
            await self._leases.release(lease)
            errors = (*job.errors, f"attempt {record.attempt}: {end.kind}: {end.message}")
            again = msgspec.structs.replace(job, attempt=record.attempt + 1, errors=errors)
            return again, self._policy.backoff(record.attempt, end.retry_after_ns)
        await run.write(rest)
        again = await self._hand_over(Ended(record=record, kept=kept, events=(*before, *run.written)), job)
        if isinstance(end, Failed) and end.retryable and again is None and record.mode != "direct":
            raise BuriedError(f"attempt {record.attempt}: {end.kind}: {end.message}")
        return again

    def _open(self, record: RequestRecord) -> bytes:
        try:
            return self._sealer.open(record.request, record.body)
        except WeirError as error:
            # Nothing is wrong with the request: when the key is back, the job can be replayed.
            raise BuriedError(str(error)) from error

    async def _hand_over(self, found: Ended, job: Job) -> tuple[Job, int] | None:
        while True:
            try:
                again = await self._ends.take(found, job)
                break
            except (UnavailableError, DiskFullError) as error:
                # The lease is held meanwhile: nobody else has to find out that this has ended.
                _LOG.warning("an end waits for its store", request=job.request.hex(), reason=str(error))
                await asyncio.sleep(_AGAIN_S)
        return None if again is None else (again, self._policy.backoff(len(again.errors), None))

    def _bounded(self, rest: list[Event]) -> list[Event]:
        """Return an attempt's last events; of an answer too long for the log what it used, and that it failed."""
        if self._most_bytes is None or (size := len(_encode(rest))) <= self._most_bytes:
            return rest
        message = (
            f"the answer has {size} bytes, and the event log takes {self._most_bytes}: ask for less at once"
        )
        kept: list[Event] = [event for event in rest if not isinstance(event, Token | Completed)]
        kept.append(Failed(seq=0, kind="answer_too_long", message=message, status=_BAD_GATEWAY))
        return [msgspec.structs.replace(event, seq=rest[0].seq + n) for n, event in enumerate(kept)]

    def _may_try_again(self, record: RequestRecord, kept: Kept, run: _Run) -> bool:
        if record.attempt >= self._policy.attempts or (run.tokens and not kept.retry_after_tokens):
            return False
        return run.left_s != 0.0

    async def write(self, append: Append) -> None:
        """Append events; returns once they are durable."""
        await self._writing.write(append)

    async def pour(self, append: Append) -> None:
        """Append events; returns when there may be more."""
        await self._writing.pour(append)

    async def ask(self, attempt: Attempt, write: Callable[[Sequence[Event]], Awaitable[None]]) -> list[Event]:
        """Ask endpoints."""
        return await self._asker.ask(attempt, write)

    @property
    def attempts(self) -> int:
        """How often a request is tried."""
        return self._policy.attempts

    def left_s(self, due_ns: int | None) -> float | None:
        """Return how long there is until an instant of the monotonic clock; ``None``: as long as one likes."""
        return None if due_ns is None else max(0.0, (due_ns - self._now_ns()) / 1e9)

    def _now_ns(self) -> int:
        return self._clock.monotonic_ns()


class BuriedError(WeirError):
    """A job is given up: it goes to the dead letters."""

    code = "buried"


class _Run:
    """One attempt at one request, and the events it has written."""

    def __init__(
        self,
        worker: Worker,
        record: RequestRecord,
        kept: Kept,
        lease: Lease,
        before: tuple[Event, ...],
        *,
        due_ns: int | None,
    ) -> None:
        self._worker = worker
        self._due_ns = due_ns
        self._record = record
        self._lease = lease
        self._kept = kept
        self._before = before
        # Until the first append of the first attempt the opening is implied alone.
        self._unwritten = before if record.attempt == 1 or len(before) == len(opening(record)) else ()
        self.written: list[Event] = []
        self._attempt = Attempt(record=record, kept=kept, seq=before[-1].seq + 1)

    @property
    def tokens(self) -> bool:
        """Whether a reader may have seen a token of the answer."""
        return self._attempt.tokens or any(isinstance(event, Token) for event in last_answer(self._before))

    @property
    def left_s(self) -> float | None:
        """How long there is until its deadline."""
        return self._worker.left_s(self._due_ns)

    async def write(self, events: Sequence[Event]) -> None:
        """Append events of this attempt; returns once they are durable, and all before them."""
        if appended := self._appended(events):
            await self._worker.write(appended)

    async def _pour(self, events: Sequence[Event]) -> None:
        """Append events of this attempt; returns when there may be more."""
        if appended := self._appended(events):
            await self._worker.pour(appended)

    def _appended(self, events: Sequence[Event]) -> Append | None:
        self.written.extend(events)
        all_of_them = (*self._unwritten, *events)
        self._unwritten = ()
        if not all_of_them:
            return None
        record = self._record
        return Append(request=record.request, lane=record.lane, attempt=record.attempt, events=all_of_them)

    async def events(self) -> list[Event] | None:
        """Return the last events, the end among them; ``None``: another has the lease."""
        record, lease = self._record, self._lease
        if record.cancel_at is not None:
            return self._attempt.numbered([Cancelled(seq=0)])
        refused = self._refused()
        if refused is not None:
            return self._attempt.numbered([refused])
        try:
            async with lease.working(self.left_s):
                await self._disclose()
                return await self._worker.ask(self._attempt, self._pour)
        except TimeoutError:
            match lease.why:
                case "cancelled":
                    end: Event = Cancelled(seq=0)
                case "lost":
                    return None
                case _:
                    end = _late()
        # What was written may end with an append that was cut off: its events count, for they are on their way.
        self._attempt.seq = self._before[-1].seq + len(self.written) + 1
        return self._attempt.numbered([end])

    async def _disclose(self) -> None:
        """Tell what was taken from the request before it was accepted; once, whatever attempt this is."""
        if self._kept.degraded and not any(isinstance(event, Degraded) for event in self._before):
            told = [Degraded(seq=0, what=what) for what in self._kept.degraded]
            await self.write(self._attempt.numbered(told))

    def _refused(self) -> Failed | None:
        """Return why nothing is asked any more, if so."""
        record = self._record
        if self.left_s == 0.0:
            return _late()
        if record.attempt > self._worker.attempts:
            message = f"the request was given up after {record.attempt - 1} attempts that did not end"
            return Failed(seq=0, kind="interrupted", message=message, status=503, retryable=True)
        seen = any(isinstance(event, Token) for event in last_answer(self._before))
        if seen and not self._kept.retry_after_tokens:
            message = (
                "whoever answered was lost amid the answer; what came is kept, and nothing is said twice"
            )
            return Failed(seq=0, kind="interrupted", message=message, status=503, retryable=True)
        return None


def _late() -> Failed:
    return Failed(seq=0, kind="timeout", message="the request was not finished by its deadline", status=504)
