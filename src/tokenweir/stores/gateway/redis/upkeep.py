"""Counting Redis's counters anew from the ledger and the open reservations, and proving that they agree."""

from __future__ import annotations

import asyncio
import secrets
from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Final, NamedTuple, cast

from tokenweir.core.clock import SystemClock
from tokenweir.core.errors import DiskFullError, UnavailableError
from tokenweir.core.quota import Amounts, Scope, Unit, Window, window_start
from tokenweir.ports.quota import OpenReservation, Reserve
from tokenweir.stores.gateway.postgresql.counting import PostgresqlUse, Used, View
from tokenweir.stores.gateway.redis.connection import LostEpochError, RedisConnection
from tokenweir.stores.gateway.redis.quota import (
    ACCEPTED,
    SCOPES,
    UNITS,
    WINDOWS,
    Held,
    RedisQuota,
    encode,
    held,
    restored,
)
from tokenweir.stores.gateway.reporting import LOG

_PAGE: Final = 1000
_LOOKS: Final = 4
_LOOK_AGAIN_S: Final = 0.1
_HEAL_S: Final = 0.5
_REMEMBERED_S: Final = 600
"""Rows this young are remembered as settled by a rebuild: whoever wrote them may not have told the counters yet."""


class _Key(NamedTuple):
    scope: Scope
    subject: bytes
    window: Window
    start_at: int
    unit: Unit
    model: str


class RedisQuotaUpkeep(RedisQuota):
    """The quota store in Redis, with its upkeep. :meth:`watch` brings lost counters back by itself."""

    def __init__(self, redis: RedisConnection, use_of: PostgresqlUse) -> None:
        super().__init__(redis, use_of)
        self._server = redis
        self._tables = use_of

    @classmethod
    async def open(cls, redis: RedisConnection, use_of: PostgresqlUse) -> RedisQuotaUpkeep:
        """Return the store with its counters there: found, or counted from the ledger.

        Raises:
            ConfigError: the server may evict counters.
            UnavailableError: Redis or PostgreSQL cannot be reached.
        """
        await redis.look()
        store = cls(redis, use_of)
        await store.heal()
        return store

    async def watch(self) -> None:
        """Count anew whenever the counters are lost, until cancelled."""
        while True:
            await asyncio.sleep(_HEAL_S)
            try:
                await self.heal()
            except (UnavailableError, DiskFullError) as error:
                LOG.warning("the quota counters wait for their stores", reason=str(error))

    async def heal(self) -> None:
        """Count anew if the counters are missing and no other process counts them."""
        if self._server.epoch is not None and not await self._stale():
            return
        self._server.epoch = None
        try:
            await self._entered()
        except LostEpochError:
            async with self._tables.rebuilding():
                try:
                    await self._entered()
                except LostEpochError:
                    counters = await self._count_anew()
                    LOG.warning("counted the quota counters anew", counters=counters)
                    await self._entered()

    async def _stale(self) -> bool:
        found = await self._server.command("GET", self._server.epoch_key)
        return found is None or cast("bytes", found).decode() != self._server.epoch

    async def rebuild(self) -> int:
        """Count everything anew and return the number of counters; reservations wait meanwhile."""
        async with self._tables.rebuilding():
            counters = await self._count_anew()
        await self._entered()
        return counters

    async def _count_anew(self) -> int:
        redis, token = self._server, secrets.token_hex(16)
        run = await redis.run_id()
        await redis.begin(token)
        survivors = [each async for page in self._survivors("survivors") for each in page]
        # What intake has reserved and not written by now is refused when it comes to be written.
        epoch = await self._tables.next_epoch()
        await self._clean()
        at = await self._now()
        async with self._tables.view() as view:
            used = await view.used(at * 1000)
            for first in range(0, len(used), _PAGE):
                rows = [_row(each) for each in used[first : first + _PAGE]]
                await redis.call("count", encode(rows), at)
            await self._restore(view, survivors)
            async for page in view.settled_since(SystemClock().wall_ns() - _REMEMBERED_S * 1_000_000_000):
                if page:
                    settled = [(request, instant // 1000) for request, instant in page]
                    await redis.call("remember", encode(settled), _REMEMBERED_S)
        await redis.call("finish", f"{epoch}:{run}")
        return len([None async for _, counter in self._counters() for _ in counter])

    async def _restore(self, view: View, survivors: Sequence[Held]) -> None:
        """Install the reservations that are open: of accepted requests, and those that Redis still had."""
        async for page in view.reservations():
            if page:
                await self._server.call("install", encode([restored(each, ACCEPTED) for each in page]))
        for first in range(0, len(survivors), _PAGE):
            some = survivors[first : first + _PAGE]
            settled = await view.settled([each.open.reserve.request for each in some])
            rows = [
                restored(each.open, each.kind) for each in some if each.open.reserve.request not in settled
            ]
            if rows:
                await self._server.call("install", encode(rows))

    async def _survivors(self, script: str) -> AsyncIterator[Sequence[Held]]:
        first = 0
        while page := held(await self._server.call(script, first, first + _PAGE - 1)):
            yield page
            first += _PAGE

    async def _now(self) -> int:
        seconds, micros = cast("tuple[bytes, bytes]", await self._server.command("TIME"))
        return int(seconds) * 1_000_000 + int(micros)

    async def open_reservations(self) -> int:
        """Return how many there are."""
        return int(cast("int", await self._server.command("ZCARD", f"{self._server.prefix}open")))

    async def _clean(self) -> None:
        await self._server.command("DEL", f"{self._server.prefix}open")
        async for keys in self._scan("[cr]*"):
            await self._server.command("UNLINK", *keys)

    async def _scan(self, what: str) -> AsyncIterator[Sequence[bytes]]:
        cursor: object = b"0"
        while True:
            cursor, keys = cast(
                "tuple[bytes, list[bytes]]",
                await self._server.command(
                    "SCAN", cursor, "MATCH", f"{self._server.prefix}{what}", "COUNT", _PAGE
                ),
            )
            ours = [key for key in keys if not key.endswith((b"building", b"epoch", b"open"))]
            if ours:
                yield ours
            if cursor in {b"0", 0}:
                return

    async def _counters(self) -> AsyncIterator[tuple[bytes, Mapping[bytes, bytes]]]:
        """Yield each hash of counters, without its prefix."""
        skip = len(self._server.prefix) + 1
        async for keys in self._scan("c*"):
            for key in keys:
                found = await self._server.command("HGETALL", key)
                if isinstance(found, dict):
                    yield key[skip:], cast("dict[bytes, bytes]", found)
                else:
                    flat = cast("list[bytes]", found)
                    yield key[skip:], dict(zip(flat[::2], flat[1::2], strict=True))

    async def verify(self) -> Sequence[str]:
        """Return a line for each counter that differs from ledger plus open reservations; empty is proof.

        What is settled during a look is in one place and not yet in the other. A difference that stays the same over
        several looks is none of that.
        """
        await self._entered()
        differences = await self._differences()
        for _ in range(_LOOKS - 1):
            if not differences:
                return ()
            await asyncio.sleep(_LOOK_AGAIN_S)
            again = await self._differences()
            differences = {
                key: now
                for key, now in again.items()
                if key in differences and now[0] - now[1] == differences[key][0] - differences[key][1]
            }
        return [
            f"{key.scope} {key.subject.hex()} {key.model or 'all models'}: {key.unit} in the {key.window}"
            f" from {key.start_at}: the counter says {counter}, the ledger {truth}"
            for key, (counter, truth) in sorted(differences.items())
        ]

    async def _differences(self) -> Mapping[_Key, tuple[int, int]]:
        reservations = {
            each.open.reserve.request: each.open async for page in self._survivors("open") for each in page
        }
        at = await self._now() * 1000
        counted: dict[_Key, int] = {}
        async for name, fields in self._counters():
            for field, amount in fields.items():
                key = _key(name, field)
                if key.start_at == window_start(key.window, at):
                    counted[key] = int(amount)
        async with self._tables.view() as view:
            async for page in view.reservations():
                for each in page:
                    reservations.setdefault(each.reserve.request, each)
            truth = _truth(await view.used(at, but=list(reservations)), list(reservations.values()), at)
        return {
            key: (counted.get(key, 0), truth.get(key, 0))
            for key in counted.keys() | truth.keys()
            if counted.get(key, 0) != truth.get(key, 0)
        }


def _row(used: Used) -> tuple[object, ...]:
    windows = ([each.requests, each.tokens, each.cost] for each in (used.minute, used.day, used.month))
    return (used.key, used.user, used.team, used.model, *windows)


def _key(name: bytes, field: bytes) -> _Key:
    start, _, subject = name[2:].partition(b":")
    return _Key(
        scope=SCOPES[int(name[:1]) - 1],
        subject=subject,
        window=WINDOWS[int(name[1:2]) - 1],
        start_at=int(start) * 1_000_000_000,
        unit=UNITS["rtc".index(field[:1].decode())],
        model=field[1:].decode(),
    )


def _truth(used: Sequence[Used], reservations: Sequence[OpenReservation], at: int) -> Mapping[_Key, int]:
    """Return what each counter of the windows at an instant should say."""
    truth: Counter[_Key] = Counter()
    for each in used:
        subjects = (each.key, each.user, each.team)
        for window, amounts in zip(WINDOWS, (each.minute, each.day, each.month), strict=True):
            _add(truth, subjects, each.model, window, window_start(window, at), amounts)
    for each in reservations:
        reserve: Reserve = each.reserve
        for window in WINDOWS:
            if window_start(window, each.at) == window_start(window, at):
                subjects = (reserve.key, reserve.user, reserve.team)
                _add(truth, subjects, reserve.model, window, window_start(window, at), reserve.estimate)
    return truth


def _add(
    truth: Counter[_Key],
    subjects: tuple[bytes, bytes, bytes],
    model: str,
    window: Window,
    start_at: int,
    amounts: Amounts,
) -> None:
    for scope, subject in zip(SCOPES, subjects, strict=True):
        if subject:
            for unit in UNITS:
                for each in {"", model}:
                    truth[_Key(scope, subject, window, start_at, unit, each)] += amounts.of(unit)
