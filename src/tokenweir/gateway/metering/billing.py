"""The ledger as tables for people and for billing: the same rows whoever asks, on the terminal or over HTTP."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Final, Literal, TypeAlias

import msgspec

from tokenweir.access.wording import key_text
from tokenweir.core.errors import InputError
from tokenweir.core.ids import format_id
from tokenweir.ports.ledger import LedgerRow, LedgerTotal

By: TypeAlias = Literal["day", "month"]
TOTAL_COLUMNS: Final = (
    "from, UTC",
    "user",
    "team",
    "key",
    "model",
    "requests",
    "input",
    "output",
    "cached",
    "cost",
    "estimated",
)
ROW_COLUMNS: Final = (
    "request",
    "at",
    "user",
    "key",
    "model",
    "endpoint",
    "input_tokens",
    "output_tokens",
    "cached_tokens",
    "cost_millionths",
    "currency",
    "source",
    "ending",
)


class Names(msgspec.Struct, frozen=True):
    """The names of users and teams by their ids."""

    users: Mapping[bytes, str]
    teams: Mapping[bytes, str]

    def user(self, user: bytes) -> str:
        """Return a user's name, or its id in hex where the directory has it no more."""
        return self.users.get(user, user.hex())

    def team(self, team: bytes) -> str:
        """Return a team's name; "" for none."""
        return self.teams.get(team, team.hex())


def total_cells(total: LedgerTotal, names: Names) -> tuple[str | int, ...]:
    """Return a roll-up under :data:`TOTAL_COLUMNS`; cost in millionths."""
    return (
        day_text(total.start_at),
        names.user(total.user),
        names.team(total.team),
        key_text(total.key),
        total.model,
        total.requests,
        total.input_tokens,
        total.output_tokens,
        total.cached_tokens,
        total.cost,
        total.estimated,
    )


def row_cells(row: LedgerRow, names: Names) -> tuple[str | int, ...]:
    """Return a row of the ledger under :data:`ROW_COLUMNS`; cost in millionths."""
    return (
        format_id("req", int.from_bytes(row.request, "big")),
        row.at,
        names.user(row.user),
        key_text(row.key),
        row.model,
        row.endpoint,
        row.input_tokens,
        row.output_tokens,
        row.cached_tokens,
        row.cost,
        row.currency,
        row.source,
        row.ending,
    )


def csv_lines(rows: Iterable[Iterable[str | int]]) -> str:
    """Return rows as CSV."""
    text = io.StringIO()
    csv.writer(text).writerows(rows)
    return text.getvalue()


def read_day(text: str | None) -> int | None:
    """Return the instant at which a day begins, UTC, Unix ns. Raises InputError."""
    if text is None:
        return None
    try:
        day = datetime.strptime(text, "%Y-%m-%d").replace(tzinfo=UTC)
    except ValueError as error:
        raise InputError(f"{text!r} is no date", mend="write it as 2026-01-31") from error
    return int(day.timestamp()) * 1_000_000_000


def day_text(at: int) -> str:
    """Return the day of an instant, UTC."""
    return datetime.fromtimestamp(at / 1e9, UTC).strftime("%Y-%m-%d")
