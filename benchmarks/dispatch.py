"""How late an open loop sends: 2,000 requests a second while up to 30,000 chunks a second come in."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from benchmarks.harness import Figure, Result, bench, measured, metric, simulator, wakeup_lateness_p99_ms
from tokenweir.sim.process import SimProcess

FIGURES = (
    Figure("dispatch lag p99, constant", "ms", (), 0.1, "lower"),
    Figure("dispatch lag p99, poisson", "ms", (), 0.1, "lower"),
    Figure("lateness p99 of a process that only sleeps", "ms", ()),
    Figure("chunks received", "chunks/s", ()),
    Figure("requests sent", "requests/s", ()),
)


def measure(rounds: int) -> Result:
    """Measure two arrival processes of the same rate in each round."""
    how = "2,000 requests/s for 5 s, 15 tokens each at ITL 20 ms: 30,000 chunks/s, one client core"
    with simulator(ttft="uniform:50ms..70ms", itl="constant:20ms") as server:
        return measured("dispatch", how, rounds, lambda out: _round(server, out), FIGURES)


def _round(server: SimProcess, out: Path) -> Mapping[str, float]:
    found = {"lateness p99 of a process that only sleeps": wakeup_lateness_p99_ms()}
    for arrival in ("constant", "poisson"):
        load = ("--arrival", f"{arrival}=2000/s", "--duration", "5s", "--warmup", "500ms", "--workers", "1")
        _, run = bench(out / arrival, server.url, *load, "--scenario", "D(16,15)")
        summary = run["summary"]
        window = summary["window"]
        found[f"dispatch lag p99, {arrival}"] = metric(summary, "dispatch_lag", "p99")
        seconds = (window["end_ns"] - window["start_ns"]) / 1e9
        found["chunks received"] = summary["reads"]["chunks"] / seconds
        found["requests sent"] = summary["delivered"]["rate"]
    return found
