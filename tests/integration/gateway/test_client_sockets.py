from __future__ import annotations

import asyncio
import signal
from collections import defaultdict
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor

import msgspec
import pytest
from tests.factories.clients import KINDS, AnyClient, opened
from tests.factories.cutting import CuttingProxy, cutting
from tests.factories.gateways import GatewayProcess, endpoint, gateway
from tests.factories.queued import ASK, User

from tokenweir.client import AsyncClient, AsyncSocket
from tokenweir.core.errors import (
    ConflictError,
    InputError,
    NotFoundError,
    ParameterError,
    QuotaExceededError,
    UnauthorizedError,
    UnreachableError,
)
from tokenweir.core.events import Accepted, Cancelled, Completed, Event, Started, Token, text
from tokenweir.sim.process import SimProcess

SETTINGS = """
[worker]
attempts = 4
backoff = "10ms"
lease = "2s"
[gateway]
heartbeat = "200ms"
"""


@pytest.fixture(scope="module")
def sims() -> Iterator[str]:
    """The settings of a fast endpoint and a slow one."""
    with (
        SimProcess(ttft="constant:2ms", itl="constant:1ms") as fast,
        SimProcess(ttft="constant:5ms", itl="constant:15ms", model="slow") as slow,
    ):
        yield endpoint("fast", fast.url) + endpoint("slow", slow.url, model="slow")


@pytest.fixture(scope="module")
def door(sims: str) -> Iterator[GatewayProcess]:
    with gateway(SETTINGS + sims) as process:
        yield process


@pytest.fixture
def proxy(door: GatewayProcess) -> Iterator[CuttingProxy]:
    with cutting(door.url) as before:
        yield before


@pytest.fixture(params=list(KINDS))
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def client(kind: str, proxy: CuttingProxy, door: GatewayProcess) -> Iterator[AnyClient]:
    """A client of the gateway behind the proxy."""
    with opened(kind, proxy.url, door.key) as made:
        yield made


def polled(door: GatewayProcess, request: str) -> list[Event]:
    """Return the events that the gateway has of a request."""
    return msgspec.convert(User(door.url, door.key).poll(request), list[Event])


def by_request(events: Iterable[tuple[str, Event]]) -> dict[str, list[Event]]:
    found: dict[str, list[Event]] = defaultdict(list)
    for name, event in events:
        found[name].append(event)
    return found


def new_key(door: GatewayProcess, user: str) -> tuple[str, str]:
    """Return the id and the secret of a key of a new user."""
    door.weir("users", "add", user)
    made = door.weir("keys", "create", user)
    return made.stderr.split()[0], made.stdout.strip()


def test_many_requests_share_a_socket(client: AnyClient, proxy: CuttingProxy, door: GatewayProcess) -> None:
    with client.socket() as socket:
        sent = [
            socket.submit(model="sim", messages=ASK, mode="stream", max_tokens=1 + number).request_id
            for number in range(20)
        ]
        alone = socket.submit(model="sim", messages=ASK, mode="stream", max_tokens=7)
        single = list(socket.stream(alone))
        told = by_request(socket.events())
        assert list(socket.events()) == []
        # What was read once can be read again, from any event on; what was not followed, too.
        assert list(socket.stream(alone)) == single
        socket.follow(alone, after=single[-3].seq)
        assert list(socket.stream(alone)) == single[-2:]
        socket.follow(alone, after=single[-1].seq)
        assert list(socket.stream(alone)) == []
        unread = socket.submit(model="sim", messages=ASK, mode="stream", max_tokens=2, follow=False)
        assert list(socket.events()) == []
        assert isinstance(list(socket.stream(unread))[-1], Completed)
    assert proxy.connections == 1
    assert single == polled(door, alone.request_id)
    assert sorted(told) == sorted(sent)
    for number, name in enumerate(sent):
        assert told[name] == polled(door, name)
        assert sum(isinstance(event, Token) for event in told[name]) == 1 + number


def test_a_request_is_cancelled_while_others_go_on(client: AnyClient) -> None:
    with client.socket() as socket:
        stopped = socket.submit(model="slow", messages=ASK, mode="stream", max_tokens=5000)
        other = socket.submit(model="slow", messages=ASK, mode="stream", max_tokens=30)
        told: dict[str, list[Event]] = defaultdict(list)
        for name, event in socket.events():
            told[name].append(event)
            if isinstance(event, Token) and sum(map(len, told.values())) == 12:
                socket.cancel(stopped)
    assert isinstance(told[stopped.request_id][-1], Cancelled)
    assert sum(isinstance(event, Token) for event in told[other.request_id]) == 30
    assert isinstance(told[other.request_id][-1], Completed)


def test_a_socket_that_is_cut_again_and_again_goes_on_where_it_stopped(
    client: AnyClient, proxy: CuttingProxy, door: GatewayProcess
) -> None:
    known = {each.request_id for each in client.history()}
    before = proxy.connections
    # A few events each, and now and then the answer to a submission is lost.
    proxy.cut_after = 1200
    with client.socket() as socket:
        sent = [
            socket.submit(model="slow", messages=ASK, mode="stream", max_tokens=40).request_id
            for _ in range(5)
        ]
        told = by_request(socket.events())
    proxy.cut_after = None
    assert proxy.connections - before > 8
    assert sorted(told) == sorted(sent)
    assert {each.request_id for each in client.history()} - known == set(sent)
    for name, events in told.items():
        assert events == polled(door, name)
        assert sum(isinstance(event, Token) for event in events) == 40


def test_kill_9_of_the_gateway_is_not_seen_in_the_events(sims: str, kind: str) -> None:
    with (
        gateway(SETTINGS + sims) as door,
        cutting(door.url) as proxy,
        opened(kind, proxy.url, door.key) as client,
        client.socket() as socket,
        ThreadPoolExecutor(1) as aside,
    ):
        for _ in range(3):
            socket.submit(model="slow", messages=ASK, mode="stream", max_tokens=60, retry_after_tokens=True)

        def killed() -> None:
            door.stop(signal.SIGKILL)
            door.start()
            proxy.target = door.url

        told: dict[str, list[Event]] = defaultdict(list)
        killing = None
        for name, event in socket.events():
            told[name].append(event)
            if killing is None and sum(map(len, told.values())) == 40:
                killing = aside.submit(killed)
        assert killing is not None
        killing.result()
        for name, events in told.items():
            assert events == polled(door, name)
            starts = [place for place, event in enumerate(events) if isinstance(event, Started)]
            assert len(starts) == 2
            assert sum(isinstance(event, Token) for event in events[starts[-1] :]) == 60


def test_events_that_nobody_takes_wait_at_the_gateway(client: AnyClient, door: GatewayProcess) -> None:
    with client.socket() as socket:
        long = socket.submit(model="sim", messages=ASK, mode="stream", max_tokens=1800)
        assert client.wait(long, timeout="60s").status == "completed"
        # Whatever is read meanwhile, what is kept of the long one is bounded.
        for _ in range(8):
            list(socket.stream(socket.submit(model="sim", messages=ASK, mode="stream", max_tokens=40)))
        events = list(socket.stream(long))
        assert list(socket.events()) == []
    assert events == polled(door, long.request_id)
    assert sum(isinstance(event, Token) for event in events) == 1800


def test_refusals_are_of_one_request_or_of_the_socket(
    client: AnyClient, kind: str, door: GatewayProcess
) -> None:
    with client.socket() as socket:
        good = socket.submit(model="sim", messages=ASK, mode="stream", max_tokens=3, idempotency_key="ws")
        with pytest.raises(NotFoundError, match="absent"):
            socket.submit(model="absent", messages=ASK)
        with pytest.raises(ParameterError) as raised:
            socket.submit(model="sim", messages=ASK, max_tokens="many")
        assert raised.value.param == "max_tokens"
        with pytest.raises(ConflictError, match="ws"):
            socket.submit(model="sim", messages=ASK, max_tokens=9, idempotency_key="ws")
        with pytest.raises(NotFoundError):
            socket.cancel("req_01M7ZF00000000000000000000")
        with pytest.raises(InputError, match="no idempotency key"):
            socket.submit(model="sim", messages=ASK, idempotency_key=" x")
        socket.follow("req_01M7ZF00000000000000000000")
        with pytest.raises(NotFoundError):
            list(socket.stream("req_01M7ZF00000000000000000000"))
        assert by_request(socket.events()) == {good.request_id: polled(door, good.request_id)}
    with pytest.raises(InputError, match="was closed"):
        socket.submit(model="sim", messages=ASK)
    with (
        opened(kind, door.url, f"{door.key[:-1]}x") as stranger,
        stranger.socket() as socket,
        pytest.raises(UnauthorizedError),
    ):
        socket.submit(model="sim", messages=ASK)
    with cutting(door.url) as before:
        away = before.url
    with opened(kind, away, door.key) as nobody, nobody.socket() as socket:
        for _ in range(2):
            with pytest.raises(UnreachableError, match="http://"):
                socket.submit(model="sim", messages=ASK)


def test_a_limit_says_when_to_come_back_and_a_revoked_key_ends_the_socket(
    kind: str, door: GatewayProcess
) -> None:
    user = f"socket of {kind}"
    id_, key = new_key(door, user)
    door.weir("quotas", "set", "1", "requests", "--per", "month", "--user", user)
    with opened(kind, door.url, key) as client, client.socket() as socket:
        running = socket.submit(model="slow", messages=ASK, mode="stream", max_tokens=5000)
        with pytest.raises(QuotaExceededError) as raised:
            socket.submit(model="sim", messages=ASK, max_tokens=1)
        assert (raised.value.retry_after_ns or 0) > 0
        events = socket.stream(running)
        assert isinstance(next(events), Accepted)
        door.weir("keys", "revoke", id_)
        with pytest.raises(UnauthorizedError):
            list(events)


def test_tasks_share_a_socket_and_one_that_is_cancelled_disturbs_no_other(
    proxy: CuttingProxy, door: GatewayProcess
) -> None:
    async def one(socket: AsyncSocket, number: int) -> tuple[str, list[Event]]:
        request = await socket.submit(
            model="slow" if number % 2 else "sim", messages=ASK, mode="stream", max_tokens=20 + number
        )
        return request.request_id, [event async for event in socket.stream(request)]

    async def begun(socket: AsyncSocket, first: asyncio.Event) -> None:
        request = await socket.submit(model="slow", messages=ASK, mode="stream", max_tokens=2000)
        async for _ in socket.stream(request):
            first.set()

    async def all_of_them() -> list[tuple[str, list[Event]]]:
        async with AsyncClient(proxy.url, door.key) as client, client.socket() as socket:
            first = asyncio.Event()
            async with asyncio.TaskGroup() as group:
                # It waits first, and so moves the bytes for all.
                stopped = group.create_task(begun(socket, first))
                await first.wait()
                tasks = [group.create_task(one(socket, number)) for number in range(12)]
                await asyncio.sleep(0)
                stopped.cancel()
                proxy.cut()
            return [task.result() for task in tasks]

    for number, (name, events) in enumerate(asyncio.run(all_of_them())):
        assert events == polled(door, name)
        assert sum(isinstance(event, Token) for event in events) == 20 + number
        assert text(events)
    assert proxy.connections == 2
