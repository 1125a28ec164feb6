"""10,000 streams from two client processes against one simulator core, ITL 100 ms: are all of them held?"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from benchmarks.harness import CORES, Figure, Result, bench, measured, metric, simulator
from tokenweir.sim.process import SimProcess

STREAMS = 10_000

FIGURES = (
    Figure("streams open at once", "streams", (), float(STREAMS)),
    Figure("failed requests", "requests", (), 0.0, "lower"),
    Figure("chunks received", "chunks/s", ()),
    Figure("TTFT error p99", "ms", ()),
    Figure("ITL error p99", "ms", ()),
)


def measure(rounds: int) -> Result:
    """Measure with every core free to the client's processes except by the scheduler's choice."""
    how = f"{STREAMS} streams, ITL 100 ms, 64 tokens, two client processes, simulator on one core"
    with simulator(ttft="uniform:200ms..400ms", itl="constant:100ms") as server:
        return measured("hold_10k", how, rounds, lambda out: _round(server, out), FIGURES)


def _round(server: SimProcess, out: Path) -> Mapping[str, float]:
    server.reset()
    load = ("--arrival", f"concurrency={STREAMS}", "--requests", str(STREAMS * 2), "--workers", "2")
    _, run = bench(out / "run", server.url, *load, "--scenario", "D(16,64)", cores=CORES)
    summary = run["summary"]
    window = summary["window"]
    return {
        "streams open at once": float(summary["delivered"]["in_flight_max"]),
        "failed requests": float(summary["counts"]["failed"]),
        "chunks received": summary["reads"]["chunks"] / ((window["end_ns"] - window["start_ns"]) / 1e9),
        "TTFT error p99": metric(summary, "ttft_error", "p99"),
        "ITL error p99": metric(summary, "itl_error", "p99"),
    }
