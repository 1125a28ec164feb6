"""What our batch lane costs beside MLX LM's bare loop, and what a known prompt saves."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping

from benchmarks.harness import CORES, Figure, Result, measured, run
from benchmarks.runtime_models import eight_million, fast_blas

FIGURES = (
    Figure("bare loop, 1 together", "tokens/s", ()),
    Figure("batch lane, 1 together", "tokens/s", ()),
    Figure("batch lane / bare loop, 1 together", "×", (), 0.97),
    Figure("bare loop, 8 together", "tokens/s", ()),
    Figure("batch lane, 8 together", "tokens/s", ()),
    Figure("batch lane / bare loop, 8 together", "×", (), 0.97),
    Figure("bare loop, 32 together", "tokens/s", ()),
    Figure("batch lane, 32 together", "tokens/s", ()),
    Figure("batch lane / bare loop, 32 together", "×", (), 0.97),
    Figure("TTFT, 1,000 tokens, cold", "ms", ()),
    Figure("TTFT, known / cold", "×", (), 0.2, "lower"),
)


def measure(rounds: int) -> Result:
    """Measure in a process of its own with OpenBLAS, both loops in turns within it."""
    blas = fast_blas()
    how = "random Llama, 8 M parameters, fp32, greedy, prompts of 32 tokens, " + (
        "OpenBLAS" if blas else "MLX's own BLAS: OpenBLAS was not found"
    )
    return measured("runtime_engine", how, rounds, lambda _: _round(blas), FIGURES)


def _round(blas: Mapping[str, str]) -> Mapping[str, float]:
    command = [sys.executable, "-m", "benchmarks.runtime_lanes", str(eight_million())]
    finished = run(command, cores=CORES, environment=blas)
    if finished.code != 0:
        raise RuntimeError(f"{' '.join(command)} ended with {finished.code}: {finished.output}")
    found: dict[str, float] = json.loads(finished.output.splitlines()[-1])
    return found
