"""From the start of ``weir up`` to its open door, in a fresh folder: tables made, a key issued, the endpoint asked."""

from __future__ import annotations

from collections.abc import Mapping

from benchmarks.gateway_load import gateway, simulator
from benchmarks.harness import Figure, Result, measured
from tokenweir.sim.process import SimProcess

FIGURES = (
    Figure("start to ready", "s", (), 1.5, "lower"),
    Figure("memory once ready", "MiB", ()),
)


def measure(rounds: int) -> Result:
    """Measure a first start before a server that runs already."""
    how = "weir up in a fresh folder: start of the process to its ready line"
    with simulator(ttft="0us", itl="0us") as sim:
        return measured("gateway_start", how, rounds, lambda _: _round(sim), FIGURES)


def _round(sim: SimProcess) -> Mapping[str, float]:
    with gateway(sim.url) as door:
        return {"start to ready": door.ready_s, "memory once ready": door.rss_bytes / 2**20}
