"""Non-streamed requests per client-CPU-second."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from benchmarks.harness import CAPTURE, FINISHING, Figure, Result, bench, measured, simulator
from tokenweir.sim.process import SimProcess

CONCURRENCY = 256
REQUESTS = 200_000

FIGURES = (
    Figure("captured", "requests/CPU-s", (), 100_000),
    Figure("through to rows", "requests/CPU-s", ()),
    Figure("delivered", "requests/s", ()),
)


def measure(rounds: int) -> Result:
    """Measure short whole answers, as fast as the simulator gives them."""
    how = f"{REQUESTS} non-streamed completions of 1 token, concurrency {CONCURRENCY}, one client core"
    with simulator(ttft="0us", itl="0us") as server:
        return measured("whole_answers", how, rounds, lambda out: _round(server, out), FIGURES)


def _round(server: SimProcess, out: Path) -> Mapping[str, float]:
    load = ("--arrival", f"concurrency={CONCURRENCY}", "--requests", str(REQUESTS), "--workers", "1")
    words = ("--no-stream", "--kind", "completion", "--scenario", "D(4,1)")
    finished, run = bench(out / "run", server.url, *load, *words)
    summary = run["summary"]
    completed = summary["counts"]["completed"]
    capture, finishing = finished.cpu_of(CAPTURE), finished.cpu_of(FINISHING)
    return {
        "captured": completed / capture,
        "through to rows": completed / (capture + finishing),
        "delivered": summary["delivered"]["rate"],
    }
