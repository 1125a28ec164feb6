"""``weir demo``."""

from __future__ import annotations

import signal
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import click
from rich.console import Console

from tokenweir.cli.start import start
from tokenweir.demo.story import STEPS, Demo, DemoOptions
from tokenweir.demo.telling import Teller

_PLAIN_WIDTH = 120


@click.command("demo")
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("weir-demo"),
    show_default=True,
    metavar="DIR",
    help="Where runs, reports, the model and logs go.",
)
@click.option("--quick", is_flag=True, help="Show every step, but measure little.")
def command(*, out: Path, quick: bool) -> None:
    """Measure two real servers on this machine and compare them, in about a minute.

    Starts the simulator, and weir runtime on the small model that ships, benchmarks both, compares two engine
    settings of one workload, and shows that a comparison of unlike runs is refused. Needs no network, no GPU.
    """
    start()
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=_PLAIN_WIDTH)
    options = DemoOptions.quick(out) if quick else DemoOptions(out=out)
    started = time.monotonic()
    with _hang_ups_as_interrupts():
        Demo(options, Teller(console, steps=STEPS)).run()
    click.echo(f"\nDone in {time.monotonic() - started:.0f} s.")


@contextmanager
def _hang_ups_as_interrupts() -> Generator[None]:
    """End what the demo started also when the demo is told to end by something else than Ctrl-C."""

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = {number: signal.signal(number, interrupt) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
