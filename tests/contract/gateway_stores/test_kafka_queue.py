"""Jobs in Kafka."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager

import msgspec
import pytest
from aiokafka.structs import TopicPartition
from tests.contract.gateway_stores.harness import ABSENT, Stores, new_id
from tests.contract.gateway_stores.queue_contract import QueueContract, closing, tell
from tests.services.own import OwnServices

from tokenweir.core.errors import UnavailableError
from tokenweir.ports.queue import Delivery, Job
from tokenweir.stores.gateway.kafka.connection import KafkaServers
from tokenweir.stores.gateway.kafka.consuming import POSTPONE_NS
from tokenweir.stores.gateway.kafka.queue import KafkaQueue

pytestmark = [pytest.mark.xdist_group("services"), pytest.mark.timeout(120)]

# A broker of one node takes a while to make 64.
PARTITIONS = 4

_WORKER = """
import asyncio, sys
from tokenweir.stores.gateway.kafka.connection import KafkaServers
from tokenweir.stores.gateway.kafka.queue import KafkaQueue

async def work():
    queue = KafkaQueue(KafkaServers(sys.argv[1]), partitions=int(sys.argv[2]))
    async with queue.open():
        async for delivery in queue.deliveries(prefetch=1000):
            print(delivery.job.request.hex(), flush=True)

asyncio.run(work())
"""


class KafkaQueuePlace:
    """Topics with a prefix of their own."""

    clock = None

    def __init__(self, url: str) -> None:
        self.url = url
        self.postpone_ns = POSTPONE_NS

    def queue(self) -> KafkaQueue:
        return KafkaQueue(KafkaServers(self.url), partitions=PARTITIONS, postpone_ns=self.postpone_ns)

    @asynccontextmanager
    async def open(self) -> AsyncGenerator[Stores]:
        queue = self.queue()
        async with queue.open():
            yield Stores(
                quota=ABSENT, ledger=ABSENT, intake=ABSENT, requests=ABSENT, queue=queue, events=ABSENT
            )


@pytest.fixture
def place(kafka_url: str, kafka_prefix: str) -> KafkaQueuePlace:
    return KafkaQueuePlace(f"{kafka_url}/{kafka_prefix}")


class TestKafkaQueue(QueueContract):
    pass


def _job(partition: int) -> Job:
    """Return a job that goes to a partition."""
    while True:
        request = new_id()
        if int.from_bytes(request[-4:], "big") % PARTITIONS == partition:
            return Job(request=request, lane=0)


def _spread(each: int) -> list[Job]:
    """Return so many jobs for each partition."""
    return [_job(partition) for partition in range(PARTITIONS) for _ in range(each)]


async def _take(deliveries: AsyncIterator[Delivery], count: int) -> list[Delivery]:
    return [await anext(deliveries) for _ in range(count)]


async def _left(stores: Stores, count: int) -> None:
    """Return once so many jobs are neither committed nor in hand here."""
    async with asyncio.timeout(20):
        while True:
            if (await stores.queue.depth()).ready == count:
                return
            await asyncio.sleep(0.05)


def test_what_is_done_out_of_order_is_committed_up_to_the_first_that_is_not(place: KafkaQueuePlace) -> None:
    jobs = [_job(2) for _ in range(6)]

    async def first(stores: Stores) -> None:
        await stores.queue.publish(jobs)
        async with closing(stores.queue.deliveries(prefetch=6)) as deliveries:
            taken = await _take(deliveries, 6)
            assert [delivery.job for delivery in taken] == jobs
            await stores.queue.acknowledge([taken[number] for number in (3, 1, 0)])
        # The hands are empty: what comes now is of no account.
        await stores.queue.acknowledge(taken)

    async def second(stores: Stores) -> None:
        async with closing(stores.queue.deliveries(prefetch=6)) as deliveries:
            taken = await _take(deliveries, 4)
            assert [delivery.job for delivery in taken] == jobs[2:]
            depth = await stores.queue.depth()
            assert (depth.ready, depth.unacknowledged) == (0, 4)
            assert depth.oldest_ns > 0
            await stores.queue.acknowledge(taken)

    async def third(stores: Stores) -> None:
        depth = await stores.queue.depth()
        assert (depth.ready, depth.unacknowledged, depth.oldest_ns) == (0, 0, 0)

    async def tidied(stores: Stores) -> None:
        assert isinstance(stores.queue, KafkaQueue)
        await stores.queue.tidy()
        servers = KafkaServers(place.url)
        consumer = servers.consumer(wait_ms=100)
        await consumer.start()
        try:
            kept = TopicPartition(f"{servers.prefix}prompts", 2)
            assert (await consumer.beginning_offsets([kept]))[kept] == len(jobs)
        finally:
            await consumer.stop()
        depth = await stores.queue.depth()
        assert (depth.ready, depth.unacknowledged, depth.oldest_ns) == (0, 0, 0)

    tell(place, first, second, third, tidied)


def test_what_moves_to_another_worker_comes_there_and_may_be_acknowledged_here(
    place: KafkaQueuePlace,
) -> None:
    jobs = _spread(2)

    async def story(stores: Stores) -> None:
        other = place.queue()
        await stores.queue.publish(jobs)
        async with other.open(), closing(stores.queue.deliveries(prefetch=100)) as mine:
            held = await _take(mine, len(jobs))
            async with closing(other.deliveries(prefetch=100)) as theirs:
                moved = await _take(theirs, len(jobs) // 2)
                assert {delivery.job.request for delivery in moved} < {job.request for job in jobs}
                await stores.queue.acknowledge(held)
                # What was acknowledged by whom had lost it is still theirs.
                await _left(stores, len(moved))
                await other.acknowledge(moved)
                await _left(stores, 0)
                later = _spread(1)
                await stores.queue.publish(later)
                again = [*await _take(mine, 2), *await _take(theirs, 2)]
                assert {each.job.request for each in again} == {job.request for job in later}

    tell(place, story)


def test_the_jobs_of_a_worker_that_is_killed_come_to_another(place: KafkaQueuePlace) -> None:
    jobs = _spread(5)

    async def story(stores: Stores) -> None:
        await stores.queue.publish(jobs)
        child = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", _WORKER, place.url, str(PARTITIONS)), stdout=asyncio.subprocess.PIPE
        )
        assert child.stdout is not None
        try:
            told = {(await child.stdout.readline()).strip().decode() for _ in jobs}
            assert told == {job.request.hex() for job in jobs}
            async with closing(stores.queue.deliveries(prefetch=100)) as deliveries:
                seen = {delivery.job.request for delivery in await _take(deliveries, len(jobs) // 2)}
                child.kill()
                while len(seen) < len(jobs):
                    seen.add((await anext(deliveries)).job.request)
            assert seen == {job.request for job in jobs}
        finally:
            if child.returncode is None:
                child.kill()
            await child.wait()

    tell(place, story)


def test_a_job_that_waits_for_long_does_not_keep_others_from_being_committed(place: KafkaQueuePlace) -> None:
    later, now = _job(1), _job(1)
    place.postpone_ns = 200_000_000

    async def story(stores: Stores) -> None:
        await stores.queue.publish([later], delay_ns=5_000_000_000)
        await stores.queue.publish([now])
        started = time.monotonic()
        async with closing(stores.queue.deliveries(prefetch=2)) as deliveries:
            delivery = await anext(deliveries)
            assert delivery.job == now
            await stores.queue.acknowledge([delivery])
            await _left(stores, 1)
            assert time.monotonic() - started < 5
            delivery = await anext(deliveries)
            assert delivery.job == later
            assert time.monotonic() - started >= 4.9
            await stores.queue.acknowledge([delivery])
            await _left(stores, 0)

    tell(place, story)


def test_dead_letters_are_the_same_for_all_who_have_looked(place: KafkaQueuePlace) -> None:
    jobs = [msgspec.structs.replace(_job(1), log=b"what was said") for _ in range(3)]

    async def story(stores: Stores) -> None:
        other = place.queue()
        async with other.open():
            await stores.queue.publish(jobs)
            async with closing(stores.queue.deliveries(prefetch=3)) as deliveries:
                for delivery in await _take(deliveries, 3):
                    await stores.queue.bury(delivery, "no such model")
            for queue in (stores.queue, other):
                assert [job.request for job in await queue.dead(limit=2)] == [job.request for job in jobs[:2]]
                assert (await queue.depth()).dead == 3
            assert await other.replay(jobs[0].request)
            assert await other.drop(jobs[1].request)
            assert not await stores.queue.replay(jobs[0].request)
            assert not await stores.queue.drop(jobs[1].request)
            async with closing(other.deliveries(prefetch=3)) as deliveries:
                delivery = await anext(deliveries)
                assert (delivery.job.request, delivery.job.attempt) == (jobs[0].request, 2)
                assert (delivery.job.errors, delivery.job.log) == (("no such model",), b"")
                await other.bury(delivery, "again")
            dead = await stores.queue.dead(limit=9)
            assert [job.request for job in dead] == [jobs[2].request, jobs[0].request]
            assert dead[1].errors == ("no such model", "again")

    tell(place, story)


def test_a_record_that_is_no_job_is_passed_over(place: KafkaQueuePlace) -> None:
    async def story(stores: Stores) -> None:
        servers = KafkaServers(place.url)
        producer = servers.producer()
        await producer.start()
        try:
            await producer.send_and_wait(f"{servers.prefix}prompts", b"\xc1 what is this", None, 1)
        finally:
            await producer.stop()
        job = _job(1)
        await stores.queue.publish([job])
        async with closing(stores.queue.deliveries(prefetch=1)) as deliveries:
            delivery = await anext(deliveries)
            assert delivery.job == job
            await stores.queue.acknowledge([delivery])
            await _left(stores, 0)

    tell(place, story)


def test_a_worker_goes_on_when_kafka_is_back(own_services: OwnServices) -> None:
    place = KafkaQueuePlace(own_services.start("kafka")["kafka"])
    before, after = _job(0), _job(1)

    async def story(stores: Stores) -> None:
        await stores.queue.publish([before])
        async with closing(stores.queue.deliveries(prefetch=2)) as deliveries:
            held = await anext(deliveries)
            await asyncio.to_thread(own_services.kill, "kafka")
            with pytest.raises(UnavailableError, match="see that Kafka runs"):
                await stores.queue.publish([after])
            await stores.queue.acknowledge([held])
            await asyncio.to_thread(own_services.start, "kafka")
            await stores.queue.publish([after])
            delivery = await anext(deliveries)
            assert delivery.job == after
            await stores.queue.acknowledge([delivery])
            await _left(stores, 0)

    tell(place, story)
