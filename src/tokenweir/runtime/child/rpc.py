"""The methods and notifications of the bridge, answered on the RPC thread: at once, or when the device has done it."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from typing import Annotated, Any, Final, TypeVar

import msgspec

from tokenweir.core.errors import (
    ConfigError,
    EngineError,
    ModelNotLoadedError,
    ParameterError,
    ProtocolError,
    SpecError,
    TooManyStreamsError,
    WeirError,
)
from tokenweir.core.requests import Json
from tokenweir.ports.inference import DeviceMemory, LoadedModel, ModelCard, StepLimits
from tokenweir.runtime.bridge import messages
from tokenweir.runtime.bridge.faults import fault_of
from tokenweir.runtime.bridge.messages import Done, Embedded, Initialized, Pong, Prepared, PreparedItem
from tokenweir.runtime.child.commands import (
    Begin,
    EmbedTokens,
    LoadModel,
    StartStream,
    Stop,
    UnloadModel,
)
from tokenweir.runtime.child.device import Device
from tokenweir.runtime.child.memory import resident_bytes
from tokenweir.runtime.child.prepare import RequestLimits, prepare, size
from tokenweir.runtime.child.requests import Request
from tokenweir.runtime.child.sampling import require
from tokenweir.runtime.child.streams import DEFAULT_LIMITS
from tokenweir.runtime.engines import registry
from tokenweir.runtime.engines.registry import EngineOptions

_MAX_EMBED_INPUTS: Final = 4096

ResultT = TypeVar("ResultT")


class Service:
    """What the child does when it is asked. Every method runs on the RPC thread."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self._prepared: dict[int, Request] = {}
        self._limits = RequestLimits()
        self._max_active_streams = 0
        self._epoch = -1

    def handlers(self) -> Mapping[str, Callable[[Any], Any]]:
        """Return what answers each method."""
        return {
            "initialize": self.initialize,
            "ping": self.ping,
            "load": self.load,
            "unload": self.unload,
            "prepare": self.prepare,
            "prepare_batch": self.prepare_batch,
            "tokenize": self.tokenize,
            "detokenize": self.detokenize,
            "embed": self.embed,
            "shutdown": self.shutdown,
        }

    def notices(self) -> Mapping[str, Callable[[Any], None]]:
        """Return what takes each notification."""
        return {
            "start": self.start,
            "credit": self._device.post,
            "cancel": self.cancel,
            "tune": self._device.post,
        }

    # -- methods --------------------------------------------------------------------------------------------------

    def initialize(self, ask: messages.Initialize) -> Future[Initialized]:
        """Make the engine. Options of requests in general are taken out of the engine's own."""
        if ask.protocol != messages.PROTOCOL_VERSION:
            raise ProtocolError(
                f"the server speaks version {ask.protocol} of the bridge, this process {messages.PROTOCOL_VERSION}",
                mend="install both from the same version",
            )
        if self._epoch >= 0:
            raise ProtocolError("'initialize' was called twice")
        self._epoch = ask.epoch
        self._max_active_streams = ask.max_active_streams
        own, self._limits, steps = _split(ask.options)
        options = EngineOptions(
            limit_bytes=ask.limit_bytes,
            prefix_cache_bytes=ask.prefix_cache_bytes,
            artifacts=ask.artifacts,
            artifact_bytes=ask.artifact_bytes,
            options=own,
        )
        begun: Future[DeviceMemory] = Future()
        self._device.post(Begin(engine=ask.engine, options=options, limits=steps, answer=begun))
        return _then(
            begun,
            lambda memory: Initialized(
                pid=os.getpid(),
                engine=ask.engine,
                engine_version=registry.version(ask.engine),
                memory=memory,
            ),
        )

    def ping(self, _: messages.Ping) -> Pong:
        """Tell how the process is."""
        return Pong(
            epoch=self._epoch,
            rss_bytes=resident_bytes(),
            memory=self._device.memory,
            streams=len(self._device.active),
            stalled_ns=self._device.stalled_ns(),
        )

    def load(self, ask: messages.Load) -> Future[ModelCard]:
        """Load a model."""
        answer: Future[ModelCard] = Future()
        self._device.post(LoadModel(spec=ask.spec, card=ask.card, answer=answer))
        return answer

    def unload(self, ask: messages.Unload) -> Future[DeviceMemory]:
        """Unload a model."""
        answer: Future[DeviceMemory] = Future()
        self._device.post(UnloadModel(model=ask.model, answer=answer))
        return answer

    def prepare(self, ask: messages.Prepare) -> Prepared:
        """Check, render and tokenise a request, and keep it until it is started or cancelled."""
        active = self._device.active
        if ask.stream in active:
            raise SpecError(f"the stream {ask.stream} is in use")
        if len(active) >= self._max_active_streams:
            raise TooManyStreamsError(
                f"{len(active)} requests are in work, as many as may be", mend="send the request again later"
            )
        request = prepare(ask, self._model(ask.model), self._limits)
        active.add(ask.stream)
        self._prepared[ask.stream] = request
        return size(request)

    def prepare_batch(self, ask: messages.PrepareBatch) -> messages.PreparedBatch:
        """Prepare many; what one is refused for does not touch the others."""
        return messages.PreparedBatch(items=tuple(map(self._prepare_one, ask.items)))

    def tokenize(self, ask: messages.Tokenize) -> messages.Tokens:
        """Return the tokens of a text, or of messages through the chat template."""
        form = self._model(ask.model).format
        if not ask.messages:
            return messages.Tokens(tokens=tuple(form.encode(ask.text)))
        if ask.text:
            raise ParameterError("text and messages are both set", param="messages", mend="send one of them")
        return messages.Tokens(tokens=tuple(form.encode(form.render(ask.messages, (), {}), special=False)))

    def detokenize(self, ask: messages.Detokenize) -> messages.Text:
        """Return the text of tokens."""
        model = self._model(ask.model)
        stray = next((token for token in ask.tokens if not 0 <= token < model.card.vocabulary), None)
        if stray is not None:
            raise ParameterError(
                f"there is no token {stray}",
                param="tokens",
                mend=f"send tokens below {model.card.vocabulary}",
            )
        detokenizer = model.format.detokenizer()
        return messages.Text(text="".join(map(detokenizer.add, ask.tokens)) + detokenizer.finish())

    def embed(self, ask: messages.Embed) -> Future[Embedded]:
        """Return a vector for each input."""
        model = self._model(ask.model)
        require(model.card, "embedding", "embeddings", param="model")
        if not 0 < len(ask.inputs) <= _MAX_EMBED_INPUTS:
            raise ParameterError(
                f"there are {len(ask.inputs)} inputs", param="input", mend=f"send 1 to {_MAX_EMBED_INPUTS}"
            )
        inputs = tuple(tuple(model.format.encode(text)) for text in ask.inputs)
        for place, tokens in enumerate(inputs):
            if not 0 < len(tokens) <= model.card.context_tokens:
                raise ParameterError(
                    f"input {place} has {len(tokens)} tokens",
                    param="input",
                    mend=f"send inputs of 1 to {model.card.context_tokens} tokens",
                )
        answer: Future[Embedded] = Future()
        self._device.post(EmbedTokens(model=ask.model, inputs=inputs, answer=answer))
        return answer

    def shutdown(self, _: messages.Shutdown) -> Future[Done]:
        """End everything; the process follows."""
        answer: Future[Done] = Future()
        self._device.post(Stop(answer=answer))
        return answer

    # -- notifications --------------------------------------------------------------------------------------------

    def start(self, notice: messages.Start) -> None:
        """Hand a prepared request to the device."""
        request = self._prepared.pop(notice.stream, None)
        if request is None:
            raise EngineError(f"the stream {notice.stream} was started without having been prepared")
        self._device.post(
            StartStream(
                request=request,
                first_seq=notice.first_seq,
                credits=notice.credits,
                asked_ns=time.monotonic_ns(),
            )
        )

    def cancel(self, notice: messages.Cancel) -> None:
        """Forget a stream, prepared or started."""
        if self._prepared.pop(notice.stream, None) is not None:
            self._device.active.discard(notice.stream)
        else:
            self._device.post(notice)

    def _prepare_one(self, ask: messages.Prepare) -> PreparedItem:
        try:
            return PreparedItem(prepared=self.prepare(ask))
        except WeirError as error:
            return PreparedItem(fault=fault_of(error))

    def _model(self, name: str) -> LoadedModel:
        model = self._device.models.get(name)
        if model is None:
            raise ModelNotLoadedError(f"no model named {name!r} is loaded", mend="load it first")
        return model


class _StepDefaults(msgspec.Struct, frozen=True, kw_only=True):
    max_batch: Annotated[int, msgspec.Meta(ge=1)] = DEFAULT_LIMITS.batch
    prefill_tokens: Annotated[int, msgspec.Meta(ge=1)] = DEFAULT_LIMITS.prefill_tokens


def _split(options: Mapping[str, Json]) -> tuple[dict[str, Json], RequestLimits, StepLimits]:
    """Return the engine's own options, and the limits of requests and steps that stood among them."""
    names = {*RequestLimits.__struct_fields__, *_StepDefaults.__struct_fields__}
    stated = {name: value for name, value in options.items() if name in names}
    try:
        limits, steps = msgspec.convert(stated, RequestLimits), msgspec.convert(stated, _StepDefaults)
    except msgspec.ValidationError as error:
        raise ConfigError(f"a limit of requests is wrong: {error}", mend="write a whole number") from None
    own = {name: value for name, value in options.items() if name not in names}
    return own, limits, StepLimits(batch=steps.max_batch, prefill_tokens=steps.prefill_tokens)


def _then(first: Future[ResultT], make: Callable[[ResultT], Initialized]) -> Future[Initialized]:
    """Return a future of what ``make`` makes of the first one's result."""
    second: Future[Initialized] = Future()

    def settle(done: Future[ResultT]) -> None:
        error = done.exception()
        if error is not None:
            second.set_exception(error)
        else:
            second.set_result(make(done.result()))

    first.add_done_callback(settle)
    return second
