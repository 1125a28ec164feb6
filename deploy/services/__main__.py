"""``python -m deploy.services start | stop | status | fetch [NAME …]``."""

from __future__ import annotations

import sys
from pathlib import Path

import click
from deploy.services.group import HOME, SERVICES, Services, choose_runner, sweep

from tokenweir.core.errors import WeirError

_STORES = {"records": "postgresql", "queue": "rabbitmq", "events": "kafka", "quota": "redis"}
"""Which service backs which URL of the settings' table ``[stores]``."""

_names = click.argument("names", nargs=-1, type=click.Choice(list(SERVICES)))
_home = click.option(
    "--home",
    type=click.Path(path_type=Path, file_okay=False),
    default=HOME,
    help="Folder of state, logs and data.",
)


@click.group(help=__doc__)
def main() -> None:
    """Group the commands."""


@main.command()
@_names
@_home
@click.option(
    "--mode",
    type=click.Choice(["auto", "local", "compose"]),
    default="auto",
    show_default=True,
    help="auto: a container engine where one runs, else processes of this machine.",
)
def start(names: tuple[str, ...], home: Path, mode: str) -> None:
    """Start NAMES, or all, and print their URLs; those that run already stay as they are."""
    services = Services(home, runner=choose_runner(mode))
    outcome = services.start(names or list(SERVICES))
    for name, urls in outcome.urls.items():
        click.echo(f"{name:<11} {outcome.seconds[name]:5.1f} s  {'  '.join(urls.values())}")
    for error in outcome.errors.values():
        click.echo(f"services: {error}", err=True)
    if outcome.urls:
        click.echo(f"\nFor weir.toml (kept in {services.home}/services.json and services.env too):\n")
        click.echo("[stores]")
        for store, name in _STORES.items():
            if name in outcome.urls:
                click.echo(f'{store} = "{outcome.urls[name][name]}"')
    sys.exit(1 if outcome.errors else 0)


@main.command()
@_names
@_home
@click.option("--purge", is_flag=True, help="Remove their data as well.")
def stop(names: tuple[str, ...], home: Path, *, purge: bool) -> None:
    """End NAMES, or all that were started here; data stay unless --purge."""
    services = Services(home)
    stopped = services.stop(names or None)
    if purge:
        services.purge()
    click.echo(f"stopped: {', '.join(stopped)}" if stopped else "none was running")
    sweep()


@main.command()
@_home
def status(home: Path) -> None:
    """Print the URLs of those that run."""
    for name, urls in Services(home).status().items():
        click.echo(f"{name:<11} {'  '.join(urls.values())}")


@main.command()
@_names
def fetch(names: tuple[str, ...]) -> None:
    """Download what NAMES, or all, need beyond packages, so that a later start needs no network."""
    Services().fetch(names or list(SERVICES))


if __name__ == "__main__":
    try:
        main()
    except WeirError as problem:
        click.echo(f"services: {problem}", err=True)
        sys.exit(1)
