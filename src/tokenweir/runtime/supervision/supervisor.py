"""Keeps one engine's process alive: starts it, listens to its heart, ends it when it hangs or grows, restarts it."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncGenerator, Callable, Generator, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import Final, Protocol, assert_never

import msgspec

from tokenweir.core.breaker import Breaker, BreakerPolicy, BreakerState
from tokenweir.core.clock import Clock
from tokenweir.core.errors import (
    DeadlineError,
    DrainingError,
    EngineRestartedError,
    UnavailableError,
    WeirError,
)
from tokenweir.core.units import format_duration
from tokenweir.runtime.bridge import messages
from tokenweir.runtime.bridge.client import BridgeClient
from tokenweir.runtime.bridge.messages import Done, Initialize, Initialized, Ping, Pong, Stepped
from tokenweir.runtime.supervision.child_process import ChildProcess
from tokenweir.runtime.supervision.lifecycle import (
    Action,
    BackingOff,
    Broken,
    Drain,
    Draining,
    Kill,
    Lifecycle,
    LifePolicy,
    LifeState,
    Ready,
    Shutdown,
    Spawn,
    Starting,
    Stopped,
    Stopping,
    Unhealthy,
)
from tokenweir.telemetry.logs import get_logger

_NS_PER_S: Final = 1_000_000_000
_LAST_WORDS_S: Final = 1.0
"""Time between the end of the connection and that of the process, in which the process tells how it ends."""

_log = get_logger("tokenweir.runtime.supervision")


class EngineSpec(msgspec.Struct, frozen=True, kw_only=True):
    """What a process is told at its start, apart from its epoch; ``device`` is the name of the process in the log."""

    device: str
    engine: str
    limit_bytes: int
    prefix_cache_bytes: int
    max_active_streams: int
    artifacts: str = ""
    artifact_bytes: int = 0
    options: dict[str, messages.Json] = {}


class SupervisionPolicy(msgspec.Struct, frozen=True, kw_only=True):
    """How processes are looked after.

    ``wait_ns`` is how long a caller waits for one that is not ready, ``start_wait_ns`` for the very first.
    """

    life: LifePolicy
    breaker: BreakerPolicy
    heartbeat_ns: int
    wait_ns: int
    start_wait_ns: int


class Life(Protocol):
    """One ready process. ``epoch`` names it; its client's calls fail once it is gone."""

    @property
    def epoch(self) -> int:
        """The number of this process."""
        ...

    @property
    def client(self) -> BridgeClient:
        """The bridge to it."""
        ...

    @property
    def initialized(self) -> Initialized:
        """What it said of itself at its start."""
        ...


class Observer(Protocol):
    """Who uses the processes, told on the event loop."""

    def on_ready(self, life: Life) -> None:
        """A process is ready, with nothing loaded."""
        ...

    def on_stepped(self, epoch: int, stepped: Stepped) -> None:
        """The process made a step."""
        ...

    def on_draining(self, epoch: int, reason: str) -> None:
        """The process takes nothing new; call :meth:`Supervisor.drained` once it has finished."""
        ...

    def on_lost(self, epoch: int, error: WeirError) -> None:
        """The process is gone or given up; whatever it had in work fails with ``error``."""
        ...


class _Life(msgspec.Struct, kw_only=True):
    """What is known of the present process; ``lost`` tells that the observer has been told."""

    epoch: int
    process: ChildProcess | None = None
    bridge: BridgeClient | None = None
    greeting: Initialized | None = None
    lost: bool = False

    @property
    def client(self) -> BridgeClient:
        """The bridge to it. Raises EngineRestartedError before there is one."""
        if self.bridge is None:
            raise EngineRestartedError("the engine's process is not connected", mend="send the request again")
        return self.bridge

    @property
    def initialized(self) -> Initialized:
        """What it said of itself. Raises EngineRestartedError before it did."""
        if self.greeting is None:
            raise EngineRestartedError("the engine's process is not ready", mend="send the request again")
        return self.greeting


class Supervisor:
    """Looks after the processes of one device, one at a time, between :meth:`start` and :meth:`stop`.

    ``group`` runs its work. Every change goes through a :class:`Lifecycle`, which decides; this class does what
    it says and reports what happened.
    """

    def __init__(
        self,
        spec: EngineSpec,
        policy: SupervisionPolicy,
        observer: Observer,
        *,
        clock: Clock,
        draw: Callable[[], float] = random.random,
    ) -> None:
        self._spec = spec
        self._policy = policy
        self._observer = observer
        self._clock = clock
        self._breaker = Breaker(policy.breaker)
        self._lifecycle = Lifecycle(policy.life, self._breaker, draw)
        self._life: _Life | None = None
        self._pulse: Pong | None = None
        self._reported: LifeState = Stopped()
        self._group: asyncio.TaskGroup
        self._nudge = asyncio.Event()
        self._changed = asyncio.Event()

    # -- what others see ------------------------------------------------------------------------------------------

    @property
    def state(self) -> LifeState:
        """Where the process is in its life."""
        return self._lifecycle.state

    @property
    def breaker(self) -> BreakerState:
        """The circuit breaker."""
        return self._breaker.state

    @property
    def epoch(self) -> int:
        """The number of the present process, or of the last one."""
        return self._lifecycle.epoch

    @property
    def restarts(self) -> int:
        """How many processes were started after the first."""
        return self._lifecycle.restarts

    @property
    def pulse(self) -> Pong | None:
        """What the last heartbeat of the present process said."""
        return self._pulse

    def retry_after_ns(self) -> int:
        """Return how long a caller that cannot be served now should wait."""
        now = self._clock.monotonic_ns()
        match self._lifecycle.state:
            case BackingOff(until_ns=until) | Broken(until_ns=until):
                return max(until - now, 0) + _NS_PER_S
            case _:
                return _NS_PER_S

    async def life(self) -> Life:
        """Return the ready process, waiting for it as long as the policy lets.

        Raises:
            UnavailableError: it was not ready in time, or the circuit breaker is open.
            DrainingError: none is wanted any more.
        """
        first = self._lifecycle.epoch == 1 and isinstance(self._lifecycle.state, Starting)
        patience = self._policy.start_wait_ns if first else self._policy.wait_ns
        try:
            async with asyncio.timeout(patience / _NS_PER_S):
                while True:
                    life = self._now_or_never()
                    if life is not None:
                        return life
                    await self._changed.wait()
        except TimeoutError:
            raise UnavailableError(
                f"the engine was not ready within {format_duration(patience)}: {self._why()}",
                mend="try again later",
                retry_after_ns=self.retry_after_ns(),
            ) from None

    @contextmanager
    def slowly(self) -> Generator[None]:
        """Allow the device thread to be away for long while the block runs: it loads a model."""
        self._lifecycle.slow += 1
        self._nudge.set()
        try:
            yield
        finally:
            self._lifecycle.slow -= 1
            self._nudge.set()

    def drained(self, epoch: int) -> None:
        """Report that a draining process has finished what it had."""
        self._do(self._lifecycle.drained(epoch))

    def condemn(self, epoch: int, reason: str) -> None:
        """End the process ``epoch``: it does what it must not."""
        self._do(self._lifecycle.condemn(epoch, reason))

    # -- running --------------------------------------------------------------------------------------------------

    @asynccontextmanager
    async def running(self) -> AsyncGenerator[Supervisor]:
        """Start the process and look after it while the block runs; end it after."""
        async with asyncio.TaskGroup() as group:
            self._group = group
            self._do(self._lifecycle.start(self._clock.monotonic_ns()))
            group.create_task(self._attend())
            try:
                yield self
            finally:
                self._do(self._lifecycle.stop(self._clock.monotonic_ns()))

    async def _attend(self) -> None:
        """Let time pass for the lifecycle until it has stopped."""
        while not isinstance(self._lifecycle.state, Stopped):
            wake = self._lifecycle.next_wake_ns()
            self._nudge.clear()
            delay_s = None if wake is None else max(wake - self._clock.monotonic_ns(), 0) / _NS_PER_S
            try:
                async with asyncio.timeout(delay_s):
                    await self._nudge.wait()
            except TimeoutError:
                self._do(self._lifecycle.tick(self._clock.monotonic_ns()))

    def _do(self, actions: Sequence[Action]) -> None:
        """Do what the lifecycle decided, and wake whoever waits for a change."""
        for action in actions:
            match action:
                case Spawn(epoch=epoch):
                    self._group.create_task(self._live(epoch))
                case Drain(epoch=epoch, reason=reason):
                    self._observer.on_draining(epoch, reason)
                case Shutdown():
                    self._group.create_task(self._ask_to_end())
                case Kill(reason=reason):
                    self._kill(reason)
                case _:
                    assert_never(action)
        self._report()
        self._nudge.set()
        self._changed.set()
        self._changed = asyncio.Event()

    async def _live(self, epoch: int) -> None:
        """Run one process from its start to its end."""
        life = self._life = _Life(epoch=epoch)
        self._pulse = None
        try:
            process = await ChildProcess.spawn(
                self._spec.device, epoch, preload_blas=self._spec.engine != "sim"
            )
        except OSError as error:
            self._gone(life, f"it could not be started: {error}")
            return
        life.process = process
        try:
            async with asyncio.TaskGroup() as group:
                talk = group.create_task(self._talk(life, process))
                self._do(self._lifecycle.spawned(epoch, process.pid))
                reason = await process.wait()
                talk.cancel()
        except Exception as error:  # noqa: BLE001 - the worker's boundary: the process is ended and replaced
            _log.exception("supervision_failed", device=self._spec.device, epoch=epoch)
            reason = f"it could not be looked after: {type(error).__name__}"
        finally:
            process.kill()
            if life.bridge is not None:
                life.bridge.close()
            await process.reap()
        self._gone(life, reason)

    async def _talk(self, life: _Life, process: ChildProcess) -> None:
        """Greet the process, tell everybody that it is ready, and listen to its heart until it is gone."""
        cut: asyncio.Future[WeirError | None] = asyncio.get_running_loop().create_future()
        client = await BridgeClient.connect(
            process.sock,
            lambda stepped: self._observer.on_stepped(life.epoch, stepped),
            lambda error: None if cut.done() else cut.set_result(error),
        )
        life.bridge = client
        async with asyncio.TaskGroup() as group:
            pulse = group.create_task(self._greet_and_listen(life, client))
            error = await cut
            pulse.cancel()
        if isinstance(error, EngineRestartedError):
            # It closed the connection, so it is ending, and how it ends is worth more than that it did.
            await asyncio.sleep(_LAST_WORDS_S)
        self._do(self._lifecycle.condemn(life.epoch, error.message if error else "the connection was closed"))

    async def _greet_and_listen(self, life: _Life, client: BridgeClient) -> None:
        spec, timeout_ns = self._spec, self._policy.life.startup_ns
        greeting = Initialize(
            protocol=messages.PROTOCOL_VERSION,
            engine=spec.engine,
            epoch=life.epoch,
            limit_bytes=spec.limit_bytes,
            prefix_cache_bytes=spec.prefix_cache_bytes,
            max_active_streams=spec.max_active_streams,
            artifacts=spec.artifacts,
            artifact_bytes=spec.artifact_bytes,
            options=spec.options,
        )
        try:
            life.greeting = await client.call(greeting, Initialized, timeout_ns=timeout_ns)
            self._pulse = await client.call(Ping(), Pong, timeout_ns=timeout_ns)
        except EngineRestartedError:
            return
        except WeirError as error:
            self._do(self._lifecycle.condemn(life.epoch, f"it did not get ready: {error}"))
            return
        self._do(self._lifecycle.became_ready(life.epoch, self._clock.monotonic_ns()))
        self._observer.on_ready(life)
        while True:
            await asyncio.sleep(self._policy.heartbeat_ns / _NS_PER_S)
            await self._beat(life, client)

    async def _beat(self, life: _Life, client: BridgeClient) -> None:
        try:
            pong = await client.call(Ping(), Pong, timeout_ns=self._policy.life.stall_ns)
        except (DeadlineError, EngineRestartedError):
            # The lifecycle counts the silence, and the connection's end is noticed where it is watched.
            return
        except WeirError as error:
            self._do(self._lifecycle.condemn(life.epoch, f"its heartbeat is not understood: {error}"))
            return
        if pong.epoch != life.epoch:
            self._do(self._lifecycle.condemn(life.epoch, f"it says that it is epoch {pong.epoch}"))
            return
        self._pulse = pong
        actions = self._lifecycle.beat(
            life.epoch,
            rss_bytes=pong.rss_bytes,
            stalled_ns=pong.stalled_ns,
            now_ns=self._clock.monotonic_ns(),
        )
        self._do(actions)

    async def _ask_to_end(self) -> None:
        life = self._life
        if life is None or life.process is None:
            return
        if life.greeting is None or life.bridge is None:
            life.process.kill()
            return
        with contextlib.suppress(WeirError):
            await life.bridge.call(messages.Shutdown(), Done, timeout_ns=self._policy.life.stall_ns)
        life.bridge.close()

    def _kill(self, reason: str) -> None:
        life = self._life
        if life is not None and life.process is not None:
            life.process.kill()
            self._tell_lost(life, reason)

    def _gone(self, life: _Life, reason: str) -> None:
        self._do(self._lifecycle.exited(life.epoch, reason, self._clock.monotonic_ns()))
        self._tell_lost(life, reason)

    def _tell_lost(self, life: _Life, reason: str) -> None:
        if life.lost:
            return
        life.lost = True
        error = EngineRestartedError(
            f"the engine's process was lost: {reason}",
            mend="send the request again; the engine restarts by itself",
        )
        self._observer.on_lost(life.epoch, error)

    # -- telling --------------------------------------------------------------------------------------------------

    def _now_or_never(self) -> Life | None:
        """Return the ready process, or ``None`` while waiting for it makes sense."""
        state = self._lifecycle.state
        match state:
            case Ready():
                life = self._life
                standing = life is not None and life.bridge is not None and life.bridge.connected
                return life if standing else None
            case Broken(reason=reason):
                raise UnavailableError(
                    f"the engine was lost too often; the last time: {reason}",
                    mend="see the log; it is tried again by itself",
                    retry_after_ns=self.retry_after_ns(),
                )
            case Stopped() | Stopping():
                raise DrainingError("the engine is stopped", mend="start the server again")
            case Starting() | Draining() | Unhealthy() | BackingOff():
                return None
            case _:
                assert_never(state)

    def _why(self) -> str:
        match self._lifecycle.state:
            case Draining(reason=reason) | Unhealthy(reason=reason) | BackingOff(reason=reason):
                return f"it restarts because {reason}"
            case state:
                return f"it is {_name(state)}"

    def _report(self) -> None:
        """Log a change of state once."""
        state = self._lifecycle.state
        if state == self._reported:
            return
        self._reported = state
        fields = {"device": self._spec.device, "state": _name(state), **msgspec.structs.asdict(state)}
        match state:
            case Broken() | BackingOff() | Unhealthy():
                _log.error("engine_state", **fields)
            case Draining():
                _log.warning("engine_state", **fields)
            case _:
                _log.info("engine_state", **fields)


def _name(state: LifeState) -> str:
    return str(type(state).__struct_config__.tag).replace("_", " ")
