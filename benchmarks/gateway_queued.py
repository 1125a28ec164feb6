"""Requests that wait in the queue, with the embedded stores: how fast they are taken on, and asked after."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from benchmarks.acceptance import FIGURES, LOAD, acceptance
from benchmarks.gateway_load import gateway, simulator
from benchmarks.harness import Result, measured


def measure(rounds: int) -> Result:
    """Measure acceptance while the same process works on what it accepted, and then asks after one of them."""
    return measured(
        "gateway_queued", f"{LOAD}; one process with the embedded stores", rounds, _round, FIGURES
    )


def _round(_out: Path) -> Mapping[str, float]:
    # An answer takes long, so that acceptance alone is measured, with as many at work as may be.
    with simulator(ttft="constant:30s", connections=4096) as sim, gateway(sim.url, patience_s=2.0) as door:
        return acceptance(door)
