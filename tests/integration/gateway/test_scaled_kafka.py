"""A gateway, two workers and a collector over PostgreSQL, Redis and Kafka alone."""

from __future__ import annotations

from collections.abc import Generator
from pathlib import Path

import pytest
from tests.factories.gateways import endpoint
from tests.factories.queued import User, waiting
from tests.factories.scaled import Child, Scaled, scaled

from tokenweir.sim.process import SimProcess

pytestmark = [pytest.mark.xdist_group("services"), pytest.mark.timeout(300)]

SETTINGS = '[worker]\nlease = "3s"\nbackoff = "20ms"\nattempts = 4\nsweep_interval = "1s"\n'


@pytest.fixture
def deployed(
    postgresql_url: str, redis_url: str, kafka_url: str, kafka_prefix: str, tmp_path: Path
) -> Generator[Scaled]:
    urls = {"postgresql": postgresql_url, "redis": redis_url, "kafka": f"{kafka_url}/{kafka_prefix}"}
    with (
        SimProcess(ttft="constant:5ms", itl="constant:10ms") as sim,
        SimProcess(model="broken", faults=("503@every=1",)) as broken,
        scaled(
            tmp_path,
            urls,
            SETTINGS + endpoint("one", sim.url) + endpoint("two", broken.url, model="broken"),
        ) as made,
    ):
        yield made


def _streams(user: User) -> str:
    request = user.submit(tokens=40)
    seen = list(user.stream(request))
    assert [event["seq"] for event in seen] == list(range(len(seen)))
    assert sum(event["type"] == "token" for event in seen) == 40
    assert seen[-1]["type"] == "completed"
    assert user.poll(request) == seen
    return request


def _gives_up(made: Scaled, user: User) -> str:
    """What cannot be done is a dead letter, which is dropped."""
    request = user.submit(model="broken", tokens=3)
    user.until(request, "failed")

    def dead() -> str:
        return made.weir("queue", "dead", "list").stdout

    waiting(lambda: request in dead() or None, "the dead letter")
    dropped = made.weir("queue", "dead", "drop", request)
    assert dropped.returncode == 0, dropped.stderr
    assert request not in dead()
    return request


def _outlives(user: User, children: list[Child]) -> str:
    """A worker is killed, and what it worked on is done by the other."""
    request = user.submit(tokens=200, retry_after_tokens=True)
    told = user.stream(request)
    while next(told)["type"] != "token":
        pass
    children[1].kill()
    seen = list(told)
    assert seen[-1]["type"] == "completed"
    assert seen[-1]["type"] == "completed"
    return request


def test_a_deployment_does_without_rabbitmq(deployed: Scaled) -> None:
    children = deployed.start(("gateway", "--port", "0"), ("worker",), ("collector",))
    user = deployed.user(children[0])
    asked = {_streams(user), _gives_up(deployed, user)}
    children += deployed.start(("worker",))
    asked |= {_outlives(user, children), _streams(user)}
    single = user.submit(mode="single", tokens=5)
    assert user.until(single, "completed")["token_usage"]["completion_tokens"] == 5
    asked.add(single)
    waiting(lambda: set(deployed.ledger()) == asked or None, "the rows of all")
    assert deployed.verified() == []
    told = deployed.weir("queue", "status")
    assert told.returncode == 0, told.stderr
    for child in children:
        assert child.alive == (child is not children[1])
        if child.alive:
            assert child.stop() == 0, child.log()
