from __future__ import annotations

from collections.abc import Generator

import pytest

from tokenweir.sim.process import SimProcess


@pytest.fixture
def simulator() -> Generator[str]:
    """The URL of a quick simulator that serves the model ``sim``."""
    with SimProcess(ttft="constant:5ms", itl="constant:1ms") as process:
        yield process.url


@pytest.fixture
def slow_simulator() -> Generator[str]:
    """The URL of a simulator whose answers take minutes."""
    with SimProcess(ttft="constant:5ms", itl="constant:20s") as process:
        yield process.url


@pytest.fixture
def strict_simulator() -> Generator[str]:
    """The URL of a simulator that answers 404 to every model name but its own."""
    with SimProcess(strict_model=True) as process:
        yield process.url
