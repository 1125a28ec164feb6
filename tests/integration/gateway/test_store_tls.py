"""Stores over TLS, by the parameters of their URLs: a real Redis that asks for a certificate, and what is refused."""

from __future__ import annotations

import asyncio
import socket
import subprocess
import time
from collections.abc import Generator
from pathlib import Path

import pytest
from deploy.test_ca import Pair, TestCa
from tests.factories.programs import program

from tokenweir.core.errors import ConfigError, UnavailableError
from tokenweir.stores.gateway.kafka.connection import KafkaServers
from tokenweir.stores.gateway.redis.connection import RedisConnection

START_S = 30.0


@pytest.fixture(scope="module")
def ca(tmp_path_factory: pytest.TempPathFactory) -> TestCa:
    return TestCa(tmp_path_factory.mktemp("ca"))


@pytest.fixture(scope="module")
def port(ca: TestCa, tmp_path_factory: pytest.TempPathFactory) -> Generator[int]:
    """A Redis that speaks TLS alone, and asks who is there."""
    with socket.create_server(("127.0.0.1", 0)) as held:
        free = int(held.getsockname()[1])
    server = ca.issue("server")
    options = {
        "port": 0,
        "tls-port": free,
        "bind": "127.0.0.1",
        "dir": tmp_path_factory.mktemp("redis"),
        "save": "",
        "tls-cert-file": server.certificate,
        "tls-key-file": server.key,
        "tls-ca-cert-file": ca.certificate,
        "tls-auth-clients": "yes",
        "tls-protocols": "TLSv1.2 TLSv1.3",
    }
    command = [
        program("redis-server"),
        *(part for name, value in options.items() for part in (f"--{name}", str(value))),
    ]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as child:
        deadline = time.monotonic() + START_S
        while True:
            try:
                socket.create_connection(("127.0.0.1", free), timeout=5).close()
                break
            except OSError:
                assert child.poll() is None
                assert time.monotonic() < deadline
                time.sleep(0.02)
        yield free
        child.terminate()


def asked(port: int, ca: TestCa, shown: Pair | None) -> object:
    """Ask Redis as the quota store does."""
    url = f"rediss://127.0.0.1:{port}/0?ssl_ca_certs={ca.certificate}"
    if shown is not None:
        url += f"&ssl_certfile={shown.certificate}&ssl_keyfile={shown.key}"

    async def main() -> object:
        redis = RedisConnection(url)
        try:
            return await redis.command("PING")
        finally:
            await redis.close()

    return asyncio.run(main())


def test_redis_is_asked_over_mutual_tls(port: int, ca: TestCa, tmp_path: Path) -> None:
    assert asked(port, ca, ca.issue("gateway")) in {True, b"PONG", "PONG"}
    other = TestCa(tmp_path)
    for authority, shown in ((ca, None), (ca, other.issue("stranger")), (other, ca.issue("gateway"))):
        with pytest.raises(UnavailableError) as caught:
            asked(port, authority, shown)
        assert "\n" not in str(caught.value)


def test_kafka_s_parameters_are_read_and_checked(ca: TestCa, tmp_path: Path) -> None:
    pair = ca.issue("gateway")
    made = KafkaServers(
        f"kafkas://one:9093,two:9093/prefix?ca={ca.certificate}&certificate={pair.certificate}&key={pair.key}"
    )
    assert (made.name, made.prefix) == ("one:9093,two:9093", "prefix")
    assert KafkaServers("kafka://one:9092/prefix").prefix == "prefix"
    with pytest.raises(ConfigError, match="no parameter 'cafile'") as caught:
        KafkaServers("kafkas://one:9093?cafile=x")
    assert "ca, certificate, key" in caught.value.mend
    with pytest.raises(ConfigError, match="cannot be used"):
        KafkaServers(f"kafkas://one:9093?ca={tmp_path / 'none'}")
    with pytest.raises(ConfigError, match="names no Kafka"):
        KafkaServers("http://one:9093")
