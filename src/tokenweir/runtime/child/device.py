"""The thread that owns the device: it makes the engine, loads, steps, embeds and unloads, and nothing else does.

It takes commands between steps, and sleeps on them only when there is nothing to decode.
"""

from __future__ import annotations

import contextlib
import gc
import logging
import queue
import threading
import time
from collections import deque
from collections.abc import Callable
from itertools import count
from typing import Final, assert_never

import msgspec

from tokenweir.core.errors import (
    DrainingError,
    EngineError,
    InputError,
    ModelNotLoadedError,
    NoMemoryError,
    UnavailableError,
    WeirError,
)
from tokenweir.core.events import Failed
from tokenweir.ports.inference import DeviceMemory, Embedder, InferenceEngine, LoadedModel
from tokenweir.runtime.bridge.messages import Cancel, Credit, Done, Embedded, Stepped, StreamEvents, Tune
from tokenweir.runtime.child.commands import (
    Begin,
    Command,
    EmbedTokens,
    LoadModel,
    StartStream,
    Stop,
    UnloadModel,
)
from tokenweir.runtime.child.streams import DEFAULT_LIMITS, ModelStreams
from tokenweir.runtime.engines import registry

_EMBED_AT_ONCE: Final = 8
"""Inputs embedded between two steps, so that a long list does not halt the streams."""
_MEMORY_EVERY_NS: Final = 500_000_000
_NOTHING_CAME_S: Final = 0.002
_NO_MEMORY: Final = DeviceMemory(active_bytes=0, cached_bytes=0, limit_bytes=0)

_log = logging.getLogger(__name__)


class _Embedding(msgspec.Struct, kw_only=True):
    """An embedding on its way."""

    command: EmbedTokens
    vectors: list[tuple[float, ...]] = msgspec.field(default_factory=list[tuple[float, ...]])


class Device:
    """One device and the thread that owns it.

    ``models``, ``active``, ``memory`` and ``stalled_ns`` may be read from any thread; everything else goes
    through :meth:`post`.
    """

    def __init__(self) -> None:
        self._emit: Callable[[Stepped], None] = _nowhere
        self._ended: Callable[[], None] = _nothing
        self._commands: queue.SimpleQueue[Command] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="device", daemon=True)
        self._engine: InferenceEngine | None = None
        self._streams: dict[str, ModelStreams] = {}
        self._where: dict[int, ModelStreams] = {}
        self._embeddings: deque[_Embedding] = deque()
        self._numbers = count(1)
        self._limits = DEFAULT_LIMITS
        self._open = True
        self._turn_ns = 0
        self._memory_at_ns = 0
        self.models: dict[str, LoadedModel] = {}
        self.active: set[int] = set()
        self.memory = _NO_MEMORY
        self.died = False

    # -- any thread -----------------------------------------------------------------------------------------------

    def start(self, emit: Callable[[Stepped], None], ended: Callable[[], None]) -> None:
        """Start the thread. It calls ``emit`` with each step's notification, and ``ended`` as its last act."""
        self._emit = emit
        self._ended = ended
        self._thread.start()

    def post(self, command: Command) -> None:
        """Hand over a command. They are obeyed in order, between steps."""
        self._commands.put(command)

    def join(self, timeout_s: float) -> bool:
        """Wait for the thread's end; return whether it has ended."""
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def stalled_ns(self) -> int:
        """Return how long the thread has not come round; 0 while it has nothing to do."""
        turn_ns = self._turn_ns
        return 0 if not turn_ns else time.monotonic_ns() - turn_ns

    # -- the device thread ----------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            while self._open:
                self._take_commands()
                for streams in list(self._streams.values()):
                    if streams.ready:
                        self._step(streams)
                if self._embeddings:
                    self._embed_some()
        except BaseException:
            # Whatever this is, the device's state is unknown: the process ends and its supervisor starts another.
            _log.exception("the device thread failed")
            self.died = True
            raise
        finally:
            self._ended()

    def _take_commands(self) -> None:
        """Obey what has come; wait for it when there is nothing to decode."""
        busy = bool(self._embeddings) or any(streams.ready for streams in self._streams.values())
        try:
            if not busy:
                self._turn_ns = 0
                command = self._commands.get()
            else:
                command = self._commands.get_nowait()
            while True:
                self._turn_ns = time.monotonic_ns()
                self._obey(command)
                command = self._commands.get_nowait()
        except queue.Empty:
            pass
        self._turn_ns = now_ns = time.monotonic_ns()
        for streams in self._streams.values():
            self._guarded(streams, lambda streams=streams: streams.insert(now_ns))
            self._tell(streams, streams.pending())

    def _obey(self, command: Command) -> None:
        match command:
            case Credit(stream=stream, tokens=tokens):
                if (streams := self._where.get(stream)) is not None:
                    streams.credit(stream, tokens)
            case StartStream():
                self._start(command)
            case Cancel(stream=stream):
                if (streams := self._where.get(stream)) is not None:
                    self._guarded(streams, lambda: streams.cancel(stream))
            case Tune(model=model):
                if (streams := self._streams.get(model)) is not None:
                    streams.tune(command)
            case EmbedTokens():
                self._embeddings.append(_Embedding(command=command))
            case Begin() | LoadModel() | UnloadModel() | Stop():
                self._answer(command)
            case _:
                assert_never(command)

    def _answer(self, command: Begin | LoadModel | UnloadModel | Stop) -> None:
        """Obey a command that is answered: with a value, or with the error that it met."""
        try:
            match command:
                case Begin(answer=begun):
                    self._limits = command.limits
                    self._engine = registry.create(command.engine, command.options)
                    begun.set_result(self._measure(self._engine))
                case LoadModel(answer=loaded):
                    loaded.set_result(self._load(command).card)
                case UnloadModel(answer=unloaded):
                    self._unload(command.model)
                    unloaded.set_result(self.memory)
                case Stop(answer=stopped):
                    self._open = False
                    for name in list(self.models):
                        self._close(name, DrainingError("the engine's process ends"))
                    stopped.set_result(Done())
                case _:
                    assert_never(command)
        except Exception as error:  # noqa: BLE001 - the worker's boundary: the error is the command's answer
            command.answer.set_exception(_as_ours(error))

    def _load(self, command: LoadModel) -> LoadedModel:
        engine, name = self._engine, command.spec.name
        if engine is None:
            raise EngineError("the engine has not begun", mend="call 'initialize' first")
        if name in self.models:
            raise InputError(f"a model named {name!r} is loaded already", mend="unload it first")
        model = engine.load(command.spec, command.card)
        decoder = model.decoder
        if decoder is not None:
            self._streams[name] = ModelStreams(name, model, decoder, self._numbers, self._limits)
        self.models[name] = model
        self._measure(engine)
        return model

    def _unload(self, name: str) -> None:
        if name not in self.models:
            raise ModelNotLoadedError(f"no model named {name!r} is loaded")
        self._close(name, UnavailableError(f"the model {name!r} was unloaded", mend="send the request again"))

    def _close(self, name: str, error: WeirError) -> None:
        """End a model's streams with ``error`` and give its memory back."""
        model = self.models.pop(name)
        streams = self._streams.pop(name, None)
        if streams is not None:
            for number in streams.streams():
                streams.fail(number, code=error.code, message=str(error), retryable=error.retryable)
            self._tell(streams, streams.pending())
        for waiting in [one for one in self._embeddings if one.command.model == name]:
            self._embeddings.remove(waiting)
            waiting.command.answer.set_exception(error)
        del streams
        model.close()
        del model
        gc.collect()
        if self._engine is not None:
            self._measure(self._engine)

    def _start(self, command: StartStream) -> None:
        request = command.request
        streams = self._streams.get(request.model)
        if streams is None:
            self.active.discard(request.stream)
            failed = Failed(
                seq=command.first_seq,
                kind=UnavailableError.code,
                status=UnavailableError.http_status,
                message=f"the model {request.model!r} was unloaded; send the request again",
                retryable=True,
            )
            told = StreamEvents(stream=request.stream, events=(failed,))
            self._emit(Stepped(model=request.model, streams=(told,)))
            return
        self._where[request.stream] = streams
        streams.start(command)

    def _step(self, streams: ModelStreams) -> None:
        begun_ns = time.monotonic_ns()
        self._turn_ns = begun_ns
        try:
            events = streams.decoder.step(streams.limits())
            now_ns = time.monotonic_ns()
            told = streams.stepped(events, begun_ns, now_ns)
        except Exception as error:  # noqa: BLE001 - the worker's boundary: a failed step fails its streams
            self._broke(streams, error)
            return
        self._tell(streams, told)
        if now_ns - self._memory_at_ns > _MEMORY_EVERY_NS and self._engine is not None:
            self._measure(self._engine)
        if not events and now_ns - begun_ns < _NOTHING_CAME_S * 1e9:
            self._pause()

    def _pause(self) -> None:
        """Wait a moment for commands after a step that found nothing to advance."""
        with contextlib.suppress(queue.Empty):
            self._obey(self._commands.get(timeout=_NOTHING_CAME_S))

    def _embed_some(self) -> None:
        job = self._embeddings[0]
        command, done = job.command, len(job.vectors)
        try:
            vectors = self._embedder(command.model).embed(command.inputs[done : done + _EMBED_AT_ONCE])
        except Exception as error:  # noqa: BLE001 - the worker's boundary: the error is the command's answer
            self._embeddings.popleft()
            command.answer.set_exception(_as_ours(error))
            return
        job.vectors += [tuple(vector) for vector in vectors]
        if len(job.vectors) >= len(command.inputs):
            self._embeddings.popleft()
            tokens = sum(map(len, command.inputs))
            command.answer.set_result(Embedded(vectors=tuple(job.vectors), input_tokens=tokens))

    def _embedder(self, name: str) -> Embedder:
        model = self.models.get(name)
        embedder = None if model is None else model.embedder
        if embedder is None:
            raise ModelNotLoadedError(f"no model named {name!r} is loaded that embeds", mend="load it first")
        return embedder

    def _guarded(self, streams: ModelStreams, work: Callable[[], None]) -> None:
        try:
            work()
        except Exception as error:  # noqa: BLE001 - the worker's boundary: what the decoder raises fails its streams
            self._broke(streams, error)

    def _broke(self, streams: ModelStreams, error: Exception) -> None:
        """Fail all streams of a model whose decoder raised. What it raises again ends the process."""
        _log.error("a step of %r failed", streams.name, exc_info=error)
        ours = _as_ours(error)
        for number in streams.streams():
            streams.fail(number, code=ours.code, message=str(ours), retryable=ours.retryable)
        self._tell(streams, streams.pending())

    def _tell(self, streams: ModelStreams, told: Stepped | None) -> None:
        for number in streams.take_ended():
            self.active.discard(number)
            self._where.pop(number, None)
        if told is not None:
            self._emit(told)

    def _measure(self, engine: InferenceEngine) -> DeviceMemory:
        self.memory = engine.memory()
        self._memory_at_ns = time.monotonic_ns()
        return self.memory


def _nowhere(_: Stepped) -> None:
    """Take a notification of a thread that has not been started."""


def _nothing() -> None:
    """Do nothing."""


def _as_ours(error: BaseException) -> WeirError:
    """Return the error as one of ours."""
    if isinstance(error, WeirError):
        return error
    if isinstance(error, MemoryError):
        return NoMemoryError(f"the device ran out of memory: {error}", mend="send shorter or fewer requests")
    return EngineError(f"{type(error).__name__}: {error}", mend="see the log; report this")
