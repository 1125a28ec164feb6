"""The same load by Tokenweir and by genai-bench, which has a virtual environment of its own, in turns."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.factories.tiny_model import build_tiny_model

from benchmarks.harness import (
    CAPTURE,
    FINISHING,
    Figure,
    Finished,
    Result,
    bench,
    measured,
    metric,
    process_cpu,
    run,
    simulator,
)
from tokenweir.bench.corpora.shipped import shipped_prose
from tokenweir.sim.process import SimProcess

HERE = Path(__file__).parent
CACHE = HERE / "cache"
STREAMS = 1000
REQUESTS = 3000
WHOLE_REQUESTS = 2000
OUR_WHOLE_REQUESTS = 100_000

FIGURES = (
    Figure("chunks captured, times genai-bench's", "×", (), 7.0),
    Figure("chunks to rows, times genai-bench's", "×", (), 4.0),
    Figure("non-streamed requests, times genai-bench's", "×", (), 600.0),
    Figure("TTFT p99 error, times genai-bench's", "×", (), 0.001, "lower"),
    Figure("genai-bench: chunks", "per CPU-s", ()),
    Figure("Tokenweir: chunks captured", "per CPU-s", ()),
    Figure("Tokenweir: chunks to rows", "per CPU-s", ()),
    Figure("genai-bench: non-streamed requests", "per CPU-s", ()),
    Figure("Tokenweir: non-streamed requests", "per CPU-s", ()),
    Figure("genai-bench: TTFT p99 error", "ms", ()),
    Figure("Tokenweir: TTFT p99 error", "ms", ()),
)


def measure(rounds: int) -> Result:
    """Measure genai-bench without its start-up and reports, Tokenweir with all of its workers' time."""
    how = (
        f"{STREAMS} streams of 64 tokens at ITL 20 ms; embeddings, genai-bench's one after another, ours 256 at "
        "once; its CPU from its first request to its last answer, its TTFT error its p99 against the simulator's"
    )
    environment = _environment()
    tokenizer = build_tiny_model(CACHE / "model", shipped_prose().split("\n\n"))
    streaming = simulator(ttft="uniform:50ms..70ms", itl="constant:20ms")
    whole = simulator(ttft="0us", itl="0us", embedding_size=8)
    with streaming as one, whole as other:
        peer = _Peer(environment, tokenizer)
        return measured("peers", how, rounds, lambda out: _round(peer, one, other, out), FIGURES)


def _environment() -> Path:
    """Return the genai-bench command, installed from the locked file on first use."""
    home = CACHE / "peers"
    command = home / "bin" / "genai-bench"
    if not command.exists():
        print("  installing genai-bench into its own environment, once", flush=True)
        subprocess.run([sys.executable, "-m", "venv", str(home)], check=True)
        install = [str(home / "bin" / "python"), "-m", "pip", "install", "--quiet"]
        locked = ["--require-hashes", "-r", str(HERE / "requirements-peers.txt")]
        subprocess.run([*install, "--disable-pip-version-check", *locked], check=True)
    return command


class _Peer:
    def __init__(self, command: Path, tokenizer: Path) -> None:
        self._command = command
        self._tokenizer = tokenizer

    def load(self, server: SimProcess, out: Path, *words: str) -> tuple[Finished, dict[str, Any]]:
        """Run one load; return how it ended and its aggregated metrics."""
        arguments = ("--api-backend", "openai", "--api-base", server.url, "--api-key", "none")
        arguments += ("--api-model-name", "sim", "--model", "sim", "--model-tokenizer", str(self._tokenizer))
        arguments += ("--max-time-per-run", "3", "--experiment-base-dir", str(out))
        arguments += ("--experiment-folder-name", "result", "--log-dir", str(out))
        quiet = {"ENABLE_UI": "false", "HF_HUB_OFFLINE": "1", "HF_HOME": str(CACHE / "hub"), "TERM": "dumb"}
        finished = run(
            [str(self._command), "benchmark", *arguments, *words],
            work=lambda: process_cpu(server.pid),
            environment=quiet,
        )
        found = [path for path in (out / "result").glob("*.json") if path.name != "experiment_metadata.json"]
        if finished.code != 0 or not found:
            raise RuntimeError(f"genai-bench ended with {finished.code}: {finished.output[-2000:]}")
        return finished, json.loads(found[0].read_text())["aggregated_metrics"]


def _round(peer: _Peer, streaming: SimProcess, whole: SimProcess, out: Path) -> Mapping[str, float]:
    found = {**_ours(streaming, whole, out), **_theirs(peer, streaming, whole, out)}
    pairs = {
        "chunks captured, times genai-bench's": ("Tokenweir: chunks captured", "genai-bench: chunks"),
        "chunks to rows, times genai-bench's": ("Tokenweir: chunks to rows", "genai-bench: chunks"),
        "non-streamed requests, times genai-bench's": (
            "Tokenweir: non-streamed requests",
            "genai-bench: non-streamed requests",
        ),
        "TTFT p99 error, times genai-bench's": (
            "Tokenweir: TTFT p99 error",
            "genai-bench: TTFT p99 error",
        ),
    }
    return {**{what: found[ours] / found[theirs] for what, (ours, theirs) in pairs.items()}, **found}


def _ours(streaming: SimProcess, whole: SimProcess, out: Path) -> Mapping[str, float]:
    streaming.reset()
    load = ("--arrival", f"concurrency={STREAMS}", "--requests", str(REQUESTS), "--workers", "1")
    finished, streamed = bench(out / "streamed", streaming.url, *load, "--scenario", "D(32,64)")
    chunks = streamed["summary"]["reads"]["chunks"]
    capture, finishing = finished.cpu_of(CAPTURE), finished.cpu_of(FINISHING)
    load = ("--arrival", "concurrency=256", "--requests", str(OUR_WHOLE_REQUESTS), "--workers", "1")
    done, plain = bench(out / "plain", whole.url, *load, "--kind", "embedding", "--scenario", "E(16)")
    return {
        "Tokenweir: chunks captured": chunks / capture,
        "Tokenweir: chunks to rows": chunks / (capture + finishing),
        "Tokenweir: non-streamed requests": plain["summary"]["counts"]["completed"] / done.cpu_of(CAPTURE),
        "Tokenweir: TTFT p99 error": metric(streamed["summary"], "ttft_error", "p99"),
    }


def _theirs(peer: _Peer, streaming: SimProcess, whole: SimProcess, out: Path) -> Mapping[str, float]:
    streaming.reset()
    load = ("--task", "text-to-text", "--traffic-scenario", "D(32,64)", "--num-concurrency", str(STREAMS))
    finished, streamed = peer.load(
        streaming, out / "peer-streamed", *load, "--max-requests-per-run", str(REQUESTS)
    )
    truth: Any = streaming.truth()
    load = ("--task", "text-to-embeddings", "--traffic-scenario", "E(16)", "--batch-size", "1")
    done, plain = peer.load(whole, out / "peer-plain", *load, "--max-requests-per-run", str(WHOLE_REQUESTS))
    return {
        "genai-bench: chunks": truth["chunks"] / finished.load_cpu_s,
        "genai-bench: non-streamed requests": plain["num_completed_requests"] / done.load_cpu_s,
        "genai-bench: TTFT p99 error": abs(streamed["stats"]["ttft"]["p99"] * 1e3 - truth["ttft_ms"]["p99"]),
    }
