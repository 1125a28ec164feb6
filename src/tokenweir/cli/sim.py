"""``weir sim``: a serving engine's double for dry runs, tests and calibration."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from tokenweir.cli.start import start
from tokenweir.sim.running import run
from tokenweir.sim.settings import Settings

_FLAGS = {"faults": "--fault"}
_METAVARS = {
    "ttft": "DIST",
    "itl": "DIST",
    "tokens_per_chunk": "DIST",
    "output_tokens": "DIST",
    "prefill": "DURATION",
    "script": "FILE",
    "tokenizer": "FILE",
    "faults": "FAULT@WHEN",
    "api_key": "env:NAME",
}
_NUMBERS: dict[object, type] = {int: int, float: float}
CommandT = TypeVar("CommandT", bound=Callable[..., object])


def _settings_flags(command: CommandT) -> CommandT:
    """Give the command a flag for every setting of ``[sim]``, in the order of the table."""
    for name, field in reversed(Settings.model_fields.items()):
        flag = _FLAGS.get(name, "--" + name.replace("_", "-"))
        shown = (
            f"{field.description} [default: {field.default}]"
            if field.default not in {None, False, ()}
            else ""
        )
        described: dict[str, Any] = {"help": shown or field.description, "default": None}
        if field.annotation is bool:
            flag = f"{flag}/--no-{flag[2:]}"
        elif name == "faults":
            described |= {"multiple": True, "callback": _given}
        else:
            described["type"] = _NUMBERS.get(field.annotation, str)
        if name in _METAVARS:
            described["metavar"] = _METAVARS[name]
        command = click.option(flag, name, **described)(command)
    return command


def _given(_ctx: click.Context, _param: click.Parameter, values: tuple[str, ...]) -> tuple[str, ...] | None:
    return values or None


@click.command()
@_settings_flags
@click.option(
    "--ready-file",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Write the URL there once the simulator listens.",
)
@click.pass_context
def command(ctx: click.Context, *, ready_file: Path | None, **flags: object) -> None:
    """Run a simulated serving engine that answers as an OpenAI server and as SGLang.

    Prints one line once it listens. Every chunk carries its true send time, and GET /sim/truth gives the
    simulator's own latencies. DIST is constant:50ms, uniform:50ms..70ms, normal:MEAN,SD,
    lognormal:MEDIAN,SIGMA, gamma:MEAN,CV or exponential:MEAN.
    """
    settings = start({f"sim.{name}": value for name, value in flags.items()}).sim
    ctx.exit(run(settings.options(), ready_file=ready_file))
