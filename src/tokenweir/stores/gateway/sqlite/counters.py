"""Counters of use, held in memory by the one process that writes, and derived from ledger and open reservations.

A counter is counted from the tables when it is first needed, so none is ever missing, and a crash leaves nothing
to repair. Counting, forgetting and settling happen in the writing thread alone. The event loop's thread may
reserve against counters that are held; what it reserved is in no table yet, and counts by being kept here.
"""

from __future__ import annotations

import sqlite3
import threading
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


class Unwritten(msgspec.Struct):
    """A reservation that no table holds yet."""

    reserve: Reserve
    at: int

    def counts_for(self, key: CounterKey) -> bool:
        """Whether it counts against a counter."""
        wanted = self.reserve
        subject = {"key": wanted.key, "user": wanted.user, "team": wanted.team}[key.scope]
        return (
            subject == key.subject
            and key.model in {"", wanted.model}
            and window_start(key.window, self.at) == key.start_at
        )


class Counters:
    """Use by counter: what the ledger holds, plus what open reservations set aside, written or not."""

    def __init__(self) -> None:
        # Held for the time of a few dictionary look-ups; never while a table is read.
        self._lock = threading.Lock()
        # Few counters belong to one subject, so that those which a request touches are found by walking them.
        self._held: dict[tuple[Scope, bytes], dict[CounterKey, int]] = {}
        self._unwritten: dict[bytes, Unwritten] = {}
        # What the transaction at hand has written: it is unwritten again if that is undone.
        self._writing: dict[bytes, Unwritten] = {}

    def ended(self, committed: bool) -> None:  # noqa: FBT001 - a callback's one argument
        """Note how a transaction went."""
        with self._lock:
            if not committed:
                self._unwritten.update(self._writing)
                self._held.clear()
            self._writing.clear()

    def forget(self) -> None:
        """Forget all: they are counted anew."""
        with self._lock:
            self._held.clear()

    def compared(self, connection: sqlite3.Connection) -> Sequence[tuple[CounterKey, int, int]]:
        """Return each counter held, its value, and what tables and unwritten reservations say."""
        found: list[tuple[CounterKey, int, int]] = []
        with self._lock:
            keys = [key for held in self._held.values() for key in held]
        for key in keys:
            # This thread alone writes, so that the tables are the same when the lock is taken.
            written = counted(connection, key)
            with self._lock:
                used = self._value(key)
                if used is not None:
                    found.append((key, used, written + self._pending(key)))
        return found

    # -- reservations that no table holds yet -----------------------------------------------------------------------

    def hold(self, wanted: Reserve, at: int) -> Headroom | tuple[Headroom, ...] | None:
        """Reserve without a table: the headroom left, or the limit that is short; ``None`` if a counter is missing."""
        with self._lock:
            for limit in wanted.limits:
                used = self._value(key_of(limit, at))
                if used is None:
                    return None
                if used + wanted.estimate.of(limit.unit) > limit.amount:
                    return _headroom(limit, used, at)
            self._unwritten[wanted.request] = Unwritten(wanted, at)
            self._add((wanted.key, wanted.user, wanted.team), wanted.model, at, wanted.estimate)
            return tuple(_headroom(limit, self._value(key_of(limit, at)) or 0, at) for limit in wanted.limits)

    def pending(self, request: bytes) -> bool:
        """Whether what was reserved for a request would not outlive this process."""
        with self._lock:
            return request in self._unwritten or request in self._writing

    @property
    def any_pending(self) -> bool:
        """Whether there is a reservation that no table holds yet."""
        return bool(self._unwritten)

    def unwritten(self, request: bytes) -> Unwritten | None:
        """Return the reservation of a request that no table holds yet."""
        return self._unwritten.get(request)

    def write(self, request: bytes) -> Unwritten | None:
        """Take a reservation to write it, or its end, in the transaction at hand."""
        with self._lock:
            found = self._unwritten.pop(request, None)
            if found is not None:
                self._writing[request] = found
            return found

    def write_all(self) -> Sequence[Unwritten]:
        """Take all reservations to write them in the transaction at hand."""
        with self._lock:
            found = list(self._unwritten.values())
            self._writing.update(self._unwritten)
            self._unwritten.clear()
            return found

    # -- counting ---------------------------------------------------------------------------------------------------

    def used(self, connection: sqlite3.Connection, key: CounterKey) -> int:
        """Return a counter's value."""
        used = self._value(key)
        if used is not None:
            return used
        written = counted(connection, key)
        with self._lock:
            held = self._held.setdefault((key.scope, key.subject), {})
            for old in [old for old in held if window_end(old.window, old.start_at) <= key.start_at]:
                del held[old]
            used = held[key] = written + self._pending(key)
        return used

    def take(self, connection: sqlite3.Connection, wanted: Reserve, at: int) -> Headroom | None:
        """Count an estimate everywhere, or nowhere; then return the limit that is short."""
        self._make_room()
        for limit in wanted.limits:
            self.used(connection, key_of(limit, at))
        with self._lock:
            # All are held now, and only this thread forgets; the other one may have reserved meanwhile.
            for limit in wanted.limits:
                used = self._value(key_of(limit, at)) or 0
                if used + wanted.estimate.of(limit.unit) > limit.amount:
                    return _headroom(limit, used, at)
            self._add((wanted.key, wanted.user, wanted.team), wanted.model, at, wanted.estimate)
        return None

    def headroom(self, connection: sqlite3.Connection, limit: Limit, at: int) -> Headroom:
        """Return what is left of a limit."""
        self._make_room()
        return _headroom(limit, self.used(connection, key_of(limit, at)), at)

    def add(self, subjects: tuple[bytes, bytes, bytes], model: str, at: int, amounts: Amounts) -> None:
        """Add to every counter held that counts what (key, user, team) does with a model at an instant.

        Counters that are not held need no change: the tables they will be counted from are changed beside this.
        """
        with self._lock:
            self._add(subjects, model, at, amounts)

    def _add(self, subjects: tuple[bytes, bytes, bytes], model: str, at: int, amounts: Amounts) -> None:
        for scope, subject in zip(_SCOPES, subjects, strict=True):
            held = self._held.get((scope, subject))
            if not held:
                continue
            for key in held:
                if key.model in {"", model} and window_start(key.window, at) == key.start_at:
                    held[key] += amounts.of(key.unit)

    def _make_room(self) -> None:
        """Forget where too many are held; never between two counters that one decision needs."""
        if len(self._held) >= _MOST:
            self.forget()

    def _value(self, key: CounterKey) -> int | None:
        held = self._held.get((key.scope, key.subject))
        return None if held is None else held.get(key)

    def _pending(self, key: CounterKey) -> int:
        return sum(
            each.reserve.estimate.of(key.unit) for each in self._unwritten.values() if each.counts_for(key)
        )


_SCOPES: Final[tuple[Scope, ...]] = ("key", "user", "team")


def _headroom(limit: Limit, used: int, at: int) -> Headroom:
    return Headroom(
        limit=limit, remaining=max(0, limit.amount - used), resets_at=window_end(limit.window, at)
    )


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
