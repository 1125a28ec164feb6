"""Both ends of the bridge over a real socket: a server on a thread, a client on the loop."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import AsyncGenerator
from concurrent.futures import Future
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import pytest
from tests.factories.loops import in_loop

from tokenweir.core.errors import (
    DeadlineError,
    EngineError,
    EngineRestartedError,
    GuidanceError,
    ProtocolError,
    WeirError,
)
from tokenweir.core.events import Completed, Failed, Started, Token, TokenLogprob, Usage
from tokenweir.core.requests import GenerateRequest, Message
from tokenweir.ports.inference import DeviceMemory, LoadSpec, ModelCard
from tokenweir.runtime.bridge.client import BridgeClient
from tokenweir.runtime.bridge.framing import seal
from tokenweir.runtime.bridge.messages import (
    MAX_FRAME_BYTES,
    TO_CHILD,
    Cancel,
    Credit,
    Detokenize,
    Done,
    Embed,
    Embedded,
    Load,
    Ping,
    Pong,
    Prepare,
    Prepared,
    Shutdown,
    Start,
    Stepped,
    StreamEvents,
    Text,
    Tokenize,
    Tokens,
    Tune,
)
from tokenweir.runtime.bridge.server import BridgeServer

SECOND = 1_000_000_000
MEMORY = DeviceMemory(active_bytes=1, cached_bytes=2, limit_bytes=3)
CARD = ModelCard(
    name="m",
    path="/m",
    revision="0" * 64,
    architecture="sim",
    context_tokens=100,
    vocabulary=10,
    weights_bytes=1,
    kv_bytes_per_token=1,
)


@dataclass
class Child:
    """A child with a device thread in miniature: ``embed`` is answered later, from another thread."""

    notices: list[object] = field(default_factory=list[object])
    came: threading.Condition = field(default_factory=threading.Condition)
    embeds: list[tuple[Embed, Future[Embedded]]] = field(default_factory=list[tuple[Embed, Future[Embedded]]])
    hold: threading.Event = field(default_factory=threading.Event)

    def ping(self, _params: Ping) -> Pong:
        return Pong(epoch=1, rss_bytes=5, memory=MEMORY, streams=0, stalled_ns=0)

    def load(self, params: Load) -> ModelCard:
        return params.card

    def prepare(self, params: Prepare) -> Prepared:
        if params.model == "guided":
            raise GuidanceError("the keyword 'if' is not supported", mend="leave it out")
        if params.model == "broken":
            raise RuntimeError("boom")
        return Prepared(stream=params.stream, prompt_tokens=len(params.request.messages), max_tokens=7)

    def tokenize(self, params: Tokenize) -> Tokens:
        self.hold.wait(5)
        return Tokens(tokens=tuple(params.text.encode()))

    def detokenize(self, params: Detokenize) -> Text | Tokens:
        return Tokens(tokens=params.tokens)

    def embed(self, params: Embed) -> Future[Embedded]:
        future: Future[Embedded] = Future()
        with self.came:
            self.embeds.append((params, future))
            self.came.notify_all()
        return future

    def was_asked(self) -> bool:
        """Wait until ``embed`` has been called."""
        with self.came:
            return self.came.wait_for(lambda: self.embeds, 5) != []

    def note(self, params: object) -> None:
        with self.came:
            self.notices.append(params)
            self.came.notify_all()
        if isinstance(params, Cancel):
            raise EngineError("a notice that fails")

    def server(self, sock: socket.socket) -> BridgeServer:
        handlers = {
            "ping": self.ping,
            "load": self.load,
            "prepare": self.prepare,
            "tokenize": self.tokenize,
            "detokenize": self.detokenize,
            "embed": self.embed,
        }
        notices = dict.fromkeys(TO_CHILD, self.note)
        return BridgeServer(sock, handlers, notices)


@dataclass
class Ends:
    """What a test holds: the client, the server behind it, and what the client was told."""

    client: BridgeClient
    server: BridgeServer
    child: Child
    stepped: asyncio.Queue[Stepped]
    lost: asyncio.Future[WeirError | None]

    async def call(self, method_timeout_ns: int = 5 * SECOND) -> Pong:
        return await self.client.call(Ping(), Pong, timeout_ns=method_timeout_ns)


@asynccontextmanager
async def bridge() -> AsyncGenerator[Ends]:
    ours, theirs = socket.socketpair()
    child = Child()
    server = child.server(theirs)
    thread = threading.Thread(target=server.serve)
    thread.start()
    stepped: asyncio.Queue[Stepped] = asyncio.Queue()
    lost: asyncio.Future[WeirError | None] = asyncio.get_running_loop().create_future()
    client = await BridgeClient.connect(ours, stepped.put_nowait, lost.set_result)
    try:
        yield Ends(client, server, child, stepped, lost)
    finally:
        child.hold.set()
        client.close()
        await asyncio.to_thread(thread.join, 5)
        theirs.close()
    assert not thread.is_alive()


@asynccontextmanager
async def raw_child() -> AsyncGenerator[tuple[BridgeClient, socket.socket, asyncio.Future[WeirError | None]]]:
    """A client whose child is the test itself."""
    ours, theirs = socket.socketpair()
    lost: asyncio.Future[WeirError | None] = asyncio.get_running_loop().create_future()
    client = await BridgeClient.connect(ours, lambda _stepped: None, lost.set_result)
    try:
        yield client, theirs, lost
    finally:
        client.close()
        theirs.close()


def sealed(text: bytes) -> bytes:
    return bytes(seal(bytearray(4) + text))


@in_loop
async def test_a_call_is_answered() -> None:
    async with bridge() as ends:
        assert (await ends.call()).rss_bytes == 5
        loaded = await ends.client.call(
            Load(spec=LoadSpec(name="m", path="/m"), card=CARD), ModelCard, timeout_ns=SECOND
        )
        assert loaded == CARD


@in_loop
async def test_two_hundred_calls_at_once_get_their_own_answers() -> None:
    async with bridge() as ends:

        async def ask(number: int) -> None:
            request = GenerateRequest(
                kind="chat", model="m", messages=(Message(role="user", content="é"),) * number
            )
            call = Prepare(stream=number, model="m", request=request)
            answer = await ends.client.call(call, Prepared, timeout_ns=20 * SECOND)
            assert (answer.stream, answer.prompt_tokens) == (number, number)

        async with asyncio.TaskGroup() as group:
            for number in range(200):
                group.create_task(ask(number))


@in_loop
async def test_what_the_child_raises_is_raised_here() -> None:
    async with bridge() as ends:
        request = GenerateRequest(kind="chat", model="m")
        with pytest.raises(GuidanceError, match="keyword 'if'") as guided:
            await ends.client.call(
                Prepare(stream=1, model="guided", request=request), Prepared, timeout_ns=SECOND
            )
        assert guided.value.mend == "leave it out"
        with pytest.raises(EngineError, match="RuntimeError: boom"):
            await ends.client.call(
                Prepare(stream=2, model="broken", request=request), Prepared, timeout_ns=SECOND
            )
        await ends.call()


@in_loop
async def test_a_method_without_handler_is_refused_by_name() -> None:
    async with bridge() as ends:
        with pytest.raises(ProtocolError, match="no method is called 'shutdown'; there are ping"):
            await ends.client.call(Shutdown(), Done, timeout_ns=SECOND)


@in_loop
async def test_a_handler_that_answers_with_another_type_is_found_out() -> None:
    async with bridge() as ends:
        with pytest.raises(EngineError, match="answered with Tokens, not Text"):
            await ends.client.call(Detokenize(model="m", tokens=(1,)), Text, timeout_ns=SECOND)


@in_loop
async def test_the_device_thread_answers_later_and_in_any_order() -> None:
    async with bridge() as ends:
        child = ends.child

        def device() -> None:
            with child.came:
                child.came.wait_for(lambda: len(child.embeds) == 3, 5)
            for ask, future in reversed(child.embeds):
                if ask.model == "bad":
                    future.set_exception(GuidanceError("later"))
                else:
                    future.set_result(Embedded(vectors=((1.0,),), input_tokens=len(ask.inputs)))

        async def ask(model: str, count: int) -> int:
            call = Embed(model=model, inputs=("x",) * count)
            return (await ends.client.call(call, Embedded, timeout_ns=5 * SECOND)).input_tokens

        async def bad() -> None:
            with pytest.raises(GuidanceError, match="later"):
                await ask("bad", 1)

        thread = threading.Thread(target=device)
        thread.start()
        async with asyncio.TaskGroup() as group:
            one, two = group.create_task(ask("m", 1)), group.create_task(ask("m", 2))
            group.create_task(bad())
        assert (one.result(), two.result()) == (1, 2)
        await asyncio.to_thread(thread.join)


@in_loop
async def test_a_call_that_takes_too_long_ends_and_its_late_answer_is_dropped() -> None:
    async with bridge() as ends:
        with pytest.raises(DeadlineError, match="did not answer 'tokenize' within 50ms"):
            await ends.client.call(Tokenize(model="m", text="x"), Tokens, timeout_ns=SECOND // 20)
        ends.child.hold.set()
        await ends.call()
        assert not ends.lost.done()


@in_loop
async def test_notifications_arrive_in_order_and_one_that_fails_ends_nothing() -> None:
    async with bridge() as ends:
        sent = [
            Start(stream=1, first_seq=2, credits=3),
            Cancel(stream=1),
            Credit(stream=1, tokens=4),
            Tune(model="m", batch=2, prefill_tokens=64),
        ]
        for one in sent:
            ends.client.notify(one)
        child = ends.child

        def wait() -> bool:
            with child.came:
                return child.came.wait_for(lambda: len(child.notices) == 4, 5)

        assert await asyncio.to_thread(wait)
        assert child.notices == sent
        await ends.call()


@in_loop
async def test_steps_from_many_threads_come_whole_and_each_threads_in_order() -> None:
    async with bridge() as ends:
        events = (
            Started(seq=2, model="m"),
            Token(
                seq=3,
                text="é\n",
                count=1,
                logprobs=(TokenLogprob(token="é", logprob=-0.5, top=(("e", -1.0),)),),
            ),
            Usage(seq=4, input_tokens=1, output_tokens=1),
            Completed(seq=5, finish_reason="stop"),
            Failed(seq=5, kind="engine", message="x"),
        )

        def notify(name: str) -> None:
            for step in range(200):
                stream = StreamEvents(stream=step, events=events)
                ends.server.notify("stepped", Stepped(model=name, streams=(stream,), step_ns=step))

        threads = [threading.Thread(target=notify, args=(name,)) for name in "abc"]
        for thread in threads:
            thread.start()
        got: dict[str, list[int]] = {"a": [], "b": [], "c": []}
        for _ in range(600):
            one = await ends.stepped.get()
            assert one.streams[0].events == events
            got[one.model].append(one.step_ns)
        assert all(steps == list(range(200)) for steps in got.values())
        for thread in threads:
            thread.join()


@in_loop
async def test_a_client_that_does_not_read_never_holds_the_device_thread() -> None:
    async with bridge() as ends:
        text = "x" * 10_000

        def notify() -> None:
            for step in range(500):
                stream = StreamEvents(stream=1, events=(Token(seq=step, text=text),))
                ends.server.notify("stepped", Stepped(model="m", streams=(stream,), step_ns=step))

        # The loop, which would read, is blocked for as long as this runs: 5 MB do not fit a socket's buffer.
        thread = threading.Thread(target=notify)
        thread.start()
        thread.join(20)
        assert not thread.is_alive()
        assert [(await ends.stepped.get()).step_ns for _ in range(500)] == list(range(500))


@in_loop
async def test_a_child_that_goes_fails_the_calls_that_wait() -> None:
    async with bridge() as ends:
        async with asyncio.TaskGroup() as group:
            waiting = group.create_task(_lost_call(ends))
            assert await asyncio.to_thread(ends.child.was_asked)
            ends.server.stop()
        assert waiting.result().retryable
        assert isinstance(await ends.lost, EngineRestartedError)
        with pytest.raises(EngineRestartedError):
            await ends.call()
        ends.client.notify(Cancel(stream=1))


async def _lost_call(ends: Ends) -> WeirError:
    with pytest.raises(EngineRestartedError, match="connection") as lost:
        await ends.client.call(Embed(model="m", inputs=("x",)), Embedded, timeout_ns=5 * SECOND)
    return lost.value


BREACHES: dict[str, tuple[bytes, str]] = {
    "no JSON": (b"{", "not JSON-RPC"),
    "no JSON-RPC": (b'{"id":1}', "not JSON-RPC"),
    "another version": (b'{"jsonrpc":"1.0","id":1,"result":{}}', "not JSON-RPC"),
    "neither": (b'{"jsonrpc":"2.0"}', "neither an answer nor"),
    "an unknown notification": (b'{"jsonrpc":"2.0","method":"gossip","params":{}}', "'gossip'"),
    "a misshapen notification": (
        b'{"jsonrpc":"2.0","method":"stepped","params":{"model":"m","streams":[{"stream":"x"}]}}',
        "'stepped' does not fit its schema",
    ),
    "an answer nobody asked for": (b'{"jsonrpc":"2.0","id":99,"result":{}}', "call 99, which was never made"),
    "an error without a call": (
        b'{"jsonrpc":"2.0","id":null,"error":{"code":-32700,"message":"bad"}}',
        "could not read",
    ),
}


@pytest.mark.parametrize("breach", BREACHES)
def test_a_breach_of_the_protocol_ends_the_connection_and_says_why(breach: str) -> None:
    payload, reason = BREACHES[breach]

    @in_loop
    async def scenario() -> None:
        async with raw_child() as (client, sock, lost):
            sock.sendall(sealed(payload))
            error = await lost
            assert isinstance(error, ProtocolError)
            assert reason in str(error)
            assert not client.connected

    scenario()


@in_loop
async def test_a_frame_announced_too_long_ends_the_connection_at_once() -> None:
    async with raw_child() as (_client, sock, lost):
        sock.sendall((MAX_FRAME_BYTES + 1).to_bytes(4, "big"))
        assert "at most" in str(await lost)


@in_loop
async def test_an_answer_that_does_not_fit_fails_that_call_alone() -> None:
    async with raw_child() as (client, sock, lost):

        def answer() -> None:
            sock.recv(65_536)
            sock.sendall(sealed(b'{"jsonrpc":"2.0","id":1,"result":{"epoch":"one"}}'))

        thread = threading.Thread(target=answer)
        thread.start()
        with pytest.raises(ProtocolError, match="'ping' does not fit"):
            await client.call(Ping(), Pong, timeout_ns=5 * SECOND)
        assert client.connected
        assert not lost.done()
        thread.join()


@in_loop
async def test_a_call_too_long_for_a_frame_is_refused_here() -> None:
    async with bridge() as ends:
        with pytest.raises(ProtocolError, match="too long"):
            await ends.client.call(
                Tokenize(model="m", text="x" * (MAX_FRAME_BYTES + 1)), Tokens, timeout_ns=SECOND
            )
        await ends.call()
