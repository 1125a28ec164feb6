"""The quota store in Redis: one script decides a batch; what a crash or a flush leaves undone is repaired."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from typing import Final, cast

import msgspec

from tokenweir.core.errors import UnavailableError
from tokenweir.core.quota import Amounts, Limit, Scope, Unit, Window, window_end
from tokenweir.ports.quota import Denied, Granted, Headroom, OpenReservation, Reserve, Reserved, Settle
from tokenweir.stores.gateway.postgresql.counting import Fate, PostgresqlUse, Settled
from tokenweir.stores.gateway.redis.connection import LostEpochError, RedisConnection
from tokenweir.stores.gateway.reporting import LOG

SCOPES: Final[tuple[Scope, ...]] = ("key", "user", "team")
UNITS: Final[tuple[Unit, ...]] = ("requests", "tokens", "cost")
WINDOWS: Final[tuple[Window, ...]] = ("minute", "day", "month")
_SCOPE: Final = {scope: place for place, scope in enumerate(SCOPES, 1)}
_UNIT: Final = {unit: place for place, unit in enumerate(UNITS, 1)}
_WINDOW: Final = {window: place for place, window in enumerate(WINDOWS, 1)}

DIRECT: Final = 0
ACCEPTED: Final = 1
"""The kind of a reservation whose request intake takes on: the tables know what became of it."""

_REMEMBERED_S: Final = 120
"""How long a settled reservation is remembered, so that the same one again is not counted."""
_LOOKED_AT_AGAIN_NS: Final = 3_600_000_000_000
_MINE: Final = 262_144
_DOUBTFUL: Final = 65_536

_encode = msgspec.msgpack.Encoder().encode
_decode_reserve = msgspec.msgpack.Decoder(Reserve).decode
_decode_answers = msgspec.msgpack.Decoder(list[int | list[int]]).decode
_decode_use = msgspec.msgpack.Decoder(list[int]).decode


def _packed(value: object) -> object:
    """Return bytes as MessagePack's raw string: Redis's Lua knows no other kind of bytes."""
    if not isinstance(value, bytes):
        return value
    size = len(value)
    if size < 32:  # noqa: PLR2004 - the format's fixstr
        return msgspec.Raw(bytes((0xA0 | size,)) + value)
    return msgspec.Raw(b"\xdb" + size.to_bytes(4, "big") + value)


def encode(rows: Sequence[Sequence[object]]) -> bytes:
    """Return rows as a message for a script."""
    return _encode([[_packed(value) for value in row] for row in rows])


def encode_ids(ids: Sequence[bytes]) -> bytes:
    """Return ids as a message for a script."""
    return _encode([_packed(each) for each in ids])


class Held(msgspec.Struct, frozen=True, kw_only=True):
    """An open reservation as Redis has it."""

    open: OpenReservation
    kind: int


class RedisQuota:
    """Reserves, settles and repairs. ``use_of`` is the database that the counters are derived from."""

    def __init__(self, redis: RedisConnection, use_of: PostgresqlUse) -> None:
        self._redis = redis
        self._source = use_of
        # What this process has reserved and not settled: told again to a server that has forgotten it.
        self._mine: dict[bytes, tuple[Reserve, int]] = {}
        # What a call that got no answer may have reserved: released before anything else is reserved.
        self._doubtful: set[bytes] = set()
        self._entering = asyncio.Lock()

    async def reserve(self, batch: Sequence[Reserve]) -> Sequence[Reserved]:
        """Reserve for each in order; the same request again gives the first answer and counts once."""
        _, answers = await self._reserve(batch, DIRECT)
        for wanted, answer in zip(batch, answers, strict=True):
            if isinstance(answer, Granted):
                self._mine[wanted.request] = (wanted, answer.at)
        while len(self._mine) > _MINE:
            del self._mine[next(iter(self._mine))]
        return answers

    async def reserve_accepted(self, batch: Sequence[Reserve]) -> tuple[int, Sequence[Reserved]]:
        """Reserve for requests that intake takes on, and return the number of the epoch that it was done under."""
        epoch, answers = await self._reserve(batch, ACCEPTED)
        return int(epoch.partition(":")[0]), answers

    async def _reserve(self, batch: Sequence[Reserve], kind: int) -> tuple[str, Sequence[Reserved]]:
        message = encode([_wanted(reserve, kind) for reserve in batch])
        doubtful = list(self._doubtful)
        if doubtful:
            await self.release(doubtful)
            self._doubtful.difference_update(doubtful)
        try:
            epoch, reply = await self._call_under("reserve", message)
        except LostEpochError:
            raise
        except UnavailableError:
            if len(self._doubtful) < _DOUBTFUL:
                self._doubtful.update(reserve.request for reserve in batch)
            raise
        now, *answers = _decode_answers(cast("bytes", reply))
        at = cast("int", now) * 1000
        return epoch, [
            _answer(reserve, cast("list[int]", answer), at)
            for reserve, answer in zip(batch, answers, strict=True)
        ]

    async def settle(self, batch: Sequence[Settle]) -> Sequence[bool]:
        """Settle each; ``False`` where it was settled before or is unknown, which changes nothing."""
        message = encode(
            [(each.request, each.actual.requests, each.actual.tokens, each.actual.cost) for each in batch]
        )
        done = cast("list[int]", await self._call("settle", message, _REMEMBERED_S))
        for each in batch:
            self._mine.pop(each.request, None)
        return [value == 1 for value in done]

    async def release(self, requests: Sequence[bytes]) -> None:
        """Give back what was reserved for requests that came to nothing."""
        nothing = Amounts(requests=0, tokens=0)
        await self.settle([Settle(request=request, actual=nothing) for request in requests])

    async def renew(self, requests: Sequence[bytes], lease_ns: int) -> None:
        """Let open reservations stand for ``lease_ns`` from now."""
        await self._call("renew", encode_ids(requests), lease_ns // 1000)

    async def expired(self, limit: int) -> Sequence[OpenReservation]:
        """Return up to ``limit`` open reservations whose lease has run out, oldest first.

        Those that the ledger has settled, or whose acceptance came to nothing, are repaired instead; that of an
        accepted request stands until the request has ended.
        """
        rows = held(await self._call("expired", limit))
        if not rows:
            return ()
        async with self._source.view() as view:
            settled = await view.settled([each.open.reserve.request for each in rows])
        accepted = [each.open.reserve.request for each in rows if each.kind == ACCEPTED]
        fates = await self._source.fates(accepted)
        return await self._repaired(rows, settled, fates)

    async def _repaired(
        self, rows: Sequence[Held], settled: Mapping[bytes, Settled], fates: Mapping[bytes, Fate]
    ) -> Sequence[OpenReservation]:
        ends: list[Settle] = []
        standing: list[bytes] = []
        lost: list[OpenReservation] = []
        for row in rows:
            request = row.open.reserve.request
            if request in settled:
                ends.append(Settle(request=request, actual=settled[request].amounts))
            elif row.kind == DIRECT:
                lost.append(row.open)
            elif fates[request] == "open":
                standing.append(request)
            else:
                ends.append(Settle(request=request, actual=Amounts(requests=0, tokens=0)))
        if standing:
            await self.renew(standing, _LOOKED_AT_AGAIN_NS)
        if ends:
            await self.settle(ends)
            LOG.warning("repaired reservations that a crash left behind", reservations=len(ends))
        return lost

    async def use(self, limits: Sequence[Limit]) -> Sequence[Headroom]:
        """Return what is left of each limit now."""
        reply = await self._call("use", encode([_limit(limit) for limit in limits]))
        now, *used = _decode_use(cast("bytes", reply))
        return [_left(limit, amount, now * 1000) for limit, amount in zip(limits, used, strict=True)]

    async def _call(self, script: str, *args: object) -> object:
        return (await self._call_under(script, *args))[1]

    async def _call_under(self, script: str, *args: object) -> tuple[str, object]:
        """Run a script under the epoch that stands, and return that; another's rebuild may have begun one since."""
        epoch = await self._entered()
        try:
            return epoch, await self._redis.call(script, *args)
        except LostEpochError:
            if self._redis.epoch == epoch:
                self._redis.epoch = None
        epoch = await self._entered()
        return epoch, await self._redis.call(script, *args)

    async def _entered(self) -> str:
        """Return the epoch this process works under; entering a new one, it tells what it holds."""
        if self._redis.epoch is not None:
            return self._redis.epoch
        async with self._entering:
            if self._redis.epoch is not None:
                return self._redis.epoch
            epoch = await self._redis.adopt()
            # Whoever works on them for long has renewed them since.
            now = time.time_ns()
            mine = [
                restored(OpenReservation(reserve=reserve, at=at, expires_at=now + reserve.lease_ns), DIRECT)
                for reserve, at in self._mine.values()
            ]
            for first in range(0, len(mine), 500):
                await self._redis.call("restore", encode(mine[first : first + 500]))
            # Only now may others call: what they settle is there.
            self._redis.epoch = epoch
            return epoch


def held(reply: object) -> Sequence[Held]:
    """Return the reservations that a script lists."""
    found: list[Held] = []
    for _, expires, at, kind, blob in cast("list[tuple[bytes, int, int, int, bytes]]", reply):
        reserve = _decode_reserve(blob)
        found.append(
            Held(
                open=OpenReservation(reserve=reserve, at=at * 1000, expires_at=int(expires) * 1000), kind=kind
            )
        )
    return found


def restored(reservation: OpenReservation, kind: int) -> tuple[object, ...]:
    """Return a reservation as the script that restores it takes it."""
    reserve = reservation.reserve
    estimate = reserve.estimate
    return (
        *(reserve.request, reserve.key, reserve.user, reserve.team, reserve.model),
        *(estimate.requests, estimate.tokens, estimate.cost, kind, _encode(reserve)),
        *(reservation.at // 1000, reservation.expires_at // 1000),
    )


def _wanted(reserve: Reserve, kind: int) -> tuple[object, ...]:
    estimate = reserve.estimate
    return (
        *(reserve.request, reserve.key, reserve.user, reserve.team, reserve.model),
        *(
            estimate.requests,
            estimate.tokens,
            estimate.cost,
            reserve.lease_ns // 1000,
            kind,
            _encode(reserve),
        ),
        [[_packed(value) for value in _limit(limit)] for limit in reserve.limits],
    )


def _limit(limit: Limit) -> tuple[object, ...]:
    return (
        *(_SCOPE[limit.scope], limit.subject, _UNIT[limit.unit], _WINDOW[limit.window]),
        *(limit.model, limit.amount),
    )


def _left(limit: Limit, used: int, at: int) -> Headroom:
    return Headroom(
        limit=limit, remaining=max(0, limit.amount - used), resets_at=window_end(limit.window, at)
    )


def _answer(reserve: Reserve, answer: list[int], now: int) -> Reserved:
    short, at, *used = answer
    headroom = tuple(_left(limit, amount, now) for limit, amount in zip(reserve.limits, used, strict=True))
    if short:
        return Denied(request=reserve.request, short=headroom[short - 1], headroom=headroom)
    return Granted(request=reserve.request, at=at * 1000, headroom=headroom)
