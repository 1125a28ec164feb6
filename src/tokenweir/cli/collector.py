"""``weir collector``: settles and files ended requests and calls webhooks, as a process of its own."""

from __future__ import annotations

import click

from tokenweir.app.shared import bench_opener
from tokenweir.cli.start import start
from tokenweir.gateway.queued.processes import run_collector


@click.command()
def command() -> None:
    """Settle and file ended requests and call webhooks, beside gateways and workers on the same stores.

    It needs stores that several processes may share; over embedded ones, weir up does all of it.
    """
    run_collector(
        bench_opener(start(), "collector"),
        lambda where: click.echo(f"weir collector: {where} ready" if where else "weir collector: ready"),
    )
