"""``weir gateway``: the front door alone, as a process of its own."""

from __future__ import annotations

import click

from tokenweir.app.gateway import opener
from tokenweir.app.shared import need_shared
from tokenweir.cli.start import start
from tokenweir.core.errors import ConfigError
from tokenweir.gateway.doors.openapi import document
from tokenweir.gateway.doors.routes import documented
from tokenweir.gateway.running import run


def _print_openapi(ctx: click.Context, _param: click.Parameter, wanted: bool) -> None:  # noqa: FBT001 - click's signature
    if wanted and not ctx.resilient_parsing:
        click.echo(document(documented()).decode())
        ctx.exit()


@click.command()
@click.option("--host", help="Address to listen on. [default: 127.0.0.1]")
@click.option("--port", type=int, help="Port to listen on; 0 picks a free one. [default: 8080]")
@click.option(
    "--openapi",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_print_openapi,
    help="Print the OpenAPI document of all routes, and open nothing.",
)
def command(*, host: str | None, port: int | None) -> None:
    """Open the front door, and leave queued requests to workers and collectors on the same stores.

    It needs stores that several processes may share; over embedded ones, weir up does all of it. Keys are made with
    weir keys create. SIGTERM lets answers on their way finish; a second one does not wait.
    """
    settings = start({"gateway.host": host, "gateway.port": port})
    need_shared(settings, "gateway")
    if not settings.endpoints:
        raise ConfigError("no endpoint is configured", mend="add an [[endpoints]] table")
    run(
        opener(settings, settings.endpoints, works=False),
        lambda gateway: click.echo(f"weir gateway: {gateway.url} ready"),
    )
