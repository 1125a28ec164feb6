"""What an open stream costs the client in memory, silent and with tokens, and the whole client at 2,000."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from benchmarks.harness import Figure, Finished, Result, bench, measured, run, simulator, weir
from tokenweir.sim.process import SimProcess

FEW, MANY = 500, 2000
SILENT_MANY = 8000

FIGURES = (
    Figure("an open, still silent stream", "KiB", (), 2.0, "lower"),
    Figure("an additional stream of 64 tokens", "KiB", (), 24.0, "lower"),
    Figure("an additional stream of 512 tokens", "KiB", (), 24.0, "lower"),
    Figure("the whole client at 2,000 streams", "MB", (), 150.0, "lower"),
    Figure("the command at its peak, when it writes the report", "MB", ()),
)


def measure(rounds: int) -> Result:
    """Measure the peak PSS of all client processes while streams are open.

    A stream costs the difference of two such loads. The report is made after the last stream has closed; the
    command's memory then is shown apart.
    """
    how = (
        f"peak PSS of all client processes, streams open; per stream: ({MANY} − {FEW} streams) / {MANY - FEW}"
    )
    talking = simulator(ttft="constant:50ms", itl="constant:40ms")
    silent = simulator(ttft="constant:120s")
    with talking as one, silent as other:
        return measured("memory", how, rounds, lambda out: _round(one, other, out), FIGURES)


def _round(talking: SimProcess, silent: SimProcess, out: Path) -> Mapping[str, float]:
    found = {
        "an open, still silent stream": (_silent(silent, out, SILENT_MANY) - _silent(silent, out, FEW))
        / (SILENT_MANY - FEW)
        / 1024
    }
    for tokens in (64, 512):
        few = _talking(talking, out / f"few-{tokens}", FEW, tokens).load_pss_bytes
        many = _talking(talking, out / f"many-{tokens}", MANY, tokens)
        found[f"an additional stream of {tokens} tokens"] = (many.load_pss_bytes - few) / (MANY - FEW) / 1024
        if tokens == 64:
            found["the whole client at 2,000 streams"] = many.load_pss_bytes / 1e6
            found["the command at its peak, when it writes the report"] = many.peak_pss_bytes / 1e6
    return found


def _talking(server: SimProcess, out: Path, streams: int, tokens: int) -> Finished:
    load = ("--arrival", f"concurrency={streams}", "--requests", str(streams * 2), "--workers", "1")
    words = ("--scenario", f"D(16,{tokens})", "--timeout", "300s")
    finished, _ = bench(out, server.url, *load, *words, memory=True)
    return finished


def _silent(server: SimProcess, out: Path, streams: int) -> int:
    """Return the peak memory of a client whose streams are all open and whose server has said nothing."""
    load = ("--arrival", f"concurrency={streams}", "--duration", "5s", "--timeout", "4s", "--workers", "1")
    words = ("--backend", "sim", "--max-tokens", "8", "--out", str(out / f"silent-{streams}"))
    finished = run(weir("bench", server.url, *words, *load), memory=True)
    return finished.load_pss_bytes
