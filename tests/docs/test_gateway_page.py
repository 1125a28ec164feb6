from __future__ import annotations

from pathlib import Path

import pytest

from tokenweir.gateway.doors.batch_metrics import BatchMetrics
from tokenweir.gateway.doors.brownout_metrics import BrownoutMetrics
from tokenweir.gateway.doors.metrics import Metrics
from tokenweir.gateway.doors.pipeline_metrics import PipelineMetrics
from tokenweir.gateway.doors.queued_metrics import QueuedMetrics
from tokenweir.gateway.doors.routes import ROUTES

PAGES = Path(__file__).parents[2] / "docs"
TEXT = "".join(
    page.read_text(encoding="utf-8")
    for page in [PAGES / "gateway.md", PAGES / "operations.md", *(PAGES / "gateway").glob("*.md")]
)


@pytest.mark.parametrize(
    "route", [f"{method} {path}" for path, methods in ROUTES.items() for method in methods]
)
def test_every_route_is_documented(route: str) -> None:
    assert f"`{route}`" in TEXT


def metrics() -> list[str]:
    told = Metrics()
    for kind in (QueuedMetrics, BatchMetrics, BrownoutMetrics, PipelineMetrics):
        kind(told.registry)
    return list(told.names())


@pytest.mark.parametrize("name", metrics())
def test_every_metric_is_documented(name: str) -> None:
    assert f"`{name}`" in TEXT
