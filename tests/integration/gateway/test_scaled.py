"""Gateways, a worker, a collector, a notifier: processes of their own over PostgreSQL, Redis, RabbitMQ and Kafka."""

from __future__ import annotations

from collections.abc import Generator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from openai import NotFoundError, OpenAI
from tests.factories.gateways import endpoint
from tests.factories.queued import User, waiting
from tests.factories.scaled import Child, Scaled, scaled
from tests.services.own import connect_redis

from tokenweir.sim.process import SimProcess

pytestmark = [pytest.mark.xdist_group("services"), pytest.mark.timeout(300)]

SETTINGS = '[worker]\nlease = "3s"\nbackoff = "20ms"\nsweep_interval = "1s"\n'


class Deployed(NamedTuple):
    """A deployment with two gateways, and the user at each of its doors."""

    scaled: Scaled
    children: list[Child]
    one: User
    other: User
    notified: User
    redis_url: str


@pytest.fixture
def deployed(service_urls: dict[str, str], redis_url: str, tmp_path: Path) -> Generator[Deployed]:
    with (
        SimProcess(ttft="constant:5ms", itl="constant:10ms") as sim,
        scaled(tmp_path, service_urls, SETTINGS + endpoint("one", sim.url)) as made,
    ):
        limited = made.weir("quotas", "set", "1000000", "tokens", "--per", "day", "--user", "ada")
        assert limited.returncode == 0, limited.stderr
        doors = [("gateway", "--port", "0"), ("gateway", "--port", "0"), ("notifier", "--port", "0")]
        children = made.start(*doors, ("worker",), ("collector",))
        one, other, notified = (made.user(child) for child in children[:3])
        yield Deployed(made, children, one, other, notified, redis_url)


def _reads_on(deployed: Deployed) -> str:
    """A stream is read on at another gateway, and at a notifier, from where it broke off."""
    request = deployed.one.submit(tokens=80)
    told = deployed.one.stream(request)
    seen = [next(told) for _ in range(8)]
    told.close()  # type: ignore[attr-defined]
    assert seen[-1]["type"] == "token"
    seen += deployed.other.stream(request, last_event_id=str(seen[-1]["seq"]))
    assert [event["seq"] for event in seen] == list(range(len(seen)))
    assert sum(event["type"] == "token" for event in seen) == 80
    assert seen[-1]["type"] == "completed"
    assert list(deployed.notified.stream(request)) == seen
    assert deployed.one.poll(request) == deployed.other.poll(request) == seen
    return request


def _response_reads_on(deployed: Deployed) -> str:
    """The stream of a response is read on at a notifier, which takes none on."""
    with (
        OpenAI(base_url=f"{deployed.one.url}/v1", api_key=deployed.one.key) as client,
        OpenAI(base_url=f"{deployed.notified.url}/v1", api_key=deployed.one.key) as notifier,
    ):
        asked = client.responses.create(
            model="sim", input="Count.", max_output_tokens=40, background=True, stream=True
        )
        seen: list[dict[str, Any]] = [next(asked).to_dict() for _ in range(6)]
        asked.close()
        name: str = seen[0]["response"]["id"]
        seen += [
            event.to_dict() for event in notifier.responses.retrieve(name, stream=True, starting_after=5)
        ]
        assert [event["sequence_number"] for event in seen] == list(range(len(seen)))
        assert seen[-1]["type"] == "response.incomplete"
        assert notifier.responses.retrieve(name).to_dict() == seen[-1]["response"]
        with pytest.raises(NotFoundError, match="there is no '/v1/responses' here"):
            notifier.responses.create(model="sim", input="Count.")
    return f"req_{name.removeprefix('resp_')}"


def _cancelled(deployed: Deployed) -> str:
    """A request that one gateway took on is cancelled at another, and a third process stops."""
    request = deployed.one.submit(tokens=4000)
    seen: list[dict[str, Any]] = []
    for event in deployed.notified.stream(request):
        seen.append(event)
        if event["type"] == "token" and len(seen) < 8:
            deployed.other.ask("DELETE", f"/v1/requests/{request}")
    assert seen[-1]["type"] == "cancelled"
    return request


def test_processes_apart_are_one_gateway(deployed: Deployed) -> None:
    made, one, other = deployed.scaled, deployed.one, deployed.other
    streamed = _reads_on(deployed)
    cancelled = _cancelled(deployed)
    response = _response_reads_on(deployed)
    single = one.submit(mode="single", tokens=5, key="once")
    assert other.submit(mode="single", tokens=5, key="once") == single
    told = other.until(single, "completed")
    assert told["token_usage"]["completion_tokens"] == 5
    for request in (streamed, cancelled):
        one.until(request, "completed", "cancelled")
    direct = one.ask(
        "POST",
        "/v1/chat/completions",
        {"model": "sim", "messages": [{"role": "user", "content": "x"}], "max_tokens": 3},
    )
    assert direct.status == 200
    rows = waiting(lambda: rows if len(rows := made.ledger()) == 5 else None, "the row of the direct request")
    assert {streamed, single, cancelled, response} < set(rows)
    assert rows[streamed]["output_tokens"] == "80"
    assert rows[single]["ending"] == "completed"
    assert rows[cancelled]["ending"] == "cancelled"
    assert made.verified() == []

    with connect_redis(deployed.redis_url) as redis:
        redis.flushdb()
    rebuilt = made.weir("quotas", "rebuild")
    assert rebuilt.returncode == 0, rebuilt.stderr
    assert made.verified() == []
    later = waiting(lambda: _accepted(other), "an acceptance under the new epoch")
    one.until(later, "completed")
    assert made.verified() == []
    for child in deployed.children:
        assert child.stop() == 0, child.log()


def _accepted(user: User) -> str | None:
    body = {"model": "sim", "messages": [{"role": "user", "content": "x"}], "max_tokens": 3}
    answer = user.ask("POST", "/v1/requests", body)
    return str(answer.json()["request_id"]) if answer.status == 202 else None
