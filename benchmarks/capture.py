"""Streamed chunks per client-CPU-second at 2,000 streams: captured, and through to written rows."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from benchmarks.harness import CAPTURE, FINISHING, Figure, Result, bench, measured, simulator
from tokenweir.sim.process import SimProcess

STREAMS = 2000
TOKENS = 64
REQUESTS = 6_000

FIGURES = (
    Figure("captured", "chunks/CPU-s", (), 150_000),
    Figure("through to rows", "chunks/CPU-s", (), 80_000),
    Figure("whole command, start and report too", "chunks/CPU-s", ()),
    Figure("one event per read", "share of reads", ()),
)


def measure(rounds: int) -> Result:
    """Measure against the simulator at ITL 20 ms: 100,000 chunks a second, each in a segment of its own."""
    how = f"{STREAMS} streams, ITL 20 ms, {TOKENS} tokens, {REQUESTS} requests, one client core"
    with simulator(ttft="uniform:50ms..70ms", itl="constant:20ms") as server:
        return measured("capture", how, rounds, lambda out: _round(server, out), FIGURES)


def _round(server: SimProcess, out: Path) -> Mapping[str, float]:
    server.reset()
    load = ("--arrival", f"concurrency={STREAMS}", "--requests", str(REQUESTS), "--workers", "1")
    finished, run = bench(out / "run", server.url, *load, "--scenario", f"D(16,{TOKENS})")
    reads = run["summary"]["reads"]
    chunks = reads["chunks"]
    capture, finishing = finished.cpu_of(CAPTURE), finished.cpu_of(FINISHING)
    return {
        "captured": chunks / capture,
        "through to rows": chunks / (capture + finishing),
        "whole command, start and report too": chunks / finished.cpu_s,
        "one event per read": 1 - reads["multi_event_reads"] / reads["reads"],
    }
