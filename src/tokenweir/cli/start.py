"""What every command does first: read the settings and set the logs up."""

from __future__ import annotations

from collections.abc import Mapping

import click

from tokenweir.app import Settings, load_config
from tokenweir.cli.options import Options
from tokenweir.telemetry import logs


def start(overrides: Mapping[str, object] | None = None) -> Settings:
    """Set the logs up and return the settings, overruled by ``weir``'s flags, then by ``overrides``.

    ``overrides`` are the command's own flags as dotted keys (``{"sim.port": port}``); ``None`` is not given.

    Raises:
        ConfigError: a source cannot be read, a key is unknown, or a value has the wrong type or unit.
    """
    context = click.get_current_context(silent=True)
    options = (context.find_object(Options) if context else None) or Options()
    given = {key: value for key, value in (overrides or {}).items() if value is not None}
    settings = load_config(options.config, overrides={**options.overrides, **given})
    logs.configure(settings.log.level, settings.log.format)
    return settings
