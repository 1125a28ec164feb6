from __future__ import annotations

import shutil
import signal
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec
import pytest
from tests.factories.clients import KINDS, AnyClient, opened
from tests.factories.cutting import CuttingProxy, cutting
from tests.factories.forward_proxy import forward_proxy
from tests.factories.gateways import GatewayProcess, endpoint, gateway
from tests.factories.queued import ASK, User

from tokenweir.access.directory import Directory, StoredLimit
from tokenweir.client import Client, Options, Tls
from tokenweir.core.errors import (
    ConflictError,
    DeadlineError,
    ForbiddenError,
    InputError,
    NotFoundError,
    ParameterError,
    QuotaExceededError,
    UnauthorizedError,
    UnreachableError,
)
from tokenweir.core.events import Completed, Event, Started, Token, text
from tokenweir.sim.process import SimProcess

_S = 1_000_000_000
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


@pytest.fixture(scope="module")
def people(door: GatewayProcess) -> dict[str, str]:
    """Keys by whom they belong to: one that may only read, and those that may ask once a month."""
    directory = Directory(f"sqlite:///{door.home}/access.db")
    directory.add_user("reader")
    keys = {"reader": directory.issue("reader", "", scopes=["read"])[1]}
    for name in (f"limited {kind}" for kind in KINDS):
        user = directory.add_user(name)
        once = StoredLimit(scope="user", subject=user.id, unit="requests", window="month", amount=1)
        directory.set_limit(once)
        keys[name] = directory.issue(name, "")[1]
    directory.close()
    return keys


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


def test_submitted_streamed_waited_for_listed_and_cancelled(client: AnyClient, door: GatewayProcess) -> None:
    request = client.submit(model="sim", messages=ASK, mode="stream", max_tokens=12)
    events = list(client.stream(request))
    assert events == polled(door, request.request_id)
    assert sum(isinstance(event, Token) for event in events) == 12
    assert isinstance(events[-1], Completed)
    told = client.wait(request)
    assert (told.status, told.text) == ("completed", text(events))
    assert told.token_usage is not None
    assert told.token_usage.completion_tokens == 12
    assert list(client.stream(request, after=events[-3].seq)) == events[-2:]
    assert list(client.stream(request, after=events[-1].seq)) == []
    running = client.submit(model="slow", messages=ASK, mode="stream", max_tokens=5000)
    assert isinstance(next(each for each in client.stream(running) if isinstance(each, Token)), Token)
    client.cancel(running)
    assert client.wait(running, timeout="30s").status == "cancelled"
    listed = [each.request_id for each in client.history(page=1)]
    assert listed[:2] == [running.request_id, request.request_id]
    assert len(listed) == len(set(listed))


def test_a_batch_is_answered_in_order_and_says_what_was_refused(client: AnyClient) -> None:
    bodies: list[dict[str, object]] = [
        {"model": "sim", "messages": ASK, "max_tokens": 1 + number} for number in range(20)
    ]
    bodies[7] = {"model": "absent", "messages": ASK}
    items = list(client.batch(bodies, at_once=8, key="nightly"))
    assert [item.index for item in items] == list(range(20))
    assert isinstance(items[7].error, NotFoundError)
    good = [item for item in items if item.error is None]
    assert all(item.status is not None and item.status.status == "completed" and item.text for item in good)
    # Run again, as after a crash: the same requests.
    again = {item.index: item.status for item in client.batch(bodies, at_once=20, key="nightly")}
    for item in good:
        before, after = item.status, again[item.index]
        assert before is not None
        assert after is not None
        assert after.request_id == before.request_id


def test_a_batch_is_left_to_the_gateway_once_however_often_its_answers_are_lost(
    client: AnyClient, proxy: CuttingProxy, kind: str
) -> None:
    bodies = [{"model": "sim", "messages": ASK, "max_tokens": 1 + number} for number in range(12)]
    with pytest.raises(NotFoundError):
        client.batch_status("batch_none")
    proxy.cut()
    # The first answers are lost on their way: the file is sent again.
    proxy.swallow = 2
    batch = client.submit_batch(bodies, metadata={"by": "me"}, key=f"weekly {kind}")
    assert proxy.swallow == 0
    done = client.wait_batch(batch, timeout="60s")
    assert (done.id, done.status, done.metadata) == (batch.id, "completed", {"by": "me"})
    assert (done.request_counts.total, done.request_counts.completed) == (12, 12)
    results = client.batch_results(done)
    assert [result.index for result in results] == list(range(12))
    assert [result.body["usage"]["completion_tokens"] for result in results] == list(range(1, 13))
    assert all(result.ok and not result.reason for result in results)
    assert client.submit_batch(bodies, metadata={"by": "me"}, key=f"weekly {kind}").id == batch.id


def test_a_batch_that_is_stopped_or_wrong_says_so(client: AnyClient) -> None:
    quick: dict[str, object] = {"model": "sim", "messages": ASK, "max_tokens": 1}
    slow = {**quick, "model": "slow", "max_tokens": 4000}
    batch = client.submit_batch([slow] * 3)
    assert not client.batch_status(batch).ended
    with pytest.raises(DeadlineError):
        client.wait_batch(batch, timeout="300ms")
    client.cancel_batch(batch)
    done = client.wait_batch(batch.id, timeout="60s")
    assert done.status == "cancelled"
    assert not any(result.ok for result in client.batch_results(done))
    wrong = client.wait_batch(client.submit_batch([quick, {**quick, "model": "absent"}]), timeout="60s")
    assert (wrong.status, [problem.line for problem in wrong.problems]) == ("failed", [2])
    assert client.batch_results(wrong) == []


def test_a_stream_that_is_cut_again_and_again_is_read_on(
    client: AnyClient, proxy: CuttingProxy, door: GatewayProcess
) -> None:
    request = client.submit(model="slow", messages=ASK, mode="stream", max_tokens=60)
    before = proxy.connections
    proxy.cut_after = 900
    events = list(client.stream(request))
    proxy.cut_after = None
    assert proxy.connections - before > 4
    assert [event.seq for event in events] == list(range(len(events)))
    assert events == polled(door, request.request_id)
    assert sum(isinstance(event, Token) for event in events) == 60


def test_a_request_whose_answer_was_lost_is_taken_on_once(client: AnyClient, proxy: CuttingProxy) -> None:
    known = {each.request_id for each in client.history()}
    proxy.cut()
    proxy.swallow = 2
    request = client.submit(model="sim", messages=ASK, max_tokens=1)
    assert proxy.swallow == 0
    assert {each.request_id for each in client.history()} - known == {request.request_id}


def test_kill_9_of_the_gateway_amid_a_stream_is_not_seen_in_the_events(sims: str, kind: str) -> None:
    with (
        gateway(SETTINGS + sims) as door,
        cutting(door.url) as proxy,
        opened(kind, proxy.url, door.key) as client,
        ThreadPoolExecutor(1) as aside,
    ):
        request = client.submit(
            model="slow", messages=ASK, mode="stream", max_tokens=80, retry_after_tokens=True
        )

        def killed() -> None:
            door.stop(signal.SIGKILL)
            door.start()
            proxy.target = door.url

        events: list[Event] = []
        killing = None
        for event in client.stream(request):
            events.append(event)
            if killing is None and sum(isinstance(each, Token) for each in events) == 10:
                killing = aside.submit(killed)
        assert killing is not None
        killing.result()
        assert [event.seq for event in events] == list(range(len(events)))
        assert events == polled(door, request.request_id)
        starts = [place for place, event in enumerate(events) if isinstance(event, Started)]
        assert len(starts) == 2
        assert sum(isinstance(event, Token) for event in events[starts[-1] :]) == 80
        assert text(events[starts[-1] :]) == client.wait(request).text


def test_what_is_asked_of_a_gateway_that_is_away_is_asked_of_the_next(
    kind: str, door: GatewayProcess, proxy: CuttingProxy
) -> None:
    with cutting(door.url) as other:
        urls = [proxy.url, f"{other.url}/v1"]
        with opened(kind, urls, door.key) as client:
            request = client.submit(model="slow", messages=ASK, mode="stream", max_tokens=40)
            events: list[Event] = []
            for event in client.stream(request):
                events.append(event)
                if len(events) == 12:
                    proxy.close()
            assert other.connections
            assert events == polled(door, request.request_id)
    with opened(kind, urls[:1], door.key) as client:
        began = time.monotonic()
        with pytest.raises(UnreachableError, match="http://"):
            client.status(request)
        assert time.monotonic() - began < 5


def test_refusals_are_errors_of_their_kind(
    client: AnyClient, kind: str, door: GatewayProcess, people: dict[str, str]
) -> None:
    with pytest.raises(NotFoundError, match="absent"):
        client.submit(model="absent", messages=ASK)
    with pytest.raises(ParameterError) as raised:
        client.submit(model="sim", messages=ASK, max_tokens="many")
    assert raised.value.param == "max_tokens"
    with pytest.raises(NotFoundError):
        client.status("req_01M7ZF0000000000000000000/../..?x")
    client.submit(model="sim", messages=ASK, max_tokens=1, idempotency_key="mine")
    with pytest.raises(ConflictError, match="mine"):
        client.submit(model="sim", messages=ASK, max_tokens=2, idempotency_key="mine")
    with opened(kind, door.url, f"{door.key[:-1]}x") as stranger, pytest.raises(UnauthorizedError):
        list(stranger.history())
    with opened(kind, door.url, people["reader"]) as other, pytest.raises(ForbiddenError, match="infer"):
        other.submit(model="sim", messages=ASK)


def test_a_reached_limit_is_raised_when_it_lasts_too_long(
    kind: str, door: GatewayProcess, people: dict[str, str]
) -> None:
    with opened(kind, door.url, people[f"limited {kind}"]) as client:
        first = client.submit(model="sim", messages=ASK, max_tokens=1)
        with pytest.raises(QuotaExceededError) as raised:
            client.submit(model="sim", messages=ASK, max_tokens=1)
        assert (raised.value.retry_after_ns or 0) > 0
        # To look and to come back costs nothing.
        assert client.wait(first, timeout="30s").status == "completed"


def test_waiting_ends_in_time_and_the_request_goes_on(client: AnyClient) -> None:
    request = client.submit(model="slow", messages=ASK, mode="stream", max_tokens=3000)
    began = time.monotonic()
    with pytest.raises(DeadlineError, match="goes on"):
        client.wait(request, timeout="400ms")
    assert time.monotonic() - began < 10
    assert not client.status(request).ended
    client.cancel(request)


def test_threads_share_a_client(door: GatewayProcess) -> None:
    with Client(door.url, door.key) as client, ThreadPoolExecutor(8) as threads:

        def one(number: int) -> str:
            request = client.submit(model="sim", messages=ASK, mode="stream", max_tokens=2 + number % 3)
            return text(client.stream(request))

        answers = list(threads.map(one, range(40)))
    assert all(answers)
    assert threading.active_count() < 20


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file with a key and its self-made certificate for 127.0.0.1."""
    openssl = shutil.which("openssl")
    assert openssl is not None
    made, key = (tmp_path_factory.mktemp("certificate") / name for name in ("cert.pem", "key.pem"))
    command = [openssl, "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    subject = ["-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1", "-days", "2"]
    subprocess.run(
        [*command, *subject, "-keyout", str(key), "-out", str(made)], check=True, capture_output=True
    )
    made.write_text(made.read_text() + key.read_text())
    return made


def test_tls_both_ways(kind: str, door: GatewayProcess, certificate: Path) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    context.load_verify_locations(certificate)
    context.verify_mode = ssl.CERT_REQUIRED
    patience = Options(patience_ns=5 * _S)
    with cutting(door.url, context) as proxy:
        both = Options(tls=Tls(authority=certificate, certificate=certificate))
        with opened(kind, proxy.url, door.key, both) as client:
            request = client.submit(model="sim", messages=ASK, mode="stream", max_tokens=3)
            assert len(list(client.stream(request))) == 8
        with (
            opened(kind, proxy.url, door.key, patience) as client,
            pytest.raises(UnreachableError, match="not trusted"),
        ):
            client.status("req_1")
        nobody = msgspec.structs.replace(patience, tls=Tls(authority=certificate))
        with opened(kind, proxy.url, door.key, nobody) as client, pytest.raises(UnreachableError):
            client.status("req_1")


def test_gateways_are_reached_through_a_forward_proxy(
    kind: str, door: GatewayProcess, certificate: Path
) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    with forward_proxy() as forward, cutting(door.url, context) as secured:
        through = Options(
            proxy=f"http://ada:p%20w@{forward.place}", tls=Tls(authority=certificate), patience_ns=5 * _S
        )
        for url in (door.url, secured.url):
            with opened(kind, url, door.key, through) as client:
                request = client.submit(model="sim", messages=ASK, mode="stream", max_tokens=3)
                assert len(list(client.stream(request))) == 8
            assert set(forward.opened) == {url.rpartition("/")[2]}
            forward.opened.clear()
        unknown = msgspec.structs.replace(through, proxy=f"http://{forward.place}")
        with (
            opened(kind, door.url, door.key, unknown) as client,
            pytest.raises(UnreachableError, match=f"the proxy {forward.place} refused .*: 407"),
        ):
            client.status("req_1")
    with pytest.raises(InputError, match="proxy's URL") as caught:
        KINDS[kind](door.url, door.key, options=Options(proxy="https://ada:secret@host"))
    assert "secret" not in str(caught.value)


def test_the_client_is_light() -> None:
    code = (
        "import sys; from tokenweir.client import Client; "
        "heavy = {'pydantic', 'numpy', 'uvicorn', 'sqlalchemy', 'httptools', 'tokenweir.gateway'} & set(sys.modules); "
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
