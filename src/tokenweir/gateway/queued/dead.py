"""Dead letters: jobs that were given up, with their errors and their events; shown, replayed, dropped."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Literal

import msgspec

from tokenweir.core.errors import NotFoundError, UnavailableError
from tokenweir.core.events import Event
from tokenweir.core.quota import Amounts
from tokenweir.core.requests import Json
from tokenweir.gateway.metering.estimate import prompt_tokens
from tokenweir.gateway.queued.kept import request_id
from tokenweir.gateway.queued.reading import Reading
from tokenweir.gateway.queued.sealing import Sealer
from tokenweir.ports.intake import Acceptance, Intake, Repeated, Taken
from tokenweir.ports.queue import DeadLetters, Job
from tokenweir.ports.quota import Reserve
from tokenweir.ports.requests import RequestRecord, RequestStore, Resealing

_OUTPUT: Final = 512


class DeadLetter(msgspec.Struct, frozen=True, kw_only=True):
    """A dead job, its request where there is one, and the events that there are."""

    job: Job
    record: RequestRecord | None
    events: Sequence[Event]

    def told(self) -> dict[str, Json]:
        """Return it as JSON."""
        record = self.record
        return {
            "request_id": request_id(self.job.request),
            "attempt": self.job.attempt,
            "model": "" if record is None else record.model,
            "mode": "" if record is None else record.mode,
            "ended": record is not None and record.ended_at is not None,
            "errors": list(self.job.errors),
        }


class Graveyard:
    """Shows, replays and drops dead letters."""

    def __init__(
        self,
        letters: DeadLetters,
        requests: RequestStore,
        intake: Intake,
        reading: Reading,
        *,
        sealer: Sealer,
        queue_lease_ns: int,
    ) -> None:
        self._letters = letters
        self._requests = requests
        self._intake = intake
        self._reading = reading
        self._sealer = sealer
        self._queue_lease_ns = queue_lease_ns

    async def listed(self, limit: int) -> list[DeadLetter]:
        """Return dead letters without their events, oldest first."""
        return [
            DeadLetter(job=job, record=await self._requests.get(job.request), events=())
            for job in await self._letters.dead(limit=limit)
        ]

    async def show(self, request: bytes) -> DeadLetter:
        """Return one with its events. Raises NotFoundError."""
        job = await self._job(request)
        record = await self._requests.get(request)
        events: Sequence[Event] = ()
        if record is not None:
            events = await self._reading.events(record)
        return DeadLetter(job=job, record=record, events=events)

    async def replay(self, request: bytes, fresh: bytes) -> bytes:
        """Have a dead job done again; returns the request that does it.

        A request that has ended has been charged and told, and stays as it is: its body is taken on anew, as the
        request ``fresh`` (16 bytes) of the same key, once however often that is asked for. Its owner's limits count
        it, and do not refuse it.

        Raises:
            NotFoundError: there is no such dead letter.
            UnavailableError: it could not be made durable.
        """
        await self._job(request)
        record = await self._requests.get(request)
        if record is None or record.ended_at is None:
            await self._letters.replay(request)
            return request
        outcome = (await self._intake.accept([self._anew(record, fresh)]))[0]
        if not isinstance(outcome, Taken | Repeated):
            raise UnavailableError("the request could not be taken on anew", mend="try again")
        await self._letters.drop(request)
        return outcome.request

    async def drop(self, request: bytes) -> None:
        """Forget a dead job. Raises NotFoundError."""
        await self._job(request)
        await self._letters.drop(request)

    async def _job(self, request: bytes) -> Job:
        for job in await self._letters.dead(limit=2**31 - 1):
            if job.request == request:
                return job
        raise NotFoundError(
            f"there is no dead letter {request_id(request)!r}",
            mend="weir queue dead list shows those there are",
        )

    def _anew(self, record: RequestRecord, fresh: bytes) -> Acceptance:
        kept = self._reading.kept(record)
        body = kept.read()
        most = _OUTPUT if body.limit is None else min(_OUTPUT, body.limit * (body.n or 1))
        tokens = prompt_tokens(body.prompt_bytes) + most
        return Acceptance(
            reserve=Reserve(
                request=fresh,
                key=record.key,
                user=record.user,
                team=record.team,
                model=record.model,
                # An operator decides, not the limits.
                limits=(),
                estimate=Amounts(tokens=tokens),
                lease_ns=self._queue_lease_ns,
            ),
            mode="stream" if record.mode == "direct" and kept.streamed(record) else _queued(record),
            lane=record.lane,
            route=record.route,
            body=self._sealer.seal(fresh, kept.encode()),
            body_hash=record.body_hash,
            # No caller can send such a key.
            idempotency=f"\x01{request_id(record.request)}",
            priority=record.priority,
            webhook=record.webhook,
        )


def _queued(record: RequestRecord) -> Literal["single", "stream"]:
    return "stream" if record.mode == "stream" else "single"


async def rotate(resealing: Resealing, sealer: Sealer, *, most: int = 500) -> int:
    """Seal anew, with the present key, all that is not; returns how many requests that were. Raises SealError.

    What a gateway changes meanwhile is looked at again: nothing that was erased comes back.
    """
    done = 0
    while found := await resealing.unlike(sealer.prefix, most):
        changed: list[tuple[bytes, bytes, bytes, bytes]] = []
        for record in found:
            body = sealer.seal(record.request, sealer.open(record.request, record.body))
            log = sealer.seal(record.request, sealer.open(record.request, record.log)) if record.log else b""
            changed.append((record.request, record.body, body, log))
        await resealing.reseal(changed)
        done += len(changed)
    return done
