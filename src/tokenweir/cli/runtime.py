"""``weir runtime``: serve a model of this machine over OpenAI's interface, and over gRPC."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final

import click

from tokenweir import __version__
from tokenweir.asgi.stopping import end_with_starter
from tokenweir.cli.start import start
from tokenweir.core.errors import ConfigError
from tokenweir.ports.inference import ModelCard
from tokenweir.runtime.health import EngineHealth
from tokenweir.runtime.http.door import Build
from tokenweir.runtime.running import Running, run
from tokenweir.telemetry import build

READY_PREFIX: Final = "weir runtime: "
READY_SUFFIX: Final = " ready"
_MODEL_FLAGS: Final = {
    "name": "--name",
    "weight_bits": "--quantise",
    "context_tokens": "--context",
    "draft": "--draft",
}
_UNITS: Final = ("B", "kB", "MB", "GB", "TB")
_STEP: Final = 1000
_SHOWN: Final = 12


def _one_draft(context: click.Context, option: click.Parameter, given: tuple[Path, ...]) -> Path | None:
    """Return the draft that was named: several are refused rather than passed over."""
    del context, option
    if len(given) > 1:
        raise ConfigError(
            f"--draft is given {len(given)} times ({', '.join(map(str, given))})",
            mend="give one: a model has one draft",
        )
    return given[0] if given else None


@click.command()
@click.argument("model", required=False, type=click.Path(path_type=Path))
@click.option("--name", help="What clients call the model; without one, the directory's name.")
@click.option(
    "--quantise",
    "weight_bits",
    type=click.Choice(["4", "8"]),
    help="Quantise the weights to so many bits while loading.",
)
@click.option(
    "--draft",
    type=click.Path(path_type=Path),
    metavar="PATH",
    multiple=True,
    callback=_one_draft,
    help="Directory of a draft model for speculation.",
)
@click.option(
    "--context",
    "context_tokens",
    type=click.IntRange(min=2),
    metavar="N",
    help="Longest prompt and answer together, where less than the model's own.",
)
@click.option("--host", help="Address to listen on. [default: 127.0.0.1]")
@click.option("--port", type=int, help="Port of HTTP; 0 picks a free one. [default: 8100]")
@click.option("--grpc-port", type=int, help="Port of gRPC; 0 picks a free one. Without it there is no gRPC.")
@click.option(
    "--engine",
    type=click.Choice(["auto", "mlx", "sim"]),
    help="What runs the model; auto is mlx, or sim for a simulated model, and never sim for another. [default: auto]",
)
@click.option(
    "--memory",
    metavar="AMOUNT",
    help="Memory for weights and caches: 12GiB, 800MB, or a share of this machine's. [default: 0.7]",
)
@click.option("--api-key", metavar="env:NAME", help="Key that clients must send, as env:NAME or file:PATH.")
@click.option(
    "--ready-file",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Write the URL there once the server is ready.",
)
@click.option("--tethered", is_flag=True, help="Stop when standard input ends: its starter is gone.")
def command(  # noqa: PLR0913 - one parameter for each option
    *,
    model: Path | None,
    host: str | None,
    port: int | None,
    grpc_port: int | None,
    engine: str | None,
    memory: str | None,
    api_key: str | None,
    ready_file: Path | None,
    tethered: bool,
    **flags: object,
) -> None:
    """Serve the model in the directory MODEL: chat, completions and embeddings as OpenAI has them.

    Without MODEL the models of the settings are served. Prints the address and the model's facts once it has made
    a token. Ctrl-C lets running requests finish; a second one does not wait.
    """
    overrides: dict[str, object] = {
        "runtime.host": host,
        "runtime.port": port,
        "runtime.grpc_port": grpc_port,
        "runtime.engine": engine,
        "runtime.memory_limit": memory,
        "runtime.api_key": api_key,
    }
    if model is not None:
        overrides["runtime.models"] = [_model(model, flags)]
    else:
        _refuse_flags(flags)
    settings = start(overrides).runtime
    if tethered:
        end_with_starter()
    run(
        settings,
        Build(version=__version__, commit=build.commit()),
        lambda running: _announce(running, ready_file),
    )


def _model(path: Path, flags: Mapping[str, object]) -> dict[str, object]:
    given = {name: value for name, value in flags.items() if value is not None}
    if "weight_bits" in given:
        given["weight_bits"] = int(str(given["weight_bits"]))
    return {"path": path, **given}


def _refuse_flags(flags: Mapping[str, object]) -> None:
    stray = next((flag for name, flag in _MODEL_FLAGS.items() if flags[name] is not None), None)
    if stray is not None:
        raise ConfigError(
            f"{stray} belongs to a model, and none is named",
            mend="name its directory: weir runtime MODEL, or say it in [[runtime.models]]",
        )


def _announce(running: Running, ready_file: Path | None) -> None:
    """Print where the server is and what it serves; the first line is for programs, too."""
    if ready_file is not None:
        try:
            ready_file.write_text(running.url + "\n", encoding="utf-8")
        except OSError as error:
            raise ConfigError(
                f"the ready file '{ready_file}' cannot be written: {error.strerror}", mend="mend the path"
            ) from None
    click.echo("\n".join((f"{READY_PREFIX}{running.url}{READY_SUFFIX}", *_facts(running))))


def _facts(running: Running) -> list[str]:
    health = running.health
    lines = [f"  model   {_described(status.card)}" for status in health.models]
    lines = lines or ["  model   none yet: POST /v1/models/load"]
    lines.append(f"  engine  {_engine(health)}")
    if running.grpc:
        lines.append(f"  grpc    {running.grpc}")
    return lines


def _described(card: ModelCard) -> str:
    bits = "" if card.weight_bits is None else f" in {card.weight_bits} bits"
    draft = "" if card.draft is None else f", draft {Path(card.draft).name}"
    return (
        f"{card.name}: {card.architecture}, weights {_bytes(card.weights_bytes)}{bits}, "
        f"context {card.context_tokens:,} tokens, {_bytes(card.kv_bytes_per_token)} of cache per token{draft}, "
        f"revision {card.revision[:_SHOWN]}"
    )


def _engine(health: EngineHealth) -> str:
    limit = "" if health.memory is None else f", memory limit {_bytes(health.memory.limit_bytes)}"
    return f"{health.engine} {health.engine_version}".rstrip() + limit


def _bytes(count: int) -> str:
    size, unit = float(count), 0
    while size >= _STEP and unit < len(_UNITS) - 1:
        size, unit = size / _STEP, unit + 1
    return f"{size:.0f} {_UNITS[unit]}" if unit == 0 else f"{size:.1f} {_UNITS[unit]}"
