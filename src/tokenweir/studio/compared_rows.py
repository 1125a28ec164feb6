"""The rows of runs under comparison as arrays: only the columns that the metrics need."""

# pyarrow's stubs leave type arguments open.
# pyright: reportUnknownMemberType=false, reportUnknownArgumentType=false, reportUnknownVariableType=false

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from tokenweir.bench.records.columns import PHASES, STATUSES
from tokenweir.bench.records.frames import codes, integers, numbers
from tokenweir.bench.records.rundir import REQUESTS_FILE
from tokenweir.core.errors import RecordError
from tokenweir.core.metrics.base import FloatArray, Metric
from tokenweir.core.metrics.registry import METRICS
from tokenweir.core.stats.clusters import BLOCK_VALUES, MAX_BLOCKS, Labels

Rows = npt.NDArray[np.bool_]
Ints = npt.NDArray[np.int64]

_ALWAYS: Final = ("sent_ns", "end_ns")
_OF_RATES: Final[Mapping[str, tuple[str, ...]]] = {
    "output_throughput": ("first_token_ns", "last_token_ns", "output_tokens"),
    "total_throughput": ("first_token_ns", "last_token_ns", "output_tokens", "input_tokens"),
}
_KEYS: Final = ("load", "sample", "repeat", "phase", "status", "answer_hash")
_REPEAT_BITS: Final = 32


@dataclass(frozen=True, slots=True)
class Rowset:
    """The rows of one load point. ``key`` pairs them with another run's; ``answer`` is 0 where unknown.

    ``turn`` is each measured row's place in order of sending.
    """

    columns: Mapping[str, FloatArray]
    sample: Ints
    key: Ints
    answer: Ints
    measured: Rows
    completed: Rows
    failed: Rows
    turn: Ints

    def blocks(self, rows: npt.NDArray[np.intp]) -> Labels:
        """Return the block of time that each of the measured ``rows`` belongs to."""
        count = min(MAX_BLOCKS, max(1, len(rows) // BLOCK_VALUES))
        return self.turn[rows] * count // max(1, int(np.count_nonzero(self.measured)))


def columns_of(metrics: Iterable[Metric], slo: Iterable[str]) -> tuple[str, ...]:
    """Return the numeric columns that these metrics need, and goodput under these objectives."""
    tags = [metric.tag for metric in metrics]
    asked = [METRICS[tag] for tag in (*tags, *(slo if "goodput" in tags else ()))]
    names = [name for metric in asked for name in metric.needs]
    names += [name for tag in tags for name in _OF_RATES.get(tag, ())]
    if "goodput" in tags:
        names += ["output_tokens", "chunks"]
    return tuple(dict.fromkeys((*_ALWAYS, *names)))


def read_rows(run_dir: Path, names: Iterable[str]) -> dict[int, Rowset]:
    """Return the rows of each load point by its index.

    Raises:
        RecordError: the table is missing or damaged.
    """
    path, wanted = run_dir / REQUESTS_FILE, tuple(names)
    try:
        table = pq.read_table(path, columns=list(dict.fromkeys((*_KEYS, *wanted))))
    except (OSError, pa.ArrowException) as error:
        message = f"{str(path)!r} cannot be read: {error}"
        raise RecordError(message, mend="restore the run directory from a copy") from error
    missing = [name for name in (*_KEYS, *wanted) if name not in table.column_names]
    if missing:
        message = f"{str(path)!r} lacks the column {missing[0]!r}"
        raise RecordError(message, mend="compare runs written by this version")
    load = integers(table, "load", 0)
    present = [int(index) for index in np.flatnonzero(np.bincount(load))]
    if len(present) == 1:
        return {present[0]: _rowset(table, wanted)}
    return {index: _rowset(table.filter(pa.array(load == index)), wanted) for index in present}


def _rowset(table: pa.Table, names: tuple[str, ...]) -> Rowset:
    sample = integers(table, "sample", 0)
    phase, status = codes(table, "phase", PHASES), codes(table, "status", STATUSES)
    columns, measured = numbers(table, names), phase == PHASES.index("measured")
    return Rowset(
        columns=columns,
        sample=sample,
        key=sample << _REPEAT_BITS | integers(table, "repeat", 0),
        answer=integers(table, "answer_hash", 0),
        measured=measured,
        completed=status == STATUSES.index("completed"),
        failed=status == STATUSES.index("failed"),
        turn=_turns(columns["sent_ns"], measured),
    )


def _turns(sent: FloatArray, measured: Rows) -> Ints:
    rows = np.flatnonzero(measured)
    turn = np.zeros(len(sent), np.int64)
    turn[rows[np.argsort(sent[rows], kind="stable")]] = np.arange(len(rows))
    return turn


def pair(a: Rowset, b: Rowset) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
    """Return the places of the measured requests that both runs made of the same sample and repeat."""
    if len(a.key) == len(b.key) and np.array_equal(a.key, b.key) and _distinct(a.key):
        both = np.flatnonzero(a.measured & b.measured)
        return both, both
    in_a, in_b = np.flatnonzero(a.measured), np.flatnonzero(b.measured)
    keys_a, first_a = np.unique(a.key[in_a], return_index=True)
    keys_b, first_b = np.unique(b.key[in_b], return_index=True)
    places = np.searchsorted(keys_b, keys_a)
    found = places < len(keys_b)
    found[found] = keys_b[places[found]] == keys_a[found]
    return in_a[first_a[found]], in_b[first_b[places[found]]]


def _distinct(keys: Ints) -> bool:
    ordered = np.sort(keys)
    return bool(np.all(ordered[1:] != ordered[:-1]))
