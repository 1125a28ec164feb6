from __future__ import annotations

from collections.abc import Iterator

import pytest
from tests.integration.sim.wire import Wire, running


@pytest.fixture(scope="module")
def wire() -> Iterator[Wire]:
    with running() as one:
        yield one
