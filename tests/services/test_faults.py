"""What services keep, and lose, when they are killed, stopped, paused and flushed."""

from __future__ import annotations

import asyncio
from contextlib import closing
from typing import Any, cast
from urllib.parse import urlsplit

import aio_pika
import aiokafka
import psycopg
import pytest
import redis
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from tests.services.own import OwnServices, connect_redis

pytestmark = pytest.mark.xdist_group("own_services")


async def _declare(url: str) -> None:
    async with await aio_pika.connect(url) as connection:
        channel = await connection.channel()
        await channel.declare_queue("jobs", durable=True, arguments={"x-queue-type": "quorum"})


async def _publish(url: str) -> None:
    async with await aio_pika.connect(url) as connection:
        channel = await connection.channel()
        message = aio_pika.Message(b"job", delivery_mode=aio_pika.DeliveryMode.PERSISTENT)
        await channel.default_exchange.publish(message, "jobs", mandatory=True)


async def _consume(url: str) -> bytes:
    async with await aio_pika.connect(url) as connection:
        channel = await connection.channel()
        queue = await channel.declare_queue("jobs", passive=True)
        async with asyncio.timeout(20), queue.iterator() as messages:
            async for message in messages:
                await message.ack()
                return message.body
    raise AssertionError("the queue ended")


async def _append(url: str) -> None:
    server = urlsplit(url).netloc
    admin = cast("Any", AIOKafkaAdminClient(bootstrap_servers=server))
    await admin.start()
    try:
        await admin.create_topics([NewTopic(name="tokens", num_partitions=2, replication_factor=1)])
    finally:
        await admin.close()
    producer = cast("Any", aiokafka.AIOKafkaProducer(bootstrap_servers=server, acks="all"))
    await producer.start()
    try:
        await producer.send_and_wait("tokens", b"token", key=b"user")
    finally:
        await producer.stop()


async def _read(url: str) -> bytes:
    consumer = cast(
        "Any",
        aiokafka.AIOKafkaConsumer(
            "tokens", bootstrap_servers=urlsplit(url).netloc, auto_offset_reset="earliest"
        ),
    )
    await consumer.start()
    try:
        async with asyncio.timeout(20):
            return (await consumer.getone()).value
    finally:
        await consumer.stop()


@pytest.mark.timeout(300)
def test_what_was_acknowledged_is_there_after_a_crash_at_the_same_urls(own_services: OwnServices) -> None:
    names = ("postgresql", "rabbitmq", "kafka")
    urls = own_services.start(*names)
    with closing(psycopg.connect(urls["postgresql"], autocommit=True)) as connection:
        connection.execute("CREATE TABLE ledger (tokens int)")
        connection.execute("INSERT INTO ledger VALUES (7)")
    asyncio.run(_declare(urls["rabbitmq"]))
    own_services.settle("jobs")
    asyncio.run(_publish(urls["rabbitmq"]))
    asyncio.run(_append(urls["kafka"]))
    for name in names:
        own_services.kill(name)
    with pytest.raises(psycopg.OperationalError):
        psycopg.connect(urls["postgresql"], connect_timeout=5)
    assert own_services.start(*names) == urls
    with closing(psycopg.connect(urls["postgresql"])) as connection:
        assert connection.execute("SELECT tokens FROM ledger").fetchall() == [(7,)]
    assert asyncio.run(_consume(urls["rabbitmq"])) == b"job"
    assert asyncio.run(_read(urls["kafka"])) == b"token"


def test_redis_keeps_keys_over_a_stop_and_loses_them_to_a_flush(own_services: OwnServices) -> None:
    url = own_services.start("redis")["redis"]
    with closing(connect_redis(url)) as client:
        client.set("quota", 5)
    own_services.stop("redis")
    with closing(connect_redis(url)) as client, pytest.raises(redis.ConnectionError):
        client.ping()
    assert own_services.start("redis")["redis"] == url
    with closing(connect_redis(url)) as client:
        assert client.get("quota") == b"5"
        own_services.flush_redis()
        assert client.get("quota") is None


def test_a_paused_service_is_connected_and_silent_until_it_is_resumed(own_services: OwnServices) -> None:
    url = own_services.start("redis")["redis"]
    with closing(connect_redis(url, socket_timeout=0.3, retry=None)) as client:
        assert client.ping()
        own_services.pause("redis")
        with pytest.raises(redis.TimeoutError):
            client.ping()
        own_services.resume("redis")
        assert client.ping()
