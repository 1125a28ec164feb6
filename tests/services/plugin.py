"""Gives tests real services: PostgreSQL, Redis, RabbitMQ and Kafka.

A run uses the services that ``make services`` keeps; what is missing there it starts, once for all of its workers, and
ends it with the run. Each test has a namespace of its own. A service that cannot run here skips its tests and is named;
with ``CI=true`` it fails them.
"""

from __future__ import annotations

import asyncio
import os
import uuid
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from typing import NoReturn, cast
from urllib.parse import urlsplit

import psycopg
import pytest
from aiokafka.admin import AIOKafkaAdminClient
from deploy.services.group import HOME, TESTS_HOME, Services, choose_runner, sweep
from deploy.services.process import Process
from deploy.services.rabbitmq import add_vhost, delete_vhost
from deploy.services.redis import DATABASES
from deploy.services.service import MissingProgramError, Site
from psycopg import sql
from tests.services.own import OwnServices, connect_redis

from tokenweir.core.errors import WeirError

_FIXTURES = {
    "postgresql_url": "postgresql",
    "redis_url": "redis",
    "rabbitmq_url": "rabbitmq",
    "kafka_url": "kafka",
    "kafka_prefix": "kafka",
}
_USER_KEY = "services_user"


@dataclass
class Shared:
    """The services of this run: URLs and folders of what serves, errors of what does not."""

    urls: dict[str, str] = field(default_factory=dict[str, str])
    sites: dict[str, Site] = field(default_factory=dict[str, Site])
    errors: dict[str, WeirError] = field(default_factory=dict[str, WeirError])

    def url(self, name: str) -> str:
        """Return the service's URL; skip or fail the test that asks in vain."""
        if error := self.errors.get(name):
            absent(name, error)
        return self.urls[name]


def absent(name: str, error: WeirError) -> NoReturn:
    """Skip the test for want of a service that is not installed; fail it for one that does not start, and in CI."""
    reason = f"no {name}: {error}"
    if isinstance(error, MissingProgramError) and os.environ.get("CI") != "true":  # noqa: TID251 - CI's own variable
        pytest.skip(reason)
    pytest.fail(reason, pytrace=False)


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: object) -> None:
    """Tell a worker of xdist whose run it belongs to."""
    cast("dict[str, object]", node.workerinput)[_USER_KEY] = os.getpid()  # type: ignore[attr-defined]


def pytest_unconfigure(config: pytest.Config) -> None:
    """End the services with the run that started them."""
    if not hasattr(config, "workerinput"):
        Services(TESTS_HOME).release(Process.of(os.getpid()))


def _user(config: pytest.Config) -> Process:
    given = cast("dict[str, object]", getattr(config, "workerinput", {}))
    return Process.of(int(str(given.get(_USER_KEY, os.getpid()))))


@pytest.fixture(scope="session")
def shared_services(request: pytest.FixtureRequest) -> Shared:
    """The services that the collected tests ask for, started at once."""
    asked = {
        service
        for item in request.session.items
        if isinstance(item, pytest.Function)
        for fixture, service in _FIXTURES.items()
        if fixture in item.fixturenames
    }
    shared = Shared()
    kept = Services(HOME)
    for name, urls in kept.status().items():
        shared.urls[name], shared.sites[name] = urls[name], kept.site(name)
    wanted = sorted(asked - set(shared.urls))
    if wanted:
        sweep()
        services = Services(TESTS_HOME, runner=choose_runner("auto"))
        outcome = services.start(wanted, user=_user(request.config))
        shared.errors = outcome.errors
        for name, urls in outcome.urls.items():
            shared.urls[name], shared.sites[name] = urls[name], services.site(name)
    return shared


@pytest.fixture
def postgresql_url(shared_services: Shared) -> Iterator[str]:
    """The URL of an empty database; it is dropped after the test, whoever is still connected."""
    server = shared_services.url("postgresql")
    name = f"test_{uuid.uuid4().hex}"
    with closing(psycopg.connect(server, autocommit=True)) as connection:
        connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
        yield urlsplit(server)._replace(path=f"/{name}").geturl()
        connection.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))


@pytest.fixture
def redis_url(shared_services: Shared) -> Iterator[str]:
    """The URL of an empty numbered database. Scripts, functions and published messages are not kept apart by it."""
    server = shared_services.url("redis")
    with closing(connect_redis(server)) as client:
        # Database 0 counts, so that no two tests of any worker have the same at once.
        number = 1 + int(str(client.incr("tests:database"))) % (DATABASES - 1)
    url = urlsplit(server)._replace(path=f"/{number}").geturl()
    with closing(connect_redis(url)) as client:
        client.flushdb()
        yield url
        client.flushdb()


@pytest.fixture
def rabbitmq_url(shared_services: Shared) -> Iterator[str]:
    """The URL of a virtual host of its own; it is deleted after the test with all that is in it."""
    shared_services.url("rabbitmq")
    site, name = shared_services.sites["rabbitmq"], f"test-{uuid.uuid4().hex}"
    yield add_vhost(site, name)
    delete_vhost(site, name)


@pytest.fixture
def kafka_url(shared_services: Shared) -> str:
    """The URL of the broker, ``kafka://host:port``. Topics are told apart by ``kafka_prefix``."""
    return shared_services.url("kafka")


@pytest.fixture
def kafka_prefix(kafka_url: str) -> Iterator[str]:
    """What the names of this test's topics and groups begin with; its topics are deleted after the test."""
    prefix = f"test-{uuid.uuid4().hex[:12]}-"
    yield prefix
    asyncio.run(_delete_topics(urlsplit(kafka_url).netloc, prefix))


async def _delete_topics(server: str, prefix: str) -> None:
    admin = AIOKafkaAdminClient(bootstrap_servers=server)
    await admin.start()
    try:
        topics = await admin.list_topics()
        if ours := [topic for topic in topics if topic.startswith(prefix)]:
            await admin.delete_topics(ours)
    finally:
        await admin.close()


@pytest.fixture(scope="module")
def own_services() -> Iterator[OwnServices]:
    """Services that this module has to itself, to stop, kill, pause and flush."""
    with OwnServices(absent) as services:
        yield services
