"""Running the model server in this process: engine, doors, signals, and what is said when it is ready."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Callable
from importlib import import_module
from typing import Final, Protocol, cast

import msgspec
import uvloop

from tokenweir.asgi import heap
from tokenweir.asgi.server import Bounds, HttpServer
from tokenweir.asgi.stopping import Stop, first_of
from tokenweir.asgi.tls import listener
from tokenweir.core.clock import SystemClock
from tokenweir.core.errors import CancelledError, WeirError
from tokenweir.runtime.engine import Engine
from tokenweir.runtime.health import EngineHealth
from tokenweir.runtime.http.app import App
from tokenweir.runtime.http.door import Build, Door, Limits
from tokenweir.runtime.http.metrics import Metrics
from tokenweir.runtime.images import ImageLimits
from tokenweir.runtime.settings import Settings
from tokenweir.runtime.warmup import keep_warm, warm_loaded
from tokenweir.telemetry.refusals import Refusals

_NS_PER_S: Final = 1_000_000_000


class Running(msgspec.Struct, frozen=True, kw_only=True):
    """A server that is ready: where it listens, and what it serves. ``grpc`` is empty where there is no such door."""

    url: str
    grpc: str
    health: EngineHealth


class _GrpcDoor(Protocol):
    """The gRPC server; its library is imported only where it is asked for."""

    @property
    def address(self) -> str:
        """Host and port."""
        ...

    async def start(self) -> None:
        """Listen and answer."""
        ...

    async def stop(self, grace_ns: int) -> None:
        """Stop listening; calls on their way get so long to end."""
        ...


def run(settings: Settings, build: Build, announce: Callable[[Running], None]) -> None:
    """Serve until SIGTERM or Ctrl-C; the first drains, a second one ends at once.

    ``announce`` is called once a model has made a token, or at once where no model is loaded at the start.

    Raises:
        ConfigError: an address cannot be listened on, or the key cannot be read.
        CancelledError: it was stopped before it was ready, or twice.
        WeirError: a model cannot be loaded, or the engine does not come up.
    """
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_serve(settings, build, announce))


async def _serve(settings: Settings, build: Build, announce: Callable[[Running], None]) -> None:
    stop = Stop()
    clock = SystemClock()
    metrics = Metrics(clock)
    engine = Engine(settings, clock=clock, on_stepped=metrics.stepped)
    door = Door(
        engine,
        metrics=metrics,
        clock=clock,
        build=build,
        limits=_limits(settings),
        key=settings.api_key.read() if settings.api_key is not None else None,
        log_prompts=settings.log_prompts,
    )
    refusals = Refusals("tokenweir.runtime")
    server = HttpServer(
        App(door),
        settings.host,
        settings.port,
        bounds=_bounds(settings),
        drain_timeout_ns=settings.drain_timeout,
        tls=listener(settings.tls, refusals, refusals.renewed),
    )
    failed: WeirError | None = None
    with stop.watching():
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(server.serve())
                try:
                    async with stop.cancels(), engine:
                        await warm_loaded(engine)
                        async with _grpc(door, settings) as address:
                            announce(Running(url=server.url, grpc=address, health=engine.health()))
                            await _until_stopped(engine, stop, settings)
                except WeirError as error:
                    # Kept until the server has ended in its own way: the group would cancel it.
                    failed = error
                finally:
                    server.close(at_once=stop.asked > 1 or failed is not None)
        except* Exception as errors:  # noqa: BLE001 - only taken out of their group
            raise first_of(errors) from None
    if failed is not None:
        raise failed
    if stop.asked > 1:
        raise CancelledError("stopped by the user, twice: answers on their way were cut off")


async def _until_stopped(engine: Engine, stop: Stop, settings: Settings) -> None:
    """Keep models warm until asked to stop, then drain; a second request ends the draining."""
    stop.ready()
    heap.settle()
    async with asyncio.TaskGroup() as group:
        warming = group.create_task(keep_warm(engine))
        await stop.once.wait()
        warming.cancel()
    async with asyncio.TaskGroup() as group:
        draining = group.create_task(engine.drain(settings.drain_timeout))
        impatience = group.create_task(stop.twice.wait())
        await asyncio.wait((draining, impatience), return_when=asyncio.FIRST_COMPLETED)
        draining.cancel()
        impatience.cancel()


@contextlib.asynccontextmanager
async def _grpc(door: Door, settings: Settings) -> AsyncGenerator[str]:
    """Offer gRPC while the block runs, where the settings name a port for it; yield where it listens."""
    if settings.grpc_port is None:
        yield ""
        return
    module = import_module("tokenweir.runtime.rpc_door.service")
    server = cast("_GrpcDoor", module.GrpcServer(door, settings.host, settings.grpc_port, tls=settings.tls))
    await server.start()
    try:
        yield server.address
    finally:
        await server.stop(_NS_PER_S)


def _limits(settings: Settings) -> Limits:
    return Limits(
        body_bytes=settings.max_body_bytes,
        read_timeout_ns=settings.read_timeout,
        images=ImageLimits(
            count=settings.max_images,
            size_bytes=settings.max_image_bytes,
            pixels=settings.max_image_pixels,
        ),
    )


def _bounds(settings: Settings) -> Bounds:
    return Bounds(
        header_bytes=settings.max_header_bytes,
        read_timeout_ns=settings.read_timeout,
        write_timeout_ns=settings.write_timeout,
        idle_timeout_ns=settings.idle_timeout,
    )
