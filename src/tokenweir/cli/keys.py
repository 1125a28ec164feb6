"""``weir keys``: API keys are made, listed, rotated and revoked."""

from __future__ import annotations

import time
from typing import Final, cast

import click

from tokenweir.access.directory import PERMISSIONS, Key
from tokenweir.access.wording import key_id, key_text, lifetime
from tokenweir.cli.access_view import directory, moment, need_models
from tokenweir.cli.start import start
from tokenweir.cli.tables import Column, echo_table
from tokenweir.ports.access import Permission

_COLUMNS: Final = (
    Column("key", fixed=True),
    Column("user"),
    Column("name"),
    Column("scopes"),
    Column("models"),
    Column("made, UTC", fixed=True),
    Column("until, UTC", fixed=True),
    Column("state", fixed=True),
)


@click.group(name="keys")
def command() -> None:
    """Make, list, rotate and revoke API keys. A running gateway follows within a second."""


@command.command()
@click.argument("user")
@click.option("--name", default="", help="What the key is for.")
@click.option(
    "--scope",
    "scopes",
    multiple=True,
    type=click.Choice(PERMISSIONS),
    help="What it may do; may be given again. [default: infer, read]",
)
@click.option("--model", "models", multiple=True, help="Only this model; may be given again. [default: all]")
@click.option("--expires", metavar="AFTER", help="When it ends: 12h, 90d. [default: never]")
def create(
    *, user: str, name: str, scopes: tuple[str, ...], models: tuple[str, ...], expires: str | None
) -> None:
    """Make a key for USER and print it. It is shown this once: only its digest is kept."""
    wanted = cast("tuple[Permission, ...]", scopes) or ("infer", "read")
    need_models(start(), models, "the key is made")
    with directory(existing=True) as opened:
        key, text = opened.issue(
            user, name, scopes=wanted, models=models, lifetime_ns=lifetime(expires) if expires else None
        )
    click.echo(text)
    click.echo(f"{key_text(key.id)} for {user}; keep it now, it cannot be shown again", err=True)


@command.command(name="list")
@click.option("--user", help="Only this user's.")
def list_keys(*, user: str | None) -> None:
    """List keys, oldest first."""
    with directory(existing=True) as opened:
        names = {one.id: one.name for one in opened.users()}
        rows = [_row(key, names[key.user]) for key in opened.keys(user)]
    if rows:
        echo_table(_COLUMNS, rows)
    else:
        click.echo("No keys.", err=True)


@command.command()
@click.argument("key")
def revoke(*, key: str) -> None:
    """Refuse KEY (its id, key_…) from now on."""
    with directory(existing=True) as opened:
        opened.revoke(key_id(key))
    click.echo(f"{key} is refused from now on", err=True)


@command.command()
@click.argument("key")
@click.option("--overlap", default="0s", show_default=True, help="How long the old key still works: 24h, 7d.")
def rotate(*, key: str, overlap: str) -> None:
    """Make a key like KEY (its id, key_…), with its limits, print it, and refuse the old one."""
    with directory(existing=True) as opened:
        made, text = opened.rotate(key_id(key), overlap_ns=lifetime(overlap))
    click.echo(text)
    click.echo(f"{key_text(made.id)} replaces {key}; keep it now, it cannot be shown again", err=True)


def _row(key: Key, user: str) -> tuple[str, ...]:
    ends = [end for end in (key.expires_at, key.revoked_at) if end is not None]
    until = min(ends) if ends else None
    over = until is not None and until <= time.time_ns()
    state = "valid" if not over else "revoked" if key.revoked_at == until else "expired"
    return (
        key_text(key.id),
        user,
        key.name,
        " ".join(sorted(key.scopes)),
        " ".join(key.models) or "all",
        moment(key.created_at),
        moment(until),
        state,
    )
