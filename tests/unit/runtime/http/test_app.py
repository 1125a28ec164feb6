from __future__ import annotations

import asyncio
from collections.abc import Iterable

import msgspec
import pytest
import structlog
from prometheus_client.parser import text_string_to_metric_families
from tests.factories.doors import HERE, MESSAGES, Exchange, ask, dig, make_app, post

from tokenweir.core.breaker import Open
from tokenweir.core.errors import GuidanceError
from tokenweir.core.events import Event, Token
from tokenweir.core.requests import GenerateRequest, Json
from tokenweir.runtime.bridge.messages import Stepped
from tokenweir.runtime.health import DeviceStatus, ModelStatus, SchedulerStatus
from tokenweir.runtime.http.app import App
from tokenweir.runtime.http.door import Limits
from tokenweir.runtime.http.fakes import FAKE_CARD, FakeServing, spoken
from tokenweir.runtime.http.metrics import PREFIX
from tokenweir.runtime.http.routes import ROUTES
from tokenweir.runtime.images import ImageLimits
from tokenweir.runtime.options import RunOptions
from tokenweir.runtime.supervision.lifecycle import BackingOff, Ready

CHAT = "/v1/chat/completions"
BODY: Json = {"model": "fake", "messages": MESSAGES}


def endless(_request: GenerateRequest, _options: RunOptions) -> Iterable[Event]:
    at = 0
    while True:
        yield Token(seq=at, text="x", count=1)
        at += 1


def get(app: App, path: str, **headers: str) -> Exchange:
    return ask(app, Exchange("GET", path, headers=headers))


def figures(app: App) -> dict[tuple[str, ...], float]:
    """Return every sample of the metrics page by its name and labels."""
    done = get(app, "/metrics")
    assert done.answer_headers["content-type"].startswith("text/plain; version=0.0.4")
    return {
        (sample.name, *(str(sample.labels[label]) for label in sorted(sample.labels))): sample.value
        for family in text_string_to_metric_families(done.text)
        for sample in family.samples
    }


@pytest.mark.parametrize(
    ("path", "named"),
    [
        ("/", CHAT),
        ("/v1", CHAT),
        ("/v1/chat", CHAT),
        ("/v1/models/", "/v1/models"),
        ("/v2/models", "/v1/models"),
    ],
)
def test_an_unknown_path_names_the_nearest_or_what_most_ask_for(path: str, named: str) -> None:
    done = get(make_app(), path)
    assert (done.status, done.error["code"]) == (404, "unknown_path")
    assert named in str(done.error["mend"])


@pytest.mark.parametrize("path", [path for path, route in ROUTES.items() if route.method == "POST"])
def test_a_wrong_method_names_the_right_one(path: str) -> None:
    done = ask(make_app(), Exchange("GET", path))
    assert (done.status, done.answer_headers["allow"]) == (405, "POST")


@pytest.mark.parametrize("path", [path for path, route in ROUTES.items() if route.method == "POST"])
@pytest.mark.parametrize(
    ("body", "kind", "status", "code"),
    [
        (b"{", "application/json", 400, "invalid_json"),
        (b"[1]", "application/json", 400, "invalid_json"),
        (b'{"a": "\xff"}', "application/json", 400, "invalid_json"),
        (b"[" * 100_000, "application/json", 400, "invalid_json"),
        (b"", "application/json", 400, "invalid_json"),
        (b"{}", "text/plain", 415, "unsupported_media_type"),
        (b"{}", "", 415, "unsupported_media_type"),
        (b'{"qqq": 1}', "application/json; charset=utf-8", 400, "unknown_parameter"),
    ],
)
def test_bad_bodies_are_refused_everywhere(path: str, body: bytes, kind: str, status: int, code: str) -> None:
    done = ask(make_app(), Exchange("POST", path, body, headers={**HERE, "content-type": kind}))
    assert (done.status, done.error["code"]) == (status, code)


@pytest.mark.parametrize("declared", [True, False])
def test_a_long_body_is_refused_before_it_is_read(*, declared: bool) -> None:
    body = msgspec.json.encode({**BODY, "user": "x" * 5000}) if isinstance(BODY, dict) else b""
    headers = {**HERE, "content-length": str(len(body))} if declared else HERE
    done = ask(
        make_app(limits=Limits(body_bytes=2000)), Exchange("POST", CHAT, body, headers=headers, pieces=10)
    )
    assert (done.status, done.error["code"]) == (413, "body_too_large")


def test_a_body_in_pieces_is_put_together() -> None:
    assert ask(make_app(), post(CHAT, BODY, pieces=7)).status == 200


def test_a_body_that_does_not_come_is_given_up() -> None:
    exchange = Exchange("POST", CHAT)
    exchange.parts.clear()
    done = ask(make_app(limits=Limits(read_timeout_ns=20_000_000)), exchange)
    assert (done.status, done.error["code"]) == (408, "request_timeout")


def test_a_client_that_leaves_before_its_body_gets_nothing() -> None:
    exchange = Exchange("POST", CHAT)
    exchange.parts.clear()
    exchange.leaving.set()
    assert ask(make_app(), exchange).status == 0


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_cancels_its_request_at_once(*, stream: bool) -> None:
    serving = FakeServing(endless)
    app = make_app(serving)
    serving.hold.clear()

    async def leave() -> None:
        exchange = post(CHAT, {"model": "fake", "messages": MESSAGES, "stream": stream})
        async with asyncio.timeout(10), asyncio.TaskGroup() as group:
            group.create_task(exchange.run(app))
            await serving.began.wait()
            exchange.leaving.set()
            await serving.ended.wait()

    asyncio.run(leave())
    assert serving.cancelled == 1
    assert figures(app)[PREFIX + "requests_total", "fake", "gone", CHAT] == 1


def test_a_client_that_does_not_read_pauses_its_own_stream_only() -> None:
    serving = FakeServing(
        lambda request, options: endless(request, options) if request.sampling.n == 2 else spoken("a b c")
    )
    app = make_app(serving)

    async def pause() -> int:
        slow = post(CHAT, {"model": "fake", "messages": MESSAGES, "stream": True, "n": 2})
        async with asyncio.timeout(10), asyncio.TaskGroup() as group:
            task = group.create_task(slow.run(app))
            await slow.until(3)
            slow.reading.clear()
            taken = 0
            while serving.taken != taken:
                taken = serving.taken
                await asyncio.sleep(0)
            quick = await post(CHAT, BODY).run(app)
            assert quick.status == 200
            held = serving.taken - taken
            slow.reading.set()
            await slow.until(len(slow.sent) + 5)
            slow.leaving.set()
            await task
        return held

    # The quick request's own events, and at most one more of the held stream.
    assert asyncio.run(pause()) <= len(spoken("a b c")) + 1
    assert serving.cancelled == 1


def test_an_unexpected_error_is_a_body_without_its_words() -> None:
    def script(_request: GenerateRequest, _options: RunOptions) -> Iterable[Event]:
        yield Token(seq=0, text="x")
        raise RuntimeError("secret detail")

    app = make_app(FakeServing(script))
    whole = ask(app, post(CHAT, BODY))
    assert whole.status == 500
    assert "secret" not in whole.text
    streamed = ask(app, post(CHAT, {"model": "fake", "messages": MESSAGES, "stream": True}))
    assert dig(streamed.events()[-1], "error", "type") == "server_error"
    assert "secret" not in streamed.text


def test_models_are_listed_and_found_by_name() -> None:
    cards = [msgspec.structs.replace(FAKE_CARD, name=name) for name in ("one", "org/two")]
    app = make_app(FakeServing(cards=cards))
    listed = get(app, "/v1/models").json
    assert [dig(listed, "data", at, "id") for at in range(2)] == ["one", "org/two"]
    found = get(app, "/v1/models/org/two").json
    assert found == dig(listed, "data", 1)
    assert (found["revision"], found["root"], found["max_model_len"]) == ("f" * 64, "/models/fake", 1024)
    assert get(app, "/v1/models/three").status == 404
    missing = ask(app, post(CHAT, {"messages": MESSAGES}))
    assert (missing.status, missing.error["param"]) == (400, "model")
    assert "'one', 'org/two'" in str(missing.error["mend"])
    other = ask(app, post(CHAT, {"model": "three", "messages": MESSAGES}))
    assert (other.status, other.error["code"]) == (404, "model_not_loaded")


def test_a_model_need_not_be_named_where_there_is_one() -> None:
    serving = FakeServing()
    assert ask(make_app(serving), post(CHAT, {"messages": MESSAGES})).json["model"] == "fake"
    assert serving.asked[0][0].model == "fake"


def test_loading_and_unloading() -> None:
    app = make_app()
    loaded = ask(
        app,
        post("/v1/models/load", {"modelPath": "/m/new", "quantize": 4, "maxKvSize": 99, "draftModel": "/d"}),
    )
    assert loaded.status == 200
    assert {key: loaded.json[key] for key in ("id", "weight_bits", "max_model_len", "draft")} == {
        "id": "new",
        "weight_bits": 4,
        "max_model_len": 99,
        "draft": "/d",
    }
    assert get(app, "/v1/models/new").status == 200
    gone = ask(app, post("/v1/models/unload", {"model": "new"}))
    assert (gone.status, gone.json["state"]) == (200, "unloaded")
    assert get(app, "/v1/models/new").status == 404


@pytest.mark.parametrize("path", ["/v1/models/load", "/v1/models/unload"])
@pytest.mark.parametrize(
    ("client", "headers"),
    [
        ("192.0.2.7", {}),
        ("nonsense", {}),
        ("127.0.0.1", {"origin": "http://evil.example"}),
        ("127.0.0.1", {"host": "evil.example:8100"}),
        ("127.0.0.1", {"host": "evil.example"}),
    ],
)
def test_only_this_machine_changes_what_is_loaded(path: str, client: str, headers: dict[str, str]) -> None:
    body: Json = {"path": "/m/new"} if path.endswith("/load") else {"model": "fake"}
    done = ask(make_app(), post(path, body, client=client, headers={**HERE, **headers}))
    assert (done.status, done.error["code"]) == (403, "forbidden")
    keyed = ask(
        make_app(key="k"),
        post(path, body, client=client, headers={**HERE, **headers, "authorization": "Bearer k"}),
    )
    assert keyed.status == 200


@pytest.mark.parametrize("host", ["localhost:1", "127.0.0.1", "[::1]:8100", "[::1]"])
def test_this_machine_has_several_names(host: str) -> None:
    done = ask(
        make_app(), post("/v1/models/unload", {"model": "fake"}, client="::1", headers={**HERE, "host": host})
    )
    assert done.status == 200


@pytest.mark.parametrize(("path", "route"), ROUTES.items())
def test_a_key_is_asked_for_but_by_probes(path: str, route: object) -> None:
    app = make_app(key="secret")
    method, opened = ROUTES[path].method, ROUTES[path].open
    for headers in (HERE, {**HERE, "authorization": "Bearer wrong"}, {**HERE, "authorization": "secret"}):
        done = ask(app, Exchange(method, path, b"{}", headers=headers))
        assert (done.status == 401) == (not opened)
    done = ask(app, Exchange(method, path, b"{}", headers={**HERE, "authorization": "bearer secret"}))
    assert done.status != 401


def test_health_lives_whatever_the_engine_does() -> None:
    serving = FakeServing()
    app = make_app(serving)
    assert get(app, "/health").json["status"] == "ok"
    serving.state = msgspec.structs.replace(
        serving.state, lifecycle=BackingOff(until_ns=5, reason="it was killed")
    )
    done = get(app, "/health")
    assert (done.status, done.json["status"], done.json["commit"]) == (200, "degraded", "c" * 40)
    assert dig(done.json, "engine", "lifecycle", "type") == "backing_off"


def test_ready_needs_a_token_of_a_loaded_model() -> None:
    serving = FakeServing()
    app = make_app(serving)
    assert get(app, "/ready").json == {"ready": True, "reason": ""}
    for change, words in (
        ({"lifecycle": BackingOff(until_ns=5, reason="it was killed")}, "backing_off: it was killed"),
        ({"scheduler": SchedulerStatus(state="draining")}, "draining"),
    ):
        before = serving.state
        serving.state = msgspec.structs.replace(before, **change)
        done = get(app, "/ready")
        assert (done.status, done.answer_headers["retry-after"]) == (503, "1")
        assert words in str(done.json["reason"])
        serving.state = before
    for status, words in (
        (ModelStatus(card=FAKE_CARD, state="loaded"), "made no token yet"),
        (ModelStatus(card=FAKE_CARD, state="loading", answered=True), "'fake' is loading"),
    ):
        serving.statuses = {"fake": status}
        assert words in str(get(app, "/ready").json["reason"])
    serving.statuses = {"fake": ModelStatus(card=FAKE_CARD, state="unloaded", put_away=True)}
    assert get(app, "/ready").json["ready"] is True, "a request brings it back"
    serving.statuses = {}
    assert get(app, "/ready").json["reason"] == "no model is loaded"


def test_head_is_get_without_a_body() -> None:
    assert ask(make_app(), Exchange("HEAD", "/health")).status == 200


def test_metrics_count_what_happened() -> None:
    serving = FakeServing()
    app = make_app(serving)
    for _ in range(3):
        ask(app, post(CHAT, BODY))
    ask(app, post(CHAT, {"messages": MESSAGES, "tempereture": 1}))
    ask(app, post(CHAT, {"model": "made up", "messages": MESSAGES}))
    get(app, "/nowhere")
    app.door.metrics.stepped(
        Stepped(
            model="fake",
            streams=(),
            step_ns=3_000_000,
            running=4,
            drafted=10,
            accepted=6,
            prefix_hit_tokens=50,
            prefix_bytes=1000,
        )
    )
    serving.state = msgspec.structs.replace(
        serving.state,
        restarts=2,
        devices=(
            DeviceStatus(
                name="text",
                engine="fake",
                engine_version="1",
                lifecycle=Ready(epoch=3, pid=5, since_ns=0),
                breaker=Open(until_ns=1),
            ),
        ),
        rss_bytes=123,
        scheduler=SchedulerStatus(state="degraded", step=2, waiting=5, oldest_wait_ns=1_500_000_000),
    )
    found = figures(app)
    assert found[PREFIX + "requests_total", "fake", "completed", CHAT] == 3
    assert found[PREFIX + "requests_total", "", "refused", CHAT] == 2
    assert found[PREFIX + "requests_total", "", "refused", "unknown"] == 1
    assert found[PREFIX + "tokens_total", "prompt", "fake"] == 21
    assert found[PREFIX + "tokens_total", "output", "fake"] == 6
    assert found[PREFIX + "tokens_total", "cached", "fake"] == 9
    assert found[PREFIX + "ttft_seconds_count",] == 3
    assert found[PREFIX + "itl_seconds_count",] == 3
    assert found[PREFIX + "e2el_seconds_count",] == 3
    assert found[PREFIX + "step_seconds_sum",] == pytest.approx(0.003)
    assert found[PREFIX + "batch_sequences_bucket", "4"] == 1
    assert found[PREFIX + "batch_sequences_bucket", "2"] == 0
    assert found[PREFIX + "draft_tokens_total", "fake", "accepted"] == 6
    assert found[PREFIX + "prefix_hit_tokens_total", "fake"] == 50
    assert found[PREFIX + "prefix_bytes", "fake"] == 1000
    assert found[PREFIX + "restarts_total",] == 2
    assert found[PREFIX + "breaker_state", "text", "open"] == 1
    assert found[PREFIX + "breaker_state", "text", "closed"] == 0
    assert found[PREFIX + "scheduler_state", "degraded"] == 1
    assert found[PREFIX + "lifecycle_state", "text", "ready"] == 1
    assert found[PREFIX + "queue_requests",] == 5
    assert found[PREFIX + "queue_age_seconds",] == 1.5
    assert found[PREFIX + "memory_bytes", "process"] == 123
    assert found[PREFIX + "model_loaded", "fake", "f" * 64] == 1


def test_one_event_is_logged_for_each_request_and_no_prompt() -> None:
    with structlog.testing.capture_logs() as logged:
        done = ask(make_app(), post(CHAT, {"messages": [{"role": "user", "content": "private words"}]}))
        ask(make_app(), post(CHAT, {"messages": "private words"}))
    good, bad = logged
    assert good["request_id"] == done.answer_headers["x-request-id"]
    assert (good["http.route"], good["http.response.status_code"], good["outcome"]) == (
        CHAT,
        200,
        "completed",
    )
    assert (good["gen_ai.request.model"], good["gen_ai.usage.output_tokens"]) == ("fake", 2)
    assert (bad["error.type"], bad["log_level"]) == ("bad_parameter", "warning")
    assert "private" not in str(good)


@pytest.mark.parametrize(
    "body",
    [
        {"messages": "private words"},
        {"messages": [{"role": "user", "content": {"private": "words"}}]},
        {"messages": [{"role": "private words", "content": "x"}]},
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "private"}}]}]},
        {"messages": MESSAGES, "stop": ["private words", 3]},
        {"messages": MESSAGES, "prediction": {"type": "content", "content": "private words"}},
    ],
)
def test_a_refusal_is_logged_without_what_the_client_wrote(body: dict[str, Json]) -> None:
    with structlog.testing.capture_logs() as logged:
        assert ask(make_app(), post(CHAT, body)).status == 400
    assert "private" not in str(logged)
    assert str(logged[0]["error.param"]).partition("[")[0] in body
    with structlog.testing.capture_logs() as logged:
        ask(make_app(log_prompts=True), post(CHAT, body))
    assert "error.message" in logged[0]


def test_guidance_is_not_logged_either() -> None:
    refused = GuidanceError("the choice 'private words' is listed twice")
    serving = FakeServing(lambda _request, _options: refused)
    with structlog.testing.capture_logs() as logged:
        assert ask(make_app(serving), post(CHAT, BODY)).status == 400
    assert logged[0]["error.type"] == "guidance"
    assert "private" not in str(logged)


@pytest.mark.parametrize("stream", [False, True])
def test_prompts_and_answers_are_logged_where_that_is_set(stream: bool) -> None:  # noqa: FBT001
    serving = FakeServing(lambda _request, _options: spoken("very private", choices=2))
    seen: Json = [{"type": "text", "text": "secret"}, {"type": "text", "text": "things"}]
    messages: Json = [{"role": "user", "content": seen}, {"role": "user", "content": "hi"}]
    body: Json = {"messages": messages, "n": 2, "stream": stream}
    with structlog.testing.capture_logs() as logged:
        ask(make_app(serving, log_prompts=True), post(CHAT, body))
    assert logged[0]["prompt"] == [
        [{"role": "user", "content": "secret\nthings"}, {"role": "user", "content": "hi"}]
    ]
    assert logged[0]["answer"] == ["very private", "very private"]


def test_images_are_bounded() -> None:
    app = make_app(limits=Limits(images=ImageLimits(count=0)))
    url = "data:image/gif;base64,R0lGODlhAQABAAAAACwAAAAAAQABAAA="
    content: Json = [{"type": "image_url", "image_url": {"url": url}}]
    done = ask(app, post(CHAT, {"messages": [{"role": "user", "content": content}]}))
    assert (done.status, done.error["code"]) == (400, "too_many_images")


def test_a_websocket_is_closed_and_the_server_s_life_is_followed() -> None:
    app = make_app()

    async def run(kind: str, *events: str) -> list[str]:
        waiting = [{"type": event} for event in events]
        sent: list[str] = []

        async def receive() -> dict[str, str]:
            return waiting.pop(0)

        async def send(event: dict[str, object]) -> None:
            sent.append(str(event["type"]))

        await app({"type": kind}, receive, send)  # type: ignore[arg-type]
        return sent

    assert asyncio.run(run("websocket", "websocket.connect")) == ["websocket.close"]
    life = asyncio.run(run("lifespan", "lifespan.startup", "lifespan.shutdown"))
    assert life == ["lifespan.startup.complete", "lifespan.shutdown.complete"]
