"""deploy/nginx.conf before a real gateway: a browser's streams over one connection, and what is not passed on."""

from __future__ import annotations

import base64
import http.client
import json
import socket
import ssl
from collections.abc import Generator
from pathlib import Path
from typing import Any, cast
from urllib.parse import urlsplit

import pytest
from tests.e2e.browser import Page, browser
from tests.factories.gateways import GatewayProcess, endpoint, gateway
from tests.factories.nginx import Nginx, nginx
from tests.factories.queued import Answer, User, waiting

from tokenweir.asgi.tls import client_context
from tokenweir.sim.process import SimProcess

TABS, STREAMS = 8, 104
TOKENS = 40
# Each stream notes when its pieces came; a piece that was kept back comes with others.
READ = """
window.seen = [];
const read = async (number) => {
  const mine = {pieces: 0, first: 0, last: 0, text: "", status: 0};
  window.seen.push(mine);
  const answer = await fetch("/v1/chat/completions", {method: "POST",
    headers: {"authorization": "Bearer KEY", "content-type": "application/json"},
    body: JSON.stringify({model: "sim", stream: true, max_tokens: TOKENS,
      messages: [{role: "user", content: `stream ${number}`}]})});
  mine.status = answer.status;
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  for (let part = await reader.read(); !part.done; part = await reader.read()) {
    mine.last = performance.now();
    mine.first = mine.first || mine.last;
    mine.pieces += 1;
    mine.text += part.value;
  }
};
window.done = Promise.all(Array.from({length: COUNT}, (_, number) => read(number)));
COUNT
"""


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Generator[tuple[GatewayProcess, Nginx]]:
    with (
        SimProcess(ttft="constant:50ms", itl="constant:100ms") as sim,
        gateway(endpoint("one", sim.url)) as door,
        nginx(tmp_path_factory.mktemp("nginx"), door.url) as proxy,
    ):
        yield door, proxy


def ask(proxy: Nginx, method: str, path: str, key: str = "", body: object = None) -> Answer:
    place = urlsplit(proxy.url)
    connection = http.client.HTTPSConnection(
        place.hostname or "", place.port, timeout=30, context=client_context(ca=proxy.ca.certificate)
    )
    headers = {"authorization": f"Bearer {key}"} if key else {}
    try:
        connection.request(method, path, None if body is None else json.dumps(body), headers)
        answer = connection.getresponse()
        names = {name.lower(): value for name, value in answer.getheaders()}
        return Answer(answer.status, names, answer.read())
    finally:
        connection.close()


def test_eight_tabs_read_a_hundred_streams_over_one_connection(
    stack: tuple[GatewayProcess, Nginx], tmp_path: Path
) -> None:
    door, proxy = stack
    user = User(door.url, door.key)
    script = READ.replace("KEY", door.key).replace("TOKENS", str(TOKENS))
    script = script.replace("COUNT", str(STREAMS // TABS))
    with browser(tmp_path / "profile", "--ignore-certificate-errors") as first:
        tabs = [first, *(first.another() for _ in range(TABS - 1))]
        for tab in tabs:
            tab.visit(f"{proxy.url}/health")
        for tab in tabs:
            assert tab.run(script) == STREAMS // TABS

        def all_at_once() -> int | None:
            text = user.ask("GET", "/metrics").body.decode()
            line = next(line for line in text.splitlines() if line.startswith("weir_gateway_in_flight "))
            return True if float(line.split()[1]) == STREAMS else None

        waiting(all_at_once, f"{STREAMS} streams at once")
        seen = [mine for tab in tabs for mine in _seen(tab)]
    assert len(seen) == STREAMS
    for mine in seen:
        assert mine["status"] == 200
        assert mine["text"].rstrip().endswith("data: [DONE]")
        # They came one by one, over the time that the model took for them.
        assert mine["pieces"] >= TOKENS // 2
        assert mine["last"] - mine["first"] > 0.5 * TOKENS * 100
    streams = [
        line for line in proxy.accesses() if line["path"] == "/v1/chat/completions" and line["status"] == 200
    ]
    assert len(streams) == STREAMS
    assert {line["protocol"] for line in streams} == {"HTTP/2.0"}
    assert len({line["connection"] for line in streams}) == 1
    assert all(line["request_id"].startswith("req_") for line in streams)
    assert door.key not in json.dumps(proxy.accesses()) + proxy.errors()


def _seen(tab: Page) -> list[dict[str, Any]]:
    return cast("list[dict[str, Any]]", tab.run("window.done.then(() => window.seen)"))


def test_queued_requests_and_their_events_pass(stack: tuple[GatewayProcess, Nginx]) -> None:
    door, proxy = stack
    body = {
        "model": "sim",
        "messages": [{"role": "user", "content": "hi"}],
        "max_tokens": 3,
        "mode": "stream",
    }
    accepted = ask(proxy, "POST", "/v1/requests", door.key, body)
    assert accepted.status == 202
    urls = accepted.json()
    events = ask(proxy, "GET", urls["events_url"], door.key)
    assert events.headers["content-type"].startswith("text/event-stream")
    assert b"event: completed" in events.body
    assert ask(proxy, "GET", urls["status_url"], door.key).json()["status"] == "completed"
    assert ask(proxy, "DELETE", urls["status_url"], door.key).status in {200, 202, 204, 409}
    # What the gateway refuses, it refuses in its own words.
    refused = ask(proxy, "POST", "/v1/chat/completions", "weir_wrong", body)
    assert (refused.status, refused.json()["error"]["code"]) == (401, "invalid_api_key")
    assert "strict-transport-security" in refused.headers


def test_a_websocket_passes(stack: tuple[GatewayProcess, Nginx]) -> None:
    door, proxy = stack
    place = urlsplit(proxy.url)
    context = client_context(ca=proxy.ca.certificate)
    with (
        socket.create_connection((place.hostname or "", place.port or 0), timeout=30) as raw,
        context.wrap_socket(raw, server_hostname="127.0.0.1") as secure,
    ):
        nonce = base64.b64encode(b"sixteen bytes ok").decode()
        head = (
            f"GET /v1/ws HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {door.key}\r\nconnection: Upgrade\r\n"
            f"upgrade: websocket\r\nsec-websocket-version: 13\r\nsec-websocket-key: {nonce}\r\n\r\n"
        )
        secure.sendall(head.encode())
        said = b""
        while b'"ready"' not in said:
            part = secure.recv(65536)
            assert part, said
            said += part
    assert said.startswith(b"HTTP/1.1 101")


def test_metrics_and_the_queue_are_not_for_strangers(stack: tuple[GatewayProcess, Nginx]) -> None:
    door, proxy = stack
    for path in ("/metrics", "/ready", "/v1/queue", "/v1/queue/dead"):
        assert ask(proxy, "GET", path, door.key).status == 404
        assert door.key not in ask(proxy, "GET", path).body.decode()
    assert ask(proxy, "GET", "/health").status == 200


def test_plain_http_is_sent_to_tls_and_old_tls_is_refused(stack: tuple[GatewayProcess, Nginx]) -> None:
    _, proxy = stack
    place = urlsplit(proxy.plain)
    connection = http.client.HTTPConnection(place.hostname or "", place.port, timeout=30)
    connection.request("POST", "/v1/chat/completions", b"{}")
    answer = connection.getresponse()
    assert answer.status == 308
    assert (answer.getheader("location") or "").startswith("https://127.0.0.1")
    connection.close()
    old = client_context(ca=proxy.ca.certificate)
    old.set_ciphers("DEFAULT:@SECLEVEL=0")
    with pytest.warns(DeprecationWarning, match="TLSv1_1 is deprecated"):
        old.minimum_version = old.maximum_version = ssl.TLSVersion.TLSv1_1
    place = urlsplit(proxy.url)
    with (
        socket.create_connection((place.hostname or "", place.port or 0), timeout=30) as raw,
        pytest.raises((ssl.SSLError, ConnectionResetError)),
    ):
        old.wrap_socket(raw, server_hostname="127.0.0.1")
