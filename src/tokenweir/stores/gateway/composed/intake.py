"""Accepting with Redis, PostgreSQL and a broker: reserved, then written in one transaction, then published.

A crash may come between any two steps. After the reservation: it is released when its lease runs out, as no request is
known by its id. After the commit: the sweeper publishes what the queue has not confirmed. A job published twice is
claimed once. ``docs/adr`` tells why it is in this order.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Final, Protocol

import msgspec

from tokenweir.core.errors import DiskFullError, UnavailableError, WeirError
from tokenweir.ports.intake import Acceptance, Conflict, Outcome, Repeated, Taken
from tokenweir.ports.queue import Job, JobQueue
from tokenweir.ports.quota import Denied, Granted, Reserve, Reserved
from tokenweir.ports.requests import RequestRecord
from tokenweir.stores.gateway.reporting import LOG

_BATCH: Final = 512
_WAITING: Final = 65_536
"""Jobs that wait in memory for the queue; beyond it the sweeper finds them in the database."""
_SWEEP_S: Final = 5.0
_AGAIN_S: Final = 0.5
_TRIES: Final = 3
_LOOKED_AT_NS: Final = 120_000_000_000


class AcceptingQuota(Protocol):
    """A quota store outside of the database that requests are written to."""

    async def reserve_accepted(self, batch: Sequence[Reserve]) -> tuple[int, Sequence[Reserved]]:
        """Reserve, and return the number of the epoch that it was done under."""
        ...

    async def release(self, requests: Sequence[bytes]) -> None:
        """Give back what was reserved for requests that came to nothing."""
        ...


class Written(Protocol):
    """What became of a batch."""

    @property
    def epoch(self) -> int:
        """The epoch that stands."""
        ...

    @property
    def taken(self) -> frozenset[bytes]:
        """The requests that were written."""
        ...


class AcceptedRequests(Protocol):
    """Where accepted requests are written."""

    async def write(self, batch: Sequence[tuple[Acceptance, int]], *, epoch: int) -> Written:
        """Write acceptances with the instants of their reservations, if that epoch stands."""
        ...

    async def earlier(self, batch: Sequence[Acceptance]) -> Mapping[int, tuple[bytes, bytes]]:
        """Return request and body hash of what was accepted before, by place in the batch."""
        ...

    async def published(self, requests: Sequence[bytes]) -> None:
        """Note that the queue has confirmed their jobs."""
        ...

    async def unpublished(self, limit: int) -> Sequence[RequestRecord]:
        """Return accepted requests whose job the queue has not confirmed."""
        ...


class ComposedIntake:
    """The door to queued work where stores are many. :meth:`run` publishes, beside those that :meth:`accept`."""

    def __init__(self, quota: AcceptingQuota, requests: AcceptedRequests, queue: JobQueue) -> None:
        self._quota = quota
        self._requests = requests
        self._queue = queue
        self._waiting: deque[Job] = deque(maxlen=_WAITING)
        self._filled = asyncio.Event()
        self._emptied = asyncio.Event()
        self._emptied.set()

    async def accept(self, batch: Sequence[Acceptance]) -> Sequence[Outcome]:
        """Take on each that fits, in one group commit; the outcomes are in order."""
        outcomes: dict[int, Outcome] = {}
        # A repeated id alone needs no look: it is reserved once, and written once.
        keyed = [place for place, wanted in enumerate(batch) if wanted.idempotency]
        known = await self._requests.earlier([batch[place] for place in keyed])
        for number, found in known.items():
            outcomes[keyed[number]] = _repeated(batch[keyed[number]], found)
        fresh, twins = _apart(batch, outcomes)
        if fresh:
            outcomes |= await self._take(batch, fresh)
        for place, first in twins:
            outcomes[place] = _of_twin(batch[place], batch[first], outcomes[first])
        return [outcomes[place] for place in range(len(batch))]

    async def _take(self, batch: Sequence[Acceptance], fresh: Sequence[int]) -> dict[int, Outcome]:
        """Reserve and write those in ``fresh``."""
        wanted = [_briefly(batch[place].reserve) for place in fresh]
        epoch, reserved = await self._quota.reserve_accepted(wanted)
        answers = dict(zip(fresh, reserved, strict=True))
        outcomes: dict[int, Outcome] = {
            place: answer for place, answer in answers.items() if isinstance(answer, Denied)
        }
        granted = [(place, answer) for place, answer in answers.items() if isinstance(answer, Granted)]
        if not granted:
            return outcomes
        taken = await self._write([(batch[place], answer.at) for place, answer in granted], epoch)
        jobs: list[Job] = []
        left: list[int] = []
        for place, answer in granted:
            accepted = batch[place]
            if answer.request not in taken:
                left.append(place)
                continue
            outcomes[place] = Taken(request=answer.request, at=answer.at, headroom=answer.headroom)
            if accepted.mode != "direct":
                jobs.append(Job(request=answer.request, lane=accepted.lane, priority=accepted.priority))
        self._offer(jobs)
        return outcomes | (await self._others(batch, left) if left else {})

    async def _write(self, batch: Sequence[tuple[Acceptance, int]], epoch: int) -> frozenset[bytes]:
        """Write, again where it is not known whether it was; a request is written once whatever happens."""
        ids = [wanted.reserve.request for wanted, _ in batch]
        taken: frozenset[bytes] = frozenset()
        for left in reversed(range(_TRIES)):
            try:
                written = await self._requests.write(batch, epoch=epoch)
            except UnavailableError:
                if left == 0:
                    raise
                await asyncio.sleep(_AGAIN_S)
                continue
            except WeirError:
                await self._quota.release(ids)
                raise
            # An earlier try may have been committed though its answer was lost.
            committed = await self._mine(batch) if left < _TRIES - 1 else frozenset[bytes]()
            if written.epoch != epoch:
                # What was committed is accepted, and keeps what is set aside for it.
                await self._give_back([request for request in ids if request not in committed])
                raise UnavailableError(
                    "the quota counters were counted anew in the middle of an acceptance",
                    mend="try again",
                )
            taken = written.taken | committed
            break
        return taken

    async def _mine(self, batch: Sequence[tuple[Acceptance, int]]) -> frozenset[bytes]:
        known = await self._requests.earlier([wanted for wanted, _ in batch])
        return frozenset(
            request for place, (request, _) in known.items() if request == batch[place][0].reserve.request
        )

    async def _others(self, batch: Sequence[Acceptance], left: Sequence[int]) -> dict[int, Outcome]:
        """Release what another process has taken on in the same moment, and say as what."""
        known = await self._requests.earlier([batch[place] for place in left])
        release = [
            batch[place].reserve.request
            for number, place in enumerate(left)
            if number not in known or known[number][0] != batch[place].reserve.request
        ]
        await self._give_back(release)
        if len(known) < len(left):
            raise UnavailableError("a request was neither written nor found", mend="try again")
        return {left[number]: _repeated(batch[left[number]], found) for number, found in known.items()}

    async def _give_back(self, requests: Sequence[bytes]) -> None:
        """Release; where that fails, the reservations are released when their leases run out."""
        try:
            if requests:
                await self._quota.release(requests)
        except UnavailableError as error:
            LOG.warning("reservations are released later", reservations=len(requests), reason=str(error))

    def _offer(self, jobs: Sequence[Job]) -> None:
        if jobs:
            self._waiting.extend(jobs)
            self._emptied.clear()
            self._filled.set()

    async def published(self) -> None:
        """Return when the jobs of all that was accepted so far are confirmed, or left to the sweeper."""
        await self._emptied.wait()

    async def run(self) -> None:
        """Publish what is accepted, and what an earlier process has left; works until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._publish_all())
            group.create_task(self._sweep())

    async def _publish_all(self) -> None:
        while True:
            await self._filled.wait()
            while self._waiting:
                jobs = [self._waiting.popleft() for _ in range(min(_BATCH, len(self._waiting)))]
                try:
                    await self._publish(jobs)
                except (UnavailableError, DiskFullError) as error:
                    LOG.warning("accepted jobs wait for the queue", jobs=len(jobs), reason=str(error))
                    await asyncio.sleep(_AGAIN_S)
            self._filled.clear()
            self._emptied.set()

    async def _publish(self, jobs: Sequence[Job]) -> None:
        await self._queue.publish(jobs)
        await self._requests.published([job.request for job in jobs])

    async def _sweep(self) -> None:
        """Publish what stayed unconfirmed, whoever accepted it."""
        while True:
            try:
                while await self.sweep():
                    pass
            except (UnavailableError, DiskFullError) as error:
                LOG.warning("the sweeper waits for its stores", reason=str(error))
            await asyncio.sleep(_SWEEP_S)

    async def sweep(self) -> int:
        """Publish up to a batch of what stayed unconfirmed, and return how many those were."""
        found = await self._requests.unpublished(_BATCH)
        if found:
            await self._publish(
                [
                    Job(
                        request=record.request,
                        lane=record.lane,
                        attempt=record.attempt + 1,
                        priority=record.priority,
                    )
                    for record in found
                ]
            )
            LOG.warning("published jobs that were accepted and not confirmed", jobs=len(found))
        return len(found)


def _briefly(reserve: Reserve) -> Reserve:
    """Return a reservation that is looked at soon, for it may come to nothing, and a job may wait for long."""
    return msgspec.structs.replace(reserve, lease_ns=min(reserve.lease_ns, _LOOKED_AT_NS))


def _apart(
    batch: Sequence[Acceptance], known: Mapping[int, Outcome]
) -> tuple[list[int], list[tuple[int, int]]]:
    """Return the places of what is new, and of what repeats something of this batch, with the first of it."""
    fresh: list[int] = []
    twins: list[tuple[int, int]] = []
    first: dict[object, int] = {}
    for place, wanted in enumerate(batch):
        if place in known:
            continue
        names: list[object] = [wanted.reserve.request]
        if wanted.idempotency:
            names.append((wanted.reserve.user, wanted.idempotency))
        before = next((first[name] for name in names if name in first), None)
        if before is None:
            fresh.append(place)
            first.update(dict.fromkeys(names, place))
        else:
            twins.append((place, before))
    return fresh, twins


def _repeated(wanted: Acceptance, found: tuple[bytes, bytes]) -> Outcome:
    request, body_hash = found
    return Repeated(request=request) if body_hash == wanted.body_hash else Conflict(request=request)


def _of_twin(wanted: Acceptance, first: Acceptance, outcome: Outcome) -> Outcome:
    """Return what the outcome of an acceptance means for another of the same request in one batch."""
    if isinstance(outcome, Denied):
        return Denied(request=wanted.reserve.request, short=outcome.short, headroom=outcome.headroom)
    if isinstance(outcome, Conflict):
        return outcome
    return _repeated(wanted, (outcome.request, first.body_hash))
