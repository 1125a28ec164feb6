"""Arrival processes: when requests should be sent; ``docs/workloads.md`` shows the syntax."""

from __future__ import annotations

from tokenweir.bench.arrivals.closed import Concurrency
from tokenweir.bench.arrivals.gaps import Constant, Gamma, Normal, Poisson, Uniform
from tokenweir.bench.arrivals.notation import parse_arrivals
from tokenweir.bench.arrivals.ramp import Ramp
from tokenweir.bench.arrivals.schedule import MAX_REQUESTS, Arrival, schedule
from tokenweir.bench.arrivals.trace import Trace

__all__ = [
    "MAX_REQUESTS",
    "Arrival",
    "Concurrency",
    "Constant",
    "Gamma",
    "Normal",
    "Poisson",
    "Ramp",
    "Trace",
    "Uniform",
    "parse_arrivals",
    "schedule",
]
