from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac

import msgspec
import pytest

from tokenweir.core.clock import VirtualClock
from tokenweir.core.errors import ParameterError
from tokenweir.gateway.queued.accepting import native
from tokenweir.gateway.queued.webhooks import WebhookError, WebhookPolicy, Webhooks

SECRET = b"s3cret"


@pytest.mark.parametrize(
    "url",
    [
        "http://h/\0",
        "http://h/a b",
        "http://h/\x7f",
        "http://bücher.example/",
        "https://h/" + "x" * 2048,
        "ftp://h/",
        "https:///path",
    ],
)
def test_a_url_that_no_head_can_hold_is_refused_when_it_is_given(url: str) -> None:
    def take(webhook: str) -> str:
        body = msgspec.json.encode({"model": "m", "prompt": "x", "webhook": webhook})
        return native(body, idempotency="", pool="", webhooks=True).webhook

    assert take("https://h:8443/path?of=it") == "https://h:8443/path?of=it"
    with pytest.raises(ParameterError) as refused:
        take(url)
    assert refused.value.param == "webhook"


class Receiver:
    """A server that takes webhooks, and answers with what it is told to."""

    def __init__(self, answer: bytes = b"HTTP/1.1 204 No Content\r\n\r\n") -> None:
        self.answer = answer
        self.asked = b""
        self.port = 0

    async def serve(self, url: str, policy: WebhookPolicy) -> None:
        async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            head = await reader.readuntil(b"\r\n\r\n")
            length = int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0])
            self.asked = head + await reader.readexactly(length)
            writer.write(self.answer)
            await writer.drain()
            writer.close()

        server = await asyncio.start_server(handle, "127.0.0.1", 0)
        async with server:
            self.port = server.sockets[0].getsockname()[1]
            await Webhooks(policy, VirtualClock()).call(url.format(port=self.port), "req_1", b'{"a":1}')


def call(receiver: Receiver, url: str = "http://127.0.0.1:{port}/hook?x=1", *hosts: str) -> None:
    policy = WebhookPolicy(secret=SECRET, hosts=frozenset(hosts), timeout_ns=2_000_000_000)
    asyncio.run(receiver.serve(url, policy))


def test_a_call_is_signed() -> None:
    receiver = Receiver()
    call(receiver, "http://127.0.0.1:{port}/hook?x=1", "127.0.0.1")
    head, _, body = receiver.asked.partition(b"\r\n\r\n")
    lines = head.decode().split("\r\n")
    headers = dict(line.split(": ", 1) for line in lines[1:])
    assert lines[0] == "POST /hook?x=1 HTTP/1.1"
    assert headers["host"] == f"127.0.0.1:{receiver.port}"
    said = f"{headers['webhook-id']}.{headers['webhook-timestamp']}.".encode() + body
    expected = base64.b64encode(hmac.new(SECRET, said, hashlib.sha256).digest()).decode()
    assert headers["webhook-signature"] == f"v1,{expected}"
    assert headers["webhook-id"] == "req_1"


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1:{port}/",
        "http://localhost:{port}/",
        "http://[::1]:{port}/",
        "http://[::ffff:127.0.0.1]:{port}/",
        "http://10.0.0.1/",
        "http://169.254.169.254/latest/meta-data",
        "http://0.0.0.0:{port}/",
        "http://192.168.1.1/",
        "http://2130706433:{port}/",
    ],
)
def test_a_host_that_is_not_public_is_not_called(url: str) -> None:
    receiver = Receiver()
    with pytest.raises(WebhookError):
        call(receiver, url)
    assert receiver.asked == b""


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 500 Oh\r\n\r\n",
        b"HTTP/1.1 302 Found\r\nlocation: http://127.0.0.1/\r\n\r\n",
        b"hello\r\n",
        b"",
        b"x" * 100_000,
    ],
)
def test_anything_but_a_good_answer_is_a_failure(answer: bytes) -> None:
    with pytest.raises(WebhookError):
        call(Receiver(answer), "http://127.0.0.1:{port}/", "127.0.0.1")


def test_a_host_without_an_address_is_a_failure() -> None:
    with pytest.raises(WebhookError):
        call(Receiver(), "http://nothing.invalid/", "nothing.invalid")
