"""``weir quotas``: limits on use are set, listed and removed; counters are proved against the ledger."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final, TypeVar

import click

from tokenweir.access.directory import StoredLimit
from tokenweir.access.wording import plain, whole
from tokenweir.access.wording import subject as find_subject
from tokenweir.app.gateway import offline_quota
from tokenweir.cli.access_view import directory
from tokenweir.cli.start import start
from tokenweir.cli.tables import Column, echo_table
from tokenweir.core.errors import InputError, NotFoundError
from tokenweir.core.quota import Unit, Window

_COLUMNS: Final = (
    Column("limit of"),
    Column("model"),
    Column("unit", fixed=True),
    Column("per", fixed=True),
    Column("amount", number=True),
)
_UNITS: Final[tuple[Unit, ...]] = ("requests", "tokens", "cost")
_WINDOWS: Final[tuple[Window, ...]] = ("minute", "day", "month")
CommandT = TypeVar("CommandT", bound=Callable[..., object])


def _subject(command: CommandT) -> CommandT:
    for name, text in (
        ("tier", "Of each user of this tier."),
        ("team", "Of this team together."),
        ("user", "Of this user, over all keys."),
        ("key", "Of this key, by its id."),
    ):
        command = click.option(f"--{name}", help=text)(command)
    return command


@click.group(name="quotas")
def command() -> None:
    """Set, list and remove limits; prove that counters and ledger agree.

    Windows are calendar minutes, days and months, UTC. Cost counts in the currency of [gateway].
    """


@command.command(name="set")
@click.argument("amount", type=click.FloatRange(min=0))
@click.argument("unit", type=click.Choice(_UNITS))
@click.option(
    "--per", "window", type=click.Choice(_WINDOWS), required=True, help="The window that it counts in."
)
@click.option("--model", default="", help="For this model alone. [default: all together]")
@_subject
def set_limit(*, amount: float, unit: Unit, window: Window, model: str, **subject: str | None) -> None:
    """Allow AMOUNT of UNIT in each window: weir quotas set 100000 tokens --per day --user ada."""
    with directory() as opened:
        scope, id_ = find_subject(opened, subject)
        opened.set_limit(
            StoredLimit(
                scope=scope, subject=id_, unit=unit, window=window, model=model, amount=whole(amount, unit)
            )
        )


@command.command()
@click.argument("unit", type=click.Choice(_UNITS))
@click.option(
    "--per", "window", type=click.Choice(_WINDOWS), required=True, help="The window that it counts in."
)
@click.option("--model", default="", help="The limit for this model.")
@_subject
def remove(*, unit: Unit, window: Window, model: str, **subject: str | None) -> None:
    """Remove a limit."""
    with directory() as opened:
        scope, id_ = find_subject(opened, subject)
        limit = StoredLimit(scope=scope, subject=id_, unit=unit, window=window, model=model, amount=0)
        if not opened.remove_limit(limit):
            raise NotFoundError("there is no such limit", mend="weir quotas list shows those there are")


@command.command(name="list")
@_subject
def list_limits(**subject: str | None) -> None:
    """List the limits of a key, user, team or tier."""
    with directory() as opened:
        scope, id_ = find_subject(opened, subject)
        name = f"{scope} {next(value for value in subject.values() if value is not None)}"
        rows = [
            (name, limit.model or "all", limit.unit, limit.window, _shown(limit.amount, limit.unit))
            for limit in opened.limits(scope, id_)
        ]
    if rows:
        echo_table(_COLUMNS, rows)
    else:
        click.echo("No limits.", err=True)


@command.command()
def verify() -> None:
    """Prove that every counter is what ledger and open reservations add up to. Stop a gateway with SQLite first."""
    differences = asyncio.run(offline_quota(start(), "verify"))
    for line in differences:
        click.echo(line)
    if differences:
        raise InputError(f"{len(differences)} counters differ", mend="weir quotas rebuild counts them anew")
    click.echo("counters and ledger agree", err=True)


@command.command()
def rebuild() -> None:
    """Count every counter anew from ledger and open reservations. A gateway with SQLite must be stopped."""
    asyncio.run(offline_quota(start(), "rebuild"))
    click.echo("counted anew", err=True)


def _shown(amount: int, unit: Unit) -> str:
    return f"{plain(amount, unit):,.2f}" if unit == "cost" else f"{amount:,}"
