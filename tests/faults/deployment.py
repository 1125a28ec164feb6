"""What is broken: two gateways that stay, workers and collectors that come and go, four services, and their users."""

from __future__ import annotations

import asyncio
import http.client
import itertools
import time
from collections import Counter
from collections.abc import Generator, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.factories.gateways import endpoint
from tests.factories.queued import User
from tests.factories.scaled import Scaled
from tests.faults.nursery import Nursery, Nursling
from tests.services.own import OwnServices

from tokenweir.app import load_config
from tokenweir.app.gateway import offline_quota
from tokenweir.core.ids import parse_id
from tokenweir.ports.ledger import LedgerFilter, LedgerRow
from tokenweir.sim.process import SimProcess
from tokenweir.stores.gateway.opening import open_ledger

SERVICES = ("postgresql", "redis", "rabbitmq", "kafka")
_SETTINGS = """
[worker]
concurrency = 16
attempts = 50
backoff = "50ms"
lease = "3s"
sweep_interval = "1s"
[gateway]
heartbeat = "1s"
drain_timeout = "5s"
"""
_PATIENCE_S = 100.0
_LOOK_S = 0.05
_AWAY = (OSError, http.client.HTTPException, AssertionError, KeyError)
"""What a user meets while something is down: no connection, half an answer, another status, an error for an event."""
ENDS = {"completed", "failed", "cancelled"}


class Asked:
    """A request that was accepted, and what its reader has seen of it."""

    def __init__(self, request: str, tokens: int, mode: str, reading: Future[list[dict[str, Any]]]) -> None:
        self.request = request
        self.tokens = tokens
        self.mode = mode
        self.reading = reading


class Deployment:
    """Two gateways over four services. Users ask again with the same key until some gateway has answered."""

    def __init__(
        self, scaled: Scaled, nursery: Nursery, services: OwnServices, threads: ThreadPoolExecutor
    ) -> None:
        self.scaled = scaled
        self.nursery = nursery
        self.services = services
        self.threads = threads
        self.gateways = nursery.start(("gateway", "--port", "0"), ("gateway", "--port", "0"))
        self._numbers = itertools.count()
        self.accepted: dict[str, Asked] = {}
        self.levels: dict[str, list[int]] = {}

    def users(self, *first: Nursling) -> list[User]:
        """Return the user at these doors, and then at those that stay."""
        return [User(door.url, self.scaled.key) for door in (*first, *self.gateways)]

    def ask(self, *first: Nursling, tokens: int = 6, mode: str = "stream", **more: object) -> Asked:
        """Have a request accepted, whatever happens, and begin to read it."""
        users = self.users(*first)
        key = f"fault {next(self._numbers)}"
        deadline = time.monotonic() + _PATIENCE_S
        request = ""
        for user in itertools.cycle(users):
            try:
                request = user.submit(tokens=tokens, mode=mode, key=key, **more)
                break
            except _AWAY as error:
                if time.monotonic() > deadline:
                    raise AssertionError(f"not accepted within {_PATIENCE_S:g} s") from error
                time.sleep(_LOOK_S)
        asked = Asked(request, tokens, mode, self.threads.submit(self._read, request, users))
        self.accepted[request] = asked
        return asked

    def ask_all(self, count: int, *, tokens: int = 6) -> list[Asked]:
        """Have several accepted at once, half of them as streams."""
        asking = [
            self.threads.submit(self.ask, tokens=tokens, mode=("stream", "single")[number % 2])
            for number in range(count)
        ]
        return [each.result() for each in asking]

    def _read(self, request: str, users: Sequence[User]) -> list[dict[str, Any]]:
        """Read a request's events to their end, coming back to another door whenever the stream breaks."""
        seen: list[dict[str, Any]] = []
        deadline = time.monotonic() + _PATIENCE_S
        for user in itertools.cycle(users):
            after = {"last_event_id": str(seen[-1]["seq"])} if seen else {}
            try:
                seen.extend(user.stream(request, **after))
            except _AWAY:
                time.sleep(_LOOK_S)
            if seen and seen[-1]["type"] in ENDS:
                return seen
            if time.monotonic() > deadline:
                raise AssertionError(f"{request} did not end within {_PATIENCE_S:g} s; seen: {seen[-3:]}")
        raise AssertionError("no door")

    @contextmanager
    def working(self, *, workers: int = 1, collectors: int = 1) -> Generator[None]:
        """Have healthy workers and collectors while the block runs."""
        begun = [self.nursery.begin("worker") for _ in range(workers)]
        begun += [self.nursery.begin("collector") for _ in range(collectors)]
        try:
            for each in begun:
                each.ready()
            yield
        finally:
            for each in begun:
                each.kill()

    def settled(self, asked: Iterable[Asked]) -> None:
        """Return when all have ended and are in the ledger."""
        deadline = time.monotonic() + _PATIENCE_S
        for each in asked:
            each.reading.result()
            while not self._settled(each.request):
                if time.monotonic() > deadline:
                    raise AssertionError(f"{each.request} was not settled within {_PATIENCE_S:g} s")
                time.sleep(_LOOK_S)

    def _settled(self, request: str) -> bool:
        try:
            return self.users()[0].status(request)["ended_at"] is not None
        except _AWAY:
            return False

    def proved(self, asked: Sequence[Asked], figures: Counter[str]) -> None:
        """Hold what became of requests to what is promised, and count it."""
        self.settled(asked)
        rows = asyncio.run(self._rows())
        one, other = self.users()
        for each in asked:
            seen = each.reading.result()
            # None answered twice to one reader, and the same to all.
            assert [event["seq"] for event in seen] == list(range(len(seen))), seen
            assert sum(event["type"] in ENDS for event in seen) == 1
            for user in (one, other):
                told = user.poll(each.request)
                assert told == seen, (
                    f"the reader saw {_unlike(seen, told)}, and it is told {_unlike(told, seen)}"
                )
            row = rows[each.request]
            self._ended_as_promised(each, seen, row)
            figures["events read"] += len(seen)
            figures[str(seen[-1]["type"])] += 1
            figures["attempts"] += max((int(event.get("attempt", 0)) for event in seen), default=0)
        # None lost, none charged that was not accepted; each once, for its request is the ledger's key.
        assert set(rows) == set(self.accepted)
        assert asyncio.run(self._verified()) == []
        figures["accepted"] += len(asked)
        figures["charged"] += len(asked)

    def _ended_as_promised(self, asked: Asked, seen: list[dict[str, Any]], row: LedgerRow) -> None:
        end = seen[-1]
        begun = [number for number, event in enumerate(seen) if event["type"] == "started"]
        tokens = sum(event["type"] == "token" for event in seen[begun[-1] :]) if begun else 0
        assert row.ending == end["type"]
        if end["type"] == "completed":
            assert row.output_tokens == asked.tokens
            assert asked.mode == "single" or tokens == asked.tokens, seen
            return
        # Whose tokens were seen is not answered anew: it is charged what came.
        assert (asked.mode, end["type"], end["kind"]) == ("stream", "failed", "interrupted"), seen
        assert tokens
        assert row.output_tokens == tokens

    async def _rows(self) -> dict[str, LedgerRow]:
        settings = load_config(self.scaled.config)
        async with open_ledger(settings.stores.gateway) as ledger:
            found = [row async for row in ledger.rows(LedgerFilter())]
        names = {parse_id(name, prefix="req").uuid.to_bytes(16, "big"): name for name in self.accepted}
        rows = {names.get(row.request, row.request.hex()): row for row in found}
        assert len(rows) == len(found)
        return rows

    async def _verified(self) -> list[str]:
        return list(await offline_quota(load_config(self.scaled.config), "verify"))

    def level(self) -> int:
        """Return what the gateways that stay hold in memory, in bytes."""
        return sum(door.resident_bytes() for door in self.gateways)


def _unlike(events: Sequence[object], others: Sequence[object]) -> list[object]:
    return [event for event in events if event not in others][:4]


@contextmanager
def deployment(home: Path, services: OwnServices) -> Generator[Deployment]:
    """Give a deployment over services of its own."""
    urls = services.start(*SERVICES)
    with SimProcess(ttft="constant:20ms", itl="constant:8ms") as sim, ThreadPoolExecutor(128) as threads:
        scaled = Scaled(home, urls, _SETTINGS + endpoint("one", sim.url))
        scaled.key = scaled.add_user("ada")
        limited = scaled.weir("quotas", "set", "1000000000", "tokens", "--per", "month", "--user", "ada")
        assert limited.returncode == 0, limited.stderr
        nursery = Nursery(home)
        try:
            yield Deployment(scaled, nursery, services, threads)
        finally:
            nursery.close()
