"""One device: its engine's process across restarts, the models in it, and the requests on their way through it."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator, Sequence
from contextlib import AsyncExitStack, aclosing, asynccontextmanager, contextmanager, suppress
from typing import TypeVar

import msgspec

from tokenweir.core.clock import Clock
from tokenweir.core.errors import DeadlineError, EngineError, EngineRestartedError, WeirError
from tokenweir.core.events import Event
from tokenweir.ports.inference import DeviceMemory, ModelCard
from tokenweir.runtime.bridge.messages import Answer, Call, Load, Stepped, Unload
from tokenweir.runtime.flow import Asked, Flow
from tokenweir.runtime.room import Resident
from tokenweir.runtime.scheduling.scheduler import Scheduler
from tokenweir.runtime.scheduling.tickets import Changes
from tokenweir.runtime.settings import SchedulerMode
from tokenweir.runtime.streams import StreamTable
from tokenweir.runtime.supervision.reconcile import Inventory, Loaded, Loading, Model
from tokenweir.runtime.supervision.supervisor import EngineSpec, Life, SupervisionPolicy, Supervisor
from tokenweir.telemetry.logs import get_logger

_log = get_logger("tokenweir.runtime.device")

AnswerT = TypeVar("AnswerT", bound=Answer)


class DeviceOptions(msgspec.Struct, frozen=True, kw_only=True):
    """What a device may take. ``call_timeout_ns`` bounds what the process answers beside its device thread."""

    max_active_streams: int
    stream_tokens: int
    load_timeout_ns: int
    call_timeout_ns: int


class DeviceCalls(msgspec.Struct, frozen=True, kw_only=True):
    """What a device calls: ``make_room`` before it loads a model, ``share_out`` after its models have changed.

    ``on_stepped`` is called after each step of a model.
    """

    make_room: Callable[[Model], Awaitable[None]]
    share_out: Callable[[], None]
    on_stepped: Callable[[Stepped], None]


class Device:
    """Serves the models of one engine's process. Observes its own supervisor."""

    def __init__(
        self,
        spec: EngineSpec,
        policy: SupervisionPolicy,
        options: DeviceOptions,
        scheduler: Scheduler,
        calls: DeviceCalls,
        *,
        clock: Clock,
    ) -> None:
        self.spec = spec
        self.scheduler = scheduler
        self.models = Inventory()
        self.streams = StreamTable(options.max_active_streams)
        self.supervisor = Supervisor(spec, policy, self, clock=clock)
        self.flow = Flow(
            scheduler,
            self.streams,
            self.ensure,
            window=options.stream_tokens,
            timeout_ns=options.call_timeout_ns,
            clock=clock,
        )
        self.engine_version = ""
        self._options = options
        self._calls = calls
        self._clock = clock
        self._modes: dict[str, SchedulerMode] = {}
        self._loads: dict[str, asyncio.Future[WeirError | None]] = {}
        self._users: Counter[str] = Counter()
        self._used_ns: dict[str, int] = {}
        self._loading = asyncio.Lock()
        self._draining: int | None = None
        self._life: Life | None = None
        self._group: asyncio.TaskGroup

    @asynccontextmanager
    async def running(self) -> AsyncGenerator[Device]:
        """Keep the process alive while the block runs."""
        async with AsyncExitStack() as stack:
            self._group = await stack.enter_async_context(asyncio.TaskGroup())
            timekeeper = self._group.create_task(self.flow.keep_time())
            stack.callback(timekeeper.cancel)
            await stack.enter_async_context(self.supervisor.running())
            yield self

    # -- models ---------------------------------------------------------------------------------------------------

    def schedule(self, name: str, mode: SchedulerMode) -> None:
        """Set how requests of a model are scheduled, before it is loaded."""
        self._modes[name] = mode

    async def ensure(self, name: str) -> tuple[Life, ModelCard]:
        """Return the process once it has the model, loading it if it must be; callers share one load.

        Raises:
            ModelNotLoadedError: it is not known.
            UnavailableError: there is no process, and none came in time.
            WeirError: the engine would not load it.
        """
        while True:
            self.models.get(name)
            life = await self.supervisor.life()
            # Looked at after the wait: what happened meanwhile may have changed it.
            model = self.models.get(name)
            refusal = model.refusal()
            if refusal is not None:
                raise refusal
            if model.in_epoch(life.epoch):
                return life, model.card
            model.wanted = True
            error = await asyncio.shield(self._load_once(model, life))
            if error is not None:
                raise error

    async def unload(self, model: Model, *, forget: bool) -> None:
        """Give a model's memory back. With ``forget`` nobody can ask for it any more, else it comes back when asked."""
        pending = self._loads.get(model.name)
        if pending is not None:
            # What is not there yet cannot be given back.
            await asyncio.shield(pending)
        presence = model.presence
        self.models.released(model)
        if forget:
            self.models.forget(model.name)
        self.flow.apply(self.scheduler.remove_model(model.name))
        self._calls.share_out()
        if not isinstance(presence, Loaded):
            return
        with suppress(EngineRestartedError):
            # With its process the model is gone too.
            life = await self.supervisor.life()
            if life.epoch == presence.epoch:
                await life.client.call(
                    Unload(model=model.name), DeviceMemory, timeout_ns=self._options.load_timeout_ns
                )

    async def generate(self, asked: Asked) -> AsyncGenerator[Event]:
        """Yield the events of one request, as :meth:`Flow.generate` does, and keep its model in use meanwhile."""
        with self.using(asked.request.model):
            async with aclosing(self.flow.generate(asked)) as events:
                async for event in events:
                    yield event

    async def together(self, batch: Sequence[Asked]) -> list[list[Event]]:
        """Return the events of requests for one model, as :meth:`Flow.together` does, once there is room for them."""
        with self.using(batch[0].request.model):
            await self.streams.room(len(batch))
            return await self.flow.together(batch)

    @contextmanager
    def using(self, name: str) -> Generator[None]:
        """Count as a user of a model while the block runs, so that it is not taken for idle."""
        self._users[name] += 1
        try:
            yield
        finally:
            self._users[name] -= 1
            self._used_ns[name] = self._clock.monotonic_ns()

    def residents(self) -> list[Resident]:
        """Return the models in memory, or on their way into it, which counts as use."""
        return [
            Resident(
                name=model.name,
                weights_bytes=model.card.weights_bytes,
                used_ns=self._used_ns.get(model.name, 0),
                users=self._users[model.name] + isinstance(model.presence, Loading),
            )
            for model in self.models
            if isinstance(model.presence, Loading | Loaded)
        ]

    def limit(self, limit_bytes: int) -> None:
        """Change the memory that this device may use."""
        self.flow.apply(Changes(admitted=tuple(self.scheduler.set_limit(limit_bytes))))

    async def ask(
        self, name: str, call: Call, answer: type[AnswerT], *, timeout_ns: int | None = None
    ) -> AnswerT:
        """Ask the process something about a model, which is loaded first if it must be. Raises WeirError."""
        with self.using(name):
            life, _ = await self.ensure(name)
            return await life.client.call(
                call, answer, timeout_ns=timeout_ns or self._options.call_timeout_ns
            )

    def _load_once(self, model: Model, life: Life) -> asyncio.Future[WeirError | None]:
        """Return the load that is under way, or begin one. Its result is what it was refused with."""
        running = self._loads.get(model.name)
        if running is not None:
            return running
        done: asyncio.Future[WeirError | None] = asyncio.get_running_loop().create_future()
        self._loads[model.name] = done
        self._group.create_task(self._load(model, life, done))
        return done

    async def _load(self, model: Model, life: Life, done: asyncio.Future[WeirError | None]) -> None:
        """Load a model, after those before it: the device has one thread, and a crash is the fault of one model."""
        error: WeirError | None = None
        try:
            async with self._loading:
                await self._load_now(model, life)
        except WeirError as refused:
            error = refused
            _log.error(
                "model_not_loaded",
                model=model.name,
                device=self.spec.device,
                epoch=life.epoch,
                error=str(refused),
            )
        except Exception as failure:  # noqa: BLE001 - the worker's boundary: those who wait must hear of it
            _log.exception("model_not_loaded", model=model.name, device=self.spec.device, epoch=life.epoch)
            error = EngineError(f"{type(failure).__name__} while {model.name!r} was loaded: {failure}")
            self.models.refused(model, life.epoch, error)
        finally:
            del self._loads[model.name]
            if not done.done():
                done.set_result(error)
        if isinstance(error, EngineRestartedError):
            # The next process may have become ready before this load was given up.
            self._reconcile()

    async def _load_now(self, model: Model, life: Life) -> None:
        """Load a model. Raises what it was refused with."""
        if life is not self._life:
            raise EngineRestartedError("the engine's process was lost", mend="send the request again")
        began_ns = self._clock.monotonic_ns()
        self.models.loading(model, life.epoch)
        try:
            await self._calls.make_room(model)
            with self.supervisor.slowly():
                card = await life.client.call(
                    Load(spec=model.spec, card=model.card),
                    ModelCard,
                    timeout_ns=self._options.load_timeout_ns,
                )
        except DeadlineError:
            # Nothing tells a load that it is not wanted any more.
            self.supervisor.condemn(life.epoch, f"it loaded {model.name!r} for too long")
            raise
        except EngineRestartedError:
            raise
        except WeirError as refused:
            self.models.refused(model, life.epoch, refused)
            raise
        self.models.loaded(model, life.epoch, card)
        mode = self._modes.get(model.name, "on")
        self.flow.apply(self.scheduler.add_model(model.name, weights_bytes=card.weights_bytes, mode=mode))
        self._used_ns[model.name] = self._clock.monotonic_ns()
        self._calls.share_out()
        _log.info(
            "model_loaded",
            model=model.name,
            revision=card.revision,
            device=self.spec.device,
            epoch=life.epoch,
            took_ms=(self._clock.monotonic_ns() - began_ns) // 1_000_000,
        )

    def _reconcile(self) -> None:
        """Load what the present process should have and has not."""
        if self._life is not None:
            for model in self.models.missing(self._life.epoch):
                self._load_once(model, self._life)

    # -- the supervisor's observer --------------------------------------------------------------------------------

    def on_ready(self, life: Life) -> None:
        """Load what should be there, and admit again."""
        self._draining = None
        self.engine_version = life.initialized.engine_version
        self._life = life
        self.flow.ready(life)
        self._reconcile()

    def on_stepped(self, epoch: int, stepped: Stepped) -> None:
        """Pass a step on."""
        if stepped.decoded and stepped.model in self.models:
            self.models.get(stepped.model).answered = True
        self.flow.stepped(epoch, stepped)
        self._calls.on_stepped(stepped)
        self._check_drained()

    def on_draining(self, epoch: int, reason: str) -> None:
        """Let what runs finish, and what waits wait for the next process."""
        self._draining = epoch
        self.flow.orphan(epoch, EngineRestartedError(f"the engine's process is replaced: {reason}"))
        self._check_drained()

    def on_lost(self, epoch: int, error: WeirError) -> None:
        """Fail what ran, and know that nothing is loaded any more."""
        self._draining = None
        self._life = None
        self.models.lost(epoch)
        self.flow.lost(epoch, error)

    def _check_drained(self) -> None:
        if self._draining is not None and not self.flow.busy(self._draining):
            epoch, self._draining = self._draining, None
            self.supervisor.drained(epoch)
