"""The service ``tokenweir.v1.Inference``: its methods with their types, and a client for asyncio."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Final, NamedTuple, Protocol, TypeVar, cast

import grpc.aio
from google.protobuf.message import Message

from tokenweir.wire.v1 import inference_pb2 as pb

SERVICE: Final = "tokenweir.v1.Inference"
ERROR_KEY: Final = "weir-error-bin"
"""The trailing metadata that holds a :class:`inference_pb2.Error`."""

AnswerT = TypeVar("AnswerT")
AnswerT_co = TypeVar("AnswerT_co", covariant=True)


class Method(NamedTuple):
    """What a method takes and gives, and which of the two are streams."""

    name: str
    asked: type[Message]
    answered: type[Message]
    asks_stream: bool = False
    answers_stream: bool = False


METHODS: Final = (
    Method("Converse", pb.Command, pb.Notice, asks_stream=True, answers_stream=True),
    Method("Generate", pb.GenerateRequest, pb.Event, answers_stream=True),
    Method("Embed", pb.EmbedRequest, pb.EmbedReply),
    Method("Tokenize", pb.TokenizeRequest, pb.Tokens),
    Method("Detokenize", pb.DetokenizeRequest, pb.Text),
    Method("Models", pb.ModelsRequest, pb.ModelsReply),
    Method("Health", pb.HealthRequest, pb.HealthReply),
)


class StreamCall(Protocol[AnswerT_co]):
    """An answer that comes in pieces."""

    def __aiter__(self) -> AsyncIterator[AnswerT_co]:
        """Yield the pieces. Raises grpc.aio.AioRpcError where the call ends badly."""
        ...

    def cancel(self) -> bool:
        """End the call; the server stops working on it."""
        ...


class InferenceClient:
    """Calls the service over an open channel. ``key`` is sent as a bearer token, ``metadata`` as it is."""

    def __init__(
        self,
        channel: grpc.aio.Channel,
        *,
        key: str | None = None,
        metadata: Sequence[tuple[str, str]] = (),
    ) -> None:
        self._channel = channel
        bearer = (("authorization", f"Bearer {key}"),) if key is not None else ()
        self._metadata = (*bearer, *metadata) or None
        self._methods = {method.name: method for method in METHODS}

    def converse(
        self, commands: AsyncIterator[pb.Command], *, timeout_s: float | None = None
    ) -> StreamCall[pb.Notice]:
        """Start a call that works on many requests."""
        return cast("StreamCall[pb.Notice]", self._call("Converse", commands, timeout_s))

    def generate(
        self, request: pb.GenerateRequest, *, timeout_s: float | None = None
    ) -> StreamCall[pb.Event]:
        """Start a call that works on one request."""
        return cast("StreamCall[pb.Event]", self._call("Generate", request, timeout_s))

    async def embed(self, request: pb.EmbedRequest, *, timeout_s: float | None = None) -> pb.EmbedReply:
        """Return vectors. Raises grpc.aio.AioRpcError, as the others do."""
        return await self._answer(pb.EmbedReply, "Embed", request, timeout_s)

    async def tokenize(self, request: pb.TokenizeRequest, *, timeout_s: float | None = None) -> pb.Tokens:
        """Return the token ids of a text, or of messages."""
        return await self._answer(pb.Tokens, "Tokenize", request, timeout_s)

    async def detokenize(self, request: pb.DetokenizeRequest, *, timeout_s: float | None = None) -> pb.Text:
        """Return the text of token ids."""
        return await self._answer(pb.Text, "Detokenize", request, timeout_s)

    async def models(self, *, timeout_s: float | None = None) -> pb.ModelsReply:
        """Return the models that may be asked for."""
        return await self._answer(pb.ModelsReply, "Models", pb.ModelsRequest(), timeout_s)

    async def health(self, *, timeout_s: float | None = None) -> pb.HealthReply:
        """Return whether the server answers requests now."""
        return await self._answer(pb.HealthReply, "Health", pb.HealthRequest(), timeout_s)

    async def _answer(
        self, answered: type[AnswerT], name: str, request: Message, timeout_s: float | None
    ) -> AnswerT:
        del answered
        return await cast("Awaitable[AnswerT]", self._call(name, request, timeout_s))

    def _call(self, name: str, asked: object, timeout_s: float | None) -> object:
        method = self._methods[name]
        kind = (
            f"{'stream' if method.asks_stream else 'unary'}_{'stream' if method.answers_stream else 'unary'}"
        )
        made = cast("Callable[..., Callable[..., object]]", getattr(self._channel, kind))
        call = made(
            f"/{SERVICE}/{name}",
            request_serializer=method.asked.SerializeToString,
            response_deserializer=method.answered.FromString,
        )
        return call(asked, timeout=timeout_s, metadata=self._metadata)


def error_of(failed: grpc.aio.AioRpcError) -> pb.Error | None:
    """Return the typed detail of a call that was refused, where the server sent one."""
    for key, value in failed.trailing_metadata() or ():
        if key == ERROR_KEY and isinstance(value, bytes):
            return pb.Error.FromString(value)
    return None
