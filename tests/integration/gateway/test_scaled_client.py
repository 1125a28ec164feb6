"""The client and the admin API before two gateways over PostgreSQL, Redis, RabbitMQ and Kafka."""

from __future__ import annotations

from collections.abc import Generator
from pathlib import Path
from typing import NamedTuple

import pytest
from tests.factories.gateways import endpoint
from tests.factories.queued import ASK, User, waiting
from tests.factories.scaled import Child, Scaled, scaled

from tokenweir.client import Client
from tokenweir.core.events import Completed, Event, Token
from tokenweir.sim.process import SimProcess

pytestmark = [pytest.mark.xdist_group("services"), pytest.mark.timeout(300)]

SETTINGS = '[worker]\nlease = "3s"\nbackoff = "20ms"\nsweep_interval = "1s"\n'


class Deployed(NamedTuple):
    """A deployment with two gateways."""

    scaled: Scaled
    one: Child
    other: Child


@pytest.fixture
def deployed(service_urls: dict[str, str], tmp_path: Path) -> Generator[Deployed]:
    with (
        SimProcess(ttft="constant:5ms", itl="constant:20ms") as sim,
        scaled(tmp_path, service_urls, SETTINGS + endpoint("one", sim.url)) as made,
    ):
        gateway = ("gateway", "--port", "0")
        one, other, *_ = made.start(gateway, gateway, ("worker",), ("collector",))
        yield Deployed(made, one, other)


def _administered(deployed: Deployed) -> None:
    """What is changed at one gateway holds there at once, and at the other within a second."""
    key = deployed.scaled.weir("keys", "create", "ada", "--scope", "admin").stdout.strip()
    one, other = User(deployed.one.url, key), User(deployed.other.url, key)
    assert one.ask("POST", "/v1/admin/users", {"name": "eve"}).status == 201
    assert one.ask("POST", "/v1/admin/users", {"name": "eve"}).status == 400
    made = other.ask("POST", "/v1/admin/keys", {"user": "eve"}).json()
    limit = {"user": "eve", "unit": "requests", "per": "day", "amount": 10}
    assert other.ask("PUT", "/v1/admin/quotas", limit).json()["used"] == 0
    for path in ("users/%00", "quotas?user=a%00b", "keys/%00", "usage?model=%00"):
        assert one.ask("GET", f"/v1/admin/{path}").status in {400, 404}, path
    assert one.ask("PUT", "/v1/admin/tiers/%00", {}).status in {400, 404}
    assert User(deployed.one.url, made["secret"]).ask("GET", "/v1/models").status == 200
    assert other.ask("DELETE", f"/v1/admin/keys/{made['id']}").json()["state"] == "revoked"
    assert User(deployed.other.url, made["secret"]).ask("GET", "/v1/models").status == 401
    waiting(
        lambda: User(deployed.one.url, made["secret"]).ask("GET", "/v1/models").status == 401 or None,
        "the other gateway to refuse the key",
    )
    assert one.ask("GET", "/v1/admin/quotas/verify").json()["agree"] is True


def test_a_client_goes_on_at_another_gateway_when_its_own_is_killed(deployed: Deployed) -> None:
    _administered(deployed)
    with Client([deployed.one.url, deployed.other.url], deployed.scaled.key) as client:
        request = client.submit(model="sim", messages=ASK, mode="stream", max_tokens=100)
        events: list[Event] = []
        for event in client.stream(request):
            events.append(event)
            if sum(isinstance(each, Token) for each in events) == 10 and deployed.one.alive:
                deployed.one.kill()
        assert [event.seq for event in events] == list(range(len(events)))
        # The worker is another process: not one token was lost with the gateway.
        assert sum(isinstance(event, Token) for event in events) == 100
        assert isinstance(events[-1], Completed)
        assert client.wait(request).text
        assert list(client.stream(request)) == events
        items = list(client.batch([{"model": "sim", "messages": ASK, "max_tokens": 2}] * 5))
        assert all(item.status is not None and item.status.status == "completed" for item in items)
    rows = waiting(
        lambda: rows if len(rows := deployed.scaled.ledger()) == 6 else None, "a row for each request"
    )
    assert rows[request.request_id]["output_tokens"] == "100"
