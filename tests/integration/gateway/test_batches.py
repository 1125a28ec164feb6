from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import secrets
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from openai import OpenAI
from openai.types import Batch
from openai.types.chat import ChatCompletion
from tests.factories.gateways import GatewayProcess, endpoint, gateway
from tests.factories.members import allow, charged, key_of, member, revoke
from tests.factories.queued import ASK, User, named_routes, newest, waiting

from tokenweir.access.directory import Directory
from tokenweir.core.clock import SystemClock
from tokenweir.core.ids import new_id, parse_id
from tokenweir.gateway.batches.state import BatchState, seal
from tokenweir.gateway.queued.sealing import Sealer
from tokenweir.ports.batches import BatchRecord
from tokenweir.sim.process import SimProcess
from tokenweir.stores.gateway.sqlite.batches import SqliteBatches
from tokenweir.stores.gateway.sqlite.database import Database

LINES_AT_ONCE = 4
CHAT = "/v1/chat/completions"


@pytest.fixture(scope="module")
def sim() -> Iterator[SimProcess]:
    with SimProcess(ttft="constant:5ms", itl="constant:1ms") as process:
        yield process


@pytest.fixture(scope="module")
def settings(seal_key: str) -> str:
    return f"""
[gateway]
seal_keys = ["{seal_key}"]
batch_lines = {LINES_AT_ONCE}
[worker]
attempts = 2
backoff = "10ms"
"""


@pytest.fixture(scope="module")
def door(endpoints: str, settings: str) -> Iterator[GatewayProcess]:
    with gateway(settings + endpoints) as process:
        yield process


def chat_line(name: str, *, model: str = "sim", tokens: int = 3, **more: object) -> dict[str, object]:
    body = {"model": model, "messages": ASK, "max_tokens": tokens, **more}
    return {"custom_id": name, "method": "POST", "url": CHAT, "body": body}


def jsonl(*lines: object) -> bytes:
    return b"".join(
        (line if isinstance(line, bytes) else json.dumps(line).encode()) + b"\n" for line in lines
    )


def sent(client: OpenAI, data: bytes, endpoint: Any = CHAT, **more: Any) -> Batch:  # noqa: ANN401
    file = client.files.create(file=("batch.jsonl", data), purpose="batch")
    return client.batches.create(input_file_id=file.id, endpoint=endpoint, completion_window="24h", **more)


def until(client: OpenAI, batch: Batch | str, *states: str) -> Batch:
    def look() -> Batch | None:
        found = client.batches.retrieve(batch if isinstance(batch, str) else batch.id)
        return found if found.status in states else None

    return waiting(look, f"{batch} {states}")


def lines_of(client: OpenAI, file: str | None) -> list[dict[str, Any]]:
    assert file is not None
    return [json.loads(line) for line in client.files.content(file).text.splitlines()]


def counts_of(batch: Batch) -> tuple[int, int, int]:
    counts = batch.request_counts
    assert counts is not None
    return counts.total, counts.completed, counts.failed


def seen(sim: SimProcess, what: str) -> int:
    value = sim.truth()[what]
    assert isinstance(value, int)
    return value


def test_a_batch_is_worked_through_in_order(client: OpenAI, sim: SimProcess) -> None:
    lines = [chat_line(f"line {n}", tokens=n + 1) for n in range(30)]
    batch = sent(client, b"\n" + jsonl(*lines) + b"\n  \n", metadata={"a": "b"})
    assert batch.status in {"validating", "in_progress"}
    done = until(client, batch, "completed", "failed")
    assert (done.status, done.errors, counts_of(done)) == ("completed", None, (30, 30, 0))
    assert (done.metadata, done.model, done.error_file_id) == ({"a": "b"}, "sim", None)
    assert None not in (done.in_progress_at, done.finalizing_at, done.completed_at)
    out = lines_of(client, done.output_file_id)
    assert [line["custom_id"] for line in out] == [line["custom_id"] for line in lines]
    answers = [ChatCompletion.model_validate(line["response"]["body"]) for line in out]
    assert all(line["response"]["status_code"] == 200 for line in out)
    assert [answer.usage.completion_tokens for answer in answers if answer.usage] == list(range(1, 31))
    assert done.usage is not None
    assert done.usage.output_tokens == sum(range(1, 31))
    assert len({line["id"] for line in out}) == 30
    file = client.files.retrieve(done.output_file_id or "")
    assert (file.purpose, file.expires_at is not None) == ("batch_output", True)
    # No more at once than the settings allow.
    assert seen(sim, "max_running") <= LINES_AT_ONCE


@pytest.mark.parametrize(
    ("endpoint", "body", "path"),
    [
        ("/v1/completions", {"prompt": "x", "max_tokens": 2}, ("choices", 0, "text")),
        ("/v1/embeddings", {"input": "x"}, ("data", 0, "embedding")),
        ("/v1/responses", {"input": "x", "max_output_tokens": 2}, ("output", 0, "content", 0, "text")),
    ],
)
def test_each_endpoint_has_its_answers(
    client: OpenAI, endpoint: str, body: dict[str, object], path: tuple[str | int, ...]
) -> None:
    line = {"custom_id": "a", "method": "POST", "url": endpoint, "body": {"model": "sim", **body}}
    done = until(client, sent(client, jsonl(line), endpoint), "completed", "failed")
    assert done.status == "completed", done.errors
    (out,) = lines_of(client, done.output_file_id)
    told = found = out["response"]["body"]
    for step in path:
        found = found[step]
    assert found
    if endpoint == "/v1/responses":
        assert client.responses.retrieve(told["id"]).to_dict() == told


def test_bad_lines_are_told_by_their_number_and_none_is_sent(client: OpenAI, user: User) -> None:
    before = newest(user)
    data = jsonl(
        chat_line("good"),
        b"{no json",
        chat_line("good"),
        {**chat_line("a"), "method": "GET"},
        {**chat_line("b"), "url": "/v1/embeddings"},
        chat_line("c", model="absent"),
        chat_line("d", stream=True),
        {"custom_id": "e", "method": "POST", "url": CHAT},
        chat_line("f", max_tokens="many"),
        {"custom_id": "g", "method": "POST", "url": CHAT, "body": {"model": "sim"}},
        b'["list"]',
        {**chat_line("h"), "custom_id": 7},
    )
    done = until(client, sent(client, data), "completed", "failed")
    assert (done.status, counts_of(done), done.output_file_id) == ("failed", (0, 0, 0), None)
    assert done.errors is not None
    assert [(error.line, error.code, error.param) for error in done.errors.data or ()] == [
        (2, "invalid_json_line", "line"),
        (3, "duplicate_custom_id", "custom_id"),
        (4, "invalid_method", "method"),
        (5, "mismatched_endpoint", "url"),
        (6, "not_found", None),
        (7, "unsupported_parameter", "body.stream"),
        (8, "missing_required_parameter", "body"),
        (9, "invalid_type", "max_tokens"),
        (10, "missing_required_parameter", "body.messages"),
        (11, "invalid_json_line", "line"),
        (12, "invalid_type", "custom_id"),
    ]
    assert newest(user) == before
    empty = until(client, sent(client, b"\n\n"), "failed")
    assert empty.errors is not None
    assert [error.code for error in empty.errors.data or ()] == ["empty_file"]


def test_lines_that_fail_are_in_a_file_of_their_own(client: OpenAI) -> None:
    batch = sent(client, jsonl(chat_line("a"), chat_line("b", model="broken"), chat_line("c")))
    done = until(client, batch, "completed", "failed")
    assert (done.status, counts_of(done)) == ("completed", (3, 2, 1))
    assert [line["custom_id"] for line in lines_of(client, done.output_file_id)] == ["a", "c"]
    (bad,) = lines_of(client, done.error_file_id)
    assert (bad["custom_id"], bad["response"]["status_code"]) == ("b", 503)
    assert bad["response"]["body"]["error"]["message"]


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"endpoint": CHAT, "completion_window": "24h"}, "input_file_id"),
        ({"input_file_id": "file_none", "endpoint": CHAT, "completion_window": "24h"}, "input_file_id"),
        ({"input_file_id": "OTHER", "endpoint": CHAT, "completion_window": "24h"}, "input_file_id"),
        ({"input_file_id": "x", "endpoint": "/v1/moderations", "completion_window": "24h"}, "endpoint"),
        ({"input_file_id": "x", "endpoint": CHAT, "completion_window": "1h"}, "completion_window"),
        ({"input_file_id": "x", "endpoint": CHAT, "completion_window": "24h", "more": 1}, "more"),
        (
            {"input_file_id": "x", "endpoint": CHAT, "completion_window": "24h", "metadata": {"a": 1}},
            "metadata[...]",
        ),
    ],
)
def test_a_batch_that_cannot_be_is_refused(
    client: OpenAI, user: User, body: dict[str, object], param: str
) -> None:
    if body.get("input_file_id") == "OTHER":
        body = {**body, "input_file_id": client.files.create(file=("a", b"x"), purpose="user_data").id}
    answer = user.ask("POST", "/v1/batches", body)
    assert (answer.status, answer.json()["error"]["param"]) == (400, param)


def test_a_cancelled_batch_keeps_what_was_done(client: OpenAI, slow: SimProcess) -> None:
    lines = [chat_line("quick"), *(chat_line(f"slow {n}", model="slow", tokens=2000) for n in range(40))]
    batch = sent(client, jsonl(*lines))
    waiting(lambda: counts_of(client.batches.retrieve(batch.id))[1] or None, "the quick line is done")
    assert client.batches.cancel(batch.id).status == "cancelling"
    done = until(client, batch, "cancelled")
    assert None not in (done.cancelling_at, done.cancelled_at)
    assert [line["custom_id"] for line in lines_of(client, done.output_file_id)] == ["quick"]
    stopped = lines_of(client, done.error_file_id)
    assert 0 < len(stopped) <= LINES_AT_ONCE
    assert {line["error"]["code"] for line in stopped} == {"batch_cancelled"}
    assert slow.truth()["running"] == 0
    assert client.batches.cancel(batch.id).status == "cancelled"


def test_limits_hold_for_batches_which_wait_for_room(door: GatewayProcess) -> None:
    client = door.client(member(door, "limited", requests=5))
    batch = sent(client, jsonl(*(chat_line(f"{n}") for n in range(8))))
    waiting(lambda: counts_of(client.batches.retrieve(batch.id))[1] == 5 or None, "five lines are done")
    with pytest.raises(openai.RateLimitError):
        client.chat.completions.create(model="sim", messages=[{"role": "user", "content": "x"}])
    assert client.batches.retrieve(batch.id).status == "in_progress"
    allow(door, "limited", 20)
    assert counts_of(until(client, batch, "completed")) == (8, 8, 0)


def test_the_batch_of_a_revoked_key_is_stopped(door: GatewayProcess) -> None:
    client = door.client(member(door, "leaver"))
    batch = sent(client, jsonl(*(chat_line(f"{n}", model="slow", tokens=500) for n in range(30))))
    until(client, batch, "in_progress")
    revoke(door, "leaver")
    other = door.client(key_of(door, "leaver"))
    done = until(other, batch, "cancelled", "completed")
    assert done.status == "cancelled"
    assert done.errors is not None
    assert [error.code for error in done.errors.data or ()] == ["key_revoked"]


def test_the_same_key_and_body_is_the_same_batch(client: OpenAI) -> None:
    file = client.files.create(file=("batch.jsonl", jsonl(chat_line("a"))), purpose="batch")

    def create(**more: Any) -> Batch:  # noqa: ANN401
        headers = {"Idempotency-Key": "batch"}
        return client.batches.create(
            input_file_id=file.id, endpoint=CHAT, completion_window="24h", extra_headers=headers, **more
        )

    first = create()
    assert create().id == first.id
    with pytest.raises(openai.ConflictError):
        create(metadata={"a": "b"})
    until(client, first, "completed")
    client.files.delete(file.id)
    assert create().id == first.id


def test_a_stranger_sees_no_batches(door: GatewayProcess, stranger: User) -> None:
    client = door.client(member(door, "owner"))
    names = [until(client, sent(client, jsonl(chat_line("a"))), "completed") for _ in range(3)]
    for method, path in named_routes("/v1/batches/", 2):
        assert stranger.ask(method, path.replace("{id}", names[0].id)).status == 404, path
    assert stranger.ask("GET", f"/v1/files/{names[0].output_file_id}/content").status == 404
    assert stranger.ask("GET", "/v1/batches").json()["data"] == []
    body = {"input_file_id": names[0].input_file_id, "endpoint": CHAT, "completion_window": "24h"}
    assert stranger.ask("POST", "/v1/batches", body).status == 400
    assert [batch.id for batch in client.batches.list(limit=2)] == [batch.id for batch in names[::-1]]


def metrics(door: GatewayProcess) -> dict[str, float]:
    """Return what a gateway tells of batches."""
    lines = User(door.url, door.key).ask("GET", "/metrics").body.decode().splitlines()
    parts = [line.rpartition(" ") for line in lines if line.startswith("weir_batch")]
    return {name: float(value) for name, _, value in parts}


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_a_batch_goes_on_with_the_next_gateway_and_takes_no_line_on_twice(
    settings: str, how: signal.Signals
) -> None:
    with (
        SimProcess(ttft="constant:100ms", itl="constant:1ms") as own,
        gateway(settings + endpoint("one", own.url)) as door,
    ):
        client = door.client()
        batch = sent(client, jsonl(*(chat_line(f"{n}") for n in range(60))))
        waiting(lambda: seen(own, "requests") >= 12 or None, "some lines are done")
        before = metrics(door)
        assert (before["weir_batches_open"], before['weir_batches{status="in_progress"}']) == (1, 1)
        counted = before['weir_batch_lines_total{outcome="completed"}']
        assert 12 - LINES_AT_ONCE <= counted < 60
        status = door.stop(how)
        assert status == (0 if how is signal.SIGTERM else -how)
        assert seen(own, "received") < 60
        door.start()
        client = door.client()
        done = until(client, batch, "completed", "failed")
        assert (done.status, counts_of(done)) == ("completed", (60, 60, 0))
        out = lines_of(client, done.output_file_id)
        assert [line["custom_id"] for line in out] == [f"{n}" for n in range(60)]
        assert sorted(charged(door)) == sorted(line["response"]["request_id"] for line in out)
        after = metrics(door)
        assert (after["weir_batches_open"], after['weir_batches_ended_total{status="completed"}']) == (0, 1)
        assert sum(value for name, value in after.items() if name.startswith("weir_batches{")) == 0
        # A line is counted by who saw it end, and by both at most where the first was killed just then.
        assert 0 < after['weir_batch_lines_total{outcome="completed"}'] <= 60 - counted + LINES_AT_ONCE
        assert after['weir_batch_lines_total{outcome="failed"}'] == 0
        # Only what was in flight when it was killed is asked of the endpoint once more.
        assert seen(own, "received") <= 60 + (LINES_AT_ONCE if how is signal.SIGKILL else 0)


async def taken_in(door: GatewayProcess, state: BatchState, batch: bytes) -> None:
    """Put a batch into the stores of a gateway that does not run, as if it had been made some time ago."""
    with contextlib.closing(Directory(f"sqlite:///{door.home}/access.db")) as directory:
        (key,) = directory.keys()
    with contextlib.closing(Database(f"sqlite:///{door.home}/gateway.db")) as database:
        record = BatchRecord(
            batch=batch,
            user=key.user,
            key=key.id,
            at=time.time_ns(),
            digest=b"",
            state=seal(Sealer(), batch, state),
        )
        await SqliteBatches(database, SystemClock()).create(record)


def test_a_batch_that_is_not_finished_in_time_expires(slow: SimProcess) -> None:
    settings = f"[gateway]\nbatch_lines = {LINES_AT_ONCE}\n"
    with gateway(settings + endpoint("slow", slow.url, model="slow")) as door:
        client = door.client()
        lines = [chat_line(f"{n}", model="slow", tokens=2000) for n in range(10)]
        file = client.files.create(file=("batch.jsonl", jsonl(*lines)), purpose="batch")
        assert door.stop() == 0
        state = BatchState(
            endpoint=CHAT,
            input_file=file.id,
            expires_at=time.time_ns() + 4_000_000_000,
            keeps_ns=3_600_000_000_000,
        )
        batch = parse_id(new_id("batch"))
        asyncio.run(taken_in(door, state, batch.uuid.to_bytes(16, "big")))
        door.start()
        client = door.client()
        done = until(client, batch.text, "expired", "completed", "failed")
        assert (done.status, counts_of(done), done.output_file_id) == ("expired", (10, 0, 10), None)
        errors = lines_of(client, done.error_file_id)
        assert [line["custom_id"] for line in errors] == [line["custom_id"] for line in lines]
        assert {line["error"]["code"] for line in errors} == {"batch_expired"}
        waiting(lambda: True if slow.truth()["running"] == 0 else None, "the endpoint is idle")


def test_files_and_batches_are_sealed_anew(tmp_path: Path, sim: SimProcess) -> None:
    def settings(*names: str) -> str:
        listed = ", ".join(f'"file:{tmp_path / name}"' for name in names)
        return f"[gateway]\nseal_keys = [{listed}]\n" + endpoint("one", sim.url)

    for name in ("old", "new"):
        (tmp_path / name).write_text(base64.b64encode(secrets.token_bytes(32)).decode(), encoding="ascii")
    with gateway(settings("old")) as door:
        config = door.home / "weir.toml"
        client = door.client()
        file = client.files.create(file=("f", b"x" * 600_000), purpose="user_data")
        batch = until(client, sent(client, jsonl(chat_line("a"))), "completed")
        assert door.stop() == 0
        config.write_text(settings("new", "old"), encoding="utf-8")
        rotated = door.weir("queue", "rotate")
        assert rotated.returncode == 0, rotated.stderr
        config.write_text(settings("new"), encoding="utf-8")
        door.start()
        client = door.client()
        assert client.files.content(file.id).read() == b"x" * 600_000
        assert client.batches.retrieve(batch.id) == batch
        assert len(lines_of(client, batch.output_file_id)) == 1


def test_all_of_it_is_charged_once(door: GatewayProcess, client: OpenAI) -> None:
    done = until(client, sent(client, jsonl(chat_line("a"))), "completed")
    (line,) = lines_of(client, done.output_file_id)
    rows = charged(door)
    assert line["response"]["request_id"] in rows
    assert len(set(rows)) == len(rows)
