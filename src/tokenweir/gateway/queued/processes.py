"""The worker and the collector as processes of their own, over stores that several processes may share."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncGenerator, Awaitable, Callable

import msgspec
import uvloop

from tokenweir.asgi import heap
from tokenweir.asgi.server import HttpServer
from tokenweir.asgi.stopping import Stop, first_of
from tokenweir.core.errors import CancelledError
from tokenweir.gateway.doors.metrics import Metrics
from tokenweir.gateway.doors.queued_metrics import QueuedMetrics
from tokenweir.gateway.doors.side import SideApp
from tokenweir.gateway.endpoints.health import HealthWatch
from tokenweir.gateway.endpoints.pool import Pool
from tokenweir.gateway.metering.settling import Settler
from tokenweir.gateway.queued.node import Workshop
from tokenweir.telemetry.refusals import Refusals

Opener = Callable[[], contextlib.AbstractAsyncContextManager["Bench"]]


class Side(msgspec.Struct, frozen=True, kw_only=True):
    """Where a process tells how it is."""

    host: str
    port: int
    tls: ssl.SSLContext | None = None
    refusals: Refusals | None = None


class Bench:
    """A workshop with what it needs beside: endpoints that are looked after, the settler, a door of metrics."""

    def __init__(
        self,
        shop: Workshop,
        *,
        settler: Settler,
        pool: Pool,
        health: HealthWatch,
        side: Side | None = None,
    ) -> None:
        self.shop = shop
        self.settler = settler
        self.pool = pool
        self.health = health
        self.draining = False
        self._side = side
        self._metrics = Metrics()
        self._queued = QueuedMetrics(self._metrics.registry)
        settler.measures = shop.asker.measures = self._metrics.measures
        self._metrics.measured.refusals = None if side is None else side.refusals

    @contextlib.asynccontextmanager
    async def telling(self) -> AsyncGenerator[str]:
        """Tell how the process is while the block runs; yields where, or ""."""
        if self._side is None:
            yield ""
            return
        side = self._side
        server = HttpServer(
            SideApp(self._render, lambda: not self.draining), side.host, side.port, tls=side.tls
        )
        async with asyncio.TaskGroup() as group:
            group.create_task(server.serve())
            try:
                yield server.url
            finally:
                server.close(at_once=True)

    async def _render(self) -> bytes:
        self._queued.work(self.shop)
        self._queued.depth(await self.shop.measure())
        return self._metrics.render(self.pool, in_flight=0, unsettled=self.settler.waiting)


def run_worker(open_bench: Opener, announce: Callable[[str], None], *, drain_ns: int) -> None:
    """Take queued requests to the endpoints, until SIGTERM or Ctrl-C; then finish what is in hand.

    ``announce`` is told where metrics and probes are, or "".

    Raises:
        ConfigError: a setting cannot be used.
        CancelledError: it was stopped twice.
    """

    async def work(bench: Bench, stopped: asyncio.Event) -> None:
        async with bench.telling() as where, asyncio.TaskGroup() as group:
            tasks = [
                group.create_task(bench.settler.run()),
                group.create_task(bench.health.run()),
                group.create_task(bench.shop.run()),
            ]
            announce(where)
            await stopped.wait()
            bench.draining = True
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(drain_ns / 1e9):
                    await bench.shop.drain()
            for task in tasks:
                task.cancel()

    _run(open_bench, work)


def run_collector(open_bench: Opener, announce: Callable[[str], None]) -> None:
    """Settle and file ended requests and call webhooks, until SIGTERM or Ctrl-C.

    What is in hand is delivered again to the next collector. Raises as :func:`run_worker`.
    """

    async def work(bench: Bench, stopped: asyncio.Event) -> None:
        async with bench.telling() as where, asyncio.TaskGroup() as group:
            tasks = [
                group.create_task(bench.settler.run()),
                group.create_task(bench.shop.collect()),
            ]
            announce(where)
            await stopped.wait()
            bench.draining = True
            for task in tasks:
                task.cancel()

    _run(open_bench, work)


def _run(open_bench: Opener, work: Callable[[Bench, asyncio.Event], Awaitable[None]]) -> None:
    async def main() -> None:
        stop = Stop()
        with stop.watching():
            try:
                async with stop.cancels(), open_bench() as bench:
                    stop.ready()
                    heap.settle()
                    async with asyncio.TaskGroup() as group:
                        working = group.create_task(_as_coroutine(work(bench, stop.once)))
                        hurry = group.create_task(_hurry(stop, working))
                        working.add_done_callback(lambda _: hurry.cancel())
            except* Exception as errors:  # noqa: BLE001 - only taken out of their group
                raise first_of(errors) from None
        if stop.asked > 1:
            raise CancelledError("stopped by the user, twice: what was in hand is left to the next process")

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main())


async def _as_coroutine(work: Awaitable[None]) -> None:
    await work


async def _hurry(stop: Stop, working: asyncio.Task[None]) -> None:
    await stop.twice.wait()
    working.cancel()
