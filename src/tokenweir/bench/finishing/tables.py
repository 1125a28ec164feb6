"""From the workers' spools to ``requests.parquet`` and ``chunks.parquet``, a row group at a time."""

# pyarrow's stubs leave type arguments open.
# pyright: reportUnknownMemberType=false, reportUnknownArgumentType=false, reportUnknownVariableType=false
# pyright: reportMissingTypeArgument=false

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, cast

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from tokenweir.bench.finishing.spool import NULL, ROW_FIELDS, SOURCES, STATUSES, read_chunks, read_rows
from tokenweir.bench.records.columns import CHUNKS, PHASES, REQUESTS, SERIES
from tokenweir.bench.records.series import Series

Ints = npt.NDArray[np.int64]

UNKNOWN: Final = "unknown"
GROUP_ROWS: Final = 1 << 15
FIELD: Final = {name: index for index, name in enumerate(ROW_FIELDS)}
_WORDS: Final = [field.name for field in REQUESTS if pa.types.is_dictionary(field.type)]
_NAMED: Final = ("error", "finish_reason")
_ANSWER_TYPES: Final = {"answer_hash": np.uint64}


class RowSpools:
    """The rows of one load point over all its workers, in order of request.

    ``errors`` and ``reasons`` are each worker's names behind its indexes; here they become one list each.
    """

    def __init__(
        self, folders: Sequence[Path], errors: Sequence[Sequence[str]], reasons: Sequence[Sequence[str]]
    ) -> None:
        self._spools = [read_rows(folder / "rows.i64") for folder in folders]
        self.names = {
            "error": sorted({UNKNOWN, *(name for names in errors for name in names)}),
            "finish_reason": sorted({UNKNOWN, *(name for names in reasons for name in names)}),
        }
        self._codes = {
            "error": [_codes(names, self.names["error"]) for names in errors],
            "finish_reason": [_codes(names, self.names["finish_reason"]) for names in reasons],
        }
        spool = np.concatenate(
            [np.full(len(rows), k, np.int64) for k, rows in enumerate(self._spools)] or [_NONE]
        )
        line = np.concatenate([np.arange(len(rows)) for rows in self._spools] or [_NONE])
        requests = np.concatenate([rows[:, 0] for rows in self._spools] or [_NONE])
        order = np.argsort(requests, kind="stable")
        self._spool, self._line = spool[order], line[order]

    def __len__(self) -> int:
        return len(self._line)

    def column(self, name: str) -> Ints:
        """Return one whole column; ``NULL`` where unknown."""
        return self._gather(slice(None), (FIELD[name],))[:, 0]

    def groups(self) -> Iterator[tuple[slice, Ints]]:
        """Yield (where, rows) for each row group."""
        for start in range(0, len(self), GROUP_ROWS):
            where = slice(start, min(start + GROUP_ROWS, len(self)))
            yield where, self._gather(where, None)

    def _gather(self, where: slice, columns: tuple[int, ...] | None) -> Ints:
        spool, line = self._spool[where], self._line[where]
        width = len(ROW_FIELDS) if columns is None else len(columns)
        out = np.empty((len(line), width), np.int64)
        for k, rows in enumerate(self._spools):
            mine = spool == k
            picked = np.array(
                rows[line[mine]] if columns is None else rows[line[mine][:, None], np.array(columns)]
            )
            if columns is None:
                for name in _NAMED:
                    code = picked[:, FIELD[name]]
                    known = code != NULL
                    names = self._codes[name][k]
                    code[known] = names[np.minimum(code[known], len(names) - 1)]
            out[mine] = picked
        return out


_NONE: Final = np.zeros(0, np.int64)


def _codes(names: Sequence[str], all_names: Sequence[str]) -> Ints:
    # A finishing process that was killed leaves indexes beyond the names it told: the last entry takes those.
    return np.array([all_names.index(name) for name in (*names, UNKNOWN)], np.int64)


def requests_table(rows: Ints, phases: npt.NDArray[np.int8], names: Mapping[str, Sequence[str]]) -> pa.Table:
    """Return rows as a table of the published columns."""
    words: dict[str, Sequence[str]] = {"status": STATUSES, "token_source": SOURCES, **names}
    arrays: list[pa.Array[Any]] = []
    for field in REQUESTS:
        if field.name == "phase":
            arrays.append(_dictionary(phases.astype(np.int64), PHASES, field.type))
        elif field.name == "icl_mean_ns":
            arrays.append(_mean(rows))
        elif field.name == "icl_max_ns":
            none = rows[:, FIELD["icl_count"]] == 0
            arrays.append(pa.array(rows[:, FIELD["icl_max_ns"]], pa.int64(), mask=none))
        elif field.name in words:
            arrays.append(_dictionary(rows[:, FIELD[field.name]], words[field.name], field.type))
        else:
            values = rows[:, FIELD[field.name]]
            null = values == NULL
            kind = _ANSWER_TYPES.get(field.name)
            cast = values.view(kind) if kind is not None else np.where(null, 0, values)
            arrays.append(pa.array(cast, field.type, mask=null))
    return pa.Table.from_arrays(arrays, schema=REQUESTS)


def _mean(rows: Ints) -> pa.Array[Any]:
    count = rows[:, FIELD["icl_count"]]
    mean = rows[:, FIELD["icl_sum_ns"]] // np.maximum(count, 1)
    return pa.array(mean, pa.int64(), mask=count == 0)


def _dictionary(codes: Ints, names: Sequence[str], kind: pa.DataType) -> pa.Array[Any]:
    null = codes == NULL
    indexes = pa.array(np.where(null, 0, codes), cast("Any", kind).index_type, mask=null)
    return pa.DictionaryArray.from_arrays(indexes, pa.array(list(names), pa.string()))


class RequestsFile:
    """``requests.parquet`` while it is written: the load points one after another."""

    def __init__(self, path: Path, metadata: Mapping[str, str]) -> None:
        self._schema = REQUESTS.with_metadata(dict(metadata))
        self._writer = pq.ParquetWriter(
            path, self._schema, compression="zstd", use_dictionary=cast("Any", _WORDS)
        )

    def write(self, table: pa.Table) -> None:
        """Append a row group."""
        self._writer.write_table(table.replace_schema_metadata(self._schema.metadata))

    def close(self) -> None:
        """Finish the file."""
        self._writer.close()


def write_chunks(
    path: Path, parts: Sequence[tuple[int, Path]], kind: np.dtype[np.void], metadata: Mapping[str, str]
) -> None:
    """Write ``chunks.parquet`` from the chunk spools in ``parts``: (load point, worker's folder)."""
    schema = CHUNKS.with_metadata(dict(metadata))
    with pq.ParquetWriter(path, schema, compression="zstd", use_dictionary=False) as writer:
        for load in sorted({load for load, _ in parts}):
            spools = [read_chunks(folder / "chunks.bin", kind) for index, folder in parts if index == load]
            records = np.concatenate(spools) if len(spools) > 1 else spools[0]
            order = np.lexsort((records["index"], records["request"]))
            for start in range(0, len(order), GROUP_ROWS):
                writer.write_table(_chunk_table(records[order[start : start + GROUP_ROWS]], load, schema))


def _chunk_table(records: npt.NDArray[np.void], load: int, schema: pa.Schema) -> pa.Table:
    true_names = records.dtype.names or ()
    true = records["true_sent_ns"] if "true_sent_ns" in true_names else np.full(len(records), NULL)
    return pa.Table.from_arrays(
        [
            pa.array(records["request"]),
            pa.array(np.full(len(records), load, np.int16)),
            pa.array(records["index"].astype(np.int32)),
            pa.array(records["received_ns"]),
            pa.array(records["tokens"].astype(np.int16), mask=records["tokens"] < 0),
            pa.array(records["shared"]),
            pa.array(true, mask=true == NULL),
        ],
        schema=schema,
    )


def write_series(path: Path, parts: Sequence[tuple[int, Series]], metadata: Mapping[str, str]) -> None:
    """Write ``series.parquet`` from each load point's counts."""
    schema = SERIES.with_metadata(dict(metadata))
    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        for load, series in parts:
            writer.write_table(series.table(load).replace_schema_metadata(schema.metadata))
