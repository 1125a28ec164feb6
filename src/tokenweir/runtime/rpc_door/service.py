"""The methods of the service, and the server that offers them."""

from __future__ import annotations

import hmac
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from typing import Any, Final, NoReturn, cast

import grpc
import grpc.aio
import msgspec

from tokenweir.asgi.problems import failure, logged
from tokenweir.asgi.tls import ListenerFiles
from tokenweir.core.errors import ConfigError, UnauthorizedError, WeirError
from tokenweir.core.events import Cancelled, Failed
from tokenweir.runtime.http.door import Door
from tokenweir.runtime.http.probes import alive, unready
from tokenweir.runtime.rpc_door.conversation import Conversation, measure
from tokenweir.runtime.rpc_door.options import from_options
from tokenweir.runtime.rpc_door.statuses import detail, status
from tokenweir.telemetry.logs import get_logger
from tokenweir.wire.v1 import inference_pb2 as pb
from tokenweir.wire.v1.events import to_event
from tokenweir.wire.v1.requests import from_messages, from_request
from tokenweir.wire.v1.service import ERROR_KEY, METHODS, SERVICE, Method

_LOG = get_logger("tokenweir.runtime.grpc")
_NS_PER_S: Final = 1_000_000_000
_PREFIX: Final = f"/{SERVICE}/"
_BEARER: Final = "bearer "

Context = grpc.aio.ServicerContext[Any, Any]


class InferenceService:
    """``tokenweir.v1.Inference`` over one engine facade. Each method is called with its request and its context."""

    def __init__(self, door: Door) -> None:
        self._door = door

    async def converse(self, commands: AsyncIterator[pb.Command], context: Context) -> None:
        """Work on many requests."""
        talk = Conversation(self._door, context.write, lambda: _remaining_ns(context))
        await talk.run(commands)

    async def generate(self, asked: pb.GenerateRequest, context: Context) -> None:
        """Work on one request; a refusal is the call's status, and so is a failure after the first token."""
        request = from_request(asked)
        card = self._door.card(request.model)
        request = msgspec.structs.replace(request, model=card.name)
        options = from_options(asked.options, remaining_ns=_remaining_ns(context))
        with self._door.metrics.request(_PREFIX + "Generate", card.name) as meter:
            async with aclosing(self._door.serving.generate(request, options)) as events:
                async for event in events:
                    measure(event, meter)
                    if isinstance(event, Failed | Cancelled):
                        raise failure(event)
                    await context.write(to_event(event))

    async def embed(self, asked: pb.EmbedRequest, context: Context) -> pb.EmbedReply:
        """Return vectors."""
        del context
        found = await self._door.serving.embed(self._door.card(asked.model).name, tuple(asked.inputs))
        return pb.EmbedReply(
            vectors=[pb.Vector(values=vector) for vector in found.vectors], input_tokens=found.input_tokens
        )

    async def tokenize(self, asked: pb.TokenizeRequest, context: Context) -> pb.Tokens:
        """Return the token ids of a text, or of messages."""
        del context
        what = from_messages(asked.messages) or asked.text
        return pb.Tokens(ids=await self._door.serving.tokenize(self._door.card(asked.model).name, what))

    async def detokenize(self, asked: pb.DetokenizeRequest, context: Context) -> pb.Text:
        """Return the text of token ids."""
        del context
        text = await self._door.serving.detokenize(self._door.card(asked.model).name, tuple(asked.ids))
        return pb.Text(text=text)

    async def models(self, asked: pb.ModelsRequest, context: Context) -> pb.ModelsReply:
        """Return the models that may be asked for."""
        del asked, context
        models = [
            pb.Model(
                name=card.name,
                path=card.path,
                revision=card.revision,
                architecture=card.architecture,
                context_tokens=card.context_tokens,
                vocabulary=card.vocabulary,
                weights_bytes=card.weights_bytes,
                kv_bytes_per_token=card.kv_bytes_per_token,
                weight_bits=card.weight_bits,
                draft=card.draft,
                capabilities=card.capabilities,
                state=model.state,
            )
            for model in self._door.serving.models()
            for card in (model.card,)
        ]
        return pb.ModelsReply(models=models)

    async def health(self, asked: pb.HealthRequest, context: Context) -> pb.HealthReply:
        """Return whether requests are answered now, and what ``GET /health`` says."""
        del asked, context
        reason = unready(self._door.serving.health())
        return pb.HealthReply(
            ready=not reason,
            reason=reason,
            version=self._door.build.version,
            commit=self._door.build.commit,
            health_json=msgspec.json.encode(alive(self._door)).decode(),
        )

    def handler(self) -> grpc.GenericRpcHandler:
        """Return what a server needs to offer the service."""
        methods = {
            method.name: self._method(method, cast("_Run", getattr(self, method.name.lower())))
            for method in METHODS
        }
        return grpc.method_handlers_generic_handler(SERVICE, methods)

    def _method(self, method: Method, run: _Run) -> grpc.RpcMethodHandler[Any, Any]:
        async def guarded(asked: object, context: Context) -> object:
            """Ask for the key, and turn what is raised into a status."""
            try:
                if method.name != "Health":
                    self._check_key(context)
                return await run(asked, context)
            except* WeirError as group:
                await _refuse(context, _leaf(group))

        made = cast(
            "Callable[..., grpc.RpcMethodHandler[Any, Any]]",
            getattr(
                grpc,
                f"{'stream' if method.asks_stream else 'unary'}_"
                f"{'stream' if method.answers_stream else 'unary'}_rpc_method_handler",
            ),
        )
        return made(
            guarded,
            request_deserializer=method.asked.FromString,
            response_serializer=method.answered.SerializeToString,
        )

    def _check_key(self, context: Context) -> None:
        key = self._door.key
        if key is None:
            return
        sent = next(
            (str(value) for name, value in context.invocation_metadata() or () if name == "authorization"), ""
        )
        token = sent[len(_BEARER) :] if sent[: len(_BEARER)].lower() == _BEARER else ""
        if not hmac.compare_digest(token.encode(), key.encode()):
            raise UnauthorizedError(
                "a key is needed", mend="send it as the metadata 'authorization: Bearer KEY'"
            )


_Run = Callable[[object, Context], Awaitable[object]]


class GrpcServer:
    """Serves the service at an address. It is bound from :meth:`start` on; ``port`` is where.

    Raises:
        ConfigError: from ``start``: the address cannot be listened on.
    """

    def __init__(self, door: Door, host: str, port: int, *, tls: ListenerFiles | None = None) -> None:
        self._host = host
        self.port = port
        self._credentials = None if tls is None else _credentials(tls)
        self._server = grpc.aio.server(
            options=(
                ("grpc.max_receive_message_length", door.limits.body_bytes),
                ("grpc.so_reuseport", 0),
            )
        )
        self._server.add_generic_rpc_handlers((InferenceService(door).handler(),))

    @property
    def address(self) -> str:
        """Host and port."""
        return f"{f'[{self._host}]' if ':' in self._host else self._host}:{self.port}"

    async def start(self) -> None:
        """Listen and answer."""
        try:
            if self._credentials is None:
                self.port = self._server.add_insecure_port(self.address)
            else:
                self.port = self._server.add_secure_port(self.address, self._credentials)
        except RuntimeError as error:
            raise ConfigError(
                f"port {self.port} is in use on {self._host}, or may not be listened on",
                mend="stop what uses it, or choose another with --grpc-port (0 picks a free one)",
            ) from error
        await self._server.start()

    async def stop(self, grace_ns: int) -> None:
        """Stop listening; calls on their way get so long to end."""
        await self._server.stop(grace_ns / _NS_PER_S)


def _credentials(files: ListenerFiles) -> grpc.ServerCredentials:
    """Return what the settings say; they have been proved by the HTTP door's. gRPC speaks TLS 1.2 and above."""
    key = files.key.read_bytes()
    if files.key_password is not None:
        raise ConfigError(
            f"gRPC cannot read the encrypted TLS key '{files.key}'",
            mend="decrypt it (openssl pkey), or leave grpc_port out",
        )
    client_ca = None if files.client_ca is None else files.client_ca.read_bytes()
    return grpc.ssl_server_credentials(
        [(key, files.certificate.read_bytes())],
        root_certificates=client_ca,
        require_client_auth=client_ca is not None,
    )


def _remaining_ns(context: Context) -> int | None:
    left = cast("float | None", context.time_remaining())
    return None if left is None else max(1, int(left * _NS_PER_S))


async def _refuse(context: Context, error: WeirError) -> NoReturn:
    _LOG.log(error.log_level, "call refused", **logged(error))
    metadata = ((ERROR_KEY, detail(error).SerializeToString()),)
    await context.abort(status(error), str(error), trailing_metadata=metadata)
    raise error


def _leaf(group: BaseExceptionGroup[WeirError]) -> WeirError:
    first = group.exceptions[0]
    return _leaf(first) if isinstance(first, BaseExceptionGroup) else first
