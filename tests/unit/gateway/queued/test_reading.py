from __future__ import annotations

import asyncio
from pathlib import Path

import msgspec
from tests.contract.gateway_stores.harness import USER, acceptance, reserve
from tests.contract.gateway_stores.test_sqlite_stores import SqlitePlace

from tokenweir.core.events import Completed, Started, Token, Usage
from tokenweir.gateway.queued.kept import Kept
from tokenweir.gateway.queued.reading import Reading
from tokenweir.gateway.queued.sealing import Sealer
from tokenweir.ports.eventlog import Append

KEPT = Kept(path="/v1/completions", body=msgspec.Raw(b'{"model":"m","prompt":"x"}'))


def test_a_list_tells_of_a_request_that_ends_while_it_is_listed(tmp_path: Path) -> None:
    async def story() -> None:
        async with SqlitePlace(tmp_path / "gateway.db").open() as stores:
            sealer = Sealer()
            wanted = reserve()
            body = sealer.seal(wanted.request, KEPT.encode())
            await stores.intake.accept([acceptance(wanted, body=body)])
            reading = Reading(stores.requests, stores.events, sealer)
            await stores.requests.claim(wanted.request, attempt=1, lease_ns=60_000_000_000)
            record = await reading.record(wanted.request)
            (listed,) = await stores.requests.history(USER, before=None, limit=1)
            answer = (
                Started(seq=2),
                Token(seq=3, text="yes"),
                Usage(seq=4, input_tokens=1, output_tokens=1),
                Completed(seq=5, finish_reason="stop"),
            )
            await stores.events.append(
                [Append(request=wanted.request, lane=record.lane, attempt=1, events=answer)]
            )
            told = await reading.listed(listed)
            whole = await reading.status(record)
        assert (told["status"], told["last_seq"]) == ("completed", 5)
        assert "result" not in told
        assert {**told, "result": whole["result"]} == whole

    asyncio.run(story())
