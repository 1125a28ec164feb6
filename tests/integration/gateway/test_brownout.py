from __future__ import annotations

import http.client
import json
import threading
from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

import pytest
from openai.types.chat import ChatCompletionMessageParam
from tests.factories.gateways import GatewayProcess, endpoint, gateway
from tests.factories.queued import ASK, Answer, User, waiting

from tokenweir.sim.process import SimProcess

MESSAGES: list[ChatCompletionMessageParam] = [{"role": "user", "content": "How many rivers?"}]
SETTINGS = """
[worker]
concurrency = 4
[gateway.slo]
ttft = "400ms"
queue_age = "1s"
window = "1s"
samples = 2
interval = "20ms"
[[gateway.brownout]]
does = "refuse_features"
exempt = ["gold"]
dwell = "150ms"
[[gateway.brownout]]
does = "shorter"
max_tokens = 3
exempt = ["gold"]
dwell = "150ms"
[[gateway.brownout]]
does = "faster_model"
models = { big = "small" }
exempt = ["gold"]
dwell = "150ms"
[[gateway.brownout]]
does = "queue"
exempt = ["gold"]
enter = 2
dwell = "150ms"
[[gateway.brownout]]
does = "refuse"
status = 429
retry_after = "3s"
exempt = ["gold"]
enter = 6
dwell = "150ms"
"""


@pytest.fixture(scope="module")
def big() -> Iterator[SimProcess]:
    with SimProcess(model="big", ttft="constant:1ms", itl="constant:1ms") as process:
        yield process


@pytest.fixture(scope="module")
def small() -> Iterator[SimProcess]:
    with SimProcess(model="small", ttft="constant:1ms", itl="constant:1ms") as process:
        yield process


@pytest.fixture(scope="module")
def door(big: SimProcess, small: SimProcess) -> Iterator[GatewayProcess]:
    endpoints = endpoint("one", big.url, model="big") + endpoint("two", small.url, model="small")
    with gateway(SETTINGS + endpoints) as process:
        assert process.weir("users", "set-tier", "gold").returncode == 0
        assert process.weir("users", "add", "ada", "--tier", "gold").returncode == 0
        assert process.weir("users", "add", "bob").returncode == 0
        yield process


@pytest.fixture(scope="module")
def gold(door: GatewayProcess) -> User:
    return User(door.url, door.weir("keys", "create", "ada").stdout.strip())


@pytest.fixture(scope="module")
def plain(door: GatewayProcess) -> User:
    return User(door.url, door.weir("keys", "create", "bob").stdout.strip())


def brownout(user: User) -> dict[str, Any]:
    return user.ask("GET", "/health").json()["brownout"]


def chat(user: User, **more: object) -> Answer:
    return user.ask(
        "POST", "/v1/chat/completions", {"model": "big", "messages": ASK, "max_tokens": 9, **more}
    )


@contextmanager
def pressed(user: User, big: SimProcess, *, rung: int, ttft: str) -> Generator[None]:
    """Ask slowly answered streams, by one whom no rung touches; from when the ladder stands at a rung."""
    big.flags(ttft=ttft)
    done = threading.Event()

    def press() -> None:
        while not done.is_set():
            answer = chat(user, stream=True, max_tokens=1)
            assert answer.status == 200, answer.body

    with ThreadPoolExecutor(3) as threads:
        pressing = [threads.submit(press) for _ in range(3)]
        try:
            waiting(lambda: brownout(user)["rung"] >= rung or None, f"rung {rung}")
            yield
        finally:
            done.set()
            big.flags(ttft="constant:1ms")
    for each in pressing:
        each.result()


def calm(user: User) -> None:
    waiting(lambda: brownout(user)["rung"] == 0 or None, "calm")


def degraded(user: User, request: str) -> list[dict[str, Any]]:
    return [event for event in user.poll(request) if event["type"] == "degraded"]


def ids(user: User) -> set[str]:
    return {one["id"] for one in user.ask("GET", "/v1/requests").json()["data"]}


def test_slow_first_tokens_shorten_answers_and_ask_a_faster_model_until_it_is_calm(
    door: GatewayProcess, big: SimProcess, gold: User, plain: User
) -> None:
    calm(gold)
    asked = {"model": "big", "messages": ASK, "max_tokens": 9}
    assert "x-weir-degraded" not in chat(plain).headers
    # The rung after these is for twice the objective.
    with pressed(gold, big, rung=3, ttft="constant:550ms"):
        assert brownout(gold)["doing"] == ["refuse_features", "shorter", "faster_model"]
        less = chat(plain)
        assert less.headers["x-weir-degraded"] == "max_tokens=3, model=small"
        assert (less.json()["model"], less.json()["usage"]["completion_tokens"]) == ("small", 3)
        refused = chat(plain, n=2)
        assert (refused.status, refused.headers["x-weir-degraded"]) == (503, "refused=n")
        assert (refused.json()["error"]["code"], refused.headers["retry-after"]) == ("browned_out", "5")
        spared = chat(gold)
        assert spared.json()["usage"]["completion_tokens"] == 9
        assert "x-weir-degraded" not in spared.headers
        taken = plain.ask("POST", "/v1/requests", asked, idempotency_key="one")
        assert taken.headers["x-weir-degraded"] == "max_tokens=3, model=small"
        request = taken.json()["request_id"]
        told = plain.until(request, "completed")
        assert told["token_usage"]["completion_tokens"] == 3
        assert [(event["seq"], event["what"]) for event in degraded(plain, request)] == [
            (2, "max_tokens=3"),
            (3, "model=small"),
        ]
        responded = door.client(plain.key).responses.with_raw_response.create(model="big", input="Which?")
        assert responded.headers["x-weir-degraded"] == "max_tokens=3, model=small"
        used = responded.parse().usage
        assert used is not None
        assert used.output_tokens == 3
        metrics = User(door.url, door.key).ask("GET", "/metrics").body.decode()
        assert "weir_gateway_brownout_rung 3.0" in metrics
        assert 'weir_gateway_degraded_total{does="refuse_features"} 1.0' in metrics
    calm(gold)
    assert chat(plain).json()["usage"]["completion_tokens"] == 9
    # What was asked before is the same request, whatever the load is now.
    again = plain.ask("POST", "/v1/requests", asked, idempotency_key="one")
    assert again.json()["request_id"] == request


def test_the_queue_answers_in_the_same_form_and_running_streams_go_on_to_their_end(
    door: GatewayProcess, big: SimProcess, gold: User, plain: User
) -> None:
    calm(gold)
    client = door.client(plain.key)
    big.flags(itl="constant:60ms")
    running = client.chat.completions.create(
        model="big",
        messages=MESSAGES,
        max_tokens=120,
        stream=True,
        stream_options={"include_usage": True},
    )
    first = next(iter(running))
    big.flags(itl="constant:1ms")
    with pressed(gold, big, rung=4, ttft="constant:1200ms"):
        whole = chat(plain)
        assert whole.headers["x-weir-degraded"] == "max_tokens=3, model=small, queued"
        assert whole.json()["object"] == "chat.completion"
        assert whole.json()["usage"]["completion_tokens"] == 3
        request = whole.headers["x-request-id"]
        what = [event["what"] for event in degraded(plain, request)]
        assert what == ["max_tokens=3", "model=small", "queued"]
        stream = client.chat.completions.with_raw_response.create(model="big", messages=MESSAGES, stream=True)
        assert "queued" in stream.headers["x-weir-degraded"]
        chunks = list(stream.parse())
        assert chunks[-1].choices[0].finish_reason == "length"
    with pressed(gold, big, rung=5, ttft="constant:2800ms"):
        refused = chat(plain)
        assert (refused.status, refused.headers["x-weir-degraded"]) == (429, "refused")
        assert refused.headers["retry-after"] == "3"
        assert plain.ask("POST", "/v1/requests", {"model": "big", "messages": ASK}).status == 429
        rest = [first, *running]
    assert rest[-1].usage is not None
    assert rest[-1].usage.completion_tokens == 120
    calm(gold)
    # Each was charged once, and by the server's count.
    rows = door.weir("usage", "--by", "request", "--user", "bob").stdout.splitlines()[1:]
    mine = [row.split(",") for row in rows if request in row]
    assert [(row[7], row[11], row[12]) for row in mine] == [("3", "server", "completed")]


def test_an_old_queue_climbs_the_ladder_too(door: GatewayProcess, big: SimProcess, gold: User) -> None:
    calm(gold)
    big.flags(ttft="constant:60s")
    # Four are worked on, and the others wait.
    asked = [gold.submit(mode="single", model="big") for _ in range(8)]
    waiting(lambda: brownout(gold)["rung"] >= 3 or None, "rung 3")
    state = brownout(gold)
    assert (state["ttft_ms"], state["queue_age_ms"] >= 1000) == (None, True)
    for request in asked:
        assert gold.ask("DELETE", f"/v1/requests/{request}").status == 202
    for request in asked:
        gold.until(request, "cancelled")
    big.flags(ttft="constant:1ms")
    calm(gold)


def test_a_caller_who_leaves_the_queue_is_not_answered(
    door: GatewayProcess, big: SimProcess, small: SimProcess, gold: User, plain: User
) -> None:
    calm(gold)
    small.flags(ttft="constant:60s")
    with pressed(gold, big, rung=4, ttft="constant:1200ms"):
        parts = urlsplit(door.url)
        connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=30)
        before = ids(plain)
        body = json.dumps({"model": "big", "messages": ASK})
        connection.request("POST", "/v1/chat/completions", body, {"authorization": f"Bearer {plain.key}"})
        (request,) = waiting(lambda: ids(plain) - before or None, "the request is taken on")
        connection.close()
        plain.until(request, "cancelled")
    small.flags(ttft="constant:1ms")
