"""The ledger in PostgreSQL: rows, the ends of their reservations and of their requests are one statement."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Final, Literal

import msgspec

from tokenweir.core.quota import window_start
from tokenweir.ports.ledger import Charge, LedgerFilter, LedgerRow, LedgerTotal
from tokenweir.stores.gateway.postgresql.database import PostgresqlDatabase

_COLUMNS: Final = (
    "request, key_id, user_id, team_id, model, endpoint, at, settled_at, input_tokens, output_tokens,"
    " cached_tokens, cost, currency, source, ending"
)
_TYPES: Final = (
    *("bytea", "bytea", "bytea", "bytea", "text", "text", "bigint", "bigint", "bigint", "bigint"),
    *("bigint", "bigint", "text", "text", "text", "bytea", "bigint"),
)
# A row that stands already is left as it is; its reservation and its request are ended all the same, for whoever
# wrote the row (the reaper, say) may not have had the log.
_SETTLE: Final = f"""
WITH given AS (
    SELECT * FROM unnest({", ".join(f"${place}::{kind}[]" for place, kind in enumerate(_TYPES, 1))})
    AS g ({_COLUMNS}, log, last_seq)
), written AS (
    INSERT INTO gateway_ledger ({_COLUMNS}) SELECT {_COLUMNS} FROM given ON CONFLICT DO NOTHING RETURNING request
), closed AS (
    DELETE FROM gateway_reservations r USING given g WHERE r.request = g.request
), ended AS (
    UPDATE gateway_requests q SET ended_at = g.settled_at, last_seq = g.last_seq, log = g.log
    FROM given g WHERE q.request = g.request AND g.last_seq >= 0 AND q.ended_at IS NULL
)
SELECT request FROM written
"""  # noqa: S608 - own words
_PAGE: Final = 1000


class PostgresqlLedger:
    """The ledger that all processes share."""

    def __init__(self, database: PostgresqlDatabase) -> None:
        self._database = database

    async def settle(self, batch: Sequence[Charge]) -> Sequence[bool]:
        """Write each row and close its reservation in one transaction; ``False`` where a row exists."""
        first: dict[bytes, Charge] = {}
        for charge in batch:
            first.setdefault(charge.row.request, charge)
        # In one order everywhere, so that two batches cannot wait for each other.
        charges = [first[request] for request in sorted(first)]
        if not charges:
            return []
        rows = [(*msgspec.structs.astuple(each.row), each.log, each.last_seq) for each in charges]
        found = await self._database.fetch(_SETTLE, *(list(column) for column in zip(*rows, strict=True)))
        written: set[bytes] = {row[0] for row in found}
        outcomes: list[bool] = []
        for charge in batch:
            outcomes.append(charge.row.request in written)
            written.discard(charge.row.request)
        return outcomes

    async def rows(self, where: LedgerFilter) -> AsyncIterator[LedgerRow]:
        """Yield rows in the order of ``at``; bounded memory."""
        condition, args = _condition(where, 3)
        last: tuple[int, bytes] = (-1, b"")
        query = (
            f"SELECT {_COLUMNS} FROM gateway_ledger WHERE (at, request) > ($1, $2){condition}"  # noqa: S608 - own words
            f" ORDER BY at, request LIMIT {_PAGE}"
        )
        while True:
            page = await self._database.fetch(query, *last, *args)
            for values in page:
                yield LedgerRow(**dict(zip(LedgerRow.__struct_fields__, values, strict=True)))
            if len(page) < _PAGE:
                return
            last = (page[-1]["at"], page[-1]["request"])

    async def totals(self, where: LedgerFilter, by: Literal["day", "month"]) -> Sequence[LedgerTotal]:
        """Return the roll-ups, in the order of ``start_at``."""
        condition, args = _condition(where, 1)
        query = (
            "SELECT min(at), user_id, team_id, key_id, model, count(*), sum(input_tokens)::bigint,"  # noqa: S608
            " sum(output_tokens)::bigint, sum(cached_tokens)::bigint, sum(cost)::bigint,"
            f" count(*) FILTER (WHERE source = 'estimated') FROM gateway_ledger WHERE at >= 0{condition}"
            f" GROUP BY date_trunc('{by}', to_timestamp(at / 1000000000), 'UTC'), user_id, team_id, key_id, model"
            " ORDER BY 1, user_id, key_id, model"
        )
        found = await self._database.fetch(query, *args)
        rows = [
            LedgerTotal(**dict(zip(LedgerTotal.__struct_fields__, values, strict=True))) for values in found
        ]
        return sorted(
            (msgspec.structs.replace(row, start_at=window_start(by, row.start_at)) for row in rows),
            key=lambda row: row.start_at,
        )


def _condition(where: LedgerFilter, place: int) -> tuple[str, tuple[object, ...]]:
    parts = (
        ("key_id =", where.key),
        ("user_id =", where.user),
        ("team_id =", where.team),
        ("model =", where.model),
        ("at >=", where.since),
        ("at <", where.until),
    )
    chosen = [(text, value) for text, value in parts if value is not None]
    text = "".join(f" AND {text} ${number}" for number, (text, _) in enumerate(chosen, place))
    return text, tuple(value for _, value in chosen)
