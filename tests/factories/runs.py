"""Synthetic run directories: plausible numbers, written as the bench writes them."""

# pyarrow's stubs leave type arguments open.
# pyright: reportUnknownMemberType=false, reportUnknownArgumentType=false, reportUnknownVariableType=false
# pyright: reportMissingTypeArgument=false

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, cast

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from tokenweir.bench.arrivals import Concurrency, parse_arrivals
from tokenweir.bench.records.columns import CHUNKS, REQUESTS
from tokenweir.bench.records.model import (
    SCHEMA_VERSION,
    Environment,
    LoadResult,
    Run,
    Summary,
    Window,
)
from tokenweir.bench.records.series import Series
from tokenweir.bench.records.summary import Conduct, LoadPoint, summarise
from tokenweir.core.provenance import Provenance
from tokenweir.core.requests import Json
from tokenweir.core.stats.pool import Pool

MS = 1_000_000
S = 1_000_000_000
Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class RunShape:
    """What a synthetic run looks like. ``slow`` multiplies TPOT, ``late`` adds to TTFT (ms).

    The share ``bursts`` of the requests got their tokens at once or nearly so.
    """

    loads: tuple[str, ...] = ("concurrency=8",)
    samples: int = 64
    tokens: int = 32
    slow: float = 1.0
    late: float = 0.0
    bursts: float = 0.0
    failures: float = 0.0
    warmup: float = 0.1
    chunks: bool = False
    attributed: bool = True
    client_bound: bool = False
    status: Literal["completed", "cancelled", "failed"] = "completed"
    run_id: str | None = None
    answers: int = 0
    corpus: str = "synthetic"
    slo: dict[str, int] = field(default_factory=dict[str, int])
    failures_as_infinite: bool = False
    measurement: dict[str, Json] = field(default_factory=dict[str, Json])
    labels: dict[str, str] = field(default_factory=dict[str, str])
    started_at: int = 1_767_225_600 * S


def make_run(path: Path, *, seed: int = 1, n: int = 512, shape: RunShape | None = None) -> Run:
    """Write a run directory at ``path`` with ``n`` requests per load point; return its run.json."""
    shape = shape or RunShape()
    path.mkdir(parents=True, exist_ok=True)
    tables: list[pa.Table] = []
    series: list[pa.Table] = []
    chunks: list[pa.Table] = []
    loads: list[LoadResult] = []
    for load, arrival in enumerate(shape.loads):
        rng = np.random.default_rng((seed, load))
        table = _requests(rng, n, load, arrival, shape)
        tables.append(table)
        chunks.append(_chunks(table))
        series.append(_series(table, chunks[-1], load))
        loads.append(
            LoadResult(
                index=load,
                arrival=arrival,
                status=shape.status,
                summary=_summary(table, chunks[-1], arrival, shape),
            )
        )
    run = _run(shape, seed, n, tuple(loads))
    pq.write_table(
        pa.concat_tables(tables).replace_schema_metadata(_metadata(run)), path / "requests.parquet"
    )
    pq.write_table(pa.concat_tables(series), path / "series.parquet")
    files = ["requests.parquet", "series.parquet"]
    if shape.chunks:
        pq.write_table(pa.concat_tables(chunks), path / "chunks.parquet")
        files.append("chunks.parquet")
    digests = {name: hashlib.sha256((path / name).read_bytes()).hexdigest() for name in files}
    run = msgspec.structs.replace(run, files=digests)
    (path / "run.json").write_bytes(msgspec.json.format(msgspec.json.encode(run), indent=2))
    return run


def _metadata(run: Run) -> dict[str, str]:
    return {
        "tokenweir.run_id": run.run_id,
        "tokenweir.attributed": "true" if run.provenance.attributed else "false",
        "tokenweir.backend_commit": run.provenance.backend_commit or "",
        "tokenweir.model_revision": run.provenance.model_revision or "",
        "tokenweir.config_hash": run.provenance.config_hash,
        "tokenweir.schema_version": str(SCHEMA_VERSION),
    }


def _requests(rng: np.random.Generator, n: int, load: int, arrival: str, shape: RunShape) -> pa.Table:
    number = np.arange(n, dtype=np.int64)
    sample = number % shape.samples
    # What a sample costs belongs to the sample, so that runs of other seeds pair with this one.
    of_sample = np.random.default_rng(0).lognormal(0, 0.2, shape.samples)[sample]
    osl = np.maximum(2, (shape.tokens * of_sample).astype(np.int64))
    ttft = (50 * of_sample * rng.lognormal(0, 0.1, n) + shape.late) * MS
    tpot = 20 * shape.slow * rng.lognormal(0, 0.03, n) * MS
    tpot = np.where(number < shape.bursts * n, tpot * 1e-4 * (number % 2), tpot)
    duration = ttft + tpot * (osl - 1) + 0.05 * MS
    lag = rng.gamma(2, 0.01, n) * MS * (200 if shape.client_bound else 1)
    scheduled = _scheduled(rng, duration + lag, arrival)
    sent = scheduled + lag
    failed = rng.random(n) < shape.failures
    first = sent + ttft
    last = first + tpot * (osl - 1)
    end = sent + np.where(failed, ttft, duration)
    return rows(
        {
            "request": number + load * n,
            "load": np.full(n, load),
            "worker": number % 2,
            "connection": number % 8,
            "sample": sample,
            "repeat": number // shape.samples,
            "scheduled_ns": scheduled,
            "sent_ns": sent,
            "first_byte_ns": np.where(failed, np.nan, first - 0.02 * MS),
            "first_token_ns": np.where(failed, np.nan, first),
            "last_token_ns": np.where(failed, np.nan, last),
            "end_ns": end,
            "http_status": np.where(failed, 503, 200),
            "input_tokens": 100 + sample,
            "output_tokens": np.where(failed, np.nan, osl),
            "chunks": np.where(failed, 0, osl),
            "reads": np.where(failed, 1, osl + 1),
            "multi_event_reads": np.zeros(n),
            "gaps_excluded": np.zeros(n),
            "icl_mean_ns": np.where(failed, np.nan, tpot),
            "icl_max_ns": np.where(failed, np.nan, tpot * 1.5),
            "answer_hash": np.where(failed, np.nan, sample * 1_000_003 + shape.answers),
            "phase": np.where(scheduled < shape.warmup * np.max(scheduled), "warmup", "measured").tolist(),
            "status": np.where(failed, "failed", "completed").tolist(),
            "error": np.where(failed, "overloaded", "").tolist(),
            "finish_reason": np.where(failed, "", "length").tolist(),
            "token_source": np.where(failed, "", "server").tolist(),
        }
    )


def _scheduled(rng: np.random.Generator, duration: Floats, arrival: str) -> Floats:
    n = len(duration)
    (asked,) = parse_arrivals(arrival)
    if not isinstance(asked, Concurrency):
        return np.cumsum(rng.exponential(1 / (asked.asked_rate or 1.0), n)) * S
    width = asked.slots
    rounds = np.zeros(-(-n // width) * width)
    rounds[:n] = duration
    before = np.cumsum(rounds.reshape(-1, width), axis=0) - rounds.reshape(-1, width)
    return before.reshape(-1)[:n]


def rows(columns: Mapping[str, Sequence[float] | Sequence[str] | Ints | Floats]) -> pa.Table:
    """Return request rows; NaN and empty text are null; what is left out is null, or 0 where it must not be.

    Statuses and phases left out are ``completed`` and ``measured``.
    """
    n = len(next(iter(columns.values())))
    words = {"status": ["completed"] * n, "phase": ["measured"] * n}
    arrays: list[pa.Array] = []
    for field_ in REQUESTS:
        given = columns.get(field_.name, words.get(field_.name))
        if pa.types.is_dictionary(field_.type):
            texts = pa.array(
                [None] * n if given is None else [str(text) or None for text in given], pa.string()
            )
            arrays.append(texts.dictionary_encode().cast(field_.type))
        elif given is None:
            arrays.append(pa.nulls(n, field_.type) if field_.nullable else pa.array([0] * n, field_.type))
        else:
            values = np.array(given, np.float64)
            missing = np.isnan(values)
            whole = np.rint(np.where(missing, 0, values)).astype(field_.type.to_pandas_dtype())
            arrays.append(pa.array(whole, field_.type, mask=missing))
    return pa.Table.from_arrays(arrays, schema=REQUESTS)


def _column(table: pa.Table, name: str) -> Floats:
    return table.column(name).to_numpy().astype(np.float64)


def _chunks(table: pa.Table) -> pa.Table:
    count = _column(table, "chunks").astype(np.int64)
    row = np.repeat(np.arange(len(count)), count)
    index = np.arange(len(row)) - np.repeat(np.cumsum(count) - count, count)
    received = np.rint(_column(table, "first_token_ns")[row] + _column(table, "icl_mean_ns")[row] * index)
    return pa.Table.from_arrays(
        [
            pa.array(_column(table, "request")[row].astype(np.int64)),
            pa.array(_column(table, "load")[row].astype(np.int16)),
            pa.array(index.astype(np.int32)),
            pa.array(received.astype(np.int64)),
            pa.array(np.ones(len(row), np.int16)),
            pa.array(np.zeros(len(row), np.bool_)),
            pa.nulls(len(row), pa.int64()),
        ],
        schema=CHUNKS,
    )


def _series(table: pa.Table, chunks: pa.Table, load: int) -> pa.Table:
    series = Series()
    series.add_requests(table)
    received = _column(chunks, "received_ns")
    later = _column(chunks, "index") > 0
    series.add_latencies("itl", received[later], np.diff(received, prepend=0)[later])
    series.add_totals("output_tokens", received)
    return series.table(load)


def _summary(table: pa.Table, chunks: pa.Table, arrival: str, shape: RunShape) -> Summary:
    sent, end = _column(table, "sent_ns"), _column(table, "end_ns")
    good = np.array(table.column("status").to_pylist()) == "completed"
    measured = np.array(table.column("phase").to_pylist()) == "measured"
    window = Window(
        start_ns=round(float(sent[measured].min())),
        end_ns=round(float(np.nanmax(end))),
        trimmed=shape.warmup > 0,
    )
    received = _column(chunks, "received_ns")
    row = np.repeat(np.arange(len(sent)), _column(table, "chunks").astype(np.int64))
    gaps = np.diff(received, prepend=0)[(_column(chunks, "index") > 0) & (measured & good)[row]]
    pools = {"itl": Pool(), "icl": Pool()}
    for pool in pools.values():
        pool.add(gaps.astype(np.int64))
    seconds = (window.end_ns - window.start_ns) / S
    conducts = [
        Conduct(
            worker=worker,
            cpu_s=seconds * (0.95 if shape.client_bound else 0.2),
            wall_s=seconds,
            rss_max_bytes=60_000_000,
            timestamp_source="kernel",
            finishing_cpu_s=seconds * 0.1,
            steal_ratio=0.001,
        )
        for worker in range(2)
    ]
    (asked,) = parse_arrivals(arrival)
    return summarise(
        table,
        pools,
        conducts,
        LoadPoint(
            arrival=arrival,
            asked_rate=asked.asked_rate,
            open_loop=asked.open_loop,
            planned=len(sent),
            window=window,
            output_tokens_in_window=int(
                np.count_nonzero((received >= window.start_ns) & (received <= window.end_ns))
            ),
            slo=shape.slo,
            failures_as_infinite=shape.failures_as_infinite,
        ),
    )


def _hash(value: Json) -> str:
    return hashlib.sha256(msgspec.json.encode(value, order="sorted")).hexdigest()


def _run(shape: RunShape, seed: int, n: int, loads: tuple[LoadResult, ...]) -> Run:
    corpus = _hash(shape.corpus)
    workload: dict[str, Json] = {
        "kind": "chat",
        "stream": True,
        "corpus": {"name": shape.corpus, "hash": corpus},
        "scenario": f"D(100,{shape.tokens})",
        "loads": list(shape.loads),
        "requests": n,
        "duration_ns": None,
        "sampling": {"temperature": 0.0},
        "seed": 7,
        "ignore_eos": True,
        "repeat": 1,
    }
    measurement: dict[str, Json] = {
        "warmup": "10%",
        "cooldown": "0s",
        "timeout_ns": 60 * S,
        "slo": cast("dict[str, Json]", shape.slo),
        "failures_as_infinite": shape.failures_as_infinite,
        "tokens": "server",
        **shape.measurement,
    }
    subject: dict[str, Json] = {
        "backend": "sim",
        "url": "http://127.0.0.1:8000",
        "model": "m",
        "engine_flags": {"slow": shape.slow},
        "commit": "0" * 40,
        "revision": "r1",
    }
    spec: dict[str, Json] = {"subject": subject, "workload": workload, "measurement": measurement}
    digest = hashlib.blake2b(f"{seed} {shape}".encode(), digest_size=13).digest()
    alphabet = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
    run_id = shape.run_id or "run_0" + "".join(alphabet[byte % 32] for byte in digest + digest[:12])
    missing = (
        {}
        if shape.attributed
        else {"backend_commit": "the server does not say", "model_revision": "not given"}
    )
    longest = max(load.summary.window.end_ns for load in loads)
    return Run(
        schema_version=SCHEMA_VERSION,
        run_id=run_id,
        status=shape.status,
        started_at=shape.started_at,
        ended_at=shape.started_at + longest,
        labels=shape.labels,
        spec=spec,
        provenance=Provenance(
            backend="sim",
            backend_version="1",
            backend_commit="0" * 40 if shape.attributed else None,
            model="m",
            model_revision="r1" if shape.attributed else None,
            tokenizer_hash=None,
            engine_flags={"slow": shape.slow},
            corpus_hash=corpus,
            config_hash=_hash(spec),
            workload_hash=_hash(workload),
            measurement_hash=_hash(measurement),
            host="testhost",
            tokenweir_version="0.1.0",
            tokenweir_commit=None,
            attributed=shape.attributed,
            missing=missing,
        ),
        environment=Environment(
            host="testhost",
            os="Linux",
            kernel="6.1",
            python="3.11.7",
            cpu="Test CPU",
            cores=2,
            affinity=(0, 1),
            memory_bytes=2**34,
            load_1m=0.5,
            versions={"tokenweir": "0.1.0"},
        ),
        calibration=None,
        loads=loads,
        summary=loads[0].summary if len(loads) == 1 else None,
        files={},
    )
