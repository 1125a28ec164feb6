from __future__ import annotations

import asyncio
import base64
import secrets
from collections.abc import AsyncGenerator, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenweir.core.errors import ConfigError
from tokenweir.core.events import Accepted, Completed, Event, Failed, Token, Usage
from tokenweir.gateway.queued.dead import rotate
from tokenweir.gateway.queued.sealing import SealedEventLog, Sealer, SealError, SealingKey
from tokenweir.ports.eventlog import Append
from tokenweir.ports.requests import RequestRecord

ONE, TWO = (SealingKey.read(base64.b64encode(bytes([number]) * 32).decode()) for number in (1, 2))
REQUEST = b"r" * 16


@given(st.binary(max_size=200))
def test_what_is_sealed_opens_with_its_key_and_its_request_alone(data: bytes) -> None:
    sealed = Sealer([ONE]).seal(REQUEST, data)
    assert Sealer([TWO, ONE]).open(REQUEST, sealed) == data
    assert sealed.startswith(Sealer([ONE]).prefix)
    with pytest.raises(SealError, match=ONE.id.hex()):
        Sealer([TWO]).open(REQUEST, sealed)
    with pytest.raises(SealError, match="another request"):
        Sealer([ONE]).open(b"x" * 16, sealed)
    with pytest.raises(SealError, match="changed"):
        Sealer([ONE]).open(REQUEST, sealed[:-1] + bytes([sealed[-1] ^ 1]))


def test_the_same_is_never_sealed_alike() -> None:
    sealer = Sealer([ONE])
    assert len({sealer.seal(REQUEST, b"x") for _ in range(100)}) == 100


@given(st.binary(max_size=200))
def test_without_a_key_bytes_stay_as_they_are_and_are_read_with_one(data: bytes) -> None:
    stored = Sealer().seal(REQUEST, data)
    assert data in stored
    assert Sealer([ONE]).open(REQUEST, stored) == data


@pytest.mark.parametrize("text", ["", "short", base64.b64encode(b"x" * 31).decode(), "zz" * 32])
def test_a_key_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="32 bytes"):
        SealingKey.read(text)


def test_a_key_is_read_as_hexadecimal_digits_too_and_never_shown() -> None:
    key = SealingKey.read(secrets.token_hex(32))
    assert key.secret.hex() not in repr(key)
    assert SealingKey.read(base64.b64encode(key.secret).decode()) == key


class Memory:
    """An event log in memory."""

    def __init__(self) -> None:
        self.events: list[Event] = []

    async def append(self, batch: Sequence[Append]) -> None:
        self.events += [event for append in batch for event in append.events]

    async def read(self, request: bytes, lane: int, *, after: int = -1) -> Sequence[Event]:
        del request, lane
        return [event for event in self.events if event.seq > after]

    async def follow(self, request: bytes, lane: int, *, after: int = -1) -> AsyncGenerator[Sequence[Event]]:
        yield await self.read(request, lane, after=after)

    async def forget(self, requests: Sequence[tuple[bytes, int]]) -> None:
        del requests
        self.events.clear()


def test_events_are_sealed_one_by_one_and_come_back_as_they_were() -> None:
    events: tuple[Event, ...] = (
        Accepted(seq=0, request_id="req_x"),
        Token(seq=1, text="secret words", index=1),
        Usage(seq=2, input_tokens=3, output_tokens=4),
        Failed(seq=3, kind="upstream", message="secret words", status=500, retryable=True),
        Completed(seq=4, finish_reason="stop", embeddings=((1.0, 2.0),)),
    )

    async def story() -> None:
        memory = Memory()
        log = SealedEventLog(memory, Sealer([ONE]))
        await log.append([Append(request=REQUEST, lane=0, attempt=1, events=events)])
        assert tuple(await log.read(REQUEST, 0)) == events
        assert [tuple(batch) async for batch in log.follow(REQUEST, 0, after=1)] == [events[2:]]
        stored = repr(memory.events)
        assert "secret" not in stored
        assert "1.0" not in stored
        assert [type(event) for event in memory.events] == [type(event) for event in events]

    asyncio.run(story())


class Rows:
    """Stored requests in memory."""

    def __init__(self, records: Sequence[RequestRecord]) -> None:
        self.records = {record.request: record for record in records}

    async def unlike(self, prefix: bytes, limit: int) -> Sequence[RequestRecord]:
        return [
            record
            for record in self.records.values()
            if not record.body.startswith(prefix) or not (record.log or prefix).startswith(prefix)
        ][:limit]

    async def replace(self, batch: Sequence[tuple[bytes, bytes, bytes]]) -> None:
        for request, body, log in batch:
            self.records[request] = record_of(request, body, log)

    async def reseal(self, batch: Sequence[tuple[bytes, bytes, bytes, bytes]]) -> None:
        same = [(name, body, log) for name, was, body, log in batch if self.records[name].body == was]
        await self.replace(same)


def record_of(request: bytes, body: bytes, log: bytes) -> RequestRecord:
    return RequestRecord(
        request=request,
        key=b"",
        user=b"",
        team=b"",
        model="m",
        mode="stream",
        lane=0,
        route="requests",
        at=0,
        body=body,
        body_hash=b"",
        log=log,
    )


def test_rotating_seals_all_anew_and_the_old_key_can_go() -> None:
    old = Sealer([ONE])
    requests = [bytes([number]) * 16 for number in range(7)]
    rows = Rows(
        [
            record_of(request, old.seal(request, b"body"), old.seal(request, b"log") if request[0] else b"")
            for request in requests
        ]
    )
    assert asyncio.run(rotate(rows, Sealer([TWO, ONE]), most=3)) == 7
    assert asyncio.run(rotate(rows, Sealer([TWO, ONE]))) == 0
    new = Sealer([TWO])
    for request, record in rows.records.items():
        assert new.open(request, record.body) == b"body"
        assert not record.log or new.open(request, record.log) == b"log"
