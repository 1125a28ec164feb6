"""The gRPC door over a fake engine, and over a real process with a simulated model."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import grpc.aio
import pytest
from tests.factories.served import serve
from tests.factories.sim_models import directory

from tokenweir.core.clock import SystemClock
from tokenweir.core.errors import ConfigError, UnavailableError, WeirError
from tokenweir.core.events import Cancelled, Completed, Event, Failed, Token, Usage, text
from tokenweir.core.requests import GenerateRequest, Message, Sampling
from tokenweir.runtime.http.door import Build, Door
from tokenweir.runtime.http.fakes import FakeServing, spoken
from tokenweir.runtime.http.metrics import Metrics
from tokenweir.runtime.options import RunOptions
from tokenweir.runtime.rpc_door.service import GrpcServer
from tokenweir.wire.v1 import inference_pb2 as pb
from tokenweir.wire.v1.events import from_event
from tokenweir.wire.v1.requests import to_request
from tokenweir.wire.v1.service import InferenceClient, error_of

CHAT = GenerateRequest(kind="chat", model="fake", messages=(Message(role="user", content="hi"),))
Told = dict[int, list[Event]]


def endless(_request: GenerateRequest, _options: RunOptions) -> Iterable[Event]:
    at = 0
    while True:
        yield Token(seq=at, text="x", count=1)
        at += 1


@asynccontextmanager
async def offered(
    serving: FakeServing, *, key: str | None = None, sent: str | None = None
) -> AsyncGenerator[InferenceClient]:
    """Offer a facade over gRPC while the block runs."""
    clock = SystemClock()
    door = Door(serving, metrics=Metrics(clock), clock=clock, build=Build(version="1.2.3"), key=key)
    server = GrpcServer(door, "127.0.0.1", 0)
    await server.start()
    try:
        async with asyncio.timeout(30), grpc.aio.insecure_channel(server.address) as channel:
            # A call's deadline counts its connecting too.
            await channel.channel_ready()
            yield InferenceClient(channel, key=sent)
    finally:
        await server.stop(0)


def run(serving: FakeServing, use: Callable[[InferenceClient], Awaitable[None]]) -> None:
    """Let ``use`` talk to a facade."""

    async def main() -> None:
        async with offered(serving) as client:
            await use(client)

    asyncio.run(main())


def submit(
    request: GenerateRequest = CHAT, *, credits_given: int = 0, options: pb.Options | None = None
) -> pb.Submit:
    return pb.Submit(request=to_request(request, options), credits=credits_given)


async def each(commands: Iterable[pb.Command]) -> AsyncIterator[pb.Command]:
    for command in commands:
        yield command


def take(told: Told, notice: pb.Notice) -> None:
    for stream in notice.streams:
        told.setdefault(stream.stream, []).extend(from_event(event) for event in stream.events)


def test_a_request_s_events_are_the_engine_s_own() -> None:
    async def use(client: InferenceClient) -> None:
        events = [from_event(event) async for event in client.generate(to_request(CHAT))]
        assert events == spoken("hello there")

    run(FakeServing(), use)


def test_many_requests_share_one_call() -> None:
    async def use(client: InferenceClient) -> None:
        told: Told = {}
        commands = [pb.Command(stream=number, submit=submit()) for number in range(20)]
        async for notice in client.converse(each(commands)):
            take(told, notice)
        assert told == {number: spoken("hello there") for number in range(20)}

    run(FakeServing(), use)


def test_a_request_without_credit_waits_and_others_do_not() -> None:
    async def use(client: InferenceClient) -> None:
        more: asyncio.Queue[pb.Command | None] = asyncio.Queue()

        async def commands() -> AsyncIterator[pb.Command]:
            while (command := await more.get()) is not None:
                yield command

        await more.put(pb.Command(stream=1, submit=submit(credits_given=1)))
        await more.put(pb.Command(stream=2, submit=submit(credits_given=10)))
        told: Told = {}
        granted = False
        async for notice in client.converse(commands()):
            take(told, notice)
            first, second = told.get(1, []), told.get(2, [])
            if (
                not granted
                and second
                and isinstance(second[-1], Completed)
                and any(isinstance(e, Token) for e in first)
            ):
                assert sum(isinstance(event, Token) for event in first) == 1
                assert not isinstance(first[-1], Completed)
                granted = True
                await more.put(pb.Command(stream=1, credit=pb.Credit(events=1)))
                await more.put(None)
        assert granted
        assert told == {1: spoken("hello there"), 2: spoken("hello there")}

    run(FakeServing(), use)


def test_a_cancelled_request_ends_alone() -> None:
    serving = FakeServing(
        lambda request, options: endless(request, options) if request.sampling.n == 2 else spoken("a b")
    )
    long = GenerateRequest(kind="chat", model="fake", messages=CHAT.messages, sampling=Sampling(n=2))

    async def use(client: InferenceClient) -> None:
        more: asyncio.Queue[pb.Command | None] = asyncio.Queue()

        async def commands() -> AsyncIterator[pb.Command]:
            while (command := await more.get()) is not None:
                yield command

        await more.put(pb.Command(stream=1, submit=submit(long)))
        told: Told = {}
        cancelled = False
        async for notice in client.converse(commands()):
            take(told, notice)
            if not cancelled:
                cancelled = True
                await more.put(pb.Command(stream=1, cancel=pb.Cancel()))
                await more.put(pb.Command(stream=1, cancel=pb.Cancel()))
                await more.put(pb.Command(stream=2, submit=submit()))
                await more.put(None)
        assert isinstance(told[1][-1], Cancelled)
        assert [event.seq for event in told[1]] == list(range(len(told[1])))
        assert told[2] == spoken("a b")

    run(serving, use)
    assert serving.cancelled == 1


def test_a_request_that_waits_for_credit_is_cancelled_without_a_gap() -> None:
    serving = FakeServing(endless)

    async def use(client: InferenceClient) -> None:
        more: asyncio.Queue[pb.Command | None] = asyncio.Queue()

        async def commands() -> AsyncIterator[pb.Command]:
            while (command := await more.get()) is not None:
                yield command

        await more.put(pb.Command(stream=1, submit=submit(credits_given=3)))
        told: Told = {}
        async for notice in client.converse(commands()):
            take(told, notice)
            if len(told[1]) == 3:
                await more.put(pb.Command(stream=1, cancel=pb.Cancel()))
                await more.put(None)
        assert [(type(event), event.seq) for event in told[1]] == [
            *((Token, at) for at in range(3)),
            (Cancelled, 3),
        ]

    run(serving, use)


def test_the_end_of_a_call_cancels_what_is_in_work() -> None:
    serving = FakeServing(endless)

    async def use(client: InferenceClient) -> None:
        for call in (
            client.generate(to_request(CHAT)),
            client.converse(each([pb.Command(stream=1, submit=submit())])),
        ):
            serving.ended.clear()
            async for _ in call:
                call.cancel()
                break
            await serving.ended.wait()

    run(serving, use)
    assert serving.cancelled == 2


def test_a_deadline_ends_the_work_and_is_told_to_the_engine() -> None:
    serving = FakeServing(endless)

    async def use(client: InferenceClient) -> None:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            async for _ in client.generate(to_request(CHAT), timeout_s=0.5):
                pass
        assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        await serving.ended.wait()

    run(serving, use)
    timeout_ns = serving.asked[0][1].timeout_ns
    assert timeout_ns is not None
    # gRPC sends a deadline as the time that is left, rounded up.
    assert 0 < timeout_ns < 600_000_000
    assert serving.cancelled == 1


def test_a_client_that_does_not_read_holds_the_engine() -> None:
    serving = FakeServing(
        lambda _request, _options: (Token(seq=at, text="x" * 10_000) for at in range(100_000))
    )

    async def use(client: InferenceClient) -> None:
        call = client.converse(each([pb.Command(stream=1, submit=submit())]))
        reader = call.__aiter__()
        await reader.__anext__()
        taken, rounds = 0, 0
        while serving.taken != taken or rounds < 20:
            rounds = rounds + 1 if serving.taken == taken else 0
            taken = serving.taken
            await asyncio.sleep(0.01)
        assert taken < 20_000
        call.cancel()
        await serving.ended.wait()

    run(serving, use)


@pytest.mark.parametrize(
    ("error", "code", "retryable"),
    [
        (UnavailableError("starting", mend="wait", retry_after_ns=5), grpc.StatusCode.UNAVAILABLE, True),
        (WeirError("broken"), grpc.StatusCode.INTERNAL, False),
    ],
)
def test_a_refusal_is_a_status_with_its_detail(
    error: WeirError, code: grpc.StatusCode, *, retryable: bool
) -> None:
    serving = FakeServing(lambda _request, _options: error)

    async def use(client: InferenceClient) -> None:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            async for _ in client.generate(to_request(CHAT)):
                pass
        assert caught.value.code() is code
        detail = error_of(caught.value)
        assert detail is not None
        assert (detail.code, detail.message, detail.mend) == (error.code, error.message, error.mend)
        assert detail.retryable is retryable
        told: Told = {}
        async for notice in client.converse(each([pb.Command(stream=9, submit=submit())])):
            take(told, notice)
        (failed,) = told[9]
        assert isinstance(failed, Failed)
        assert (failed.kind, failed.retryable, failed.status) == (error.code, retryable, error.http_status)

    run(serving, use)


def test_a_failure_after_a_token_is_the_call_s_status() -> None:
    serving = FakeServing(
        lambda _request, _options: [
            Token(seq=0, text="x"),
            Failed(seq=1, kind="engine", message="lost", status=503),
        ]
    )

    async def use(client: InferenceClient) -> None:
        call = client.generate(to_request(CHAT)).__aiter__()
        assert from_event(await call.__anext__()) == Token(seq=0, text="x")
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call.__anext__()
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE

    run(serving, use)


@pytest.mark.parametrize(
    "commands",
    [
        [pb.Command(stream=1)],
        [pb.Command(stream=1, submit=submit()), pb.Command(stream=1, submit=submit())],
    ],
)
def test_commands_that_make_no_sense_end_the_call(commands: list[pb.Command]) -> None:
    async def use(client: InferenceClient) -> None:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            async for _ in client.converse(each(commands)):
                pass
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT

    run(FakeServing(), use)


def test_a_bad_request_in_a_conversation_fails_alone() -> None:
    async def use(client: InferenceClient) -> None:
        other = GenerateRequest(kind="chat", model="other", messages=CHAT.messages)
        commands = [
            pb.Command(stream=1, submit=pb.Submit(request=pb.GenerateRequest(model="fake"))),
            pb.Command(stream=2, submit=submit(other)),
            pb.Command(stream=3, submit=submit(options=pb.Options(kv_bits=3))),
            pb.Command(stream=4, submit=submit()),
        ]
        told: Told = {}
        async for notice in client.converse(each(commands)):
            take(told, notice)
        kinds = {stream: event.kind for stream, (event, *_) in told.items() if isinstance(event, Failed)}
        assert kinds == {1: "invalid_value", 2: "model_not_loaded", 3: "invalid_value"}
        assert told[4] == spoken("hello there")

    run(FakeServing(), use)


def test_the_other_methods() -> None:
    async def use(client: InferenceClient) -> None:
        health = await client.health()
        assert (health.ready, health.reason, health.version) == (True, "", "1.2.3")
        (model,) = (await client.models()).models
        assert (model.name, model.revision, model.state) == ("fake", "f" * 64, "loaded")
        assert not model.HasField("draft")
        tokens = await client.tokenize(pb.TokenizeRequest(text="hé"))
        assert list(tokens.ids) == [104, 195, 169]
        assert (await client.detokenize(pb.DetokenizeRequest(ids=tokens.ids))).text == "hé"
        messages = await client.tokenize(pb.TokenizeRequest(messages=[pb.Message(role="user", text="ab")]))
        assert list(messages.ids) == [97, 98]
        vectors = await client.embed(pb.EmbedRequest(model="fake", inputs=["a", "b"]))
        assert len(vectors.vectors) == vectors.input_tokens == 2

    run(FakeServing(), use)


def test_a_key_is_asked_for_but_by_health() -> None:
    async def main(sent: str | None) -> None:
        async with offered(FakeServing(), key="secret", sent=sent) as client:
            assert (await client.health()).ready
            if sent == "secret":
                assert (await client.models()).models
                return
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await client.models()
            assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED

    for sent in (None, "wrong", "secret"):
        asyncio.run(main(sent))


def test_a_port_in_use_is_told_with_its_mend() -> None:
    async def main() -> None:
        clock = SystemClock()
        door = Door(FakeServing(), metrics=Metrics(clock), clock=clock, build=Build(version="0"))
        first = GrpcServer(door, "127.0.0.1", 0)
        await first.start()
        with pytest.raises(ConfigError, match=r"is in use.*--grpc-port"):
            await GrpcServer(door, "127.0.0.1", first.port).start()
        await first.stop(0)

    asyncio.run(main())


def test_a_real_server_answers_over_grpc(tmp_path: Path) -> None:
    model = directory(tmp_path / "tiny", replies=[{"text": "one two three"}])
    request = GenerateRequest(
        kind="chat", model="tiny", messages=CHAT.messages, sampling=Sampling(max_tokens=50)
    )

    async def main(address: str) -> None:
        async with asyncio.timeout(30), grpc.aio.insecure_channel(address) as channel:
            client = InferenceClient(channel)
            assert (await client.health()).ready
            told: Told = {}
            commands = [pb.Command(stream=number, submit=submit(request)) for number in range(8)]
            async for notice in client.converse(each(commands)):
                take(told, notice)
            for events in told.values():
                assert text(events) == "one two three"
                assert isinstance(events[-1], Completed)
                (usage,) = [event for event in events if isinstance(event, Usage)]
                assert usage.output_tokens
                assert [event.seq for event in events] == list(range(len(events)))

    with serve(model, "--grpc-port", "0", log=tmp_path / "log") as served:
        asyncio.run(main(served.grpc))
