"""Requests that wait in the queue, with the embedded stores: how fast they are taken on, and asked after."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from benchmarks.gateway_load import QUEUED, Load, drive, gateway, request, simulator, submitted
from benchmarks.harness import Figure, Result, measured

IN_FLIGHT = 256
RATE = 5_000.0
WINDOW_S = 2.0

FIGURES = (
    Figure("accepted", "requests/s", (), 5_000.0),
    Figure("accepted per CPU-second", "requests/CPU-s", ()),
    Figure("acceptance p50, 256 in flight", "ms", ()),
    Figure("acceptance p99, 256 in flight", "ms", (), 25.0, "lower"),
    Figure("acceptance p99, 5,000/s", "ms", (), 25.0, "lower"),
    Figure("failed", "requests", (), 0.0, "lower"),
    Figure("status calls", "calls/s", (), 1_000.0),
    Figure("status call p99, 4 in flight", "ms", (), 5.0, "lower"),
)


def measure(rounds: int) -> Result:
    """Measure acceptance while the same process works on what it accepted, and then asks after one of them."""
    how = (
        f"POST /v1/requests, {IN_FLIGHT} in flight, then {RATE:,.0f}/s over as many connections, one process with the"
        " embedded stores; then GET of one of them"
    )
    return measured("gateway_queued", how, rounds, _round, FIGURES)


def _round(_out: Path) -> Mapping[str, float]:
    # An answer takes long, so that acceptance alone is measured, with as many at work as may be.
    with simulator(ttft="constant:30s", connections=4096) as sim, gateway(sim.url, patience_s=2.0) as door:
        load = Load(request("/v1/requests", QUEUED, door.key), IN_FLIGHT, WINDOW_S)
        accepted, (cpu,) = drive(door.url, load, doors=[door])
        paced, _ = drive(door.url, replace(load, rate=RATE))
        status = request(submitted(door), b"", door.key, method=b"GET")
        asked, _ = drive(door.url, Load(status, 4, WINDOW_S))
    return {
        "accepted": accepted.rate,
        "accepted per CPU-second": accepted.answers / cpu,
        "acceptance p50, 256 in flight": accepted.quantile_ms(0.5),
        "acceptance p99, 256 in flight": accepted.quantile_ms(0.99),
        "acceptance p99, 5,000/s": paced.quantile_ms(0.99),
        "failed": float(accepted.failures + paced.failures + asked.failures),
        "status calls": asked.rate,
        "status call p99, 4 in flight": asked.quantile_ms(0.99),
    }
