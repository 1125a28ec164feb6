"""Each service, asked by the client that Tokenweir uses for it."""

from __future__ import annotations

import asyncio
from typing import Any, cast
from urllib.parse import urlsplit

import aio_pika
import aiokafka
import asyncpg
import pytest
import redis.asyncio
from aiokafka.admin import AIOKafkaAdminClient, NewTopic

pytestmark = pytest.mark.xdist_group("services")


def test_postgresql_commits_what_others_then_read_and_knows_vectors(postgresql_url: str) -> None:
    connect = cast("Any", asyncpg).connect

    async def scenario() -> None:
        writer = await connect(postgresql_url)
        reader = await connect(postgresql_url)
        try:
            assert await writer.fetchval("SHOW fsync") == "on"
            await writer.execute("CREATE EXTENSION vector")
            await writer.execute("CREATE TABLE chunk (id int PRIMARY KEY, embedding vector(3))")
            async with writer.transaction():
                await writer.execute("INSERT INTO chunk VALUES (1, '[1,0,0]'), (2, '[0,1,0]')")
                assert await reader.fetchval("SELECT count(*) FROM chunk") == 0
            nearest = "SELECT id FROM chunk ORDER BY embedding <-> '[0,0.9,0]' LIMIT 1"
            assert await reader.fetchval(nearest) == 2
            with pytest.raises(asyncpg.UniqueViolationError):
                await writer.execute("INSERT INTO chunk VALUES (1, NULL)")
        finally:
            await writer.close()
            await reader.close()

    asyncio.run(scenario())


def test_redis_runs_a_script_as_one_step(redis_url: str) -> None:
    take = """
        local left = redis.call('DECRBY', KEYS[1], ARGV[1])
        if left < 0 then redis.call('INCRBY', KEYS[1], ARGV[1]) end
        return left
    """

    async def scenario() -> list[int]:
        client = cast("Any", redis.asyncio.Redis).from_url(redis_url)
        try:
            assert await client.dbsize() == 0
            await client.set("quota", 25)
            script = client.register_script(take)
            async with asyncio.TaskGroup() as group:
                taken = [group.create_task(script(keys=["quota"], args=[10])) for _ in range(8)]
            assert await client.get("quota") == b"5"
            return [int(cast("int", task.result())) for task in taken]
        finally:
            await client.aclose()

    left = asyncio.run(scenario())
    assert [number for number in left if number >= 0] == [15, 5]


def test_rabbitmq_confirms_what_a_quorum_queue_then_delivers_again_until_acknowledged(
    rabbitmq_url: str,
) -> None:
    async def scenario() -> None:
        connection = await aio_pika.connect(rabbitmq_url)
        async with connection:
            channel = await connection.channel(publisher_confirms=True, on_return_raises=True)
            queue = await channel.declare_queue("jobs", durable=True, arguments={"x-queue-type": "quorum"})
            persistent = aio_pika.DeliveryMode.PERSISTENT
            for number in range(3):
                message = aio_pika.Message(str(number).encode(), delivery_mode=persistent)
                confirmed = await channel.default_exchange.publish(message, "jobs", mandatory=True)
                assert type(confirmed).__name__ == "Ack"
            first = await queue.get(timeout=10)
            assert first.body == b"0"
            await first.nack(requeue=True)
            bodies: dict[bytes, bool] = {}
            async with asyncio.timeout(10), queue.iterator() as messages:
                async for message in messages:
                    bodies[message.body] = bool(message.redelivered)
                    await message.ack()
                    if len(bodies) == 3:
                        break
            assert bodies == {b"0": True, b"1": False, b"2": False}
            with pytest.raises(aio_pika.exceptions.DeliveryError):
                await channel.default_exchange.publish(aio_pika.Message(b""), "nowhere", mandatory=True)

    asyncio.run(scenario())


def test_kafka_keeps_the_order_of_a_partition_and_where_a_group_has_read_to(
    kafka_url: str, kafka_prefix: str
) -> None:
    server, topic, group = urlsplit(kafka_url).netloc, f"{kafka_prefix}tokens", f"{kafka_prefix}readers"

    async def read(count: int) -> list[bytes]:
        consumer = cast(
            "Any",
            aiokafka.AIOKafkaConsumer(
                topic,
                bootstrap_servers=server,
                group_id=group,
                auto_offset_reset="earliest",
                enable_auto_commit=False,
            ),
        )
        await consumer.start()
        try:
            async with asyncio.timeout(20):
                records = [await consumer.getone() for _ in range(count)]
            await consumer.commit()
            return [record.value for record in records]
        finally:
            await consumer.stop()

    async def scenario() -> None:
        admin = cast("Any", AIOKafkaAdminClient(bootstrap_servers=server))
        await admin.start()
        try:
            await admin.create_topics([NewTopic(name=topic, num_partitions=4, replication_factor=1)])
        finally:
            await admin.close()
        producer = cast("Any", aiokafka.AIOKafkaProducer(bootstrap_servers=server, acks="all"))
        await producer.start()
        try:
            placed = [await producer.send_and_wait(topic, b"%d" % n, key=b"user-1") for n in range(6)]
        finally:
            await producer.stop()
        assert len({record.partition for record in placed}) == 1
        assert [record.offset for record in placed] == list(range(6))
        assert await read(4) == [b"0", b"1", b"2", b"3"]
        assert await read(2) == [b"4", b"5"]

    asyncio.run(scenario())
