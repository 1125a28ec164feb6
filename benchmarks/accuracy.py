"""TTFT and ITL against the simulator's true send times, at 1,000 and 2,000 streams on one client core."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from benchmarks.harness import Figure, Result, bench, measured, metric, simulator
from tokenweir.sim.process import SimProcess

FIGURES = tuple(
    figure
    for streams in (1000, 2000)
    for figure in (
        Figure(f"TTFT error p99 at {streams:,}", "ms", (), 0.1, "lower"),
        Figure(f"ITL error p99 at {streams:,}", "ms", (), 0.1, "lower"),
        Figure(f"gaps left out at {streams:,}", "%", (), 1.0, "lower"),
        Figure(f"trusted at {streams:,}", "0 or 1", (), 1.0),
    )
)


def measure(rounds: int) -> Result:
    """Measure two loads, one after the other, in each round."""
    how = "ITL 20 ms, TTFT 50 to 70 ms, 64 tokens, one client core; errors from each run's own record"
    with simulator(ttft="uniform:50ms..70ms", itl="constant:20ms") as server:
        return measured("accuracy", how, rounds, lambda out: _round(server, out), FIGURES)


def _round(server: SimProcess, out: Path) -> Mapping[str, float]:
    found: dict[str, float] = {}
    for streams in (1000, 2000):
        server.reset()
        load = ("--arrival", f"concurrency={streams}", "--requests", str(streams * 4), "--workers", "1")
        _, run = bench(out / str(streams), server.url, *load, "--scenario", "D(16,64)")
        summary = run["summary"]
        reads = summary["reads"]
        found |= {
            f"TTFT error p99 at {streams:,}": metric(summary, "ttft_error", "p99"),
            f"ITL error p99 at {streams:,}": metric(summary, "itl_error", "p99"),
            f"gaps left out at {streams:,}": 100 * reads["gaps_excluded"] / reads["gaps"],
            f"trusted at {streams:,}": float(summary["verdict"]["trust"] == "trusted"),
        }
    return found
