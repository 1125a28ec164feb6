"""Builds ``series.parquet``: per second counts in log-latency bins, and per second totals.

Each worker fills its own :class:`Series`; the parent merges them. Memory grows with seconds × bins in use,
not with what was counted.
"""

# pyarrow's stubs leave type arguments open.
# pyright: reportUnknownMemberType=false, reportUnknownArgumentType=false, reportUnknownVariableType=false

from __future__ import annotations

from pathlib import Path
from typing import Final, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from tokenweir.bench.records.columns import SERIES, STATUSES
from tokenweir.bench.records.flight import SEEN, flight_integral, last_seen
from tokenweir.bench.records.frames import codes, numbers
from tokenweir.core.metrics.base import NS_PER_S, FloatArray

Ints = npt.NDArray[np.int64]
Times: TypeAlias = npt.NDArray[np.int64] | FloatArray

LATENCIES: Final = ("ttft", "itl", "e2el")
TOTALS: Final = ("sent", "completed", "failed", "output_tokens", "in_flight")
METRICS: Final = LATENCIES + TOTALS
TOTAL_BIN: Final = -1
BINS_PER_OCTAVE: Final = 16

_PENDING: Final = 1 << 18
_SECOND: Final = 16
_METRIC: Final = 48


def latency_bin(latency_ns: Times) -> Ints:
    """Return each latency's bin. Formula: max(0, floor(16 · log2(latency / 1 µs)))."""
    return np.floor(BINS_PER_OCTAVE * np.log2(np.maximum(latency_ns, 1000) / 1000)).astype(np.int64)


def bin_edge_ns(bins: Ints) -> FloatArray:
    """Return the lower edge of each bin in nanoseconds. Formula: 2^(bin/16) µs."""
    return 1000 * np.exp2(bins / BINS_PER_OCTAVE)


class Series:
    """Counts of one load point. Times are nanoseconds since the run's start."""

    def __init__(self) -> None:
        self._keys: Ints = np.zeros(0, np.int64)
        self._counts: Ints = np.zeros(0, np.int64)
        self._pending: list[tuple[Ints, Ints]] = []
        self._waiting = 0

    def add_latencies(self, metric: str, received_ns: Times, latency_ns: Times) -> None:
        """Count latencies (``ttft``, ``itl`` or ``e2el``) at the second in which they were received."""
        keys = self._key(metric, received_ns, latency_bin(latency_ns))
        self._add(keys, np.ones(len(keys), np.int64))

    def add_totals(self, metric: str, at_ns: Times, counts: Ints | None = None) -> None:
        """Add ``counts`` (else 1 each) to a total (``sent``, ``output_tokens`` …) at each time's second."""
        keys = self._key(metric, at_ns, np.full(len(at_ns), TOTAL_BIN))
        self._add(keys, np.ones(len(keys), np.int64) if counts is None else counts)

    def add_requests(self, requests: pa.Table, given_up: FloatArray | None = None) -> None:
        """Count request rows: all but ``itl`` and ``output_tokens``, which rows cannot tell by the second.

        Call it once per load point, with all of its rows: the mean number in flight is not additive.
        ``given_up`` is that of :func:`~tokenweir.bench.records.flight.last_seen`.
        """
        self._add_rows(requests, given_up)
        column = numbers(requests, SEEN)
        cancelled = codes(requests, "status", STATUSES) == STATUSES.index("cancelled")
        end = last_seen(column, cancelled=cancelled, given_up=given_up)
        last = float(np.max(end[np.isfinite(end)], initial=0.0))
        edges = np.arange(0, last + NS_PER_S, NS_PER_S, dtype=np.float64)
        if len(edges) > 1:
            # The last second is cut where the last byte came, so that its mean is over time that was.
            edges[-1] = last
            area = np.diff(flight_integral(column["sent_ns"], end, edges))
            width = np.maximum(np.diff(edges), 1)
            self.add_totals("in_flight", edges[:-1], np.rint(area / width * 1000).astype(np.int64))

    def _add_rows(self, requests: pa.Table, given_up: FloatArray | None) -> None:
        column = numbers(requests, ("sent_ns", "first_token_ns", "end_ns"))
        status = codes(requests, "status", STATUSES)
        sent, first, end = column["sent_ns"], column["first_token_ns"], column["end_ns"]
        done = status == STATUSES.index("completed")
        has_first, has_end = done & ~np.isnan(first), done & ~np.isnan(end)
        self.add_totals("sent", sent[~np.isnan(sent)])
        self.add_totals("completed", end[has_end])
        over = end if given_up is None else np.where(np.isnan(end), given_up, end)
        self.add_totals("failed", over[(status == STATUSES.index("failed")) & ~np.isnan(over)])
        self.add_latencies("ttft", first[has_first], (first - sent)[has_first])
        self.add_latencies("e2el", end[has_end], (end - sent)[has_end])

    def merge(self, other: Series) -> None:
        """Add what another series counted."""
        keys, counts = other.compact()
        self._add(keys, counts)

    def compact(self) -> tuple[Ints, Ints]:
        """Return the distinct keys in order and their counts."""
        if self._pending:
            keys = np.concatenate([self._keys, *(keys for keys, _ in self._pending)])
            counts = np.concatenate([self._counts, *(counts for _, counts in self._pending)])
            self._keys, inverse = np.unique(keys, return_inverse=True)
            self._counts = np.zeros(len(self._keys), np.int64)
            np.add.at(self._counts, inverse, counts)
            self._pending, self._waiting = [], 0
        return self._keys, self._counts

    def save(self, path: Path) -> None:
        """Write the counts to a file that :meth:`load` reads."""
        with path.open("wb") as file:
            np.save(file, np.stack(self.compact()))

    @classmethod
    def load(cls, path: Path) -> Series:
        """Read what :meth:`save` wrote."""
        made = cls()
        with path.open("rb") as file:
            made._keys, made._counts = np.load(file)
        return made

    def table(self, load: int) -> pa.Table:
        """Return the rows of ``series.parquet``, in order of metric, second and bin."""
        keys, counts = self.compact()
        names = pa.DictionaryArray.from_arrays(
            (keys >> _METRIC).astype(np.int8), pa.array(list(METRICS), pa.string())
        )
        return pa.Table.from_arrays(
            [
                pa.array(np.full(len(keys), load, np.int16)),
                pa.array((keys >> _SECOND & 0xFFFFFFFF).astype(np.int32)),
                names,
                pa.array(((keys & 0xFFFF) + TOTAL_BIN).astype(np.int16)),
                pa.array(counts),
            ],
            schema=SERIES,
        )

    @staticmethod
    def _key(metric: str, at_ns: Times, bins: Ints) -> Ints:
        second = np.maximum(at_ns // NS_PER_S, 0).astype(np.int64)
        return METRICS.index(metric) << _METRIC | second << _SECOND | (bins - TOTAL_BIN)

    def _add(self, keys: Ints, counts: Ints) -> None:
        self._pending.append((keys, counts))
        self._waiting += len(keys)
        if self._waiting > _PENDING:
            self.compact()
