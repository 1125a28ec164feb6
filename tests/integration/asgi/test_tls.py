"""Real handshakes: whom a listener lets in, what a client accepts, and what each says when it does not."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import grpc.aio
import pytest
import uvloop
from deploy.test_ca import Pair, TestCa
from tests.factories.doors import make_app

from tokenweir.asgi.server import Bounds, HttpServer
from tokenweir.asgi.tls import Identity, client_context, listener, server_context
from tokenweir.config import Secret, TlsSettings
from tokenweir.core.clock import SystemClock
from tokenweir.core.errors import ConfigError, UnreachableError
from tokenweir.gateway.endpoints.upstream import Origin, UpstreamClient
from tokenweir.gateway.queued.webhooks import WebhookError, WebhookPolicy, Webhooks
from tokenweir.runtime.http.door import Build, Door
from tokenweir.runtime.http.fakes import FakeServing
from tokenweir.runtime.http.metrics import Metrics
from tokenweir.runtime.rpc_door.service import GrpcServer
from tokenweir.wire.v1.service import InferenceClient

GET = b"GET /health HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"


@pytest.fixture(scope="module")
def ca(tmp_path_factory: pytest.TempPathFactory) -> TestCa:
    return TestCa(tmp_path_factory.mktemp("ca"))


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> TestCa:
    """An authority that nobody here trusts, of the same name."""
    return TestCa(tmp_path_factory.mktemp("other"))


@pytest.fixture(scope="module")
def server(ca: TestCa) -> Pair:
    return ca.issue("server")


def identity(pair: Pair) -> Identity:
    return Identity(certificate=pair.certificate, key=pair.key)


@asynccontextmanager
async def serving(tls: ssl.SSLContext, bounds: Bounds | None = None) -> AsyncGenerator[HttpServer]:
    made = HttpServer(make_app(), "127.0.0.1", 0, bounds=bounds, drain_timeout_ns=1_000_000_000, tls=tls)
    async with asyncio.timeout(60), asyncio.TaskGroup() as group:
        group.create_task(made.serve())
        try:
            yield made
        finally:
            made.close(at_once=True)


def run(work: Callable[[], Awaitable[None]]) -> None:
    async def main() -> None:
        await work()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main())


async def asked(port: int, context: ssl.SSLContext | None) -> bytes:
    """Return what comes for a request; nothing where the server hangs up."""
    reader, writer = await asyncio.open_connection(
        "127.0.0.1", port, ssl=context, server_hostname="localhost" if context else None
    )
    writer.write(GET)
    try:
        return await reader.read()
    finally:
        writer.transport.abort()


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_a_listener_speaks_tls_1_2_and_1_3(ca: TestCa, server: Pair, version: ssl.TLSVersion) -> None:
    async def work() -> None:
        refused: list[str] = []
        tls = server_context(identity(server), client_ca=None, refused=refused.append)
        context = client_context(ca=ca.certificate)
        context.minimum_version = context.maximum_version = version
        async with serving(tls) as made:
            assert made.url.startswith("https://127.0.0.1:")
            assert b"200 OK" in await asked(made.port, context)
        assert not refused

    run(work)


def test_it_speaks_nothing_older_and_nothing_plain(ca: TestCa, server: Pair) -> None:
    async def work() -> None:
        refused: list[str] = []
        tls = server_context(identity(server), client_ca=None, refused=refused.append)
        old = client_context(ca=ca.certificate)
        # What forbids the old versions here must be the server.
        old.set_ciphers("DEFAULT:@SECLEVEL=0")
        with pytest.warns(DeprecationWarning, match="TLSv1_1 is deprecated"):
            old.minimum_version = old.maximum_version = ssl.TLSVersion.TLSv1_1
        async with serving(tls) as made:
            with pytest.raises((ssl.SSLError, ConnectionResetError)):
                await asked(made.port, old)
            assert b"HTTP/1.1" not in await asked(made.port, None)
        assert refused == ["the client speaks nothing above TLS 1.1", "the client does not speak TLS"]

    run(work)


def test_a_client_must_show_a_certificate_that_the_authority_signed(
    ca: TestCa, other: TestCa, server: Pair
) -> None:
    good, late, strange = ca.issue("good"), ca.issue("late", days=-2), other.issue("strange")

    def shown(pair: Pair | None) -> ssl.SSLContext:
        context = client_context(ca=ca.certificate)
        if pair is not None:
            # Past the checks of our own client, which would not show one that has expired.
            context.load_cert_chain(pair.certificate, pair.key)
        return context

    async def work() -> None:
        refused: list[str] = []
        tls = server_context(identity(server), client_ca=ca.certificate, refused=refused.append)
        async with serving(tls) as made:
            assert b"200 OK" in await asked(made.port, shown(good))
            for pair in (None, late, strange):
                # With TLS 1.3 a client learns of it when it reads.
                try:
                    assert await asked(made.port, shown(pair)) == b""
                except (ssl.SSLError, ConnectionResetError):
                    continue
            assert b"200 OK" in await asked(made.port, shown(good))
        assert refused[0] == "the client showed no certificate"
        assert refused[1] == "the certificate is not accepted: certificate has expired"
        assert refused[2].startswith("the certificate is not accepted: ")
        assert len(refused) == 3

    run(work)


def test_a_client_that_says_nothing_is_let_go(ca: TestCa, server: Pair) -> None:
    async def work() -> None:
        tls = server_context(identity(server), client_ca=None, refused=lambda _: None)
        async with serving(tls, Bounds(read_timeout_ns=200_000_000)) as made:
            context = client_context(ca=ca.certificate)
            reader, writer = await asyncio.open_connection(
                "127.0.0.1", made.port, ssl=context, server_hostname="localhost"
            )
            writer.write(b"GET / HTTP/1.1\r\nx: ")
            assert b"408" in await reader.read()
            writer.transport.abort()

    run(work)


async def told(port: int, context: ssl.SSLContext, host: str = "127.0.0.1") -> int:
    """Ask as the gateway asks an endpoint, and return the status."""
    upstream = UpstreamClient(Origin(scheme="https", host=host, port=port), tls=context)
    try:
        async with await upstream.send(GET, b"") as answer:
            await answer.whole()
            return answer.status
    finally:
        upstream.close()


def test_a_client_says_in_one_line_why_a_server_is_not_asked(
    ca: TestCa, other: TestCa, server: Pair, tmp_path: Path
) -> None:
    late = ca.issue("late-server", days=-1)
    elsewhere = ca.issue("elsewhere", ("weir.example",))

    def plain(pair: Pair) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(pair.certificate, pair.key)
        return context

    async def work() -> None:
        ours, theirs = client_context(ca=ca.certificate), client_context(ca=other.certificate)
        async with serving(plain(server)) as made:
            assert await told(made.port, ours) == 200
            assert await told(made.port, ours, host="localhost") == 200
            with pytest.raises(
                UnreachableError, match=r"not accepted: .*(self-signed|issuer|signature)"
            ) as caught:
                await told(made.port, theirs)
            assert "\n" not in str(caught.value)
        async with serving(plain(late)) as made:
            with pytest.raises(UnreachableError, match=r"no TLS with .*certificate has expired"):
                await told(made.port, ours)
        async with serving(plain(elsewhere)) as made:
            with pytest.raises(UnreachableError, match="IP address mismatch"):
                await told(made.port, ours)
        mutual = server_context(identity(server), client_ca=ca.certificate, refused=lambda _: None)
        async with serving(mutual) as made:
            with pytest.raises(UnreachableError):
                await told(made.port, ours)
            showing = client_context(ca=ca.certificate, identity=identity(ca.issue("worker")))
            assert await told(made.port, showing) == 200

    run(work)


def test_files_that_cannot_be_used_are_named_before_anything_listens(
    ca: TestCa, server: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    late, locked = ca.issue("gone", days=-1), ca.issue("locked", password="sesame")
    monkeypatch.setenv("SESAME", "sesame")
    monkeypatch.setenv("WRONG", "open")
    no_pem = tmp_path / "no.pem"
    no_pem.write_text("nothing")
    cases: list[tuple[dict[str, object], str]] = [
        ({"certificate": late.certificate, "key": late.key}, "has expired"),
        ({"certificate": server.certificate, "key": late.key}, "is not that of the certificate"),
        ({"certificate": server.certificate, "key": tmp_path / "none"}, "TLS key .* cannot be read: No such"),
        ({"certificate": no_pem, "key": server.key}, "cannot be used"),
        ({"certificate": server.certificate, "key": server.key, "client_ca": no_pem}, "authority .* cannot"),
        ({"certificate": locked.certificate, "key": locked.key}, "is encrypted"),
        (
            {"certificate": locked.certificate, "key": locked.key, "key_password": Secret("env:WRONG")},
            "password .* is wrong",
        ),
    ]
    for fields, said in cases:
        with pytest.raises(ConfigError, match=said) as caught:
            listener(TlsSettings.model_validate(fields), lambda _: None)
        assert "\n" not in str(caught.value)
        assert caught.value.mend
    opened = {"certificate": locked.certificate, "key": locked.key, "key_password": Secret("env:SESAME")}
    assert listener(TlsSettings.model_validate(opened), lambda _: None) is not None
    assert "sesame" not in repr(Identity(certificate=locked.certificate, key=locked.key, password="sesame"))


def test_a_renewed_certificate_is_taken_up_and_a_broken_one_is_not(tmp_path: Path) -> None:
    ca = TestCa(tmp_path)
    pair = ca.issue("renewed")
    context = client_context(ca=ca.certificate)

    async def shown(port: int) -> str:
        _, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context, server_hostname="localhost")
        found = writer.get_extra_info("ssl_object").getpeercert()
        writer.transport.abort()
        return str(found["serialNumber"])

    async def work() -> None:
        told: asyncio.Queue[str] = asyncio.Queue()
        tls = server_context(identity(pair), client_ca=None, refused=lambda _: None, renewed=told.put_nowait)
        tls.renew_s = 0.02
        async with serving(tls) as made:
            first = await shown(made.port)
            # Half of a pair fits nothing, and changes nothing.
            key = pair.key.read_bytes()
            ca.issue("renewed")
            renewed_key = pair.key.read_bytes()
            pair.key.write_bytes(key)
            while "is not used" not in await told.get():
                continue
            assert await shown(made.port) == first
            pair.key.write_bytes(renewed_key)
            while "was taken up anew" not in await told.get():
                continue
            assert await shown(made.port) != first

    run(work)


def test_a_webhook_shows_who_it_is_and_trusts_whom_it_is_told_to(ca: TestCa, server: Pair) -> None:
    async def work() -> None:
        mutual = server_context(identity(server), client_ca=ca.certificate, refused=lambda _: None)
        async with serving(mutual) as made:

            async def called(tls: ssl.SSLContext | None) -> None:
                policy = WebhookPolicy(
                    secret=b"s", hosts=frozenset({"localhost"}), attempts=1, timeout_ns=10**10, tls=tls
                )
                await Webhooks(policy, SystemClock()).call(
                    f"https://localhost:{made.port}/hook", "req_1", b"{}"
                )

            # It gets as far as an answer, which is that there is no such path.
            with pytest.raises(WebhookError, match="answered 404"):
                await called(client_context(ca=ca.certificate, identity=identity(ca.issue("hooks"))))
            with pytest.raises(WebhookError) as caught:
                await called(client_context(ca=ca.certificate))
            assert "answered" not in str(caught.value)
            with pytest.raises(WebhookError, match="certificate verify failed"):
                await called(None)

    run(work)


def test_grpc_lets_in_whom_the_authority_signed(ca: TestCa, other: TestCa, server: Pair) -> None:
    clock = SystemClock()
    door = Door(FakeServing(), metrics=Metrics(clock), clock=clock, build=Build(version="1.2.3"))
    files = TlsSettings(certificate=server.certificate, key=server.key, client_ca=ca.certificate)

    def credentials(pair: Pair | None) -> grpc.ChannelCredentials:
        shown = (None, None) if pair is None else (pair.key.read_bytes(), pair.certificate.read_bytes())
        return grpc.ssl_channel_credentials(ca.certificate.read_bytes(), *shown)

    async def main() -> None:
        made = GrpcServer(door, "127.0.0.1", 0, tls=files)
        await made.start()
        try:
            async with asyncio.timeout(30):
                async with grpc.aio.secure_channel(made.address, credentials(ca.issue("peer"))) as channel:
                    assert (await InferenceClient(channel).health()).version == "1.2.3"
                for pair in (None, other.issue("stranger")):
                    async with grpc.aio.secure_channel(made.address, credentials(pair)) as channel:
                        with pytest.raises(grpc.aio.AioRpcError) as caught:
                            await InferenceClient(channel).health()
                        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        finally:
            await made.stop(0)

    asyncio.run(main())
