"""What the report reads of a run directory: ``run.json`` whole, of the Parquet tables only the columns it draws."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from tokenweir.bench.records.columns import PHASES, STATUSES
from tokenweir.bench.records.model import SCHEMA_VERSION, Run
from tokenweir.core.errors import RecordError
from tokenweir.core.metrics.base import FloatArray

IntArray = npt.NDArray[np.int64]

TIMES: Final = (
    "scheduled_ns",
    "sent_ns",
    "first_token_ns",
    "last_token_ns",
    "end_ns",
    "output_tokens",
)
SERIES_METRICS: Final = ("ttft", "itl", "e2el", "sent", "completed", "failed", "output_tokens", "in_flight")


@dataclass(frozen=True, slots=True, kw_only=True)
class Requests:
    """The requests of one load point, in order of ``request``.

    ``columns`` are float64 with NaN for null, times in nanoseconds since the run's start. ``phase`` and ``status``
    index ``PHASES`` and ``STATUSES``; −1 is a name this version does not know.
    """

    number: IntArray
    phase: IntArray
    status: IntArray
    columns: Mapping[str, FloatArray]

    @property
    def measured(self) -> npt.NDArray[np.bool_]:
        """Requests of the measured phase that completed: those that latencies speak of."""
        completed = self.status == STATUSES.index("completed")
        return completed & (self.phase == PHASES.index("measured"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """The per-second counts of one load point; ``metric`` indexes ``SERIES_METRICS``."""

    second: IntArray
    metric: IntArray
    bin: IntArray
    count: IntArray

    def of(self, metric: str) -> tuple[IntArray, IntArray, IntArray]:
        """Return second, bin and count of one metric."""
        chosen = self.metric == SERIES_METRICS.index(metric)
        return self.second[chosen], self.bin[chosen], self.count[chosen]


def read_run(run_dir: Path) -> Run:
    """Return the content of ``run.json``.

    Raises:
        RecordError: there is none, or it is not a run's.
    """
    path = run_dir / "run.json"
    try:
        content = path.read_bytes()
    except OSError as error:
        raise RecordError(
            f"{str(run_dir)!r} is not a complete run directory: run.json cannot be read ({error.strerror})",
            mend="name a directory that weir bench wrote",
        ) from error
    try:
        run = msgspec.json.decode(content, type=Run)
    except msgspec.DecodeError as error:
        raise RecordError(
            f"{str(path)!r} is damaged or foreign: {error}", mend="name a directory that weir bench wrote"
        ) from error
    if run.schema_version > SCHEMA_VERSION:
        raise RecordError(
            f"{str(path)!r} has schema version {run.schema_version!r}; this Tokenweir reads up to {SCHEMA_VERSION}",
            mend="use the Tokenweir that wrote it, or a newer one",
        )
    return run


def read_requests(run_dir: Path) -> dict[int, Requests]:
    """Return the requests of every load point, by its index.

    Raises:
        RecordError: ``requests.parquet`` is missing or damaged.
    """
    table = _read(run_dir / "requests.parquet", ["request", "load", "phase", "status", *TIMES])
    load = _integers(table, "load")
    number = _integers(table, "request")
    phase = _codes(table, "phase", PHASES)
    status = _codes(table, "status", STATUSES)
    columns = {name: _floats(table, name) for name in TIMES}
    found: dict[int, Requests] = {}
    for index in np.unique(load).tolist():
        chosen = slice(None) if load[0] == load[-1] == index and len(np.unique(load)) == 1 else load == index
        found[int(index)] = Requests(
            number=number[chosen],
            phase=phase[chosen],
            status=status[chosen],
            columns={name: values[chosen] for name, values in columns.items()},
        )
    return found


def read_series(run_dir: Path) -> dict[int, Series]:
    """Return the per-second counts of every load point, by its index.

    Raises:
        RecordError: ``series.parquet`` is missing or damaged.
    """
    table = _read(run_dir / "series.parquet", ["load", "second", "metric", "bin", "count"])
    load = _integers(table, "load")
    metric = _codes(table, "metric", SERIES_METRICS)
    second, bins, count = (_integers(table, name) for name in ("second", "bin", "count"))
    return {
        int(index): Series(
            second=second[load == index],
            metric=metric[load == index],
            bin=bins[load == index],
            count=count[load == index],
        )
        for index in np.unique(load).tolist()
    }


def _read(path: Path, columns: list[str]) -> pa.Table:
    try:
        return pq.read_table(path, columns=columns)
    except FileNotFoundError as error:
        raise RecordError(f"{str(path)!r} is missing", mend="the run directory is incomplete") from error
    except (pa.ArrowException, OSError, KeyError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise RecordError(
            f"{str(path)!r} is damaged or foreign: {reason}", mend="run the benchmark again"
        ) from error


def _integers(table: pa.Table, name: str) -> IntArray:
    return np.asarray(table.column(name).to_numpy(), dtype=np.int64)


def _floats(table: pa.Table, name: str) -> FloatArray:
    return np.asarray(table.column(name).to_numpy(), dtype=np.float64)


def _codes(table: pa.Table, name: str, names: tuple[str, ...]) -> IntArray:
    text = table.column(name).cast(pa.string())
    codes = pc.index_in(text, value_set=pa.array(names, pa.string()))
    return np.asarray(pc.fill_null(codes, -1).to_numpy(), dtype=np.int64)
