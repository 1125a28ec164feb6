"""Cancelling: a command that the lease holder obeys; what nobody holds is ended here."""

from __future__ import annotations

from tokenweir.gateway.queued.leases import Leases
from tokenweir.gateway.queued.worker import Worker
from tokenweir.ports.requests import RequestRecord, RequestStore


class Cancelling:
    """Cancels requests."""

    def __init__(self, requests: RequestStore, worker: Worker, leases: Leases) -> None:
        self._requests = requests
        self._worker = worker
        self._leases = leases

    async def cancel(self, record: RequestRecord) -> None:
        """Have a request stopped. One that has ended stays as it is."""
        if record.ended_at is not None:
            return
        now = await self._requests.cancel(record.request)
        if now is None or now.ended_at is not None:
            return
        if record.request in self._leases:
            self._leases.look()
        elif now.attempt == 0 or now.lease_left_ns == 0:
            # Whoever claims it first, this or a worker, ends it: the record says that it is cancelled.
            claimed = await self._requests.claim(
                record.request, attempt=now.attempt + 1, lease_ns=self._leases.lease_ns
            )
            if claimed is not None:
                self._worker.adopt(claimed)
