"""``weir up``: the gateway with everything it needs, on this machine, and no other service."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Final

import click

from tokenweir.app import Settings
from tokenweir.app.gateway import first_key, opener, see_ready
from tokenweir.cli.options import Options
from tokenweir.cli.start import start
from tokenweir.config import EndpointSettings, home
from tokenweir.core.errors import ConfigError
from tokenweir.gateway.running import Gateway, run
from tokenweir.runtime.process import RuntimeProcess, can_serve
from tokenweir.runtime.shipped import shipped_model
from tokenweir.sim.process import SimProcess

_NOTES: Final = {
    False: "this is the small model that ships, served on this machine",
    True: "MLX is not installed, so this model is simulated and makes up its answers",
}


@click.command()
@click.option("--host", help="Address to listen on. [default: 127.0.0.1]")
@click.option("--port", type=int, help="Port to listen on; 0 picks a free one. [default: 8080]")
@click.option(
    "--ready-file",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Write the URL there once the door is open.",
)
def command(*, host: str | None, port: int | None, ready_file: Path | None) -> None:
    """Open one door before your model servers: OpenAI's interface, API keys, exact quotas, a usage ledger.

    The models are those of the [[endpoints]] in the settings; without any, the small model that ships is served, or
    a simulated one where MLX is not installed. The first start prints an API key, once. Ctrl-C lets answers on their
    way finish; a second one does not wait.
    """
    settings = start({"gateway.host": host, "gateway.port": port})
    with contextlib.ExitStack() as local:
        endpoints = settings.endpoints or (_local(local, settings),)
        run(
            opener(settings, endpoints),
            lambda gateway: _announce(gateway, settings, ready_file),
        )


def _local(local: contextlib.ExitStack, settings: Settings) -> EndpointSettings:
    """Start a model of this machine: the one that ships, or a simulated one where none can be served.

    Raises ConfigError where it would not speak with the gateway alone.
    """
    model = shipped_model()
    if model is not None and can_serve():
        if settings.runtime.tls is not None:
            raise ConfigError(
                "[runtime.tls] is set, and no endpoint is configured: weir up would serve a model to itself alone",
                mend="leave it out; or run weir runtime apart, and name it in [[endpoints]] with its tls table",
            )
        # A second start would take seconds to be refused, and begin the log of the first one's model anew.
        see_ready(settings)
        flags = click.get_current_context().ensure_object(Options).flags()
        # Whatever [runtime] says of addresses, nobody else is to reach it.
        server = local.enter_context(
            RuntimeProcess(model, home() / "runtime.log", "--host", "127.0.0.1", flags=flags)
        )
        return EndpointSettings(
            name="local",
            kind="tokenweir",
            url=server.url,
            model=server.model,
            key=settings.runtime.api_key,
            tokenizer=model,
        )
    simulator = local.enter_context(SimProcess())
    return EndpointSettings(name="local", kind="sim", url=simulator.url, model="sim")


def _announce(gateway: Gateway, settings: Settings, ready_file: Path | None) -> None:
    """Print where the door is, what can be asked, and the first key.

    The key is made only now: of a start that failed before, nobody would have seen it.
    """
    if ready_file is not None:
        try:
            ready_file.write_text(gateway.url + "\n", encoding="utf-8")
        except OSError as error:
            raise ConfigError(
                f"the ready file '{ready_file}' cannot be written: {error.strerror}", mend="mend the path"
            ) from None
    lines = [f"weir up: {gateway.url} ready", f"  models  {', '.join(gateway.pool.models)}"]
    if not settings.endpoints:
        lines.append(f"  note    no endpoint is configured: {_NOTES[gateway.pool.models[0] == 'sim']}")
    key = first_key(settings)
    if key is not None:
        lines.append(f"  key     {key}   (shown once; make more with weir keys create)")
    click.echo("\n".join(lines))
