"""Working on batches: each is held by one process at a time, and gone on with where another left it."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections import Counter
from typing import Final

import msgspec

from tokenweir.core.clock import Clock
from tokenweir.core.errors import DiskFullError, UnavailableError
from tokenweir.gateway.batches.run import BatchRun, LostError, Workplace
from tokenweir.gateway.batches.state import BatchCounts, Status
from tokenweir.gateway.endpoints.pool import Pool
from tokenweir.gateway.files.cabinet import Cabinet
from tokenweir.gateway.queued.node import Queued
from tokenweir.gateway.responses.shelf import Shelf
from tokenweir.ports.access import Owners
from tokenweir.ports.batches import Batches, BatchRecord
from tokenweir.telemetry.logs import get_logger

_LOG = get_logger("tokenweir.gateway.batches")
_TICK_S: Final = 1.0
_SWEEP_TICKS: Final = 600
_ID_BYTES: Final = 16
_TRIES: Final = 5


class BatchPolicy(msgspec.Struct, frozen=True, kw_only=True):
    """``lines`` of one batch are in flight at once, and ``batches`` are worked on by this process.

    A batch whose process is gone is taken up by another once ``lease_ns`` has passed.
    """

    lines: int = 16
    batches: int = 8
    lease_ns: int = 30_000_000_000
    line_bytes: int = 8 << 20


class Parts(msgspec.Struct, frozen=True, kw_only=True):
    """What of the gateway batches need: their store, the queued path, and the endpoints."""

    store: Batches
    queued: Queued
    pool: Pool


class BatchWorks:
    """Works on batches. :meth:`run` works until cancelled; what is left then is gone on with by whoever comes next."""

    def __init__(
        self, parts: Parts, cabinet: Cabinet, owners: Owners, clock: Clock, policy: BatchPolicy | None = None
    ) -> None:
        self._store = parts.store
        self._cabinet = cabinet
        self._policy = policy or BatchPolicy()
        self._worker = secrets.token_bytes(_ID_BYTES)
        self.counts = BatchCounts()
        self._place = Workplace(
            store=parts.store,
            worker=self._worker,
            cabinet=cabinet,
            queued=parts.queued,
            pool=parts.pool,
            shelf=Shelf(parts.queued),
            owners=owners,
            clock=clock,
            lines=self._policy.lines,
            line_bytes=self._policy.line_bytes,
            counts=self.counts,
        )
        self._runs: dict[bytes, tuple[BatchRun, asyncio.Task[None]]] = {}
        self._tries: dict[bytes, int] = {}
        self._changed = asyncio.Event()
        self._draining = False

    def held(self) -> Counter[Status]:
        """Return how many batches this process works on, by status."""
        return Counter(run.status for run, _ in self._runs.values() if not run.ended)

    async def open(self) -> int:
        """Return how many batches have not ended, of all processes. Raises UnavailableError."""
        return await self._store.open()

    def nudge(self) -> None:
        """Look at once whether there is something to do."""
        self._changed.set()

    def drain(self) -> None:
        """Begin no more lines; those in flight are queued requests, which end without this."""
        self._draining = True
        for _, task in self._runs.values():
            task.cancel()

    async def run(self) -> None:
        """Look for batches again and again."""
        ticks = 0
        try:
            async with asyncio.TaskGroup() as group:
                while True:
                    self._changed.clear()
                    try:
                        await self._look(group)
                        if ticks % _SWEEP_TICKS == 0:
                            await self._cabinet.sweep()
                    except (UnavailableError, DiskFullError) as error:
                        _LOG.warning("batches wait for their store", reason=str(error))
                    ticks += 1
                    with contextlib.suppress(TimeoutError):
                        async with asyncio.timeout(_TICK_S):
                            await self._changed.wait()
        finally:
            with contextlib.suppress(UnavailableError, DiskFullError):
                await self._store.release(self._worker)

    async def _look(self, group: asyncio.TaskGroup) -> None:
        """Hold on to what is worked on, and take what nobody holds."""
        if self._draining:
            return
        policy = self._policy
        held = {
            record.batch: record
            for record in await self._store.claim(self._worker, lease_ns=policy.lease_ns, most=policy.batches)
        }
        for batch, (run, task) in list(self._runs.items()):
            if batch not in held and not run.ended:
                task.cancel()
        for record in held.values():
            known = self._runs.get(record.batch)
            if known is None:
                run = BatchRun(self._place, record)
                self._runs[record.batch] = (run, group.create_task(self._work(run, record)))
                continue
            try:
                await known[0].look(record)
            except LostError:
                known[1].cancel()

    async def _work(self, run: BatchRun, record: BatchRecord) -> None:
        """Work on a batch; what goes wrong is tried again with the next look, and not for ever."""
        batch = record.batch
        try:
            await run.run(last=self._tries.get(batch, 0) >= _TRIES)
            self._tries.pop(batch, None)
        except LostError:
            _LOG.warning("a batch was taken over by another process", batch=batch.hex())
        except (UnavailableError, DiskFullError) as error:
            _LOG.warning("a batch waits for its store", batch=batch.hex(), reason=str(error))
        except Exception:  # noqa: BLE001 - the batch's boundary: it is begun again, and at last told to have failed
            self._tries[batch] = self._tries.get(batch, 0) + 1
            _LOG.exception("a batch was left", batch=batch.hex())
        finally:
            self._runs.pop(batch, None)
