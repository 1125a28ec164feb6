"""``weir worker``: takes queued requests to the endpoints, as a process of its own."""

from __future__ import annotations

import click

from tokenweir.app.shared import bench_opener
from tokenweir.cli.start import start
from tokenweir.gateway.queued.processes import run_worker


@click.command()
@click.option("--concurrency", type=int, help="Requests worked on at once. [default: 128]")
def command(*, concurrency: int | None) -> None:
    """Take queued requests to the endpoints, beside gateways and collectors on the same stores.

    It needs stores that several processes may share; over embedded ones, weir up does all of it. SIGTERM finishes
    what is in hand; a second one leaves it to the next worker.
    """
    settings = start({"worker.concurrency": concurrency})
    run_worker(
        bench_opener(settings, "worker"),
        lambda where: click.echo(f"weir worker: {where} ready" if where else "weir worker: ready"),
        drain_ns=settings.gateway.drain_timeout,
    )
