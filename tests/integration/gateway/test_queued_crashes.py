from __future__ import annotations

import asyncio
import contextlib
import http.client
import random
import signal
import sqlite3
from collections.abc import AsyncGenerator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
from tests.contract.gateway_stores.harness import acceptance, charge, new_id, reserve
from tests.factories.gateways import GatewayProcess, endpoint, gateway
from tests.factories.queued import User, waiting

from tokenweir.core.clock import SystemClock
from tokenweir.core.events import Completed, Event, Failed, Started, Token, Usage
from tokenweir.core.quota import Amounts, Limit
from tokenweir.gateway.endpoints.pool import Endpoint, EndpointFacts, Pool
from tokenweir.gateway.endpoints.upstream import Origin, UpstreamClient
from tokenweir.gateway.metering.estimate import UsualOutput
from tokenweir.gateway.metering.prices import PriceTable
from tokenweir.gateway.metering.settling import Settler
from tokenweir.gateway.queued.dead import Graveyard
from tokenweir.gateway.queued.endings import Ended
from tokenweir.gateway.queued.kept import Kept, file_log, opening
from tokenweir.gateway.queued.node import Metering, QueuedPolicy, QueuedStores, Workshop
from tokenweir.gateway.queued.sealing import SealingKey
from tokenweir.ports.eventlog import Append
from tokenweir.ports.intake import Acceptance, Taken
from tokenweir.ports.ledger import LedgerFilter, LedgerRow
from tokenweir.ports.queue import Job
from tokenweir.ports.quota import Reserve
from tokenweir.sim.process import SimProcess
from tokenweir.stores.gateway.sqlite.database import Database
from tokenweir.stores.gateway.sqlite.events import SqliteEventLog
from tokenweir.stores.gateway.sqlite.ledger import SqliteLedger
from tokenweir.stores.gateway.sqlite.queue import SqliteQueue
from tokenweir.stores.gateway.sqlite.quota import SqliteQuota
from tokenweir.stores.gateway.sqlite.requests import SqliteIntake, SqliteRequests

SETTINGS = '[worker]\nconcurrency = 3\nattempts = 6\nbackoff = "10ms"\nlease = "2s"\n'


def killed(door: GatewayProcess, user: User) -> None:
    """Kill the gateway as a power failure would, and start it over the same data."""
    door.stop(signal.SIGKILL)
    door.start()
    user.url = door.url


def charged(door: GatewayProcess) -> dict[str, list[str]]:
    """Return the rows of the ledger by request, each of which there is once; and hold the counters to it."""
    rows = [line.split(",") for line in door.weir("usage", "--by", "request").stdout.splitlines()[1:]]
    found = {row[0]: row for row in rows}
    assert len(found) == len(rows)
    return found


def test_kill_9_loses_nothing_says_nothing_twice_and_charges_once() -> None:
    with (
        SimProcess(ttft="constant:5ms", itl="constant:30ms") as sim,
        gateway(SETTINGS + endpoint("one", sim.url)) as door,
    ):
        user = User(door.url, door.key)
        streamed = user.submit(tokens=200)
        retried = user.submit(tokens=30, retry_after_tokens=True)
        whole = user.submit(tokens=60, mode="single")
        waits = [user.submit(tokens=2, mode=mode) for mode in ("stream", "single", "stream")]
        seen: list[dict[str, Any]] = []
        for event in user.stream(streamed):
            seen.append(event)
            if sum(each["type"] == "token" for each in seen) == 5:
                break
        waiting(
            lambda: True if any(each["type"] == "token" for each in user.poll(retried)) else None,
            "its tokens",
        )
        killed(door, user)
        seen += user.stream(streamed, last_event_id=str(seen[-1]["seq"]))
        assert [event["seq"] for event in seen] == list(range(len(seen)))
        assert seen == user.poll(streamed)
        # Its reader has seen tokens: nothing is said twice, and the end says why.
        assert (seen[-1]["type"], seen[-1]["kind"]) == ("failed", "interrupted")
        again = user.until(retried, "completed")
        assert again["attempt"] > 1
        assert again["token_usage"]["completion_tokens"] == 30
        assert user.until(whole, "completed")["attempt"] == 2
        for request in waits:
            assert user.until(request, "completed")["attempt"] == 1
        rows = charged(door)
        assert set(rows) == {streamed, retried, whole, *waits}
        assert (rows[streamed][11], rows[streamed][12]) == ("estimated", "failed")
        assert [rows[request][7] for request in (retried, whole, *waits)] == ["30", "60", "2", "2", "2"]
        assert door.stop() == 0
        assert door.weir("quotas", "verify").returncode == 0


def test_killed_at_any_moment_all_that_was_accepted_ends() -> None:
    moments = random.Random(7)
    with (
        SimProcess(ttft="constant:3ms", itl="constant:1ms") as sim,
        gateway(SETTINGS + endpoint("one", sim.url)) as door,
    ):
        user = User(door.url, door.key)
        accepted: list[str] = []
        for round_number in range(3):
            for number in range(moments.randrange(3, 9)):
                key = f"{round_number} {number}"
                accepted.append(
                    user.submit(mode="single", tokens=moments.randrange(1, 9), key=key, priority=number % 5)
                )
            killed(door, user)
            # The answer may have been lost with the gateway: asking again is the same request.
            body = user.status(accepted[-1])
            assert body["request_id"] == accepted[-1]
        for request in accepted:
            assert user.until(request, "completed")["last_seq"] == 5
        rows = charged(door)
        assert set(rows) == set(accepted)
        assert all(row[12] == "completed" for row in rows.values())
        assert door.stop() == 0
        assert door.weir("quotas", "verify").returncode == 0


def test_an_idempotent_direct_request_outlives_its_gateway() -> None:
    with (
        SimProcess(ttft="constant:1s", itl="constant:1ms") as sim,
        gateway(SETTINGS + endpoint("one", sim.url)) as door,
        ThreadPoolExecutor(1) as threads,
    ):
        user = User(door.url, door.key)
        body = {"model": "sim", "messages": [{"role": "user", "content": "x"}], "max_tokens": 4}
        cut_off = threads.submit(user.ask, "POST", "/v1/chat/completions", body, idempotency_key="direct")
        waiting(lambda: True if sim.truth()["running"] else None, "the endpoint works")
        door.stop(signal.SIGKILL)
        assert isinstance(cut_off.exception(), OSError | http.client.HTTPException)
        door.start()
        user.url = door.url
        answer = user.ask("POST", "/v1/chat/completions", body, idempotency_key="direct")
        assert answer.status == 200
        assert answer.headers["idempotent-replayed"] == "true"
        assert answer.json()["usage"]["completion_tokens"] == 4
        assert len(charged(door)) == 1


def test_a_request_that_was_accepted_and_not_begun_is_begun_for_whoever_repeats_it(sim: SimProcess) -> None:
    with gateway(SETTINGS + endpoint("one", sim.url)) as door:
        user = User(door.url, door.key)
        body = {"model": "sim", "messages": [{"role": "user", "content": "x"}], "max_tokens": 4}
        first = user.ask("POST", "/v1/chat/completions", body, idempotency_key="direct")
        door.stop(signal.SIGKILL)
        with contextlib.closing(sqlite3.connect(door.home / "gateway.db")) as file, file:
            # As a process leaves it that is killed right after the acceptance.
            file.execute("UPDATE gateway_requests SET attempt = 0, ended_at = NULL, last_seq = -1, log = x''")
            file.execute("DELETE FROM gateway_ledger")
        door.start()
        user.url = door.url
        answer = user.ask("POST", "/v1/chat/completions", body, idempotency_key="direct")
        assert answer.status == 200
        assert answer.headers["idempotent-replayed"] == "true"
        assert answer.json()["id"] == first.json()["id"]
        assert len(charged(door)) == 1


KEY, USER, REQUEST = b"k" * 16, b"u" * 16, b"r" * 16
MONTH = Limit(scope="key", subject=KEY, unit="tokens", window="month", amount=10_000)


class Bench:
    """A workshop over a file, as a gateway has it."""

    def __init__(
        self, database: Database, policy: QueuedPolicy, *, pool: Pool, log: type[SqliteEventLog]
    ) -> None:
        clock = SystemClock()
        self.quota = SqliteQuota(database, clock)
        self.jobs = SqliteQueue(database, clock)
        self.ledger = SqliteLedger(database, self.quota)
        self.requests = SqliteRequests(database, clock)
        self.intake = SqliteIntake(database, clock, self.quota, self.jobs)
        self.settler = Settler(self.ledger, self.quota)
        stores = QueuedStores(
            intake=self.intake, requests=self.requests, jobs=self.jobs, events=log(database)
        )
        metering = Metering(settler=self.settler, usual=UsualOutput(), prices=PriceTable(), quota=self.quota)
        self.shop = Workshop(stores, pool, metering, policy=policy, clock=clock)

    async def rows(self) -> list[LedgerRow]:
        return [row async for row in self.ledger.rows(LedgerFilter())]


@asynccontextmanager
async def bench(
    path: Path,
    policy: QueuedPolicy,
    *,
    works: bool,
    pool: Pool | None = None,
    log: type[SqliteEventLog] = SqliteEventLog,
) -> AsyncGenerator[Bench]:
    database = Database(f"sqlite:///{path}")
    try:
        made = Bench(database, policy, pool=pool or Pool(()), log=log)
        await made.jobs.load()
        async with asyncio.timeout(30), asyncio.TaskGroup() as group:
            tasks = [group.create_task(made.settler.run())]
            if works:
                tasks.append(group.create_task(made.shop.run()))
            yield made
            for task in tasks:
                task.cancel()
    finally:
        database.close()


@pytest.mark.parametrize("settled", [False, True], ids=["before settling", "before acknowledging"])
@pytest.mark.parametrize("sealed", [False, True], ids=["plain", "sealed"])
def test_an_end_that_was_written_is_settled_once_after_a_crash(
    tmp_path: Path,
    settled: bool,  # noqa: FBT001
    sealed: bool,  # noqa: FBT001
) -> None:
    keys = (SealingKey.read("ab" * 32),) if sealed else ()
    policy = QueuedPolicy(seal_keys=keys)
    secret = b"the rivers of Babylon"

    async def before() -> None:
        idle = msgspec.structs.replace(policy, works=False)
        async with bench(tmp_path / "gateway.db", idle, works=False) as made:
            kept = Kept(path="/v1/completions", body=msgspec.Raw(b'{"model":"m","prompt":"%b"}' % secret))
            reserve = Reserve(
                request=REQUEST,
                key=KEY,
                user=USER,
                team=b"",
                model="m",
                limits=(MONTH,),
                estimate=Amounts(tokens=500),
                lease_ns=10**12,
            )
            body = made.shop.sealer.seal(REQUEST, kept.encode())
            wanted = Acceptance(
                reserve=reserve, mode="stream", lane=1, route="requests", body=body, body_hash=b"h" * 32
            )
            (taken,) = await made.intake.accept([wanted])
            assert isinstance(taken, Taken)
            record = await made.requests.claim(REQUEST, attempt=1, lease_ns=10**12)
            assert record is not None
            events: tuple[Event, ...] = (
                *opening(record),
                Started(seq=2, endpoint="e"),
                Token(seq=3, text=secret.decode()),
                Usage(seq=4, input_tokens=7, output_tokens=5),
                Completed(seq=5, finish_reason="stop"),
            )
            await made.shop.events.append([Append(request=REQUEST, lane=1, attempt=1, events=events)])
            if settled:
                found = Ended(record=record, kept=kept, events=events)
                async with asyncio.TaskGroup() as group:
                    work = group.create_task(made.shop.run())
                    await made.shop.ends.take(found, Job(request=REQUEST, lane=1))
                    work.cancel()

    async def after() -> None:
        async with bench(tmp_path / "gateway.db", policy, works=True) as made:
            while (record := await made.requests.get(REQUEST)) is None or record.ended_at is None:  # noqa: ASYNC110 - the workshop tells nobody
                await asyncio.sleep(0.01)
            while (await made.jobs.depth()).ready or (await made.jobs.depth()).unacknowledged:  # noqa: ASYNC110 - as above
                await asyncio.sleep(0.01)
            (row,) = await made.rows()
            assert (row.input_tokens, row.output_tokens, row.source, row.endpoint) == (7, 5, "server", "e")
            assert (await made.quota.use([MONTH]))[0].remaining == 10_000 - 12
            assert await made.quota.verify() == []
            told = await made.shop.reading.status(record)
            assert told["status"] == "completed"
            assert record.last_seq == 5

    asyncio.run(before())
    asyncio.run(after())
    stored = b"".join(path.read_bytes() for path in tmp_path.iterdir())
    assert (secret in stored) is not sealed


class ShortLog(SqliteEventLog):
    """The embedded log, which takes as little as a record of another may hold."""

    most_bytes = 600


def test_an_answer_that_is_too_long_for_the_log_fails_is_charged_and_holds_nobody_up(
    tmp_path: Path, sim: SimProcess
) -> None:
    async def story() -> None:
        facts = EndpointFacts(name="e", kind="sim", model="m", upstream_model="sim")
        client = UpstreamClient(Origin.parse(sim.url))
        pool = Pool([Endpoint(facts, client)])
        long, short = reserve(), reserve()
        async with bench(
            tmp_path / "gateway.db", QueuedPolicy(), works=True, pool=pool, log=ShortLog
        ) as made:

            def asked(wanted: Reserve, tokens: int) -> Acceptance:
                body = b'{"model":"m","prompt":"x","max_tokens":%d}' % tokens
                kept = Kept(path="/v1/completions", body=msgspec.Raw(body)).encode()
                return acceptance(wanted, mode="single", body=made.shop.sealer.seal(wanted.request, kept))

            await made.intake.accept([asked(long, 300), asked(short, 3)])
            ends: list[Event] = []
            for wanted in (long, short):
                while (record := await made.requests.get(wanted.request)) is None or record.ended_at is None:  # noqa: ASYNC110 - the workshop tells nobody
                    await asyncio.sleep(0.01)
                ends.append((await made.shop.reading.events(record))[-1])
            assert isinstance(ends[0], Failed)
            assert (ends[0].kind, ends[0].retryable) == ("answer_too_long", False)
            assert isinstance(ends[1], Completed)
            rows = {row.request: (row.output_tokens, row.source, row.ending) for row in await made.rows()}
            assert rows == {
                long.request: (300, "server", "failed"),
                short.request: (3, "server", "completed"),
            }
            client.close()

    asyncio.run(story())


@pytest.mark.parametrize("most", [5, 2**62])
def test_a_dead_letter_that_is_replayed_twice_at_once_is_done_once(tmp_path: Path, most: int) -> None:
    async def story() -> None:
        async with bench(tmp_path / "gateway.db", QueuedPolicy(), works=False) as made:
            body = msgspec.Raw(b'{"model":"m","prompt":"x","max_tokens":%d}' % most)
            kept = Kept(path="/v1/completions", body=body).encode()
            wanted = reserve()
            sealer, name = made.shop.sealer, wanted.request
            (taken,) = await made.intake.accept([acceptance(wanted, body=sealer.seal(name, kept))])
            assert isinstance(taken, Taken)
            jobs = made.jobs.deliveries(prefetch=1)
            await made.jobs.bury(await anext(jobs), "it failed")
            await jobs.aclose()
            await made.ledger.settle(
                [charge(wanted, taken.at, last_seq=1, log=sealer.seal(name, file_log(())))]
            )
            graveyard = Graveyard(
                made.jobs, made.requests, made.intake, made.shop.reading, sealer=sealer, queue_lease_ns=10**12
            )
            async with asyncio.TaskGroup() as group:
                again = [group.create_task(graveyard.replay(name, new_id())) for _ in range(2)]
            assert again[0].result() == again[1].result() != name
            depth = await made.jobs.depth()
            assert (depth.ready, depth.dead) == (1, 0)
            # However much its body allows, what is set aside for it can be counted.
            assert await made.quota.use([MONTH]) != []
            assert list(await made.quota.verify()) == []

    asyncio.run(story())
