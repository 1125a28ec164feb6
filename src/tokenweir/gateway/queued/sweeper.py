"""The sweeper: accepted requests that nobody has in hand get a job again, so that none is lost."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Final

from tokenweir.core.errors import DiskFullError, UnavailableError
from tokenweir.ports.queue import Job, JobQueue
from tokenweir.ports.requests import RequestRecord, RequestUpkeep
from tokenweir.telemetry.logs import get_logger

_LOG = get_logger("tokenweir.gateway.sweeper")
_SWEPT: Final = 500


class Sweeper:
    """Publishes what was left by a process that is gone. :meth:`run` works until cancelled.

    What the queue has not confirmed is published again by the intake that took it on, or another's.
    """

    def __init__(self, upkeep: RequestUpkeep, queue: JobQueue, *, every_ns: int, again_ns: int) -> None:
        self._upkeep = upkeep
        self._queue = queue
        self._every_s = every_ns / 1e9
        self._again_s = again_ns / 1e9
        self._seen: dict[bytes, float] = {}

    async def run(self) -> None:
        """Look again and again."""
        while True:
            try:
                await self.sweep()
            except (UnavailableError, DiskFullError) as error:
                _LOG.warning("the sweeper waits for its store", reason=str(error))
            await asyncio.sleep(self._every_s)

    async def sweep(self) -> int:
        """Look once; returns how many jobs were published."""
        left = self._fresh(await self._upkeep.abandoned(_SWEPT))
        if left:
            await self._queue.publish([_job(record) for record in left])
            now = asyncio.get_running_loop().time()
            self._seen.update((record.request, now) for record in left)
            _LOG.info("requests without a job get one", count=len(left))
        return len(left)

    def _fresh(self, records: Sequence[RequestRecord]) -> list[RequestRecord]:
        """Return those that were not given a job a moment ago: it may wait in a queue that cannot be looked into."""
        now = asyncio.get_running_loop().time()
        self._seen = {request: at for request, at in self._seen.items() if now - at < self._again_s}
        return [record for record in records if record.request not in self._seen]


def _job(record: RequestRecord) -> Job:
    return Job(request=record.request, lane=record.lane, attempt=record.attempt + 1, priority=record.priority)
