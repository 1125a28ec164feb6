"""No accepted request is lost, none answered twice to one reader, no token charged twice: real servers, broken."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Sequence

import pytest
from tests.faults.deployment import Asked, Deployment
from tests.faults.nursery import Nursling
from tests.faults.points import COLLECTOR, GATEWAY, POINTS, REQUESTS, RESULTS, WORKER, Point

from tokenweir.core.ids import parse_id
from tokenweir.ports.queue import Job
from tokenweir.stores.gateway.rabbitmq.connection import RabbitConnection
from tokenweir.stores.gateway.rabbitmq.queue import RabbitQueue

pytestmark = [pytest.mark.xdist_group("own_services"), pytest.mark.timeout(400)]

_PATIENCE_S = 90.0
_GROWTH_BYTES = 24 << 20
_HOUR_NS = 3_600_000_000_000


def _doomed(deployed: Deployment, role: str, points: Sequence[Point], *more: str) -> list[Nursling]:
    """Start a process for each point, which will be killed there."""
    return [deployed.nursery.begin(role, *more, point=f"{role}: {point.name}") for point in points]


def _until_dead(doomed: Sequence[Nursling], ask: Callable[[], Asked]) -> list[Asked]:
    """Ask until each has been killed where it should be; return what was asked."""
    asked: list[Asked] = []
    deadline = time.monotonic() + _PATIENCE_S
    while alive := [each for each in doomed if each.alive]:
        assert time.monotonic() < deadline, [each.name for each in alive]
        asked.append(ask())
        time.sleep(0.05)
    for each in doomed:
        assert f"killed at {each.name.split(' ', 1)[1]}" in each.log(), each.log()
    return asked


def test_killed_at_every_stage(deployed: Deployment, figures: Counter[str], round_number: int) -> None:
    gateways = _doomed(deployed, "gateway", GATEWAY, "--port", "0")
    workers = _doomed(deployed, "worker", WORKER, "--concurrency", "2")
    collectors = _doomed(deployed, "collector", COLLECTOR)
    for each in (*gateways, *workers, *collectors):
        each.ready()
    # Of each gateway one request is asked, and asked again of another where the answer was lost with it.
    asking = [deployed.threads.submit(deployed.ask, door, tokens=8) for door in gateways]
    asked = [each.result() for each in asking]
    asked += _until_dead(gateways, lambda: deployed.ask(*(door for door in gateways if door.alive)))
    asked += _until_dead(workers, lambda: deployed.ask(tokens=12))
    with deployed.working(collectors=0):
        asked += _until_dead(collectors, lambda: deployed.ask(mode="single"))
        with deployed.working(workers=0):
            deployed.proved(asked, figures)
    figures["kills"] += len(POINTS)


def test_a_stream_is_read_on_at_another_gateway(
    deployed: Deployment, figures: Counter[str], round_number: int
) -> None:
    door, notifier = deployed.nursery.start(("gateway", "--port", "0"), ("notifier", "--port", "0"))
    with deployed.working():
        asked = [deployed.ask(door, notifier, tokens=60) for _ in range(3)]
        told = deployed.users(door)[0].stream(asked[0].request)
        seen = [next(told) for _ in range(6)]
        assert seen[-1]["type"] == "token"
        door.kill()
        notifier.kill()
        deployed.proved(asked, figures)
        assert asked[0].reading.result()[:6] == seen
        assert all(each.reading.result()[-1]["type"] == "completed" for each in asked)
    figures["kills"] += 2


def _flushed(deployed: Deployment) -> Callable[[], None]:
    deployed.services.flush_redis()
    return lambda: None


def _broken(how: str, service: str) -> Callable[[Deployment], Callable[[], None]]:
    def fault(deployed: Deployment) -> Callable[[], None]:
        getattr(deployed.services, how)(service)
        return lambda: (deployed.services.start(service), None)[1]

    return fault


@pytest.mark.parametrize(
    "fault",
    [
        pytest.param(_flushed, id="redis flushed"),
        pytest.param(_broken("kill", "redis"), id="redis killed"),
        pytest.param(_broken("stop", "postgresql"), id="postgresql stopped"),
        pytest.param(_broken("kill", "postgresql"), id="postgresql killed"),
        pytest.param(_broken("stop", "rabbitmq"), id="rabbitmq stopped"),
        pytest.param(_broken("stop", "kafka"), id="kafka stopped"),
    ],
)
def test_a_service_fails_and_comes_back(
    deployed: Deployment,
    figures: Counter[str],
    round_number: int,
    fault: Callable[[Deployment], Callable[[], None]],
) -> None:
    with deployed.working():
        asked = deployed.ask_all(6, tokens=40)
        mend = fault(deployed)
        # Users go on asking; who is refused comes back until he is not.
        during = [deployed.threads.submit(deployed.ask) for _ in range(4)]
        mend()
        asked += [each.result() for each in during]
        asked += deployed.ask_all(4)
        deployed.proved(asked, figures)
    figures["faults"] += 1


def test_delivered_more_than_once(deployed: Deployment, figures: Counter[str], round_number: int) -> None:
    asked = deployed.ask_all(8)
    records = [parse_id(each.request, prefix="req").uuid.to_bytes(16, "big") for each in asked]

    async def publish(name: str, attempts: Sequence[int]) -> None:
        url = deployed.services.start("rabbitmq")["rabbitmq"]
        publishing, consuming = RabbitConnection(url), RabbitConnection(url)
        try:
            queue = RabbitQueue(publishing, consuming, name)
            await queue.publish(
                [Job(request=request, lane=0, attempt=attempt) for request in records for attempt in attempts]
            )
        finally:
            await consuming.close()
            await publishing.close()

    asyncio.run(publish(REQUESTS, (1, 1, 2)))
    with deployed.working(workers=2, collectors=2):
        deployed.settled(asked)
        asyncio.run(publish(RESULTS, (1, 1)))
        asyncio.run(publish(REQUESTS, (1,)))
        asked += deployed.ask_all(4)
        deployed.proved(asked, figures)
    assert all(each.reading.result()[-1]["type"] == "completed" for each in asked)
    figures["duplicates"] += 6 * len(records)


def test_clocks_step(deployed: Deployment, figures: Counter[str], round_number: int) -> None:
    nursery = deployed.nursery
    forth = nursery.begin("gateway", "--port", "0", step_ns=_HOUR_NS)
    back = nursery.begin("gateway", "--port", "0", step_ns=-_HOUR_NS)
    others = [nursery.begin("worker", step_ns=sign * _HOUR_NS) for sign in (1, -1)]
    others += [nursery.begin("collector", step_ns=sign * _HOUR_NS) for sign in (1, -1)]
    stepping = [forth, back, *others]
    for each in stepping:
        each.ready()
    asked = [deployed.ask(door, tokens=30, deadline="90s") for door in (forth, back) for _ in range(2)]
    for each in stepping:
        each.step_clock()
    asked += [deployed.ask(door, tokens=30, deadline="90s") for door in (forth, back) for _ in range(3)]
    # A worker is lost whose clock was wrong, and another whose clock is wrong goes on.
    others[0].kill()
    asked += [deployed.ask(door, deadline="90s") for door in (forth, back)]
    deployed.proved(asked, figures)
    for each in stepping:
        each.kill()
    figures["clocks stepped"] += len(stepping)


def test_memory_comes_back_to_its_level(
    deployed: Deployment, figures: Counter[str], round_number: int
) -> None:
    with deployed.working():
        asked = deployed.ask_all(40)
        deployed.proved(asked, figures)
        level = deployed.level()
        deployed.levels.setdefault("gateways", []).append(level)
        first = deployed.levels["gateways"][0]
        more = deployed.ask_all(40)
        deployed.proved(more, figures)
    assert deployed.level() - first <= _GROWTH_BYTES
    figures["MiB grown"] += max(0, deployed.level() - first) >> 20
