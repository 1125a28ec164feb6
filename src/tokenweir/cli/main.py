"""The ``weir`` command: its sub-commands, and the one place where errors become a line and an exit code."""

from __future__ import annotations

import difflib
import errno
import logging
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import NamedTuple, NoReturn, cast

import click

from tokenweir import __version__
from tokenweir.cli.options import Options
from tokenweir.core.errors import (
    CancelledError,
    ConfigError,
    DescriptorError,
    DiskFullError,
    InputError,
    MissingExtraError,
    WeirError,
)

_LOG = logging.getLogger("tokenweir.cli")


class Entry(NamedTuple):
    """A sub-command: where it lives (``module:attribute``), its line in the help, the extra that it needs.

    Without ``extra`` the package that is missing tells the extra.
    """

    target: str
    summary: str
    extra: str = ""


COMMANDS = {
    "up": Entry(
        "tokenweir.cli.up:command", "Open one door before model servers: keys, quotas, ledger.", "gateway"
    ),
    "keys": Entry("tokenweir.cli.keys:command", "Make, list, rotate and revoke API keys.", "gateway"),
    "users": Entry("tokenweir.cli.users:command", "Add, list and disable users; teams and tiers.", "gateway"),
    "quotas": Entry("tokenweir.cli.quotas:command", "Set and list limits; prove the counters.", "gateway"),
    "usage": Entry(
        "tokenweir.cli.usage:command", "Show what was used, from the ledger; CSV for billing.", "gateway"
    ),
    "gateway": Entry(
        "tokenweir.cli.gateway:command",
        "Open the front door apart from workers, on shared stores.",
        "gateway",
    ),
    "worker": Entry(
        "tokenweir.cli.worker:command",
        "Take queued requests to the endpoints, apart from a gateway.",
        "gateway",
    ),
    "collector": Entry(
        "tokenweir.cli.collector:command",
        "Settle ended requests and call webhooks, apart from a gateway.",
        "gateway",
    ),
    "notifier": Entry(
        "tokenweir.cli.notifier:command", "Stream events of requests, apart from a gateway.", "gateway"
    ),
    "queue": Entry(
        "tokenweir.cli.queue:command", "Look at the queue and its dead letters; rotate its keys.", "gateway"
    ),
    "bench": Entry(
        "tokenweir.cli.bench:command", "Measure a served model with a client that states its own error."
    ),
    "runtime": Entry(
        "tokenweir.cli.runtime:command", "Serve a model of this machine: OpenAI's interface, and gRPC."
    ),
    "sim": Entry("tokenweir.cli.sim:command", "Run a simulated serving engine, for dry runs and tests."),
    "runs": Entry("tokenweir.cli.runs:command", "List, show and export recorded runs."),
    "compare": Entry("tokenweir.cli.compare:command", "Compare runs of the same workload, with intervals."),
    "doctor": Entry(
        "tokenweir.cli.doctor:command", "Say what this machine offers, what is missing, how to mend it."
    ),
    "demo": Entry("tokenweir.cli.demo:command", "Measure two real servers on this machine and compare them."),
}
"""Every sub-command by name, in the order of the help."""

_EXTRAS = {
    "alembic": "studio",
    "cryptography": "gateway",
    "grpc": "runtime",
    "h11": "gateway",
    "httptools": "runtime",
    "llguidance": "runtime",
    "mlx": "demo",
    "mlx_lm": "demo",
    "opentelemetry": "gateway",
    "prometheus_client": "runtime",
    "pyarrow": "bench",
    "python_multipart": "gateway",
    "sqlalchemy": "studio",
    "tokenizers": "bench",
    "uvicorn": "runtime",
    "uvloop": "runtime",
    "wsproto": "gateway",
}


class LazyGroup(click.Group):
    """A group that imports a sub-command's module only when that command is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        """Return the names of all commands, in the order of the help."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command:  # noqa: ARG002 - click's signature
        """Import and return a command.

        Raises:
            InputError: there is no command of that name; the message holds the nearest one.
            MissingExtraError: the command needs an optional dependency that is not installed.
        """
        if cmd_name not in COMMANDS:
            near = difflib.get_close_matches(cmd_name, COMMANDS, n=1, cutoff=0.5)
            mend = f"did you mean 'weir {near[0]}'?" if near else "see weir --help"
            raise InputError(f"no such command {cmd_name!r}", mend=mend)
        module, _, attribute = COMMANDS[cmd_name].target.partition(":")
        try:
            return cast("click.Command", getattr(import_module(module), attribute))
        except ModuleNotFoundError as error:
            package = (error.name or "").partition(".")[0]
            if package not in _EXTRAS:
                raise
            raise MissingExtraError(
                f"weir {cmd_name} needs {package!r}, which is not installed",
                mend=f"pip install 'tokenweir[{COMMANDS[cmd_name].extra or _EXTRAS[package]}]'",
            ) from error

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002 - click's signature
        """Write the commands' one-line summaries without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, entry.summary) for name, entry in COMMANDS.items()])


def _show_version(ctx: click.Context, _param: click.Parameter, wanted: bool) -> None:  # noqa: FBT001 - click's signature
    if wanted and not ctx.resilient_parsing:
        commit = cast("str | None", import_module("tokenweir.telemetry.build").commit())
        click.echo(f"weir {__version__}" + (f" ({commit[:12]})" if commit else ""))
        ctx.exit()


def _parse_settings(_ctx: click.Context, _param: click.Parameter, values: Sequence[str]) -> dict[str, object]:
    overrides: dict[str, object] = {}
    for text in values:
        key, equals, value = text.partition("=")
        if not equals or not key.strip():
            raise ConfigError(
                f"--set {text!r} sets nothing", mend="write --set KEY=VALUE, as in bench.workers=2"
            )
        overrides[key.strip()] = value
    return overrides


@click.group(
    cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110}
)
@click.option(
    "--config", type=click.Path(path_type=Path), help="Settings file, TOML or YAML.", metavar="FILE"
)
@click.option(
    "--set",
    "overrides",
    multiple=True,
    callback=_parse_settings,
    metavar="KEY=VALUE",
    help="Overrule one setting, as in bench.workers=2. May be given again.",
)
@click.option(
    "--log-level", type=click.Choice(["debug", "info", "warning", "error"]), help="Least level to log."
)
@click.option(
    "--log-format", type=click.Choice(["auto", "console", "json"]), help="auto: console on a terminal."
)
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_show_version,
    help="Print version and commit.",
)
@click.pass_context
def weir(
    ctx: click.Context,
    *,
    config: Path | None,
    overrides: dict[str, object],
    log_level: str | None,
    log_format: str | None,
) -> None:
    """Measure, record and compare self-hosted language models."""
    said = {"log.level": log_level, "log.format": log_format}
    ctx.obj = Options(
        config=config, overrides={**overrides, **{k: v for k, v in said.items() if v is not None}}
    )


def run(arguments: Sequence[str] | None = None) -> int:
    """Run ``weir`` with ``arguments`` (the process's own by default) and return its exit code.

    What goes wrong is one line on standard error: what, and how to mend it.
    """
    try:
        result: object = weir.main(
            args=None if arguments is None else list(arguments), prog_name="weir", standalone_mode=False
        )
    except click.exceptions.Exit as stop:
        return stop.exit_code
    except (KeyboardInterrupt, click.Abort):
        return _report(CancelledError("stopped by the user"))
    except BrokenPipeError:
        # The reader of our output is gone; the interpreter's last flush must not complain of it.
        sys.stdout = None
        return 0
    except click.ClickException as error:
        return _refuse(error)
    except WeirError as error:
        return _report(error)
    except OSError as error:
        return _report(_as_weir_error(error))
    except Exception as error:  # noqa: BLE001 - the command's boundary: whatever it is becomes one line, logged
        _LOG.exception("unexpected error")
        what = f"internal error: {type(error).__name__}: {error}"
        return _report(WeirError(what, mend="please report it with the traceback above"))
    return result if isinstance(result, int) else 0


def main() -> NoReturn:
    """Run ``weir`` as a process."""
    sys.exit(run())


def _report(error: WeirError) -> int:
    _LOG.debug("command failed: %s", error.code, exc_info=error)
    click.echo("weir: " + " ".join(str(error).split()), err=True)
    return error.exit_code


def _refuse(error: click.ClickException) -> int:
    if isinstance(error, click.exceptions.NoArgsIsHelpError):
        # A group without a command: its help, as it stands, is the answer.
        error.show()
        return InputError.exit_code
    return _report(_as_input_error(error))


def _as_input_error(error: click.ClickException) -> InputError:
    """Turn click's complaint about an argument into ours, naming the help that would have told."""
    context = error.ctx if isinstance(error, click.UsageError) else None
    message = error.format_message().rstrip(".")
    return InputError(
        message[:1].lower() + message[1:], mend=f"see {context.command_path if context else 'weir'} --help"
    )


def _as_weir_error(error: OSError) -> WeirError:
    """Turn a refusal of the operating system into the error that says how to mend it."""
    what = f"{error.filename}: {error.strerror}" if error.filename else str(error.strerror or error)
    if error.errno in {errno.ENOSPC, errno.EDQUOT}:
        return DiskFullError(what, mend="free some space or choose another directory with --out")
    if error.errno in {errno.EMFILE, errno.ENFILE}:
        return DescriptorError(
            what, mend="raise the limit with 'ulimit -n', or run 'weir doctor' for the number needed"
        )
    if isinstance(
        error, FileNotFoundError | PermissionError | IsADirectoryError | NotADirectoryError | FileExistsError
    ):
        return InputError(what, mend="mend the path or its permissions")
    return WeirError(what)
