"""Composition root: puts the slices' settings together and wires adapters into slices."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from pathlib import Path

from pydantic import Field, field_validator

from tokenweir import config
from tokenweir.bench.settings import Settings as BenchSettings
from tokenweir.config import EndpointSettings, LogSettings, SettingsModel, StoreSettings, TelemetrySettings
from tokenweir.core.errors import ConfigError
from tokenweir.gateway.settings import CollectorSettings, WorkerSettings
from tokenweir.gateway.settings import Settings as GatewaySettings
from tokenweir.runtime.settings import Settings as RuntimeSettings
from tokenweir.sim.settings import Settings as SimSettings


class Settings(SettingsModel):
    """Everything that ``weir.toml`` may hold: one table per slice, each declared by its slice."""

    log: LogSettings = Field(default_factory=LogSettings)
    telemetry: TelemetrySettings = Field(default_factory=TelemetrySettings)
    stores: StoreSettings = Field(default_factory=StoreSettings)
    endpoints: tuple[EndpointSettings, ...] = ()
    bench: BenchSettings = Field(default_factory=BenchSettings)
    sim: SimSettings = Field(default_factory=SimSettings)
    runtime: RuntimeSettings = Field(default_factory=RuntimeSettings)
    gateway: GatewaySettings = Field(default_factory=GatewaySettings)
    worker: WorkerSettings = Field(default_factory=WorkerSettings)
    collector: CollectorSettings = Field(default_factory=CollectorSettings)

    @field_validator("endpoints")
    @classmethod
    def _names_differ(cls, endpoints: tuple[EndpointSettings, ...]) -> tuple[EndpointSettings, ...]:
        names = [endpoint.name for endpoint in endpoints]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            reason = f"two endpoints are named {twice[0]!r}"
            raise ValueError(reason)
        return endpoints

    def endpoint(self, name: str) -> EndpointSettings:
        """Return the endpoint called ``name``.

        Raises:
            ConfigError: there is none; the message lists those there are.
        """
        for endpoint in self.endpoints:
            if endpoint.name == name:
                return endpoint
        known = ", ".join(endpoint.name for endpoint in self.endpoints) or "none is configured"
        raise ConfigError(f"no endpoint is named {name!r}", mend=f"known endpoints: {known}")


def load_config(path: Path | str | None = None, *, overrides: Mapping[str, object] | None = None) -> Settings:
    """Return the settings: file < ``WEIR_*`` environment < ``overrides``.

    Without ``path`` the file is the one ``WEIR_CONFIG`` names, else ``./weir.toml`` (or ``.yaml``), else the
    one in the user's configuration directory, else none. ``overrides`` have dotted keys:
    ``{"log.level": "debug"}``.

    Raises:
        ConfigError: a source cannot be read, a key is unknown, or a value has the wrong type or unit.
    """
    return config.load(Settings, Path(path) if path is not None else None, overrides=overrides)


def record(settings: Settings, run_dir: Path) -> None:
    """Put a finished run into the index of runs.

    Raises:
        ConfigError: the records store cannot be opened.
    """
    # The database library is needed once a run is over, and never before its first request.
    index = import_module("tokenweir.studio.index")
    with index.RunIndex(settings.stores.records) as runs:
        runs.add(run_dir)
