"""Requests taken on by ``weir gateway`` over PostgreSQL, Redis, RabbitMQ and Kafka, all on this machine.

Workers are processes of their own when stores are shared; none runs here, so that acceptance alone is measured.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from benchmarks.acceptance import FIGURES, LOAD, STATUS_CALLS, acceptance
from benchmarks.gateway_load import front_door, simulator
from benchmarks.gateway_services import shared_stores, table
from benchmarks.harness import Result, measured


def measure(rounds: int) -> Result:
    """Measure acceptance by one gateway process; the services and the client share what it leaves of the cores."""
    # Four callers who wait for stores that share the cores tell of those stores: their rate has no target here.
    figures = [replace(each, target=None) if each.what == STATUS_CALLS else each for each in FIGURES]
    how = f"{LOAD}; one gateway process, whose CPU time counts; services and client on the same machine"
    with shared_stores() as urls:
        return measured("gateway_scaled", how, rounds, lambda scratch: _round(table(urls), scratch), figures)


def _round(stores: str, scratch: Path) -> Mapping[str, float]:
    with (
        simulator(connections=64) as sim,
        front_door(sim.url, more=stores, access=scratch / "access.db") as door,
    ):
        return acceptance(door)
