"""What the report reads of a run's tables: only the columns it draws, by load point."""

# pyarrow's stubs leave type arguments open.
# pyright: reportUnknownMemberType=false

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from tokenweir.bench.records.columns import PHASES, STATUSES
from tokenweir.bench.records.frames import codes, integers, numbers
from tokenweir.bench.records.rundir import CHUNKS_FILE, REQUESTS_FILE, SERIES_FILE
from tokenweir.bench.records.series import METRICS
from tokenweir.core.errors import RecordError
from tokenweir.core.metrics.base import FloatArray

CodeArray = npt.NDArray[np.int16]
IntArray = npt.NDArray[np.int64]

TIMES: Final = (
    "scheduled_ns",
    "sent_ns",
    "first_token_ns",
    "last_token_ns",
    "end_ns",
    "output_tokens",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Requests:
    """The requests of one load point, in order of ``request``.

    ``columns`` are float64 with NaN for null, times in nanoseconds since the run's start. ``phase`` and
    ``status`` index ``PHASES`` and ``STATUSES``; −1 is a name this version does not know.
    """

    number: IntArray
    phase: CodeArray
    status: CodeArray
    columns: Mapping[str, FloatArray]

    @property
    def measured(self) -> npt.NDArray[np.bool_]:
        """Requests of the measured phase that completed: those that latencies speak of."""
        completed = self.status == STATUSES.index("completed")
        return completed & (self.phase == PHASES.index("measured"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """The per-second counts of one load point; ``metric`` indexes ``METRICS``."""

    second: IntArray
    metric: CodeArray
    bin: IntArray
    count: IntArray

    def of(self, metric: str) -> tuple[IntArray, IntArray, IntArray]:
        """Return second, bin and count of one metric."""
        chosen = self.metric == METRICS.index(metric)
        return self.second[chosen], self.bin[chosen], self.count[chosen]


def read_requests(run_dir: Path) -> dict[int, Requests]:
    """Return the requests of every load point, by its index.

    Raises:
        RecordError: ``requests.parquet`` is missing or damaged.
    """
    table = _read(run_dir / REQUESTS_FILE, ["request", "load", "phase", "status", *TIMES])
    load = integers(table, "load", -1)
    number = integers(table, "request", -1)
    phase, status = codes(table, "phase", PHASES), codes(table, "status", STATUSES)
    columns = numbers(table, TIMES)
    return {
        int(index): Requests(
            number=number[load == index],
            phase=phase[load == index],
            status=status[load == index],
            columns={name: values[load == index] for name, values in columns.items()},
        )
        for index in np.unique(load)
    }


def read_series(run_dir: Path) -> dict[int, Series]:
    """Return the per-second counts of every load point, by its index.

    Raises:
        RecordError: ``series.parquet`` is missing or damaged.
    """
    table = _read(run_dir / SERIES_FILE, ["load", "second", "metric", "bin", "count"])
    load = integers(table, "load", -1)
    metric = codes(table, "metric", METRICS)
    second, bins, count = (integers(table, name, 0) for name in ("second", "bin", "count"))
    return {
        int(index): Series(
            second=second[load == index],
            metric=metric[load == index],
            bin=bins[load == index],
            count=count[load == index],
        )
        for index in np.unique(load)
    }


def read_chunk_times(run_dir: Path, requests: IntArray) -> tuple[IntArray, FloatArray] | None:
    """Return request and arrival (ns) of the chunks of some requests; ``None`` where chunks were not kept.

    Raises:
        RecordError: ``chunks.parquet`` is damaged.
    """
    path = run_dir / CHUNKS_FILE
    if not path.exists():
        return None
    chosen = pc.field("request").isin(pa.array(requests))
    table = _read(path, ["request", "received_ns"], chosen)
    return integers(table, "request", -1), numbers(table, ("received_ns",))["received_ns"]


def _read(path: Path, columns: list[str], chosen: pc.Expression | None = None) -> pa.Table:
    try:
        return pq.read_table(path, columns=columns, filters=chosen)
    except FileNotFoundError as error:
        raise RecordError(f"{str(path)!r} is missing", mend="the run directory is incomplete") from error
    except (pa.ArrowException, OSError, KeyError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise RecordError(
            f"{str(path)!r} is damaged or foreign: {reason}", mend="run the benchmark again"
        ) from error
