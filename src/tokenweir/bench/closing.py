"""After the last byte: spools become tables, load points are summed up, and ``run.json`` is written last."""

from __future__ import annotations

import shutil
import socket
import time
from collections.abc import Mapping
from pathlib import Path

import msgspec
import pyarrow as pa

from tokenweir import __version__
from tokenweir.bench.calibration import load_calibration
from tokenweir.bench.finishing.gaps import count_chunks
from tokenweir.bench.finishing.merge import Measured, Merged, merge
from tokenweir.bench.finishing.spool import chunk_type
from tokenweir.bench.finishing.tables import RequestsFile, write_chunks, write_series
from tokenweir.bench.measure import Measurement
from tokenweir.bench.records.model import SCHEMA_VERSION, Run
from tokenweir.bench.records.rundir import (
    CHUNKS_FILE,
    REQUESTS_FILE,
    SERIES_FILE,
    table_hashes,
    write_run,
)
from tokenweir.core.errors import WeirError
from tokenweir.core.provenance import Provenance
from tokenweir.core.spec import public_flags
from tokenweir.telemetry.build import commit


class Closed(msgspec.Struct, frozen=True):
    """A finished record: its directory, its content, a message for each kind of error, what ended it early.

    ``cpu_s`` is what turning spools into tables and summing up cost.
    """

    run_dir: Path
    run: Run
    messages: dict[str, str]
    failure: WeirError | None
    cpu_s: float


def close(measurement: Measurement, run_id: str) -> Closed:
    """Write the run's tables and ``run.json``, and remove the spools.

    Raises:
        WeirError: no load point left anything.
        OSError: the tables cannot be written; the spools stay below ``work/``.
    """
    # Arrow's own pools keep what they freed; the system's gives it back.
    pa.set_memory_pool(pa.system_memory_pool())
    cpu = time.process_time()
    run_dir = measurement.run_dir
    provenance = _provenance(measurement)
    metadata = _metadata(provenance, run_id)
    file = RequestsFile(run_dir / REQUESTS_FILE, metadata)
    try:
        merged = [merge(part, file) for part in _parts(measurement)]
    finally:
        file.close()
    write_series(run_dir / SERIES_FILE, [(one.result.index, one.series) for one in merged], metadata)
    notes = [*measurement.notes, *_chunks(measurement, metadata)]
    notes += [note for one in merged for note in one.notes]
    if measurement.failure is not None:
        notes.append(f"ended early: {measurement.failure}")
    run = Run(
        schema_version=SCHEMA_VERSION,
        run_id=run_id,
        status=measurement.status,
        started_at=measurement.started_at,
        ended_at=time.time_ns(),
        labels=dict(measurement.options.label),
        spec=measurement.spec.to_json(),
        provenance=provenance,
        environment=measurement.environment,
        calibration=load_calibration(),
        loads=tuple(one.result for one in merged),
        summary=merged[0].result.summary if len(merged) == 1 else None,
        files=table_hashes(run_dir),
        notes=tuple(dict.fromkeys(notes)),
    )
    write_run(run_dir, run)
    shutil.rmtree(measurement.work_dir, ignore_errors=True)
    return Closed(run_dir, run, _messages(merged), measurement.failure, time.process_time() - cpu)


def _parts(measurement: Measurement) -> list[Measured]:
    options = measurement.options
    origin = measurement.points[0].start_ns if measurement.points else 0
    return [
        Measured(
            load=point.load,
            folders=point.folders,
            arrival=point.arrival.text,
            asked_rate=point.arrival.asked_rate,
            open_loop=point.arrival.open_loop,
            planned=point.planned,
            start_ns=point.start_ns - origin,
            status=point.status,
            warmup=options.warmup_trim,
            cooldown=options.cooldown_trim,
            slo=options.slo_limits.limits_ns,
            failures_as_infinite=options.failures_as_infinite,
            true_times=options.backend == "sim",
            steal_ratio=point.steal_ratio,
        )
        for point in measurement.points
    ]


def _chunks(measurement: Measurement, metadata: Mapping[str, str]) -> list[str]:
    """Write ``chunks.parquet`` when it is wanted; return a note when it is left out for its size."""
    settings = measurement.settings
    wanted = measurement.options.chunks or settings.chunks
    kind = chunk_type(true_times=measurement.options.backend == "sim")
    parts = [(point.load, folder) for point in measurement.points for folder in point.folders]
    count = count_chunks([folder for _, folder in parts], kind)
    if wanted == "never" or not count:
        return []
    if wanted == "auto" and count > settings.max_chunk_rows:
        return [
            f"{count} chunk rows are left out (more than {settings.max_chunk_rows}); --chunks always keeps them"
        ]
    write_chunks(measurement.run_dir / CHUNKS_FILE, parts, kind, metadata)
    return []


def _provenance(measurement: Measurement) -> Provenance:
    spec, identity = measurement.spec, measurement.identity
    tokenizer = measurement.workload.tokenizer
    missing = dict(identity.missing)
    known = {
        "backend_version": identity.version,
        "backend_commit": spec.subject.commit,
        "model_revision": spec.subject.revision,
        "tokenizer_hash": tokenizer.hash,
        "tokenweir_commit": commit(),
    }
    reasons = {
        "backend_version": missing.pop("version", "the endpoint does not say"),
        "backend_commit": missing.pop("commit", "the endpoint does not say; give --commit"),
        "model_revision": missing.pop("revision", "the endpoint does not say; give --revision"),
        "tokenizer_hash": "no tokenizer is known; give --tokenizer",
        "tokenweir_commit": "installed from a package that does not say",
    }
    return Provenance(
        backend=spec.subject.backend,
        backend_version=identity.version,
        backend_commit=spec.subject.commit,
        model=spec.subject.model,
        model_revision=spec.subject.revision,
        tokenizer_hash=tokenizer.hash,
        engine_flags=public_flags(spec.subject.engine_flags),
        corpus_hash=measurement.workload.corpus.hash,
        config_hash=spec.config_hash,
        workload_hash=spec.workload_hash,
        measurement_hash=spec.measurement_hash,
        host=socket.gethostname(),
        tokenweir_version=__version__,
        tokenweir_commit=known["tokenweir_commit"],
        attributed=spec.subject.commit is not None and spec.subject.revision is not None,
        missing={name: reasons[name] for name, value in known.items() if value is None},
    )


def _metadata(provenance: Provenance, run_id: str) -> dict[str, str]:
    return {
        "tokenweir.run_id": run_id,
        "tokenweir.schema_version": str(SCHEMA_VERSION),
        "tokenweir.attributed": str(provenance.attributed).lower(),
        "tokenweir.backend_commit": provenance.backend_commit or "",
        "tokenweir.model_revision": provenance.model_revision or "",
        "tokenweir.config_hash": provenance.config_hash,
    }


def _messages(merged: list[Merged]) -> dict[str, str]:
    return {kind: text for one in merged for kind, text in one.messages.items()}
