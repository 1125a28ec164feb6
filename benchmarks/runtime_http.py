"""Our model server over HTTP beside MLX LM's own server and beside its bare loop: the same model, requests and BLAS."""

from __future__ import annotations

import json
import os
import signal
import statistics
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from benchmarks.harness import CORES, Figure, Result, load_run, measured, metric, run, weir
from benchmarks.runtime_models import eight_million, fast_blas, ten_megabytes
from benchmarks.runtime_servers import NAME, answers, health, mlx_lm_server, our_server

REQUESTS = {1: 6, 8: 24, 32: 96}
LENGTHS = (32, 64)
LEAST_OF_BARE = 0.9
LEAST_OF_THEIRS = {1: 1.0, 8: 1.5, 32: 2.0}
RECOVERY_DEADLINE_S = 60.0

FIGURES = (
    *(Figure(f"weir runtime, {size} at once", "tokens/s", ()) for size in REQUESTS),
    *(Figure(f"mlx_lm.server, {size} at once", "tokens/s", ()) for size in REQUESTS),
    *(
        Figure(f"weir runtime / mlx_lm.server, {size} at once", "×", (), LEAST_OF_THEIRS[size])
        for size in REQUESTS
    ),
    Figure("bare loop, 32 together", "tokens/s", ()),
    Figure("weir runtime / bare loop, 32 at once", "×", (), LEAST_OF_BARE),
    Figure("added per token, p50", "ms", (), 0.5, "lower"),
    Figure("recovery after kill -9, model of 10 MB", "s", (), 3.0, "lower"),
)


def measure(rounds: int) -> Result:
    """Measure both servers in turns, each at 1, 8 and 32 requests at once, and the bare loop beside them."""
    how = f"random Llama, 8 M parameters, fp32, greedy, {LENGTHS[0]} tokens in, {LENGTHS[1]} out, client beside it"
    return measured("runtime_http", how, rounds, _round, FIGURES)


def _round(scratch: Path) -> Mapping[str, float]:
    model = eight_million()
    found: dict[str, float] = {}
    gaps_ms: list[float] = []
    with our_server(model, scratch) as ours, mlx_lm_server(model, scratch) as (theirs, their_name):
        for size in REQUESTS:
            summary = _bench(scratch / f"ours-{size}", ours, NAME, size)
            found[f"weir runtime, {size} at once"] = metric(summary, "output_throughput", "mean")
            if size == 1:
                gaps_ms.append(metric(summary, "itl", "p50"))
            summary = _bench(scratch / f"theirs-{size}", theirs, their_name, size)
            found[f"mlx_lm.server, {size} at once"] = metric(summary, "output_throughput", "mean")
            found[f"weir runtime / mlx_lm.server, {size} at once"] = (
                found[f"weir runtime, {size} at once"] / found[f"mlx_lm.server, {size} at once"]
            )
    bare = _bare(model)
    found["bare loop, 32 together"] = bare["together"]
    found["weir runtime / bare loop, 32 at once"] = found["weir runtime, 32 at once"] / bare["together"]
    found["added per token, p50"] = statistics.median(gaps_ms) - bare["step_ms"]
    found["recovery after kill -9, model of 10 MB"] = _recovery(scratch)
    return found


def _bench(out: Path, url: str, name: str, size: int) -> dict[str, object]:
    load = ("--arrival", f"concurrency={size}", "--requests", str(REQUESTS[size]), "--temperature", "0")
    lengths = ("--scenario", f"D({LENGTHS[0]},{LENGTHS[1]})", "--tokenizer", str(eight_million()))
    command = weir("bench", url, "--backend", "openai", "--model", name, "--out", str(out), *load, *lengths)
    finished = run(command, cores=CORES)
    if finished.code != 0:
        raise RuntimeError(f"{' '.join(command)} ended with {finished.code}: {finished.output}")
    return load_run(out)["summary"]


def _bare(model: Path) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.runtime_lanes", str(model), "bare", *map(str, LENGTHS)]
    finished = run(command, cores=CORES, environment=fast_blas())
    if finished.code != 0:
        raise RuntimeError(f"{' '.join(command)} ended with {finished.code}: {finished.output}")
    found: dict[str, float] = json.loads(finished.output.splitlines()[-1])
    return found


def _recovery(scratch: Path) -> float:
    """Return the seconds from the death of the engine's process to an answer."""
    (scratch / "recovery").mkdir()
    with our_server(ten_megabytes(), scratch / "recovery") as url:
        if not answers(url):
            raise RuntimeError("the server does not answer")
        os.kill(int(health(url)["engine"]["lifecycle"]["pid"]), signal.SIGKILL)
        start = time.monotonic()
        while not answers(url, deadline_s=5.0):
            if time.monotonic() - start > RECOVERY_DEADLINE_S:
                raise RuntimeError("the engine did not come back")
            time.sleep(0.02)
        return time.monotonic() - start
