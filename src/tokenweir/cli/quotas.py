"""``weir quotas``: limits on use are set, listed and removed; counters are proved against the ledger."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Callable, Sequence
from typing import Final, TypeVar

import click

from tokenweir.access.directory import LimitScope, StoredLimit
from tokenweir.access.wording import Subjects, plain, whole
from tokenweir.access.wording import subject as find_subject
from tokenweir.app.gateway import offline_quota, totals
from tokenweir.cli.access_view import directory, need_database, need_models
from tokenweir.cli.start import start
from tokenweir.cli.tables import Column, echo_table
from tokenweir.core.errors import InputError, NotFoundError
from tokenweir.core.quota import Unit, Window, window_start
from tokenweir.ports.ledger import LedgerFilter, LedgerTotal

_COLUMNS: Final = (
    Column("limit of"),
    Column("model"),
    Column("unit", fixed=True),
    Column("per", fixed=True),
    Column("amount", number=True),
    Column("used", number=True),
)
_UNITS: Final[tuple[Unit, ...]] = ("requests", "tokens", "cost")
_WINDOWS: Final[tuple[Window, ...]] = ("minute", "day", "month")
_NONE: Final = "–"
CommandT = TypeVar("CommandT", bound=Callable[..., object])


def _read_amount(ctx: click.Context, param: click.Parameter, text: str) -> float:
    """Return a number of 0 or more; what is none fails with what to write."""
    try:
        amount = float(text)
    except ValueError:
        raise click.BadParameter(f"{text!r} is no number; write one such as 100000", ctx, param) from None
    if not 0 <= amount < float("inf"):
        raise click.BadParameter(f"{text!r} is no amount; write 0 or more", ctx, param)
    return amount


class _Set(click.Command):
    """A command whose amount, where it is negative, is not told to be an unknown option."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse as click does. Raises InputError for a negative amount."""
        given = tuple(args)
        try:
            return super().parse_args(ctx, args)
        except click.NoSuchOption as error:
            # Of what begins with a dash, click names the first letter alone.
            text = next((one for one in given if one.startswith(error.option_name)), "")
            if not re.match(r"-\.?\d", text):
                raise
            raise InputError(
                f"an amount cannot be negative, as {text!r} is", mend="write 0 or more"
            ) from error


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


@command.command(name="set", cls=_Set)
@click.argument("amount", callback=_read_amount)
@click.argument("unit", type=click.Choice(_UNITS))
@click.option(
    "--per", "window", type=click.Choice(_WINDOWS), required=True, help="The window that it counts in."
)
@click.option("--model", default="", help="For this model alone. [default: all together]")
@_subject
def set_limit(*, amount: float, unit: Unit, window: Window, model: str, **subject: str | None) -> None:
    """Allow AMOUNT of UNIT in each window: weir quotas set 100000 tokens --per day --user ada."""
    settings = start()
    if model:
        need_models(settings, (model,), "the limit is set")
    with directory(existing=True) as opened:
        scope, id_ = find_subject(opened, subject)
        limit = StoredLimit(
            scope=scope, subject=id_, unit=unit, window=window, model=model, amount=whole(amount, unit)
        )
        opened.set_limit(limit)
    click.echo(
        f"{_named(subject)} may use {_shown(limit.amount, unit)} {_unit(unit, settings.gateway.currency)} "
        f"per {window}{f' of {model}' if model else ''}",
        err=True,
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
    with directory(existing=True) as opened:
        scope, id_ = find_subject(opened, subject)
        limit = StoredLimit(scope=scope, subject=id_, unit=unit, window=window, model=model, amount=0)
        if not opened.remove_limit(limit):
            raise NotFoundError("there is no such limit", mend="weir quotas list shows those there are")
    click.echo(
        f"{_named(subject)} has no limit on {unit} per {window}{f' of {model}' if model else ''} any more",
        err=True,
    )


@command.command(name="list")
@_subject
def list_limits(**subject: str | None) -> None:
    """List the limits of a key, user, team or tier and what the ledger holds against each; of all, if none is named.

    Then users without a limit of their own are listed, too, with what they have used this month.
    """
    settings = start()
    with directory(existing=True) as opened:
        subjects = Subjects(opened)
        if any(value is not None for value in subject.values()):
            limits = opened.limits(*find_subject(opened, subject))
        else:
            limits = opened.limits()
    used = asyncio.run(_used(settings.stores.gateway))
    rows = [
        (
            f"{limit.scope} {subjects.name(limit.scope, limit.subject)}",
            limit.model or "all",
            limit.unit,
            limit.window,
            _shown(limit.amount, limit.unit),
            _NONE if limit.scope == "tier" else _shown(_count(used[limit.window], limit), limit.unit),
        )
        for limit in sorted(limits, key=subjects.order)
    ]
    if all(value is None for value in subject.values()):
        rows += _unlimited(subjects, limits, used["month"])
    if rows:
        echo_table(_COLUMNS, rows)
    else:
        click.echo("No limits.", err=True)


@command.command()
def verify() -> None:
    """Prove that every counter is what ledger and open reservations add up to.

    Over SQLite a running gateway has the counters to itself: ask it, with GET /v1/admin/quotas/verify.
    """
    settings = start()
    need_database(settings.stores.gateway)
    differences = asyncio.run(offline_quota(settings, "verify"))
    for line in differences:
        click.echo(line)
    if differences:
        raise InputError(f"{len(differences)} counters differ", mend="weir quotas rebuild counts them anew")
    click.echo("counters and ledger agree", err=True)


@command.command()
def rebuild() -> None:
    """Count every counter anew from ledger and open reservations.

    Over SQLite a running gateway has the counters to itself: ask it, with POST /v1/admin/quotas/rebuild.
    """
    settings = start()
    need_database(settings.stores.gateway)
    asyncio.run(offline_quota(settings, "rebuild"))
    click.echo("counted anew", err=True)


async def _used(url: str) -> dict[Window, Sequence[LedgerTotal]]:
    """Return what the ledger holds of the present windows."""
    now = time.time_ns()
    return {
        window: await totals(url, LedgerFilter(since=window_start(window, now)), "month")
        for window in _WINDOWS
    }


def _count(rows: Sequence[LedgerTotal], limit: StoredLimit) -> int:
    """Return how much of a window's use counts against a limit."""
    return sum(
        _amount(row, limit.unit)
        for row in rows
        if _of(row, limit.scope) == limit.subject and limit.model in {"", row.model}
    )


def _of(row: LedgerTotal, scope: LimitScope) -> bytes | None:
    return {"key": row.key, "user": row.user, "team": row.team}.get(scope)


def _amount(row: LedgerTotal, unit: Unit) -> int:
    match unit:
        case "requests":
            return row.requests
        case "tokens":
            return row.input_tokens + row.output_tokens
        case "cost":
            return row.cost


def _unlimited(
    subjects: Subjects, limits: Sequence[StoredLimit], used: Sequence[LedgerTotal]
) -> list[tuple[str, ...]]:
    """Return a row for each user who used something this month and has no limit of the user's own."""
    limited = {limit.subject for limit in limits if limit.scope == "user"}
    counted: dict[bytes, int] = {}
    for row in used:
        if row.user not in limited:
            counted[row.user] = counted.get(row.user, 0) + _amount(row, "tokens")
    return sorted(
        (f"user {subjects.name('user', user)}", "all", "tokens", "month", _NONE, _shown(count, "tokens"))
        for user, count in counted.items()
    )


def _named(subject: dict[str, str | None]) -> str:
    """Return whose limit it is, as one was given."""
    return next(f"{scope} {name}" for scope, name in subject.items() if name is not None)


def _unit(unit: Unit, currency: str) -> str:
    return currency if unit == "cost" and currency else unit


def _shown(amount: int, unit: Unit) -> str:
    return f"{plain(amount, unit):,.2f}" if unit == "cost" else f"{amount:,}"
