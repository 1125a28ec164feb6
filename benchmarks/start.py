"""From the start of the command to its first request."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path

import pyarrow.parquet as pq

from benchmarks.harness import CORES, Figure, Result, bench, measured, simulator
from tokenweir.sim.process import SimProcess

FIGURES = (Figure("command start to first request", "s", (), 1.0, "lower"),)


def measure(rounds: int) -> Result:
    """Measure with the shipped corpus, the default of a first try."""
    how = "weir bench on the shipped corpus: start of the process to the first request handed to the kernel"
    with simulator(ttft="constant:10ms", itl="constant:1ms") as server:
        return measured("start", how, rounds, lambda out: _round(server, out), FIGURES)


def _round(server: SimProcess, out: Path) -> Mapping[str, float]:
    begun = time.time_ns()
    _, run = bench(out / "run", server.url, "--requests", "16", "--arrival", "concurrency=4", cores=CORES)
    sent = pq.read_table(out / "run" / "requests.parquet", columns=["sent_ns"])["sent_ns"]
    first = min(value for value in sent.to_pylist() if value is not None)
    return {"command start to first request": (run["started_at"] + first - begun) / 1e9}
