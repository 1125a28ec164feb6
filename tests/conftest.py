from __future__ import annotations

import logging
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog
from hypothesis import HealthCheck, settings

pytest_plugins = ["tests.services.plugin"]

# Timing varies on shared cores, so no example is failed for having been slow.
settings.register_profile("weir", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("weir")

if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    # A suite that a script starts in the background inherits this, and so would every command it interrupts.
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def apart_from_this_machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Keep the developer's own settings and data out of every test, in this process and its children."""
    home = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        for variable in [name for name in os.environ if name.startswith("WEIR_")]:  # noqa: TID251
            patch.delenv(variable)
        for variable in ("XDG_CONFIG_HOME", "XDG_DATA_HOME", "XDG_STATE_HOME", "XDG_CACHE_HOME"):
            patch.setenv(variable, str(home / variable.lower()))
        yield home


@pytest.fixture(autouse=True)
def logging_as_before() -> Iterator[None]:
    """Undo what a command set up: its handler holds the stream of the test that called it."""
    root, ours = logging.getLogger(), logging.getLogger("tokenweir")
    handlers, level = list(root.handlers), ours.level
    yield
    root.handlers = handlers
    ours.setLevel(level)
    structlog.reset_defaults()
