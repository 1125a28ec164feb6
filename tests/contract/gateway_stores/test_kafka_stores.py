"""Events in Kafka; requests are the embedded ones here."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from tests.contract.gateway_stores.harness import (
    ABSENT,
    LEASE_NS,
    Place,
    Requests,
    Stores,
    acceptance,
    reserve,
)
from tests.contract.gateway_stores.queue_contract import EventLogContract, tell

from tokenweir.core.clock import SystemClock
from tokenweir.core.errors import UnavailableError
from tokenweir.core.events import Completed, Event, Token
from tokenweir.core.ids import uuid7
from tokenweir.ports.eventlog import Append
from tokenweir.stores.gateway.kafka.connection import MESSAGE_BYTES, KafkaServers
from tokenweir.stores.gateway.kafka.eventlog import KafkaEventLog
from tokenweir.stores.gateway.kafka.reader import AT_HAND
from tokenweir.stores.gateway.kafka.records import Packing
from tokenweir.stores.gateway.sqlite.database import Database
from tokenweir.stores.gateway.sqlite.queue import SqliteQueue
from tokenweir.stores.gateway.sqlite.quota import SqliteQuota
from tokenweir.stores.gateway.sqlite.requests import SqliteIntake, SqliteRequests

pytestmark = pytest.mark.xdist_group("services")

# A broker of one node takes a while to make 64.
PARTITIONS = 4


class Claims:
    """Who writes, as the requests say."""

    def __init__(self, requests: Requests) -> None:
        self._requests = requests

    async def attempts(self, requests: Sequence[bytes]) -> Mapping[bytes, int]:
        found = [await self._requests.get(request) for request in requests]
        return {record.request: record.attempt for record in found if record is not None}

    async def began(self, request: bytes) -> int | None:
        record = await self._requests.get(request)
        return record.at if record is not None and record.attempt else None


class KafkaPlace:
    """Topics with a prefix of their own, and a SQLite file."""

    clock = None

    def __init__(self, url: str, prefix: str, path: Path, *, packing: Packing = "lane") -> None:
        self.servers = KafkaServers(url, prefix=prefix)
        self.at_hand = AT_HAND
        self.packing: Packing = packing
        self._path = path

    @asynccontextmanager
    async def open(self) -> AsyncGenerator[Stores]:
        clock = SystemClock()
        database = Database(f"sqlite:///{self._path}")
        try:
            requests = SqliteRequests(database, clock)
            quota, queue = SqliteQuota(database, clock), SqliteQueue(database, clock)
            events = KafkaEventLog(
                self.servers,
                Claims(requests),
                packing=self.packing,
                at_hand=self.at_hand,
                partitions=PARTITIONS,
            )
            async with events.open():
                yield Stores(
                    quota=ABSENT,
                    ledger=ABSENT,
                    intake=SqliteIntake(database, clock, quota, queue),
                    requests=requests,
                    queue=ABSENT,
                    events=events,
                )
        finally:
            database.close()


@pytest.fixture(params=["lane", "none"])
def place(request: pytest.FixtureRequest, kafka_url: str, kafka_prefix: str, tmp_path: Path) -> Place:
    return KafkaPlace(kafka_url, kafka_prefix, tmp_path / "embedded.db", packing=request.param)


class TestKafkaEventLog(EventLogContract):
    pass


def _said(count: int) -> tuple[Event, ...]:
    return (
        *(Token(seq=seq, text=f"t{seq}") for seq in range(count)),
        Completed(seq=count, finish_reason="stop"),
    )


@pytest.mark.parametrize("hours", [-1, 1])
def test_a_request_is_found_whose_gateways_clock_was_wrong(place: Place, hours: int) -> None:
    at = time.time_ns() + hours * 3_600_000_000_000
    wanted = acceptance(reserve(request=uuid7(at, 7).to_bytes(16, "big")))
    request, lane = wanted.reserve.request, wanted.lane

    async def write(stores: Stores) -> None:
        await stores.intake.accept([wanted])
        await stores.requests.claim(request, attempt=1, lease_ns=LEASE_NS)
        await stores.events.append([Append(request=request, lane=lane, attempt=1, events=_said(3))])

    async def read(stores: Stores) -> None:
        assert tuple(await stores.events.read(request, lane)) == _said(3)

    tell(place, write, read)


def test_what_is_as_long_as_may_be_is_taken_and_no_longer(place: Place) -> None:
    wanted = acceptance(reserve())
    request, lane = wanted.reserve.request, wanted.lane

    def answer(size: int) -> Append:
        # A number takes nine bytes.
        vector = tuple((number + 0.5) / 3 for number in range(size // 9 - 9))
        return Append(request=request, lane=lane, attempt=1, events=(Completed(seq=0, embeddings=(vector,)),))

    async def story(stores: Stores) -> None:
        assert isinstance(stores.events, KafkaEventLog)
        await stores.intake.accept([wanted])
        await stores.requests.claim(request, attempt=1, lease_ns=LEASE_NS)
        longest = answer(stores.events.most_bytes)
        with pytest.raises(UnavailableError):
            await stores.events.append([answer(2 * MESSAGE_BYTES)])
        await stores.events.append([longest])
        assert tuple(await stores.events.read(request, lane)) == longest.events

    tell(place, story)


def test_who_comes_into_a_lane_later_reads_what_came_before(place: Place) -> None:
    wanted = acceptance(reserve())
    request, lane = wanted.reserve.request, wanted.lane

    async def story(stores: Stores) -> None:
        await stores.intake.accept([wanted])
        await stores.requests.claim(request, attempt=1, lease_ns=1)
        await stores.events.append([Append(request=request, lane=lane, attempt=1, events=_said(3)[:3])])
        # The lane is read from here on.
        assert await stores.events.read(acceptance(reserve()).reserve.request, lane) == []
        await stores.requests.claim(request, attempt=2, lease_ns=LEASE_NS)
        await stores.events.append([Append(request=request, lane=lane, attempt=2, events=())])
        assert tuple(await stores.events.read(request, lane)) == _said(3)[:3]

    tell(place, story)


def test_what_had_to_make_room_is_read_again_and_what_is_not_ours_is_passed_over(
    place: Place,
) -> None:
    assert isinstance(place, KafkaPlace)
    place.at_hand = 8
    requests = [acceptance(reserve()).reserve.request for _ in range(6)]

    async def story(stores: Stores) -> None:
        await stores.events.read(requests[0], 1)
        for seq in range(5):
            await _stray(place.servers)
            for request in requests:
                event = Token(seq=seq, text=f"{seq}")
                await stores.events.append([Append(request=request, lane=1, attempt=1, events=(event,))])
        for request in requests:
            found = await stores.events.read(request, 1, after=1)
            assert [event.seq for event in found] == [2, 3, 4]

    tell(place, story)


def test_a_long_answer_that_is_followed_makes_room_from_its_beginning(place: Place) -> None:
    assert isinstance(place, KafkaPlace)
    place.at_hand = 600
    request, lane, pieces, length = acceptance(reserve()).reserve.request, 2, 30, 50

    async def story(stores: Stores) -> None:
        seen: list[int] = []
        caught_up = asyncio.Event()

        async def follow() -> None:
            async for events in stores.events.follow(request, lane):
                seen.extend(event.seq for event in events)
                caught_up.set()

        async with asyncio.timeout(60), asyncio.TaskGroup() as group:
            group.create_task(follow())
            for piece in range(pieces):
                first = piece * length
                told: list[Event] = [Token(seq=first + number, text="a") for number in range(length)]
                if piece == pieces - 1:
                    told[-1] = Completed(seq=first + length - 1)
                await stores.events.append(
                    [Append(request=request, lane=lane, attempt=1, events=tuple(told))]
                )
                while len(seen) < first + length:
                    caught_up.clear()
                    await caught_up.wait()
        assert seen == list(range(pieces * length))
        found = await stores.events.read(request, lane)
        assert [event.seq for event in found] == seen

    tell(place, story)


async def _stray(servers: KafkaServers) -> None:
    """Write a record that no Tokenweir has written."""
    producer = servers.producer()
    await producer.start()
    try:
        async with asyncio.timeout(20):
            await producer.send_and_wait(f"{servers.prefix}tokens", b"\xc1 what is this", None, 1)
    finally:
        await producer.stop()
