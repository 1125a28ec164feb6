"""``weir notifier``: the door of events alone, as a process of its own."""

from __future__ import annotations

from typing import Final

import click

from tokenweir.app.gateway import opener
from tokenweir.app.shared import need_shared
from tokenweir.cli.start import start
from tokenweir.gateway.running import run

PATHS: Final = frozenset(
    {
        "/v1/requests/{id}",
        "/v1/requests/{id}/events",
        "/v1/responses/{id}",
        "/status/{id}",
        "/events/{id}",
        "/api/status/{id}",
        "/health",
        "/ready",
        "/metrics",
    }
)
_PORT: Final = 8081


@click.command()
@click.option("--host", help="Address to listen on. [default: 127.0.0.1]")
@click.option(
    "--port", type=int, default=_PORT, show_default=True, help="Port to listen on; 0 picks a free one."
)
def command(*, host: str | None, port: int) -> None:
    """Tell how requests and responses stand and stream their events, apart from the gateways that take them on.

    It needs stores that several processes may share; over embedded ones, weir up does all of it.
    """
    settings = start({"gateway.host": host, "gateway.port": port})
    need_shared(settings, "notifier")
    run(opener(settings, (), only=PATHS), lambda gateway: click.echo(f"weir notifier: {gateway.url} ready"))
