"""What a gateway refuses: strangers, floods, tricks; and what never gets into its log."""

from __future__ import annotations

import asyncio
import gzip
import http.client
import json
import socket
import ssl
import zlib
from collections.abc import Awaitable, Callable, Generator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import uvloop
from deploy.test_ca import TestCa
from tests.factories.gateways import GatewayProcess, endpoint, gateway
from tests.factories.queued import User
from tests.factories.served import serve
from tests.factories.sim_models import directory

from tokenweir.asgi.tls import client_context
from tokenweir.core.errors import ConfigError, ProtocolError, UnreachableError
from tokenweir.gateway.endpoints.addresses import AddressRules
from tokenweir.gateway.endpoints.upstream import Origin, UpstreamClient
from tokenweir.sim.process import SimProcess

PROMPT = "the sparrow flies at midnight"
BODY = {"model": "sim", "messages": [{"role": "user", "content": PROMPT}], "max_tokens": 4}
LIMITS = 'max_body_bytes = 20000\nmax_header_bytes = 4096\nread_timeout = "400ms"\nlog_prompts = {}\n'


def ask(
    door: GatewayProcess, body: bytes, tls: ssl.SSLContext | None = None, **headers: str
) -> tuple[int, Any]:
    """Send a chat and return status and body."""
    parts = urlsplit(door.url)
    host, port = parts.hostname or "", parts.port
    connection = (
        http.client.HTTPSConnection(host, port, timeout=30, context=tls)
        if tls
        else http.client.HTTPConnection(host, port, timeout=30)
    )
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    sent = {"authorization": f"Bearer {door.key}", "content-type": "application/json", **named}
    try:
        connection.request("POST", "/v1/chat/completions", body, sent)
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read() or b"null")
    finally:
        connection.close()


def test_two_gateways_prove_themselves_to_one_another(tmp_path: Path) -> None:
    ca, other = TestCa(tmp_path / "ca"), TestCa(tmp_path / "other")
    server, worker, stranger = ca.issue("server"), ca.issue("worker"), other.issue("stranger")
    listens = (
        f'[gateway.tls]\ncertificate = "{server.certificate}"\nkey = "{server.key}"\n'
        f'client_ca = "{ca.certificate}"\n'
    )
    shows = client_context(ca=ca.certificate)
    shows.load_cert_chain(worker.certificate, worker.key)
    shows_stranger = client_context(ca=ca.certificate)
    shows_stranger.load_cert_chain(stranger.certificate, stranger.key)
    body = json.dumps(BODY).encode()
    with SimProcess() as sim, gateway(listens + endpoint("sim", sim.url)) as inner:
        assert inner.url.startswith("https://")
        assert ask(inner, body, shows)[0] == 200
        for context in (client_context(ca=ca.certificate), shows_stranger):
            with pytest.raises((ssl.SSLError, ConnectionResetError, http.client.RemoteDisconnected)):
                ask(inner, body, context)
        key = tmp_path / "key"
        key.write_text(inner.key)
        asks = endpoint("inner", inner.url, kind="openai", more=[f'key = "file:{key}"'])
        trusts = f'[endpoints.tls]\nca = "{ca.certificate}"\n'
        shown = f'certificate = "{worker.certificate}"\nkey = "{worker.key}"\n'
        with gateway(asks + trusts + shown) as outer:
            status, answer = ask(outer, body)
            assert (status, answer["usage"]["completion_tokens"]) == (200, 4)
        # What keeps an endpoint away is one line in the log, with what to mend.
        with gateway(asks + f'[endpoints.tls]\nca = "{other.certificate}"\n') as untrusting:
            status, answer = ask(untrusting, body)
            assert status == 502
            assert "no TLS with 127.0.0.1" in answer["error"]["message"]
            assert "tls table" in answer["error"]["mend"]
            lines = [line for line in untrusting.log().splitlines() if "endpoint down" in line]
            assert len(lines) == 1
        assert inner.log().count("client refused by TLS") >= 2
        assert "the client showed no certificate" in inner.log()


def test_a_worker_and_its_model_service_prove_themselves_over_grpc(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ca = TestCa(tmp_path / "ca")
    server, worker = ca.issue("server"), ca.issue("worker")
    for name, path in (
        ("CERTIFICATE", server.certificate),
        ("KEY", server.key),
        ("CLIENT_CA", ca.certificate),
    ):
        monkeypatch.setenv(f"WEIR_RUNTIME__TLS__{name}", str(path))
    model = directory(tmp_path / "model", itl="1ms")
    with serve(model, "--grpc-port", "0", log=tmp_path / "log") as served:
        assert served.url.startswith("https://")
        port = served.grpc.rpartition(":")[2]
        asks = endpoint("one", f"grpcs://localhost:{port}", model="model", kind="tokenweir")
        trusts = f'[endpoints.tls]\nca = "{ca.certificate}"\n'
        shown = f'certificate = "{worker.certificate}"\nkey = "{worker.key}"\n'
        brief = "[worker]\nattempts = 1\n"
        for name in ("CERTIFICATE", "KEY", "CLIENT_CA"):
            monkeypatch.delenv(f"WEIR_RUNTIME__TLS__{name}")
        with gateway(brief + asks + trusts + shown) as door:
            user = User(door.url, door.key)
            told = user.until(user.submit(model="model", tokens=5), "completed")
            assert told["token_usage"]["completion_tokens"] == 5
        with gateway(brief + asks + trusts) as stranger:
            user = User(stranger.url, stranger.key)
            told = user.until(user.submit(model="model", tokens=5), "failed")
            assert "no gRPC with" in told["error"]["message"]
        narrow = '[gateway]\nendpoint_networks = ["10.0.0.0/8"]\n'
        with gateway(narrow + brief + asks + trusts + shown) as kept_in:
            user = User(kept_in.url, kept_in.key)
            told = user.until(user.submit(model="model", tokens=5), "failed")
            assert "which may not be called" in told["error"]["message"]


def test_a_certificate_that_has_expired_is_one_line_at_the_start(tmp_path: Path) -> None:
    late = TestCa(tmp_path / "ca").issue("late", days=-1)
    with gateway() as door:
        settings = tmp_path / "tls.toml"
        settings.write_text(f'[gateway.tls]\ncertificate = "{late.certificate}"\nkey = "{late.key}"\n')
        door.stop()
        ended = door.weir("--config", str(settings), "up", "--port", "0")
    assert ended.returncode != 0
    lines = [line for line in ended.stderr.splitlines() if line.strip()]
    assert len(lines) == 1
    assert "has expired" in lines[0]
    assert "make a new one" in lines[0]


@pytest.fixture(scope="module")
def door() -> Generator[GatewayProcess]:
    """A gateway with narrow limits, which logs as it does by default."""
    with (
        SimProcess() as sim,
        gateway(
            "[log]\nlevel = 'debug'\n[gateway]\n" + LIMITS.format("false") + endpoint("one", sim.url)
        ) as made,
    ):
        yield made


def exchange(door: GatewayProcess, *pieces: bytes) -> bytes:
    """Send bytes as they are, and return all that comes until the server hangs up."""
    parts = urlsplit(door.url)
    with socket.create_connection((parts.hostname or "", parts.port or 0), timeout=30) as raw:
        for piece in pieces:
            raw.sendall(piece)
        found = b""
        while part := raw.recv(65536):
            found += part
        return found


def head(door: GatewayProcess, *more: str) -> bytes:
    lines = ["POST /v1/chat/completions HTTP/1.1", "host: x", f"authorization: Bearer {door.key}", *more]
    return "\r\n".join(lines).encode() + b"\r\n\r\n"


def test_a_body_that_is_too_long_is_refused_by_its_word_and_by_its_bytes(door: GatewayProcess) -> None:
    status, answer = ask(door, b" " * 20_001)
    assert (status, answer["error"]["code"]) == (413, "body_too_large")
    # Its length is not told: it is counted as it comes.
    chunks = (b"2000\r\n" + b" " * 0x2000 + b"\r\n") * 3
    said = exchange(door, head(door, "transfer-encoding: chunked", "connection: close"), chunks, b"0\r\n\r\n")
    assert said.startswith(b"HTTP/1.1 413")


def test_a_head_that_is_too_long_is_refused(door: GatewayProcess) -> None:
    assert exchange(door, head(door, f"x-long: {'x' * 5000}")).startswith(b"HTTP/1.1 431")
    many = exchange(door, head(door, *(f"x-{number}: y" for number in range(600))))
    assert many.startswith(b"HTTP/1.1 431")


def test_who_sends_too_slowly_is_let_go(door: GatewayProcess) -> None:
    assert exchange(door, b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nx-slow: ").startswith(
        b"HTTP/1.1 408"
    )
    assert exchange(door, b"").startswith(b"HTTP/1.1 408")
    body = exchange(door, head(door, "content-length: 500", "connection: close"), b'{"model": ')
    assert body.startswith(b"HTTP/1.1 408")


@pytest.mark.parametrize(
    ("encoding", "pack"), [("gzip", gzip.compress), ("deflate", zlib.compress), ("br", bytes), ("x", bytes)]
)
def test_a_packed_body_is_never_unpacked(
    door: GatewayProcess, encoding: str, pack: Callable[[bytes], bytes]
) -> None:
    bomb = pack(b'{"model": "' + b"x" * (8 << 20) + b'"}') if encoding != "br" else b"x" * 100
    status, answer = ask(door, bomb[:15_000], content_encoding=encoding)
    assert (status, answer["error"]["code"]) == (415, "unsupported_media_type")
    assert answer["error"]["mend"] == "send it as it is"
    assert ask(door, json.dumps(BODY).encode(), content_encoding="identity")[0] == 200


def test_neither_keys_nor_prompts_get_into_the_log(door: GatewayProcess) -> None:
    assert ask(door, json.dumps(BODY).encode())[0] == 200
    # Values that a message quotes are the caller's words.
    for wrong in (
        {**BODY, "max_tokens": PROMPT},
        {**BODY, "n": PROMPT},
        {**BODY, "model": 5, "messages": PROMPT},
        {**BODY, "stream": PROMPT},
        {"model": "sim", "messages": BODY["messages"], "deadline": PROMPT},
    ):
        ask(door, json.dumps(wrong).encode())
    ask(door, f'{{"model": "sim", "messages": {PROMPT}'.encode())
    ask(door, json.dumps(BODY).encode(), authorization="Bearer weir_" + "A" * 40)
    log = door.log()
    assert "request refused" in log
    assert PROMPT not in log
    assert "sparrow" not in log
    # The first start has shown it, once, to whoever started it.
    assert log.count(door.key) == 1
    assert "A" * 40 not in log


def test_prompts_are_logged_where_that_is_switched_on() -> None:
    with (
        SimProcess() as sim,
        gateway("[gateway]\n" + LIMITS.format("true") + endpoint("one", sim.url)) as door,
    ):
        assert ask(door, json.dumps(BODY).encode())[0] == 200
        assert PROMPT in door.log()


async def listening(answer: bytes) -> asyncio.Server:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        await writer.drain()
        writer.close()

    return await asyncio.start_server(serve, "127.0.0.1", 0)


async def sent(url: str, rules: AddressRules | None = None) -> bytes:
    upstream = UpstreamClient(Origin.parse(url), rules=rules)
    try:
        async with await upstream.send(
            b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\n\r\n", b""
        ) as answer:
            return await answer.whole()
    finally:
        upstream.close()


def run(work: Callable[[], Awaitable[None]]) -> None:
    async def main() -> None:
        async with asyncio.timeout(60):
            await work()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main())


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (
            b"HTTP/1.1 302 Found\r\nlocation: http://169.254.169.254/\r\ncontent-length: 0\r\n\r\n",
            "redirects",
        ),
        (b"HTTP/1.1 200 OK\r\ncontent-encoding: gzip\r\ncontent-length: 3\r\n\r\nabc", "encoded as b'gzip'"),
    ],
)
def test_an_endpoint_is_neither_followed_nor_unpacked(answer: bytes, said: str) -> None:
    async def work() -> None:
        async with await listening(answer) as server:
            port = server.sockets[0].getsockname()[1]
            with pytest.raises(ProtocolError, match=said):
                await sent(f"http://127.0.0.1:{port}")

    run(work)


def test_an_endpoint_is_never_where_a_cloud_keeps_its_secrets() -> None:
    anywhere, ours = AddressRules(), AddressRules.parse(["10.0.0.0/8", "fd12::/16", "169.254.0.0/16"])
    for address in (
        "169.254.169.254",
        "fe80::1%eth0",
        "::ffff:169.254.169.254",
        "64:ff9b::a9fe:a9fe",
        "fd00:ec2::254",
        "0.0.0.0",  # noqa: S104 - nothing is bound
        "224.0.0.1",
    ):
        assert not anywhere.allows(address), address
    for address in ("127.0.0.1", "10.1.2.3", "192.168.1.1", "8.8.8.8", "::1", "fd12::1"):
        assert anywhere.allows(address), address
    assert ours.allows("10.1.2.3")
    assert ours.allows("fd12::7")
    assert not ours.allows("127.0.0.1")
    # No network that is named opens these.
    assert not ours.allows("169.254.169.254")
    with pytest.raises(ConfigError, match="endpoint_networks"):
        AddressRules.parse(["10.0.0.0/40"])

    async def work() -> None:
        with pytest.raises(UnreachableError, match="which may not be called"):
            await sent("http://169.254.169.254")
        async with await listening(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nhi") as server:
            url = f"http://localhost:{server.sockets[0].getsockname()[1]}"
            assert await sent(url) == b"hi"
            with pytest.raises(UnreachableError, match=r"'localhost' is at .*, which may not"):
                await sent(url, ours)

    run(work)
