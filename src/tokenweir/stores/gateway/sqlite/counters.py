"""Counters of use, held in memory by the one process that writes, and derived from ledger and open reservations.

A counter is counted from the tables when it is first needed, so none is ever missing, and a crash leaves nothing
to repair. All of this runs in the writing thread.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from typing import Final, NamedTuple

import msgspec

from tokenweir.core.quota import Amounts, Limit, Scope, Unit, Window, window_end, window_start
from tokenweir.ports.quota import Headroom, Reserve

_COLUMN: Final[dict[Scope, str]] = {"key": "key_id", "user": "user_id", "team": "team_id"}
_LEDGER_SUM: Final[dict[Unit, str]] = {
    "requests": "count(*)",
    "tokens": "sum(input_tokens + output_tokens)",
    "cost": "sum(cost)",
}
_MOST: Final = 200_000
"""Subjects whose counters are held; beyond it they are forgotten, and counted anew when needed."""

encode_limits = msgspec.msgpack.Encoder().encode
decode_limits = msgspec.msgpack.Decoder(tuple[Limit, ...]).decode


class CounterKey(NamedTuple):
    """What a counter counts: a limit without its amount, in one window."""

    scope: Scope
    subject: bytes
    model: str
    unit: Unit
    window: Window
    start_at: int


def key_of(limit: Limit, at: int) -> CounterKey:
    """Return the counter that ``limit`` looks at for what happens ``at`` an instant."""
    return CounterKey(
        limit.scope, limit.subject, limit.model, limit.unit, limit.window, window_start(limit.window, at)
    )


class Counters:
    """Use by counter: what the ledger holds plus what open reservations set aside."""

    def __init__(self) -> None:
        # Few counters belong to one subject, so that those which a request touches are found by walking them.
        self._held: dict[tuple[Scope, bytes], dict[CounterKey, int]] = {}

    def forget(self) -> None:
        """Forget all: they are counted anew."""
        self._held.clear()

    def items(self) -> Sequence[tuple[CounterKey, int]]:
        """Return the counters held, and their values."""
        return [item for held in self._held.values() for item in held.items()]

    def used(self, connection: sqlite3.Connection, key: CounterKey) -> int:
        """Return a counter's value."""
        held = self._held.get((key.scope, key.subject))
        if held is None:
            if len(self._held) >= _MOST:
                self._held.clear()
            held = self._held[key.scope, key.subject] = {}
        used = held.get(key)
        if used is None:
            for old in [old for old in held if window_end(old.window, old.start_at) <= key.start_at]:
                del held[old]
            used = held[key] = counted(connection, key)
        return used

    def take(self, connection: sqlite3.Connection, wanted: Reserve, at: int) -> Headroom | None:
        """Count an estimate everywhere, or nowhere; then return the limit that is short."""
        for limit in wanted.limits:
            if self.used(connection, key_of(limit, at)) + wanted.estimate.of(limit.unit) > limit.amount:
                return self.headroom(connection, limit, at)
        self.add((wanted.key, wanted.user, wanted.team), wanted.model, at, wanted.estimate)
        return None

    def headroom(self, connection: sqlite3.Connection, limit: Limit, at: int) -> Headroom:
        """Return what is left of a limit."""
        left = limit.amount - self.used(connection, key_of(limit, at))
        return Headroom(limit=limit, remaining=max(0, left), resets_at=window_end(limit.window, at))

    def add(self, subjects: tuple[bytes, bytes, bytes], model: str, at: int, amounts: Amounts) -> None:
        """Add to every counter held that counts what (key, user, team) does with a model at an instant.

        Counters that are not held need no change: the tables they will be counted from are changed beside this.
        """
        for scope, subject in zip(_SCOPES, subjects, strict=True):
            held = self._held.get((scope, subject))
            if not held:
                continue
            for key in held:
                if key.model in {"", model} and window_start(key.window, at) == key.start_at:
                    held[key] += amounts.of(key.unit)


_SCOPES: Final[tuple[Scope, ...]] = ("key", "user", "team")


def counted(connection: sqlite3.Connection, key: CounterKey) -> int:
    """Count from the tables: rows of the ledger, and open reservations, that fall into the window."""
    column = _COLUMN[key.scope]
    end = window_end(key.window, key.start_at)
    model = " AND model = ?" if key.model else ""
    args = (key.subject, key.start_at, end, *((key.model,) if key.model else ()))
    where = f"WHERE {column} = ? AND at >= ? AND at < ?{model}"
    total = 0
    # The parts that are put together here are this module's own words.
    for column_sum, table in (
        (_LEDGER_SUM[key.unit], "gateway_ledger"),
        (f"sum({key.unit})", "gateway_reservations"),
    ):
        (value,) = connection.execute(f"SELECT {column_sum} FROM {table} {where}", args).fetchone()  # noqa: S608
        total += value or 0
    return total
