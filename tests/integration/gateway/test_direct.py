from __future__ import annotations

import contextlib
import http.client
import json
import signal
import socket
import sqlite3
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit

import openai
import pytest
from openai.types.chat import (
    ChatCompletionChunk,
    ChatCompletionMessageParam,
    ChatCompletionStreamOptionsParam,
)
from tests.factories.gateways import GatewayProcess, endpoint, gateway
from tests.factories.queued import waiting

from tokenweir.access.directory import Directory
from tokenweir.config import child_environment
from tokenweir.sim.process import SimProcess

ASK: list[ChatCompletionMessageParam] = [{"role": "user", "content": "How many rivers?"}]


@pytest.fixture(scope="module")
def sim() -> Iterator[SimProcess]:
    with SimProcess(ttft="constant:5ms", itl="constant:1ms") as process:
        yield process


@pytest.fixture(scope="module")
def door(sim: SimProcess) -> Iterator[GatewayProcess]:
    prices = '[[gateway.prices]]\nmodel = "sim"\ninput = 2\noutput = 6\n'
    with gateway(endpoint("one", sim.url) + prices) as process:
        yield process


def ask(client: openai.OpenAI, *, tokens: int = 5, model: str = "sim") -> str:
    answer = client.chat.completions.create(model=model, messages=ASK, max_tokens=tokens)
    return answer.choices[0].message.content or ""


def stream(client: openai.OpenAI, *, tokens: int, usage: bool = False) -> Iterator[ChatCompletionChunk]:
    options: ChatCompletionStreamOptionsParam = {"include_usage": usage}
    return iter(
        client.chat.completions.create(
            model="sim", messages=ASK, max_tokens=tokens, stream=True, stream_options=options
        )
    )


def post(door: GatewayProcess, path: str, body: bytes, **headers: str) -> tuple[int, dict[str, str], bytes]:
    parts = urlsplit(door.url)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=30)
    try:
        all_headers = {"authorization": f"Bearer {door.key}", "content-type": "application/json", **headers}
        connection.request("POST", path, body, all_headers)
        answer = connection.getresponse()
        return answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read()
    finally:
        connection.close()


def user_key(door: GatewayProcess, name: str, *limits: tuple[str, ...]) -> str:
    assert door.weir("users", "add", name).returncode == 0
    for limit in limits:
        made = door.weir("quotas", "set", *limit, "--user", name)
        assert made.returncode == 0, made.stderr
    return door.weir("keys", "create", name).stdout.strip()


def test_the_official_client_gets_whole_and_streamed_answers_and_embeddings(door: GatewayProcess) -> None:
    client = door.client()
    assert [model.id for model in client.models.list()] == ["sim"]
    assert client.models.retrieve("sim").id == "sim"
    whole = client.chat.completions.create(model="sim", messages=ASK, max_tokens=5)
    assert whole.usage is not None
    assert whole.usage.completion_tokens == 5
    chunks = list(stream(client, tokens=5))
    assert (
        "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == whole.choices[0].message.content
    )
    assert all(chunk.usage is None for chunk in chunks)
    assert client.completions.create(model="sim", prompt="x", max_tokens=3).choices[0].text
    assert len(client.embeddings.create(model="sim", input=["a", "b"]).data) == 2


def test_usage_is_shown_to_those_who_ask_and_charged_to_all(door: GatewayProcess) -> None:
    key = user_key(door, "usage")
    client = door.client(key)
    *_, last = stream(client, tokens=7, usage=True)
    assert last.usage is not None
    assert last.usage.completion_tokens == 7
    ask(client, tokens=4)
    lines = door.weir("usage", "--by", "request", "--user", "usage").stdout.splitlines()[1:]
    rows = [line.split(",") for line in lines]
    assert [(row[7], row[11], row[12]) for row in rows] == [
        ("7", "server", "completed"),
        ("4", "server", "completed"),
    ]
    assert [int(row[9]) for row in rows] == [int(row[6]) * 2 + int(row[7]) * 6 for row in rows]


def test_a_limit_holds_exactly_under_concurrency(door: GatewayProcess) -> None:
    key = user_key(door, "limited", ("20", "requests", "--per", "month"))
    client = door.client(key)

    def one(_: int) -> str:
        try:
            return ask(client, tokens=1)
        except openai.RateLimitError:
            return ""

    with ThreadPoolExecutor(16) as threads:
        outcomes = list(threads.map(one, range(60)))
    assert sum(map(bool, outcomes)) == 20
    with pytest.raises(openai.RateLimitError, match="20 requests in a month") as caught:
        ask(client)
    assert int(caught.value.response.headers["retry-after"]) >= 1
    shown = door.weir("usage", "--by", "request", "--user", "limited").stdout.splitlines()
    assert len(shown) == 21


def test_rate_headers_tell_what_is_left(door: GatewayProcess) -> None:
    key = user_key(
        door, "headers", ("100", "requests", "--per", "day"), ("1000000", "tokens", "--per", "month")
    )
    body = json.dumps({"model": "sim", "messages": ASK, "max_tokens": 3}).encode()
    status, headers, _ = post(door, "/v1/chat/completions", body, authorization=f"Bearer {key}")
    assert status == 200
    assert headers["x-ratelimit-limit-requests"] == "100"
    assert headers["x-ratelimit-remaining-requests"] == "99"
    assert headers["x-ratelimit-limit-tokens"] == "1000000"
    assert headers["x-request-id"].startswith("req_")


def test_a_refusal_tells_what_is_left_too(door: GatewayProcess) -> None:
    key = user_key(door, "refused", ("1", "requests", "--per", "day"))
    body = json.dumps({"model": "sim", "messages": ASK, "max_tokens": 3}).encode()
    assert post(door, "/v1/chat/completions", body, authorization=f"Bearer {key}")[0] == 200
    status, headers, _ = post(door, "/v1/chat/completions", body, authorization=f"Bearer {key}")
    assert status == 429
    assert int(headers["retry-after"]) > 0
    assert headers["x-ratelimit-limit-requests"] == "1"
    assert headers["x-ratelimit-remaining-requests"] == "0"


def test_what_it_keeps_is_for_its_owner_alone(door: GatewayProcess) -> None:
    kept = [path for path in door.home.iterdir() if path.suffix == ".db"]
    assert len(kept) >= 2
    assert {stat.S_IMODE(path.stat().st_mode) for path in kept} == {0o600}


@pytest.mark.parametrize(
    ("path", "body", "status", "code"),
    [
        ("/v1/chat/completions", b"{", 400, "invalid_json"),
        ("/v1/chat/completions", b"[]", 400, "invalid_type"),
        ("/v1/chat/completions", b'{"messages":[]}', 400, "missing_required_parameter"),
        ("/v1/chat/completions", b'{"model":"sim","max_tokens":0}', 400, "invalid_value"),
        ("/v1/chat/completions", b'{"model":"nope","messages":[]}', 404, "not_found"),
        (
            "/v1/chat/completions",
            b'{"model":"sim","messages":"x"' + b" " * (9 << 20) + b"}",
            413,
            "body_too_large",
        ),
        ("/v1/nothing", b"{}", 404, "unknown_path"),
        ("/v1/models", b"{}", 405, "method_not_allowed"),
    ],
)
def test_bad_requests_are_told_in_openais_body_with_the_mend(
    door: GatewayProcess, path: str, body: bytes, status: int, code: str
) -> None:
    try:
        answered, _, told = post(door, path, body)
    except (BrokenPipeError, ConnectionResetError):
        # The server closed before all of a body that is too long was sent.
        assert code == "body_too_large"
        return
    error = json.loads(told)["error"]
    assert (answered, error["code"]) == (status, code)
    assert error["mend"]
    assert error["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    ("path", "mend"),
    [
        ("/chat/completions", "did you mean '/v1/chat/completions'?"),
        ("/v1/chat/completion", "did you mean '/v1/chat/completions'?"),
        ("/v1/audio/speech", "GET /openapi.json tells the paths there are"),
    ],
)
def test_a_path_that_is_not_there_is_told_the_nearest(door: GatewayProcess, path: str, mend: str) -> None:
    status, _, told = post(door, path, b"{}")
    assert (status, json.loads(told)["error"]["mend"]) == (404, mend)


def test_a_start_that_fails_does_not_use_up_the_first_key(tmp_path: Path, sim: SimProcess) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        process = GatewayProcess(tmp_path, endpoint("one", sim.url))
        failed = process.weir("up", "--port", str(taken.getsockname()[1]))
        assert (failed.returncode, failed.stdout) == (2, "")
    try:
        process.start()
        assert ask(process.client())
    finally:
        process.stop()


@pytest.mark.parametrize("at", ["new", "new/below"])
def test_a_first_start_makes_the_directory_of_its_data(tmp_path: Path, sim: SimProcess, at: str) -> None:
    settings = tmp_path / "weir.toml"
    settings.write_text(endpoint("one", sim.url), encoding="utf-8")
    command = [sys.executable, "-m", "tokenweir", "--config", str(settings), "up", "--port", "0"]
    home = child_environment({"WEIR_HOME": str(tmp_path / at)})
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=home) as started:
        assert started.stdout is not None
        assert "ready" in started.stdout.readline()
        started.terminate()
        assert "key     weir_" in started.stdout.read()


def test_keys_that_do_not_count_are_refused(door: GatewayProcess) -> None:
    for key in ("weir_x", "sk-123", door.key[:-1] + ("A" if door.key[-1] != "A" else "B")):
        with pytest.raises(openai.AuthenticationError):
            door.client(key).models.list()
    assert door.key not in door.log().replace(f"key     {door.key}", "")


def test_a_revoked_key_is_out_within_a_second(door: GatewayProcess) -> None:
    key = user_key(door, "revoked")
    client = door.client(key)
    ask(client)
    listed = door.weir("keys", "list", "--user", "revoked").stdout
    key_id = listed.splitlines()[1].split()[0]
    done = threading.Event()
    refused = threading.Event()

    def until_refused() -> None:
        while not done.is_set():
            try:
                ask(client, tokens=1)
            except openai.AuthenticationError:
                refused.set()
                return

    thread = threading.Thread(target=until_refused)
    thread.start()
    try:
        assert door.weir("keys", "revoke", key_id).returncode == 0
        assert refused.wait(10)
    finally:
        done.set()
        thread.join()


def test_a_model_the_key_may_not_ask_is_neither_listed_nor_answered(door: GatewayProcess) -> None:
    assert door.weir("users", "add", "narrow").returncode == 0
    # A key may be for a model that is served no more.
    directory = Directory(f"sqlite:///{door.home / 'access.db'}")
    _, key = directory.issue("narrow", "", models=("other",))
    directory.close()
    client = door.client(key)
    assert list(client.models.list()) == []
    with pytest.raises(openai.PermissionDeniedError, match="other"):
        ask(client)


def test_a_client_that_leaves_cancels_at_the_endpoint_and_is_charged_what_came() -> None:
    with (
        SimProcess(ttft="constant:1ms", itl="constant:20ms") as slow,
        gateway(endpoint("slow", slow.url)) as door,
    ):
        parts = urlsplit(door.url)
        body = json.dumps({"model": "sim", "messages": ASK, "max_tokens": 2000, "stream": True}).encode()
        with socket.create_connection((parts.hostname or "", parts.port or 0), timeout=30) as raw:
            head = (
                f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {door.key}\r\n"
                f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
            )
            raw.sendall(head.encode() + body)
            received = b""
            while received.count(b"data:") < 5:
                received += raw.recv(65536)
        # The gateway stops once every request is settled.
        assert door.stop() == 0
        assert slow.truth()["running"] == 0
        (row,) = [line.split(",") for line in door.weir("usage", "--by", "request").stdout.splitlines()[1:]]
        assert row[11:13] == ["estimated", "cancelled"]
        assert 1 <= int(row[7]) < 200
        assert door.weir("quotas", "verify").returncode == 0


def test_another_endpoint_answers_when_one_is_gone(sim: SimProcess) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        dead = f"http://127.0.0.1:{taken.getsockname()[1]}"
    with gateway(endpoint("dead", dead) + endpoint("alive", sim.url)) as door:
        client = door.client()
        for _ in range(10):
            assert ask(client)
        rows = door.weir("usage", "--by", "request").stdout.splitlines()[1:]
        assert [row.split(",")[5] for row in rows] == ["alive"] * 10


def test_an_error_of_the_endpoint_is_passed_on_and_nothing_charged() -> None:
    with SimProcess(faults=("429@every=1",)) as busy, gateway(endpoint("busy", busy.url)) as door:
        with pytest.raises(openai.RateLimitError):
            ask(door.client())
        (row,) = [line.split(",") for line in door.weir("usage", "--by", "request").stdout.splitlines()[1:]]
        assert (row[6], row[7], row[12]) == ("0", "0", "failed")


def test_a_killed_gateway_charges_the_estimate_of_what_was_open(sim: SimProcess) -> None:
    settings = endpoint("one", sim.url) + '[gateway]\nreservation_lease = "1s"\n'
    with (
        SimProcess(ttft="constant:30s") as stuck,
        gateway(settings + endpoint("stuck", stuck.url, model="stuck")) as door,
    ):
        key = user_key(door, "crash", ("1000000", "tokens", "--per", "day"))
        ask(door.client(key))
        with ThreadPoolExecutor(1) as thread:
            hanging = thread.submit(lambda: ask(door.client(key), model="stuck", tokens=50))
            assert stuck_has_it(stuck)
            assert is_reserved(door)
            door.stop(signal.SIGKILL)
            with pytest.raises(openai.APIConnectionError):
                hanging.result(30)
        door.start()
        rows = wait_for_rows(door, 2)
        assert sorted(row[11] for row in rows) == ["estimated", "server"]
        (estimated,) = [row for row in rows if row[11] == "estimated"]
        assert int(estimated[6]) > 50
        assert door.stop() == 0
        assert door.weir("quotas", "verify").returncode == 0


def stuck_has_it(sim: SimProcess) -> bool:
    """Wait until the simulator has a request in hand."""
    for _ in range(3000):
        truth = sim.truth()
        if truth["running"] or truth["waiting"]:
            return True
    return False


def is_reserved(door: GatewayProcess) -> bool:
    """Wait until a reservation is in the file: it is written while the endpoint works."""
    with contextlib.closing(sqlite3.connect(f"file:{door.home / 'gateway.db'}?mode=ro", uri=True)) as file:
        return any(
            file.execute("SELECT count(*) FROM gateway_reservations").fetchone()[0] for _ in range(100_000)
        )


def wait_for_rows(door: GatewayProcess, count: int) -> list[list[str]]:
    """Read the ledger until it has so many rows."""
    rows: list[list[str]] = []
    for _ in range(60):
        rows = [line.split(",") for line in door.weir("usage", "--by", "request").stdout.splitlines()[1:]]
        if len(rows) >= count:
            break
    return rows


def test_sigterm_lets_a_stream_finish_and_refuses_new_connections() -> None:
    with (
        SimProcess(ttft="constant:1ms", itl="constant:20ms") as slow,
        gateway(endpoint("slow", slow.url)) as door,
    ):
        client = door.client()
        answer = stream(client, tokens=50)
        pieces = [next(answer)]
        door.signal(signal.SIGTERM)
        pieces.extend(answer)
        assert pieces[-1].choices[0].finish_reason == "length"
        assert door.wait() == 0
        with pytest.raises(openai.APIConnectionError):
            client.models.list()


def test_settings_that_cannot_be_used_are_one_line_and_leave_nothing(door: GatewayProcess) -> None:
    told = door.weir("up", "--port", "99999")
    assert told.returncode == 2
    assert len(told.stderr.strip().splitlines()) == 1
    taken = door.weir("up", "--port", str(urlsplit(door.url).port))
    assert taken.returncode == 2
    assert "another process has the gateway's database" in taken.stderr or "is in use" in taken.stderr


def test_a_database_that_was_moved_away_keeps_the_door_shut_until_it_is_back(sim: SimProcess) -> None:
    with gateway(endpoint("one", sim.url)) as process, ThreadPoolExecutor(1) as pool:
        client = process.client()
        ask(client)
        # An answer may be there before its row: the loss must not be seen by that.
        waiting(lambda: True if charged(process) == 1 else None, "the first answer is charged")
        away = process.home / "away"
        away.mkdir()
        database = [path for path in process.home.iterdir() if path.name.startswith("gateway.db")]
        assert database
        for path in database:
            path.rename(away / path.name)
        # Its tokens are spent when the loss is seen: it waits until they can be charged.
        spent = pool.submit(ask, client)
        waiting(lambda: True if status(process, "/ready") == 503 else None, "the door is shut")
        with pytest.raises(openai.InternalServerError, match="removed or replaced") as refused:
            ask(client)
        assert refused.value.status_code == 503
        assert not spent.done()
        for path in away.iterdir():
            path.rename(process.home / path.name)
        assert spent.result(30)
        waiting(lambda: True if status(process, "/ready") == 200 else None, "the door is open")
        ask(client)
        process.stop(signal.SIGTERM)
        assert charged(process) == 3


def charged(process: GatewayProcess) -> int:
    with contextlib.closing(sqlite3.connect(process.home / "gateway.db")) as connection:
        return int(connection.execute("SELECT count(*) FROM gateway_ledger").fetchone()[0])


def status(process: GatewayProcess, path: str) -> int:
    connection = http.client.HTTPConnection(urlsplit(process.url).netloc, timeout=10)
    try:
        connection.request("GET", path)
        return connection.getresponse().status
    finally:
        connection.close()
