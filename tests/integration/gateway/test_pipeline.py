from __future__ import annotations

import base64
import hashlib
import hmac
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from openai.types.chat import ChatCompletionMessageParam
from tests.factories.gateways import GatewayProcess, endpoint, gateway
from tests.factories.queued import Answer, User, waiting
from tests.factories.recorders import Recorder, Sent, model_server

from tokenweir.config import child_environment

EXAMPLE = Path(__file__).parents[3] / "examples" / "pipeline" / "weir.toml"
SAID = "Write to bob@example.org, or to EMP-123456, soon."
CLEAN = "Write to [email], or to [custom], soon."
ASKED = "I am ada@example.org. Who are you?"
MESSAGES: list[ChatCompletionMessageParam] = [{"role": "user", "content": ASKED}]
BODY: dict[str, Any] = {"model": "good", "messages": MESSAGES, "temperature": 0}


def hook(sent: Sent) -> tuple[int, str, bytes]:
    """Refuse what speaks of war, put a word in what speaks of peace, fail and dawdle on demand."""
    data = sent.body["data"]
    if sent.body["type"] == "request.ended":
        return 204, "application/json", b""
    text = json.dumps(data["body"]["messages"])
    if "war" in text:
        return 200, "application/json", b'{"refuse": "we do not speak of war"}'
    if "fail" in text:
        return 500, "text/plain", b"oh"
    if "dawdle" in text:
        time.sleep(1.5)
    if "peace" in text:
        body = {**data["body"], "messages": [{"role": "user", "content": "peace indeed"}], "model": "far"}
        return 200, "application/json", json.dumps({"body": body}).encode()
    return 200, "application/json", b"{}"


@pytest.fixture(scope="module")
def model() -> Iterator[Recorder]:
    with model_server(SAID).running() as recorder:
        yield recorder


@pytest.fixture(scope="module")
def hooks() -> Iterator[Recorder]:
    with Recorder(hook).running() as recorder:
        yield recorder


@pytest.fixture(scope="module")
def example(model: Recorder) -> Iterator[GatewayProcess]:
    settings = EXAMPLE.read_text(encoding="utf-8") + endpoint("one", model.url, model="good", kind="openai")
    with gateway(settings) as process:
        yield process


@pytest.fixture(scope="module")
def hooked(
    model: Recorder, hooks: Recorder, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[GatewayProcess]:
    secret = tmp_path_factory.mktemp("secrets") / "hook"
    secret.write_text("s3cret", encoding="utf-8")
    keys = f'hosts = ["127.0.0.1"]\nsecret = "file:{secret}"\ntimeout = "500ms"\n'
    settings = f"""
[[gateway.pipeline]]
use = "route"
models = ["near"]
to = "far"
longer_than = 200
[[gateway.pipeline]]
use = "hook"
models = ["near"]
url = "{hooks.url}/look?at=door"
{keys}
[[worker.pipeline]]
use = "hook"
url = "{hooks.url}/work"
on_failure = "pass"
{keys}
[[collector.pipeline]]
use = "hook"
url = "{hooks.url}/end"
{keys}
[[collector.pipeline]]
use = "redact"
patterns = ["email"]
"""
    endpoints = endpoint("one", model.url, model="near", kind="openai")
    endpoints += endpoint("two", model.url, model="far", kind="openai")
    with gateway(settings + endpoints) as process:
        yield process


def chat(user: User, **more: object) -> Answer:
    return user.ask("POST", "/v1/chat/completions", {**BODY, **more})


def new_user(door: GatewayProcess, name: str) -> User:
    assert door.weir("users", "add", name).returncode == 0
    return User(door.url, door.weir("keys", "create", name).stdout.strip())


def ledger(door: GatewayProcess, user: str) -> list[tuple[str, str, str, str]]:
    """Return endpoint, input and output tokens and source of a user's requests, oldest first."""
    lines = door.weir("usage", "--by", "request", "--user", user).stdout.splitlines()
    head, *rows = [line.split(",") for line in lines]
    at = [head.index(name) for name in ("endpoint", "input_tokens", "output_tokens", "source")]
    return [(row[at[0]], row[at[1]], row[at[2]], row[at[3]]) for row in rows]


def content(answer: Answer) -> str:
    assert answer.status == 200, answer.body
    return str(answer.json()["choices"][0]["message"]["content"])


def test_the_example_redacts_both_ways_and_tells_the_same_again_without_a_model(
    example: GatewayProcess, model: Recorder
) -> None:
    ada, bob = new_user(example, "ada"), new_user(example, "bob")
    before = len(model.sent)
    first, again = chat(ada), chat(ada)
    assert (content(first), content(again)) == (CLEAN, CLEAN)
    assert [one.headers["x-weir-cache"] for one in (first, again)] == ["miss", "hit"]
    assert first.headers["x-request-id"] != again.headers["x-request-id"]
    (sent,) = model.sent[before:]
    assert [message["content"] for message in sent.body["messages"]] == [
        "Answer in plain English, in one sentence.",
        "I am [email]. Who are you?",
    ]
    assert sent.body["metadata"]["request"] == first.headers["x-request-id"]
    assert sent.body["metadata"]["user"].startswith("user_")
    assert chat(bob).headers["x-weir-cache"] == "miss"
    assert chat(ada, max_tokens=9).headers["x-weir-cache"] == "miss"
    assert len(model.sent) == before + 3
    rows = waiting(lambda: found if len(found := ledger(example, "ada")) == 3 else None, "three rows")
    assert rows == [("one", "7", "3", "server"), ("cache", "0", "0", "server"), ("one", "7", "3", "server")]
    text = User(example.url, example.key).ask("GET", "/metrics").body.decode()
    assert 'weir_gateway_processed_total{outcome="answered",stage="gateway",use="cache"}' in text


def test_a_stream_is_redacted_across_its_chunks_and_kept_whole(
    example: GatewayProcess, model: Recorder
) -> None:
    client = example.client(new_user(example, "cy").key)
    before = len(model.sent)
    told: list[tuple[str, str | None]] = []
    for _ in range(2):
        raw = client.chat.completions.with_raw_response.create(model="good", messages=MESSAGES, stream=True)
        chunks = list(raw.parse())
        text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
        assert chunks[-1].choices[0].finish_reason == "stop"
        told.append((text, raw.headers.get("x-weir-cache")))
    assert told == [(CLEAN, "miss"), (CLEAN, "hit")]
    assert len(model.sent) == before + 1
    with pytest.raises(openai.BadRequestError, match="log probabilities would show"):
        client.chat.completions.create(model="good", messages=MESSAGES, logprobs=True)


def test_queued_requests_pass_the_workers_pipeline(example: GatewayProcess, model: Recorder) -> None:
    dan = new_user(example, "dan")
    before = len(model.sent)
    for mode in ("stream", "single"):
        used: list[tuple[int, int]] = []
        for _ in range(2):
            request = str(dan.ask("POST", "/v1/requests", {**BODY, "mode": mode}).json()["request_id"])
            told = dan.until(request, "completed")
            assert told["result"]["choices"][0]["message"]["content"] == CLEAN
            used.append((told["token_usage"]["prompt_tokens"], told["token_usage"]["completion_tokens"]))
            events = dan.poll(request)
            assert [event["seq"] for event in events] == list(range(len(events)))
            assert "example.org" not in json.dumps(events)
        assert used == [(7, 3), (0, 0)]
    assert len(model.sent) == before + 2
    assert "ada@" not in json.dumps([sent.body for sent in model.sent[before:]])
    # With an idempotency key a direct request is answered by the worker, too.
    assert content(dan.ask("POST", "/v1/chat/completions", BODY, idempotency_key="k")) == CLEAN


def test_responses_and_batches_pass_it_too(example: GatewayProcess, model: Recorder) -> None:
    client = example.client(new_user(example, "gus").key)
    before = len(model.sent)
    assert client.responses.create(model="good", input=ASKED).output_text == CLEAN
    line = {"custom_id": "one", "method": "POST", "url": "/v1/chat/completions", "body": {**BODY, "seed": 4}}
    file = client.files.create(file=("lines.jsonl", json.dumps(line).encode()), purpose="batch")
    batch = client.batches.create(
        input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h"
    )

    def done() -> str | None:
        now = client.batches.retrieve(batch.id)
        return now.output_file_id if now.status == "completed" else None

    text = client.files.content(waiting(done, "the batch is done")).text
    assert json.loads(text)["response"]["body"]["choices"][0]["message"]["content"] == CLEAN
    asked = json.dumps([sent.body["messages"] for sent in model.sent[before:]])
    assert "[email]" in asked
    assert "ada@" not in asked


def test_a_conversation_is_kept_as_the_model_was_told_it(example: GatewayProcess, model: Recorder) -> None:
    client = example.client(new_user(example, "zoe").key)
    tool: Any = {
        "type": "function",
        "name": "mail",
        "description": "Mails zoe@example.com.",
        "parameters": {},
        "strict": False,
    }
    first = client.responses.create(
        model="good", input="I am zoe@example.com.", instructions="Obey zoe@example.com.", tools=[tool]
    )
    given: Any = [
        {"type": "function_call", "call_id": "c1", "name": "mail", "arguments": '{"to":"zoe@example.com"}'},
        {"type": "function_call_output", "call_id": "c1", "output": "sent to zoe@example.com"},
    ]
    second = client.responses.create(model="good", input=given, previous_response_id=first.id)
    events = list(
        client.responses.create(model="good", input="?", previous_response_id=second.id, stream=True)
    )
    said = [message["content"] for message in model.sent[-1].body["messages"]]
    # The system message is the template's; instructions are for one response alone.
    assert said[1:] == ["I am [email].", CLEAN, None, "sent to [email]", CLEAN, "?"]
    assert client.responses.retrieve(first.id).instructions == "Obey [email]."
    shown = [first, second, client.responses.retrieve(second.id), *events]
    shown += [item for each in (first, second) for item in client.responses.input_items.list(each.id)]
    texts = "".join(each.to_json() for each in shown)
    assert "I am [email]." in texts
    stored = b"".join(path.read_bytes() for path in example.home.glob("gateway.db*"))
    assert b"Obey [email]." in stored
    assert "zoe@" not in texts + json.dumps([sent.body for sent in model.sent])
    assert b"zoe@" not in stored


def test_a_hook_changes_refuses_and_is_not_waited_for_too_long(
    hooked: GatewayProcess, hooks: Recorder, model: Recorder
) -> None:
    user = new_user(hooked, "eve")

    def say(text: str, model: str = "near") -> Answer:
        return chat(user, model=model, messages=[{"role": "user", "content": text}])

    assert content(say("hello")) == SAID
    refused = say("of war")
    assert (refused.status, refused.json()["error"]["code"]) == (403, "forbidden")
    assert refused.json()["error"]["message"].startswith("we do not speak of war")
    assert content(say("of peace")) == SAID
    assert (model.sent[-1].body["model"], model.sent[-1].body["messages"][0]["content"]) == (
        "far",
        "peace indeed",
    )
    for text in ("fail", "dawdle"):
        failed = say(text)
        assert (failed.status, failed.json()["error"]["code"]) == (503, "unavailable")
        assert "retry-after" in failed.headers
    # A long one is for the other model, and the hook is not asked about that one.
    asked = len(hooks.sent)
    assert content(say("of war " * 50)) == SAID
    assert model.sent[-1].body["model"] == "far"
    assert len(hooks.sent) == asked
    last = next(sent for sent in hooks.sent if sent.path == "/look?at=door")
    signed = f"{last.headers['webhook-id']}.{last.headers['webhook-timestamp']}.".encode()
    signed += json.dumps(last.body, separators=(",", ":")).encode()
    expected = base64.b64encode(hmac.new(b"s3cret", signed, hashlib.sha256).digest()).decode()
    assert last.headers["webhook-signature"] == f"v1,{expected}"
    assert last.body["data"]["user"].startswith("user_")


def test_hooks_at_work_and_at_the_end(hooked: GatewayProcess, hooks: Recorder) -> None:
    user = new_user(hooked, "fay")

    def queue(text: str) -> Any:  # noqa: ANN401 - tests look into it
        body = {"model": "far", "messages": [{"role": "user", "content": text}], "mode": "stream"}
        request = str(user.ask("POST", "/v1/requests", body).json()["request_id"])
        return user.until(request, "completed", "failed")

    refused = queue("of war")
    assert (refused["status"], refused["error"]["code"]) == ("failed", "forbidden")
    passed = queue("fail")
    assert passed["status"] == "completed"
    ends = {sent.body["data"]["id"]: sent.body["data"] for sent in hooks.sent if sent.path == "/end"}
    assert ends[passed["id"]]["token_usage"]["completion_tokens"] == 3
    assert ends[refused["id"]]["status"] == "failed"
    # The hook stands before the redaction, and what is filed behind it.
    assert "bob@" in json.dumps(ends[passed["id"]]["result"])
    assert passed["result"]["choices"][0]["message"]["content"] == SAID.replace("bob@example.org", "[email]")


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ('use = "cache"\nttll = "1m"', "(cache): ttll: unknown key; did you mean 'ttl'?"),
        ('use = "redact"\npatterns = ["email"]\nanswers = true', "redact answers in [[worker.pipeline]] too"),
    ],
)
def test_settings_that_cannot_be_used_are_one_line_at_the_start(
    tmp_path: Path, settings: str, reason: str
) -> None:
    file = tmp_path / "weir.toml"
    file.write_text(
        f"[[gateway.pipeline]]\n{settings}\n{endpoint('a', 'http://127.0.0.1:1')}", encoding="utf-8"
    )
    done = subprocess.run(
        [sys.executable, "-m", "tokenweir", "--config", str(file), "up", "--port", "0"],
        env=child_environment({"WEIR_HOME": str(tmp_path)}),
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
    )
    assert done.returncode == 2
    assert reason in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
