"""The engine's facade: everything that the doors ask of local models, over processes that may come and go.

::

    async with Engine(settings) as engine:
        async for event in engine.generate(request):
            ...
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import AsyncExitStack, aclosing
from pathlib import Path
from types import TracebackType
from typing import Final, Literal, Self, cast

import msgspec

from tokenweir.core.clock import Clock, SystemClock
from tokenweir.core.errors import (
    DrainingError,
    EngineRestartedError,
    InputError,
    ModelNotLoadedError,
    WeirError,
)
from tokenweir.core.events import Accepted, Completed, Event, Started, Usage
from tokenweir.core.ids import new_id
from tokenweir.core.requests import GenerateRequest, Message
from tokenweir.ports.inference import LoadSpec, ModelCard
from tokenweir.runtime import report
from tokenweir.runtime.assembly import SIM, DeviceName, engine_for, make_device, prefix_cache_bytes
from tokenweir.runtime.bridge.messages import Detokenize, Embed, Embedded, Stepped, Text, Tokenize, Tokens
from tokenweir.runtime.device import Device, DeviceCalls
from tokenweir.runtime.flow import Asked
from tokenweir.runtime.health import EngineHealth, ModelStatus
from tokenweir.runtime.memory import total_bytes
from tokenweir.runtime.models.manifest import read_card
from tokenweir.runtime.options import RunOptions
from tokenweir.runtime.room import Resident, idle, shares, victims
from tokenweir.runtime.settings import ModelSettings, Settings, bytes_of
from tokenweir.runtime.streams import failed
from tokenweir.runtime.supervision.reconcile import Loaded, Model
from tokenweir.telemetry.logs import get_logger

_NS_PER_S: Final = 1_000_000_000
_PLAIN: Final = RunOptions()
_MAX_TOGETHER: Final = 64
"""Requests of a batch that are prepared in one call."""

_log = get_logger("tokenweir.runtime.engine")


class Engine:
    """Local models behind one interface. Belongs to the event loop, and to the task, that starts it.

    ``on_stepped`` is called after each step of a model. Everything that is refused raises a ``WeirError``.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        clock: Clock | None = None,
        on_stepped: Callable[[Stepped], None] | None = None,
    ) -> None:
        self._settings = settings
        self._clock: Clock = clock or SystemClock()
        self._on_stepped = on_stepped or _ignore
        self._devices: dict[DeviceName, Device] = {}
        self._where: dict[str, Device] = {}
        self._default_max_tokens: dict[str, int] = {}
        self._engine = ""
        self._total_bytes = total_bytes()
        self._limit_bytes = bytes_of(settings.memory_limit, self._total_bytes)
        self._reserved_bytes = prefix_cache_bytes(settings, self._limit_bytes)
        self._draining = False
        self._room = asyncio.Lock()
        self._stack = AsyncExitStack()
        self._group: asyncio.TaskGroup

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    # -- life -----------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Start the engine's process and load the models of the settings.

        Raises:
            WeirError: a model cannot be loaded, or the process does not come up. Nothing is left running then.
        """
        try:
            self._group = await self._stack.enter_async_context(asyncio.TaskGroup())
            cards = [(one, await self._read(one)) for one in self._settings.models]
            self._engine = engine_for(self._settings.engine, [card for _, card in cards])
            if not cards:
                await self._device("text")
            async with asyncio.TaskGroup() as group:
                for one, card in cards:
                    group.create_task(self._bring(one, card))
            if self._settings.idle_ttl is not None:
                janitor = self._group.create_task(self._unload_idle(self._settings.idle_ttl))
                self._stack.callback(janitor.cancel)
        except ExceptionGroup as group:
            await self.aclose()
            raise _first(group) from None
        except BaseException:
            await self.aclose()
            raise

    async def drain(self, timeout_ns: int | None = None) -> None:
        """Take nothing new, and let what runs finish; what has not by ``timeout_ns`` fails as retryable."""
        self._draining = True
        patience = self._settings.drain_timeout if timeout_ns is None else timeout_ns
        for device in self._devices.values():
            device.scheduler.drain()
        try:
            async with asyncio.timeout(patience / _NS_PER_S):
                for device in self._devices.values():
                    await device.streams.empty()
        except TimeoutError:
            self._end_streams()

    async def aclose(self) -> None:
        """End everything: streams fail as retryable, processes are asked to end, and killed if they do not."""
        self._draining = True
        self._end_streams()
        await self._stack.aclose()

    # -- models ---------------------------------------------------------------------------------------------------

    async def load(
        self,
        path: str,
        *,
        name: str | None = None,
        weight_bits: Literal[4, 8] | None = None,
        context_tokens: int | None = None,
        draft: str | None = None,
    ) -> ModelCard:
        """Load a model and return its card; its name is the directory's unless given.

        A model that is loaded already in the same way is returned as it is; one of the same name that is not is
        replaced.

        Raises:
            InputError: the directory is no model that this engine runs.
            NoMemoryError: it does not fit; the message holds the arithmetic.
            WeirError: the engine would not load it, or is not there.
        """
        self._must_take()
        settings = ModelSettings(
            name=name,
            path=Path(path),
            weight_bits=weight_bits,
            context_tokens=context_tokens,
            draft=Path(draft) if draft is not None else None,
        )
        return await self._bring(settings, await self._read(settings))

    async def unload(self, name: str) -> None:
        """Give a model's memory back and forget it; its streams fail as retryable. Raises ModelNotLoadedError."""
        device = self._of(name)
        del self._where[name]
        await device.unload(device.models.get(name), forget=True)

    def models(self) -> Sequence[ModelStatus]:
        """Return the models that may be asked for, in the order in which they were loaded first."""
        return tuple(report.model_status(device, name) for name, device in self._where.items())

    def health(self) -> EngineHealth:
        """Return the state of everything as known now; asks nobody."""
        return report.engine_health(
            tuple(self._devices.values()),
            self.models(),
            engine=self._engine,
            now_ns=self._clock.monotonic_ns(),
        )

    # -- requests -------------------------------------------------------------------------------------------------

    async def generate(self, request: GenerateRequest, options: RunOptions = _PLAIN) -> AsyncGenerator[Event]:
        """Yield the events of a request, no faster than they are taken; closing it cancels the request.

        Raises:
            WeirError: the request is refused, or failed before it began. Later failures are ``Failed`` events.
        """
        self._must_take()
        device = self._of(request.model)
        if request.kind == "embedding":
            for event in await self._embedding(request):
                yield event
            return
        async with aclosing(device.generate(self._asked(request, options))) as events:
            async for event in events:
                yield event

    async def generate_batch(
        self, requests: Sequence[tuple[GenerateRequest, RunOptions]]
    ) -> list[list[Event]]:
        """Return the events of each request, in the order asked. One that is refused holds a ``Failed`` event alone.

        As many run at once as there is room for beside other requests; the rest wait. Raises DrainingError.
        """
        self._must_take()
        results: list[list[Event]] = [[] for _ in requests]
        by_model: dict[str, list[int]] = {}
        vectors: list[int] = []
        for place, (request, _) in enumerate(requests):
            if request.kind == "embedding":
                vectors.append(place)
            else:
                by_model.setdefault(request.model, []).append(place)
        most = max(1, min(_MAX_TOGETHER, self._settings.max_active_streams // 2))

        async def run(device: Device, places: Sequence[int]) -> None:
            answers = await device.together([self._asked(*requests[place]) for place in places])
            for place, events in zip(places, answers, strict=True):
                results[place] = events

        async def embed(place: int) -> None:
            try:
                results[place] = await self._embedding(requests[place][0])
            except WeirError as error:
                results[place] = [failed(error, 0)]

        async with asyncio.TaskGroup() as group:
            for place in vectors:
                group.create_task(embed(place))
            for model, places in by_model.items():
                try:
                    device = self._of(model)
                except ModelNotLoadedError as error:
                    for place in places:
                        results[place] = [failed(error, 0)]
                    continue
                for at in range(0, len(places), most):
                    group.create_task(run(device, places[at : at + most]))
        return results

    async def tokenize(self, model: str, text: str | Sequence[Message]) -> list[int]:
        """Return the token ids of a text, or of messages in the model's chat template. Raises WeirError."""
        call = (
            Tokenize(model=model, text=text)
            if isinstance(text, str)
            else Tokenize(model=model, messages=tuple(text))
        )
        self._must_take()
        return list((await self._of(model).ask(model, call, Tokens)).tokens)

    async def detokenize(self, model: str, tokens: Sequence[int]) -> str:
        """Return the text of token ids. Raises WeirError."""
        self._must_take()
        call = Detokenize(model=model, tokens=tuple(tokens))
        return (await self._of(model).ask(model, call, Text)).text

    async def embed(self, model: str, inputs: Sequence[str]) -> Embedded:
        """Return a vector of unit length for each input. Raises WeirError."""
        self._must_take()
        call = Embed(model=model, inputs=tuple(inputs))
        timeout_ns = self._settings.request_timeout or self._settings.load_timeout
        device = self._of(model)
        embedded = await device.ask(model, call, Embedded, timeout_ns=timeout_ns)
        device.models.get(model).answered = True
        return embedded

    # -- inside ---------------------------------------------------------------------------------------------------

    def _must_take(self) -> None:
        if self._draining:
            raise DrainingError("the server ends and takes nothing new", mend="send the request elsewhere")

    def _of(self, name: str) -> Device:
        device = self._where.get(name)
        if device is None:
            known = ", ".join(map(repr, self._where)) or "none"
            raise ModelNotLoadedError(f"there is no model {name!r}", mend=f"known models: {known}")
        return device

    def _asked(self, request: GenerateRequest, options: RunOptions) -> Asked:
        timeout_ns = options.timeout_ns if options.timeout_ns is not None else self._settings.request_timeout
        most = self._default_max_tokens.get(request.model)
        if timeout_ns is None:
            return Asked(request=request, options=options, default_max_tokens=most)
        return Asked(
            request=request,
            options=msgspec.structs.replace(options, timeout_ns=timeout_ns),
            deadline_ns=self._clock.monotonic_ns() + timeout_ns,
            default_max_tokens=most,
        )

    async def _embedding(self, request: GenerateRequest) -> list[Event]:
        embedded = await self.embed(request.model, request.inputs)
        return [
            Accepted(seq=0, request_id=new_id("req")),
            Started(seq=1, model=request.model),
            Usage(seq=2, input_tokens=embedded.input_tokens, output_tokens=0),
            Completed(seq=3, finish_reason="stop", embeddings=embedded.vectors),
        ]

    async def _read(self, one: ModelSettings) -> ModelCard:
        """Return the card of a model's files, which are hashed on another thread."""
        return await asyncio.to_thread(
            read_card,
            one.path,
            one.called,
            weight_bits=one.weight_bits,
            context_tokens=one.context_tokens,
            draft=one.draft,
        )

    async def _bring(self, one: ModelSettings, card: ModelCard) -> ModelCard:
        """Have a model loaded on the device where it belongs."""
        if (card.architecture == SIM) != (self._engine == SIM):
            raise InputError(
                f"{card.path} is a model of architecture {card.architecture!r}, which the engine "
                f"{self._engine!r} does not run",
                mend=f"set runtime.engine to {SIM if card.architecture == SIM else 'mlx'}",
            )
        spec = LoadSpec(
            name=card.name,
            path=card.path,
            weight_bits=one.weight_bits,
            context_tokens=one.context_tokens,
            draft=card.draft,
        )
        device = await self._device("vision" if "vision" in card.capabilities else "text")
        before = self._where.get(card.name)
        if before is not None:
            old = before.models.get(card.name)
            if before is not device or old.spec != spec or old.card.revision != card.revision:
                await before.unload(old, forget=True)
        model = device.models.put(spec, card)
        self._where[card.name] = device
        device.schedule(card.name, one.scheduler or self._settings.scheduler)
        self._default_max_tokens.pop(card.name, None)
        if one.default_max_tokens is not None:
            self._default_max_tokens[card.name] = one.default_max_tokens
        try:
            await self._until_loaded(device, model)
        except WeirError:
            if before is None and not isinstance(model.presence, Loaded):
                device.models.forget(card.name)
                self._where.pop(card.name, None)
            raise
        return model.card

    async def _until_loaded(self, device: Device, model: Model) -> None:
        """Load a model; where the process is lost meanwhile, try again in the next, as often as the inventory lets."""
        while True:
            try:
                await device.ensure(model.name)
            except EngineRestartedError as error:
                _log.warning("model_load_interrupted", model=model.name, error=str(error))
            else:
                return

    async def _device(self, name: DeviceName) -> Device:
        """Return a device, which is started when it is first needed."""
        device = self._devices.get(name)
        if device is None:
            calls = DeviceCalls(
                make_room=self._make_room, share_out=self._share_out, on_stepped=self._on_stepped
            )
            device = self._devices[name] = make_device(
                self._settings,
                name,
                self._engine,
                calls,
                total_bytes=self._total_bytes,
                clock=self._clock,
            )
            await self._stack.enter_async_context(device.running())
        return device

    async def _make_room(self, model: Model) -> None:
        """Unload what was not used for longest until a model fits. Raises NoMemoryError or UnavailableError."""
        async with self._room:
            names = victims(
                model.card,
                [one for one in self._residents() if one.name != model.name],
                limit_bytes=self._limit_bytes,
                reserved_bytes=self._reserved_bytes * len(self._devices),
                taken_bytes=sum(device.scheduler.taken_bytes for device in self._devices.values()),
            )
            for name in names:
                await self._put_away(name, f"{model.name!r} needs its memory")

    def _share_out(self) -> None:
        """Divide the memory among the processes that have models."""
        using = [(one, one.residents()) for one in self._devices.values() if one.residents()]
        weights = [sum(model.weights_bytes for model in residents) for _, residents in using]
        parts = shares(weights, limit_bytes=self._limit_bytes, reserved_bytes=self._reserved_bytes)
        for (device, _), part in zip(using, parts, strict=True):
            device.limit(part)

    async def _unload_idle(self, ttl_ns: int) -> None:
        while True:
            await asyncio.sleep(ttl_ns / 4 / _NS_PER_S)
            for name in idle(self._residents(), ttl_ns=ttl_ns, now_ns=self._clock.monotonic_ns()):
                await self._put_away(name, "nobody asked for it")

    async def _put_away(self, name: str, reason: str) -> None:
        """Unload a model that comes back when it is asked for."""
        device = self._where[name]
        _log.info("model_unloaded", model=name, reason=reason)
        try:
            await device.unload(device.models.get(name), forget=False)
        except WeirError as error:
            _log.error("model_not_unloaded", model=name, error=str(error))

    def _residents(self) -> list[Resident]:
        return [one for device in self._devices.values() for one in device.residents()]

    def _end_streams(self) -> None:
        for device in self._devices.values():
            device.flow.end(
                DrainingError("the server ends", mend="send the request again, elsewhere or later")
            )


def _ignore(stepped: Stepped) -> None:
    del stepped


def _first(group: ExceptionGroup[Exception]) -> Exception:
    """Return the first error of ours in a group; the group itself where there is none."""
    for error in group.exceptions:
        inner = (
            _first(cast("ExceptionGroup[Exception]", error)) if isinstance(error, ExceptionGroup) else error
        )
        if isinstance(inner, WeirError):
            return inner
    return group
