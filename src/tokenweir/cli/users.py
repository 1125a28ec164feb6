"""``weir users``: users, their teams and their tiers."""

from __future__ import annotations

from typing import Final

import click

from tokenweir.access.directory import Tier
from tokenweir.cli.access_view import directory, moment
from tokenweir.cli.tables import Column, echo_table

_COLUMNS: Final = (
    Column("user"),
    Column("team"),
    Column("tier"),
    Column("made, UTC", fixed=True),
    Column("state", fixed=True),
)


@click.group(name="users")
def command() -> None:
    """Add, list, disable and enable users; add teams; set tiers."""


@command.command()
@click.argument("name")
@click.option("--team", default="", help="The team it belongs to.")
@click.option("--tier", default="", help="Its tier, where not its team's.")
def add(*, name: str, team: str, tier: str) -> None:
    """Add a user called NAME."""
    with directory(existing=bool(team or tier)) as opened:
        opened.add_user(name, team=team, tier=tier)
    click.echo(f"user {name} added; make a key with weir keys create {name}", err=True)


@command.command(name="list")
def list_users() -> None:
    """List users by name."""
    with directory(existing=True) as opened:
        teams = {team.id: team for team in opened.teams()}
        rows: list[tuple[str, ...]] = []
        for user in opened.users():
            team = teams.get(user.team)
            tier = user.tier or (team.tier if team else "")
            state = "enabled" if user.disabled_at is None else "disabled"
            rows.append((user.name, team.name if team else "–", tier or "–", moment(user.created_at), state))
    if rows:
        echo_table(_COLUMNS, rows)
    else:
        click.echo("No users.", err=True)


@command.command()
@click.argument("name")
def disable(*, name: str) -> None:
    """Refuse all keys of the user NAME."""
    with directory(existing=True) as opened:
        opened.disable_user(name)
    click.echo(f"user {name} is disabled: its keys are refused", err=True)


@command.command()
@click.argument("name")
def enable(*, name: str) -> None:
    """Accept the keys of the user NAME again."""
    with directory(existing=True) as opened:
        opened.disable_user(name, disabled=False)
    click.echo(f"user {name} is enabled: its keys are accepted", err=True)


@command.command(name="add-team")
@click.argument("name")
@click.option("--tier", default="", help="The tier of its members.")
def add_team(*, name: str, tier: str) -> None:
    """Add a team called NAME, whose use can be limited together."""
    with directory(existing=bool(tier)) as opened:
        opened.add_team(name, tier=tier)
    tiered = f" of tier {tier}" if tier else ""
    click.echo(f"team {name}{tiered} added; add members with weir users add NAME --team {name}", err=True)


@command.command(name="set-tier")
@click.argument("name")
@click.option(
    "--priority", type=click.IntRange(0, 9), default=5, show_default=True, help="Higher goes first."
)
@click.option("--pool", default="", help="Use endpoints of this pool too. [default: those without one]")
def set_tier(*, name: str, priority: int, pool: str) -> None:
    """Make the tier NAME, or change it."""
    with directory() as opened:
        opened.set_tier(Tier(name=name, priority=priority, pool=pool))
    pools = f"pool {pool} and endpoints without one" if pool else "endpoints without a pool"
    click.echo(f"tier {name} has priority {priority} and uses {pools}", err=True)
