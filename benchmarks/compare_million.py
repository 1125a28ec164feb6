"""How long ``weir compare`` takes over two runs of 1,000,000 requests."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.harness import CORES, Figure, Result, measured, run, weir
from tokenweir.bench.records.columns import REQUESTS
from tokenweir.bench.records.model import SCHEMA_VERSION, Environment, LoadResult, Run, Window
from tokenweir.bench.records.rundir import write_run
from tokenweir.bench.records.summary import Conduct, LoadPoint, summarise
from tokenweir.core.canonical import canonical_hash
from tokenweir.core.provenance import Provenance
from tokenweir.core.requests import Json

MS = 1_000_000
REQUESTS_EACH = 1_000_000
SLOTS = 512
SAMPLES = 50_000

WALL = "weir compare of two runs of 1,000,000 requests"
FIGURES = (
    Figure(WALL, "s", (), 10.0, "lower"),
    Figure("CPU time of it", "s", (), None, "lower"),
    Figure("peak memory of it", "MiB", (), None, "lower"),
)

Floats = npt.NDArray[np.float64]


def rows(n: int, seed: int, slow: float) -> pa.Table:
    """Return request rows of a closed loop with 512 slots; what a sample costs belongs to the sample."""
    rng = np.random.default_rng(seed)
    number = np.arange(n)
    sample = number % SAMPLES
    cost = np.random.default_rng(0).lognormal(0, 0.3, SAMPLES)[sample]
    tokens = np.maximum(2, 64 * cost).astype(np.int64)
    ttft = 60 * MS * cost * rng.lognormal(0, 0.2, n)
    tpot = 20 * MS * slow * rng.lognormal(0, 0.05, n)
    took = ttft + tpot * (tokens - 1)
    padded = np.zeros(-(-n // SLOTS) * SLOTS)
    padded[:n] = took
    lanes = padded.reshape(-1, SLOTS)
    scheduled = (np.cumsum(lanes, axis=0) - lanes).reshape(-1)[:n]
    sent = scheduled + rng.gamma(2, 10_000, n)
    failed = rng.random(n) < 0.001
    values: dict[str, Floats | npt.NDArray[np.int64]] = {
        "request": number,
        "sample": sample,
        "repeat": number // SAMPLES,
        "scheduled_ns": scheduled,
        "sent_ns": sent,
        "first_byte_ns": np.where(failed, np.nan, sent + ttft),
        "first_token_ns": np.where(failed, np.nan, sent + ttft),
        "last_token_ns": np.where(failed, np.nan, sent + took),
        "end_ns": sent + took,
        "input_tokens": 100 + sample,
        "output_tokens": np.where(failed, np.nan, tokens),
        "chunks": np.where(failed, 0, tokens),
        "reads": np.where(failed, 1, tokens + 1),
        "icl_mean_ns": np.where(failed, np.nan, tpot),
        "answer_hash": np.where(failed, np.nan, sample * 7919.0 + 1),
    }
    words = {
        "phase": np.where(scheduled < 5e9, "warmup", "measured"),
        "status": np.where(failed, "failed", "completed"),
    }
    arrays: list[pa.Array] = []
    for column in REQUESTS:
        if column.name in words:
            arrays.append(pa.array(words[column.name]).dictionary_encode().cast(column.type))
        elif column.name in values:
            known = values[column.name]
            missing = np.isnan(known)
            whole = np.rint(np.where(missing, 0, known)).astype(column.type.to_pandas_dtype())
            arrays.append(pa.array(whole, column.type, mask=missing))
        else:
            arrays.append(pa.nulls(n, column.type) if column.nullable else pa.array(np.zeros(n), column.type))
    return pa.Table.from_arrays(arrays, schema=REQUESTS)


def write(path: Path, n: int, seed: int, slow: float) -> None:
    """Write a run directory that ``weir compare`` accepts."""
    path.mkdir()
    table = rows(n, seed, slow)
    pq.write_table(table, path / "requests.parquet")
    end = int(np.nanmax(table.column("end_ns").to_numpy()))
    window = Window(start_ns=5_000_000_000, end_ns=end, trimmed=True)
    conduct = Conduct(worker=0, cpu_s=end / 5e9, wall_s=end / 1e9, rss_max_bytes=1, timestamp_source="kernel")
    point = LoadPoint(
        arrival=f"concurrency={SLOTS}",
        asked_rate=None,
        open_loop=False,
        planned=n,
        window=window,
        output_tokens_in_window=int(np.nansum(table.column("output_tokens").to_numpy())),
    )
    summary = summarise(table, {}, [conduct], point)
    workload: dict[str, Json] = {"requests": n, "loads": [point.arrival]}
    measurement: dict[str, Json] = {"warmup": "5s", "slo": {}, "failures_as_infinite": False}
    spec: dict[str, Json] = {"subject": {"slow": slow}, "workload": workload, "measurement": measurement}
    provenance = Provenance(
        backend="synthetic",
        backend_version=None,
        backend_commit="0" * 40,
        model="m",
        model_revision="r",
        tokenizer_hash=None,
        engine_flags={},
        corpus_hash="0" * 64,
        config_hash=canonical_hash(spec),
        workload_hash=canonical_hash(workload),
        measurement_hash=canonical_hash(measurement),
        host="benchmark",
        tokenweir_version="0",
        tokenweir_commit=None,
        attributed=True,
        missing={},
    )
    environment = Environment(
        host="benchmark",
        os=sys.platform,
        kernel="",
        python=sys.version.split()[0],
        cpu="",
        cores=os.cpu_count() or 1,
        affinity=(),
        memory_bytes=0,
        load_1m=os.getloadavg()[0],
        versions={},
    )
    load = LoadResult(index=0, arrival=point.arrival, status="completed", summary=summary)
    made = Run(
        schema_version=SCHEMA_VERSION,
        run_id=path.name,
        status="completed",
        started_at=0,
        ended_at=end,
        labels={},
        spec=spec,
        provenance=provenance,
        environment=environment,
        calibration=None,
        loads=(load,),
        summary=summary,
        files={},
    )
    write_run(path, made)


def measure(rounds: int) -> Result:
    """Write two runs once, then compare them ``rounds`` times."""
    how = "weir compare of two runs of 1,000,000 requests: the whole command, process start included"
    with tempfile.TemporaryDirectory(prefix="weir-compare-") as folder:
        a, b = Path(folder) / "a", Path(folder) / "b"
        write(a, REQUESTS_EACH, seed=1, slow=1.0)
        write(b, REQUESTS_EACH, seed=2, slow=0.99)
        return measured("compare_million", how, rounds, lambda _: _round(a, b), FIGURES)


def _round(a: Path, b: Path) -> Mapping[str, float]:
    finished = run(weir("compare", str(a), str(b)), cores=CORES, memory=True)
    if finished.code != 0 or "Verdict: B is faster" not in finished.output:
        raise RuntimeError(f"weir compare ended with {finished.code}: {finished.output}")
    return {
        WALL: finished.wall_s,
        "CPU time of it": finished.cpu_s,
        "peak memory of it": finished.peak_pss_bytes / 2**20,
    }
