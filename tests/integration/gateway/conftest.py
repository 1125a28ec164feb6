"""What the gateway's tests share: endpoints of three tempers, callers at the door, and services by URL.

A module has its own ``sim`` and ``door``, as far as these do not fit.
"""

from __future__ import annotations

import base64
import secrets
from collections.abc import Iterator

import pytest
from openai import OpenAI
from tests.factories.gateways import GatewayProcess, endpoint
from tests.factories.members import member
from tests.factories.queued import User

from tokenweir.sim.process import SimProcess


@pytest.fixture(scope="module")
def sim() -> Iterator[SimProcess]:
    with SimProcess(ttft="constant:5ms", itl="constant:2ms") as process:
        yield process


@pytest.fixture(scope="module")
def slow() -> Iterator[SimProcess]:
    with SimProcess(ttft="constant:5ms", itl="constant:20ms", model="slow") as process:
        yield process


@pytest.fixture(scope="module")
def broken() -> Iterator[SimProcess]:
    with SimProcess(model="broken", faults=("503@every=1",)) as process:
        yield process


@pytest.fixture(scope="module")
def endpoints(sim: SimProcess, slow: SimProcess, broken: SimProcess) -> str:
    return (
        endpoint("one", sim.url)
        + endpoint("slow", slow.url, model="slow")
        + endpoint("broken", broken.url, model="broken")
    )


@pytest.fixture(scope="module")
def seal_key(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Where a key is that bodies are encrypted with, as the settings name it."""
    key = tmp_path_factory.mktemp("seal") / "key"
    key.write_text(base64.b64encode(secrets.token_bytes(32)).decode(), encoding="ascii")
    return f"file:{key}"


@pytest.fixture
def user(door: GatewayProcess) -> User:
    return User(door.url, door.key)


@pytest.fixture
def client(door: GatewayProcess) -> Iterator[OpenAI]:
    with door.client() as made:
        yield made


@pytest.fixture(scope="module")
def stranger(door: GatewayProcess) -> User:
    return User(door.url, member(door, "stranger"))


@pytest.fixture
def service_urls(
    postgresql_url: str, redis_url: str, rabbitmq_url: str, kafka_url: str, kafka_prefix: str
) -> dict[str, str]:
    return {
        "postgresql": postgresql_url,
        "redis": redis_url,
        "rabbitmq": rabbitmq_url,
        "kafka": f"{kafka_url}/{kafka_prefix}",
    }
