"""The usage ledger: append-only, one row for each request, the truth that counters are rebuilt from."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Literal, Protocol

import msgspec

from tokenweir.core.quota import Amounts

UsageSource = Literal["server", "tokenizer", "estimated"]
"""Who counted: the engine, our tokenizer, or nobody (the estimate is charged after a crash)."""

Ending = Literal["completed", "failed", "cancelled"]


class LedgerRow(msgspec.Struct, frozen=True, kw_only=True):
    """What a request used. ``at`` is when it was reserved (its windows), ``settled_at`` when this was written.

    ``cost`` is in millionths of ``currency``. Ids are 16 bytes; ``team`` may be empty.
    """

    request: bytes
    key: bytes
    user: bytes
    team: bytes
    model: str
    endpoint: str
    at: int
    settled_at: int
    input_tokens: int
    output_tokens: int
    cached_tokens: int = 0
    cost: int = 0
    currency: str = ""
    source: UsageSource = "server"
    ending: Ending = "completed"

    def amounts(self) -> Amounts:
        """Return what it counts against limits."""
        return Amounts(tokens=self.input_tokens + self.output_tokens, cost=self.cost)


class LedgerFilter(msgspec.Struct, frozen=True, kw_only=True):
    """Which rows: those of a subject, a model, and ``since`` ≤ ``at`` < ``until``; ``None`` is any."""

    key: bytes | None = None
    user: bytes | None = None
    team: bytes | None = None
    model: str | None = None
    since: int | None = None
    until: int | None = None


class LedgerTotal(msgspec.Struct, frozen=True, kw_only=True):
    """A roll-up: use of one user, team, key and model in one day or month that began at ``start_at``."""

    start_at: int
    user: bytes
    team: bytes
    key: bytes
    model: str
    requests: int
    input_tokens: int
    output_tokens: int
    cached_tokens: int
    cost: int
    estimated: int


class Charge(msgspec.Struct, frozen=True, kw_only=True):
    """The end of a request: its row, and for an accepted one its sealed log of events and its last event's seq."""

    row: LedgerRow
    log: bytes = b""
    last_seq: int = -1


class Ledger(Protocol):
    """Writes rows once and sums them."""

    async def settle(self, batch: Sequence[Charge]) -> Sequence[bool]:
        """Write each row and close its reservation in one transaction; ``False`` where a row exists."""
        ...

    def rows(self, where: LedgerFilter) -> AsyncIterator[LedgerRow]:
        """Yield rows in the order of ``at``; bounded memory."""
        ...

    async def totals(self, where: LedgerFilter, by: Literal["day", "month"]) -> Sequence[LedgerTotal]:
        """Return the roll-ups, in the order of ``start_at``."""
        ...
