"""The ledger in SQLite: a row and the end of its reservation are one transaction."""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Final, Literal, TypeVar

import msgspec

from tokenweir.core.quota import window_start
from tokenweir.ports.ledger import Charge, LedgerFilter, LedgerRow, LedgerTotal
from tokenweir.stores.gateway.sqlite.database import Database
from tokenweir.stores.gateway.sqlite.quota import SqliteQuota

T = TypeVar("T")

_COLUMNS: Final = (
    "request, key_id, user_id, team_id, model, endpoint, at, settled_at, input_tokens, output_tokens,"
    " cached_tokens, cost, currency, source, ending"
)
_END: Final = (
    "UPDATE gateway_requests SET ended_at = ?, last_seq = ?, log = ? WHERE request = ? AND ended_at IS NULL"
)
_AT_ONCE: Final = (64, 16, 4, 1)
"""Rows in one statement. Each statement gives the interpreter's lock away and has to get it back from the event
loop; a few sizes, because each is a statement to prepare."""
_PAGE: Final = 1000


class SqliteLedger:
    """The embedded ledger."""

    def __init__(self, database: Database, quota: SqliteQuota) -> None:
        self._database = database
        self._quota = quota

    async def settle(self, batch: Sequence[Charge]) -> Sequence[bool]:
        """Write each row and close its reservation in one transaction; ``False`` where a row exists."""
        return await self._database.write(lambda connection: self._settle(connection, batch))

    def _settle(self, connection: sqlite3.Connection, batch: Sequence[Charge]) -> list[bool]:
        # Also where the reaper has charged it meanwhile: a request that has ended must not be worked on again.
        ends = [
            (charge.row.settled_at, charge.last_seq, charge.log, charge.row.request)
            for charge in batch
            if charge.last_seq >= 0
        ]
        if ends:
            connection.executemany(_END, ends)
        settled = _settled(connection, [charge.row.request for charge in batch])
        rows: list[LedgerRow] = []
        outcomes: list[bool] = []
        for charge in batch:
            outcomes.append(charge.row.request not in settled)
            if outcomes[-1]:
                settled.add(charge.row.request)
                rows.append(charge.row)
        _insert(connection, rows)
        for row in rows:
            if not self._quota.close_now(connection, row.request, row.amounts()):
                # Nothing was reserved: what was used counts all the same.
                self._quota.counters.add((row.key, row.user, row.team), row.model, row.at, row.amounts())
        return outcomes

    async def rows(self, where: LedgerFilter) -> AsyncIterator[LedgerRow]:
        """Yield rows in the order of ``at``; bounded memory."""
        condition, args = _condition(where)
        last: tuple[int, bytes] = (-1, b"")
        query = (
            f"SELECT {_COLUMNS} FROM gateway_ledger WHERE (at, request) > (?, ?){condition}"  # noqa: S608 - own words
            f" ORDER BY at, request LIMIT {_PAGE}"
        )
        while True:
            after = last
            page = await self._database.read(
                lambda connection, after=after: connection.execute(query, (*after, *args)).fetchall()
            )
            for values in page:
                yield LedgerRow(**dict(zip(LedgerRow.__struct_fields__, values, strict=True)))
            if len(page) < _PAGE:
                return
            last = (page[-1][6], page[-1][0])

    async def totals(self, where: LedgerFilter, by: Literal["day", "month"]) -> Sequence[LedgerTotal]:
        """Return the roll-ups, in the order of ``start_at``."""
        condition, args = _condition(where)
        # A UTC day or month is found in the text of its date, which SQLite can group by.
        period = "%Y-%m-%d" if by == "day" else "%Y-%m"
        query = (
            "SELECT min(at), user_id, team_id, key_id, model, count(*), sum(input_tokens), sum(output_tokens),"  # noqa: S608
            " sum(cached_tokens), sum(cost), sum(source = 'estimated') FROM gateway_ledger WHERE at >= 0"
            f"{condition} GROUP BY strftime('{period}', at / 1000000000, 'unixepoch'), user_id, team_id, key_id,"
            " model ORDER BY 1, user_id, key_id, model"
        )
        found = await self._database.read(lambda connection: connection.execute(query, args).fetchall())
        rows = [
            LedgerTotal(**dict(zip(LedgerTotal.__struct_fields__, values, strict=True))) for values in found
        ]
        return sorted(
            (msgspec.structs.replace(row, start_at=window_start(by, row.start_at)) for row in rows),
            key=lambda row: row.start_at,
        )


def _settled(connection: sqlite3.Connection, requests: Sequence[bytes]) -> set[bytes]:
    """Return those of the requests that have a row."""
    found: set[bytes] = set()
    for part in _parts(requests):
        marks = ", ".join("?" * len(part))
        query = f"SELECT request FROM gateway_ledger WHERE request IN ({marks})"  # noqa: S608 - own words
        found.update(request for (request,) in connection.execute(query, part))
    return found


def _insert(connection: sqlite3.Connection, rows: Sequence[LedgerRow]) -> None:
    marks = f"({', '.join('?' * len(LedgerRow.__struct_fields__))})"
    for part in _parts(rows):
        values = [value for row in part for value in msgspec.structs.astuple(row)]
        connection.execute(
            f"INSERT INTO gateway_ledger ({_COLUMNS}) VALUES {', '.join([marks] * len(part))}",  # noqa: S608 - own words
            values,
        )


def _parts(items: Sequence[T]) -> Iterator[Sequence[T]]:
    """Divide items into as few parts as the sizes of statements allow."""
    start = 0
    while left := len(items) - start:
        size = next(size for size in _AT_ONCE if size <= left)
        yield items[start : start + size]
        start += size


def _condition(where: LedgerFilter) -> tuple[str, tuple[object, ...]]:
    parts = (
        ("key_id = ?", where.key),
        ("user_id = ?", where.user),
        ("team_id = ?", where.team),
        ("model = ?", where.model),
        ("at >= ?", where.since),
        ("at < ?", where.until),
    )
    chosen = [(text, value) for text, value in parts if value is not None]
    return "".join(f" AND {text}" for text, _ in chosen), tuple(value for _, value in chosen)
