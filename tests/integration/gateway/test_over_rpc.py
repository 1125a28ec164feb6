"""Queued requests whose endpoint is asked over gRPC: a real gateway, a real ``weir runtime`` with a simulated model."""

from __future__ import annotations

from collections.abc import Generator
from pathlib import Path

import pytest
from tests.factories.gateways import GatewayProcess, endpoint, gateway
from tests.factories.queued import User, waiting
from tests.factories.served import Served, serve
from tests.factories.sim_models import directory


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Generator[Served]:
    home = tmp_path_factory.mktemp("runtime")
    model = directory(home / "model", itl="5ms", output_tokens="constant:4000")
    with serve(model, "--grpc-port", "0", log=home / "log") as server:
        yield server


@pytest.fixture(scope="module")
def door(served: Served) -> Generator[GatewayProcess]:
    settings = '[worker]\nattempts = 2\nbackoff = "10ms"\n' + endpoint(
        "one", f"grpc://{served.grpc}", model="model", kind="tokenweir"
    )
    with gateway(settings) as process:
        yield process


def _running(served: Served) -> float:
    """Return how many requests the model server works on."""
    _, text = served.get("/metrics")
    lines = [line for line in text.decode().splitlines() if line.startswith("weir_runtime_running")]
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines)


def test_an_answer_streams_over_grpc_and_is_charged_as_the_server_counts(user: User) -> None:
    request = user.submit(model="model", tokens=40)
    seen = list(user.stream(request))
    assert [event["seq"] for event in seen] == list(range(len(seen)))
    kinds = [event["type"] for event in seen]
    assert kinds[:3] == ["accepted", "queued", "started"]
    assert kinds.count("token") > 3
    assert kinds[-2:] == ["usage", "completed"]
    told = user.until(request, "completed")
    assert told["token_usage"]["completion_tokens"] == 40
    assert told["result"]["choices"][0]["message"]["content"] == "".join(
        event.get("text", "") for event in seen if event["type"] == "token"
    )


def test_a_whole_answer_is_one_event(user: User) -> None:
    request = user.submit(model="model", tokens=12, mode="single", temperature=0, seed=3, stop=["zzz"])
    assert user.until(request, "completed")["token_usage"]["completion_tokens"] == 12
    assert sum(event["type"] == "token" for event in user.poll(request)) == 1


def test_a_cancelled_request_is_cancelled_at_the_server(user: User, served: Served) -> None:
    request = user.submit(model="model", tokens=4000)
    stream = user.stream(request)
    assert any(event["type"] == "token" for event in stream)
    assert _running(served) == 1
    user.ask("DELETE", f"/v1/requests/{request}")
    assert list(stream)[-1]["type"] == "cancelled"
    waiting(lambda: True if _running(served) == 0 else None, "the server is idle")


def test_what_cannot_be_said_or_is_refused_fails_once(user: User) -> None:
    unsaid = user.submit(model="model", logit_bias={"7": 1})
    told = user.until(unsaid, "failed")
    assert "'logit_bias' cannot be said over gRPC" in told["error"]["message"]
    assert (told["attempt"], told["error"]["status"]) == (1, 400)
    refused = user.until(user.submit(model="model", response_format={"type": "rhyme"}), "failed")
    assert (refused["attempt"], refused["error"]["status"]) == (1, 400)


def test_a_direct_request_is_told_to_queue(user: User) -> None:
    body = {"model": "model", "messages": [{"role": "user", "content": "x"}]}
    answer = user.ask("POST", "/v1/chat/completions", body)
    assert answer.status == 400
    assert "POST /v1/requests" in answer.json()["error"]["mend"]


def test_another_kind_of_endpoint_is_refused_at_the_start(tmp_path: Path) -> None:
    settings = endpoint("one", "grpc://127.0.0.1:1", kind="openai")
    process = GatewayProcess(tmp_path, settings)
    with pytest.raises(AssertionError, match="use http://"):
        process.start()
    process.stop()
