"""``weir usage``: what was used, from the ledger, for people and for billing."""

from __future__ import annotations

import asyncio
from typing import Final, Literal

import click

from tokenweir.app.gateway import read_ledger, totals
from tokenweir.cli.access_view import directory
from tokenweir.cli.start import start
from tokenweir.cli.tables import Column, echo_table
from tokenweir.gateway.metering.billing import (
    ROW_COLUMNS,
    TOTAL_COLUMNS,
    Names,
    csv_lines,
    read_day,
    row_cells,
    total_cells,
)
from tokenweir.ports.ledger import LedgerFilter

_COLUMNS: Final = tuple(
    Column(
        name,
        fixed=name in {"from, UTC", "key"},
        number=name not in {"from, UTC", "user", "team", "key", "model"},
    )
    for name in TOTAL_COLUMNS
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
    with directory(existing=True) as opened:
        names = Names(
            {one.id: one.name for one in opened.users()}, {one.id: one.name for one in opened.teams()}
        )
        where = LedgerFilter(
            user=opened.user(user).id if user is not None else None,
            model=model,
            since=read_day(since),
            until=read_day(until),
        )
    if by == "request":
        asyncio.run(_each(url, where, names))
        return
    rows = asyncio.run(totals(url, where, by))
    cells = [total_cells(row, names) for row in rows]
    if as_csv:
        click.echo(csv_lines([TOTAL_COLUMNS, *cells]), nl=False)
    elif cells:
        echo_table(_COLUMNS, [_shown(row) for row in cells])
    else:
        click.echo("Nothing was used.", err=True)


async def _each(url: str, where: LedgerFilter, names: Names) -> None:
    """Print the ledger itself as CSV, a row for each request, in bounded memory."""
    click.echo(csv_lines([ROW_COLUMNS]), nl=False)
    async for row in read_ledger(url, where):
        click.echo(csv_lines([row_cells(row, names)]), nl=False)


def _shown(cells: tuple[str | int, ...]) -> tuple[str, ...]:
    """Return a line as people read it: cost in the currency."""
    return tuple(
        cell or "–"
        if isinstance(cell, str)
        else f"{cell / 1_000_000:,.4f}"
        if column == "cost"
        else f"{cell:,}"
        for column, cell in zip(TOTAL_COLUMNS, cells, strict=True)
    )
