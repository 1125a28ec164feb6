"""The process environment, and where data goes by default. Nothing else reads it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import platformdirs

PREFIX = "WEIR_"
"""What the name of every environment variable that sets something begins with."""

FILE_VARIABLE = "WEIR_CONFIG"
"""The environment variable that names the settings file."""

HOME_VARIABLE = "WEIR_HOME"
"""The environment variable that names the directory of all data that is not put elsewhere."""


def read_environment() -> Mapping[str, str]:
    """Return the process environment as it is now."""
    return os.environ


def child_environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return the environment for a child process: ours, with ``extra`` laid over it."""
    return {**os.environ, **(extra or {})}


def home() -> Path:
    """Return the directory of data: what ``WEIR_HOME`` names, else the user's data directory."""
    named = os.environ.get(HOME_VARIABLE)
    return Path(named).expanduser().absolute() if named else platformdirs.user_data_path("tokenweir")
