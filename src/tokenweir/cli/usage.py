"""``weir usage``: what was used, from the ledger, for people and for billing."""

from __future__ import annotations

import asyncio
import csv
import sys
from datetime import UTC, datetime
from typing import Final, Literal

import click

from tokenweir.app.gateway import read_ledger, totals
from tokenweir.cli.access_view import directory, key_text, moment
from tokenweir.cli.start import start
from tokenweir.cli.tables import Column, echo_table
from tokenweir.core.errors import InputError
from tokenweir.core.ids import format_id
from tokenweir.ports.ledger import LedgerFilter, LedgerTotal

_COLUMNS: Final = (
    Column("from, UTC", fixed=True),
    Column("user"),
    Column("team"),
    Column("key", fixed=True),
    Column("model"),
    Column("requests", number=True),
    Column("input", number=True),
    Column("output", number=True),
    Column("cached", number=True),
    Column("cost", number=True),
    Column("estimated", number=True),
)


_LEDGER_COLUMNS: Final = (
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


@click.command()
@click.option(
    "--by",
    type=click.Choice(["day", "month", "request"]),
    default="day",
    show_default=True,
    help="What a line adds up.",
)
@click.option("--user", help="Only this user's.")
@click.option("--model", help="Only this model's.")
@click.option("--since", metavar="DATE", help="From this day on: 2026-01-31.")
@click.option("--until", metavar="DATE", help="Before this day: 2026-02-28.")
@click.option("--csv", "as_csv", is_flag=True, help="Print CSV, with tokens and millionths of the currency.")
def command(
    *,
    by: Literal["day", "month", "request"],
    user: str | None,
    model: str | None,
    since: str | None,
    until: str | None,
    as_csv: bool,
) -> None:
    """Show what was used: requests, tokens and cost, by user, key and model. A running gateway is not disturbed."""
    url = start().stores.gateway
    with directory() as opened:
        users = {one.id: one.name for one in opened.users()}
        teams = {one.id: one.name for one in opened.teams()}
        where = LedgerFilter(
            user=opened.user(user).id if user is not None else None,
            model=model,
            since=_day(since),
            until=_day(until),
        )
    if by == "request":
        asyncio.run(_each(url, where, users))
        return
    rows = asyncio.run(totals(url, where, by))
    cells = [_cells(row, users, teams, raw=as_csv) for row in rows]
    if as_csv:
        writer = csv.writer(sys.stdout)
        writer.writerow([column.name for column in _COLUMNS])
        writer.writerows(cells)
    elif cells:
        echo_table(_COLUMNS, cells)
    else:
        click.echo("Nothing was used.", err=True)


async def _each(url: str, where: LedgerFilter, users: dict[bytes, str]) -> None:
    """Print the ledger itself as CSV, a row for each request, in bounded memory."""
    writer = csv.writer(sys.stdout)
    writer.writerow(_LEDGER_COLUMNS)
    async for row in read_ledger(url, where):
        writer.writerow(
            (
                format_id("req", int.from_bytes(row.request, "big")),
                row.at,
                users.get(row.user, row.user.hex()),
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
        )


def _cells(
    row: LedgerTotal, users: dict[bytes, str], teams: dict[bytes, str], *, raw: bool
) -> tuple[str, ...]:
    numbers = (row.requests, row.input_tokens, row.output_tokens, row.cached_tokens)
    cost = str(row.cost) if raw else f"{row.cost / 1_000_000:,.4f}"
    return (
        moment(row.start_at)[:10],
        users.get(row.user, row.user.hex()),
        teams.get(row.team, "–" if not row.team else row.team.hex()),
        key_text(row.key),
        row.model,
        *(str(number) if raw else f"{number:,}" for number in numbers),
        cost,
        str(row.estimated) if raw else f"{row.estimated:,}",
    )


def _day(text: str | None) -> int | None:
    if text is None:
        return None
    try:
        day = datetime.strptime(text, "%Y-%m-%d").replace(tzinfo=UTC)
    except ValueError as error:
        raise InputError(f"{text!r} is no date", mend="write it as 2026-01-31") from error
    return int(day.timestamp()) * 1_000_000_000
