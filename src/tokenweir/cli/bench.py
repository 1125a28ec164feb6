"""``weir bench``: measure a served model; ``weir bench calibrate``: measure the client itself."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from types import NoneType
from typing import Any, TypeVar, get_args

import click
from pydantic.fields import FieldInfo

from tokenweir.app import record
from tokenweir.bench.calibrate import ServerShape, calibrate
from tokenweir.bench.calibration import save_calibration
from tokenweir.bench.console_calibration import show_calibration
from tokenweir.bench.environment import usable_cores
from tokenweir.bench.live import make_view
from tokenweir.bench.options import BenchOptions
from tokenweir.bench.service import failure_of, run_bench
from tokenweir.cli.start import start
from tokenweir.core.errors import CancelledError
from tokenweir.sim.process import SimProcess

_SEVERAL = frozenset({"header", "label", "stop"})
_METAVARS = {
    "model": "NAME",
    "corpus": "FILE|NAME",
    "arrival": "ARRIVAL",
    "scenario": "SCENARIO",
    "duration": "TIME",
    "warmup": "TIME|N",
    "cooldown": "TIME|N",
    "timeout": "TIME",
    "slo": "TAG=TIME,…",
    "tokenizer": "PATH",
    "header": "NAME=VALUE",
    "key": "env:NAME|file:PATH",
    "out": "DIR",
    "label": "K=V",
    "stop": "TEXT",
}
CommandT = TypeVar("CommandT", bound=Callable[..., object])


class _MeasureByDefault(click.Group):
    """``weir bench URL`` is ``weir bench run URL``."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Put the default command's name before arguments that name none."""
        if args and args[0] not in {*self.commands, "-h", "--help"}:
            args = ["run", *args]
        return super().parse_args(ctx, args)


def _flags(command: CommandT) -> CommandT:
    """Give the command a flag for every key of a spec but the URL, in the order of their declaration."""
    for name, field in reversed(BenchOptions.model_fields.items()):
        if name != "url":
            command = _flag(name, field)(command)
    return command


def _flag(name: str, field: FieldInfo) -> Callable[[CommandT], CommandT]:
    spelled = "--" + name.replace("_", "-")
    default: object = field.default
    shown = isinstance(default, (str, int)) and default is not False and default != ""
    text = f"{field.description} [default: {default}]" if shown else field.description
    settings: dict[str, Any] = {"help": text, "default": None}
    if bool in {field.annotation, *get_args(field.annotation)}:
        spelled = f"{spelled}/--no-{spelled[2:]}"
    else:
        settings["type"] = str
        settings["metavar"] = _METAVARS.get(name) or _choices(field)
        settings["multiple"] = name in _SEVERAL
    return click.option(spelled, name, **settings)


def _choices(field: FieldInfo) -> str | None:
    choices = [
        value
        for part in (field.annotation, *get_args(field.annotation))
        if part is not NoneType
        for value in get_args(part)
        if isinstance(value, str)
    ]
    return "|".join(dict.fromkeys(choices)) or None


@click.group(cls=_MeasureByDefault)
def command() -> None:
    """Measure a served model with a client that states its own error.

    weir bench URL [OPTIONS] measures; see weir bench run --help for the options. weir bench calibrate measures
    this client on this machine.
    """


@command.command("run")
@click.argument("url", required=False)
@click.option(
    "--spec",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Read these options from a TOML or YAML file; flags overrule it.",
)
@click.option(
    "--user-timestamps", is_flag=True, help="Measure as on a system without kernel timestamps and epoll."
)
@click.option("--live", type=click.Choice(["auto", "rich", "plain", "off"]), help="The progress view.")
@_flags
def run(
    *, url: str | None, spec: Path | None, user_timestamps: bool, live: str | None, **flags: object
) -> int:
    """Measure the endpoint at URL and keep a record with its report.

    The run directory holds run.json, the rows as Parquet and report.html. Ctrl-C keeps what was measured.
    """
    settings = start({"bench.live": live})
    given = {"url": url, **{name: value for name, value in flags.items() if value not in {None, ()}}}
    options = BenchOptions.load(spec, given)
    closed = run_bench(
        options,
        settings.bench,
        runs_dir=settings.stores.runs,
        view=make_view(settings.bench.live),
        portable=user_timestamps,
    )
    import_module("tokenweir.bench.console").show_run(closed)
    record(settings, closed.run_dir)
    error = closed.failure or failure_of(closed)
    if error is not None:
        raise error
    if closed.run.status == "cancelled":
        raise CancelledError("stopped by the user; what was measured is kept")
    return 0


@command.command("calibrate")
@click.option("--quick", is_flag=True, help="Measure for a shorter time.")
def calibrate_client(*, quick: bool) -> None:
    """Run the engine against the simulator on this machine; print and keep its error and its ceiling."""
    settings = start()
    calibration = calibrate(_simulator, settings.bench, make_view(settings.bench.live), quick=quick)
    path = save_calibration(calibration)
    show_calibration(calibration)
    click.echo(f"kept in {path}; every record from now on carries it")


@contextmanager
def _simulator(shape: ServerShape) -> Generator[str]:
    # The simulator answers as fast as it can, so a core of its own keeps it from competing with the client.
    cores = usable_cores()
    cpus = frozenset(cores[:1]) if len(cores) > 1 else None
    with SimProcess(cpus=cpus, ttft=shape.ttft, itl=shape.itl) as server:
        yield server.url
