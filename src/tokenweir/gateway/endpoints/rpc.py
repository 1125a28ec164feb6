"""A gRPC client for one model server that speaks ``tokenweir.v1``: one connection, a call of ``Converse`` a request.

Credits pace the server: it sends no more tokens than were taken. Leaving an answer cancels it there.
"""

from __future__ import annotations

import asyncio
import ipaddress
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing
from typing import Final
from urllib.parse import urlsplit

import grpc
import grpc.aio
import msgspec

from tokenweir.config import ClientTlsSettings, EndpointSettings
from tokenweir.core.errors import ConfigError, EndpointError, OverloadedError, ProtocolError, UnreachableError
from tokenweir.core.events import Accepted, Cancelled, Completed, Event, Failed, Queued, Started, Token, Usage
from tokenweir.core.requests import Json, Kind
from tokenweir.gateway.endpoints.addresses import AddressRules
from tokenweir.gateway.endpoints.rpc_requests import embed_request, generate_request
from tokenweir.gateway.endpoints.upstream import Timeouts
from tokenweir.wire.v1 import inference_pb2 as pb
from tokenweir.wire.v1.events import from_event
from tokenweir.wire.v1.service import InferenceClient, StreamCall, error_of

_SCHEMES: Final = ("grpc", "grpcs")
_CREDITS: Final = 256
_GRANT: Final = 64
_V4: Final = 4
_S: Final = 1_000_000_000
_BYTES: Final = 64 << 20
_AWAY: Final = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.CANCELLED)
_STATUSES: Final = {
    grpc.StatusCode.UNAUTHENTICATED: 401,
    grpc.StatusCode.PERMISSION_DENIED: 403,
    grpc.StatusCode.NOT_FOUND: 404,
    grpc.StatusCode.INVALID_ARGUMENT: 400,
    grpc.StatusCode.UNIMPLEMENTED: 501,
}


def client(endpoint: EndpointSettings, timeouts: Timeouts, rules: AddressRules) -> RpcClient:
    """Return the client of an endpoint. Raises ConfigError."""
    key = "" if endpoint.key is None else endpoint.key.read()
    return RpcClient(endpoint.url, key=key, timeouts=timeouts, tls=endpoint.tls, rules=rules)


def _credentials(tls: ClientTlsSettings | None) -> grpc.ChannelCredentials:
    """Return what a channel over TLS is made with. Raises ConfigError."""
    if tls is None:
        return grpc.ssl_channel_credentials()
    if tls.key_password is not None:
        raise ConfigError(
            f"gRPC cannot read the encrypted TLS key '{tls.key}'", mend="decrypt it (openssl pkey)"
        )
    try:
        ca, key, certificate = (
            None if path is None else path.read_bytes() for path in (tls.ca, tls.key, tls.certificate)
        )
    except OSError as error:
        raise ConfigError(
            f"'{error.filename}' cannot be read: {error.strerror}", mend="see the tls table"
        ) from error
    return grpc.ssl_channel_credentials(ca, key, certificate)


class RpcClient:
    """Requests to ``grpc://HOST:PORT``, or ``grpcs://…`` over TLS. ``key`` is sent as a bearer token.

    The name is resolved here, and the channel is opened to those of its addresses that ``rules`` allow. It is resolved
    anew after the server was away.
    """

    def __init__(
        self,
        url: str,
        *,
        key: str = "",
        timeouts: Timeouts | None = None,
        tls: ClientTlsSettings | None = None,
        rules: AddressRules | None = None,
    ) -> None:
        parts = urlsplit(url)
        if parts.scheme not in _SCHEMES or not parts.hostname or parts.port is None or parts.path.strip("/"):
            raise ConfigError(
                f"the endpoint URL {url!r} cannot be used", mend="write grpc:// or grpcs://, host and port"
            )
        self.authority = parts.netloc
        self._host, self._port = parts.hostname, parts.port
        self._rules = rules or AddressRules()
        self._credentials = _credentials(tls) if parts.scheme == "grpcs" else None
        self._key = key or None
        self._timeouts = timeouts or Timeouts()
        self._channel: grpc.aio.Channel | None = None
        self._target = ""
        self._retired: grpc.aio.Channel | None = None
        self._away = False

    async def close(self) -> None:
        """Close the connection; calls on their way end."""
        for channel in (self._channel, self._retired):
            if channel is not None:
                await channel.close(None)
        self._channel = self._retired = None

    async def _client(self, headers: bytes = b"") -> InferenceClient:
        """Return what calls the server, with header lines as metadata. Raises UnreachableError."""
        channel = self._channel
        if channel is None or self._away:
            channel = await self._opened()
        return InferenceClient(channel, key=self._key, metadata=_metadata(headers))

    async def _opened(self) -> grpc.aio.Channel:
        """Return a channel to where the name leads now: the one there is, unless that is elsewhere."""
        try:
            async with asyncio.timeout(self._timeouts.connect_ns / _S):
                target = _target(await self._rules.resolve(self._host, self._port), self._port)
        except (OSError, TimeoutError) as error:
            raise UnreachableError(
                f"no gRPC with {self.authority}: its name leads nowhere", mend="see that its URL is right"
            ) from error
        self._away = False
        if self._channel is not None and target == self._target:
            return self._channel
        options = (
            ("grpc.max_receive_message_length", _BYTES),
            ("grpc.max_reconnect_backoff_ms", 2000),
            ("grpc.default_authority", self.authority),
        )
        # What is on its way on the old channel ends there; only the one before that is closed.
        before, self._retired = self._retired, self._channel
        self._target = target
        self._channel = made = (
            grpc.aio.insecure_channel(target, options=options)
            if self._credentials is None
            else grpc.aio.secure_channel(target, self._credentials, options=options)
        )
        if before is not None:
            await before.close(None)
        return made

    def _explained(self, error: grpc.aio.AioRpcError) -> EndpointError:
        self._away = self._away or error.code() is grpc.StatusCode.UNAVAILABLE
        return _explained(self.authority, error)

    async def health(self) -> str:
        """Return why the server takes no requests; "" where it does. Raises EndpointError."""
        try:
            told = await (await self._client()).health(timeout_s=self._timeouts.connect_ns / _S)
        except grpc.aio.AioRpcError as error:
            raise self._explained(error) from error
        return "" if told.ready else told.reason or "it is not ready"

    async def answer(
        self, kind: Kind, body: bytes, *, model: str, headers: bytes = b""
    ) -> AsyncGenerator[Sequence[Event]]:
        """Yield the events of a request with OpenAI's body as they come, up to its end; closing it before cancels it.

        ``headers`` are lines that go with it as metadata.

        Raises:
            ParameterError: the body says something that cannot be said over gRPC.
            EndpointError: the server failed, or cannot be reached.
        """
        fields: dict[str, Json] = msgspec.json.decode(body)
        if kind == "embedding":
            yield await self._embed(embed_request(fields, model=model), headers)
            return
        asked = generate_request(kind, fields, model=model)
        async with aclosing(self._generate(asked, await self._client(headers))) as batches:
            async for batch in batches:
                events = [event for event in batch if not isinstance(event, Accepted | Queued)]
                if events:
                    yield events

    async def _embed(self, request: pb.EmbedRequest, headers: bytes) -> Sequence[Event]:
        try:
            reply = await (await self._client(headers)).embed(request, timeout_s=self._timeouts.head_ns / _S)
        except grpc.aio.AioRpcError as error:
            raise self._explained(error) from error
        return [
            Started(seq=0, model=request.model),
            Usage(seq=0, input_tokens=reply.input_tokens, output_tokens=0),
            Completed(seq=0, embeddings=tuple(tuple(vector.values) for vector in reply.vectors)),
        ]

    async def _generate(
        self, request: pb.GenerateRequest, client: InferenceClient
    ) -> AsyncGenerator[Sequence[Event]]:
        commands: asyncio.Queue[pb.Command] = asyncio.Queue()
        commands.put_nowait(pb.Command(stream=1, submit=pb.Submit(request=request, credits=_CREDITS)))
        call = client.converse(_all_of(commands))
        taken = 0
        try:
            notices = aiter(call)
            wait_ns = self._timeouts.head_ns
            while True:
                events = await self._next(notices, wait_ns)
                wait_ns = self._timeouts.idle_ns
                yield events
                if isinstance(events[-1], Completed | Failed | Cancelled):
                    return
                taken += sum(isinstance(event, Token) for event in events)
                if taken >= _GRANT:
                    commands.put_nowait(pb.Command(stream=1, credit=pb.Credit(events=taken)))
                    taken = 0
        finally:
            _end(call)

    async def _next(self, notices: AsyncIterator[pb.Notice], wait_ns: int) -> Sequence[Event]:
        try:
            while True:
                async with asyncio.timeout(wait_ns / _S):
                    notice = await anext(notices)
                events = [from_event(event) for stream in notice.streams for event in stream.events]
                if events:
                    return events
        except TimeoutError:
            raise UnreachableError(f"{self.authority} was silent for {wait_ns / _S:g} s") from None
        except StopAsyncIteration:
            raise ProtocolError(f"{self.authority} ended the call amid an answer") from None
        except grpc.aio.AioRpcError as error:
            raise self._explained(error) from error


def _target(addresses: Sequence[str], port: int) -> str:
    """Return the addresses in gRPC's words; it tries them in order."""
    found = [ipaddress.ip_address(address.partition("%")[0]) for address in dict.fromkeys(addresses)]
    if all(address.version == _V4 for address in found):
        return "ipv4:" + ",".join(f"{address}:{port}" for address in found)
    # One target has one family; in it stand those of the old kind as well.
    mapped = [f"::ffff:{address}" if address.version == _V4 else str(address) for address in found]
    return "ipv6:" + ",".join(f"[{address}]:{port}" for address in mapped)


def _metadata(headers: bytes) -> Sequence[tuple[str, str]]:
    """Return header lines, each with its end, as metadata."""
    lines = (line.partition(": ") for line in headers.decode("latin-1").split("\r\n"))
    return [(name, value) for name, _, value in lines if name]


def _end(call: StreamCall[pb.Notice]) -> None:
    call.cancel()


async def _all_of(commands: asyncio.Queue[pb.Command]) -> AsyncGenerator[pb.Command]:
    while True:
        yield await commands.get()


def _explained(authority: str, error: grpc.aio.AioRpcError) -> EndpointError:
    """Return what a call that failed means."""
    told = error_of(error)
    if told is not None:
        if told.http_status in {429, 503}:
            after_ns = told.retry_after_ns if told.HasField("retry_after_ns") else None
            return OverloadedError(
                told.message, mend=told.mend, status=told.http_status, retry_after_ns=after_ns
            )
        return EndpointError(told.message, mend=told.mend, status=told.http_status)
    detail = error.details() or error.code().name
    if error.code() in _AWAY:
        return UnreachableError(
            f"no gRPC with {authority}: {detail}", mend="see that the endpoint runs and its URL is right"
        )
    return EndpointError(
        f"{authority} answered {error.code().name}: {detail}", status=_STATUSES.get(error.code(), 502)
    )
