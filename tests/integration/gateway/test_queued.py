from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from tests.factories.gateways import GatewayProcess, gateway
from tests.factories.queued import ASK, Socket, User, newest, waiting

from tokenweir.sim.process import SimProcess

SETTINGS = """
[worker]
attempts = 3
backoff = "10ms"
lease = "3s"
[gateway]
heartbeat = "200ms"
"""


@pytest.fixture(scope="module")
def door(endpoints: str) -> Iterator[GatewayProcess]:
    with gateway(SETTINGS + endpoints) as process:
        yield process


def text_of(events: list[dict[str, Any]]) -> str:
    return "".join(event.get("text", "") for event in events if event["type"] == "token")


@pytest.mark.parametrize("mode", ["single", "stream"])
def test_polling_sse_and_websocket_show_one_and_the_same_sequence(user: User, mode: str) -> None:
    request = user.submit(mode=mode, tokens=20)
    streamed = list(user.stream(request))
    polled = user.poll(request)
    ws = Socket(user.url, key=user.key)
    ws.say(type="resume", request_id=request)
    heard: list[dict[str, Any]] = []
    while (message := ws.hear()) is not None and message["type"] != "end":
        if message["type"] == "event":
            assert message["request_id"] == request
            heard.append(message["event"])
    ws.close()
    assert streamed == polled == heard
    assert [event["seq"] for event in streamed] == list(range(len(streamed)))
    kinds = [event["type"] for event in streamed]
    assert kinds[:3] == ["accepted", "queued", "started"]
    assert kinds[-2:] == ["usage", "completed"]
    assert kinds.count("token") == (1 if mode == "single" else 20)
    told = user.status(request)
    assert told["status"] == "completed"
    assert told["result"]["choices"][0]["message"]["content"] == text_of(streamed)
    assert told["token_usage"]["completion_tokens"] == 20
    assert all("endpoint" not in event for event in streamed)


@pytest.mark.parametrize("how", ["after", "last-event-id"])
def test_a_reader_that_comes_back_misses_nothing_and_sees_nothing_twice(user: User, how: str) -> None:
    request = user.submit(tokens=60, model="slow")
    seen: list[dict[str, Any]] = []
    for event in user.stream(request):
        seen.append(event)
        if len(seen) == 20:
            break
    last = str(seen[-1]["seq"])
    if how == "after":
        rest = [event for event, _ in user.frames(request, query=f"?after={last}") if event is not None]
    else:
        rest = list(user.stream(request, last_event_id=last))
    seen += rest
    assert [event["seq"] for event in seen] == list(range(len(seen)))
    assert seen == user.poll(request)
    assert seen[-1]["type"] == "completed"


def test_a_silent_stream_beats(user: User) -> None:
    request = user.submit(model="slow", tokens=1)
    user.until(request, "completed")
    silent = user.submit(model="broken", tokens=1)
    assert user.ask("DELETE", f"/v1/requests/{silent}").status == 202
    running = user.submit(model="slow", tokens=2000)
    for event, piece in user.frames(running, query="?after=1000000"):
        assert event is None
        if b": heartbeat" in piece:
            break
    assert user.ask("DELETE", f"/v1/requests/{running}").status == 202
    user.until(running, "cancelled")


@pytest.mark.parametrize(
    ("query", "headers"),
    [("?after=x", {}), ("?after=-2", {}), ("?after=", {}), ("?other=1", {}), ("", {"last_event_id": "1.5"}),
     ("?after=1", {"last_event_id": "1"}), ("?after=1&after=2", {})],
)  # fmt: skip
def test_a_malformed_cursor_is_told(user: User, query: str, headers: dict[str, str]) -> None:
    request = user.submit(mode="single")
    answer = user.ask("GET", f"/v1/requests/{request}/events{query}", None, **headers)
    assert answer.status == 400
    assert answer.json()["error"]["type"] == "invalid_request_error"


def test_an_event_source_that_has_seen_the_end_is_told_to_stay_away(user: User) -> None:
    request = user.submit(mode="single")
    last = user.until(request, "completed")["last_seq"]
    assert user.ask("GET", f"/v1/requests/{request}/events", last_event_id=str(last)).status == 204


def test_the_same_key_and_body_is_the_same_request(user: User) -> None:
    first = user.submit(key="once", tokens=3)
    assert user.submit(key="once", tokens=3) == first
    body = json.dumps({"max_tokens": 3, "mode": "stream", "messages": ASK, "model": "sim"}).encode()
    again = user.ask("POST", "/generate", body, idempotency_key="once")
    assert again.json()["request_id"] == first
    assert again.headers["idempotent-replayed"] == "true"
    other = user.ask("POST", "/v1/requests", {"model": "sim", "messages": ASK}, idempotency_key="once")
    assert (other.status, other.json()["error"]["code"]) == (409, "conflict")
    assert (
        user.ask("POST", "/v1/requests", {"model": "sim", "messages": ASK}, idempotency_key="").status == 400
    )


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
def test_a_direct_request_with_a_key_is_answered_alike_again(user: User, path: str, stream: bool) -> None:  # noqa: FBT001
    prompt = {"messages": ASK} if "chat" in path else {"prompt": "x"}
    body = {"model": "sim", "max_tokens": 4, "stream": stream, **prompt}
    key = f"direct {path} {stream}"
    first = user.ask("POST", path, body, idempotency_key=key)
    again = user.ask("POST", path, body, idempotency_key=key)
    assert first.status == again.status == 200
    assert first.body == again.body
    assert (b"[DONE]" in first.body) is stream
    assert again.headers["idempotent-replayed"] == "true"
    assert user.ask("POST", path, {**body, "max_tokens": 5}, idempotency_key=key).status == 409


def test_the_official_client_may_send_a_key(door: GatewayProcess) -> None:
    headers = {"Idempotency-Key": "official"}
    client = door.client()
    vectors = [
        client.embeddings.create(model="sim", input=["a", "b"], extra_headers=headers).data for _ in range(2)
    ]
    assert vectors[0] == vectors[1]
    assert len(vectors[0]) == 2


def test_the_aliases_have_the_same_semantics(user: User) -> None:
    body = {"model": "sim", "prompt": "x", "max_tokens": 2}
    for path in ("/generate", "/api/gateway"):
        answer = user.ask("POST", path, body)
        assert answer.status == 202
        request = answer.json()["request_id"]
        told = user.until(request, "completed")
        assert told == user.ask("GET", f"/status/{request}").json()
        assert told == user.ask("GET", f"/api/status/{request}").json()
        events = user.ask("GET", f"/events/{request}", accept="application/json").json()["data"]
        assert events == user.poll(request)
        assert told["result"]["choices"][0]["text"] == text_of(events)


def test_a_stranger_sees_nothing(user: User, stranger: User) -> None:
    request = user.submit(mode="single", key="mine")
    user.until(request, "completed")
    routes = [
        ("GET", f"/v1/requests/{request}"),
        ("GET", f"/v1/requests/{request}/events"),
        ("DELETE", f"/v1/requests/{request}"),
        ("GET", f"/status/{request}"),
        ("GET", f"/events/{request}"),
        ("GET", f"/api/status/{request}"),
    ]
    for method, path in routes:
        assert stranger.ask(method, path).status == 404, path
        assert stranger.ask(method, path, last_event_id="1").status == 404, path
    assert stranger.ask("GET", "/v1/requests").json()["data"] == []
    assert stranger.submit(mode="single", key="mine", tokens=9) != request
    for path in ("/v1/queue", "/v1/queue/dead"):
        assert stranger.ask("GET", path).status == 403
    ws = Socket(stranger.url, key=stranger.key)
    for kind in ("resume", "cancel"):
        ws.say(type=kind, request_id=request, ref=kind)
        told = ws.expect("error")
        assert (told["status"], told["ref"], told["error"]["code"]) == (404, kind, "not_found")
    ws.close()


def test_the_history_is_ones_own_newest_first_page_by_page(door: GatewayProcess) -> None:
    assert door.weir("users", "add", "historian").returncode == 0
    user = User(door.url, door.weir("keys", "create", "historian").stdout.strip())
    made = [user.submit(mode="single", tokens=1) for _ in range(5)]
    for request in made:
        user.until(request, "completed")
    listed: list[str] = []
    cursor = ""
    while True:
        page = user.ask("GET", f"/v1/requests?limit=2{cursor}").json()
        assert all(each["status"] == "completed" for each in page["data"])
        listed += [each["id"] for each in page["data"]]
        if not page["has_more"]:
            break
        cursor = f"&cursor={page['next_cursor']}"
    assert listed == made[::-1]
    for query in ("?limit=0", "?limit=x", f"?limit={'9' * 5_000}", "?cursor=zzz", "?page=2"):
        assert user.ask("GET", f"/v1/requests{query}").status == 400


def test_looking_costs_no_quota(door: GatewayProcess) -> None:
    assert door.weir("users", "add", "frugal").returncode == 0
    assert door.weir("quotas", "set", "1", "requests", "--per", "month", "--user", "frugal").returncode == 0
    user = User(door.url, door.weir("keys", "create", "frugal").stdout.strip())
    request = user.submit(mode="single")
    user.until(request, "completed")
    for _ in range(3):
        assert list(user.stream(request))
        assert user.ask("GET", "/v1/requests").status == 200
    refused = user.ask("POST", "/v1/requests", {"model": "sim", "messages": ASK})
    assert refused.status == 429
    assert refused.headers["retry-after"]
    assert len(user.ask("GET", "/v1/requests").json()["data"]) == 1


def test_a_cancelled_request_stops_at_the_endpoint_and_is_charged_what_came(
    user: User, slow: SimProcess
) -> None:
    request = user.submit(model="slow", tokens=2000)
    stream = user.stream(request)
    for event in stream:
        if event["type"] == "token":
            break
    assert user.ask("DELETE", f"/v1/requests/{request}").status == 202
    kinds = [event["type"] for event in stream]
    assert kinds[-1] == "cancelled"
    told = user.until(request, "cancelled")
    assert told["cancel_requested"]
    assert user.ask("DELETE", f"/v1/requests/{request}").json()["status"] == "cancelled"
    waiting(lambda: True if slow.truth()["running"] == 0 else None, "the endpoint is idle")


def test_a_deadline_ends_a_request(user: User) -> None:
    request = user.submit(model="slow", tokens=2000, deadline="300ms")
    told = user.until(request, "failed")
    assert told["error"]["code"] == "timeout"
    assert text_of(user.poll(request))


def test_what_fails_again_and_again_is_given_up_kept_and_replayed(user: User, door: GatewayProcess) -> None:
    request = user.submit(model="broken", mode="single")
    told = user.until(request, "failed")
    assert told["attempt"] == 3
    assert told["error"]["retryable"]
    listed = waiting(
        lambda: next(
            (
                each
                for each in user.ask("GET", "/v1/queue/dead").json()["data"]
                if each["request_id"] == request
            ),
            None,
        ),
        "a dead letter",
    )
    assert len(listed["errors"]) == 3
    shown = user.ask("GET", f"/v1/queue/dead/{request}").json()
    assert shown["events"][-1]["type"] == "failed"
    again = user.ask("POST", f"/v1/queue/dead/{request}")
    assert again.status == 202
    fresh = again.json()["request_id"]
    assert fresh != request
    assert user.until(fresh, "failed")["attempt"] == 3
    assert user.ask("GET", f"/v1/queue/dead/{request}").status == 404
    gone = waiting(
        lambda: found if (found := user.ask("DELETE", f"/v1/queue/dead/{fresh}")).status == 204 else None,
        "the second dead letter",
    )
    assert gone.status == 204
    assert door.weir("usage", "--by", "request").returncode == 0


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"messages": ASK}, "model"),
        ({"model": "sim"}, "messages"),
        ({"model": "sim", "messages": ASK, "prompt": "x"}, "messages"),
        ({"model": "sim", "messages": ASK, "mode": "later"}, "mode"),
        ({"model": "sim", "messages": ASK, "priority": 10}, "priority"),
        ({"model": "sim", "messages": ASK, "priority": "high"}, "priority"),
        ({"model": "sim", "messages": ASK, "deadline": "soon"}, "deadline"),
        ({"model": "sim", "messages": ASK, "deadline": -1}, "deadline"),
        ({"model": "sim", "messages": ASK, "webhook": "https://example.com/"}, "webhook"),
        ({"model": "sim", "input": "x", "mode": "stream"}, "mode"),
    ],
)
def test_bad_requests_are_told_and_nothing_is_kept(
    door: GatewayProcess, body: dict[str, object], param: str
) -> None:
    user = User(door.url, door.key)
    before = newest(user)
    answer = user.ask("POST", "/v1/requests", body)
    assert (answer.status, answer.json()["error"]["param"]) == (400, param)
    assert newest(user) == before


def test_many_requests_share_a_socket(user: User) -> None:
    ws = Socket(user.url, protocols=("weir.v1", f"key.{user.key}"))
    assert ws.protocol == "weir.v1"
    assert ws.expect("ready")
    for number in range(8):
        ws.say(
            type="submit",
            ref=str(number),
            body={"model": "sim", "messages": ASK, "max_tokens": 3 + number, "mode": "stream"},
        )
    names: dict[str, str] = {}
    events: dict[str, list[dict[str, Any]]] = {}
    ended = 0
    while ended < 8:
        message = ws.hear()
        assert message is not None
        match message["type"]:
            case "submitted":
                names[message["request_id"]] = message["ref"]
            case "event":
                events.setdefault(message["request_id"], []).append(message["event"])
            case "end":
                ended += 1
            case other:
                assert other == "heartbeat"
    assert sorted(names.values()) == [str(number) for number in range(8)]
    for request, ref in names.items():
        assert [event["seq"] for event in events[request]] == list(range(len(events[request])))
        assert sum(event["type"] == "token" for event in events[request]) == 3 + int(ref)
    ws.say(type="ping", ref="p")
    assert ws.expect("pong")["ref"] == "p"
    assert ws.expect("heartbeat")
    ws.text("{")
    assert ws.expect("error")["status"] == 400
    ws.close()


def test_a_socket_resumes_and_cancels(user: User) -> None:
    first = Socket(user.url, key=user.key)
    body = {"model": "slow", "messages": ASK, "max_tokens": 2000, "mode": "stream"}
    first.say(type="submit", ref="a", body=body, idempotency_key="socket")
    request = first.expect("submitted")["request_id"]
    seen = [first.expect("event")["event"]["seq"] for _ in range(6)]
    first.close()
    second = Socket(user.url, key=user.key)
    second.say(type="submit", ref="b", body=body, idempotency_key="socket", follow=False)
    assert second.expect("submitted")["request_id"] == request
    second.say(type="resume", request_id=request, after=seen[-1])
    seen += [second.expect("event")["event"]["seq"] for _ in range(3)]
    second.say(type="cancel", request_id=request)
    kinds: list[str] = []
    while (message := second.hear()) is not None and message["type"] != "end":
        kinds.append(message["type"])
        if message["type"] == "event":
            seen.append(message["event"]["seq"])
    assert "cancelling" in kinds
    assert seen == list(range(len(seen)))
    assert user.until(request, "cancelled")
    second.close()


def test_a_socket_without_a_valid_key_is_refused(user: User) -> None:
    for key in ("", "weir_x"):
        ws = Socket(user.url, key=key)
        assert ws.refused == 401
        ws.close()


def test_streams_and_sockets_of_a_revoked_key_are_closed(door: GatewayProcess) -> None:
    assert door.weir("users", "add", "leaver").returncode == 0
    user = User(door.url, door.weir("keys", "create", "leaver").stdout.strip())
    request = user.submit(model="slow", tokens=2000)
    stream = user.stream(request)
    next(stream)
    ws = Socket(user.url, key=user.key)
    assert ws.expect("ready")
    ws.say(type="resume", request_id=request)
    key_id = door.weir("keys", "list", "--user", "leaver").stdout.splitlines()[1].split()[0]
    assert door.weir("keys", "revoke", key_id).returncode == 0
    assert all(event["type"] != "completed" for event in stream)
    while ws.hear() is not None:
        pass
    assert ws.closed == 1008
    ws.close()


def test_metrics_tell_of_the_queue(user: User) -> None:
    text = user.ask("GET", "/metrics").body.decode()
    for name in (
        "weir_queue_length",
        "weir_queue_oldest_seconds",
        "weir_queue_dead_letters",
        "weir_worker_in_flight",
        "weir_collector_settle_lag_seconds",
        "weir_gateway_event_streams",
        "weir_gateway_websockets",
    ):
        assert f"\n{name} " in text


def test_all_of_it_is_charged_once(door: GatewayProcess) -> None:
    rows = [line.split(",") for line in door.weir("usage", "--by", "request").stdout.splitlines()[1:]]
    assert len({row[0] for row in rows}) == len(rows)
