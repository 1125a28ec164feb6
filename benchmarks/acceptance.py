"""How fast a gateway takes requests on to be worked on later, and tells what has become of one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from benchmarks.gateway_load import QUEUED, Door, Load, drive, request, submitted
from benchmarks.harness import Figure

IN_FLIGHT = 256
RATE = 5_000.0
STATUS_RATE = 1_000.0
WINDOW_S = 2.0
STATUS_CALLS = "status calls"

FIGURES = (
    Figure("accepted", "requests/s", (), 5_000.0),
    Figure("accepted per CPU-second", "requests/CPU-s", ()),
    Figure("acceptance p50, 256 in flight", "ms", ()),
    Figure("acceptance p99, 256 in flight", "ms", (), 25.0, "lower"),
    Figure("acceptance p99, 5,000/s", "ms", (), 25.0, "lower"),
    Figure("failed", "requests", (), 0.0, "lower"),
    Figure(STATUS_CALLS, "calls/s", (), 1_000.0),
    Figure("status call p99, 4 in flight", "ms", ()),
    Figure("status call p99, 1,000/s", "ms", (), 5.0, "lower"),
)
LOAD = (
    f"POST /v1/requests, {IN_FLIGHT} in flight, then {RATE:,.0f}/s over as many connections; then GET of one of them,"
    f" 4 in flight, then {STATUS_RATE:,.0f}/s"
)


def acceptance(door: Door) -> Mapping[str, float]:
    """Return what each of the figures is at a gateway."""
    load = Load(request("/v1/requests", QUEUED, door.key), IN_FLIGHT, WINDOW_S, ramp_s=1.0)
    accepted, (cpu,) = drive(door.url, load, doors=[door])
    paced, _ = drive(door.url, replace(load, rate=RATE))
    status = request(submitted(door), b"", door.key, method=b"GET")
    asked, _ = drive(door.url, Load(status, 4, WINDOW_S))
    calm, _ = drive(door.url, Load(status, 64, WINDOW_S, ramp_s=0.2, rate=STATUS_RATE))
    return {
        "accepted": accepted.rate,
        "accepted per CPU-second": accepted.answers / cpu,
        "acceptance p50, 256 in flight": accepted.quantile_ms(0.5),
        "acceptance p99, 256 in flight": accepted.quantile_ms(0.99),
        "acceptance p99, 5,000/s": paced.quantile_ms(0.99),
        "failed": float(accepted.failures + paced.failures + asked.failures + calm.failures),
        STATUS_CALLS: asked.rate,
        "status call p99, 4 in flight": asked.quantile_ms(0.99),
        "status call p99, 1,000/s": calm.quantile_ms(0.99),
    }
