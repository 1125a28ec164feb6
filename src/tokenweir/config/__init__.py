"""Settings: where they come from and which source wins.

A file (TOML or YAML) is overruled by the environment (``WEIR_BENCH__WORKERS=2``), and that by the command
line. What results is one frozen object; a key that no part of Tokenweir declares is an error that names the
nearest known one. Only :mod:`.environment` reads the environment.

Each slice declares its own table as a frozen :class:`SettingsModel`; ``app`` puts the tables together.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from tokenweir.config.environment import (
    FILE_VARIABLE,
    HOME_VARIABLE,
    PREFIX,
    child_environment,
    home,
    read_environment,
)
from tokenweir.config.findings import Origins, known_keys, refuse
from tokenweir.config.sources import (
    decode,
    find_file,
    put,
    read_file,
    secrets_named,
    split_key,
    variables_set,
)
from tokenweir.config.tables import (
    ClientTlsSettings,
    EndpointSettings,
    LogSettings,
    StoreSettings,
    TelemetrySettings,
    TlsSettings,
)
from tokenweir.config.types import DurationNs, Secret, SecretRef, SettingsModel

__all__ = [
    "FILE_VARIABLE",
    "HOME_VARIABLE",
    "PREFIX",
    "ClientTlsSettings",
    "DurationNs",
    "EndpointSettings",
    "LogSettings",
    "Secret",
    "SecretRef",
    "SettingsModel",
    "StoreSettings",
    "TelemetrySettings",
    "TlsSettings",
    "child_environment",
    "fill",
    "find_file",
    "home",
    "known_keys",
    "load",
    "read_environment",
    "table",
]

ModelT = TypeVar("ModelT", bound=BaseModel)


def load(
    model: type[ModelT],
    path: Path | None = None,
    *,
    overrides: Mapping[str, object] | None = None,
    environ: Mapping[str, str] | None = None,
) -> ModelT:
    """Return ``model`` filled from file, environment and ``overrides``, the later source winning.

    ``overrides`` are dotted keys (``bench.workers``); one whose value is ``None`` is left out, so that flags
    that were not given can be passed as they are.

    Raises:
        ConfigError: a source cannot be read, a key is unknown, or a value has the wrong type or unit.
    """
    environ = read_environment() if environ is None else environ
    return fill(model, find_file(path, environ=environ), overrides=overrides, environ=environ)


def fill(
    model: type[ModelT],
    file: Path | None,
    *,
    overrides: Mapping[str, object] | None = None,
    environ: Mapping[str, str] | None = None,
) -> ModelT:
    """Return ``model`` filled from exactly ``file``, ``environ`` and ``overrides``, where they are given.

    Raises:
        ConfigError: as :func:`load`.
    """
    tree: dict[str, object] = {}
    origins: Origins = {}
    if file is not None:
        tree = read_file(file)
        origins[()] = str(file)
    tables = tuple(model.model_fields)
    variables = environ or {}
    secrets = frozenset(secrets_named((tree, overrides or {})))
    for variable, keys in variables_set(variables, tables, secrets):
        put(tree, keys, decode(variables[variable], variable), variable)
        origins[keys] = variable
    for key, value in (overrides or {}).items():
        if value is not None:
            keys = split_key(key)
            put(tree, keys, value, "command line")
            origins[keys] = "command line"
    try:
        return model.model_validate(tree)
    except ValidationError as error:
        refuse(error, model, origins)


def table(model: type[ModelT], values: Mapping[str, object], *, where: str) -> ModelT:
    """Return a table whose schema is known only once others are read; ``where`` names it.

    Raises:
        ConfigError: a key is unknown, or a value has the wrong type or unit.
    """
    try:
        return model.model_validate(dict(values))
    except ValidationError as error:
        refuse(error, model, {(): where})
