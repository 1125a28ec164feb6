"""Requests taken on by ``weir gateway`` over PostgreSQL, Redis, RabbitMQ and Kafka, all on this machine.

Workers are processes of their own when stores are shared; none runs here, so that acceptance alone is measured.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.gateway_load import QUEUED, Load, drive, front_door, request, simulator, submitted
from benchmarks.gateway_services import shared_stores, table
from benchmarks.harness import Figure, Result, measured

IN_FLIGHT = 256
RATE = 5_000.0
WINDOW_S = 2.0

FIGURES = (
    Figure("accepted", "requests/s", (), 5_000.0),
    Figure("accepted per CPU-second of the gateway", "requests/CPU-s", ()),
    Figure("acceptance p50, 256 in flight", "ms", ()),
    Figure("acceptance p99, 256 in flight", "ms", (), 25.0, "lower"),
    Figure("acceptance p99, 5,000/s", "ms", (), 25.0, "lower"),
    Figure("failed", "requests", (), 0.0, "lower"),
    Figure("status call p99, 4 in flight", "ms", (), 5.0, "lower"),
)


def measure(rounds: int) -> Result:
    """Measure acceptance by one gateway process; the services and the client share what it leaves of the cores."""
    how = (
        f"POST /v1/requests, {IN_FLIGHT} in flight, then {RATE:,.0f}/s over as many connections, one gateway process;"
        " services and client on the same machine"
    )
    with shared_stores() as urls:
        return measured("gateway_scaled", how, rounds, lambda _: _round(table(urls)), FIGURES)


def _round(stores: str) -> Mapping[str, float]:
    with (
        TemporaryDirectory(prefix="weir-bench-gateway-") as scratch,
        simulator(connections=64) as sim,
        front_door(sim.url, more=stores, access=Path(scratch) / "access.db", patience_s=2.0) as door,
    ):
        load = Load(request("/v1/requests", QUEUED, door.key), IN_FLIGHT, WINDOW_S, ramp_s=1.0)
        accepted, (cpu,) = drive(door.url, load, doors=[door])
        paced, _ = drive(door.url, replace(load, rate=RATE))
        status = request(submitted(door), b"", door.key, method=b"GET")
        asked, _ = drive(door.url, Load(status, 4, WINDOW_S))
    return {
        "accepted": accepted.rate,
        "accepted per CPU-second of the gateway": accepted.answers / cpu,
        "acceptance p50, 256 in flight": accepted.quantile_ms(0.5),
        "acceptance p99, 256 in flight": accepted.quantile_ms(0.99),
        "acceptance p99, 5,000/s": paced.quantile_ms(0.99),
        "failed": float(accepted.failures + paced.failures + asked.failures),
        "status call p99, 4 in flight": asked.quantile_ms(0.99),
    }
