"""Tables on the terminal, and the same as aligned text where the output is no terminal."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass

import click
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

_GAP = "  "
_FOLDED = 10
"""The least letters of a column that may be folded, where it has more."""
_PADDING = 3


@dataclass(frozen=True, slots=True)
class Column:
    """A column's name. Numbers stand to the right; what is fixed is never folded."""

    name: str
    number: bool = False
    fixed: bool = False


def echo_table(columns: Sequence[Column], rows: Sequence[Sequence[str]]) -> None:
    """Write a table to standard output: ruled on a terminal, else aligned text for other programs."""
    rows = [[printable(cell) for cell in row] for row in rows]
    if sys.stdout.isatty():
        draw(Console(), columns, rows)
        return
    for line in aligned(columns, rows):
        click.echo(line)


def draw(console: Console, columns: Sequence[Column], rows: Sequence[Sequence[str]]) -> None:
    """Write a ruled table; where the terminal is too narrow for one that can be read, each row as lines of its own."""
    least = sum(
        max(map(len, cells)) if column.number or column.fixed else min(_FOLDED, max(map(len, cells)))
        for column, *cells in zip(columns, [column.name for column in columns], *rows, strict=True)
    )
    if least + _PADDING * len(columns) > console.width:
        wide = max(len(column.name) for column in columns)
        for row in rows:
            for column, cell in zip(columns, row, strict=True):
                console.print(Text(f"{column.name:{wide}}{_GAP}", style="bold").append(_styled(cell)))
            console.print()
        return
    table = Table(box=SIMPLE_HEAD, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(
            column.name,
            justify="right" if column.number else "left",
            overflow="fold",
            no_wrap=column.number or column.fixed,
        )
    for row in rows:
        table.add_row(*map(_styled, row))
    console.print(table)


def _styled(cell: str) -> Text:
    return Text(cell, style=_STYLES.get(cell.partition(",")[0], "not bold"))


def aligned(columns: Sequence[Column], rows: Sequence[Sequence[str]]) -> list[str]:
    """Return heading and rows as lines of equal columns."""
    heading = [column.name for column in columns]
    widths = [max(len(row[place]) for row in (heading, *rows)) for place in range(len(columns))]
    return [
        _GAP.join(
            cell.rjust(width) if column.number else cell.ljust(width)
            for cell, width, column in zip(row, widths, columns, strict=True)
        ).rstrip()
        for row in (heading, *rows)
    ]


def printable(text: str) -> str:
    """Return ``text`` without what could steer a terminal; a record may come from anyone."""
    return "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in text)


_STYLES = {
    "client-bound": "yellow",
    "cancelled": "yellow",
    "failed": "red",
    "gone": "red",
    "trusted": "green",
}
