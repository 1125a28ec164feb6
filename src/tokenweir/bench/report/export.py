"""A run's numbers for other programs: a row per metric and load point, or a row per request."""

# pyarrow's stubs leave type arguments open.
# pyright: reportUnknownMemberType=false, reportUnknownArgumentType=false, reportUnknownVariableType=false

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, Final, Literal

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import csv as arrow_csv

from tokenweir.bench.records.columns import REQUESTS
from tokenweir.bench.records.model import Run
from tokenweir.bench.records.rundir import REQUESTS_FILE, read_run
from tokenweir.bench.report import wording
from tokenweir.core.errors import RecordError
from tokenweir.core.requests import Json

Format = Literal["json", "csv"]

_ROWS: Final = 65_536
_WHOSE: Final = (pa.field("run_id", pa.string()), pa.field("attributed", pa.bool_()))


def summary_rows(run: Run) -> Iterator[dict[str, Json]]:
    """Yield one row per load point and metric, with unit, n, definition and whom the numbers belong to."""
    who = run.provenance
    for load in run.loads:
        for tag in wording.in_order(load.summary.metrics):
            metric = load.summary.metrics[tag]
            yield {
                "run_id": run.run_id,
                "status": run.status,
                "backend": who.backend,
                "model": who.model,
                "attributed": who.attributed,
                "backend_commit": who.backend_commit,
                "model_revision": who.model_revision,
                "config_hash": who.config_hash,
                "load": load.index,
                "arrival": load.arrival,
                "trust": load.summary.verdict.trust,
                "metric": tag,
                "unit": metric.unit,
                "direction": metric.direction,
                "n": metric.n,
                **{name: getattr(metric, name) for name in wording.STATISTICS},
                "definition": metric.definition,
                "note": metric.note,
            }


def write_summaries(run_dirs: list[Path], form: Format, out: BinaryIO) -> None:
    """Write the summary rows of runs, as a JSON array or as CSV with one heading.

    Raises:
        RecordError: a directory holds no finished run; nothing is written then.
    """
    rows = [row for run_dir in run_dirs for row in summary_rows(read_run(run_dir))]
    if form == "json":
        out.write(msgspec.json.format(msgspec.json.encode(rows)) + b"\n")
        return
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, fieldnames=list(rows[0]) if rows else [], lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: _cell(value) for name, value in row.items()} for row in rows)
    out.write(text.getvalue().encode())


def write_requests(run_dirs: list[Path], form: Format, out: BinaryIO) -> None:
    """Write the requests of runs as JSON lines or CSV, in batches, so that memory does not grow with them.

    Raises:
        RecordError: a directory holds no finished run, or its table is missing or damaged.
    """
    schema = pa.schema([*_WHOSE, *(pa.field(field.name, _plain(field.type)) for field in REQUESTS)])
    sources = [(read_run(run_dir), run_dir / REQUESTS_FILE) for run_dir in run_dirs]
    if form == "json":
        for batch in _batches(sources, schema):
            out.writelines(msgspec.json.encode(row) + b"\n" for row in batch.to_pylist())
        return
    with arrow_csv.CSVWriter(out, schema) as writer:
        for batch in _batches(sources, schema):
            writer.write_batch(batch)


def _batches(sources: list[tuple[Run, Path]], schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    for run, path in sources:
        try:
            with pq.ParquetFile(path) as file:
                for batch in file.iter_batches(batch_size=_ROWS, columns=REQUESTS.names):
                    whose = [
                        pa.array([run.run_id] * len(batch), pa.string()),
                        pa.array([run.provenance.attributed] * len(batch), pa.bool_()),
                    ]
                    columns = [batch.column(field.name).cast(_plain(field.type)) for field in REQUESTS]
                    yield pa.RecordBatch.from_arrays([*whose, *columns], schema=schema)
        except FileNotFoundError as error:
            raise RecordError(f"{str(path)!r} is missing", mend="the run directory is incomplete") from error
        except (pa.ArrowException, KeyError) as error:
            raise RecordError(
                f"{str(path)!r} is damaged or foreign: {str(error).splitlines()[0]}",
                mend="restore it from a copy, or run the benchmark again",
            ) from error


def _cell(value: Json) -> Json:
    return str(value).lower() if isinstance(value, bool) else value


def _plain(kind: pa.DataType) -> pa.DataType:
    return kind.value_type if isinstance(kind, pa.DictionaryType) else kind
